"""SegFormer's all-MLP head with the weights of mmseg's; halves the operations of the whole model."""

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmseg.models.decode_heads import SegformerHead
from mmseg.models.losses import CrossEntropyLoss
from mmseg.models.losses.cross_entropy_loss import cross_entropy
from mmseg.models.utils import resize
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch import Tensor, nn

from ..folding import fold
from ..fusion import convolve_and_activate
from ..losses import TissueLoss, resized_loss


@MODELS.register_module()
class FastSegformerHead(SegformerHead):
    """Faster SegformerHead with the arguments, weights and outputs of mmseg's.

    mmseg upsamples four maps to the finest size, concatenates them and applies the 1 x 1 fusion convolution. Interpolation
    acts on each channel and the convolution on each pixel separately, so they commute: here each map passes through its
    slice of the fusion weight at its own resolution, and the results are upsampled and added. Bias, normalisation and
    activation follow the sum. Batch normalisation is folded into the weights if possible, see
    :func:`mmseg_ignite.models.folding.fold`.

    With a TissueLoss or mmseg's unweighted softmax cross-entropy, logits at full resolution are not kept for the backward
    pass, see :func:`mmseg_ignite.models.losses.resized_loss`. Other losses and pixel samplers are computed by mmseg.

    Args:
        plain: have one linear layer with bias at each level instead of convolution, normalisation and ReLU, as in the code of
            SegFormer's authors and in Hugging Face's transformers, so that whole models convert, see
            :mod:`mmseg_ignite.models.weight_names`. Two linear maps in a row are one, so this head is faster, too.
            Defaults to False: mmseg's head.
        kwargs: those of mmseg's SegformerHead.
    """

    def __init__(self, plain: bool = False, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.plain = plain
        if plain:
            linear = dict(kernel_size=1, norm_cfg=None, act_cfg=None)
            self.convs = nn.ModuleList(ConvModule(width, self.channels, **linear) for width in self.in_channels)

    def forward(self, inputs: list[Tensor]) -> Tensor:
        """Compute logits (N, classes, H / 4, W / 4) from the maps of the encoder."""
        if not all(_is_plain(module) for module in (*self.convs, self.fusion_conv)):
            return super().forward(inputs)
        inputs, fusion, total = self._transform_inputs(inputs), self.fusion_conv, None
        weight, bias, fusion_is_normalised = fold(fusion)
        for x, conv, part in zip(inputs, self.convs, weight.split(self.channels, dim=1)):
            *folded, is_normalised = fold(conv, x)
            is_normalised = is_normalised or not conv.with_norm
            if is_normalised and not conv.with_activation:
                part, bias = _merged(folded, part, bias)
            elif is_normalised:
                x = convolve_and_activate(x, *folded, conv.activate)
            else:
                x = conv.norm(F.conv2d(x, *folded))
                x = conv.activate(x) if conv.with_activation else x
            x, bias = F.conv2d(x, part, bias), None
            if x.shape[2:] != inputs[0].shape[2:]:
                x = resize(x, inputs[0].shape[2:], mode=self.interpolate_mode, align_corners=self.align_corners)
            # In place, because no gradient depends on the values of a sum.
            total = x if total is None else total.add_(x)
        if fusion.with_norm and not fusion_is_normalised:
            total = fusion.norm(total)
        return self.cls_seg(fusion.activate(total) if fusion.with_activation else total)

    def loss_by_feat(self, seg_logits: Tensor, batch_data_samples: list[SegDataSample]) -> dict[str, Tensor]:
        """Compute the same losses and accuracy as mmseg."""
        is_tissue_loss = isinstance(criterion := self.loss_decode, TissueLoss)
        if self.sampler is not None or not (is_tissue_loss or _is_plain_cross_entropy(criterion)):
            return super().loss_by_feat(seg_logits, batch_data_samples)
        labels = self._stack_batch_gt(batch_data_samples).squeeze(1)
        geometry = dict(ignore_index=self.ignore_index, align_corners=bool(self.align_corners))
        if is_tissue_loss:
            found = criterion.score(seg_logits, labels, **geometry)
        else:
            geometry['avg_non_ignore'] = criterion.avg_non_ignore
            found = resized_loss(seg_logits, labels, criterion.loss_weight, **geometry)
        has_dice = is_tissue_loss and criterion.dice
        parts = dict(cross_entropy=found.cross_entropy, dice=found.dice) if has_dice else {}
        return {criterion.loss_name: found.total, **parts, 'acc_seg': found.accuracy}


def _merged(first: tuple[Tensor, Tensor | None], weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return weight and bias of two pointwise convolutions in a row, in the precision of the weights."""
    with torch.autocast(weight.device.type, enabled=False):
        if first[1] is not None:
            shift = weight.flatten(1) @ first[1]
            bias = shift if bias is None else bias + shift
        return (weight.flatten(1) @ first[0].flatten(1))[:, :, None, None], bias


def _is_plain_cross_entropy(criterion: nn.Module) -> bool:
    return (
        type(criterion) is CrossEntropyLoss
        and criterion.cls_criterion is cross_entropy
        and criterion.class_weight is None
        and criterion.reduction == 'mean'
    )


def _is_plain(module: ConvModule) -> bool:
    """Check for a plain sequence of convolution, normalisation and activation."""
    return (
        type(module.conv) is nn.Conv2d
        and module.order == ('conv', 'norm', 'act')
        and not (module.with_spectral_norm or module.with_explicit_padding)
    )
