"""``--cfg-options KEY=VALUE``: parsing, and refusing keys that nothing would read.

A key must name a setting of the config, or a new one that its reader knows: a parameter of the registered class, of the data
loader, of the crop stream, and so on. ``+KEY=VALUE`` adds any other.
"""

import ast
import difflib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping

import mmseg.registry
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import Registry
from mmengine.runner import LogProcessor, Runner
from torch.utils.data import DataLoader

from ..datasets.crop_stream import CropStream
from ..engine.optim_wrappers import HalfOptimWrapper
from ..errors import IgniteError
from ..models.segmentors.tissue_segmentor import InferenceSettings, TissueSegmentor

REGISTRIES = tuple(r for r in vars(mmseg.registry).values() if isinstance(r, Registry))
_MISSING = object()
_TOP = ('data_root', 'protocol', 'crops', 'default_scope', 'auto_scale_lr', 'compile', 'tta_model', 'test_pipeline')
"""Top-level settings that are read beside the arguments of mmengine's Runner."""


class OptionText(str):
    """The value of an option as typed; it is parsed when the setting that it replaces is known."""


def parse_value(text: str) -> object:
    """A value as mmengine reads it: numbers, True, False, None, ``a,b``, ``[a,b]``, ``(a,b)``, ``{'k': 1}``, else text.

    Unlike mmengine's, spaces inside a text stay.

    Raises:
        IgniteError: brackets that do not match.
    """
    text = text.strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in '\'"':
        return text[1:-1]
    if text.startswith('{'):
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError) as error:
            raise IgniteError(f"the value {text!r} cannot be read; {{'key': value}} was expected.") from error
    parts = _split(text)
    if parts and parts != [text]:
        return [parse_value(part) for part in parts]
    for opening, closing, kind in (('(', ')', tuple), ('[', ']', list)):
        if text.startswith(opening) and text.endswith(closing):
            return kind(parse_value(part) for part in _split(text[1:-1]))
    for convert in (int, float):
        try:
            return convert(text)
        except ValueError:
            pass
    return {'true': True, 'false': False, 'none': None}.get(text.lower(), text)


def _split(text: str) -> list[str]:
    """The parts between the commas that stand outside brackets; none of an empty text."""
    parts, depth, begin = [], 0, 0
    for place, character in enumerate(text):
        depth += (character in '([{') - (character in ')]}')
        if depth < 0:
            break
        if character == ',' and depth == 0:
            parts.append(text[begin:place])
            begin = place + 1
    if depth:
        raise IgniteError(f'the value {text!r} has brackets that do not match: close them.')
    return [*parts, text[begin:]] if text[begin:].strip() else parts


def apply_options(cfg: Config, options: Mapping[str, object]) -> None:
    """Merge options into a config.

    Args:
        cfg: changed in place.
        options: {dotted key: value}; an :class:`OptionText` is parsed. A ``+`` before a key adds it unchecked.

    Raises:
        IgniteError: a key that names nothing, or a value of another type than the setting it replaces.
    """
    before, values = cfg.to_dict(), {}
    for key, value in options.items():
        name = key.removeprefix('+')
        present = _find(before, name)
        _check_places(before, name)
        if isinstance(value, OptionText):
            value = _parsed(value, present)
        if name == key:
            _check_kind(name, present, value)
        values[name] = value
        _clear_nones(cfg, name, value)
    cfg.merge_from_dict(values)
    for key in options:
        if not key.startswith('+'):
            _check_variable(key, before)
            _check_key(key, before, cfg.to_dict())


def _parsed(text: OptionText, present: object) -> object:
    if isinstance(present, str) and text != 'None' and text[:1] not in ('"', "'", '[', '('):
        return str(text)
    return parse_value(text)


def _find(node: object, name: str) -> object:
    for part in name.split('.'):
        try:
            node = node[int(part)] if isinstance(node, (list, tuple)) else node[part]
        except (KeyError, IndexError, ValueError, TypeError):
            return _MISSING
    return node


