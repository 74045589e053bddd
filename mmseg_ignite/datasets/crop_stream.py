"""The training stream as a function: crop number n of a seed is always the same crop.

Which ROI, which place, which scale and angle is decided by NumPy's counter-based generator Philox with the key (seed, n)
and nothing else. So the stream does not depend on the number of workers or processes, nor on where a run was resumed.
"""

import contextlib
import random
from collections.abc import Iterator, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from ..errors import IgniteError
from ..labels import IGNORE, NUM_CLASSES
from .prepared import CONTEXT, image_path, label_path, open_array, points_path

ROTATIONS = ('none', 'quarter', 'any')
BORDERS = ('ignore', 'mirror')
_ATTEMPTS = 10
MAX_ZOOM = 16
"""px of an ROI per px of a crop: beyond it a crop would read half a slide, and the range of um/px is a slip."""


class Place(NamedTuple):
    """Where a crop lies.

    Attributes:
        roi: number of the ROI in the stream's list.
        train_id: the class whose pixel the crop was placed around; -1 for a uniform draw.
        anchor: (y, x) of that pixel in the array that is read, px.
        centre: (y, x) of the crop there, px; the first pixel's centre is at (0.5, 0.5).
        zoom: px of the array per px of the crop.
        angle: turn of the crop in radians.
        resampled: whether pixels are interpolated; False: whole pixels at a quarter turn, ``zoom`` is 1.
    """

    roi: int
    train_id: int
    anchor: tuple[int, int]
    centre: tuple[float, float]
    zoom: float
    angle: float
    resampled: bool = False


