"""The metric of the validation and test loops."""

from collections.abc import Sequence

import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from mmseg.registry import METRICS

from ...errors import IgniteError
from ..bootstrap import SAMPLES, check_bootstrap
from ..boundary import check_tolerance
from ..groupings import check_groupings
from ..run import Evaluation, score_roi

LOGGED = ('mIoU', 'mDice', 'mAcc', 'aAcc', 'fwIoU', 'kappa')


@METRICS.register_module()
class TissueMetric(BaseMetric):
    """Scores from one exact confusion matrix an ROI, pooled over the ROIs.

    Stands beside mmseg's IoUMetric, which works with the data set too. Classes without a ground-truth pixel are left
    out of every logged mean. After the loop ``evaluation`` holds the counts of each ROI, ``rois`` (name, confusion matrix)
    of each and ``summary`` the unrounded scores of :func:`mmseg_ignite.evaluation.scores`; ``options`` are those that
    :func:`mmseg_ignite.evaluation.write_run` takes. Intervals are made there, not while validating.

    Args:
        groupings (dict, optional): {grouping: {group: [class names] or 'rest'}}, scored beside the built-in ones. Defaults
            to None.
        boundary_tolerance_um (float, optional): Also count boundaries, at this tolerance in um. Defaults to None.
        calibration (bool): Also count by confidence. A sample gives either ``seg_probabilities``, (C, H, W) float, 0..1,
            used as they are; or ``seg_logits``, (C, H, W) float, of which the softmax is taken. A TissueSegmentor with
            ``test_cfg.keep_logits=True`` stores logits, and with symmetries or as an ensemble the logarithms of mean
            probabilities, whose softmax is these probabilities. Defaults to False.
        bootstrap_samples (int): Samples of the intervals; 0 for none. Defaults to 10,000.
        collect_device (str): 'cpu' or 'gpu', where a distributed run collects. Defaults to 'cpu'.
        prefix (str, optional): Put before the names of the logged scores. Defaults to None.
    """

    def __init__(
        self,
        groupings: dict | None = None,
        boundary_tolerance_um: float | None = None,
        calibration: bool = False,
        bootstrap_samples: int = SAMPLES,
        collect_device: str = 'cpu',
        prefix: str | None = None,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        if boundary_tolerance_um is not None:
            check_tolerance(boundary_tolerance_um)
        if bootstrap_samples:
            check_bootstrap(bootstrap_samples)
        self.boundary_tolerance_um, self.calibration = boundary_tolerance_um, calibration
        self.options = dict(groupings=groupings, samples=bootstrap_samples)
        self.evaluation: Evaluation | None = None
        self.summary: dict = {}

    @property
    def rois(self) -> list[tuple[str, np.ndarray]]:
        """(name, confusion matrix) of each ROI, by name."""
        return list(zip(self.evaluation.names, self.evaluation.matrices)) if self.evaluation else []

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Count the pixels of each sample of a batch.

        Raises:
            IgniteError: a sample without a name or, for the calibration, without scores of every class; or a grouping that
                does not fit the classes.
        """
        if not self.results:
            check_groupings(self.options['groupings'], self.dataset_meta['classes'])
        for sample in data_samples:
            name = sample.get('roi') or sample.get('img_path')
            if not name:
                raise IgniteError(
                    "a sample has neither 'roi' nor 'img_path', by which ROIs are told apart: add one to the meta_keys of "
                    'PackSegInputs.'
                )
            known = {key: sample[key] for key in ('patient', 'um_per_px') if sample.get(key) is not None}
            truth, prediction = (
                sample[key]['data'].squeeze(0).to(torch.uint8).cpu().numpy() for key in ('gt_sem_seg', 'pred_sem_seg')
            )
            self.results.append(
                score_roi(
                    dict(roi=name, **known, **(sample.get('metadata') or {})),
                    truth,
                    prediction,
                    len(self.dataset_meta['classes']),
                    self.boundary_tolerance_um,
                    self._probabilities(sample) if self.calibration else None,
                )
            )

    def _probabilities(self, sample: dict) -> np.ndarray:
        """The probabilities (C, H, W) of a sample; its key says whether they are stored or their logits."""
        key = next((k for k in ('seg_probabilities', 'seg_logits') if k in sample), None)
        if key is None:
            raise IgniteError(
                'calibration=True of TissueMetric needs seg_logits or seg_probabilities, which the predictions lack: set '
                'model.test_cfg.keep_logits=True as well.'
            )
        scores, classes = sample[key]['data'], len(self.dataset_meta['classes'])
        if len(scores) != classes:
            raise IgniteError(
                f'{key} has {len(scores)} channels and the data set {classes} classes; calibration=True of TissueMetric '
                'needs a channel for each class: set calibration=False.'
            )
        return (scores if key == 'seg_probabilities' else scores.float().softmax(0)).cpu().numpy()

    def evaluate(self, size: int) -> dict:
        """Collect from all processes and score.

        A sampler repeats ROIs so that all processes have as many, and mmengine cuts the surplus by count, which is right only
        in order. Here all are collected, and :meth:`compute_metrics` takes each name once.
        """
        return super().evaluate(max(size, 1 << 31))

    def compute_metrics(self, results: list) -> dict:
        """Pool the matrices and give the figures to log, in percent but for kappa."""
        by_name = {r['metadata']['roi']: r for r in reversed(results)}
        self.evaluation = Evaluation.collect(
            [by_name[name] for name in sorted(by_name)], self.dataset_meta['classes'], self.boundary_tolerance_um
        )
        self.summary = self.evaluation.scores()
        return {k: self.summary[k] if self.summary[k] is not None else float('nan') for k in LOGGED}
