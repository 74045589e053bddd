"""THE label table: ids, names and colours of IGNITE, and the encodings of its masks.

Raw ids 0..16 are those of the release (0 is Unannotated). Train ids 0..15 are raw id - 1;
255 marks pixels to ignore. Outside this module and ``preparation`` only train ids exist.
"""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from .errors import IgniteError

IGNORE = 255
ENCODINGS = ('complement', 'direct')
MAX_STRAY_SHARE = 1e-4
"""Share of a mask's pixels that may hold impossible values and become Unannotated."""


class Label(NamedTuple):
    """One class of the release: raw id, name, official colour (R, G, B)."""

    raw_id: int
    name: str
    colour: tuple[int, int, int]

    @property
    def train_id(self) -> int:
        return self.raw_id - 1


UNANNOTATED = Label(0, 'Unannotated', (0, 0, 0))
LABELS = (
    Label(1, 'Background', (255, 255, 255)),
    Label(2, 'Tumor epithelium', (0, 253, 255)),
    Label(3, 'Reactive epithelium', (0, 249, 0)),
    Label(4, 'Stroma', (255, 251, 0)),
    Label(5, 'Inflammation', (255, 147, 0)),
    Label(6, 'Alveolar tissue', (255, 47, 146)),
    Label(7, 'Fatty tissue', (148, 55, 255)),
    Label(8, 'Necrotic tissue', (1, 25, 147)),
    Label(9, 'Erythrocytes', (255, 38, 0)),
    Label(10, 'Bronchial epithelium', (0, 143, 0)),
    Label(11, 'Mucus/Plasma/Fluids', (146, 144, 0)),
    Label(12, 'Cartilage/Bone', (169, 169, 169)),
    Label(13, 'Macrophages', (83, 27, 147)),
    Label(14, 'Muscle', (255, 126, 121)),
    Label(15, 'Liver', (215, 131, 255)),
    Label(16, 'Keratinization', (148, 23, 81)),
)
CLASSES = tuple(label.name for label in LABELS)
PALETTE = tuple(label.colour for label in LABELS)
NUM_CLASSES = len(LABELS)
RAW_LABEL_MAP = {label.name: label.raw_id for label in (UNANNOTATED, *LABELS)}
MAX_ID = 127
"""Largest id of a mask that is not ours: beyond it the two encodings overlap."""

_TO_TRAIN = np.full(256, IGNORE, np.uint8)
_TO_TRAIN[1 : NUM_CLASSES + 1] = np.arange(NUM_CLASSES)
_TO_RAW = np.zeros(256, np.uint8)
_TO_RAW[:NUM_CLASSES] = np.arange(1, NUM_CLASSES + 1)


class DecodedMask(NamedTuple):
    """A release mask in train ids, with what was seen while decoding it.

    Attributes:
        labels: (H, W) uint8, train ids 0..15, 255 where unannotated.
        encoding: 'complement', 'direct', or 'empty' if every pixel is 0.
        stray: number of pixels with an impossible value; they are 255 in ``labels``.
    """

    labels: np.ndarray
    encoding: str
    stray: int


class MaskError(IgniteError):
    """A mask that cannot be decoded; ``kind`` is that of :mod:`mmseg_ignite.preparation.findings`."""

    def __init__(self, kind: str, source: str, detail: str, remedy: str) -> None:
        super().__init__(f'{source} {detail}: {remedy}.')
        self.kind, self.detail = kind, detail