class CropStream:
    """An endless stream of training crops of a prepared data set.

    With ``class_probability`` a crop is placed around a pixel of a class: the class is drawn in proportion to
    1 / pixels ** ``temperature``, then one of its ROIs in proportion to the square root of the class's pixels in it (so that
    one large ROI does not stand for a class), then one of that ROI's stored points, which may lie anywhere in the crop. Else
    the crop's centre is uniform over all pixels of the ROIs. A crop without an annotated pixel is drawn anew, up to ten
    times.

    Crops are kept within the array as far as that leaves the drawn pixel in the crop. Beyond it the image is mirrored and the
    labels are 255, or mirrored too with ``border='mirror'``: crops are then not moved inwards, and a uniform draw
    (``class_probability=0``) shows every pixel of the data equally often, those at the border included.

    Args:
        root: prepared folder.
        rois: index entries to draw from; those without an annotated pixel are passed over.
        crop_size: (H, W) of a crop, px.
        class_probability: share of crops placed around a pixel of a drawn class, 0..1.
        temperature: 0 draws all classes equally often, 1 in inverse proportion to their pixels.
        um_per_px: range (low, high) from which the resolution of a resampled crop is drawn, log-uniformly. None: that of the
            ROI.
        rotation: 'none', 'quarter' (0, 90, 180, 270 degrees) or 'any' angle; any angle applies to resampled crops, the
            others are turned by quarters.
        resample_probability: share of crops that are resampled, 0..1; the others are read pixel for pixel at the ROI's own
            resolution. Without effect unless ``um_per_px`` is set or ``rotation`` is 'any': all crops are then read pixel for
            pixel.
        border: labels beyond the array are 'ignore' (255) or 'mirror'.
        use_context: crops may reach into the tissue around an ROI (labels 255 there) where it was prepared.
        label_map: {train id: new id}, as mmseg makes it for fewer classes; ids left out are ignored.

    Raises:
        IgniteError: an argument out of range, or no ROI with an annotated pixel.
    """

    def __init__(
        self,
        root: str | Path,
        rois: list[dict],
        crop_size: tuple[int, int] = (512, 512),
        class_probability: float = 0.5,
        temperature: float = 0.5,
        um_per_px: tuple[float, float] | None = None,
        rotation: str = 'none',
        resample_probability: float = 0.3,
        border: str = 'ignore',
        use_context: bool = False,
        label_map: dict[int, int] | None = None,
    ) -> None:
        _check(crop_size, class_probability, temperature, um_per_px, rotation, resample_probability, border)
        self.root, self.crop_size = Path(root), tuple(int(s) for s in crop_size)
        self.class_probability, self.um_per_px = class_probability, um_per_px
        self.rotation, self.border, self.use_context = rotation, border, use_context
        self.resample_probability = resample_probability if um_per_px is not None or rotation == 'any' else 0.0
        self.table = None
        if label_map is not None:
            self.table = np.full(256, IGNORE, np.uint8)
            self.table[list(label_map)] = list(label_map.values())
        self.rois = [r for r in rois if self._counts(r).any()]
        if not self.rois:
            raise IgniteError(f'{root} has no ROI with an annotated pixel to draw crops from: choose another split.')
        for roi in self.rois if um_per_px is not None else ():
            if not 1 / MAX_ZOOM <= um_per_px[0] / roi['um_per_px'] <= um_per_px[1] / roi['um_per_px'] <= MAX_ZOOM:
                raise IgniteError(
                    f'{roi["name"]} in {root} has {roi["um_per_px"]:.3g} um/px, the crops are to have {um_per_px}: at most '
                    f'{MAX_ZOOM} times coarser or finer was expected: correct um_per_px in the config or the area of the ROI.'
                )
        self._set_law(temperature)

    def _counts(self, roi: dict) -> np.ndarray:
        """Pixels of each class that is trained, (16,)."""
        pixels = np.array(roi['pixels'], np.float64)
        return pixels if self.table is None else np.where(self.table[:NUM_CLASSES] == IGNORE, 0, pixels)

    def _set_law(self, temperature: float) -> None:
        """Cumulative probabilities of ROIs, classes, and ROIs of a class; the points in memory."""
        counts = np.stack([self._counts(r) for r in self.rois])
        areas = np.array([r['height'] * r['width'] for r in self.rois], np.float64)
        total = counts.sum(0)
        # class_shares: the probability of each class when a class is drawn, (16,); 0 for absent ones.
        self.class_shares = np.where(total > 0, np.maximum(total, 1.0) ** -temperature, 0.0)
        self.class_shares /= self.class_shares.sum()
        self._roi_law = np.cumsum(areas / areas.sum())
        self._class_law = np.cumsum(self.class_shares)
        self._rois_of_class = np.cumsum(np.sqrt(counts), 0)
        points = [_read_points(self.root, r['name']) for r in self.rois]
        self._points = np.concatenate(points)[:, 1:]
        of_class = np.stack([np.bincount(p[:, 0], minlength=NUM_CLASSES) for p in points])
        self._ends = np.cumsum(of_class).reshape(of_class.shape)  # rows of ROI r, class k end here

    def place(self, rng: np.random.Generator, crop_size: tuple[int, int] | None = None) -> Place:
        """Decide where a crop lies: eight uniform numbers, and a ninth where crops may be resampled.

        Args:
            rng: the generator that the numbers are drawn from.
            crop_size: (H, W) in px of this crop. Defaults to that of the stream.
        """
        size = np.array(crop_size or self.crop_size)
        u = rng.random(8)
        resampled = self.resample_probability > 0 and rng.random() < self.resample_probability
        train_id = -1
        if u[0] < self.class_probability:
            train_id = _pick(self._class_law, u[1])
            roi = _pick(self._rois_of_class[:, train_id], u[2])
            end = self._ends[roi, train_id]
            first = self._ends.ravel()[roi * NUM_CLASSES + train_id - 1] if roi or train_id else 0
            anchor = tuple(self._points[first + int(u[3] * (end - first))].tolist())
        else:
            roi = _pick(self._roi_law, u[2])
            anchor = int(u[1] * self.rois[roi]['height']), int(u[3] * self.rois[roi]['width'])
        entry = self.rois[roi]
        _, shape, (top, left) = self._array(entry)
        anchor = anchor[0] + top, anchor[1] + left
        zoom = 1.0
        if resampled and self.um_per_px is not None:
            low, high = self.um_per_px
            zoom = low * (high / low) ** u[6] / entry['um_per_px']
        angle = 0.0
        if self.rotation != 'none':
            free = resampled and self.rotation == 'any'
            angle = 2 * np.pi * u[7] if free else np.pi / 2 * int(4 * u[7])
        jitter = u[4:6]
        if train_id >= 0:  # the pixel may lie anywhere in the crop
            offset = (2 * jitter - 1) * _limit(size)
            centre = self._centre(shape, size, np.array(anchor) + 0.5, offset, zoom, angle)
        else:  # a place within the pixel is the centre
            centre = self._centre(shape, size, anchor + jitter, np.zeros(2), zoom, angle)
        return Place(roi, train_id, anchor, tuple(centre.tolist()), zoom, angle, resampled)

    def _centre(
        self,
        shape: tuple[int, int],
        size: np.ndarray,
        anchor: np.ndarray,
        offset: np.ndarray,
        zoom: float,
        angle: float,
    ) -> np.ndarray:
        """The centre of a crop of ``size``: moved into the array as far as the anchor stays in the crop."""
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

    def _array(self, entry: dict) -> tuple[str, tuple[int, int], tuple[int, int]]:
        """Name and shape of the array that crops of an ROI are read from, and where the ROI begins in it."""
        context = entry.get('context') if self.use_context else None
        if context is None:
            return entry['name'], (entry['height'], entry['width']), (0, 0)
        return entry['name'] + CONTEXT, (context['height'], context['width']), tuple(context['origin'])

    def read(self, seed: int, n: int, with_image: bool = True, crop_size: tuple[int, int] | None = None) -> dict:
        """Crop number ``n`` of the stream of ``seed``.

        Args:
            seed, n: which crop.
            with_image: read the image too.
            crop_size: (H, W) in px of this crop. Defaults to that of the stream.

        Returns:
            dict: ``gt_seg_map`` (H, W) uint8, ``place`` (:class:`Place`), ``entry`` (index entry of the ROI), and with
            ``with_image`` also ``img``, (H, W, 3) uint8 BGR as everywhere in mmseg.
        """
        rng = philox(seed, n)
        for _ in range(_ATTEMPTS):
            place = self.place(rng, crop_size)
            entry = self.rois[place.roi]
            name = self._array(entry)[0]
            labels = self._cut(open_array(label_path(self.root, name)), place, crop_size)
            if self.table is not None:
                labels = self.table[labels]
            if (labels != IGNORE).any():
                break
        crop = dict(gt_seg_map=labels, place=place, entry=entry)
        if with_image:
            image = self._cut(open_array(image_path(self.root, name)), place, crop_size)
            crop['img'] = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
        return crop

    def _cut(self, array: np.ndarray, place: Place, crop_size: tuple[int, int] | None = None) -> np.ndarray:
        """Read a crop from an image or label array; only the rows and columns it covers are touched."""
        mirror = array.ndim == 3 or self.border == 'mirror'
        crop_size = crop_size or self.crop_size
        size, turn, centre = np.array(crop_size), _turn(place.angle), np.array(place.centre)
        half = place.zoom * np.abs(turn) @ size / 2
        if not place.resampled:
            first = np.floor(centre - half + 0.5).astype(int)
            turns = round(place.angle / (np.pi / 2))
            return np.ascontiguousarray(
                np.rot90(_window(array, first, first + np.rint(2 * half).astype(int), mirror), turns)
            )
        # One pixel more on each side for the interpolation.
        first, last = np.floor(centre - half).astype(int) - 1, np.ceil(centre + half).astype(int) + 1
        block = _window(array, first, last, mirror)
        shrink = max(1, int(place.zoom)) if array.ndim == 3 else 1
        if shrink > 1:  # more than two source pixels a crop pixel: average them first, or fine structures alias
            block = cv2.resize(block, None, fx=1 / shrink, fy=1 / shrink, interpolation=cv2.INTER_AREA)
        # Crop index -> block index, in OpenCV's order (x, y): both count from pixel centres.
        linear = place.zoom * turn
        shift = centre - first - linear @ (size / 2 - 0.5)
        matrix = np.array([[linear[1, 1], linear[1, 0], shift[1]], [linear[0, 1], linear[0, 0], shift[0]]]) / shrink
        matrix[:, 2] -= 0.5
        flags = cv2.WARP_INVERSE_MAP | (cv2.INTER_LINEAR if array.ndim == 3 else cv2.INTER_NEAREST)
        return cv2.warpAffine(block, matrix, tuple(crop_size)[::-1], flags=flags, borderMode=cv2.BORDER_REPLICATE)


