"""Reading from the prepared arrays."""

import cv2
import numpy as np
from mmcv.transforms import BaseTransform
from mmseg.registry import TRANSFORMS

from ...labels import IGNORE, NUM_CLASSES
from ...preparation.store import open_array


@TRANSFORMS.register_module()
class LoadIGNITERegion(BaseTransform):
    """Read an ROI, or a random crop of it, with its labels; only the crop's rows are touched on disk.

    Takes the place of LoadImageFromFile, LoadAnnotations and RandomCrop. Where an ROI's side is shorter than the crop, the
    whole side is given, and the data preprocessor pads it (255 in the labels).

    Required Keys:

    - img_path, seg_map_path (arrays of a prepared data set)
    - label_map (dict, optional)

    Added Keys:

    - img (np.uint8, (H, W, 3), BGR as everywhere in mmseg), gt_seg_map (np.uint8, (H, W), 0..15 and 255)
    - img_shape, ori_shape (of the region read), crop_origin ((y, x) in the ROI), seg_fields

    Args:
        crop_size (tuple[int, int], optional): (H, W) of the crop in px. Defaults to None: the whole ROI.
        cat_max_ratio (float): A crop in which one class fills more than this share of the annotated pixels, or in
            which nothing is annotated, is drawn anew, up to ten times. Defaults to 1.0: one class may fill it all.
    """

    def __init__(self, crop_size: 'tuple[int, int] | None' = None, cat_max_ratio: float = 1.0) -> None:
        self.crop_size = tuple(crop_size) if crop_size is not None else None
        self.cat_max_ratio = cat_max_ratio

    def transform(self, results: dict) -> dict:
        image, labels = open_array(results['img_path']), open_array(results['seg_map_path'])
        window = self._window(labels)
        # One pass copies the rows out of the memory map and turns RGB into mmseg's BGR.
        results['img'] = cv2.cvtColor(np.ascontiguousarray(image[window]), cv2.COLOR_RGB2BGR)
        results['gt_seg_map'] = np.array(labels[window])
        if results.get('label_map') is not None:
            table = np.full(256, IGNORE, np.uint8)
            for old, new in results['label_map'].items():
                table[old] = new
            results['gt_seg_map'] = table[results['gt_seg_map']]
        results['img_shape'] = results['ori_shape'] = results['img'].shape[:2]
        results['crop_origin'] = (window[0].start or 0, window[1].start or 0)
        results.setdefault('seg_fields', []).append('gt_seg_map')
        return results

    def _window(self, labels: np.ndarray) -> 'tuple[slice, slice]':
        if self.crop_size is None:
            return slice(None), slice(None)
        for _ in range(10):
            y, x = (np.random.randint(max(side - crop, 0) + 1) for side, crop in zip(labels.shape, self.crop_size))
            window = slice(y, y + self.crop_size[0]), slice(x, x + self.crop_size[1])
            counts = np.bincount(labels[window].ravel(), minlength=256)[:NUM_CLASSES]
            if 0 < counts.sum() and counts.max() <= self.cat_max_ratio * counts.sum():
                break
        return window

    def __repr__(self) -> str:
        return f'{type(self).__name__}(crop_size={self.crop_size}, cat_max_ratio={self.cat_max_ratio})'
