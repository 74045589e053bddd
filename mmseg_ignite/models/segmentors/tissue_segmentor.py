"""An encoder and a decoder whose inference fits large tissue images."""

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

# Glass, measured on an Aperio slide: windows without tissue have a median of 243, a standard deviation of 0.3 to 1.7,
# and fewer than 1 pixel in 1000 darker than 225 or with channels that differ by more than 18. The walls of fat cells
# and alveoli take up far more than that, however pale the rest is. Half values, since undoing the normalisation rounds.
GLASS_LEVEL = 219.5
"""0..255; glass is brighter in every channel."""
GLASS_COLOUR = 20.5
"""0..255; the brightest and the darkest channel of glass differ by less."""
GLASS_SHARE = 0.999
"""Share of a window's pixels that must be so."""
GLASS_DEVIATION = 2.0
"""0..255; the largest standard deviation of a glass window's grey values."""


@dataclass(frozen=True)
class InferenceSettings:
    """``test_cfg``, checked; see :class:`TissueSegmentor`."""

    mode: str = 'whole'
    crop_size: tuple[int, int] | None = None
    stride: tuple[int, int] | None = None
    window_batch: int = 4
    weights: str = 'uniform'
    accumulator: str | None = None
    skip_glass: bool = False
    symmetries: int = 1
    keep_logits: bool = False

    @classmethod
    def of(cls, test_cfg: dict | None, out_channels: int) -> InferenceSettings:
        """Read a ``test_cfg``; keys that are not ours are left to whoever reads them.

        Raises:
            IgniteError: a value that cannot be.
        """
        known = {k: v for k, v in (test_cfg or {}).items() if k in cls.__dataclass_fields__}
        settings = cls(**known)
        settings._check_choices()
        settings._check_combinations(out_channels)
        return settings

    @property
    def tiling(self) -> dict:
        """The arguments that say how windows lie, are batched and are weighted."""
        batch = self.window_batch // self.flips_at_once
        return dict(crop_size=self.crop_size, stride=self.stride, window_batch=batch, weights=self.weights)

    @property
    def flips_at_once(self) -> int:
        """Of a window's symmetries, how many make a batch: all flips of few windows, since their sum is as large as these."""
        return min(4, self.symmetries, self.window_batch) if self.mode == 'slide' else 1

    def _check_choices(self) -> None:
        choices = dict(
            mode=('whole', 'slide'),
            weights=WEIGHTS,
            accumulator=(None, 'cpu'),
            skip_glass=(True, False),
            symmetries=NUMBERS,
            keep_logits=(True, False),
        )
        for name, allowed in choices.items():
            value = getattr(self, name)
            if not any(type(value) is type(choice) and value == choice for choice in allowed):
                raise IgniteError(
                    f'test_cfg.{name} is {value!r}; one of {", ".join(map(repr, allowed))} was expected: correct it.'
                )
        if isinstance(self.window_batch, bool) or not isinstance(self.window_batch, int) or self.window_batch < 1:
            raise IgniteError(
                f'test_cfg.window_batch is {self.window_batch!r}; an integer above 0 was expected: correct it.'
            )

    def _check_combinations(self, out_channels: int) -> None:
        if self.mode == 'slide':
            for name in ('crop_size', 'stride'):
                value = getattr(self, name)
                if not isinstance(value, (tuple, list)) or len(value) != 2:
                    raise IgniteError(
                        f'test_cfg.{name} is {value!r}; two integers (height, width) in px were expected: give them.'
                    )
            for crop, stride in zip(self.crop_size, self.stride):
                try:
                    grid(crop, crop, stride)
                except IgniteError as error:
                    raise IgniteError(f'test_cfg.crop_size or test_cfg.stride is wrong: {error}') from error
        if self.skip_glass and (self.mode == 'whole' or self.keep_logits):
            raise IgniteError(
                'test_cfg.skip_glass leaves out windows, which needs mode="slide" and, as glass has no logits then, '
                'keep_logits=False: change one of them.'
            )
        if out_channels == 1 and (self.skip_glass or self.symmetries > 1):
            raise IgniteError(
                'test_cfg.skip_glass and test_cfg.symmetries need one output channel a class, and the decode head '
                'has out_channels=1: leave them out.'
            )


