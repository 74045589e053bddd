"""Cross-entropy of logits at the size of the labels, of which one image at a time is in memory."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def resized_cross_entropy(
    logits: Tensor, labels: Tensor, ignore_index: int = 255, align_corners: bool = False, avg_non_ignore: bool = True
) -> 'tuple[Tensor, Tensor]':
    """``F.cross_entropy`` of bilinearly resized logits, and the share of pixels that they label rightly.

    mmseg resizes the logits of the whole batch, and keeps them, their log-softmax and its gradient until the backward
    pass. The gradient of cross-entropy is known as soon as its value is, so here each image is resized, scored,
    differentiated and resized back before the next one, and only gradients of the logits' own size are kept.

    Args:
        logits: (N, C, h, w) of any float type; computed in float32 (float64 in float64).
        labels: (N, H, W) integer, 0..C-1 or ``ignore_index``.
        ignore_index: The label of pixels that count nothing.
        align_corners: As in ``F.interpolate``.
        avg_non_ignore: Average over the pixels that are not ignored, instead of all; 0 where all are ignored.

    Returns:
        The loss, a scalar, and the accuracy in percent, (1,), without gradient.
    """
    loss, right = _ResizedCrossEntropy.apply(logits, labels, ignore_index, align_corners)
    annotated = (labels != ignore_index).sum()
    # As mmseg, which so keeps a batch of ignored pixels only from dividing by 0.
    tiny = torch.finfo(torch.float32).eps
    accuracy = (right + tiny) * (100.0 / (annotated + tiny))
    return loss / ((annotated if avg_non_ignore else labels.numel()) + tiny), accuracy.reshape(1)


class _ResizedCrossEntropy(torch.autograd.Function):
    """The sum of the cross-entropy over all pixels, and the number of pixels labelled rightly."""

    @staticmethod
    def forward(
        ctx: object, logits: Tensor, labels: Tensor, ignore_index: int, align_corners: bool
    ) -> 'tuple[Tensor, Tensor]':
        with torch.autocast(logits.device.type, enabled=False):
            found = [
                _score(one.float() if one.dtype != torch.float64 else one, label, ignore_index, align_corners, ctx)
                for one, label in zip(logits.split(1), labels.split(1))
            ]
        losses, rights, gradients = zip(*found)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(torch.cat(gradients))
            ctx.dtype = logits.dtype
        right = torch.stack(rights).sum()
        ctx.mark_non_differentiable(right)
        return torch.stack(losses).sum(), right

    @staticmethod
    @once_differentiable
    def backward(ctx: object, grad: Tensor, _: Tensor) -> tuple:
        return (ctx.saved_tensors[0] * grad).to(ctx.dtype), None, None, None


def _score(
    logits: Tensor, labels: Tensor, ignore_index: int, align_corners: bool, ctx: object
) -> 'tuple[Tensor, Tensor, Tensor | None]':
    """Loss, right pixels and, if asked for, the gradient of one image's logits (1, C, h, w), labels (1, H, W)."""
    shape, size = logits.shape, labels.shape[1:]
    # Not channels-last, where a softmax over few channels is several times slower.
    resized = F.interpolate(logits.contiguous(), size, mode='bilinear', align_corners=align_corners)
    annotated = labels != ignore_index
    index = torch.where(annotated, labels, 0)[:, None].long()
    log_probability = resized.log_softmax(1)
    own = log_probability.gather(1, index)[:, 0]
    # The pixel is right where its own class is the likeliest; far cheaper than finding which class is.
    right = ((own == log_probability.amax(1)) & annotated).sum()
    loss = -torch.where(annotated, own, 0).sum()
    if not ctx.needs_input_grad[0]:
        return loss, right, None
    gradient = log_probability.exp_()
    gradient.scatter_add_(1, index, gradient.new_full((), -1).expand(index.shape))
    gradient.mul_(annotated[:, None])
    return loss, right, torch.ops.aten.upsample_bilinear2d_backward(gradient, size, shape, align_corners, None, None)
