"""Time and memory of our SegFormer compared with mmseg's and Hugging Face's: forward pass and training step.

    python benchmarks/model.py [--device cuda] [--rounds 7] [--sizes 0 2 5] [--work-dir work_dirs/benchmarks/model]

Each contestant runs in its own process with the settings of its users: ours keeps freed memory like our tools, the others
use the system allocator. A second mmseg process with our allocator separates the effect of the model. Contestants alternate;
ratios are of medians. Hugging Face's model requires transformers. Memory is the increase of the peak of a new process during
one training step, with the system allocator. ``benchmarks/gpu.py`` measures more on a GPU, in one process.
"""

import argparse
import importlib.util
import logging
import resource
from collections.abc import Callable
from pathlib import Path

import torch
from contestants import Contestant, alternately, serve
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mmseg_ignite.apis import load_config
from mmseg_ignite.engine.allocator import keep_freed_memory
from mmseg_ignite.files import write_json

CONFIG = str(Path(__file__).parents[1] / 'configs/segformer/segformer_mit-b{}_1xb8-20k_ignite-512x512.py')
GOALS = {
    ('B0', 'forward', 'stock'): '>= 2.6',
    ('B0', 'step', 'stock'): '>= 2.4',
    ('B2', 'forward', 'stock'): '>= 1.9',
    ('B2', 'step', 'stock'): '>= 1.6',
    ('B5', 'forward', 'stock'): '>= 1.5',
    ('B5', 'step', 'stock'): '>= 1.35',
    ('B0', 'bf16', 'stock'): '>= 4.5',
    ('B0', 'forward', 'transformers'): '>= 2',
    ('B0', 'step', 'transformers'): '>= 2.6',
}
CONTESTANTS = ('ours', 'stock', 'stock-kept', 'transformers')


def build(size: int, stock: bool, device: str, **changes: object) -> nn.Module:
    """Build the segmentor of a config, ours or with mmseg's parts, with equal random weights.

    Args:
        size: 0 to 5 of MiT.
        stock: whether to take mmseg's parts.
        device: of the weights.
        **changes: settings of the decode head.
    """
    cfg = load_config(CONFIG.format(size)).model
    cfg.backbone.init_cfg, cfg.decode_head.norm_cfg = None, dict(type='BN')
    cfg.decode_head.loss_decode = dict(type='CrossEntropyLoss', avg_non_ignore=True)  # mmseg's, for all contestants
    for name, value in changes.items():
        cfg.decode_head[name] = value
    if stock:
        cfg.type, cfg.backbone.type, cfg.decode_head.type = 'EncoderDecoder', 'MixVisionTransformer', 'SegformerHead'
    init_default_scope('mmseg')
    logging.disable(logging.INFO)  # one line per weight
    torch.manual_seed(0)
    model = MODELS.build(cfg)
    model.init_weights()
    return model.to(device)


def has_transformers() -> bool:
    return importlib.util.find_spec('transformers') is not None


def build_hugging_face(device: str) -> nn.Module:
    """Build SegFormer-B0 of transformers, which has the same head of 256 channels."""
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    return SegformerForSemanticSegmentation(SegformerConfig(num_labels=16)).to(device)


def samples(count: int, device: str, side: int = 512) -> list[SegDataSample]:
    """Return samples with random labels."""
    return [
        SegDataSample(gt_sem_seg=PixelData(data=torch.randint(16, (1, side, side), device=device)))
        for _ in range(count)
    ]


def training_step(
    model: nn.Module, images: torch.Tensor, truth: list[SegDataSample], dtype: torch.dtype | None = None
) -> Callable[[], None]:
    """Return a call of forward, loss and backward of an mmseg segmentor or Hugging Face's model."""

    def step() -> None:
        model.train().zero_grad(set_to_none=True)
        with torch.autocast(images.device.type, dtype, enabled=dtype is not None):
            if hasattr(model, 'parse_losses'):
                loss, _ = model.parse_losses(model.loss(images, truth))
            else:
                loss = model(pixel_values=images, labels=torch.cat([s.gt_sem_seg.data for s in truth])).loss
        loss.backward()

    return step


def forward(model: nn.Module, images: torch.Tensor, dtype: torch.dtype | None = None) -> Callable[[], None]:
    """Return a call that computes the logits without gradients."""

    def call() -> None:
        model.eval()
        with torch.inference_mode(), torch.autocast(images.device.type, dtype, enabled=dtype is not None):
            model(images)

    return call


def operations(call: Callable[[], None]) -> Callable[[], int]:
    """Return a call that counts the floating-point operations of a call without gradients."""

    def count() -> int:
        with FlopCounterMode(display=False) as counter:
            call()
        return counter.get_total_flops()

    return count


