"""Pictures and label PNGs of predicted ROIs, during a training and in a test."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmengine.visualization import LocalVisBackend
from mmseg.registry import HOOKS
from mmseg.structures import SegDataSample

from ...datasets.prepared import CONTEXT, open_array, roi_name
from ...datasets.transforms.shift import shifted_rgb
from ...errors import IgniteError
from ...files import atomic_file
from ...labels import CLASSES, release_ids
from ...visualization.overlay import draw_overlay, write_labels, write_prediction
from ..compatibility import is_training, visualization_backends


def predicted_roi(
    sample: SegDataSample, classes: Sequence[str], shift: str | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return image, ground truth and prediction of a predicted sample of an IGNITEDataset.

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
    labels = [x.data.squeeze(0).cpu().numpy().astype(np.uint8)[box] for x in (sample.gt_sem_seg, sample.pred_sem_seg)]
    truth, prediction = labels if table is None else [cv2.LUT(x, table) for x in labels]
    image = open_array(sample.img_path)
    if shift is not None:
        image = shifted_rgb(image, sample.get('roi') or roi_name(sample.img_path), shift)
    return image[box], truth, prediction


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

    def after_test_iter(self, runner: Runner, outputs: Sequence[SegDataSample] | None = None, **_: object) -> None:
        """Write the ROIs of a batch."""
        for sample in outputs or ():
            classes = runner.test_dataloader.dataset.metainfo['classes']
            image, truth, prediction = predicted_roi(sample, classes, self.shift if self.overlays else None)
            name = sample.get('roi') or roi_name(sample.img_path)
            if self.overlays:
                write_prediction(self.out_dir, name, image, prediction, truth, sample.get('um_per_px'))
            else:
                write_labels(self.out_dir, name, prediction)


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
        """Choose the ROIs."""
        dataset = runner.val_dataloader.dataset
        numbers = np.linspace(0, len(dataset) - 1, min(self.rois, len(dataset))).round().astype(int)
        self._names = {dataset.get_data_info(int(number)).get('roi') for number in numbers} - {None}

    def after_val_iter(self, runner: Runner, outputs: Sequence[SegDataSample] | None = None, **_: object) -> None:
        """Write the chosen ROIs of a batch."""
        for sample in outputs or ():
            if sample.get('roi') not in self._names or not is_training(runner):
                continue
            image, truth, prediction = predicted_roi(sample, runner.val_dataloader.dataset.metainfo['classes'])
            title = f'{sample.roi}, iteration {runner.iter}'
            picture = draw_overlay(image, prediction, truth, title, sample.get('um_per_px'))
            with atomic_file(
                Path(runner.work_dir) / 'progress' / sample.roi / f'iter_{runner.iter:06d}.jpg'
            ) as partial:
                picture.save(partial, quality=85)
            for backend in visualization_backends(runner):
                if not isinstance(backend, LocalVisBackend):  # which would write the same picture again
                    backend.add_image(f'progress/{sample.roi}', np.asarray(picture), runner.iter)