def _check(crop_size, class_probability, temperature, um_per_px, rotation, resample_probability, border) -> None:
    wrong = None

    def numbers(value: object, kind: type) -> bool:
        return isinstance(value, Sequence) and len(value) == 2 and all(isinstance(v, kind) for v in value)

    if not numbers(crop_size, Integral) or min(crop_size) < 1:
        wrong = f'crop_size {crop_size}; (H, W) in px was expected'
    elif not isinstance(class_probability, Real) or not 0 <= class_probability <= 1:
        wrong = f'class_probability {class_probability}; 0..1 was expected'
    elif not isinstance(temperature, Real) or not 0 <= temperature <= 4:
        wrong = f'temperature {temperature}; 0 (all classes alike), 1 (inverse to their pixels), at most 4 was expected'
    elif um_per_px is not None and not (numbers(um_per_px, Real) and 0 < um_per_px[0] <= um_per_px[1]):
        wrong = f'um_per_px {um_per_px}; (low, high) in um/px was expected'
    elif not isinstance(resample_probability, Real) or not 0 <= resample_probability <= 1:
        wrong = f'resample_probability {resample_probability}; 0..1 was expected'
    elif rotation not in ROTATIONS or border not in BORDERS:
        wrong = f'rotation {rotation!r} and border {border!r}; one of {ROTATIONS} and of {BORDERS} were expected'
    if wrong:
        raise IgniteError(f'the crop stream was given {wrong}: correct "crops" of the data set in the config.')


