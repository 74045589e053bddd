"""Reading from the prepared arrays."""

import cv2
import numpy as np
from mmcv.transforms import BaseTransform
from mmseg.registry import TRANSFORMS

from ...labels import IGNORE
from ...preparation.store import open_array


@TRANSFORMS.register_module()
class LoadIGNITERegion(BaseTransform):
    """Read a whole ROI with its labels from the prepared arrays.

    Takes the place of LoadImageFromFile and LoadAnnotations. For training crops see :class:`IGNITECropDataset`, which
    reads no more than a crop.

    Required Keys:

    - img_path, seg_map_path (arrays of a prepared data set)
    - label_map (dict, optional)
    - roi_box (top, left, bottom, right; optional): where the labels lie in a larger image; around them they are 255

    Added Keys:

    - img (np.uint8, (H, W, 3), BGR as everywhere in mmseg), gt_seg_map (np.uint8, (H, W), 0..15 and 255)
    - img_shape, ori_shape, seg_fields
    """

    def transform(self, results: dict) -> dict:
        """Read the arrays."""
        # One pass copies the rows out of the memory map and turns RGB into mmseg's BGR.
        results['img'] = cv2.cvtColor(np.asarray(open_array(results['img_path'])), cv2.COLOR_RGB2BGR)
        labels = np.array(open_array(results['seg_map_path']))
        if results.get('roi_box') is not None:
            top, left, bottom, right = results['roi_box']
            around = np.full(results['img'].shape[:2], IGNORE, np.uint8)
            around[top:bottom, left:right] = labels
            labels = around
        if results.get('label_map') is not None:
            table = np.full(256, IGNORE, np.uint8)
            table[list(results['label_map'])] = list(results['label_map'].values())
            labels = table[labels]
        results['gt_seg_map'] = labels
        results['img_shape'] = results['ori_shape'] = labels.shape
        results.setdefault('seg_fields', []).append('gt_seg_map')
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}()'
