"""``--cfg-options KEY=VALUE``: parse values, and refuse keys that nothing reads.

A key must name a setting of the config, or a new one that its reader accepts: an argument of the registered class, the data
loader, the crop stream, and so on. ``+KEY=VALUE`` adds any other setting.
"""

import ast
import contextlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from itertools import accumulate

import mmseg.registry
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import FUNCTIONS, Registry
from mmengine.runner import LogProcessor, Runner
from torch.utils.data import DataLoader

from ..datasets.crop_stream import CropStream
from ..engine.optim_wrappers import HalfOptimWrapper
from ..errors import IgniteError
from ..models.segmentors import TissueSegmentor
from ..models.segmentors.inference_settings import InferenceSettings
from .dotted import MISSING, children, find, walk

REGISTRIES = (*(r for r in vars(mmseg.registry).values() if isinstance(r, Registry)), FUNCTIONS)


class OptionText(str):
    """The value of an option as typed, parsed once the type of the setting it replaces is known."""


def parse_value(text: str) -> object:
    """Parse a value: a number, True, False, None, ``a,b``, ``[a,b]``, ``(a,b)``, ``{'k': 1}``; other text stays text.

    mmengine's DictAction parses the same syntax, but removes spaces inside text.

    Raises:
        IgniteError: unbalanced brackets, or an invalid dictionary.

    Example:
        >>> parse_value('(512, 512)')
        (512, 512)
    """
    text = text.strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in '\'"':
        return text[1:-1]
    if text.startswith('{'):
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError) as error:
            raise IgniteError(f"the value {text!r} is not a dictionary; {{'key': value}} was expected.") from error
    parts = _split(text)
    if parts and parts != [text]:
        return [parse_value(part) for part in parts]
    for opening, closing, kind in (('(', ')', tuple), ('[', ']', list)):
        if text.startswith(opening) and text.endswith(closing):
            return kind(parse_value(part) for part in _split(text[1:-1]))
    for convert in (int, float):
        with contextlib.suppress(ValueError):
            return convert(text)
    return {'true': True, 'false': False, 'none': None}.get(text.lower(), text)


def _split(text: str) -> list[str]:
    """Split at the commas outside brackets; ignore a comma at the end."""
    parts, depth = [''], 0
    for character in text:
        depth += (character in '([{') - (character in ')]}')
        if depth < 0:
            break
        if character == ',' and depth == 0:
            parts.append('')
        else:
            parts[-1] += character
    if depth:
        raise IgniteError(f'the brackets of the value {text!r} do not match: close them.')
    return parts if parts[-1].strip() else parts[:-1]


def apply_options(cfg: Config, options: Mapping[str, object]) -> None:
    """Merge options into a config.

    Args:
        cfg: modified in place.
        options: {dotted key: value}; an :class:`OptionText` is parsed. A ``+`` before a key adds it unchecked.

    Raises:
        IgniteError: a key that nothing reads, or a value of another type than the setting it replaces.

    Example:
        >>> apply_options(cfg, {'train_cfg.max_iters': 40000, 'model.decode_head.dropout_ratio': OptionText('0.2')})
    """
    before, values = cfg.to_dict(), {}
    for key, value in options.items():
        name = key.removeprefix('+')
        current = find(before, name, MISSING)
        _check_parents(name, before)
        if isinstance(value, OptionText):
            value = _parse(value, current)
        if name == key:
            _check_kind(name, current, value)
        unset = [parent for parent in _prefixes(name)[:-1] if find(before, parent, MISSING) is None]
        values |= {f'{parent}._delete_': True for parent in unset}  # else mmengine merges no settings into None
        values[name] = {**value, '_delete_': True} if current is None and isinstance(value, Mapping) else value
    cfg.merge_from_dict(values)
    for key in options:
        if not key.startswith('+'):
            _check_variable(key, before)
            _check_key(key, before, cfg.to_dict())


def _parse(text: OptionText, current: object) -> object:
    """Parse an option; one that replaces text stays text unless it is None, quoted or a list."""
    if isinstance(current, str) and text != 'None' and text[:1] not in ('"', "'", '[', '('):
        return str(text)
    return parse_value(text)


