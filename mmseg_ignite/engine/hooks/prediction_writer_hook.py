"""Saving what a test predicts."""

from collections.abc import Sequence
from pathlib import Path

from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmseg.registry import HOOKS
from mmseg.structures import SegDataSample

from ...preparation.store import open_array
from ...visualization.writers import write_prediction


@HOOKS.register_module()
class PredictionWriterHook(Hook):
    """Write a label PNG (raw ids 1..16) and an overlay beside the ground truth for each ROI of a test.

    Args:
        out_dir (str): Folder for ``NAME.png`` and ``NAME_overlay.png``.
    """

    def __init__(self, out_dir: 'str | Path') -> None:
        self.out_dir = Path(out_dir)

    def after_test_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: 'dict | None' = None,
        outputs: 'Sequence[SegDataSample] | None' = None,
    ) -> None:
        for sample in outputs or ():
            prediction = sample.pred_sem_seg.data.squeeze(0).cpu().numpy().astype('uint8')
            truth = sample.gt_sem_seg.data.squeeze(0).cpu().numpy().astype('uint8')
            write_prediction(
                self.out_dir, sample.roi, open_array(sample.img_path), prediction, truth, sample.get('um_per_px')
            )
