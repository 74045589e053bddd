"""Reading ``metrics.json``, which another person may have written: all that the tools use is checked."""

from pathlib import Path

from ..datasets.transforms.shift import SHIFTS
from ..errors import IgniteError
from ..files import printable
from ..untrusted import COUNT, NAME, TEXT, Form, check_form, is_number, is_text, optional, read_json
from .confusion import FIGURES, OVERALL
from .label_files import ENCODINGS

REMEDY = 'score the run again with tools/test.py or tools/evaluate.py, or move the file away'
SCHEMA_VERSION = 1
_SCORE = optional(Form(lambda value: is_number(value, -1.001, 100.001), 'a score of at most 100'))
_LENGTH = Form(lambda value: is_number(value, 1e-6, 1e6), 'a length in um')
_FLAG = Form(lambda value: isinstance(value, bool), 'true or false')
_TEXT = optional(TEXT)
_FACT = Form(
    lambda value: (
        value is None
        or is_text(value)
        or is_number(value)
        or (isinstance(value, list) and len(value) <= 1000 and all(map(is_text, value)))
    ),
    'text, a number, a list of text or null',
)
_FIGURES = dict.fromkeys(FIGURES, _SCORE)
_ROW = {**_FIGURES, **dict.fromkeys(('rois?', 'patients?', 'classes_present?'), optional(COUNT))}
_CLASS = dict(IoU=_SCORE, Dice=_SCORE, Recall=_SCORE, pixels=COUNT, predicted_pixels=COUNT)
_INTERVAL = Form(
    lambda value: value is None or (isinstance(value, list) and len(value) == 2 and all(map(_SCORE.valid, value))),
    'two scores or null',
)
_FORM = {
    'schema_version': Form(lambda value: type(value) is int and value == SCHEMA_VERSION, f'{SCHEMA_VERSION}'),
    **{f'{key}?': _SCORE for key in OVERALL},
    **{f'{key}?': _TEXT for key in ('checkpoint', 'config', 'data', 'split', 'protocol', 'predictions')},
    **{f'{key}?': optional(COUNT) for key in ('rois', 'patients', 'classes_present')},
    'encoding?': Form(lambda value: value in ENCODINGS, f'one of {", ".join(ENCODINGS)}'),
    'shift?': Form(lambda value: value is None or value in SHIFTS, f'one of {", ".join(SHIFTS)}'),
    'use_context?': _FLAG,
    'cropped?': _FLAG,
    'provenance?': {'*': _FACT},
    'seen_patients?': [TEXT],
    'folds?': dict(rows=[dict(_ROW, fold=NAME)], mean=_FIGURES, sd=_FIGURES),
    'ensemble?': {**_ROW, 'split?': _TEXT, 'protocol?': _TEXT},
    'classes?': {'*': _CLASS},
    'boundary?': dict(
        tolerance_um=_LENGTH,
        classes={'*': dict(boundary_F1=_SCORE, NSD=_SCORE)},
        mean_boundary_F1=_SCORE,
        mean_NSD=_SCORE,
    ),
    'calibration?': dict(ece=_SCORE),
    'groupings?': {'*': _FIGURES},
    'intervals?': {'level': COUNT, 'patients': COUNT, 'unit': NAME, 'figures': {'*': _INTERVAL}, 'note?': TEXT},
}
_PRINTED = ('classes', 'classes_present', *OVERALL)
"""Keys without which :func:`.text_table.table` cannot print."""


def read_metrics(path: str | Path) -> dict:
    """Read and check ``metrics.json``.

    Raises:
        IgniteError: the file is missing, damaged, or has values that this package never writes.
    """
    found = read_json(path, REMEDY)
    check_form(found, _FORM, path, REMEDY)
    boundary = found.get('boundary')
    if boundary and not found.get('classes', {}).keys() <= boundary['classes'].keys():
        raise IgniteError(f'{printable(path)} has boundaries of other classes than its classes: {REMEDY}.')
    scored = [found, *found.get('groupings', {}).values()]
    if any(part.get('mIoU') is not None and None in (part.get('aAcc'), part.get('mDice')) for part in scored):
        raise IgniteError(f'{printable(path)} has a mIoU without aAcc or mDice: {REMEDY}.')
    return found


def is_complete(metrics: dict) -> bool:
    """Return whether the content of ``metrics.json`` has everything that :func:`.text_table.table` prints."""
    return all(key in metrics for key in _PRINTED) and (metrics['mIoU'] is None or metrics['fwIoU'] is not None)
