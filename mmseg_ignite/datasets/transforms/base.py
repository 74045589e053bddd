"""What the colour transforms share: blocks of an image, checks of images and arguments, and a printed form."""

import inspect
from collections.abc import Callable, Iterable
from numbers import Real

import cv2
import numpy as np
from mmcv.transforms import BaseTransform

from ...errors import IgniteError, require

_SAMPLE = 16384  # pixels that are measured
_BLOCK = 16384  # pixels whose float32 values stay in the L2 cache: four times as fast as the whole image at once


class ImageTransform(BaseTransform):
    """Base of transforms that change nothing but ``img``, (H, W, 3) uint8 BGR.

    Subclasses implement :meth:`change` and keep each argument of their constructor as an attribute of the same name. Raise
    IgniteError if an argument is out of range.
    """

    def change(self, image: np.ndarray, results: dict) -> np.ndarray:
        """Return the changed image, (H, W, 3) uint8 BGR; ``image`` itself must stay as it is."""
        raise NotImplementedError

    def transform(self, results: dict) -> dict:
        """Change ``img``; raise IgniteError if it is not (H, W, 3) uint8."""
        check_image(results['img'], type(self).__name__)
        results['img'] = self.change(results['img'], results)
        return results

    def __repr__(self) -> str:
        names = inspect.signature(type(self).__init__).parameters
        arguments = ', '.join(f'{name}={getattr(self, name)!r}' for name in names if name != 'self')
        return f'{type(self).__name__}({arguments})'


class ColourChange:
    """A change of an image's colours with all random numbers drawn.

    :mod:`mmseg_ignite.models.colour_changes` applies the same change to batches on a device.
    """

    def apply(self, image: np.ndarray) -> np.ndarray:
        """Return the changed image, (H, W, 3) uint8 BGR; ``image`` itself stays as it is."""
        raise NotImplementedError


class DrawnTransform(ImageTransform):
    """Base of transforms whose changes do not depend on those before them, so that they may be applied later.

    Subclasses implement :meth:`draw`.
    """

    def draw(self, results: dict) -> list[ColourChange | None]:
        """Draw the random numbers and return the changes in order, always as many; None for one that is not made."""
        raise NotImplementedError

    def change(self, image: np.ndarray, results: dict) -> np.ndarray:
        return apply_changes(image, self.draw(results))


def apply_changes(image: np.ndarray, changes: Iterable[ColourChange | None]) -> np.ndarray:
    """Return an image, (H, W, 3) uint8 BGR, after changes in order; None changes nothing."""
    for change in changes:
        image = image if change is None else change.apply(image)
    return image


def sample_grid(image: np.ndarray) -> np.ndarray:
    """Return about 16,000 pixels of an image on a regular grid, (h, w, 3)."""
    step = max(1, round((image.shape[0] * image.shape[1] / _SAMPLE) ** 0.5))
    return image[::step, ::step]


def map_blocks(image: np.ndarray, change: Callable[[np.ndarray], np.ndarray], scale: float) -> np.ndarray:
    """Return ``scale * change(rows)`` of all blocks of rows, (H, W, 3) uint8, rounded and saturated."""
    out = np.empty(image.shape, np.uint8)
    rows = max(1, _BLOCK // image.shape[1])
    for top in range(0, len(image), rows):
        cv2.convertScaleAbs(change(image[top : top + rows]), out[top : top + rows], alpha=scale)
    return out


def check_image(image: np.ndarray, user: str) -> None:
    """Raise IgniteError on behalf of ``user`` unless ``image`` is (H, W, 3) uint8."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        found = f'{image.dtype} image of shape {image.shape}; (H, W, 3) uint8 in BGR was expected'
        raise IgniteError(f'{user} got a {found}: move it before the transform that converts the image to float.')


def check_prob(name: str, value: object) -> float:
    """Return ``value`` if it is a probability, else raise IgniteError."""
    require(isinstance(value, Real) and 0 <= value <= 1, name, value, 'a probability from 0 to 1')
    return value


def check_range(name: str, value: object, lowest: float, highest: float) -> tuple[float, float]:
    """Return ``value`` as floats (low, high) if it is a range within ``lowest`` .. ``highest``, else raise IgniteError."""
    low, high = to_array(value, (2,)).tolist()
    require(lowest <= low <= high <= highest, name, value, f'a range (low, high) within {lowest:g} and {highest:g}')
    return low, high


def check_lab(name: str, value: object, lowest: float, highest: float) -> tuple[float, float, float]:
    """Return ``value`` as a tuple if it is three numbers (L, a, b) in ``lowest`` .. ``highest``, else raise IgniteError."""
    array = to_array(value, (3,))
    valid = ((lowest <= array) & (array <= highest)).all()
    require(valid, name, value, f'a triple of numbers (L, a, b) from {lowest:g} to {highest:g}')
    return tuple(value)


def to_array(value: object, shape: tuple[int, ...]) -> np.ndarray:
    """Return ``value`` as a float64 array of this shape; all NaN, which passes no check, if it is something else."""
    try:
        array = np.array(value)
    except ValueError:  # sequences of different lengths
        array = np.empty(0)
    return array.astype(float) if array.shape == shape and array.dtype.kind in 'biuf' else np.full(shape, np.nan)
