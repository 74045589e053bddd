"""Cross-entropy and Dice of logits at the size of the labels, without keeping anything of that size for the backward pass."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


class ResizedLoss(NamedTuple):
    """What :func:`resized_loss` gives: scalars, of which only ``total`` has a gradient.

    Attributes:
        total: the weighted sum of the two terms.
        cross_entropy: that term without its weight, nats a pixel.
        dice: that term without its weight, 0..1; 0 where it is not asked for.
        accuracy: pixels labelled rightly, percent of the annotated.
    """

    total: Tensor
    cross_entropy: Tensor
    dice: Tensor
    accuracy: Tensor


class _Terms(NamedTuple):
    cross_entropy: float
    dice: float
    class_weight: Tensor | None
    gamma: float
    smooth: float
    ignore_index: int
    align_corners: bool
    avg_non_ignore: bool


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
    """``cross_entropy`` * CE + ``dice`` * Dice of bilinearly resized logits, over annotated pixels.

    CE is that of ``F.cross_entropy`` with ``weight=class_weight``: the mean of -log p of the pixel's class, weighted by the
    weight of that class; with ``gamma`` the focal loss, -(1 - p) ** gamma * log p (Lin et al. 2017). Dice is 1 - (2 I + s) /
    (P + G + s) of each class that has a pixel in the batch, averaged over these; I is the sum of the class's probability over
    its own pixels, P over all annotated pixels, G their number (soft Dice over the batch, Milletari et al. 2016). A batch
    without an annotated pixel gives 0, and gradients of 0.

    mmseg resizes the logits of the whole batch, and keeps them, their log-softmax and its gradient until the backward
    pass. The gradients of both terms are known as soon as their values are, so here each image is resized, scored,
    differentiated and resized back, and only gradients of the logits' own size are kept. Dice needs the probabilities of
    the whole batch for as long as this function runs, cross-entropy alone those of one image.

    Args:
        logits: (N, C, h, w) of any float type; computed in float32 (float64 in float64).
        labels: (N, H, W) integer, 0..C-1 or ``ignore_index``.
        class_weight: (C,), 0 or more. Defaults to None: all 1.
        gamma: 0 for cross-entropy, else 1 or more.
        smooth: s, in pixels.
        ignore_index: the label of pixels that count nothing.
        align_corners: as in ``F.interpolate``.
        avg_non_ignore: average CE over the annotated pixels, instead of all.
        weight: (N, H, W), how much each pixel counts, 0 or more, e.g. of a pixel sampler. Defaults to None: all 1.
    """
    terms = _Terms(cross_entropy, dice, class_weight, gamma, smooth, ignore_index, align_corners, avg_non_ignore)
    total, own, overlap, right = _ResizedLoss.apply(logits, labels, weight, terms)
    # As mmseg, which so keeps a batch of ignored pixels only from dividing by 0.
    tiny = torch.finfo(torch.float32).eps
    accuracy = (right + tiny) * (100.0 / ((labels != ignore_index).sum() + tiny))
    return ResizedLoss(total, own, overlap, accuracy.reshape(1))


class _ResizedLoss(torch.autograd.Function):
    """Total, cross-entropy, Dice, and the number of pixels labelled rightly."""

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


class _Image(NamedTuple):
    """One image's scores; C classes, (H, W) the size of the labels."""

    probability: Tensor  # (C, H, W), times how much the pixel counts
    own: Tensor  # (H, W): log p of the pixel's class
    index: Tensor  # (H, W): its class, 0 where ignored
    counts: Tensor  # (H, W): how much the pixel counts, 0 where ignored