def _check_places(cfg: Mapping, name: str) -> None:
    """Raise IgniteError if an option names an item that a list of the config lacks."""
    parts = name.split('.')
    for depth, part in enumerate(parts):
        node = _find(cfg, '.'.join(parts[:depth])) if depth else cfg
        if isinstance(node, (list, tuple)) and not (part.isdecimal() and int(part) < len(node)):
            raise IgniteError(
                f'the option {name} names no setting: {".".join(parts[:depth])} is a list, whose items are numbered 0 to '
                f'{len(node) - 1}.'
            )
        place = '.'.join(parts[:depth])
        if node is None and place == 'model.backbone.init_cfg':
            raise IgniteError(
                f'the option {name} names no setting: {place} is None; give the weights by --weights FILE.'
            )
        if node not in (None, _MISSING) and not isinstance(node, (Mapping, list, tuple)):
            raise IgniteError(f'the option {name} names no setting: {place} is {node!r}, which has no settings inside.')


def _clear_nones(cfg: Config, name: str, value: object) -> None:
    """Remove a None that an option fills with settings, into which mmengine would not merge them."""
    parts = name.split('.')
    for part in parts if isinstance(value, Mapping) else parts[:-1]:
        if isinstance(cfg, (Config, Mapping)) and cfg.get(part, _MISSING) is None:
            cfg.pop(part)
            return
        cfg = _find(cfg, part)


def _check_kind(name: str, present: object, value: object) -> None:
    """Raise IgniteError if a value cannot stand for the present one."""
    if present is _MISSING or present is None or value is None:
        return
    numbers = (int, float)
    if isinstance(present, bool):
        fits, expected = isinstance(value, bool), 'True or False'
    elif isinstance(present, numbers):
        fits, expected = isinstance(value, numbers) and not isinstance(value, bool), f'a number, as {present!r},'
    elif isinstance(present, str):
        fits, expected = isinstance(value, (str, list, tuple)), f'a text, as {present!r},'
    elif isinstance(present, Mapping):
        fits, expected = isinstance(value, Mapping), 'a setting inside it (KEY.SETTING=VALUE)'
    else:
        fits, expected = True, ''
    if not fits:
        raise IgniteError(f'the option {name} is {value!r}; {expected} was expected.')


def _check_variable(name: str, cfg: Mapping) -> None:
    """Raise IgniteError if an option changes a variable of the config file, which nothing reads afterwards."""
    top, *rest = name.split('.')
    read = {*_TOP, *_signature(Runner.__init__)} - {
        'data_preprocessor'
    }  # the Runner reads it only for a model without one
    if top not in cfg or top in read:
        return
    copies = [key for key in _dotted(cfg) if key.split('.')[0] != top and _find(cfg, key) == cfg[top]]
    used = [key for key in copies if key.split('.')[0] in read][:3]
    hint = f' in {", ".join(".".join([key, *rest]) for key in used)}' if used else ''
    raise IgniteError(
        f'the option {name} changes a variable of the config file, which nothing reads afterwards: change what was made of '
        f'it{hint}. To change it all the same, write +{name}=...'
    )


def _check_key(name: str, before: Mapping, merged: Mapping) -> None:
    """Raise IgniteError if an option added a setting that nothing reads."""
    path: list[str] = []
    old, new = before, merged
    for part in name.split('.'):
        inside = _find(old, part)
        if inside is _MISSING:
            known = _known(path, new, merged) if path else {*before, *_TOP, *_signature(Runner.__init__)}
            if known is None:
                return
            if part not in known:
                hint = _suggestion(name, path, merged, known)
                raise IgniteError(
                    f'the option {name} names no setting: {_place(path)} has no {part!r}{hint}. To add it all the same, '
                    f'write +{name}=...'
                )
            inside = {}
        path.append(part)
        old, new = inside, _find(new, part)


def _place(path: list[str]) -> str:
    return '.'.join(path) if path else 'the config'


def _known(path: list[str], node: object, cfg: Mapping) -> set[str] | None:
    """Names of the settings that a place inside a config may have; None if any may be there."""
    if isinstance(node, (list, tuple)):
        return {str(i) for i in range(len(node))}
    if isinstance(node, Mapping) and 'type' in node:
        return _parameters(find_type(node['type']))
    if path == ['model', 'test_cfg']:
        kind = find_type((cfg.get('model') or {}).get('type'))
        return set(InferenceSettings.__dataclass_fields__) if _is_class(kind, TissueSegmentor) else None
    if len(path) == 1 and path[0].endswith('_dataloader'):
        return {*_signature(DataLoader.__init__), 'dataset', 'worker_init_fn', 'num_batch_per_epoch'}
    return _BY_NAME.get(path[-1], lambda: None)()


