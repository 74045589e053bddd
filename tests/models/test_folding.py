"""Folded batch normalisation: accuracy in TF32, and statistics over processes compared with one process."""

import functools
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from forks import free_port, start_fork
from mmcv.cnn import ConvModule
from shared_batches import CASES, case, results, run_rank
from torch.utils._python_dispatch import TorchDispatchMode

from mmseg_ignite.models.folding import fold
from mmseg_ignite.models.normalisation import ProcessBatchNorm, update_running_statistics

pytestmark = pytest.mark.usefixtures('one_thread')


class TF32(TorchDispatchMode):
    """Round float32 factors of matrix products to the 10 bits of TF32, as CUDA does if that is allowed."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.mv, torch.ops.aten.bmm):
            args = [self.rounded(value) for value in args]
        return function(*args, **(kwargs or {}))

    @staticmethod
    def rounded(value):
        if value.dtype != torch.float32:
            return value
        bits = value.contiguous().view(torch.int32)
        return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)  # 13 of 23 bits of the mantissa, to nearest


def correlated(device, noise, channels=64, outputs=32):
    """Return input and convolution with BN; the output cancels all of the input but independent noise in each channel."""
    generator = torch.Generator().manual_seed(5)
    common = torch.randn(2, 1, 24, 24, generator=generator)
    x = 3 + common + noise * torch.randn(2, channels, 24, 24, generator=generator)
    module = ConvModule(channels, outputs, 1, norm_cfg=dict(type='BN', momentum=1.0), act_cfg=None)
    weight = torch.randn(outputs, channels, generator=generator)
    module.conv.weight.data = (weight - weight.mean(1, keepdim=True))[:, :, None, None]
    return x.to(device), module.to(device)


def largest_error(found, exact):
    return float(((found - exact) / exact).abs().max())


@torch.no_grad()
@pytest.mark.parametrize('noise', [1e-3, 1e-2, 1e-1])
def test_tf32_neither_makes_the_variance_negative_nor_wrong(device, noise):
    """Its error is that of a convolution in TF32, which the network has anyway, and that of the float32 covariance."""
    x, module = correlated(device, noise)
    weight = module.conv.weight.flatten(1)
    exact = F.conv2d(x.double(), module.conv.weight.double()).var((0, 2, 3))
    values = x.permute(0, 2, 3, 1).flatten(0, 2)
    convolved = (TF32.rounded(values).double() @ TF32.rounded(weight).double().t()).var(0)
    with TF32():
        fold(module, x)
        centred = values - values.mean(0)
        naive = ((weight @ (centred.t() @ centred / len(centred))) * weight).sum(1)
    uncancelled = (weight.abs() @ values.std(0)).square()
    covariance = float((uncancelled * 2**-25 / exact).max()) + 1e-5  # a few roundings of its entries
    allowed = 2 * largest_error(convolved, exact) + covariance
    assert module.norm.running_var.min() > 0 and largest_error(module.norm.running_var, exact) < allowed
    assert largest_error(naive, exact) > 5 * allowed  # the product of weight and covariance in TF32, too
    assert noise > 1e-3 or naive.min() < 0
    fold(module, x)
    assert largest_error(module.norm.running_var, exact) < covariance


@pytest.mark.cuda
@torch.no_grad()
def test_tf32_of_the_gpu():
    """A GPU may cut digits where the simulation rounds to nearest, which doubles the error."""
    x, module = correlated('cuda', 1e-1)
    exact = F.conv2d(x.double(), module.conv.weight.double()).var((0, 2, 3))
    torch.backends.cuda.matmul.allow_tf32 = True  # the next test starts without
    fold(module, x)
    assert largest_error(module.norm.running_var, exact) < 5e-3


def test_variance_of_a_constant_output_is_zero(device):
    """Rounding of the covariance may leave a small negative number, whose square root would be NaN."""
    x = torch.randn(1, 1, 16, 16, device=device).expand(1, 8, 16, 16) * 1e3
    module = ConvModule(8, 64, 1, norm_cfg=dict(type='BN', eps=0.0, momentum=1.0), act_cfg=None).to(device)
    weight = torch.randn(64, 8, 1, 1, device=device)
    module.conv.weight.data = weight - weight.mean(1, keepdim=True)
    fold(module, x)
    assert (module.norm.running_var >= 0).all()


@pytest.mark.parametrize('momentum', [0.3, None])
def test_running_statistics_are_those_of_torch(device, momentum):
    ours, theirs = (torch.nn.BatchNorm2d(4, momentum=momentum).to(device) for _ in range(2))
    for _ in range(5):
        x = 2 + 3 * torch.randn(2, 4, 6, 7, device=device)
        theirs(x)
        update_running_statistics(ours, x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0), 84)
        for (name, a), b in zip(theirs.named_buffers(), ours.buffers()):
            torch.testing.assert_close(b, a, msg=name)  # sums in another order


@pytest.fixture(scope='module')
def shared(tmp_path_factory):
    """Return a function from a device to what each of two processes found there with gloo, {case: results}."""

    @functools.cache
    def run(kind):
        folder = tmp_path_factory.mktemp('shared')
        if kind == 'cpu':
            port = free_port()
            works = [functools.partial(run_rank, rank, port, folder, kind) for rank in range(2)]
            group = [start_fork(work, folder / f'{rank}.txt') for rank, work in enumerate(works)]
            for process in group:
                process.join(300)
                process.kill()
            return folder, [process.exitcode for process in group]
        environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT)}
        command = [sys.executable, ROOT / 'tests' / 'models' / 'shared_batches.py', folder, kind]
        with open(folder / '0.txt', 'w') as output:
            done = subprocess.run(command, stdout=output, stderr=output, env=environment, timeout=300)
        return folder, [done.returncode]

    @functools.cache
    def found(device):
        folder, statuses = run(device.type)  # once, also if it fails
        assert not any(statuses), ''.join(path.read_text()[-3000:] for path in sorted(folder.glob('*.txt')))
        return [torch.load(folder / f'{rank}.pth') for rank in range(2)]

    return found


@pytest.mark.parametrize('name', CASES)
def test_two_processes_normalise_like_one_with_both_batches(shared, device, name):
    """Outputs, gradients of inputs and weights, and running statistics; on CUDA, torch's SyncBatchNorm does, too."""
    if device.type == 'cpu' and 'of torch' in name:
        pytest.skip("torch's SyncBatchNorm refuses tensors of the CPU")
    settings = dict(CASES[name])
    settings['norm'] = 'BN'
    module, inputs, call = case(**settings)
    expected = results(module, inputs, call)
    found = [process[name] for process in shared(device)]
    # float32: the inputs' mean is 30 times their deviation, which costs two digits.
    close = dict(rtol=2e-3, atol=2e-3) if settings.get('dtype') == torch.float32 else dict(rtol=1e-7, atol=1e-7)
    for part in ('output', 'input'):
        torch.testing.assert_close(torch.cat([process[part] for process in found]), expected[part], **close)
    for key, gradient in expected['gradients'].items():
        # DDP has averaged the gradients of the processes.
        total = sum(process['gradients'][key] for process in found)
        torch.testing.assert_close(total, gradient, msg=key, **close)
    for process in found:
        for key, value in expected['statistics'].items():
            torch.testing.assert_close(process['statistics'][key], value, msg=key, rtol=1e-5, atol=1e-6)
            assert torch.equal(process['statistics'][key], found[0]['statistics'][key])


def test_one_process_needs_no_group():
    x = torch.randn(2, 6, 4, 5)
    plain, ours = torch.nn.BatchNorm2d(6), ProcessBatchNorm(6)
    assert torch.equal(ours(x), plain(x)) and torch.equal(ours.eval()(x), plain.eval()(x))
    module = ConvModule(6, 8, 1, norm_cfg=dict(type='SyncBN'), act_cfg=None)
    weight, bias, folded = fold(module, x)
    expected = torch.nn.BatchNorm2d(8)(module.conv(x))
    assert folded
    torch.testing.assert_close(F.conv2d(x, weight, bias), expected, rtol=1e-4, atol=1e-5)
