"""Our SegFormer beside mmseg's and Hugging Face's, same weights where they can be shared: forward, training step, memory.

    python benchmarks/model.py [--device cuda] [--rounds 7] [--sizes 0 2 5] [--work-dir work_dirs/benchmarks/model]

Each round runs every contestant once, in turn; ratios are of medians. Hugging Face's model takes part where transformers is
installed. Memory is the peak of a process of its own that does one training step, above what it held before the step.
"""

import argparse
import logging
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mmseg_ignite.apis import load_config
from mmseg_ignite.files import write_json

CONFIG = str(Path(__file__).parents[1] / 'configs/segformer/segformer_mit-b{}_1xb8-20k_ignite-512x512.py')
GOALS = {
    (0, 'forward'): 2.6,
    (0, 'training step'): 2.4,
    (2, 'forward'): 1.9,
    (2, 'training step'): 1.6,
    (5, 'forward'): 1.5,
    (5, 'training step'): 1.35,
}
HF_GOALS = {'forward': 2.0, 'training step': 2.6}


def build(size: int, stock: bool, device: str) -> nn.Module:
    """The segmentor of a config, ours or with mmseg's own parts; the same random weights."""
    cfg = load_config(CONFIG.format(size)).model
    cfg.backbone.init_cfg, cfg.decode_head.norm_cfg = None, dict(type='BN')
    if stock:
        cfg.type, cfg.backbone.type, cfg.decode_head.type = 'EncoderDecoder', 'MixVisionTransformer', 'SegformerHead'
    init_default_scope('mmseg')
    logging.disable(logging.INFO)  # a line for each weight
    torch.manual_seed(0)
    model = MODELS.build(cfg)
    model.init_weights()
    return model.to(device)


def build_hugging_face(device: str) -> 'nn.Module | None':
    """SegFormer-B0 of transformers with the head of 256 channels that its B0 has, or None."""
    try:
        from transformers import SegformerConfig, SegformerForSemanticSegmentation
    except ImportError:
        return None
    return SegformerForSemanticSegmentation(SegformerConfig(num_labels=16)).to(device)


def samples(count: int, device: str, side: int = 512) -> 'list[SegDataSample]':
    """Random labels."""
    return [
        SegDataSample(gt_sem_seg=PixelData(data=torch.randint(16, (1, side, side), device=device)))
        for _ in range(count)
    ]


def training_step(model: nn.Module, images: torch.Tensor, truth: 'list[SegDataSample]') -> Callable[[], None]:
    """Forward, loss and backward of an mmseg segmentor or of Hugging Face's model."""

    def step() -> None:
        model.zero_grad(set_to_none=True)
        if hasattr(model, 'parse_losses'):
            loss, _ = model.parse_losses(model.loss(images, truth))
        else:
            loss = model(pixel_values=images, labels=torch.cat([s.gt_sem_seg.data for s in truth])).loss
        loss.backward()

    return step


def forward(model: nn.Module, images: torch.Tensor, dtype: 'torch.dtype | None' = None) -> Callable[[], None]:
    """The logits of the network, without gradients."""

    def call() -> None:
        with torch.inference_mode(), torch.autocast(images.device.type, dtype, enabled=dtype is not None):
            model(images)

    return call