def compete(name: str, size: int, device: str) -> None:
    """Run as a contestant."""
    if name in ('ours', 'stock-kept'):
        keep_freed_memory()
    model = build_hugging_face(device) if name == 'transformers' else build(size, name != 'ours', device)
    images = torch.randn(2, 3, 512, 512, device=device)
    calls = dict(
        forward=forward(model, images),
        step=training_step(model, images, samples(2, device)),
        bf16=forward(model, images, torch.bfloat16),
    )
    calls['operations'] = operations(calls['forward'])
    a = torch.randn(2048, 2048, device=device)
    calls['matrix'] = lambda: torch.mm(a, a)
    serve(calls, device)


def measure_size(size: int, rounds: int, device: str) -> list[dict]:
    """Measure forward pass and training step of one MiT size, 2 x 3 x 512 x 512."""
    names = [n for n in CONTESTANTS if n != 'transformers' or (size == 0 and has_transformers())]
    processes = {name: Contestant('--contestant', name, '--size', size, '--device', device) for name in names}
    ours, rows = processes['ours'], []
    for what in ('forward', 'step', *(['bf16'] if size == 0 else [])):
        calls = {name: (process, 'forward' if what == 'bf16' else what) for name, process in processes.items()}
        calls['ours'] = (ours, what)
        calls['matrix'] = (ours, 'matrix')
        seconds = alternately(calls, rounds)
        rate = 2 * 2048**3 / seconds.pop('matrix')
        # A backward pass has the products of two forward passes; torch counts its depth-wise convolutions as full ones.
        passes = dict(forward=1, step=3, bf16=0)[what]
        share = passes * ours.call('operations') / seconds['ours'] / rate
        for name in names[1:]:
            goal = GOALS.get((f'B{size}', what, name))
            if what != 'bf16' or goal:
                times = dict(
                    ours=seconds['ours'], baseline=name, theirs=seconds[name], ratio=seconds[name] / seconds['ours']
                )
                rows.append(dict(size=f'B{size}', what=what, **times, goal=goal, matrix_share=share, matrix_rate=rate))
    for process in processes.values():
        process.close()
    return rows


def peak_memory(name: str, device: str) -> float:
    """Return the peak memory in bytes of a training step of B0 with batch 8 at 512."""
    with Contestant('--contestant', f'memory-{name}', '--device', device) as contestant:
        return contestant.call('memory')


def peak_increase(call: Callable[[], object], device: str) -> int:
    """Call a function and return the increase of the peak memory in bytes: allocated on a GPU, resident on a CPU."""
    if device.startswith('cuda'):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    call()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024


def compete_for_memory(name: str, device: str) -> None:
    model = build(0, name == 'stock', device)
    step = training_step(model, torch.randn(8, 3, 512, 512, device=device), samples(8, device))
    serve(dict(memory=lambda: peak_increase(step, device)), device)


def to_table(rows: list[dict], memory: dict[str, float], where: str) -> Table:
    table = Table(
        '', 'ours', 'baseline', 'theirs', 'ratio', 'goal', 'share of matrix rate', title=f'SegFormer on {where}'
    )
    names = dict(forward='forward', step='training step', bf16='forward in bf16 (mmseg: fp32)')
    for r in rows:
        share = f'{r["matrix_share"]:.0%}' if r['matrix_share'] else ''
        baseline = {'stock-kept': 'mmseg, our allocator', 'stock': 'mmseg'}.get(r['baseline'], r['baseline'])
        cells = [f'{r["ours"]:.3f} s', baseline, f'{r["theirs"]:.3f} s', f'{r["ratio"]:.2f}x', r['goal'] or '', share]
        table.add_row(f'{r["size"]} {names[r["what"]]}', *cells)
    ours, stock = memory['ours'], memory['stock']
    cells = [f'{ours / 1e9:.2f} GB', 'mmseg', f'{stock / 1e9:.2f} GB', f'{ours / stock:.2f}x', '<= 0.6', '']
    table.add_row('B0 training step, batch 8, peak memory', *cells)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--rounds', type=int, default=7)
    parser.add_argument('--sizes', type=int, nargs='+', default=[0, 2, 5])
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/benchmarks/model'))
    parser.add_argument('--contestant', help=argparse.SUPPRESS)
    parser.add_argument('--size', type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.contestant:
        kind, _, name = args.contestant.partition('memory-')
        compete(kind, args.size, args.device) if kind else compete_for_memory(name, args.device)
        return
    console, rows = Console(), []
    where = torch.cuda.get_device_name() if args.device.startswith('cuda') else f'{torch.get_num_threads()} cores'
    for size in args.sizes:
        console.print(f'B{size} ...')
        rows += measure_size(size, args.rounds, args.device)
    console.print('memory ...')
    memory = {name: peak_memory(name, args.device) for name in ('ours', 'stock')}
    console.print(to_table(rows, memory, where))
    console.print(f'matrix rate (2048 x 2048 x 2048, fp32): {rows[0]["matrix_rate"] / 1e9:.0f} GFLOP/s')
    write_json(args.work_dir / 'model.json', dict(device=where, rows=rows, peak_memory=memory))


if __name__ == '__main__':
    main()
