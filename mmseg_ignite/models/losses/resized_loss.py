"""Cross-entropy and Dice of logits resized to the labels, without tensors of that size kept for the backward pass.

The gradients are written out, because autograd would keep or recompute several (N, C, H, W) tensors.
"""

from collections import namedtuple
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


class ResizedLoss(NamedTuple):
    """Results of :func:`resized_loss`: float scalars, of which only ``total`` has a gradient."""

    total: Tensor  # weighted sum of both terms
    cross_entropy: Tensor  # unweighted cross-entropy or focal term in nats per pixel
    dice: Tensor  # unweighted Dice term in 0..1; 0 if its weight is 0
    accuracy: Tensor  # percentage of the annotated pixels that are labelled correctly, shape (1,)


BYTES_AT_ONCE = dict(cuda=1 << 28, cpu=1 << 22)
"""Images that :func:`resized_loss` computes at once: as many as have logits of this size in bytes at the size of the labels,
by type of device (others as CUDA), and at least one. The memory needed for a moment is about four times as much. 256 MiB are
16 images of 512 x 512 px and 16 classes: launching the kernels for each image would take longer than running them. On a CPU,
4 MiB are the caches of a core."""

_Terms = namedtuple(
    '_Terms', 'cross_entropy dice class_weight gamma smooth ignore_index align_corners avg_non_ignore pixels'
)
"""Settings of :func:`resized_loss`, and the number of pixels over which CE is averaged."""


def resized_loss(
    logits: Tensor,
    labels: Tensor,
    cross_entropy: float = 1.0,
    dice: float = 0.0,
    class_weight: Tensor | None = None,
    gamma: float = 0.0,
    smooth: float = 1.0,
    ignore_index: int = 255,
    align_corners: bool = False,
    avg_non_ignore: bool = True,
    weight: Tensor | None = None,
) -> ResizedLoss:
    r"""Compute ``cross_entropy`` * CE + ``dice`` * Dice of bilinearly resized logits over annotated pixels.

    With the softmax probability p of a pixel's own class and the weight w of that class,

    .. math::
        \text{CE} = \frac{\sum -w (1 - p)^\gamma \log p}{\sum w}, \qquad
        \text{Dice} = \frac{1}{K} \sum_k 1 - \frac{2 I_k + s}{P_k + G_k + s}.

    CE with :math:`\gamma = 0` equals ``F.cross_entropy(..., weight=class_weight)``, otherwise it is the focal loss (Lin et
    al. 2017). Dice (soft Dice, Milletari et al. 2016) is over the whole batch and averages the K classes with pixels in it:
    I sums the probability of class k over its own pixels, P over all annotated pixels, and G counts its pixels. A batch
    without annotated pixels gives 0 and gradients of 0.

    mmseg resizes the logits of the whole batch and keeps them, their log-softmax and its gradient until the backward pass.
    Here the forward pass resizes, scores and differentiates a few images at a time (:data:`BYTES_AT_ONCE`) and resizes the
    gradient back, so only a gradient of the size of the logits is kept. Dice needs the probabilities of the whole batch
    during this call.

    Args:
        logits: (N, C, h, w) of any float type; computed in float32 (float64 for float64).
        labels: (N, H, W) integer, 0..C-1 or ``ignore_index``.
        cross_entropy, dice: Weights of the terms, 0 or more.
        class_weight: (C,) float, 0 or more; None for all 1.
        gamma: 0 for cross-entropy, else 1 or more.
        smooth: s in pixels.
        ignore_index: Label of pixels to ignore.
        align_corners: See ``F.interpolate``.
        avg_non_ignore: Average CE over annotated pixels; if False, over all pixels.
        weight: (N, H, W) float, 0 or more, weight of each pixel, e.g. of a pixel sampler; None for all 1.

    Example:
        >>> logits = torch.randn(2, 16, 128, 128, requires_grad=True)
        >>> labels = torch.randint(16, (2, 512, 512))
        >>> resized_loss(logits, labels, dice=1.0).total.backward()
    """
    terms = _Terms(cross_entropy, dice, class_weight, gamma, smooth, ignore_index, align_corners, avg_non_ignore, None)
    total, own, overlap, correct = _ResizedLoss.apply(logits, labels, weight, terms)
    # As in mmseg, which adds eps so that a batch of ignored pixels does not divide by 0.
    eps = torch.finfo(torch.float32).eps
    accuracy = (correct + eps) * (100.0 / ((labels != ignore_index).sum() + eps))
    return ResizedLoss(total, own, overlap, accuracy.reshape(1))


