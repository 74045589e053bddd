"""The training stream as a function, where crop n of a seed is always the same crop, and the sampler that requests crops.

NumPy's counter-based generator Philox with the key (seed, n) alone decides the ROI, the position, the scale and the angle. So
the stream depends neither on the number of workers or processes nor on where a run was resumed.
"""

import contextlib
import itertools
import random
from collections.abc import Iterator, Sequence, Sized
from numbers import Integral, Real
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from mmengine.dist import get_dist_info, sync_random_seed
from mmseg.registry import DATA_SAMPLERS
from torch.utils.data import Sampler

from ..errors import IgniteError, require
from ..labels import IGNORE, NUM_CLASSES, relabel_table
from .prepared import CONTEXT, check_labels, image_path, label_path, open_array, read_points
from .transforms.orientation import apply_dihedral

ROTATIONS = ('none', 'quarter', 'any')
BORDERS = ('ignore', 'mirror')
Size = tuple[int, int]  # (H, W) in px
MAX_ZOOM = 16
"""px of an ROI per px of a crop: beyond it a crop would read half a slide, so the range of um/px must be a mistake."""


class CropPosition(NamedTuple):
    """Where a crop is in the array that is read."""

    roi: int  # number in the stream's list
    train_id: int  # class of the pixel that the crop was placed around; -1 for a uniform position
    anchor: tuple[int, int]  # (y, x) of that pixel, px
    centre: tuple[float, float]  # (y, x) of the crop, px; the first pixel's centre is at (0.5, 0.5)
    zoom: float  # px of the array per px of the crop
    angle: float  # rotation of the crop, radians
    resampled: bool = False  # whether pixels are interpolated; False: whole pixels at a quarter turn, ``zoom`` is 1


