"""Profile of our SegFormer: share of each kind of operation in the time, 2 x 3 x 512 x 512.

python benchmarks/model_profile.py [--device cuda] [--sizes 0 5] [--work-dir work_dirs/benchmarks/model_profile]
"""

import argparse
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from model import build, forward, samples, training_step
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

from mmseg_ignite.engine.allocator import keep_freed_memory
from mmseg_ignite.files import write_json

KINDS = {
    'convolutions and linear layers': ('convolution', 'cudnn', 'mm'),
    'attention': ('scaled_dot_product', 'efficient_attention', 'flash_attention'),
    'normalisation': ('layer_norm', 'batch_norm'),
    'GELU and ReLU': ('gelu', 'clamp_min', 'threshold', 'relu'),
    'resizing': ('upsample',),
    'softmax and its loss': ('softmax', 'gather', 'scatter', 'exp_', 'amax'),
    'sums and products': ('add', 'mul', 'sum', 'div', 'sub'),
    'copies': ('copy_', 'cat', 'fill_'),
}
CALLS = 4


def shares(call: Callable[[], None], device: str) -> tuple[float, dict[str, float]]:
    """Return the milliseconds of a call under the profiler, and the share of each kind of operation."""
    for _ in range(2):
        call()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.startswith('cuda') else [])]
    with profile(activities=activities) as recorded:
        for _ in range(CALLS):
            call()
    spent: Counter[str] = Counter()
    for event in recorded.key_averages():
        time = event.self_device_time_total if device.startswith('cuda') else event.self_cpu_time_total
        kind = next((k for k, words in KINDS.items() if any(word in event.key for word in words)), 'rest')
        spent[kind] += time
    total = spent.total()
    return total / CALLS / 1000, {kind: time / total for kind, time in spent.most_common()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--sizes', type=int, nargs='+', default=[0, 5])
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/benchmarks/model_profile'))
    args = parser.parse_args()
    keep_freed_memory()
    profiles = {}
    for size in args.sizes:
        model = build(size, False, args.device)
        images = torch.randn(2, 3, 512, 512, device=args.device)
        calls = {
            'forward': forward(model, images),
            'forward in bf16': forward(model, images, torch.bfloat16),
            'training step': training_step(model, images, samples(2, args.device)),
        }
        profiles |= {f'B{size} {what}': shares(call, args.device) for what, call in calls.items()}
    table = Table('', *profiles)
    table.add_row('ms', *(f'{time:.0f}' for time, _ in profiles.values()))
    for kind in (*KINDS, 'rest'):
        table.add_row(kind, *(f'{share.get(kind, 0):.0%}' for _, share in profiles.values()))
    Console(width=160).print(table)
    write_json(args.work_dir / 'model_profile.json', {k: dict(ms=t, shares=s) for k, (t, s) in profiles.items()})


if __name__ == '__main__':
    main()