class _ResizedLoss(torch.autograd.Function):
    """Compute total, cross-entropy, Dice, and the number of correctly labelled pixels."""

    @staticmethod
    def forward(
        ctx: object, logits: Tensor, labels: Tensor, weight: Tensor | None, terms: _Terms
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        with torch.autocast(logits.device.type, enabled=False):
            values, gradients = _batch(logits, labels, weight, terms, ctx.needs_input_grad[0])
        if gradients is not None:
            ctx.save_for_backward(gradients)
            ctx.dtype = logits.dtype
        ctx.mark_non_differentiable(*values[1:])
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: object, grad: Tensor, *_: Tensor) -> tuple:
        return (ctx.saved_tensors[0] * grad).to(ctx.dtype), None, None, None


class _Images(NamedTuple):
    """Scores of n images at the size of the labels."""

    probability: Tensor  # (n, C, H, W), multiplied by the weight of the pixel
    own: Tensor  # (n, H, W), log p of the pixel's own class
    index: Tensor  # (n, H, W), the pixel's own class, 0 where ignored
    weight: Tensor  # (n, H, W), weight of the pixel, 0 where ignored
    focus: Tensor | None  # (n, H, W), 1 - p of the own class, for the focal loss


def _batch(
    logits: Tensor, labels: Tensor, weight: Tensor | None, terms: _Terms, differentiate: bool
) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], Tensor | None]:
    """Return the values and, if asked for, the gradient of the total with respect to the logits."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    annotated = labels != terms.ignore_index
    index = labels.masked_fill(~annotated, 0).long()
    weight = annotated.to(logits.dtype) if weight is None else annotated * weight.to(logits.dtype)
    table = None if terms.class_weight is None else terms.class_weight.to(logits)
    class_weighted = weight if table is None else weight * table[index]
    pixels = class_weighted.sum() if terms.avg_non_ignore else weight.new_full((), labels.numel())
    terms = terms._replace(class_weight=table, pixels=pixels + torch.finfo(torch.float32).eps)
    own_sum, correct = logits.new_zeros(()), torch.zeros((), dtype=torch.long, device=logits.device)
    overlap, slopes = own_sum.new_zeros(()), None
    parts, gradients = [], []
    number = _images_at_once(logits, labels)
    for *scored, pixel_weight in zip(*(x.split(number) for x in (logits, annotated, index, weight, class_weighted))):
        images, hits = _score(*scored, terms)
        correct += hits
        own_sum -= (images.own * pixel_weight * (1 if images.focus is None else images.focus**terms.gamma)).sum()
        if terms.dice:
            parts.append(images)
        elif differentiate:
            gradients.append(_gradient(images, slopes, logits.shape, terms))
    if terms.dice:
        overlap, slopes = _dice(parts, terms.smooth)
    while differentiate and parts:  # popped, to free the memory of each part after its turn
        gradients.append(_gradient(parts.pop(0), slopes, logits.shape, terms))
    own = own_sum / terms.pixels
    total = terms.cross_entropy * own + terms.dice * overlap
    return (total, own, overlap, correct), torch.cat(gradients) if differentiate else None


def _images_at_once(logits: Tensor, labels: Tensor) -> int:
    image = logits.shape[1] * labels.shape[1] * labels.shape[2] * logits.element_size()
    return max(1, BYTES_AT_ONCE.get(logits.device.type, BYTES_AT_ONCE['cuda']) // max(image, 1))


def _score(logits: Tensor, annotated: Tensor, index: Tensor, weight: Tensor, terms: _Terms) -> tuple[_Images, Tensor]:
    """Score images (n, C, h, w) and count their correctly labelled pixels."""
    # Not channels-last, where a softmax over few channels is several times slower.
    resized = F.interpolate(logits.contiguous(), index.shape[1:], mode='bilinear', align_corners=terms.align_corners)
    log_probability = resized.log_softmax(1)
    own = log_probability.gather(1, index[:, None])[:, 0]
    # A pixel is correct if its own class has the largest probability, which is much cheaper than argmax.
    correct = ((own == log_probability.amax(1)) & annotated).sum()
    focus = None if terms.gamma == 0 else (1 - own.exp()).clamp_min(torch.finfo(logits.dtype).tiny)
    return _Images(log_probability.exp_().mul_(weight[:, None]), own, index, weight, focus), correct


def _dice(parts: list[_Images], smooth: float) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Return Dice and its derivatives, (C,) each, with respect to I and P."""
    sums = []
    for images in parts:
        classes = torch.arange(images.probability.shape[1], device=images.index.device)[:, None]
        # Sum by class with a matrix product: no atomic additions, so the result is reproducible on CUDA.
        one_hot = (images.index.flatten(1)[:, None] == classes).to(images.own.dtype)
        values = torch.stack([(images.own.exp() * images.weight).flatten(1), images.weight.flatten(1)], 2)
        by_class = (one_hot @ values).sum(0)
        sums.append(torch.cat([by_class, images.probability.sum((0, 2, 3))[:, None]], 1))
    own, area, predicted = torch.stack(sums).sum(0).unbind(1)
    present = (area > 0).to(own.dtype)
    share = present / present.sum().clamp_min(1)
    size = area + predicted + smooth
    size = size.masked_fill(size <= 0, 1)  # 0 for an absent class without smoothing
    score = (2 * own + smooth) / size
    return (share * (1 - score)).sum(), (-2 * share / size, share * score / size)