def _prefixes(name: str) -> list[str]:
    """Return 'a', 'a.b' and 'a.b.c' for 'a.b.c'."""
    return list(accumulate(name.split('.'), '{}.{}'.format))


def _check_parents(name: str, cfg: Mapping) -> None:
    """Raise IgniteError if an option is inside a value that has no such item, or no settings at all."""
    for parent, child in zip(_prefixes(name), name.split('.')[1:]):
        node, fault = find(cfg, parent, MISSING), None
        if node is None and parent == 'model.backbone.init_cfg':
            fault = 'is None: set the weights with --weights FILE'
        elif isinstance(node, (list, tuple)) and child not in children(node):
            fault = f'is a list of {len(node)} items, numbered from 0: choose one of its items'
        elif node is not None and node is not MISSING and not isinstance(node, (Mapping, list, tuple)):
            fault = f'is {node!r}, which has no settings: set {parent} itself'
        if fault:
            raise IgniteError(f'the option {name} is unknown, since {parent} {fault}.')


_KINDS = (
    (bool, bool, 'True or False'),
    ((int, float), (int, float), 'a number, such as {!r},'),
    (str, (str, list, tuple), 'text, such as {!r},'),
    (Mapping, Mapping, 'a setting inside it (KEY.SETTING=VALUE)'),
)
"""Type of a setting, types that may replace it, and their description; other types accept any value."""


def _check_kind(name: str, current: object, value: object) -> None:
    """Raise IgniteError if a value is of another type than the setting it replaces; None and a missing one fit any."""
    if current is None or value is None:
        return
    for kind, allowed, expected in _KINDS:
        if isinstance(current, kind):
            if not isinstance(value, allowed) or isinstance(value, bool) != isinstance(current, bool):
                raise IgniteError(
                    f'the option {name} is {value!r}; {expected.format(current)} was expected: correct it.'
                )
            return


def _check_variable(name: str, cfg: Mapping) -> None:
    """Raise IgniteError if an option changes a variable of the config file, which nothing reads afterwards."""
    top, *inside = name.split('.')
    read = _TOP - {'data_preprocessor'}  # read by the Runner only for a model that has none
    if top not in cfg or top in read:
        return
    copies = [key for key, value in walk(cfg) if key.split('.')[0] in read and value == cfg[top]][:3]
    instead = ', '.join('.'.join([key, *inside]) for key in copies) or 'its copies'
    raise IgniteError(
        f'the option {name} changes a variable of the config file, which nothing reads afterwards: set {instead} '
        f'instead, or write +{name}=... to change the variable.'
    )


def _check_key(name: str, before: Mapping, after: Mapping) -> None:
    """Raise IgniteError if an option added a setting that nothing reads."""
    parent = ''
    for key in _prefixes(name):
        if find(before, key, MISSING) is MISSING:
            known = _known(parent, after) if parent else {*before, *_TOP}
            if known is None:
                return
            part = key.split('.')[-1]
            if part not in known:
                hint = suggestion(_similar_keys(name, parent, part, known, before))
                raise IgniteError(
                    f'the option {name} is unknown, since {parent or "the config"} has no {part!r}{hint} To add it '
                    f'anyway, write +{name}=...'
                )
        parent = key


def _known(key: str, cfg: Mapping) -> set[str] | None:
    """Return the names of the settings that a part of a config accepts; None if it accepts any."""
    node = find(cfg, key)
    if isinstance(node, (list, tuple)):
        return set(children(node))
    if isinstance(node, Mapping) and 'type' in node:
        return _class_arguments(find_type(node['type']))
    if key == 'model.test_cfg':
        ours = issubclass(part_class(cfg.get('model')), TissueSegmentor)
        return set(InferenceSettings.__dataclass_fields__) if ours else None
    if '.' not in key and key.endswith('_dataloader'):
        return {*_arguments(DataLoader.__init__), 'dataset', 'worker_init_fn', 'num_batch_per_epoch'}
    return _BY_NAME.get(key.split('.')[-1], lambda: None)()


def find_type(name: object) -> type | Callable | None:
    """Return the class or function that a ``type`` names in mmseg's registries and their parents; None if unknown."""
    if not isinstance(name, str):
        return name if callable(name) else None
    # mmseg.LoadImageFromFile is registered in mmcv: mmseg's registry finds it only without the scope.
    found = (
        _registered(key, registry) for key in dict.fromkeys([name, name.split('.')[-1]]) for registry in REGISTRIES
    )
    return next((kind for kind in found if kind is not None), None)