@MODELS.register_module()
class TissueSegmentor(EncoderDecoder):
    """mmseg's EncoderDecoder with sliding windows at linear cost; arguments, weights and training are those of stock.

    ``test_cfg`` has, besides stock's ``mode``, ``crop_size`` and ``stride``:

    - window_batch (int): windows predicted at once. Defaults to 4.
    - weights (str): 'uniform' as stock, or 'gaussian', see :func:`mmseg_ignite.inference.window_weights`.
    - accumulator (str, optional): 'cpu' to add the windows' logits in the host's memory. Defaults to None: on the
      model's device.
    - skip_glass (bool): windows of bare glass are not predicted, and what lies only in such gets label 0, Background
      (images that are to be flipped back or resized are predicted whole). Defaults to False.
    - symmetries (int): 1, 2, 4 or 8, see :func:`mmseg_ignite.inference.average_symmetries`. Defaults to 1.
    - keep_logits (bool): store ``seg_logits`` as stock does, e.g. for SegTTAModel or an ensemble. Defaults to False.

    A predicted sample has ``pred_sem_seg``, (1, H, W) uint8 on the inputs' device, and ``seg_logits``, (C, H, W) on the
    accumulator's, only with keep_logits. With symmetries above 1 these are the logarithms of the mean probabilities, so
    that their softmax gives the probabilities. Windows' logits are added as float32, whatever AMP makes them.

    Raises:
        IgniteError: a setting of ``test_cfg`` that cannot be, when the model is built and when it predicts.
    """

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self.test_settings()

    def test_settings(self) -> InferenceSettings:
        """The ``test_cfg`` as it is now, checked."""
        return InferenceSettings.of(self.test_cfg, self.out_channels)

    def predict(self, inputs: Tensor, data_samples: list[SegDataSample] | None = None) -> list[SegDataSample]:
        """Label preprocessed images.

        Args:
            inputs: (N, 3, H, W) float, normalised.
            data_samples: N samples. Their padding is removed and flips are undone as in stock; where ``ori_shape`` is
                another size, the logits are resized to it. Defaults to None: (H, W) is the size to label.

        Returns:
            N samples with predictions.
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
        """Return whether :meth:`label_image` gives the labels that :meth:`predict` would give for a packed image.

        Args:
            inputs: (3, H, W), what the test pipeline gives.
            sample: its sample; a resized, flipped or padded image is predicted by :meth:`predict` only.
        """
        pads = getattr(self.data_preprocessor, 'test_cfg', None)
        whole = _labelled_box(inputs[None], sample) == (slice(0, inputs.shape[1]), slice(0, inputs.shape[2]))
        return inputs.dtype == torch.uint8 and self.out_channels > 1 and not pads and whole

    def label_image(
        self, image: np.ndarray, out: np.ndarray | None = None, on_progress: Callable[[int], object] | None = None
    ) -> np.ndarray:
        """Label a raw image of any size, such as a slide, of which only one row of windows is in memory at a time.

        The same as predicting the image by the test pipeline, unless that resizes or pads it.

        Args:
            image: (H, W, 3) uint8 RGB, perhaps memory-mapped.
            out: (H, W) uint8 array to write to. Defaults to None: a new one.
            on_progress: called with the number of newly finished windows after each batch.

        Returns:
            (H, W) uint8 label map, 0..C-1.
        """
        settings = self.test_settings()
        dtype, shape = getattr(image, 'dtype', type(image).__name__), tuple(getattr(image, 'shape', ()))
        if dtype != np.uint8 or len(shape) != 3 or shape[2] != 3:
            raise IgniteError(
                f'the image has {dtype} values of shape {shape}; (H, W, 3) uint8 RGB was expected: convert it.'
            )
        if self.out_channels == 1:
            raise IgniteError('label_image needs one output channel a class, and the decode head has out_channels=1.')
        slide = settings.mode == 'slide'
        device = next(self.parameters()).device
        return slide_labels(
            lambda windows: self._forward_windows(self._preprocessed(windows, device), {}, settings),
            image,
            self.out_channels,
            **(settings.tiling if slide else dict(crop_size=image.shape[:2], stride=image.shape[:2])),
            device=settings.accumulator or device,
            skip=self._is_glass if settings.skip_glass else None,
            out=out,
            advance=on_progress,
        )

    def slide_inference(self, inputs: Tensor, batch_img_metas: list[dict]) -> Tensor:
        """Stock's logits (N, C, H, W) at linear cost, float32 on the accumulator's device."""
        settings = self.test_settings()
        logits = [
            slide_logits(
                lambda windows, meta=meta: self._forward_windows(windows, meta, settings),
                image,
                self.out_channels,
                **settings.tiling,
                device=settings.accumulator,
            )
            for image, meta in zip(inputs, batch_img_metas)
        ]
        # A single image's logits are not copied.
        logits = logits[0][None] if len(logits) == 1 else torch.stack(logits)
        return _log(logits, settings)

    def whole_inference(self, inputs: Tensor, batch_img_metas: list[dict]) -> Tensor:
        """The logits (N, C, H, W) of one forward pass, or of one a symmetry."""
        settings = self.test_settings()
        return _log(self._forward_whole(inputs, batch_img_metas, settings), settings)

    def _labels(self, inputs: Tensor, samples: list[SegDataSample], settings: InferenceSettings) -> list[Tensor]:
        """Label maps (H, W) uint8 of the inputs, as large as these, on their device."""
        metas = [sample.metainfo for sample in samples]
        if settings.mode == 'whole':
            return list(self._forward_whole(inputs, metas, settings).max(1).indices.to(torch.uint8))
        return [self._slide_labels(image, meta, settings) for image, meta in zip(inputs, metas)]

    def _slide_labels(self, image: Tensor, meta: dict, settings: InferenceSettings) -> Tensor:
        labels = slide_labels(
            lambda windows: self._forward_windows(windows, meta, settings),
            image,
            self.out_channels,
            **settings.tiling,
            device=settings.accumulator,
            skip=self._is_glass if settings.skip_glass else None,
        )
        return torch.from_numpy(labels).to(image.device, non_blocking=True)

    def _forward_whole(self, inputs: Tensor, metas: list[dict], settings: InferenceSettings) -> Tensor:
        if settings.symmetries == 1:
            return self.encode_decode(inputs, _sized(metas, inputs))

        def predict(x: Tensor) -> Tensor:
            return self.encode_decode(x, _sized(metas * (len(x) // len(inputs)), x))

        return average_symmetries(predict, inputs, settings.symmetries, settings.flips_at_once)

    def _forward_windows(self, windows: Tensor, meta: dict, settings: InferenceSettings) -> Tensor:
        """Logits, or with symmetries probabilities, (B, C, h, w) of windows (B, 3, h, w) of one image."""
        return self._forward_whole(windows, [meta] * len(windows), settings)

    def _preprocessed(self, windows: np.ndarray, device: torch.device) -> Tensor:
        """Return RGB windows (B, h, w, 3) uint8 as (B, 3, h, w) float, as the data preprocessor gives them to the network."""
        x = torch.from_numpy(np.ascontiguousarray(windows[..., ::-1].transpose(0, 3, 1, 2)))  # BGR, as in a pipeline
        x = (x.pin_memory() if device.type == 'cuda' else x).to(device, non_blocking=True)
        return self.data_preprocessor(dict(inputs=list(x), data_samples=None))['inputs']

    @property
    def _normalises(self) -> bool:
        return hasattr(self.data_preprocessor, 'mean')

    def _is_glass(self, window: Tensor | np.ndarray) -> Tensor:
        """Whether a window, (3, h, w) normalised or (h, w, 3) uint8, is bare glass: white, colourless and flat."""
        if isinstance(window, np.ndarray):
            x = torch.from_numpy(np.ascontiguousarray(window)).permute(2, 0, 1).float()
        elif self._normalises:
            x = window * self.data_preprocessor.std + self.data_preprocessor.mean
        else:
            x = window
        low, high = x.amin(0), x.amax(0)
        white = (low > GLASS_LEVEL) & (high - low < GLASS_COLOUR)
        return (white.float().mean() >= GLASS_SHARE) & (x.mean(0).std(correction=0) <= GLASS_DEVIATION)


def _sized(metas: list[dict], x: Tensor) -> list[dict]:
    """Tell the decode head, as stock's sliding windows do, to give logits of the size of x."""
    return [{**meta, 'img_shape': x.shape[2:]} for meta in metas]


def _log(scores: Tensor, settings: InferenceSettings) -> Tensor:
    """Averaged probabilities as logits, so that a softmax after this gives them back; logits as they are."""
    if settings.symmetries == 1:
        return scores
    return scores.clamp_min_(torch.finfo(scores.dtype).tiny).log_()


def _labelled_box(inputs: Tensor, sample: SegDataSample | None) -> tuple[slice, slice] | None:
    """The rows and columns that are left without padding; None where labels alone do not do: a flip or another size."""
    height, width = inputs.shape[2:]
    if sample is None:
        return slice(0, height), slice(0, width)
    meta = sample.metainfo
    left, right, top, bottom = meta.get('img_padding_size', meta.get('padding_size', [0] * 4))
    box = slice(top, height - bottom), slice(left, width - right)
    size = (height - bottom - top, width - right - left)
    return box if not meta.get('flip') and tuple(meta.get('ori_shape', ())) == size else None
