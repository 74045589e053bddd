"""Ranges of the settings that mmengine, mmseg and torch take unchecked, or complain of in the middle of a run."""

import math
from collections.abc import Callable, Iterator, Mapping
from numbers import Integral, Real

from mmengine.config import Config

from ..errors import IgniteError

LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
Rule = tuple[Callable[[object], bool], str]
"""Whether a value is in range, and what was expected."""


def _is_integer(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and not math.isnan(value)


def _integer(least: int, never: bool = False) -> Rule:
    """An integer of ``least`` or more; with ``never`` also -1, which is mmengine's word for never or no limit."""
    text = f'an integer of {least} or more{", or -1," if never else ""}'
    return lambda value: _is_integer(value) and (value >= least or (never and value == -1)), text


def _is_size(value: object) -> bool:
    return isinstance(value, (tuple, list)) and len(value) == 2 and all(_is_integer(v) and v > 0 for v in value)


_NOT_NEGATIVE: Rule = (lambda value: _is_number(value) and 0 <= value < math.inf, 'a number of 0 or more')
_POSITIVE: Rule = (lambda value: _is_number(value) and value > 0, 'a number above 0')
_RATE: Rule = (lambda value: _is_number(value) and 0 <= value < 1, 'a number from 0 to below 1')
_SIZE: Rule = (_is_size, 'a pair of integers (height, width) of 1 or more')
_HEAD: dict[str, Rule] = {'num_classes': _integer(1), 'channels': _integer(1)}
_RULES: dict[str, Rule] = {
    **{f'{loader}.batch_size': _integer(1) for loader in LOADERS},
    **{f'{loader}.num_workers': _integer(0) for loader in LOADERS},
    'train_cfg.max_iters': _integer(1),
    'train_cfg.max_epochs': _integer(1),
    'train_cfg.val_interval': _integer(1),
    'train_cfg.val_begin': _integer(0),
    'optim_wrapper.accumulative_counts': _integer(1),
    'optim_wrapper.optimizer.lr': _NOT_NEGATIVE,
    'optim_wrapper.optimizer.weight_decay': _NOT_NEGATIVE,
    'optim_wrapper.clip_grad.max_norm': _POSITIVE,
    'optim_wrapper.clip_grad.norm_type': _POSITIVE,
    'optim_wrapper.clip_grad.clip_value': _POSITIVE,
    'default_hooks.logger.interval': _integer(1),
    'default_hooks.checkpoint.interval': _integer(1, never=True),
    'default_hooks.checkpoint.max_keep_ckpts': _integer(1, never=True),
    'default_hooks.checkpoint.save_begin': _integer(0),
    'model.data_preprocessor.size': _SIZE,
    'model.data_preprocessor.size_divisor': _integer(1),
    'model.backbone.drop_path_rate': _RATE,
    **{f'model.{head}.{key}': rule for head in ('decode_head', 'auxiliary_head') for key, rule in _HEAD.items()},
    'crops.crop_size': _SIZE,
    'train_dataloader.dataset.crops.crop_size': _SIZE,
    'randomness.seed': (
        lambda value: _is_integer(value) and 0 <= value < 2**32,
        'an integer from 0 to 4294967295',
    ),
}


def check_values(cfg: Config) -> None:
    """Raise IgniteError if a setting of a config has a value of another type or out of its range; None is not checked."""
    for name, (fits, expected) in _RULES.items():
        for place, value in _found(cfg, name.split('.')):
            if value is not None and not fits(value):
                raise IgniteError(f'{place} is {value!r}; {expected} was expected: correct it.')


def _found(node: object, parts: list[str], place: str = '') -> Iterator[tuple[str, object]]:
    """The values of a setting, with their places: several where a part of the config is a list, as several heads are."""
    if not parts:
        yield place.removeprefix('.'), node
    elif isinstance(node, (list, tuple)):
        for number, item in enumerate(node):
            yield from _found(item, parts, f'{place}.{number}')
    elif isinstance(node, (Config, Mapping)):
        yield from _found(node.get(parts[0]), parts[1:], f'{place}.{parts[0]}')
