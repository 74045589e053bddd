"""An encoder-decoder with inference for large tissue images."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from mmengine.structures import PixelData
from mmseg.models.segmentors import EncoderDecoder
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch import Tensor

from ...inference.tiling import slide_labels, slide_logits
from .inference_settings import InferenceSettings
from .window_scores import is_glass, label_image, window_scores


@MODELS.register_module()
class TissueSegmentor(EncoderDecoder):
    """mmseg's EncoderDecoder with sliding windows at linear cost; arguments, weights and training are unchanged.

    Besides mmseg's ``mode``, ``crop_size`` and ``stride``, ``test_cfg`` supports:

    - window_batch: Number of windows predicted at once; by default 4 on a CPU and 16 on an accelerator.
    - weights: 'uniform' (default) as in mmseg, or 'gaussian', see :func:`mmseg_ignite.inference.window_weights`.
    - accumulator: 'cpu' to add the logits of windows in host memory; by default on the model's device.
    - skip_glass: Do not predict windows of bare glass; pixels that are only in such windows get label 0, Background. Images
      that are flipped back or resized are predicted completely. False by default.
    - symmetries: 1 (default), 2, 4 or 8, see :func:`mmseg_ignite.inference.average_symmetries`.
    - keep_logits: Store ``seg_logits`` as mmseg does, e.g. for SegTTAModel or an ensemble. False by default.

    Predicted samples have ``pred_sem_seg``, (1, H, W) uint8 on the device of the inputs and, with keep_logits,
    ``seg_logits``, (C, H, W) on the accumulator's device. With symmetries above 1, logits are the logarithm of mean
    probabilities, so that their softmax gives the probabilities. Logits of windows are added as float32, also with AMP.

    Raises:
        IgniteError: A setting of ``test_cfg`` is invalid; raised when the model is built and when it predicts.

    Example:
        In a config: ``model = dict(type='TissueSegmentor', test_cfg=dict(mode='slide', crop_size=(512, 512),
        stride=(384, 384), symmetries=4))``.
    """

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self.test_settings()

    def test_settings(self) -> InferenceSettings:
        """Validate and return the current ``test_cfg``."""
        return InferenceSettings.of(self.test_cfg, self.out_channels)

    def predict(self, inputs: Tensor, data_samples: list[SegDataSample] | None = None) -> list[SegDataSample]:
        """Label preprocessed images.

        Args:
            inputs: (N, 3, H, W) float, normalised.
            data_samples: N samples to which the predictions are added, see the class. As in mmseg, their padding is removed,
                flips are undone, and logits are resized to ``ori_shape``. Without samples, the labels are of size (H, W).
        """
        settings = self.test_settings()
        boxes = [_labelled_box(inputs, sample) for sample in data_samples or [None] * len(inputs)]
        if settings.keep_logits or self.out_channels == 1 or None in boxes:
            samples = super().predict(inputs, data_samples)
            for sample in samples:
                sample.pred_sem_seg.data = sample.pred_sem_seg.data.to(inputs.device, torch.uint8)
                if not settings.keep_logits:
                    del sample.seg_logits
            return samples
        samples = data_samples or [SegDataSample() for _ in range(len(inputs))]
        for sample, (rows, columns), labels in zip(samples, boxes, self._labels(inputs, samples, settings)):
            sample.pred_sem_seg = PixelData(data=labels[None, rows, columns])
        return samples

    def label_image(self, image: np.ndarray, out: np.ndarray | None = None, **options: object) -> np.ndarray:
        """Label a raw image of any size, see :func:`label_image`.

        Example:
            >>> labels = model.label_image(np.load('slide.npy', mmap_mode='r'))
        """
        return label_image(self, image, out, **options)

    def slide_inference(self, inputs: Tensor, batch_img_metas: list[dict]) -> Tensor:
        """Compute mmseg's logits (N, C, H, W) at linear cost, float32 on the accumulator's device."""
        settings = self.test_settings()
        logits = [self._slide(slide_logits, *item, settings) for item in zip(inputs, batch_img_metas)]
        # Avoid a copy of the logits of a single image.
        return _to_logits(logits[0][None] if len(logits) == 1 else torch.stack(logits), settings)

    def whole_inference(self, inputs: Tensor, batch_img_metas: list[dict]) -> Tensor:
        """Compute the logits (N, C, H, W) of complete images."""
        settings = self.test_settings()
        return _to_logits(window_scores(self, inputs, batch_img_metas, settings), settings)

    def _labels(self, inputs: Tensor, samples: list[SegDataSample], settings: InferenceSettings) -> list[Tensor]:
        """Return label maps (H, W) uint8 of the size and on the device of the inputs."""
        metas = [sample.metainfo for sample in samples]
        if settings.mode == 'whole':
            return list(window_scores(self, inputs, metas, settings).max(1).indices.to(torch.uint8))
        skip = (lambda window: is_glass(self, window)) if settings.skip_glass else None
        maps = inputs.new_empty((len(inputs), *inputs.shape[2:]), dtype=torch.uint8)
        return [
            self._slide(slide_labels, *item, settings, skip=skip, out=out) for *item, out in zip(inputs, metas, maps)
        ]

    def _slide(
        self, slide: Callable, image: Tensor, meta: dict, settings: InferenceSettings, **options: object
    ) -> Tensor | np.ndarray:
        options |= dict(settings.tiling(image.device), device=settings.accumulator)
        return slide(
            lambda windows: window_scores(self, windows, [meta], settings), image, self.out_channels, **options
        )


def _to_logits(scores: Tensor, settings: InferenceSettings) -> Tensor:
    """Take the logarithm of mean probabilities, so that a softmax inverts it; return logits unchanged."""
    return scores if settings.symmetries == 1 else scores.clamp_min_(torch.finfo(scores.dtype).tiny).log_()


def _labelled_box(inputs: Tensor, sample: SegDataSample | None) -> tuple[slice, slice] | None:
    """Return the rows and columns without padding; None if logits are needed to undo a flip or a resize."""
    height, width = inputs.shape[2:]
    if sample is None:
        return slice(0, height), slice(0, width)
    meta = sample.metainfo
    left, right, top, bottom = meta.get('img_padding_size', meta.get('padding_size', [0] * 4))
    size = (height - bottom - top, width - right - left)
    is_direct = not meta.get('flip') and tuple(meta.get('ori_shape', ())) == size
    return (slice(top, height - bottom), slice(left, width - right)) if is_direct else None