def _batch(
    logits: Tensor, labels: Tensor, weight: Tensor | None, terms: _Terms, differentiate: bool
) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], Tensor | None]:
    """The values, and the gradient of the total by the logits."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    annotated = labels != terms.ignore_index
    index = torch.where(annotated, labels, 0).long()
    counts = annotated.to(logits.dtype) if weight is None else annotated * weight.to(logits.dtype)
    table = None if terms.class_weight is None else terms.class_weight.to(logits)
    weighted = counts if table is None else counts * table[index]
    number = weighted.sum() if terms.avg_non_ignore else counts.new_tensor(labels.numel())
    number = number + torch.finfo(torch.float32).eps
    own_sum, right = logits.new_zeros(()), torch.zeros((), dtype=torch.long, device=logits.device)
    images, gradients = [], []
    for one, where, *pixels in zip(logits.split(1), annotated, index, counts, weighted):
        image, hit = _score(one, where, pixels[0], pixels[1], terms.align_corners)
        right += hit
        focus = None if terms.gamma == 0 else (1 - image.own.exp()).clamp_min(torch.finfo(logits.dtype).tiny)
        own_sum -= (image.own * pixels[2] * (1 if focus is None else focus**terms.gamma)).sum()
        if terms.dice:
            images.append((image, focus))
        elif differentiate:
            gradients.append(_gradient(image, focus, None, number, table, one.shape, terms))
    overlap, slopes = (
        _dice([image for image, _ in images], terms.smooth) if terms.dice else (own_sum.new_zeros(()), None)
    )
    if differentiate:
        for i, (image, focus) in enumerate(images):
            images[i] = None  # its memory goes with its turn
            gradients.append(_gradient(image, focus, slopes, number, table, logits.shape, terms))
    own = own_sum / number
    total = terms.cross_entropy * own + terms.dice * overlap
    return (total, own, overlap, right), torch.cat(gradients) if differentiate else None


def _score(
    logits: Tensor, annotated: Tensor, index: Tensor, counts: Tensor, align_corners: bool
) -> tuple[_Image, Tensor]:
    """One image's scores and how many of its pixels are labelled rightly."""
    # Not channels-last, where a softmax over few channels is several times slower.
    resized = F.interpolate(logits.contiguous(), index.shape, mode='bilinear', align_corners=align_corners)[0]
    log_probability = resized.log_softmax(0)
    own = log_probability.gather(0, index[None])[0]
    # The pixel is right where its own class is the likeliest; far cheaper than finding which class is.
    right = ((own == log_probability.amax(0)) & annotated).sum()
    return _Image(log_probability.exp_().mul_(counts), own, index, counts), right


def _dice(images: list[_Image], smooth: float) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Dice, and its slopes by the probability of a pixel's own class and of any class, (C,) each: of I and of P."""
    sums = []
    for probability, own, index, counts in images:
        classes = torch.arange(len(probability), device=index.device)[:, None, None]
        # Sums by class as a matrix product: no atomic additions, and so the same each time on CUDA.
        is_own = (index == classes).flatten(1).to(own.dtype)
        by_class = is_own @ torch.stack([(own.exp() * counts).flatten(), counts.flatten()], 1)
        sums.append(torch.cat([by_class, probability.sum((1, 2))[:, None]], 1))
    own, area, predicted = torch.stack(sums).sum(0).unbind(1)
    present = (area > 0).to(own.dtype)
    share = present / present.sum().clamp_min(1)
    size = area + predicted + smooth
    size = torch.where(size > 0, size, 1)  # an absent class without smoothing
    score = (2 * own + smooth) / size
    return (share * (1 - score)).sum(), (-2 * share / size, share * score / size)


def _gradient(
    image: _Image,
    focus: Tensor | None,
    slopes: tuple[Tensor, Tensor] | None,
    number: Tensor,
    table: Tensor | None,
    shape: tuple[int, ...],
    terms: _Terms,
) -> Tensor:
    """The gradient (1, C, h, w) of the total by one image's logits.

    By softmax, d p_k / d z_c = p_k ([k = c] - p_c). With a slope u_c of the total by p_c this gives p_c (u_c - sum of p u),
    and for a term f(log p_own) of slope -r gives r (p_c - [c = own]).
    """
    probability, own, index, counts = image
    pull = (terms.cross_entropy / number).expand_as(own)
    if table is not None:
        pull = pull * table[index]
    if focus is not None:
        pull = pull * (focus**terms.gamma - terms.gamma * own.exp() * focus ** (terms.gamma - 1) * own)
    if slopes is None:
        at_own = -pull * counts
        probability.mul_(pull)
    else:
        by_own, by_any = (terms.dice * slope for slope in slopes)
        of_own = by_own[index] * own.exp()
        # The probabilities are times `counts` already, which this takes back.
        mean = of_own + torch.einsum('c,chw->hw', by_any, probability) / counts.clamp_min(
            torch.finfo(counts.dtype).tiny
        )
        at_own = (of_own - pull) * counts
        probability.mul_((pull - mean) + by_any[:, None, None])
    gradient = probability.scatter_add_(0, index[None], at_own[None])[None]
    size = index.shape
    if not torch.are_deterministic_algorithms_enabled():
        resize_back = torch.ops.aten.upsample_bilinear2d_backward
        return resize_back(gradient, size, (1, *shape[1:]), terms.align_corners, None, None)
    # Slower, but autograd knows a way without atomic additions on CUDA; the gradient of a resize needs no values.
    with torch.enable_grad():
        start = gradient.new_empty((1, *shape[1:])).requires_grad_()
        resized = F.interpolate(start, size, mode='bilinear', align_corners=terms.align_corners)
    return torch.autograd.grad(resized, start, gradient)[0]
