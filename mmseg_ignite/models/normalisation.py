"""Batch normalisation over the batches of all processes, on any device."""

import torch
from mmseg.registry import MODELS
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm


@MODELS.register_module()
class ProcessBatchNorm(nn.BatchNorm2d):
    """SyncBN for any device and backend, such as the CPU with gloo: torch's own refuses CPU tensors, and DDP the layer.

    Values, gradients, running statistics and weights are those of ``torch.nn.SyncBatchNorm``, which is faster on CUDA.
    Processes may have batches of different sizes. In one process it is ``torch.nn.BatchNorm2d``.

    Args:
        num_features: number of channels.
        process_group: processes that share their statistics. Defaults to all.
        **kwargs: see ``torch.nn.BatchNorm2d``.

    Example:
        ``norm_cfg = dict(type='ProcessBatchNorm', requires_grad=True)``
    """

    def __init__(self, num_features: int, *, process_group: distributed.ProcessGroup | None = None, **kwargs) -> None:
        super().__init__(num_features, **kwargs)
        self.process_group = process_group

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x (N, C, H, W) by the mean and variance of each channel over the batches of all processes."""
        group = sharing_group(self)
        if group is None:
            return super().forward(x)
        self._check_input_dim(x)
        with torch.autocast(x.device.type, enabled=False):
            values = x if x.dtype == torch.float64 else x.float()
            variance, mean = torch.var_mean(values, (0, 2, 3), correction=0)
            mean, variance, count = over_processes(mean, variance, x.numel() // x.shape[1], group)
            if self.track_running_stats:
                update_running_statistics(self, mean.detach(), variance.detach(), count)
            scale = (variance + self.eps).rsqrt()
            scale = scale if self.weight is None else scale * self.weight
            values = (values - _per_channel(mean, values)) * _per_channel(scale, values)
            values = values if self.bias is None else values + _per_channel(self.bias, values)
        return values.to(x.dtype)


def _per_channel(value: Tensor, like: Tensor) -> Tensor:
    return value.to(like.dtype)[:, None, None]


def sharing_group(norm: _BatchNorm) -> distributed.ProcessGroup | None:
    """Return the processes with which a normalisation shares its statistics now; None if it uses its own batch."""
    shares = isinstance(norm, (nn.SyncBatchNorm, ProcessBatchNorm)) and norm.training
    if not (shares and distributed.is_available() and distributed.is_initialized()):
        return None
    group = distributed.group.WORLD if norm.process_group is None else norm.process_group
    return group if distributed.get_world_size(group) > 1 else None


def over_processes(
    mean: Tensor, variance: Tensor, count: int, group: distributed.ProcessGroup | None
) -> tuple[Tensor, Tensor, Tensor | int]:
    """Combine the statistics of the batches of all processes; differentiable.

    Args:
        mean: (C,) mean of this process's values.
        variance: (C,) biased variance of this process's values.
        count: number of this process's values of a channel.
        group: the processes; None returns the arguments.

    Returns:
        Mean, biased variance and count of the values of all processes in float64, equal bit by bit in each process.
    """
    if group is None:
        return mean, variance, count
    own = torch.cat([mean, variance, mean.new_full((1,), count)]).double()  # float32 counts to 2 ** 24 only
    means, variances, counts = _Gather.apply(own, group).split([len(mean), len(mean), 1], dim=1)
    total = counts.sum()
    share = counts / total
    mean = (share * means).sum(0)
    return mean, (share * (variances + (means - mean).square())).sum(0), total


class _Gather(torch.autograd.Function):
    """Gather (C,) of each process as (processes, C); sum the gradients of the losses of all processes."""

    @staticmethod
    def forward(ctx, own: Tensor, group: distributed.ProcessGroup) -> Tensor:
        ctx.group, ctx.rank = group, distributed.get_rank(group)
        gathered = own.new_zeros(distributed.get_world_size(group), len(own))
        gathered[ctx.rank] = own
        distributed.all_reduce(gathered, group=group)  # exact, and known to every backend
        return gathered

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        gradient = gradient.contiguous().clone()
        distributed.all_reduce(gradient, group=ctx.group)
        return gradient[ctx.rank], None


@torch.no_grad()
def update_running_statistics(norm: _BatchNorm, mean: Tensor, variance: Tensor, count: Tensor | int) -> None:
    """Update the running mean and unbiased variance as batch normalisation does, without waiting for the device.

    Args:
        norm: batch normalisation that tracks running statistics.
        mean: (C,) mean of the batch.
        variance: (C,) biased variance of the batch.
        count: number of values of a channel, as a number or a scalar on the device.
    """
    norm.num_batches_tracked.add_(1)
    dtype, momentum = norm.running_mean.dtype, norm.momentum
    momentum = norm.num_batches_tracked.to(dtype).reciprocal() if momentum is None else momentum
    norm.running_mean.lerp_(mean.to(dtype), momentum)
    norm.running_var.lerp_((variance * (count / (count - 1))).to(dtype), momentum)