def _registered(key: str, registry: Registry | None) -> type | Callable | None:
    """Return what a registry or its parents have by a name; unlike ``Registry.get``, import no module of that name."""
    if '.' in key:  # with a scope, or a path to import
        return registry.get(key)
    while registry is not None:
        registry.import_from_location()
        if key in registry.module_dict:
            return registry.module_dict[key]
        registry = registry.parent
    return None


def part_class(part: object) -> type:
    """Return the class that the ``type`` of a part of a config names; ``object`` if it is not a known class."""
    kind = find_type(part.get('type')) if isinstance(part, Mapping) else None
    return kind if isinstance(kind, type) else object


def _arguments(function: Callable) -> set[str]:
    parameters = inspect.signature(function).parameters.values()
    return {p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)} - {'self'}


def _class_arguments(kind: type | Callable | None) -> set[str] | None:
    """Return the names of a class's arguments, including those it passes on to its bases; None if it is unknown."""
    if kind is None:
        return None
    if not isinstance(kind, type):
        return _arguments(kind) | {'type'}
    names = {'type', '_scope_', '_delete_'}
    if issubclass(kind, OptimWrapper):  # --amp turns it into a HalfOptimWrapper
        names |= _arguments(HalfOptimWrapper.__init__) | {'constructor', 'paramwise_cfg'}
    for init in [vars(base)['__init__'] for base in kind.__mro__[:-1] if '__init__' in vars(base)]:
        names |= _arguments(init)
        if not any(p.kind is p.VAR_KEYWORD for p in inspect.signature(init).parameters.values()):
            break
    return names


RUNNER_ARGUMENTS = _arguments(Runner.__init__)
_TOP = RUNNER_ARGUMENTS | {'data_root', 'protocol', 'crops', 'compile', 'tta_model', 'test_pipeline'}
"""Top-level settings that are read."""
_BY_NAME: dict[str, Callable[[], set[str] | None]] = {
    'crops': lambda: _arguments(CropStream.__init__) - {'root', 'rois', 'label_map'},
    'randomness': lambda: _arguments(Runner.set_randomness),
    'env_cfg': lambda: {'cudnn_benchmark', 'mp_cfg', 'dist_cfg', 'resource_limit'},
    'clip_grad': lambda: {'type', 'max_norm', 'norm_type', 'error_if_nonfinite', 'foreach', 'clip_value'},
    'log_processor': lambda: _class_arguments(LogProcessor),
    'paramwise_cfg': lambda: {  # read by DefaultOptimWrapperConstructor, not part of a signature
        'custom_keys', 'norm_decay_mult', 'bias_lr_mult', 'bias_decay_mult', 'dwconv_decay_mult', 'dcn_offset_lr_mult',
        'flat_decay_mult', 'bypass_duplicate',
    },
}  # fmt: skip
"""Settings of the parts that have no ``type``, by the last name of their key."""


def _similar_keys(name: str, parent: str, part: str, known: Iterable[str], cfg: Mapping) -> list[str]:
    """Return at most two keys: with the same last name, else with a similar name beside it, else anywhere."""
    keys = {key for key, _ in walk(cfg)} | {f'crops.{key}' for key in _BY_NAME['crops']()}
    keys |= {f'model.test_cfg.{key}' for key in InferenceSettings.__dataclass_fields__}
    by_last: dict[str, list[str]] = {}
    for key in sorted(keys, key=lambda key: (key.count('.'), key)):
        by_last.setdefault(key.split('.')[-1], []).append(key)
    last = name.split('.')[-1]
    beside = [f'{parent}.{match}'.removeprefix('.') for match in get_close_matches(part, known, 2, 0.7)]
    return by_last.get(last, [])[:2] or beside or [by_last[m][0] for m in get_close_matches(last, by_last, 2, 0.7)]


def suggestion(names: list[str]) -> str:
    """Return the end of a sentence about an unknown name: '; did you mean X or Y?', or '.' without ``names``."""
    return f'; did you mean {" or ".join(names)}?' if names else '.'
