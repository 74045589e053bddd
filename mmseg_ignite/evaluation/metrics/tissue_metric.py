"""The metric of the validation and test loops."""

from collections.abc import Sequence

import numpy as np
from mmengine.evaluator import BaseMetric
from mmseg.registry import METRICS

from ..confusion import confusion_matrix, scores


@METRICS.register_module()
class TissueMetric(BaseMetric):
    """Scores from one exact confusion matrix an ROI, pooled over the ROIs.

    Stands beside mmseg's IoUMetric, which works with the data set too. Classes without a ground-truth pixel are left
    out of every mean. After the loop ``rois`` holds (name, confusion matrix) of each ROI and ``summary`` the
    unrounded scores of :func:`mmseg_ignite.evaluation.scores`.

    Args:
        collect_device (str): 'cpu' or 'gpu', where a distributed run collects. Defaults to 'cpu'.
        prefix (str, optional): Put before the names of the logged scores. Defaults to None.
    """

    def __init__(self, collect_device: str = 'cpu', prefix: 'str | None' = None) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.rois: list[tuple[str, np.ndarray]] = []
        self.summary: dict = {}

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Count the pixels of each sample of a batch."""
        classes = len(self.dataset_meta['classes'])
        for sample in data_samples:
            truth = sample['gt_sem_seg']['data'].squeeze(0).cpu().numpy()
            prediction = sample['pred_sem_seg']['data'].squeeze(0).cpu().numpy()
            name = sample.get('roi') or sample.get('img_path', '')
            self.results.append((name, confusion_matrix(truth, prediction, classes)))

    def compute_metrics(self, results: list) -> dict:
        """Pool the matrices and give the figures to log: mIoU, mDice, mAcc, aAcc in percent."""
        self.rois = sorted(results, key=lambda roi: roi[0])
        self.summary = scores(sum(matrix for _, matrix in self.rois), self.dataset_meta['classes'])
        return {
            k: self.summary[k] if self.summary[k] is not None else float('nan')
            for k in ('mIoU', 'mDice', 'mAcc', 'aAcc')
        }
