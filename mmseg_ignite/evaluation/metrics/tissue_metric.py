"""The metric of the validation and test loops."""

from collections.abc import Sequence

import numpy as np
import torch
from mmengine.dist import all_gather_object
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
    """Scores from one exact confusion matrix per ROI, pooled over the ROIs.

    Classes without ground-truth pixels are excluded from all logged means. Can be combined with mmseg's IoUMetric. After the
    loop, ``evaluation`` holds the counts of each ROI, ``rois`` the name and confusion matrix of each, and ``summary`` the
    unrounded scores of :func:`mmseg_ignite.evaluation.scores`. ``options`` are keyword arguments for
    :func:`mmseg_ignite.evaluation.write_run`, which computes the intervals.

    Args:
        groupings: {grouping: {group: [class names] or 'rest'}}, in addition to the built-in ones.
        boundary_tolerance_um: Also count boundaries, at this tolerance in micrometres.
        calibration: Also count pixels by confidence. Requires samples with ``seg_probabilities``, (C, H, W) float in 0..1, or
            ``seg_logits``, (C, H, W) float, to which a softmax is applied. A TissueSegmentor with
            ``test_cfg.keep_logits=True`` stores logits; with symmetries or as an ensemble it stores the logarithm of mean
            probabilities, which the softmax inverts.
        bootstrap_samples: Number of samples for the intervals; 0 for none.
        collect_device: No effect: the few numbers of each ROI are sent from process to process.
        prefix: Prefix of the names of the logged scores.

    Raises:
        IgniteError: The tolerance is not a positive length, or there are too few samples.

    Example:
        In a config: ``test_evaluator = dict(type='TissueMetric', boundary_tolerance_um=5)``.
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
        """(name, confusion matrix) of each ROI, sorted by name."""
        return list(zip(self.evaluation.names, self.evaluation.matrices)) if self.evaluation else []

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Count the pixels of each sample; raise IgniteError if it lacks what the settings require."""
        classes = self.dataset_meta['classes']
        if not self.results:
            check_groupings(self.options['groupings'], classes)
        for sample in data_samples:
            if not (name := sample.get('roi') or sample.get('img_path')):
                raise IgniteError(
                    "a sample has neither 'roi' nor 'img_path': add one to the meta_keys of PackSegInputs."
                )
            known = {key: sample[key] for key in ('patient', 'um_per_px') if sample.get(key) is not None}
            metadata = dict(roi=name, **known, **(sample.get('metadata') or {}))
            maps = (sample[key]['data'].squeeze(0) for key in ('gt_sem_seg', 'pred_sem_seg'))
            truth, prediction = (x.to(torch.uint8).cpu().numpy() for x in maps)
            probabilities = self._probabilities(sample) if self.calibration else None
            tolerance = self.boundary_tolerance_um
            self.results.append(score_roi(metadata, truth, prediction, len(classes), tolerance, probabilities))

    def _probabilities(self, sample: dict) -> np.ndarray:
        """Return the probabilities (C, H, W) of a sample, from its probabilities or logits."""
        key = next((k for k in ('seg_probabilities', 'seg_logits') if k in sample), None)
        if key is None:
            raise IgniteError(
                'calibration=True of TissueMetric requires seg_logits or seg_probabilities, which the predictions lack: set '
                'model.test_cfg.keep_logits=True as well.'
            )
        scores, classes = sample[key]['data'], len(self.dataset_meta['classes'])
        if len(scores) != classes:
            raise IgniteError(
                f'{key} has {len(scores)} channels and the data set {classes} classes; calibration=True of TissueMetric '
                'requires one channel per class: set calibration=False.'
            )
        return (scores if key == 'seg_probabilities' else scores.float().softmax(0)).cpu().numpy()

    def evaluate(self, size: int) -> dict:
        """Collect the results of all processes through the process group, which needs no common disk, and score them.

        Distributed samplers repeat ROIs to give all processes the same number, and mmengine truncates the collected results
        to ``size``, which assumes their order. Keep all results instead; :meth:`compute_metrics` uses each name once.
        """
        results = [result for part in all_gather_object(self.results) for result in part]
        self.results.clear()
        metrics = self.compute_metrics(results)
        return {f'{self.prefix}/{name}': value for name, value in metrics.items()} if self.prefix else metrics

    def compute_metrics(self, results: list) -> dict:
        """Pool the counts and return the scores to log, in percent except kappa."""
        by_name = {r['metadata']['roi']: r for r in reversed(results)}
        unique = [by_name[name] for name in sorted(by_name)]
        self.evaluation = Evaluation.collect(unique, self.dataset_meta['classes'], self.boundary_tolerance_um)
        self.summary = self.evaluation.scores()
        return {k: self.summary[k] if self.summary[k] is not None else float('nan') for k in LOGGED}
