"""The label table of IGNITE (ids, names, colours) and the encodings of its masks.

Raw ids 0..16 are the ids of the release (0 is Unannotated). Train ids 0..15 are raw id - 1; 255 marks pixels to ignore.
Only this module and ``preparation`` know raw ids.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import cv2
import numpy as np

from .errors import IgniteError

IGNORE = 255
ENCODINGS = ('complement', 'direct')
MAX_STRAY_SHARE = 1e-4
"""Largest share of a mask's pixels that may hold impossible values; these pixels become Unannotated."""
COLOURS = {
    'Background': (255, 255, 255),
    'Tumor epithelium': (0, 253, 255),
    'Reactive epithelium': (0, 249, 0),
    'Stroma': (255, 251, 0),
    'Inflammation': (255, 147, 0),
    'Alveolar tissue': (255, 47, 146),
    'Fatty tissue': (148, 55, 255),
    'Necrotic tissue': (1, 25, 147),
    'Erythrocytes': (255, 38, 0),
    'Bronchial epithelium': (0, 143, 0),
    'Mucus/Plasma/Fluids': (146, 144, 0),
    'Cartilage/Bone': (169, 169, 169),
    'Macrophages': (83, 27, 147),
    'Muscle': (255, 126, 121),
    'Liver': (215, 131, 255),
    'Keratinization': (148, 23, 81),
}
"""Official colour (R, G, B) of each class, in the order of the ids."""
UNANNOTATED = (0, 0, 0)
"""Colour of unannotated pixels."""
CLASSES, PALETTE = tuple(COLOURS), tuple(COLOURS.values())
NUM_CLASSES = len(CLASSES)
RAW_LABEL_MAP = {name: raw_id for raw_id, name in enumerate(('Unannotated', *CLASSES))}
MAX_ID = 127
"""Largest id of a mask with other ids than the release's: above it the two encodings overlap."""


class DecodedMask(NamedTuple):
    """A mask of the release in train ids."""

    labels: np.ndarray  # (H, W) uint8, train ids 0..15, 255 where unannotated
    encoding: str  # 'complement', 'direct', or 'empty' if every pixel is 0
    stray: int  # number of pixels with an impossible value; they are 255 in ``labels``


class MaskError(IgniteError):
    """A mask that cannot be decoded; ``kind`` is a kind of :mod:`mmseg_ignite.preparation.findings`."""

    def __init__(self, kind: str, source: str, detail: str) -> None:
        super().__init__(
            f'{source} {detail}: export the mask again as an 8-bit grayscale or palette PNG, or replace it.'
        )
        self.kind, self.detail = kind, detail


def decode_mask(mask: np.ndarray, source: str = 'mask', ids: dict[int, int] | None = None) -> DecodedMask:
    """Decode a mask of the release in either of its two encodings.

    Direct masks hold raw ids; complemented ones hold (256 - id) % 256. The majority of the non-zero pixels decides: direct
    up to the largest id (16), complement from 256 minus it (240).

    Args:
        mask: (H, W) uint8 as stored in the PNG (the indices of a palette PNG).
        source: file name for messages.
        ids: {id in the mask, 0..127: raw id, 0..16} for masks with other ids than the release's; others are impossible.

    Raises:
        MaskError: ``mask`` is in neither encoding, or more than 0.01 % (and more than 4) of its pixels are impossible.

    Example:
        >>> decode_mask(np.array([[255, 254, 0]], np.uint8)).labels
        array([[  0,   1, 255]], dtype=uint8)
    """
    if mask.ndim != 2 or mask.dtype != np.uint8:
        detail = f'holds {mask.dtype} values of shape {mask.shape}; an 8-bit mask with one channel was expected'
        raise MaskError('mask-format', source, detail)
    if ids is None:
        ids = {i: i for i in range(NUM_CLASSES + 1)}
    top, to_train = max(1, *ids), relabel_table({i: (raw_id - 1) % 256 for i, raw_id in ids.items()})
    counts = histogram(mask)
    nonzero = int(counts[1:].sum())
    if nonzero == 0:
        return DecodedMask(np.full(mask.shape, to_train[0], np.uint8), 'empty', 0)
    low, high = int(counts[1 : top + 1].sum()), int(counts[256 - top :].sum())
    if max(low, high) * 2 <= nonzero:
        values = ', '.join(map(str, np.flatnonzero(counts)[:8]))
        expected = f'class ids 1..{top} or their complements 255..{256 - top}'
        raise MaskError('mask-values', source, f'holds the values {values}; {expected} were expected')
    encoding = 'direct' if low > high else 'complement'
    id_of_value = np.arange(256) if encoding == 'direct' else -np.arange(256) % 256
    stray = int(counts[~np.isin(id_of_value, list(ids))].sum())
    if stray > max(4, MAX_STRAY_SHARE * mask.size):
        most = f'at most {MAX_STRAY_SHARE:.2%} is accepted as stray'
        detail = f'holds {stray} pixels ({stray / mask.size:.2%}) whose value is not a class; {most}'
        raise MaskError('mask-stray-many', source, detail)
    return DecodedMask(cv2.LUT(mask, to_train[id_of_value]), encoding, stray)


def encode_mask(labels: np.ndarray, encoding: str = 'direct') -> np.ndarray:
    """Convert train ids, (H, W) uint8, to the values of a release mask; the inverse of :func:`decode_mask`."""
    if encoding not in ENCODINGS:
        raise ValueError(f'encoding must be one of {ENCODINGS}, got {encoding!r}')
    raw = np.where(labels < NUM_CLASSES, labels + 1, 0).astype(np.uint8)
    return raw if encoding == 'direct' else -raw  # 256 - id, modulo 256


def release_ids(classes: Sequence[str]) -> np.ndarray | None:
    """Return the train id of each index in a list of classes, (256,) uint8; None if it has a class not of the release."""
    if not set(classes) <= set(CLASSES):
        return None
    return relabel_table({i: CLASSES.index(name) for i, name in enumerate(classes)})


def relabel_table(label_map: Mapping[int, int]) -> np.ndarray:
    """Return the lookup table, (256,) uint8, of {id: new id}; ids that are not in it become 255."""
    table = np.full(256, IGNORE, np.uint8)
    table[list(label_map)] = list(label_map.values())
    return table


def histogram(values: np.ndarray) -> np.ndarray:
    """Count each value of a uint8 array: (256,) int64. About ten times as fast as ``np.bincount``."""
    flat, counts = np.ascontiguousarray(values).reshape(-1), np.zeros(256, np.int64)
    for first in range(0, flat.size, 1 << 23):  # OpenCV counts in float32, exact below 2 ** 24
        part = cv2.calcHist([flat[first : first + (1 << 23)]], [0], None, [256], [0, 256])
        counts += part.reshape(-1).astype(np.int64)
    return counts


def count_classes(labels: np.ndarray) -> np.ndarray:
    """Count the pixels of each class in an array of train ids: (16,) int64; ignored pixels do not count."""
    return histogram(labels)[:NUM_CLASSES]
