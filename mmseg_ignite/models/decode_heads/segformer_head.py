"""SegFormer's all-MLP head with the weights of mmseg's and half the model's arithmetic less."""

import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmseg.models.decode_heads import SegformerHead
from mmseg.models.losses import CrossEntropyLoss
from mmseg.models.losses.cross_entropy_loss import cross_entropy
from mmseg.models.utils import resize
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch import Tensor, nn

from ..losses import resized_cross_entropy


@MODELS.register_module()
class FastSegformerHead(SegformerHead):
    """mmseg's SegformerHead, faster; arguments, weights and outputs are those of stock.

    Stock upsamples four maps to the finest size, concatenates them and applies the 1 x 1 fusion convolution.
    Interpolation acts on each channel alone and the convolution on each pixel alone, so they commute: here each map
    goes through its own slice of the fusion weight at its own resolution, and the results are upsampled and added.
    Bias, normalisation and activation follow the sum. In evaluation, batch normalisation is part of the weights.

    The cross-entropy of whole batches at full resolution is not kept for the backward pass either, see
    :func:`resized_cross_entropy <mmseg_ignite.models.losses.resized_cross_entropy>`; other losses than an unweighted
    softmax cross-entropy, and pixel samplers, are computed as in stock.
    """

    def forward(self, inputs: 'list[Tensor]') -> Tensor:
        """Logits (N, classes, H / 4, W / 4) from the maps of the encoder."""
        if not all(_is_plain(module) for module in (*self.convs, self.fusion_conv)):
            return super().forward(inputs)
        inputs = self._transform_inputs(inputs)
        fusion = self.fusion_conv
        weight, bias = _folded(fusion)
        total = None
        for x, conv, part in zip(inputs, self.convs, weight.split(self.channels, dim=1)):
            x = conv.activate(_normalised(conv, x)) if conv.with_activation else _normalised(conv, x)
            x = F.conv2d(x, part, bias if total is None else None)
            if x.shape[2:] != inputs[0].shape[2:]:
                x = resize(x, inputs[0].shape[2:], mode=self.interpolate_mode, align_corners=self.align_corners)
            # In place: no gradient needs the values of a sum.
            total = x if total is None else total.add_(x)
        if fusion.with_norm and not _foldable(fusion):
            total = fusion.norm(total)
        return self.cls_seg(fusion.activate(total) if fusion.with_activation else total)

    def loss_by_feat(self, seg_logits: Tensor, batch_data_samples: 'list[SegDataSample]') -> 'dict[str, Tensor]':
        """Stock's losses and accuracy."""
        criterion = self.loss_decode
        if self.sampler is not None or not _is_plain_cross_entropy(criterion):
            return super().loss_by_feat(seg_logits, batch_data_samples)
        labels = self._stack_batch_gt(batch_data_samples).squeeze(1)
        loss, accuracy = resized_cross_entropy(
            seg_logits, labels, self.ignore_index, bool(self.align_corners), criterion.avg_non_ignore
        )
        return {criterion.loss_name: criterion.loss_weight * loss, 'acc_seg': accuracy}


def _is_plain_cross_entropy(criterion: nn.Module) -> bool:
    return (
        type(criterion) is CrossEntropyLoss
        and criterion.cls_criterion is cross_entropy
        and criterion.class_weight is None
        and criterion.reduction == 'mean'
    )


def _is_plain(module: ConvModule) -> bool:
    """Whether it is a convolution, a normalisation and an activation in that order, and nothing else."""
    return (
        type(module.conv) is nn.Conv2d
        and module.order == ('conv', 'norm', 'act')
        and not (module.with_spectral_norm or module.with_explicit_padding)
    )


def _foldable(module: ConvModule) -> bool:
    """Whether the normalisation is one fixed scale and shift a channel, as batch normalisation in evaluation."""
    return (
        module.with_norm
        and isinstance(module.norm, nn.modules.batchnorm._BatchNorm)
        and not module.norm.training
        and module.norm.track_running_stats
    )


def _folded(module: ConvModule) -> 'tuple[Tensor, Tensor | None]':
    """Weight and bias of the convolution, with the normalisation in them where it can be."""
    weight, bias = module.conv.weight, module.conv.bias
    if not _foldable(module):
        return weight, bias
    norm = module.norm
    scale = (norm.running_var + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight
    shift = -norm.running_mean * scale if bias is None else (bias - norm.running_mean) * scale
    return weight * scale[:, None, None, None], shift if norm.bias is None else shift + norm.bias


def _normalised(module: ConvModule, x: Tensor) -> Tensor:
    """Convolution and normalisation, before the activation."""
    weight, bias = _folded(module)
    x = F.conv2d(x, weight, bias)
    return module.norm(x) if module.with_norm and not _foldable(module) else x
