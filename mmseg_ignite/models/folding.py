"""Batch normalisation as part of the convolution before it, in evaluation and in training."""

import torch
from mmcv.cnn import ConvModule
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def fold(module: ConvModule, x: Tensor | None = None) -> tuple[Tensor, Tensor | None, bool]:
    """Weight and bias of a convolution that does its batch normalisation too, where that can be.

    In evaluation the normalisation is one fixed scale and shift a channel. In training its statistics are those of the
    convolution's output, which for a 1 x 1 convolution follow from the mean m and the covariance S of its input:
    the output's mean is W m and its variance diag(W S W^T). So the output is never stored without its normalisation.
    Running statistics are updated as by the normalisation itself.

    Args:
        module: Convolution, normalisation and activation.
        x: (N, C, H, W) what the convolution is to be applied to. Without it only fixed statistics are folded.

    Returns:
        Weight, bias, and whether the normalisation is in them.
    """
    conv = module.conv
    norm = module.norm if module.with_norm else None
    if not isinstance(norm, _BatchNorm):
        return conv.weight, conv.bias, False
    if not norm.training and norm.track_running_stats:
        return *_scaled(conv, norm, norm.running_mean, norm.running_var), True
    if x is None or not _statistics_follow_from_input(conv, norm, x):
        return conv.weight, conv.bias, False
    with torch.autocast(x.device.type, enabled=False):
        mean, variance = _output_statistics(conv.weight, x)
        _update_running_statistics(norm, mean.detach(), variance.detach(), x.numel() // x.shape[1])
        return *_scaled(conv, norm, mean, variance), True


def _scaled(conv: nn.Conv2d, norm: _BatchNorm, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    scale = (variance + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight
    shift = -mean * scale if conv.bias is None else (conv.bias - mean) * scale
    return conv.weight * scale[:, None, None, None], shift if norm.bias is None else shift + norm.bias


def _statistics_follow_from_input(conv: nn.Conv2d, norm: _BatchNorm, x: Tensor) -> bool:
    """A pointwise convolution, and statistics of this process's batch alone (which holds more than one value)."""
    return (
        not isinstance(norm, nn.SyncBatchNorm)
        and conv.bias is None
        and conv.kernel_size == (1, 1)
        and (conv.stride, conv.padding, conv.groups) == ((1, 1), (0, 0), 1)
        and x.numel() > x.shape[1]
    )


def _output_statistics(weight: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance (C_out,) of a pointwise convolution's output."""
    values = x.permute(0, 2, 3, 1).flatten(0, 2)
    values = values if values.dtype == torch.float64 else values.float()
    weight = weight.flatten(1)
    mean = values.mean(0)
    values = values - mean  # squares of values far from 0 would lose the variance to rounding
    covariance = values.t() @ values / len(values)
    return weight @ mean, ((weight @ covariance) * weight).sum(1)


@torch.no_grad()
def _update_running_statistics(norm: _BatchNorm, mean: Tensor, variance: Tensor, count: int) -> None:
    if not norm.track_running_stats:
        return
    norm.num_batches_tracked.add_(1)
    momentum = 1.0 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), momentum)
    norm.running_var.lerp_((variance * (count / (count - 1))).to(norm.running_var.dtype), momentum)
