"""Normalise batches over two processes. On a GPU, started by test_folding.py: python shared_batches.py FOLDER DEVICE

The process then starts the second one, which is no fork: imports have asked CUDA for devices, and a fork cannot use CUDA.
Each process writes outputs, gradients and statistics of every case; ``case`` describes the same work for one process.
"""

import socket
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS

import mmseg_ignite  # noqa: F401
from mmseg_ignite.models.folding import fold

CASES = {
    'folded': dict(kind='fold', norm='SyncBN', sizes=(2, 2)),
    'folded, float32': dict(kind='fold', norm='SyncBN', sizes=(2, 2), dtype=torch.float32),
    'folded, other sizes': dict(kind='fold', norm='SyncBN', sizes=(1, 3)),
    'folded, cumulative': dict(kind='fold', norm='SyncBN', sizes=(2, 1), momentum=None),
    'folded, one pixel': dict(kind='fold', norm='SyncBN', sizes=(1, 2), side=1),
    'layer': dict(kind='layer', norm='ProcessBatchNorm', sizes=(1, 3)),
    'layer, cumulative': dict(kind='layer', norm='ProcessBatchNorm', sizes=(2, 2), momentum=None, dtype=torch.float32),
    'layer without weights': dict(kind='layer', norm='ProcessBatchNorm', sizes=(1, 2), affine=False),
    'head': dict(kind='head', norm='ProcessBatchNorm', sizes=(1, 3)),
    'layer of torch': dict(kind='layer', norm='SyncBN', sizes=(1, 3)),
    'head, layer of torch': dict(kind='head', norm='SyncBN', sizes=(1, 3)),
}


def case(kind, norm, sizes, dtype=torch.float64, side=5, device='cpu', **settings):
    """Return a module in training with random weights, the input of each process, and the module's call."""
    generator = torch.Generator().manual_seed(3)
    norm = dict(type=norm, **settings)
    init_default_scope('mmseg')
    if kind == 'head':
        cfg = dict(type='FastSegformerHead', in_channels=[4, 6], in_index=[0, 1], channels=8, num_classes=3)
        module = MODELS.build(dict(cfg, norm_cfg=norm, dropout_ratio=0.0, loss_decode=dict(type='CrossEntropyLoss')))
    else:
        module = ConvModule(6, 8, 1, norm_cfg=norm) if kind == 'fold' else MODELS.build(dict(norm, num_features=6))
    module.to(dtype).train()
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, dtype=dtype, generator=generator)
    inputs = [30 + torch.randn(n, 6, side, side + 1, dtype=dtype, generator=generator).to(device) for n in sizes]
    module.to(device)

    def call(module, x):
        if kind == 'fold':
            weight, bias, folded = fold(module, x)
            assert folded
            return F.conv2d(x, weight, bias)
        return module([torch.cat([x, x], 3)[:, :4], x] if kind == 'head' else x)

    return module, inputs, call


def results(module, inputs, call, first=0):
    """Return outputs, gradients and statistics after three steps.

    Args:
        inputs: batches of processes, normalised together.
        first: number of images in the batches of earlier processes.
    """
    inputs = torch.cat(inputs).requires_grad_()
    for step in range(3):
        output = call(module, inputs)
        generator = torch.Generator().manual_seed(step)
        weight = torch.randn(9, *output.shape[1:], dtype=output.dtype, generator=generator)
        (weight[first : first + len(output)].to(output.device) * output.square()).sum().backward()
    gradients = {name.removeprefix('module.'): p.grad for name, p in module.named_parameters()}
    statistics = {name.removeprefix('module.'): value for name, value in module.named_buffers()}
    return dict(output=output.detach(), input=inputs.grad, gradients=gradients, statistics=statistics)


def on_cpu(value):
    return {key: on_cpu(part) for key, part in value.items()} if isinstance(value, dict) else value.cpu()


def run_rank(rank: int, port: int, folder: Path, device: str) -> None:
    store = f'tcp://127.0.0.1:{port}'
    torch.distributed.init_process_group('gloo', store, timedelta(seconds=60), world_size=2, rank=rank)
    found = {}
    for name, settings in CASES.items():
        if device == 'cpu' and settings['norm'] == 'SyncBN' and settings['kind'] != 'fold':
            continue  # torch refuses tensors of the CPU
        module, inputs, call = case(**settings, device=device)
        if settings['kind'] == 'head':
            module = torch.nn.parallel.DistributedDataParallel(module, broadcast_buffers=False)
        found[name] = on_cpu(results(module, inputs[rank : rank + 1], call, sum(settings['sizes'][:rank])))
    torch.save(found, folder / f'{rank}.pth')
    torch.distributed.destroy_process_group()


if __name__ == '__main__':
    torch.set_num_threads(1)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    place, kind, *given = sys.argv[1:]
    if given:
        run_rank(1, int(given[0]), Path(place), kind)
        sys.exit()
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        number = free.getsockname()[1]
    with subprocess.Popen([sys.executable, *sys.argv, str(number)]) as other:
        try:
            run_rank(0, number, Path(place), kind)
        except BaseException:
            other.kill()  # it would wait for this process
            raise
    sys.exit(other.returncode)
