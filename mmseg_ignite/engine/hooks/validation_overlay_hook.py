"""Overlays of validation ROIs during a training."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmengine.visualization import LocalVisBackend
from mmseg.registry import HOOKS
from mmseg.structures import SegDataSample

from ...errors import IgniteError
from ...files import atomic_file
from ...visualization.overlay import draw_overlay
from ..compatibility import is_training, visualization_backends
from ..predicted_roi import region_of


@HOOKS.register_module()
class ValidationOverlayHook(Hook):
    """Write overlays of the same few validation ROIs at each validation.

    Write ``progress/ROI/iter_000800.jpg`` (image, ground truth, prediction) to the work dir and pass the picture to the
    visualization backends, so that TensorBoard shows it. The ROIs are evenly spaced in the validation part.

    Args:
        rois (int): Number of ROIs, above 0. Defaults to 4.
    """

    def __init__(self, rois: int = 4) -> None:
        if not isinstance(rois, int) or rois < 1:
            raise IgniteError(f'rois of ValidationOverlayHook is {rois!r}; an integer above 0 was expected.')
        self.rois = rois
        self._names: set[str] = set()

    def before_val_epoch(self, runner: Runner) -> None:
        dataset = runner.val_dataloader.dataset
        numbers = np.linspace(0, len(dataset) - 1, min(self.rois, len(dataset))).round().astype(int)
        self._names = {dataset.get_data_info(int(number)).get('roi') for number in numbers} - {None}

    def after_val_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict | None = None,
        outputs: Sequence[SegDataSample] | None = None,
    ) -> None:
        for sample in outputs or ():
            if sample.get('roi') in self._names and is_training(runner):
                self._write(runner, sample)

    def _write(self, runner: Runner, sample: SegDataSample) -> None:
        image, truth, prediction = region_of(sample, runner.val_dataloader.dataset.metainfo['classes'])
        title = f'{sample.roi}, iteration {runner.iter}'
        picture = draw_overlay(image, prediction, truth, title, sample.get('um_per_px'))
        with atomic_file(Path(runner.work_dir) / 'progress' / sample.roi / f'iter_{runner.iter:06d}.jpg') as partial:
            picture.save(partial, quality=85)
        for backend in visualization_backends(runner):
            if not isinstance(backend, LocalVisBackend):  # which would write the same picture again
                backend.add_image(f'progress/{sample.roi}', np.asarray(picture), runner.iter)