class CropStream:
    """An endless stream of training crops of a prepared data set.

    The share ``class_probability`` (0..1) of crops is placed around a pixel of a class: the class is sampled in proportion to
    1 / pixels ** ``temperature``, then one of its ROIs in proportion to the square root of the class's pixels in it (so that
    no large ROI dominates a class), then one of that ROI's stored points, which may be anywhere in the crop. The centres of
    the others are uniform over all pixels of the ROIs. A crop without an annotated pixel is sampled again, up to ten times.

    Crops are kept within the array as far as the sampled pixel stays in the crop. Beyond the array the image is mirrored and
    the labels are 255, or mirrored too with ``border='mirror'``: then crops are not moved inwards, and uniform sampling
    (``class_probability=0``) shows every pixel of the data equally often, including those at the border. Raise IgniteError
    if an argument is out of range, or no ROI has an annotated pixel.

    Args:
        root: prepared folder.
        rois: index entries to sample from; those without an annotated pixel are skipped.
        crop_size: (H, W) of a crop, px.
        temperature: 0 samples all classes equally often, 1 in inverse proportion to their pixels; 0..4.
        um_per_px: range (low, high) of the resolution of a resampled crop, sampled log-uniformly. None: the ROI's own.
        rotation: 'none', 'quarter' turns, or 'any' angle for resampled crops and quarter turns for the others.
        resample_probability: share of crops that are resampled, 0..1, if ``um_per_px`` is set or ``rotation`` is 'any'; the
            others are read pixel for pixel at the ROI's own resolution.
        border: labels beyond the array are 'ignore' (255) or 'mirror'.
        use_context: crops may reach into the tissue around an ROI (labels 255 there) if it was prepared.
        label_map: {train id: new id}, which mmseg makes for fewer classes; other ids are ignored.

    Example:
        >>> stream = CropStream('data/ignite', read_index('data/ignite')['rois'], crop_size=(512, 512))
        >>> crop = stream.read(seed=0, n=7)
        >>> crop['img'].shape, crop['gt_seg_map'].shape
        ((512, 512, 3), (512, 512))
    """

    def __init__(
        self,
        root: str | Path,
        rois: list[dict],
        crop_size: Size = (512, 512),
        class_probability: float = 0.5,
        temperature: float = 0.5,
        um_per_px: tuple[float, float] | None = None,
        rotation: str = 'none',
        resample_probability: float = 0.3,
        border: str = 'ignore',
        use_context: bool = False,
        label_map: dict[int, int] | None = None,
    ) -> None:
        def pair(value: object, kind: type) -> bool:
            return isinstance(value, Sequence) and len(value) == 2 and all(isinstance(v, kind) for v in value)

        def within(value: object, highest: float) -> bool:
            return isinstance(value, Real) and 0 <= value <= highest

        range_valid = um_per_px is None or (pair(um_per_px, Real) and 0 < um_per_px[0] <= um_per_px[1])
        for name, value, valid, expected in (
            ('crop_size', crop_size, pair(crop_size, Integral) and min(crop_size) >= 1, '(H, W) in px'),
            ('class_probability', class_probability, within(class_probability, 1), '0..1'),
            ('temperature', temperature, within(temperature, 4), '0 (all classes alike) to 4 (1: inverse to pixels)'),
            ('um_per_px', um_per_px, range_valid, '(low, high) in um/px'),
            ('resample_probability', resample_probability, within(resample_probability, 1), '0..1'),
            ('rotation', rotation, rotation in ROTATIONS, f'one of {ROTATIONS}'),
            ('border', border, border in BORDERS, f'one of {BORDERS}'),
        ):
            require(valid, f'{name} of the crop stream', value, expected)
        self.root, self.crop_size = Path(root), tuple(int(s) for s in crop_size)
        self.class_probability, self.um_per_px = class_probability, um_per_px
        self.rotation, self.border, self.use_context = rotation, border, use_context
        self.resample_probability = resample_probability if um_per_px is not None or rotation == 'any' else 0.0
        self.table = None if label_map is None else relabel_table(label_map)
        counts = np.array([r['pixels'] for r in rois], np.float64).reshape(-1, NUM_CLASSES)
        if self.table is not None:
            counts[:, self.table[:NUM_CLASSES] == IGNORE] = 0
        self.rois = list(itertools.compress(rois, counts.any(1)))
        if not self.rois:
            raise IgniteError(f'{root} has no ROI with an annotated pixel to sample crops from: choose another split.')
        for name, size in [(roi['name'], roi['um_per_px']) for roi in self.rois] if um_per_px else ():
            if size is None:
                raise IgniteError(
                    f'{name} in {root} has no um/px, but crops of {um_per_px} um/px were requested: set um_per_px=None in '
                    'the config, or correct the area of the ROI and prepare the data again.'
                )
            if not 1 / MAX_ZOOM <= um_per_px[0] / size <= um_per_px[1] / size <= MAX_ZOOM:
                raise IgniteError(
                    f'{name} in {root} has {size:.3g} um/px; crops of {um_per_px} um/px were requested, at most {MAX_ZOOM} '
                    'times coarser or finer: correct um_per_px in the config or the area of the ROI.'
                )
        self._set_probabilities(counts[counts.any(1)], temperature)

    def _set_probabilities(self, counts: np.ndarray, temperature: float) -> None:
        """Compute the cumulative weights of ROIs, classes, and ROIs of a class from ``counts``, (ROI, 16) px; read points."""
        areas = np.array([r['height'] * r['width'] for r in self.rois], np.float64)
        total = counts.sum(0)
        # The probability of each class if a class is sampled, (16,); 0 for absent ones.
        self.class_shares = np.where(total > 0, np.maximum(total, 1.0) ** -temperature, 0.0)
        self.class_shares /= self.class_shares.sum()
        self._roi_weights = np.cumsum(areas / areas.sum())
        self._class_weights = np.cumsum(self.class_shares)
        self._roi_weights_of_class = np.cumsum(np.sqrt(counts), 0)
        points = [read_points(self.root, r) for r in self.rois]
        self._points = np.concatenate(points)[:, 1:]
        of_class = np.stack([np.bincount(p[:, 0], minlength=NUM_CLASSES) for p in points])
        self._ends = np.cumsum(of_class)  # the points of class k in ROI r end at r * 16 + k

    def sample(self, rng: np.random.Generator, crop_size: Size | None = None) -> CropPosition:
        """Sample the position of a crop of size ``crop_size``: eight uniform numbers, nine if crops may be resampled."""
        size, u = np.array(crop_size or self.crop_size), rng.random(8)
        resampled = self.resample_probability > 0 and rng.random() < self.resample_probability
        if around_class := u[0] < self.class_probability:
            train_id = _pick(self._class_weights, u[1])
            roi = _pick(self._roi_weights_of_class[:, train_id], u[2])
            number = roi * NUM_CLASSES + train_id
            first, end = self._ends[number - 1] if number else 0, self._ends[number]
            anchor = self._points[first + int(u[3] * (end - first))]
        else:
            train_id, roi = -1, _pick(self._roi_weights, u[2])
            anchor = int(u[1] * self.rois[roi]['height']), int(u[3] * self.rois[roi]['width'])
        _, shape, origin = self._array(self.rois[roi])
        anchor = np.add(anchor, origin)
        zoom = 1.0
        if resampled and self.um_per_px is not None:
            low, high = self.um_per_px
            zoom = low * (high / low) ** u[6] / self.rois[roi]['um_per_px']
        free = resampled and self.rotation == 'any'
        angle = 0.0 if self.rotation == 'none' else 2 * np.pi * u[7] if free else np.pi / 2 * int(4 * u[7])
        # A pixel of a class may be anywhere in the crop; a uniform position within the pixel is the centre.
        offset = (2 * u[4:6] - 1) * _limit(size) if around_class else np.zeros(2)
        point = anchor + (0.5 if around_class else u[4:6])
        centre = self._centre(shape, size, point, offset, zoom, angle)
        return CropPosition(roi, train_id, tuple(anchor.tolist()), tuple(centre.tolist()), zoom, angle, resampled)

    def _centre(
        self, shape: Size, size: np.ndarray, anchor: np.ndarray, offset: np.ndarray, zoom: float, angle: float
    ) -> np.ndarray:
        """Return the centre of a crop of ``size``, moved into the array as far as the anchor stays in the crop."""
        turn = _turn(angle)
        free = anchor - zoom * turn @ offset
        if self.border == 'mirror':
            return free
        half, side = zoom * np.abs(turn) @ size / 2, np.array(shape)
        inside = np.where(side >= 2 * half, np.clip(free, half, side - half), side / 2)
        # The anchor in crop coordinates at `inside` and at `free`; between them it moves on a line.
        at_inside = turn.T @ (anchor - inside) / zoom
        beyond = np.abs(at_inside) - _limit(size)
        with np.errstate(divide='ignore', invalid='ignore'):
            back = np.where(beyond > 0, beyond / np.abs(at_inside - offset), 0.0)
        return inside + back.max() * (free - inside)

    def _array(self, entry: dict) -> tuple[str, Size, tuple[int, int]]:
        """Return name and shape of the array that crops of an ROI are read from, and the origin of the ROI in it."""
        context = entry.get('context') if self.use_context else None
        if context is None:
            return entry['name'], (entry['height'], entry['width']), (0, 0)
        return entry['name'] + CONTEXT, (context['height'], context['width']), tuple(context['origin'])

    def read(self, seed: int, n: int, with_image: bool = True, crop_size: Size | None = None) -> dict:
        """Read crop number ``n`` of the stream of ``seed``; ``crop_size``, (H, W) in px, defaults to the stream's.

        Return ``gt_seg_map`` (H, W) uint8, ``position`` (:class:`CropPosition`), ``entry`` (index entry of the ROI), and
        with ``with_image`` also ``img``, (H, W, 3) uint8 BGR.
        """
        rng = philox(seed, n)
        for _ in range(10):  # attempts to show an annotated pixel
            position = self.sample(rng, crop_size)
            entry = self.rois[position.roi]
            name = self._array(entry)[0]
            labels = self._cut(open_array(path := label_path(self.root, name)), position, crop_size)
            check_labels(labels, path)
            if self.table is not None:
                labels = self.table[labels]
            if (labels != IGNORE).any():
                break
        crop = dict(gt_seg_map=labels, position=position, entry=entry)
        if with_image:
            image = self._cut(open_array(image_path(self.root, name)), position, crop_size)
            crop['img'] = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
        return crop

    def _cut(self, array: np.ndarray, position: CropPosition, crop_size: Size | None = None) -> np.ndarray:
        """Read a crop from an image or label array, touching only the rows and columns that it covers."""
        mirror = array.ndim == 3 or self.border == 'mirror'
        size, turn, centre = np.array(crop_size or self.crop_size), _turn(position.angle), np.array(position.centre)
        half = position.zoom * np.abs(turn) @ size / 2
        if not position.resampled:
            first = np.floor(centre - half + 0.5).astype(int)
            block = _window(array, first, first + np.rint(2 * half).astype(int), mirror)
            return apply_dihedral(block, round(position.angle / (np.pi / 2)) % 4)
        # One pixel more on each side for the interpolation.
        first, last = np.floor(centre - half).astype(int) - 1, np.ceil(centre + half).astype(int) + 1
        block = _window(array, first, last, mirror)
        shrink = max(1, int(position.zoom)) if array.ndim == 3 else 1
        if shrink > 1:  # two or more source pixels per crop pixel: average them first, or fine structures alias
            block = cv2.resize(block, None, fx=1 / shrink, fy=1 / shrink, interpolation=cv2.INTER_AREA)
        # Crop index -> block index, in OpenCV's order (x, y): both count from pixel centres.
        linear = position.zoom * turn
        shift = centre - first - linear @ (size / 2 - 0.5)
        matrix = np.array([[linear[1, 1], linear[1, 0], shift[1]], [linear[0, 1], linear[0, 0], shift[0]]]) / shrink
        matrix[:, 2] -= 0.5
        flags = cv2.WARP_INVERSE_MAP | (cv2.INTER_LINEAR if array.ndim == 3 else cv2.INTER_NEAREST)
        return cv2.warpAffine(block, matrix, size[::-1].tolist(), flags=flags, borderMode=cv2.BORDER_REPLICATE)