_BY_NAME: dict[str, Callable[[], set[str] | None]] = {
    'crops': lambda: {*_signature(CropStream.__init__)} - {'root', 'rois', 'label_map'},
    'randomness': lambda: {*_signature(Runner.set_randomness)},
    'env_cfg': lambda: {'cudnn_benchmark', 'mp_cfg', 'dist_cfg', 'resource_limit'},
    'clip_grad': lambda: {'type', 'max_norm', 'norm_type', 'error_if_nonfinite', 'foreach', 'clip_value'},
    'log_processor': lambda: _parameters(LogProcessor),
    'paramwise_cfg': lambda: {  # of DefaultOptimWrapperConstructor, which states them in no signature
        'custom_keys', 'norm_decay_mult', 'bias_lr_mult', 'bias_decay_mult', 'dwconv_decay_mult', 'dcn_offset_lr_mult',
        'flat_decay_mult', 'bypass_duplicate',
    },
}  # fmt: skip


def find_type(name: object) -> type | Callable | None:
    """What a ``type`` of a config stands for in mmseg's registries and their parents; None if nothing."""
    if not isinstance(name, str):
        return name if callable(name) else None
    names = dict.fromkeys([name, name.split('.')[-1]])  # a scope, as in mmseg.LoadImageFromFile, may be that of a child
    found = (registry.get(one) for one in names for registry in REGISTRIES)
    return next((kind for kind in found if kind is not None), None)


def _is_class(kind: object, base: type) -> bool:
    return isinstance(kind, type) and issubclass(kind, base)


def _signature(function: Callable) -> Iterator[str]:
    kinds = inspect.Parameter
    for name, parameter in inspect.signature(function).parameters.items():
        if name != 'self' and parameter.kind not in (kinds.VAR_KEYWORD, kinds.VAR_POSITIONAL):
            yield name


def _parameters(kind: type | Callable | None) -> set[str] | None:
    """Names of the arguments of a class, those that it passes on to its bases included; None if unknown."""
    if kind is None:
        return None
    if not isinstance(kind, type):
        return {*_signature(kind), 'type'}
    names = {'type', '_scope_', '_delete_'}
    if _is_class(kind, OptimWrapper):  # --amp makes one of the other
        names |= {*_signature(HalfOptimWrapper.__init__), 'constructor', 'paramwise_cfg'}
    for base in kind.__mro__:
        init = vars(base).get('__init__')
        if base is object or init is None:
            continue
        names |= {*_signature(init)}
        if not any(p.kind is p.VAR_KEYWORD for p in inspect.signature(init).parameters.values()):
            break
    return names


def _dotted(node: object, head: str = '') -> Iterator[str]:
    items = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, (list, tuple)) else ()
    for key, value in items:
        yield f'{head}{key}'
        yield from _dotted(value, f'{head}{key}.')


def _suggestion(name: str, path: list[str], cfg: Mapping, known: Iterable[str]) -> str:
    """'; did you mean X?' or nothing."""
    every = {key for key in _dotted(cfg) if key != name}
    every |= {f'model.test_cfg.{key}' for key in InferenceSettings.__dataclass_fields__}
    every |= {f'crops.{key}' for key in _BY_NAME['crops']()}
    by_last: dict[str, list[str]] = {}
    for key in sorted(every, key=lambda key: (key.count('.'), key)):
        by_last.setdefault(key.split('.')[-1], []).append(key)
    last, head = name.split('.')[-1], ''.join(f'{part}.' for part in path)
    near = by_last.get(last, [])[:2]
    near = near or [
        f'{head}{key}' for key in difflib.get_close_matches(name.split('.')[len(path)], sorted(known), 2, 0.7)
    ]
    near = near or [by_last[match][0] for match in difflib.get_close_matches(last, sorted(by_last), 2, 0.7)]
    return f'; did you mean {" or ".join(near)}?' if near else ''


def suggest(name: str, names: Iterable[str]) -> str:
    """'; did you mean X?' or nothing, for a name that is not among ``names``."""
    near = difflib.get_close_matches(name, sorted(names), 1, 0.6)
    return f'; did you mean {near[0]}?' if near else ''