def _gradient(images: _Images, slopes: tuple[Tensor, Tensor] | None, shape: tuple[int, ...], terms: _Terms) -> Tensor:
    """Return the gradient (n, C, h, w) of the total with respect to the logits of n images.

    For a softmax, d p_k / d z_c = p_k ([k = c] - p_c). With u_c, the derivative of the total with respect to p_c, the
    gradient is p_c (u_c - sum of p u). For a term f(log p_own) with derivative -r it is r (p_c - [c = own]).
    """
    probability, own, index, weight, focus = images
    pull = (terms.cross_entropy / terms.pixels).expand_as(own)
    if terms.class_weight is not None:
        pull = pull * terms.class_weight[index]
    if focus is not None:
        pull = pull * (focus**terms.gamma - terms.gamma * own.exp() * focus ** (terms.gamma - 1) * own)
    if slopes is None:
        at_own = -pull * weight
        probability.mul_(pull[:, None])
    else:
        by_own, by_any = (terms.dice * slope for slope in slopes)
        of_own = by_own[index] * own.exp()
        # Divide by the weight, which the probabilities already include.
        divisor = weight.clamp_min(torch.finfo(weight.dtype).tiny)
        mean = of_own + torch.einsum('c,nchw->nhw', by_any, probability) / divisor
        at_own = (of_own - pull) * weight
        probability.mul_((pull - mean)[:, None] + by_any[:, None, None])
    gradient = probability.scatter_add_(1, index[:, None], at_own[:, None])
    size, shape = index.shape[1:], (len(index), *shape[1:])
    if not torch.are_deterministic_algorithms_enabled():
        return torch.ops.aten.upsample_bilinear2d_backward(gradient, size, shape, terms.align_corners, None, None)
    # Slower, but autograd avoids atomic additions on CUDA. The gradient of a resize does not depend on its input.
    with torch.enable_grad():
        start = gradient.new_empty(shape).requires_grad_()
        resized = F.interpolate(start, size, mode='bilinear', align_corners=terms.align_corners)
    return torch.autograd.grad(resized, start, gradient)[0]
