"""The scores of the windows of an image, for any encoder-decoder of mmseg."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial

import cv2
import numpy as np
import torch
from mmseg.models.segmentors import EncoderDecoder
from mmseg.structures import SegDataSample
from torch import Tensor

from ...errors import IgniteError
from ...inference.symmetries import average_symmetries
from ...inference.tiling import Span, slide_labels
from .inference_settings import InferenceSettings

# Measured on an Aperio slide: windows without tissue have a median of 243, a standard deviation of 0.3 to 1.7, and fewer than
# 0.1 % of pixels darker than 225 or with channels that differ by more than 18. The walls of fat cells and alveoli cover far
# more than that, however pale the rest is. Thresholds are half-integers, because undoing the normalisation rounds.
GLASS_LEVEL = 219.5  # 0..255; every channel of glass is brighter
GLASS_COLOUR = 20.5  # 0..255; the brightest and the darkest channel of glass differ by less
GLASS_SHARE = 0.999  # minimum fraction of such pixels in a glass window
GLASS_DEVIATION = 2.0  # 0..255; maximum standard deviation of the grey values of a glass window


@torch.no_grad()
def label_image(
    model: EncoderDecoder,
    image: np.ndarray,
    out: np.ndarray | None = None,
    on_progress: Callable[[int], object] | None = None,
    wanted: Callable[[Span, Span], bool] | None = None,
    maps: Mapping[str, object] | None = None,
) -> np.ndarray:
    """Label a raw image of any size, such as a slide, with one row of windows in memory.

    Equals the prediction of the test pipeline, unless the pipeline changes the image.

    Args:
        model: Segmentor whose ``test_cfg`` is used, see :class:`TissueSegmentor`.
        image: (H, W, 3) uint8 RGB: an array, possibly memory-mapped, or another object with ``shape`` and ``dtype`` that
            supports ``image[y0:y1, x0:x1]``.
        out: (H, W) uint8 raster to write to, which supports ``out[y0:y1] = labels``; by default a new array.
        on_progress: Callback that receives the number of newly finished windows after each batch.
        wanted: Which windows to predict; see :func:`mmseg_ignite.inference.slide_labels`. Pixels without a window get 0.
        maps: Further rasters to fill, see :func:`mmseg_ignite.inference.slide_labels`. 'disagreement' requires an ensemble:
            the Jensen-Shannon divergence of its members' probabilities, divided by its maximum: 0 where all members say the
            same, 1 where each is certain of another class.

    Returns:
        (H, W) uint8 labels 0..C-1; ``out`` if given.

    Raises:
        IgniteError: The image has a wrong type or shape, the decode head has one output channel, or 'disagreement' is asked
            of a single network.
    """
    settings, maps = InferenceSettings.of(model.test_cfg, model.out_channels), maps or {}
    dtype, shape = getattr(image, 'dtype', type(image).__name__), tuple(getattr(image, 'shape', ()))
    if dtype != np.uint8 or len(shape) != 3 or shape[2] != 3:
        raise IgniteError(f'the image is {dtype} of shape {shape}; (H, W, 3) uint8 RGB was expected: convert it.')
    if model.out_channels == 1:
        raise IgniteError('label_image requires a channel per class, but the decode head has out_channels=1.')
    if 'disagreement' in maps and len(getattr(model, 'members', ())) < 2:
        raise IgniteError('a map of disagreement requires an ensemble of at least two networks: give an ensemble.json.')
    device, whole = next(model.parameters()).device, dict(crop_size=shape[:2], stride=shape[:2])
    scores = disagreeing_scores if 'disagreement' in maps else window_scores

    def predict(windows: np.ndarray) -> Tensor:
        x = preprocessed(model, windows, device)
        return scores(model, x, [{}], settings)[..., : windows.shape[1], : windows.shape[2]]  # without padding

    return slide_labels(
        predict,
        image,
        model.out_channels,
        **(settings.tiling(device) if settings.mode == 'slide' else whole),
        device=settings.accumulator or device,
        skip=(lambda window: is_glass(model, window)) if settings.skip_glass else None,
        out=out,
        on_progress=on_progress,
        wanted=wanted,
        maps=maps,
        probabilities=settings.symmetries > 1,
    )


def window_scores(model: EncoderDecoder, inputs: Tensor, metas: list[dict], settings: InferenceSettings) -> Tensor:
    """Compute logits, or with symmetries probabilities, (N, C, H, W) of images, or of windows of one image."""
    return _averaged(model.encode_decode, inputs, metas, settings)


def _averaged(
    encode_decode: Callable[[Tensor, list[dict]], Tensor],
    inputs: Tensor,
    metas: list[dict],
    settings: InferenceSettings,
) -> Tensor:
    def predict(x: Tensor) -> Tensor:
        # As in mmseg's sliding windows, img_shape makes the decode head return logits of the size of x.
        return encode_decode(x, [{**meta, 'img_shape': x.shape[2:]} for meta in metas * (len(x) // len(metas))])

    return average_symmetries(predict, inputs, settings.symmetries, settings.flips_at_once(inputs.device))


def disagreeing_scores(model: EncoderDecoder, inputs: Tensor, metas: list[dict], settings: InferenceSettings) -> Tensor:
    """Compute the scores of an ensemble like :func:`window_scores`, with the members' disagreement as channel C.

    The disagreement is the Jensen-Shannon divergence, the entropy of the mean minus the mean of the entropies (Lin, IEEE
    Trans. Inf. Theory 1991), divided by the logarithm of the number of members, or of classes if there are fewer.
    """
    mean = entropies = 0.0
    for member in model.members:
        # Not member.encode_decode: the ensemble, which averages its members there, is its own first member.
        x = _averaged(partial(EncoderDecoder.encode_decode, member), inputs, metas, settings)
        probabilities = x.softmax(1, dtype=torch.float32) if settings.symmetries == 1 else x
        mean, entropies = mean + probabilities, entropies + torch.special.entr(probabilities).sum(1, keepdim=True)
    number = len(model.members)
    mean = mean / number
    divergence = torch.special.entr(mean).sum(1, keepdim=True) - entropies / number
    divergence = (divergence / math.log(min(number, mean.shape[1]))).clamp_(0, 1)
    scores = mean.clamp_min(torch.finfo(mean.dtype).tiny).log() if settings.symmetries == 1 else mean
    return torch.cat([scores, divergence], 1)


def preprocessed(model: EncoderDecoder, windows: np.ndarray, device: torch.device) -> Tensor:
    """Return RGB windows (B, h, w, 3) uint8 as (B, 3, h, w) float, as the data preprocessor gives them to the network."""
    flat = np.ascontiguousarray(windows).reshape(-1, windows.shape[2], 3)
    x = torch.from_numpy(cv2.cvtColor(flat, cv2.COLOR_RGB2BGR).reshape(windows.shape))  # BGR, as in a pipeline
    x = (x.pin_memory() if device.type == 'cuda' else x).to(device, non_blocking=True).permute(0, 3, 1, 2)
    # mmseg's preprocessor records padding in samples if it pads, and takes None only if it does not.
    samples = [SegDataSample() for _ in x] if getattr(model.data_preprocessor, 'test_cfg', None) else None
    return model.data_preprocessor(dict(inputs=list(x), data_samples=samples))['inputs']


def is_glass(model: EncoderDecoder, window: Tensor | np.ndarray) -> Tensor:
    """Decide whether a window, (3, h, w) normalised or (h, w, 3) uint8, is bare glass: white, colourless and flat."""
    x, preprocessor = window, model.data_preprocessor
    if isinstance(window, np.ndarray):
        x = torch.from_numpy(np.ascontiguousarray(window)).permute(2, 0, 1).float()
    elif hasattr(preprocessor, 'mean'):  # it normalises
        x = window * preprocessor.std + preprocessor.mean
    low, high = x.amin(0), x.amax(0)
    white = (low > GLASS_LEVEL) & (high - low < GLASS_COLOUR)
    return (white.float().mean() >= GLASS_SHARE) & (x.mean(0).std(correction=0) <= GLASS_DEVIATION)
