"""Folding of batch normalisation into the preceding convolution, in evaluation and in training."""

import torch
from mmcv.cnn import ConvModule
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .normalisation import over_processes, sharing_group, update_running_statistics


def fold(module: ConvModule, x: Tensor | None = None) -> tuple[Tensor, Tensor | None, bool]:
    """Return weight and bias of a convolution that includes its batch normalisation, if possible.

    In evaluation, normalisation is a fixed scale and shift per channel. In training, it depends on the statistics of the
    convolution's output. For a 1 x 1 convolution these follow from the mean m and covariance S of its input: the output has
    mean W m and variance diag(W S W^T), so the output before normalisation is never stored. With SyncBN, processes exchange
    these means and variances, 2 C_out + 1 numbers. Running statistics are updated as by the normalisation itself.
    ``torch.nn.utils.fusion.fuse_conv_bn_weights`` covers evaluation only.

    Args:
        module: Convolution, normalisation and activation.
        x: (N, C, H, W) input of the convolution; without it, fold fixed statistics only.

    Returns:
        Weight, bias, and whether they include the normalisation.
    """
    conv, norm = module.conv, module.norm if module.with_norm else None
    if not isinstance(norm, _BatchNorm):
        return conv.weight, conv.bias, False
    if not norm.training and norm.track_running_stats:
        return *_scaled(conv, norm, norm.running_mean, norm.running_var), True
    if x is None or not _statistics_follow_from_input(conv, norm, x):
        return conv.weight, conv.bias, False
    with torch.autocast(x.device.type, enabled=False):
        mean, variance = _output_statistics(conv.weight, x)
        mean, variance, count = over_processes(mean, variance, x.numel() // x.shape[1], sharing_group(norm))
        if norm.track_running_stats:
            update_running_statistics(norm, mean.detach(), variance.detach(), count)
        return *_scaled(conv, norm, mean, variance), True


def _scaled(conv: nn.Conv2d, norm: _BatchNorm, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Return weight and bias, in the dtype of the weight, of the convolution followed by the normalisation."""
    scale = (variance + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight
    shift = -mean * scale if conv.bias is None else (conv.bias - mean) * scale
    shift = shift if norm.bias is None else shift + norm.bias
    return conv.weight * scale[:, None, None, None].to(conv.weight.dtype), shift.to(conv.weight.dtype)


def _statistics_follow_from_input(conv: nn.Conv2d, norm: _BatchNorm, x: Tensor) -> bool:
    """Check for a pointwise convolution, and statistics of more than one value (of all processes, if they share them)."""
    return (
        conv.bias is None
        and conv.kernel_size == (1, 1)
        and (conv.stride, conv.padding, conv.groups) == ((1, 1), (0, 0), 1)
        and (x.numel() > x.shape[1] or sharing_group(norm) is not None)
    )


def _output_statistics(weight: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the mean and the biased variance, (C_out,), of the output of a pointwise convolution.

    Both are float64, except on MPS, which lacks it. If TF32 is allowed, the covariance is still that of the values rounded
    to TF32, as a convolution rounds them, hence positive semi-definite. Its product with the weight adds numbers that
    cancel each other: in TF32, rounding could exceed the variance. float64 is never TF32, and this product is small.
    """
    values = x.permute(0, 2, 3, 1).flatten(0, 2)
    values = values if values.dtype == torch.float64 else values.float()
    mean = values.mean(0)
    values = values - mean  # otherwise, squares of values far from 0 would lose the variance to rounding
    covariance = values.t() @ values / len(values)
    exact = torch.float32 if x.device.type == 'mps' else torch.float64
    weight, mean, covariance = weight.flatten(1).to(exact), mean.to(exact), covariance.to(exact)
    return weight @ mean, ((weight @ covariance) * weight).sum(1).clamp_min(0)
