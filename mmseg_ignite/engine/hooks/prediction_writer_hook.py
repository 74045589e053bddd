"""Saving the predictions of a test."""

from collections.abc import Sequence
from pathlib import Path

from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmseg.registry import HOOKS
from mmseg.structures import SegDataSample

from ...datasets.prepared import roi_name
from ...visualization.overlay import write_labels, write_prediction
from ..predicted_roi import region_of


@HOOKS.register_module()
class PredictionWriterHook(Hook):
    """Write a label PNG (raw ids 1..16) for each ROI of a test and, optionally, an overlay with the ground truth.

    Args:
        out_dir (str): Folder for ``NAME.png`` and ``NAME_overlay.png``.
        overlays (bool): Also write overlays. Defaults to True.
        shift (str, optional): Kind of the :class:`StainShift <mmseg_ignite.datasets.transforms.StainShift>` in the test
            pipeline, which overlays also show. Defaults to None.
    """

    def __init__(self, out_dir: str | Path, overlays: bool = True, shift: str | None = None) -> None:
        self.out_dir, self.overlays, self.shift = Path(out_dir), overlays, shift

    def after_test_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict | None = None,
        outputs: Sequence[SegDataSample] | None = None,
    ) -> None:
        for sample in outputs or ():
            classes = runner.test_dataloader.dataset.metainfo['classes']
            image, truth, prediction = region_of(sample, classes, self.shift if self.overlays else None)
            name = sample.get('roi') or roi_name(sample.img_path)
            if self.overlays:
                write_prediction(self.out_dir, name, image, prediction, truth, sample.get('um_per_px'))
            else:
                write_labels(self.out_dir, name, prediction)
