"""Label PNGs of any tool: reading, validation, and conversion to train ids."""

import os
from pathlib import Path

import cv2
import numpy as np

from ..datasets.prepared import CONTEXT, label_path, open_array
from ..errors import IgniteError
from ..images.png import DamagedPicture, check_png, decode
from ..labels import IGNORE, NUM_CLASSES, histogram
from ..untrusted import check_decoded_size

ENCODINGS = ('raw', 'train')
_INVALID = 254
"""Converted value of pixels with an invalid id; no encoding of 16 classes uses it."""


def read_labels(path: str | Path) -> np.ndarray:
    """Read a label PNG as stored, (H, W) uint8; palette images give their indices.

    Raises:
        IgniteError: The file is missing, not a complete PNG, or not 8-bit with one channel.
    """
    try:
        check_decoded_size(path, os.path.getsize(path), 'compressed content')
        header = check_png(content := Path(path).read_bytes())
        check_decoded_size(path, header.height * header.width, f'{header.height} x {header.width} px')
        if header.bits == 8 and header.colour in ('grayscale', 'palette'):
            return decode(content, header)
    except OSError as error:
        raise IgniteError(f'{path} cannot be read ({error.strerror or error}): check the file.') from error
    except DamagedPicture as error:
        raise IgniteError(f'{path} is not a complete PNG ({error}): write it again.') from error
    raise IgniteError(
        f'{path} is {header.colour} of {header.bits} bits; an 8-bit label PNG with one channel was expected: save the class '
        'ids without conversion.'
    )


def read_truth(data: str | Path, name: str) -> np.ndarray:
    """Read the ground truth of an ROI in a prepared data set: (H, W) uint8 train ids, 255 unannotated.

    Raises:
        IgniteError: The file is missing or damaged, or holds something else.
    """
    path = label_path(data, name)
    truth = np.asarray(open_array(path))
    valid = truth.ndim == 2 and truth.dtype == np.uint8 and truth.size
    if not valid or histogram(truth)[NUM_CLASSES:IGNORE].any():
        raise IgniteError(
            f'{path} holds {truth.dtype} values of shape {truth.shape}; train ids 0..{NUM_CLASSES - 1} or {IGNORE}, (H, W) '
            'uint8, were expected: prepare the data again.'
        )
    return truth


def find_prediction(folder: str | Path, name: str) -> Path | None:
    """Find the label PNG of an ROI, NAME.png or NAME_with_context.png; None if neither exists."""
    paths = (Path(folder) / f'{name}{suffix}.png' for suffix in ('', CONTEXT))
    return next((path for path in paths if os.path.isfile(path)), None)  # False for a name that is too long


def read_prediction(path: Path, shape: tuple[int, int], encoding: str, context: dict | None = None) -> np.ndarray:
    """Read a label PNG as train ids, (H, W) uint8, 255 where nothing was predicted.

    Args:
        path: NAME_with_context.png is cropped to the ROI.
        shape: (H, W) of the ROI in pixels.
        encoding: 'raw' (ids 1..16, 0 where nothing was predicted) or 'train' (ids 0..15, 255 where nothing was predicted).
        context: ``context`` of the ROI's index entry: ``height`` and ``width`` (px) of the image with context, and
            ``origin``, the (y, x) of the ROI in it.

    Raises:
        IgniteError: The file is missing or damaged, or has a wrong size or invalid values.
    """
    stored, expected, which, (y, x) = read_labels(path), shape, 'its ROI', (0, 0)
    if path.stem.endswith(CONTEXT):
        if context is None:
            raise IgniteError(
                f'{path} includes the tissue around its ROI, but the position of the ROI in it is unknown: prepare the data '
                'again without --no-context.'
            )
        expected, which, (y, x) = (context['height'], context['width']), 'the ROI with context', context['origin']
    if stored.shape != expected:
        found, wanted = (' x '.join(map(str, s)) for s in (stored.shape, expected))
        raise IgniteError(f'{path} has {found} px (H x W), {which} {wanted}: predict at that size.')
    stored = np.ascontiguousarray(stored[y : y + shape[0], x : x + shape[1]])
    is_raw, table = encoding == 'raw', np.full(256, _INVALID, np.uint8)
    table[is_raw : NUM_CLASSES + is_raw], table[0 if is_raw else IGNORE] = range(NUM_CLASSES), IGNORE
    ids = cv2.LUT(stored, table)
    if ids.max() >= _INVALID and (ids == _INVALID).any():  # the maximum is cheaper, and settles it for most files
        valid = f'0..{NUM_CLASSES}' if is_raw else f'0..{NUM_CLASSES - 1} or 255'
        raise IgniteError(
            f'{path} holds the value {stored[ids == _INVALID][0]}; {encoding} ids, {valid}, were expected: choose the right '
            'encoding, or correct the file.'
        )
    return ids
