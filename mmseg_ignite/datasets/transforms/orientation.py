"""The symmetries of the square: tissue has no preferred direction."""

import cv2
import numpy as np
from mmcv.transforms import BaseTransform
from mmseg.registry import TRANSFORMS

_TURNS = (None, cv2.ROTATE_90_COUNTERCLOCKWISE, cv2.ROTATE_180, cv2.ROTATE_90_CLOCKWISE)


def apply_dihedral(array: np.ndarray, number: int) -> np.ndarray:
    """Return symmetry ``number`` of an (H, W) or (H, W, C) array, contiguous.

    0..3 are that many quarter turns counter-clockwise, like ``np.rot90``; 4..7 the same, then mirrored left to right.
    """
    turn, mirrored = number % 4, number >= 4
    # OpenCV is ten times as fast, but turns int64 into int32 and drops a channel axis of length 1.
    if array.dtype == np.uint8 and array.shape[2:] in ((), (3,)):
        array = cv2.rotate(array, _TURNS[turn]) if turn else array
        return np.ascontiguousarray(cv2.flip(array, 1) if mirrored else array)
    array = np.rot90(array, turn)
    return np.ascontiguousarray(array[:, ::-1] if mirrored else array)


@TRANSFORMS.register_module()
class RandomDihedral(BaseTransform):
    """Apply one of the 8 symmetries of the square to image and labels, all equally likely.

    If height and width differ, apply one of the 4 that keep the shape. Draws one number from ``np.random``. Changes ``img``,
    (H, W) or (H, W, C), and the arrays that ``seg_fields`` names. Adds ``dihedral``, the number 0..7 of the symmetry (see
    :func:`apply_dihedral`).

    Example: ``dict(type='RandomDihedral')``
    """

    def transform(self, results: dict) -> dict:
        number = int(np.random.randint(8))
        height, width = results['img'].shape[:2]
        if height != width:
            number &= ~1  # half turns only: two of the 8 map to each of the 4
        for key in ('img', *results.get('seg_fields', [])):
            results[key] = apply_dihedral(results[key], number)
        results['dihedral'] = number
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}()'