def philox(seed: int, n: int) -> np.random.Generator:
    """The generator that belongs to crop ``n`` of ``seed``."""
    return np.random.Generator(np.random.Philox(key=np.array([seed % 2**64, n], np.uint64)))


@contextlib.contextmanager
def seeded(seed: int, n: int) -> Iterator[None]:
    """Let ``np.random`` and ``random``, from which mmseg's transforms draw, follow from (seed, n); restore them after."""
    before = np.random.get_state(), random.getstate()
    # Another counter than the place's, so that augmentations are independent of it.
    words = np.random.Philox(key=np.array([seed % 2**64, n], np.uint64), counter=[0, 0, 0, 1]).random_raw(4)
    np.random.seed((words >> np.uint64(32)).astype(np.uint32))
    random.seed(int(words[0]))
    try:
        yield
    finally:
        np.random.set_state(before[0])
        random.setstate(before[1])


def _read_points(root: Path, name: str) -> np.ndarray:
    try:
        return np.load(points_path(root, name))
    except (OSError, ValueError, EOFError) as error:
        raise IgniteError(f'{points_path(root, name)} cannot be read ({error}): prepare the data again.') from error


def _pick(cumulative: np.ndarray, u: float) -> int:
    """Index drawn with a uniform number from cumulative weights; never one of weight 0."""
    return int(np.searchsorted(cumulative, u * cumulative[-1], side='right'))


def _limit(size: np.ndarray) -> np.ndarray:
    """How far from the centre a drawn pixel may be; a pixel less than half, since crops may snap to whole pixels."""
    return np.maximum(size / 2 - 1, 0)


def _turn(angle: float) -> np.ndarray:
    """Rotation of (y, x) vectors; exact for quarter turns."""
    cos, sin = np.cos(angle), np.sin(angle)
    matrix = np.array([[cos, sin], [-sin, cos]])
    rounded = np.rint(matrix)
    return rounded if np.abs(matrix - rounded).max() < 1e-9 else matrix


def _window(array: np.ndarray, first: np.ndarray, last: np.ndarray, mirror: bool) -> np.ndarray:
    """Rows and columns first..last of an array; beyond it mirrored (edge pixels doubled) or 255."""
    low, high = np.maximum(first, 0), np.minimum(last, array.shape[:2])
    if (low == first).all() and (high == last).all():
        return np.ascontiguousarray(array[low[0] : high[0], low[1] : high[1]])
    if mirror:
        rows, columns = (_mirrored(a, b, side) for a, b, side in zip(first, last, array.shape))
        block = array[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        return np.ascontiguousarray(block).take(rows - rows.min(), 0).take(columns - columns.min(), 1)
    window = np.full((*(last - first), *array.shape[2:]), IGNORE, np.uint8)
    if (high > low).all():
        (y0, x0), (y1, x1) = low - first, high - first
        window[y0:y1, x0:x1] = array[low[0] : high[0], low[1] : high[1]]
    return window


def _mirrored(first: int, last: int, side: int) -> np.ndarray:
    """Indices first..last folded into 0..side-1 as by mirrors at both ends."""
    index = np.arange(first, last) % (2 * side)
    return np.where(index < side, index, 2 * side - 1 - index)