def alternately(calls: 'dict[str, Callable[[], None]]', rounds: int, device: str) -> 'dict[str, float]':
    """Median seconds of each call; one uncounted round first."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            begin = time.perf_counter()
            call()
            if device.startswith('cuda'):
                torch.cuda.synchronize()
            if number:
                times[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values) for name, values in times.items()}


def matrix_rate(device: str) -> float:
    """Floating-point operations a second of a large matrix product, fp32."""
    a = torch.randn(2048, 2048, device=device)
    seconds = alternately({'mm': lambda: torch.mm(a, a)}, 9, device)['mm']
    return 2 * 2048**3 / seconds


def measure_size(size: int, rounds: int, device: str, rate: float) -> 'list[dict]':
    """Forward and training step of one MiT size, 2 x 3 x 512 x 512."""
    images = torch.randn(2, 3, 512, 512, device=device)
    truth = samples(2, device)
    ours, stock = (build(size, s, device) for s in (False, True))
    hugging_face = build_hugging_face(device) if size == 0 else None
    rows = []
    for what, make, mode in (
        ('forward', lambda m: forward(m, images), False),
        ('training step', lambda m: training_step(m, images, truth), True),
    ):
        models = dict(ours=ours, stock=stock) | ({'transformers': hugging_face} if hugging_face is not None else {})
        calls = {name: make(model.train(mode)) for name, model in models.items()}
        if size == 0 and not mode:
            calls['bf16'] = forward(ours, images, torch.bfloat16)
        seconds = alternately(calls, rounds, device)
        with FlopCounterMode(display=False) as counter:
            calls['ours']()
        share = counter.get_total_flops() / seconds['ours'] / rate
        rows.append(_row(f'B{size} {what}', seconds['ours'], seconds['stock'], GOALS.get((size, what)), 'mmseg', share))
        if 'transformers' in seconds:
            rows.append(
                _row(f'B0 {what}', seconds['ours'], seconds['transformers'], HF_GOALS[what], 'transformers', share)
            )
        if 'bf16' in seconds:
            rows.append(_row('B0 forward, bf16', seconds['bf16'], seconds['stock'], 4.5, 'mmseg fp32', None))
    return rows


def _row(what: str, ours: float, theirs: float, goal: 'float | None', beside: str, share: 'float | None') -> dict:
    return dict(what=what, ours=ours, beside=beside, theirs=theirs, ratio=theirs / ours, goal=goal, matrix_share=share)


def peak_memory(which: str, device: str) -> int:
    """Bytes that a training step of B0, batch 8 at 512, needs at its peak; in a process of its own."""
    command = [sys.executable, __file__, '--memory-of', which, '--device', device]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.strip().splitlines()[-1])


def print_peak_memory(which: str, device: str) -> None:
    model = build(0, which == 'stock', device).train()
    step = training_step(model, torch.randn(8, 3, 512, 512, device=device), samples(8, device))
    if device.startswith('cuda'):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        print(torch.cuda.max_memory_allocated() - before)
    else:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        step()
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--rounds', type=int, default=7)
    parser.add_argument('--sizes', type=int, nargs='+', default=[0, 2, 5])
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/benchmarks/model'))
    parser.add_argument('--memory-of', choices=['ours', 'stock'], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory_of:
        print_peak_memory(args.memory_of, args.device)
        return
    console, rate = Console(), matrix_rate(args.device)
    where = torch.cuda.get_device_name() if args.device.startswith('cuda') else f'{torch.get_num_threads()} cores'
    rows = []
    for size in args.sizes:
        console.print(f'B{size} ...')
        rows += measure_size(size, args.rounds, args.device, rate)
    memory = {which: peak_memory(which, args.device) for which in ('ours', 'stock')}
    table = Table('what', 'ours', 'theirs', 'ratio', 'goal', 'share of the matrix rate', title=f'SegFormer on {where}')
    for r in rows:
        share = f'{r["matrix_share"]:.0%}' if r['matrix_share'] else ''
        theirs = f'{r["beside"]} {r["theirs"]:.3f} s'
        table.add_row(r['what'], f'{r["ours"]:.3f} s', theirs, f'{r["ratio"]:.2f}x', f'{r["goal"] or ""}', share)
    table.add_row(
        'peak memory, B0 training step, batch 8',
        f'{memory["ours"] / 1e9:.2f} GB',
        f'mmseg {memory["stock"] / 1e9:.2f} GB',
        f'{memory["ours"] / memory["stock"]:.2f}x',
        '<= 0.6',
        '',
    )
    console.print(table)
    console.print(f'matrix rate (2048 x 2048 x 2048, fp32): {rate / 1e9:.0f} GFLOP/s')
    write_json(args.work_dir / 'model.json', dict(device=where, matrix_rate=rate, rows=rows, peak_memory=memory))


if __name__ == '__main__':
    main()
