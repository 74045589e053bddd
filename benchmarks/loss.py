"""Time of the loss with its gradient: image by image, several images at once as by default, and the whole batch at once.

    python benchmarks/loss.py [--device cuda] [--rounds 9]

The three take turns; medians in milliseconds, one thread on a CPU.
"""

import argparse
import statistics
import sys
import time

import torch
from rich.console import Console
from rich.table import Table

from mmseg_ignite.models.losses import resized_loss

LIMITS = sys.modules[resized_loss.__module__].BYTES_AT_ONCE
BATCHES = ((4, 128), (8, 256), (8, 512), (16, 512))
"""Images and their side in px; 16 classes, logits of a quarter of the side."""


def seconds(logits: torch.Tensor, labels: torch.Tensor, limit: int) -> float:
    """Time the loss and its gradient with so many bytes at once."""
    LIMITS[logits.device.type] = limit
    begin = time.perf_counter()
    resized_loss(logits, labels, dice=1.0).total.backward()
    if logits.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--rounds', type=int, default=9)
    args = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(args.device)
    limits = {'one image': 1, 'default': LIMITS[device.type], 'whole batch': 1 << 40}
    table = Table('batch', *limits)
    for number, side in BATCHES:
        logits = torch.randn(number, 16, side // 4, side // 4, device=device, requires_grad=True)
        labels = torch.randint(16, (number, side, side), device=device)
        times: dict[str, list[float]] = {name: [] for name in limits}
        for _ in range(args.rounds + 1):  # the first is a warm-up
            for name, limit in limits.items():
                times[name].append(seconds(logits, labels, limit))
        medians = [f'{1e3 * statistics.median(found[1:]):.1f}' for found in times.values()]
        table.add_row(f'{number} x {side} x {side}', *medians)
    Console().print(table)


if __name__ == '__main__':
    main()
