"""Ranges of settings that mmengine, mmseg and torch do not check, or reject only in the middle of a run."""

import math
import re
from collections.abc import Callable
from numbers import Integral, Real

from mmengine.config import Config

from ..errors import IgniteError
from .dotted import walk

LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
Rule = tuple[Callable[[object], bool], str]
"""Whether a value is valid, and what is expected."""


def _is_integer(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_size(value: object) -> bool:
    return isinstance(value, (tuple, list)) and len(value) == 2 and all(_is_integer(v) and v > 0 for v in value)


def _integer(least: int, unlimited: bool = False) -> Rule:
    """Return the rule for an integer of at least ``least``; ``unlimited`` adds -1, mmengine's value for never or no limit."""
    text = f'an integer of {least} or more{", or -1," if unlimited else ""}'
    return lambda value: _is_integer(value) and (value >= least or (unlimited and value == -1)), text


_NOT_NEGATIVE: Rule = (lambda value: _is_number(value) and 0 <= value < math.inf, 'a finite number of 0 or more')
_POSITIVE: Rule = (lambda value: _is_number(value) and value > 0, 'a number above 0')
_SIZE: Rule = (_is_size, 'a pair of integers (height, width) of 1 or more')
_RATE: Rule = (lambda value: _is_number(value) and 0 <= value < 1, 'a number from 0 to below 1')
_SEED: Rule = (lambda value: _is_integer(value) and 0 <= value < 2**32, 'an integer from 0 to 4294967295')
_RULES: dict[str, Rule] = {key: rule for rule, keys in (
    (_integer(0), [f'{loader}.num_workers' for loader in LOADERS]),
    (_integer(0), ['train_cfg.val_begin', 'default_hooks.checkpoint.save_begin']),
    (_integer(1), [f'{loader}.batch_size' for loader in LOADERS]),
    (_integer(1), ['train_cfg.max_iters', 'train_cfg.max_epochs', 'train_cfg.val_interval', 'default_hooks.logger.interval']),
    (_integer(1), ['optim_wrapper.accumulative_counts', 'model.data_preprocessor.size_divisor']),
    (_integer(1), [f'model.{head}_head.{key}' for head in ('decode', 'auxiliary') for key in ('num_classes', 'channels')]),
    (_integer(1, unlimited=True), [f'default_hooks.checkpoint.{key}' for key in ('interval', 'max_keep_ckpts')]),
    (_NOT_NEGATIVE, [f'{loader}.timeout' for loader in LOADERS]),
    (_NOT_NEGATIVE, ['optim_wrapper.optimizer.lr', 'optim_wrapper.optimizer.weight_decay']),
    (_POSITIVE, ['env_cfg.dist_cfg.timeout']),
    (_POSITIVE, [f'optim_wrapper.clip_grad.{key}' for key in ('max_norm', 'norm_type', 'clip_value')]),
    (_SIZE, ['model.data_preprocessor.size', 'crops.crop_size', 'train_dataloader.dataset.crops.crop_size']),
    (_RATE, ['model.backbone.drop_path_rate']),
    (_SEED, ['randomness.seed']),
) for key in keys}  # fmt: skip
"""By dotted key without list indices, so that a rule applies to each of several heads."""


def check_values(cfg: Config) -> None:
    """Raise IgniteError if a setting has the wrong type or is out of range; None is always accepted."""
    for key, value in walk(cfg):
        rule = _RULES.get(re.sub(r'\.\d+(?=\.)', '', key))
        if rule and value is not None and not rule[0](value):
            raise IgniteError(f'{key} is {value!r}; {rule[1]} was expected: correct it.')
