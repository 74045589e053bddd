"""An encoder-decoder with inference for large tissue images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from mmengine.structures import PixelData
from mmseg.models.segmentors import EncoderDecoder
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch import Tensor

from ...errors import IgniteError
from ...inference.symmetries import NUMBERS, average_symmetries
from ...inference.tiling import WEIGHTS, grid, slide_labels, slide_logits

# Measured on an Aperio slide: windows without tissue have a median of 243, a standard deviation of 0.3 to 1.7, and fewer than
# 0.1 % of pixels darker than 225 or with channels that differ by more than 18. The walls of fat cells and alveoli cover far
# more than that, however pale the rest is. Thresholds are half-integers, because undoing the normalisation rounds.
GLASS_LEVEL = 219.5  # 0..255; every channel of glass is brighter
GLASS_COLOUR = 20.5  # 0..255; the brightest and the darkest channel of glass differ by less
GLASS_SHARE = 0.999  # minimum fraction of such pixels in a glass window
GLASS_DEVIATION = 2.0  # 0..255; maximum standard deviation of the grey values of a glass window
_CHOICES = dict(mode=('whole', 'slide'), weights=WEIGHTS, accumulator=(None, 'cpu'), symmetries=NUMBERS)
_CHOICES |= dict.fromkeys(('skip_glass', 'keep_logits'), (True, False))


@dataclass(frozen=True)
class InferenceSettings:
    """Validated ``test_cfg``; see :class:`TissueSegmentor`."""

    mode: str = 'whole'
    crop_size: tuple[int, int] | None = None
    stride: tuple[int, int] | None = None
    window_batch: int | None = None
    weights: str = 'uniform'
    accumulator: str | None = None
    skip_glass: bool = False
    symmetries: int = 1
    keep_logits: bool = False

    @classmethod
    def of(cls, test_cfg: dict | None, out_channels: int) -> InferenceSettings:
        """Read a ``test_cfg``, ignoring unknown keys; raise IgniteError if values are invalid or contradict each other."""
        settings = cls(**{k: v for k, v in (test_cfg or {}).items() if k in cls.__dataclass_fields__})
        settings._check(out_channels)
        return settings

    def tiling(self, device: torch.device) -> dict:
        """Arguments of :func:`mmseg_ignite.inference.slide_labels` for a network on this device."""
        batch = self.windows_at_once(device) // self.flips_at_once(device)
        # cuDNN's benchmark mode tries its algorithms anew for each size of batch.
        rounded = device.type == 'cuda' and torch.backends.cudnn.benchmark
        options = dict(crop_size=self.crop_size, stride=self.stride, window_batch=batch, weights=self.weights)
        return options | dict(round_batches=rounded)

    def windows_at_once(self, device: torch.device) -> int:
        """Number of windows per batch, flipped copies included, for a network on this device."""
        return self.window_batch or (4 if device.type == 'cpu' else 16)

    def flips_at_once(self, device: torch.device) -> int:
        """Number of flipped copies of a window per batch; more copies of fewer windows need less memory for their sum."""
        return min(4, self.symmetries, self.windows_at_once(device)) if self.mode == 'slide' else 1

    def _check(self, out_channels: int) -> None:
        batch = self.window_batch
        rules = {'window_batch': (batch is None or (type(batch) is int and batch > 0), 'None or an integer above 0')}
        for name, allowed in _CHOICES.items():
            holds = any(
                type(getattr(self, name)) is type(choice) and getattr(self, name) == choice for choice in allowed
            )
            rules[name] = (holds, f'one of {", ".join(map(repr, allowed))}')
        for name in ('crop_size', 'stride') if self.mode == 'slide' else ():
            is_pair = isinstance(getattr(self, name), (tuple, list)) and len(getattr(self, name)) == 2
            rules[name] = (is_pair, 'a pair of integers (height, width) in px')
        for name, (holds, expected) in rules.items():
            if not holds:
                raise IgniteError(f'test_cfg.{name} is {getattr(self, name)!r}; {expected} was expected: correct it.')
        if self.mode == 'slide':
            try:
                for crop, stride in zip(self.crop_size, self.stride):
                    grid(crop, crop, stride)
            except IgniteError as error:
                raise IgniteError(f'test_cfg.crop_size or test_cfg.stride is invalid: {error}') from error
        if self.skip_glass and (self.mode == 'whole' or self.keep_logits):
            raise IgniteError('test_cfg.skip_glass requires mode="slide" and keep_logits=False: change one of them.')
        if out_channels == 1 and (self.skip_glass or self.symmetries > 1):
            raise IgniteError(
                'test_cfg.skip_glass and symmetries require a channel per class, not out_channels=1: omit them.'
            )


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

    def labels_raw_images(self, inputs: Tensor, sample: SegDataSample) -> bool:
        """Return whether :meth:`label_image` would label an image like :meth:`predict` labels it packed, (3, H, W).

        Resized, flipped or padded images are labelled by :meth:`predict` only.
        """
        pads = getattr(self.data_preprocessor, 'test_cfg', None)
        whole = _labelled_box(inputs[None], sample) == (slice(0, inputs.shape[1]), slice(0, inputs.shape[2]))
        return inputs.dtype == torch.uint8 and self.out_channels > 1 and not pads and whole

    def label_image(
        self, image: np.ndarray, out: np.ndarray | None = None, on_progress: Callable[[int], object] | None = None
    ) -> np.ndarray:
        """Label a raw image of any size, such as a slide, with one row of windows in memory.

        Equals the prediction of the test pipeline, unless the pipeline resizes or pads.

        Args:
            image: (H, W, 3) uint8 RGB, possibly memory-mapped.
            out: (H, W) uint8 array to write to; by default a new one.
            on_progress: Callback that receives the number of newly finished windows after each batch.

        Returns:
            (H, W) uint8 labels 0..C-1.

        Raises:
            IgniteError: The image has a wrong type or shape, or the decode head has one output channel.

        Example:
            >>> labels = model.label_image(np.load('slide.npy', mmap_mode='r'))
        """
        settings = self.test_settings()
        dtype, shape = getattr(image, 'dtype', type(image).__name__), tuple(getattr(image, 'shape', ()))
        if dtype != np.uint8 or len(shape) != 3 or shape[2] != 3:
            raise IgniteError(f'the image is {dtype} of shape {shape}; (H, W, 3) uint8 RGB was expected: convert it.')
        if self.out_channels == 1:
            raise IgniteError('label_image requires a channel per class, but the decode head has out_channels=1.')
        device, whole = next(self.parameters()).device, dict(crop_size=shape[:2], stride=shape[:2])
        return slide_labels(
            lambda windows: self._scores(self._preprocessed(windows, device), [{}], settings),
            image,
            self.out_channels,
            **(settings.tiling(device) if settings.mode == 'slide' else whole),
            device=settings.accumulator or device,
            skip=self._is_glass if settings.skip_glass else None,
            out=out,
            on_progress=on_progress,
        )

    def slide_inference(self, inputs: Tensor, batch_img_metas: list[dict]) -> Tensor:
        """Compute mmseg's logits (N, C, H, W) at linear cost, float32 on the accumulator's device."""
        settings = self.test_settings()
        logits = [self._slide(slide_logits, *item, settings) for item in zip(inputs, batch_img_metas)]
        # Avoid a copy of the logits of a single image.
        return _to_logits(logits[0][None] if len(logits) == 1 else torch.stack(logits), settings)

    def whole_inference(self, inputs: Tensor, batch_img_metas: list[dict]) -> Tensor:
        """Compute the logits (N, C, H, W) of complete images."""
        settings = self.test_settings()
        return _to_logits(self._scores(inputs, batch_img_metas, settings), settings)

    def _labels(self, inputs: Tensor, samples: list[SegDataSample], settings: InferenceSettings) -> list[Tensor]:
        """Return label maps (H, W) uint8 of the size and on the device of the inputs."""
        metas = [sample.metainfo for sample in samples]
        if settings.mode == 'whole':
            return list(self._scores(inputs, metas, settings).max(1).indices.to(torch.uint8))
        skip = self._is_glass if settings.skip_glass else None
        maps = inputs.new_empty((len(inputs), *inputs.shape[2:]), dtype=torch.uint8)
        return [
            self._slide(slide_labels, *item, settings, skip=skip, out=out) for *item, out in zip(inputs, metas, maps)
        ]

    def _slide(
        self, slide: Callable, image: Tensor, meta: dict, settings: InferenceSettings, **options: object
    ) -> Tensor | np.ndarray:
        options |= dict(settings.tiling(image.device), device=settings.accumulator)
        return slide(lambda windows: self._scores(windows, [meta], settings), image, self.out_channels, **options)

    def _scores(self, inputs: Tensor, metas: list[dict], settings: InferenceSettings) -> Tensor:
        """Compute logits, or with symmetries probabilities, (N, C, H, W) of images, or of windows of one image."""

        def predict(x: Tensor) -> Tensor:
            # As in mmseg's sliding windows, img_shape makes the decode head return logits of the size of x.
            sized = [{**meta, 'img_shape': x.shape[2:]} for meta in metas * (len(x) // len(metas))]
            return self.encode_decode(x, sized)

        return average_symmetries(predict, inputs, settings.symmetries, settings.flips_at_once(inputs.device))

    def _preprocessed(self, windows: np.ndarray, device: torch.device) -> Tensor:
        """Return RGB windows (B, h, w, 3) uint8 as (B, 3, h, w) float, as the data preprocessor gives them to the network."""
        x = torch.from_numpy(np.ascontiguousarray(windows))
        x = (x.pin_memory() if device.type == 'cuda' else x).to(device, non_blocking=True)
        x = x.permute(0, 3, 1, 2).flip(1)  # BGR, as in a pipeline
        return self.data_preprocessor(dict(inputs=list(x), data_samples=None))['inputs']

    def _is_glass(self, window: Tensor | np.ndarray) -> Tensor:
        """Decide whether a window, (3, h, w) normalised or (h, w, 3) uint8, is bare glass: white, colourless and flat."""
        x, preprocessor = window, self.data_preprocessor
        if isinstance(window, np.ndarray):
            x = torch.from_numpy(np.ascontiguousarray(window)).permute(2, 0, 1).float()
        elif hasattr(preprocessor, 'mean'):  # it normalises
            x = window * preprocessor.std + preprocessor.mean
        low, high = x.amin(0), x.amax(0)
        white = (low > GLASS_LEVEL) & (high - low < GLASS_COLOUR)
        return (white.float().mean() >= GLASS_SHARE) & (x.mean(0).std(correction=0) <= GLASS_DEVIATION)


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
