"""The symmetries of the square: tissue has no up and no left."""

import cv2
import numpy as np
from mmcv.transforms import BaseTransform
from mmseg.registry import TRANSFORMS

_TURNS = (None, cv2.ROTATE_90_COUNTERCLOCKWISE, cv2.ROTATE_180, cv2.ROTATE_90_CLOCKWISE)


def apply_dihedral(array: np.ndarray, number: int) -> np.ndarray:
    """Symmetry ``number`` of an (H, W) or (H, W, C) array, contiguous.

    0..3 are that many quarter turns counter-clockwise, as of ``np.rot90``; 4..7 the same, then mirrored left to right.
    """
    turn, mirrored = number % 4, number >= 4
    # OpenCV is ten times as fast, but makes int32 of int64 and drops a channel axis of length 1.
    if array.dtype == np.uint8 and array.shape[2:] in ((), (3,)):
        array = cv2.rotate(array, _TURNS[turn]) if turn else array
        array = cv2.flip(array, 1) if mirrored else array
    else:
        array = np.rot90(array, turn)
        array = array[:, ::-1] if mirrored else array
    return np.ascontiguousarray(array)


@TRANSFORMS.register_module()
class RandomDihedral(BaseTransform):
    """Turn and mirror image and labels by one of the 8 symmetries of the square, each as likely as the others.

    Where height and width differ, by one of the 4 that keep the shape. One number is drawn from ``np.random``.

    Required Keys:

    - img ((H, W) or (H, W, C))
    - seg_fields and the arrays it names, e.g. gt_seg_map

    Modified Keys:

    - img, the arrays of seg_fields

    Added Keys:

    - dihedral (int, 0..7; 0..3 quarter turns counter-clockwise, 4..7 the same and then mirrored left to right; even
      where height and width differ)
    """

    def transform(self, results: dict) -> dict:
        number = int(np.random.randint(8))
        height, width = results['img'].shape[:2]
        if height != width:
            number &= ~1  # half turns only; from each two of the 8 comes one of the 4
        for key in ('img', *results.get('seg_fields', [])):
            results[key] = apply_dihedral(results[key], number)
        results['dihedral'] = number
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}()'
