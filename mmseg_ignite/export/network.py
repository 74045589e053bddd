"""A trained segmentor as one pure function of a tensor, which exporters can record."""

import numpy as np
import torch
import torch.nn.functional as F
from mmseg.models.segmentors import EncoderDecoder
from torch import Tensor, nn

from ..errors import IgniteError
from ..models.onnx_file import INPUTS, OUTPUTS


class ExportNetwork(nn.Module):
    """Preprocessing, encoder, decode head, upsampling to the size of the input, and softmax or argmax in one module.

    Members of an ensemble are averaged as by :class:`mmseg_ignite.models.segmentors.TissueEnsemble`. Nothing is changed in
    place and nothing depends on Python state, so ``torch.export`` and ``torch.jit.trace`` record it.

    Args:
        model: segmentor with trained weights, in evaluation mode.
        inputs: a key of :data:`INPUTS <mmseg_ignite.models.onnx_file.INPUTS>`.
        outputs: a key of :data:`OUTPUTS <mmseg_ignite.models.onnx_file.OUTPUTS>`.

    Attributes:
        channel_order: order of the channels after the preprocessing, 'RGB' or 'BGR'.
        channel_mean, channel_std: (1, 3, 1, 1) float32 in this order, 0..255.

    Raises:
        IgniteError: an unknown kind of input or output, or a model with several decode heads in a row or one output channel.

    Example:
        >>> network = ExportNetwork(predictor.model, inputs='nhwc', outputs='labels')
        >>> network(torch.randint(0, 256, (1, 512, 512, 3), dtype=torch.uint8)).shape
        torch.Size([1, 512, 512])
    """

    def __init__(self, model: EncoderDecoder, inputs: str = 'normalised', outputs: str = 'logits') -> None:
        super().__init__()
        for name, value, known in (('inputs', inputs, INPUTS), ('outputs', outputs, OUTPUTS)):
            if value not in known:
                raise IgniteError(f'the {name} of an export are {value!r}; one of {", ".join(known)} was expected.')
        members = list(getattr(model, 'members', [model]))
        if any(isinstance(member.decode_head, nn.ModuleList) or member.out_channels == 1 for member in members):
            raise IgniteError(
                'the model has several decode heads in a row or a single output channel; one head with a channel for each '
                'class was expected: export a model such as SegFormer.'
            )
        self.inputs, self.outputs = inputs, outputs
        self.backbones = nn.ModuleList(_Encoder(member) for member in members)
        self.heads = nn.ModuleList(member.decode_head for member in members)
        self.channel_order, mean, std = normalisation(model.data_preprocessor)
        self.register_buffer('channel_mean', torch.tensor(mean).reshape(1, 3, 1, 1))
        self.register_buffer('channel_std', torch.tensor(std).reshape(1, 3, 1, 1))
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores or labels of images, see ``INPUTS`` and ``OUTPUTS``."""
        if self.inputs == 'nhwc':
            x = x.permute(0, 3, 1, 2)
        if self.inputs != 'normalised':
            x = x.float()
            x = ((x if self.channel_order == 'RGB' else x.flip(1)) - self.channel_mean) / self.channel_std
        size = x.shape[2:]
        logits = [self._logits(*member, x, size) for member in zip(self.backbones, self.heads)]
        if self.outputs == 'labels' and len(logits) == 1:
            return logits[0].argmax(1).to(torch.uint8)
        scores = logits[0]
        if len(logits) > 1 or self.outputs == 'probabilities':
            scores = sum(member.softmax(1) for member in logits) / len(logits)
        if self.outputs == 'labels':
            return scores.argmax(1).to(torch.uint8)
        if self.outputs == 'logits' and len(logits) > 1:
            return scores.clamp_min(torch.finfo(scores.dtype).tiny).log()
        return scores

    @staticmethod
    def _logits(backbone: nn.Module, head: nn.Module, x: Tensor, size: torch.Size) -> Tensor:
        align_corners = bool(head.align_corners)
        return F.interpolate(head(backbone(x)), size, mode='bilinear', align_corners=align_corners)


def normalisation(preprocessor: nn.Module) -> tuple[str, tuple[float, ...], tuple[float, ...]]:
    """Return the order of the channels after a data preprocessor, 'RGB' or 'BGR', and their mean and std in 0..255."""
    order = 'RGB' if getattr(preprocessor, '_channel_conversion', False) else 'BGR'
    if not getattr(preprocessor, '_enable_normalize', False):
        return order, (0.0,) * 3, (1.0,) * 3
    # As written in the config: 116.28, not 116.27999877929688.
    numbers = (values.flatten().cpu().numpy().astype(np.float32) for values in (preprocessor.mean, preprocessor.std))
    return order, *(tuple(float(str(number)) for number in values) for values in numbers)


class _Encoder(nn.Module):
    """Backbone and neck of a segmentor."""

    def __init__(self, model: EncoderDecoder) -> None:
        super().__init__()
        self.backbone, self.neck = model.backbone, model.neck if model.with_neck else None

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = self.backbone(x)
        return maps if self.neck is None else self.neck(maps)