def philox(seed: int, n: int) -> np.random.Generator:
    """Return the random generator of crop ``n`` of ``seed``."""
    return np.random.Generator(np.random.Philox(key=np.array([seed % 2**64, n], np.uint64)))


@contextlib.contextmanager
def seeded(seed: int, n: int) -> Iterator[None]:
    """Seed ``np.random`` and ``random``, which mmseg's transforms use, from (seed, n); restore their states afterwards."""
    before = np.random.get_state(), random.getstate()
    # Another counter than the position's, so that augmentations are independent of it.
    words = np.random.Philox(key=np.array([seed % 2**64, n], np.uint64), counter=[0, 0, 0, 1]).random_raw(4)
    np.random.seed((words >> np.uint64(32)).astype(np.uint32))
    random.seed(int(words[0]))
    try:
        yield
    finally:
        np.random.set_state(before[0])
        random.setstate(before[1])


def _pick(cumulative: np.ndarray, u: float) -> int:
    """Return the index that a uniform number selects from cumulative weights; never one of weight 0."""
    return int(np.searchsorted(cumulative, u * cumulative[-1], side='right'))


def _limit(size: np.ndarray) -> np.ndarray:
    """Return how far from the centre a sampled pixel may be: a pixel less than half, since crops may snap to pixels."""
    return np.maximum(size / 2 - 1, 0)


