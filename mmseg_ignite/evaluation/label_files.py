"""Label maps of any tool as PNG files: reading, checking, and what their values mean."""

from pathlib import Path

import cv2
import numpy as np

from ..datasets.prepared import CONTEXT
from ..errors import IgniteError
from ..images.png import DamagedPicture, check_png, decode
from ..labels import IGNORE, NUM_CLASSES

ENCODINGS = ('raw', 'train')
_OTHER = 254
"""What a pixel of no class becomes; no encoding of 16 classes holds it."""


def read_labels(path: str | Path) -> np.ndarray:
    """A label PNG as stored, (H, W) uint8; palettes give their indices.

    Raises:
        IgniteError: no such file, no whole PNG, or not of 8 bits and one channel.
    """
    try:
        content = Path(path).read_bytes()
        header = check_png(content)
        if header.bits != 8 or header.colour not in ('grayscale', 'palette'):
            raise IgniteError(
                f'{path} is {header.colour} of {header.bits} bits; a label PNG of 8 bits and one channel was expected: '
                'save the ids as they are.'
            )
        if header.colour == 'grayscale':  # OpenCV is faster, but knows no indices
            pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
            if pixels is not None and pixels.shape == (header.height, header.width):
                return pixels
        return decode(content, header)
    except OSError as error:
        raise IgniteError(f'{path} cannot be read ({error.strerror or error}): check the file.') from error
    except DamagedPicture as error:
        raise IgniteError(f'{path} is not a complete PNG ({error}): write it again.') from error


def find_prediction(folder: str | Path, name: str) -> Path | None:
    """The label PNG of an ROI, NAME.png or NAME_with_context.png; None if neither is there."""
    paths = (Path(folder) / f'{name}{suffix}.png' for suffix in ('', CONTEXT))
    return next((path for path in paths if path.is_file()), None)


def read_prediction(path: Path, shape: tuple[int, int], encoding: str, context: dict | None = None) -> np.ndarray:
    """A label PNG as train ids, (H, W) uint8, 255 where nothing was predicted.

    Args:
        path: of the file. A NAME_with_context.png is cropped to the ROI.
        shape: (H, W) of its ROI.
        encoding: 'raw', ids 1..16, 0 where nothing was predicted; or 'train', ids 0..15, 255 where nothing was predicted.
        context: ``context`` of the ROI's index entry: height and width (px) of its image with context, and its ``origin``
            (y, x) there.

    Raises:
        IgniteError: no such file, damaged, of another size or with other values.
    """
    stored, cropped = read_labels(path), path.stem.endswith(CONTEXT)
    if cropped and context is None:
        raise IgniteError(
            f'{path} shows the tissue around its ROI too, but where the ROI lies in it is not known: prepare the data again '
            'without --no-context.'
        )
    expected = (context['height'], context['width']) if cropped else shape
    if stored.shape != expected:
        found, wanted = (' x '.join(map(str, s)) for s in (stored.shape, expected))
        which = 'the ROI with context' if cropped else 'its ROI'
        raise IgniteError(f'{path} has {found} px (H x W), {which} {wanted}: predict at that size.')
    if cropped:
        y, x = context['origin']
        stored = np.ascontiguousarray(stored[y : y + shape[0], x : x + shape[1]])
    table = np.full(256, _OTHER, np.uint8)
    if encoding == 'raw':
        table[0], table[1 : NUM_CLASSES + 1] = IGNORE, np.arange(NUM_CLASSES)
    else:
        table[:NUM_CLASSES], table[IGNORE] = np.arange(NUM_CLASSES), IGNORE
    ids = cv2.LUT(stored, table)
    if ids.max() >= _OTHER and (ids == _OTHER).any():  # the maximum alone is quicker, and most files hold neither
        known = f'0..{NUM_CLASSES}' if encoding == 'raw' else f'0..{NUM_CLASSES - 1} or 255'
        raise IgniteError(
            f'{path} holds the value {stored[ids == _OTHER][0]}; {encoding} ids, {known}, were expected: name the right '
            'encoding, or correct the file.'
        )
    return ids
