"""Reading ``confusion.npz``, which another person may have written: every array is checked before it is used."""

import os
from collections.abc import Callable

import numpy as np

from ..errors import IgniteError
from ..files import printable
from ..labels import IGNORE
from ..untrusted import (
    MAX_NAME,
    NAME,
    Form,
    check_decoded_size,
    check_form,
    is_number,
    is_text,
    parse_json,
    read_arrays,
)
from .calibration import CONFIDENCE_BINS, ENTROPY_BINS

REMEDY = 'name one that tools/test.py or tools/evaluate.py wrote'
MAX_ROIS = 100_000
"""Most ROIs of a run; the bootstrap takes 8 kB for each."""
MAX_CLASSES = IGNORE
MAX_COLUMNS = 32
_MAX_PIXELS = 2**53
"""Sums of counts are exact in float64 below."""
_PYTHON_SIZE = 20
"""Bytes that a character of JSON takes at most once it is parsed."""
_VALUE = Form(
    lambda value: (
        value is None or is_text(value) or is_number(value, -_MAX_PIXELS, _MAX_PIXELS) or isinstance(value, bool)
    ),
    'text, a number, true, false or null',
)
_METADATA = {
    'roi': NAME,
    'um_per_px?': Form(lambda value: value is None or is_number(value, 1e-6, 1e6), 'a resolution in um/px or null'),
    '*': _VALUE,
}
_ARRAYS = dict(
    matrices=('R', 'C', 'C'),
    unpredicted=('R', 'C'),
    boundary=('R', 'C', 4),
    confidence=('R', CONFIDENCE_BINS, 3),
    entropy=('R', ENTROPY_BINS, 2),
)
"""Shapes of the counts, R ROIs and C classes; all but the first may be missing."""
_REAL = ('confidence', 'entropy')
_PARTS = dict(boundary=((0, 1), (2, 3)), confidence=((0, 1), (0, 2)), entropy=((0, 1),))
"""Columns (whole, part) of counts: matched boundary pixels of all, correct pixels of all, ..."""


def read_counts(path: str | os.PathLike) -> dict:
    """Read and check ``confusion.npz``, perhaps without metadata.

    Returns:
        The arguments of :class:`.run.Evaluation`: names, matrices, classes, metadata, and the optional counts.

    Raises:
        IgniteError: the file is damaged, too large, or its arrays contradict each other or are no counts.
    """
    arrays = read_arrays(path, REMEDY)

    def require(valid: bool, found: str, expected: str) -> None:
        if not valid:
            raise IgniteError(
                f'{printable(path)} is not a valid confusion.npz ({found}; {expected} was expected): {REMEDY}.'
            )

    for key in ('names', 'classes', 'matrices'):
        require(key in arrays, f'it lacks {key}', 'an array of each of names, classes and matrices')
    names, classes = (
        _texts(arrays[key], key, most, require) for key, most in (('names', MAX_ROIS), ('classes', MAX_CLASSES))
    )
    sizes = dict(R=len(names), C=len(classes))
    counts = {
        key: _counts(arrays[key], key, tuple(sizes.get(side, side) for side in shape), require)
        for key, shape in _ARRAYS.items()
        if key in arrays
    }
    tolerance = None
    if 'boundary' in counts:
        found = arrays.get('boundary_tolerance_um')
        tolerance = found.item() if found is not None and found.size == 1 else None
        require(is_number(tolerance, 1e-6, 1e6), f'boundary_tolerance_um is {tolerance!r}', 'a positive length in um')
    metadata = _metadata(arrays['metadata'], names, path, require) if 'metadata' in arrays else []
    return dict(names=names, classes=tuple(classes), metadata=metadata, boundary_tolerance_um=tolerance, **counts)


def _texts(array: np.ndarray, key: str, most: int, require: Callable) -> list[str]:
    """Return the unique names in an array (N,)."""
    shape = f'{key} has {array.dtype} of shape {array.shape}'
    require(array.ndim == 1 and array.dtype.kind == 'U' and 1 <= len(array) <= most, shape, f'1 to {most} names')
    texts = list(map(str, array))
    wrong = [text for text in texts if not NAME.valid(text)]
    require(not wrong, f'{key} has {wrong[0][:80]!r}' if wrong else '', NAME.expected)
    require(len(set(texts)) == len(texts), f'one of {key} occurs twice', 'each once')
    if key == 'classes':  # they are drawn, and unlike names of files never have bytes that are not UTF-8
        wrong = [text for text in texts if len(text) > MAX_NAME or any(0xD800 <= ord(c) < 0xE000 for c in text)]
        require(not wrong, f'classes has {wrong[0][:80]!r}' if wrong else '', f'text of at most {MAX_NAME} characters')
    return texts


def _counts(array: np.ndarray, key: str, shape: tuple[int, ...], require: Callable) -> np.ndarray:
    """Return counts as int64, or float64 if they are sums of confidences."""
    real = key in _REAL
    require(array.shape == shape, f'{key} has the shape {array.shape}', f'{shape}')
    require(array.dtype.kind in ('iuf' if real else 'iu'), f'{key} has {array.dtype} values', 'whole numbers')
    if array.dtype.kind == 'f':
        require(bool(np.isfinite(array).all()), f'{key} has values that are not finite', 'a number')
    low, high = array.min(), array.max()
    require(low >= 0, f'{key} has {low}', 'a count of 0 or more')
    valid = high <= _MAX_PIXELS and array.sum(dtype=np.float64) < _MAX_PIXELS
    require(valid, f'{key} has counts up to {high}', 'a total below 2 ** 53 pixels')
    for whole, part in _PARTS.get(key, ()):
        fits = array[..., part] <= array[..., whole] * 1.001  # confidences are rounded
        require(bool(fits.all()), f'{key} has a part that exceeds its whole', 'at most all pixels')
    return array.astype(np.float64 if real else np.int64, copy=False)


def _metadata(array: np.ndarray, names: list[str], path: str | os.PathLike, require: Callable) -> list[dict]:
    require(
        array.dtype.kind == 'U' and array.size == 1, f'metadata has {array.dtype} of shape {array.shape}', 'JSON text'
    )
    text = str(array.item())
    check_decoded_size(path, _PYTHON_SIZE * len(text), f'metadata of {len(text):,} characters')
    found = parse_json(text, path, REMEDY)
    check_form(found, [_METADATA], path, REMEDY, 'metadata')
    columns = {key for entry in found for key in entry}
    require(len(columns) <= MAX_COLUMNS, f'the metadata have {len(columns)} columns', f'at most {MAX_COLUMNS}')
    require([entry['roi'] for entry in found] == names, 'the metadata belong to other ROIs', 'those of names')
    return found