def decode_mask(mask: np.ndarray, source: str = 'mask', ids: dict[int, int] | None = None) -> DecodedMask:
    """Decode a mask of the release, whichever of the two circulating encodings it has.

    Direct masks hold raw ids; complemented ones hold (256 - id) % 256. The majority of the non-zero
    pixels decides: <= 16 (the largest id) direct, >= 240 (256 less it) complemented.

    Args:
        mask: (H, W) uint8 as stored in the PNG (palette PNGs: their indices).
        source: file name for messages.
        ids: {id in the mask, 0..127: raw id, 0..16}, for masks with other ids than the release's; an id that is not in it
            is impossible. Defaults to None: 0..16 as they are.

    Raises:
        MaskError: if the mask is neither, or holds more than 0.01 % (and more than 4) impossible values.
    """
    if mask.ndim != 2 or mask.dtype != np.uint8:
        raise MaskError(
            'mask-format',
            source,
            f'holds {mask.dtype} values of shape {mask.shape}; an 8-bit mask with one channel was expected',
            'export it again as a grayscale or palette PNG',
        )
    to_train, known, top = _id_tables(ids)
    counts = histogram(mask)
    nonzero = int(counts[1:].sum())
    if nonzero == 0:
        return DecodedMask(np.full(mask.shape, to_train[0], np.uint8), 'empty', 0)
    low, high = int(counts[1 : top + 1].sum()), int(counts[256 - top :].sum())
    if max(low, high) * 2 <= nonzero:
        values = ', '.join(str(v) for v in np.flatnonzero(counts)[:8])
        raise MaskError(
            'mask-values',
            source,
            f'holds the values {values}; class ids 1..{top} or their complements 255..{256 - top} were expected',
            'it is not a mask of this release, replace it',
        )
    encoding = 'direct' if low > high else 'complement'
    raw = np.arange(256)
    if encoding == 'complement':
        raw = (256 - raw) % 256
    stray = int(counts[~known[raw]].sum())
    if stray > max(4, MAX_STRAY_SHARE * mask.size):
        raise MaskError(
            'mask-stray-many',
            source,
            f'holds {stray} pixels ({stray / mask.size:.2%}) whose value is not a class; at most '
            f'{MAX_STRAY_SHARE:.2%} is accepted as stray',
            'replace the mask',
        )
    return DecodedMask(cv2.LUT(mask, to_train[raw]), encoding, stray)


def _id_tables(ids: dict[int, int] | None) -> tuple[np.ndarray, np.ndarray, int]:
    """Tables (256,) by the id of a mask: train id (255 none), and whether it is known; and the largest id."""
    ids = {i: i for i in RAW_LABEL_MAP.values()} if ids is None else ids
    to_train, known = np.full(256, IGNORE, np.uint8), np.zeros(256, bool)
    found, ours = list(ids), list(ids.values())
    to_train[found], known[found] = _TO_TRAIN[ours], True
    return to_train, known, max(1, *found)


def encode_mask(labels: np.ndarray, encoding: str = 'direct') -> np.ndarray:
    """Train ids (H, W) uint8 to the values of a release mask, the inverse of :func:`decode_mask`."""
    if encoding not in ENCODINGS:
        raise ValueError(f'encoding must be one of {ENCODINGS}, got {encoding!r}')
    raw = _TO_RAW[labels]
    return raw if encoding == 'direct' else (-raw.astype(np.int16) % 256).astype(np.uint8)


def release_ids(classes: Sequence[str]) -> np.ndarray | None:
    """Table from places in a list of classes to train ids: (256,) uint8, 255 elsewhere.

    None if the list holds a class that is not the release's: its places mean nothing here.
    """
    if not set(classes) <= set(CLASSES):
        return None
    table = np.full(256, IGNORE, np.uint8)
    table[: len(classes)] = [CLASSES.index(name) for name in classes]
    return table


def histogram(values: np.ndarray) -> np.ndarray:
    """How often each value occurs: (256,) int64 from a uint8 array. Some ten times as fast as ``np.bincount``."""
    flat, counts = np.ascontiguousarray(values).reshape(-1), np.zeros(256, np.int64)
    for first in range(0, flat.size, 1 << 23):  # OpenCV counts in float32, exact below 2 ** 24
        part = cv2.calcHist([flat[first : first + (1 << 23)]], [0], None, [256], [0, 256])
        counts += part.reshape(-1).astype(np.int64)
    return counts


def count_classes(labels: np.ndarray) -> np.ndarray:
    """Pixels of each class: (16,) int64 from an array of train ids; ignored pixels are left out."""
    return histogram(labels)[:NUM_CLASSES]
