"""Image, ground truth and prediction of a predicted ROI."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from mmseg.structures import SegDataSample

from ..datasets.prepared import CONTEXT, open_array, roi_name
from ..datasets.transforms.shift import shifted_rgb
from ..errors import IgniteError
from ..labels import CLASSES, release_ids


def region_of(
    sample: SegDataSample, classes: Sequence[str], shift: str | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return image, ground truth and prediction of a predicted sample of an :class:`IGNITEDataset`.

    Tissue around the ROI is cropped away, and the ids of a model with fewer classes are mapped to train ids.

    Args:
        classes: names of the data set's classes.
        shift: kind of the :class:`StainShift <mmseg_ignite.datasets.transforms.StainShift>` of the images, if any.

    Returns:
        (H, W, 3) uint8 RGB, memory-mapped unless shifted; (H, W) uint8 train ids, 255 unannotated; (H, W) uint8 train ids.

    Raises:
        IgniteError: the image has context, and the sample does not state the position of the ROI in it.
    """
    table = None if tuple(classes) == CLASSES else release_ids(classes)
    box = sample.get('roi_box')
    if box is None and Path(sample.img_path).stem.endswith(CONTEXT):
        raise IgniteError(
            f"{sample.img_path} has tissue around its ROI, but the sample has no 'roi_box', the position of the ROI: add it "
            'to the meta_keys of PackSegInputs.'
        )
    top, left, bottom, right = box or (0, 0, None, None)
    box = slice(top, bottom), slice(left, right)
    labels = [
        getattr(sample, key).data.squeeze(0).cpu().numpy().astype(np.uint8)[box]
        for key in ('gt_sem_seg', 'pred_sem_seg')
    ]
    truth, prediction = labels if table is None else [cv2.LUT(x, table) for x in labels]
    image = open_array(sample.img_path)
    if shift is not None:
        image = shifted_rgb(image, sample.get('roi') or roi_name(sample.img_path), shift)
    return image[box], truth, prediction
