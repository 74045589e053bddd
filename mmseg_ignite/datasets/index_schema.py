"""Check the content of index.json, the index of a prepared data set, which others may have written or damaged."""

import re
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from ..errors import IgniteError
from ..files import printable
from ..labels import CLASSES, ENCODINGS, NUM_CLASSES
from ..untrusted import plain_name

FORMAT = 2
FOLDERS = ('images', 'labels', 'points')
CONTEXT = '_with_context'
METADATA = ('roi_id', 'source', 'specimen_type', 'organ', 'histological_subtype', 'scanner')
"""Columns of the release that the index keeps unchanged, for strata of the evaluation."""
POSSIBLE_UM_PER_PX = 0.01, 100
MAX_SIDE = 65535
"""Largest height and width of an array, px: points are stored as 16-bit coordinates."""
MAX_TEXT = 1000  # characters
_REMEDY = 'prepare the data again'
_SOURCES = {'image', 'mask', 'context_image', 'context_mask'}
_FINDING = {'kind', 'subject', 'detail', 'roi'}
_COMMON_NAME = re.compile('[a-zA-Z0-9][a-zA-Z0-9_.-]{0,100}')
_DIGESTS = re.compile('(?:(?:^| )(?:[0-9a-f]{64}|[0-9a-f]{32}))*')


class _Rule(NamedTuple):
    """Which values a key may have."""

    valid: Callable[[object], bool]
    expected: str  # for the sentence
    needed: bool = False