def _turn(angle: float) -> np.ndarray:
    """Return the rotation of (y, x) vectors; exact for quarter turns."""
    cos, sin = np.cos(angle), np.sin(angle)
    matrix = np.array([[cos, sin], [-sin, cos]])
    rounded = np.rint(matrix)
    return rounded if np.abs(matrix - rounded).max() < 1e-9 else matrix


def _window(array: np.ndarray, first: np.ndarray, last: np.ndarray, mirror: bool) -> np.ndarray:
    """Return rows and columns first..last of an array; beyond it mirrored (edge pixels doubled) or 255."""
    sides = np.array(array.shape[:2])
    before, after = np.maximum(-first, 0), np.maximum(last - sides, 0)
    if not mirror or not (before.any() or after.any()):
        (top, left), (bottom, right) = np.clip(first, 0, sides), np.clip(last, 0, sides)
        block = np.ascontiguousarray(array[top:bottom, left:right])
        if block.shape[:2] == tuple(last - first):
            return block
        if not block.size:
            return np.full((*(last - first), *array.shape[2:]), IGNORE, array.dtype)
        border = cv2.BORDER_CONSTANT
        return cv2.copyMakeBorder(block, before[0], after[0], before[1], after[1], border, value=IGNORE)
    # From the border that mirrors to the farthest row or column that is shown.
    low = np.where(before > 0, 0, np.minimum(first, np.maximum(sides - after, 0)))
    high = np.where(after > 0, sides, np.maximum(last, np.minimum(before, sides)))
    block = np.ascontiguousarray(array[low[0] : high[0], low[1] : high[1]])
    block = cv2.copyMakeBorder(block, before[0], after[0], before[1], after[1], cv2.BORDER_REFLECT)
    (top, left), (height, width) = first - low + before, last - first
    return block[top : top + height, left : left + width]


@DATA_SAMPLERS.register_module()
class CropStreamSampler(Sampler):
    """Request crops 0, 1, 2, ... of a seed from :class:`.ignite.IGNITECropDataset`, endlessly.

    Each of W processes takes every W-th number, so together they see the same crops as one process with a batch W times as
    large. A resumed run skips ahead at no cost, as with mmengine's InfiniteSampler. mmengine passes the run's ``seed``.

    :class:`CropGrowthHook <mmseg_ignite.engine.hooks.CropGrowthHook>` sets ``sizes``, [(first n, (H, W)), ...] in order of n:
    crops from that number on have this size in px; earlier ones, and all by default, have the data set's size.
    """

    def __init__(self, dataset: Sized, seed: int | None = None) -> None:
        self.rank, self.world_size = get_dist_info()
        self.seed = sync_random_seed() if seed is None else seed
        self.dataset, self.skipped = dataset, 0
        self.sizes: list[tuple[int, tuple[int, int]]] = []

    def __iter__(self) -> Iterator[tuple]:
        """Yield (seed, n) of this process's crops endlessly, or (seed, n, (H, W)) where ``sizes`` sets a size."""
        for n in itertools.count(self.skipped * self.world_size + self.rank, self.world_size):
            size = next((size for first, size in reversed(self.sizes) if first <= n), None)
            yield (self.seed, n) if size is None else (self.seed, n, size)

    def skip(self, num_samples: int) -> None:
        """Skip the first ``num_samples`` crops of this process, counted from the start of the stream."""
        if num_samples < 0:
            raise ValueError(f'num_samples must not be negative, got {num_samples}')
        self.skipped = num_samples

    def __len__(self) -> int:
        """Return the number of ROIs, which mmengine logs."""
        return len(self.dataset)

    def set_epoch(self, epoch: int) -> None:
        """Do nothing: the stream has no epochs."""