def _is_int(value: object, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most


def _is_text(value: object) -> bool:
    """Return whether a value is text that can be written as UTF-8."""
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        return False
    return value.isascii() or not any('\ud800' <= character <= '\udfff' for character in value)


def _is_patient(value: object) -> bool:
    return _is_int(value, 0, 2**63) or (_is_text(value) and value != '')


def _is_resolution(value: object) -> bool:
    least, most = POSSIBLE_UM_PER_PX
    return value is None or (type(value) in (int, float) and least <= value <= most)


def _is_context(value: object) -> bool:
    if value is None:
        return True
    if not isinstance(value, dict) or not all(_is_int(value.get(side), 1, MAX_SIDE) for side in ('height', 'width')):
        return False
    origin = value.get('origin')
    return isinstance(origin, list) and len(origin) == 2 and all(_is_int(i, 0, MAX_SIDE) for i in origin)


def _is_pixels(value: object) -> bool:
    return isinstance(value, list) and len(value) == NUM_CLASSES and {*map(type, value)} == {int} and min(value) >= 0


def _is_findings(value: object) -> bool:
    def is_finding(found: object) -> bool:
        return isinstance(found, dict) and found.keys() == _FINDING and all(isinstance(v, str) for v in found.values())

    return isinstance(value, list) and all(map(is_finding, value))


def _is_digests(value: object) -> bool:
    if not isinstance(value, dict) or not {*map(type, value.values())} <= {str}:
        return False
    return bool(_DIGESTS.fullmatch(' '.join(value.values())))


def _is_ids(value: object) -> bool:
    return value is None or (isinstance(value, dict) and all(_is_int(v, 0, NUM_CLASSES) for v in value.values()))


_SIDE = _Rule(lambda v: _is_int(v, 1, MAX_SIDE), f'a number of px, 1..{MAX_SIDE},', True)
_COUNT = _Rule(lambda v: _is_int(v, 0, MAX_SIDE**2), 'a number of px')
_TEXT = _Rule(_is_text, f'text of at most {MAX_TEXT} characters')
_INDEX_RULES = {
    'format': _Rule(lambda v: _is_int(v, FORMAT, FORMAT), f'{FORMAT}', True),
    'classes': _Rule(lambda v: v == list(CLASSES), "the list of IGNITE's classes", True),
    'rois': _Rule(lambda v: isinstance(v, list), 'a list', True),
    'splits': _Rule(lambda v: isinstance(v, dict), 'an object', True),
    'channel_order': _Rule(lambda v: v == 'RGB', "'RGB'"),
    'release': _TEXT,
    'left_out': _Rule(lambda v: isinstance(v, list) and all(isinstance(n, str) for n in v), 'a list of names'),
    'label_map': _Rule(_is_ids, f'null or {{id: our id, 0..{NUM_CLASSES}}}'),
    'audit_rules': _Rule(lambda v: _is_int(v, 0, 2**31), 'a number'),
}
_ROI_RULES = {
    'patient': _Rule(_is_patient, f'a patient id of at most {MAX_TEXT} characters', True),
    'height': _SIDE,
    'width': _SIDE,
    'um_per_px': _Rule(_is_resolution, f'um/px, {POSSIBLE_UM_PER_PX[0]}..{POSSIBLE_UM_PER_PX[1]}, or null', True),
    'pixels': _Rule(_is_pixels, f'the number of px of each of the {NUM_CLASSES} classes', True),
    'unannotated': _COUNT,
    'stray': _COUNT,
    'encoding': _Rule(lambda v: v in (*ENCODINGS, 'empty'), f'one of {", ".join(ENCODINGS)} and empty'),
    'context': _Rule(_is_context, 'null, or its height, width and origin in px'),
    'sources': _Rule(lambda v: _is_digests(v) and v.keys() <= _SOURCES, 'the SHA-256 of each file of the release'),
    'arrays': _Rule(_is_digests, 'the SHA-256 of each array'),
    'findings': _Rule(_is_findings, 'a list of findings of the audit'),
    'picture': _Rule(lambda v: v is None or _is_digests({'': v}), 'null or a checksum'),
    **dict.fromkeys(('official_split', 'official_fold', *METADATA), _TEXT),
}


def check_index(index: object, path: object) -> None:
    """Check every entry of the parsed index of a prepared data set.

    Keys that are not known are ignored, so that later versions can add some.

    Args:
        index: what the file holds.
        path: the file, for the sentence.

    Raises:
        IgniteError: a key is missing, or a value has another type or range; an ROI occurs twice, its name is not a plain
            file name, its pixels or its position do not fit; a split lists an unknown ROI, or one twice.
    """
    path = printable(path)
    if not isinstance(index, dict):
        raise IgniteError(f'{path} is not a JSON object; the index of a prepared data set was expected: {_REMEDY}.')
    _check_keys(index, _INDEX_RULES, '', path)
    for number, entry in enumerate(index['rois']):
        if not isinstance(entry, dict) or 'name' not in entry:
            raise IgniteError(f'{path} has no name of ROI number {number}; one was expected: {_REMEDY}.')
        _check_roi(entry, path)
    names = Counter(entry['name'] for entry in index['rois'])
    if twice := next((name for name, count in names.items() if count > 1), None):
        raise IgniteError(f'{path} lists the ROI {twice} twice; one entry per ROI was expected: {_REMEDY}.')
    if len({type(entry['patient']) for entry in index['rois']}) > 1:  # 1 and "1" would be two patients
        raise IgniteError(f'{path} has texts and numbers as patient; one kind of ids was expected: {_REMEDY}.')
    _check_splits(index['splits'], names, path)


def _check_keys(entry: dict, rules: dict[str, _Rule], whose: str, path: str) -> None:
    for key, rule in rules.items():
        if key not in entry:
            if rule.needed:
                raise IgniteError(f'{path} has no {key}{whose}; {rule.expected} was expected: {_REMEDY}.')
        elif not rule.valid(entry[key]):
            raise IgniteError(
                f'{path} has {_short(entry[key])} as {key}{whose}; {rule.expected} was expected: {_REMEDY}.'
            )


def _short(value: object) -> str:
    """Return the start of a value as text; a value of a file may be of any size and depth."""
    if isinstance(value, (dict, list)):
        return f'{"an object" if isinstance(value, dict) else "a list"} of {len(value)}'
    text = repr(value[:80]) if isinstance(value, str) else repr(value)
    return text if len(text) <= 90 else f'{text[:80]}...'


def _check_roi(entry: dict, path: str) -> None:
    name = entry['name']
    if not isinstance(name, str) or not _COMMON_NAME.fullmatch(name):  # a shortcut: an index may have 10,000 names
        plain_name(name, path)
    if not _is_text(name) or name.endswith((CONTEXT, '.npy')):
        raise IgniteError(f'{path} has the ROI name {_short(name)}, which names another file: {_REMEDY}.')
    whose = f' of the ROI {name}'
    _check_keys(entry, _ROI_RULES, whose, path)
    height, width, context = entry['height'], entry['width'], entry.get('context')
    annotated, size = sum(entry['pixels']), height * width
    if annotated > size or annotated + entry.get('unannotated', size - annotated) != size:
        raise IgniteError(
            f'{path} has {annotated:,} px of classes (pixels){whose}, and {entry.get("unannotated", "unknown")} unannotated; '
            f'{height} x {width} px were expected: {_REMEDY}.'
        )
    if context is not None:
        bottom, right = context['origin'][0] + height, context['origin'][1] + width
        if bottom > context['height'] or right > context['width']:
            raise IgniteError(
                f'{path} has a context{whose} of {context["height"]} x {context["width"]} px, in which the ROI ends at '
                f'{bottom}, {right}; a position inside was expected: {_REMEDY}.'
            )
    stems = [f'{name}.npy', f'{name}{CONTEXT}.npy']
    if unknown := entry.get('arrays', {}).keys() - {f'{folder}/{stem}' for folder in FOLDERS for stem in stems}:
        raise IgniteError(
            f'{path} has {_short(min(unknown))} in arrays{whose}, which is not one of its arrays: {_REMEDY}.'
        )


def array_shapes(entry: dict) -> dict[str, tuple[int | None, ...]]:
    """Return {path in the prepared folder: shape} of the arrays of an ROI; the number of its points is None.

    Example:
        >>> array_shapes(dict(name='a', height=90, width=110))
        {'images/a.npy': (90, 110, 3), 'labels/a.npy': (90, 110), 'points/a.npy': (None, 3)}
    """
    name, size = entry['name'], (entry['height'], entry['width'])
    shapes = {f'images/{name}.npy': (*size, 3), f'labels/{name}.npy': size, f'points/{name}.npy': (None, 3)}
    if (context := entry.get('context')) is not None:
        size = context['height'], context['width']
        shapes |= {f'images/{name}{CONTEXT}.npy': (*size, 3), f'labels/{name}{CONTEXT}.npy': size}
    return shapes


def _check_splits(splits: dict, names: Counter, path: str) -> None:
    for protocol, parts in splits.items():
        if not _is_text(protocol) or not isinstance(parts, dict) or not all(map(_is_text, parts)):
            found = f'{_short(parts)} as the split {_short(protocol)}'
            raise IgniteError(f'{path} has {found}; an object of parts was expected: {_REMEDY}.')
        seen: set[str] = set()
        for part, members in parts.items():
            where = f'the part {_short(part)} of the split {_short(protocol)}'
            if not isinstance(members, list):
                raise IgniteError(f'{path} has {_short(members)} as {where}; a list of ROIs was expected: {_REMEDY}.')
            if unknown := [name for name in members if not isinstance(name, str) or name not in names]:
                raise IgniteError(f'{path} lists {_short(unknown[0])} in {where}, but has no such ROI: {_REMEDY}.')
            if repeated := seen.intersection(members) or {name for name, n in Counter(members).items() if n > 1}:
                raise IgniteError(
                    f'{path} lists {min(repeated)} in {where}, where it is listed twice or in two parts: {_REMEDY}.'
                )
            seen.update(members)
