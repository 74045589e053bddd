"""Our sliding windows beside mmseg's: time, memory, and how both grow with the image. SegFormer-B0, crop 512, stride 384.

    python benchmarks/sliding.py [--device cuda] [--rounds 3] [--work-dir work_dirs/benchmarks/sliding]

Stock is mmseg's EncoderDecoder with its own model parts. Each round runs every contestant once, in turn; ratios are of
medians. Memory is the peak of a process of its own: on a GPU what torch allocated above the image, on a CPU resident memory
above image and label map, model and batches of windows included.
"""

import argparse
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from model import alternately, build
from rich.console import Console
from rich.table import Table
from torch import nn

from mmseg_ignite.files import write_json

TILING = dict(mode='slide', crop_size=(512, 512), stride=(384, 384))


def segmentor(stock: bool, device: str, **test_cfg: object) -> nn.Module:
    """SegFormer-B0 with sliding windows, ours or mmseg's."""
    model = build(0, stock, device).eval()
    model.test_cfg = {**TILING, **test_cfg}
    return model


def labelling(model: nn.Module, size: 'tuple[int, int]', device: str) -> Callable[[], None]:
    """Label one preprocessed image, as tools/test.py does."""
    image = torch.rand(1, 3, *size, device=device)

    def call() -> None:
        with torch.inference_mode():
            model.predict(image)

    return call


def compare_with_stock(
    sizes: 'dict[tuple[int, int], float]', rounds: int, device: str, console: Console
) -> 'list[dict]':
    ours, stock = segmentor(False, device), segmentor(True, device)
    rows = []
    for size, goal in sizes.items():
        console.print(f'{size[0]} x {size[1]} beside stock ...')
        calls = dict(ours=labelling(ours, size, device), stock=labelling(stock, size, device))
        seconds = alternately(calls, rounds, device)
        rows.append(
            dict(
                what=f'{size[0]} x {size[1]}',
                ours=f'{seconds["ours"]:.2f} s',
                beside=f'stock {seconds["stock"]:.2f} s',
                ratio=seconds['stock'] / seconds['ours'],
                goal=f'>= {goal:g}',
            )
        )
    return rows


def growth(rounds: int, device: str) -> dict:
    """Time at 8192 x 8192 over that at 4096 x 4096, which has a quarter of the area."""
    model = segmentor(False, device)
    seconds = alternately({str(n): labelling(model, (n, n), device) for n in (4096, 8192)}, rounds, device)
    return dict(
        what='8192 x 8192 over 4096 x 4096',
        ours=f'{seconds["8192"]:.2f} s',
        beside=f'{seconds["4096"]:.2f} s',
        ratio=seconds['8192'] / seconds['4096'],
        goal='<= 4.3',
    )


def symmetries(rounds: int, device: str) -> dict:
    """Averaging over the 8 symmetries beside predicting once."""
    plain, tta = segmentor(False, device), segmentor(False, device, symmetries=8)
    calls = dict(plain=labelling(plain, (2000, 2400), device), tta=labelling(tta, (2000, 2400), device))
    seconds = alternately(calls, rounds, device)
    return dict(
        what='8 symmetries, 2000 x 2400',
        ours=f'{seconds["tta"]:.2f} s',
        beside=f'plain {seconds["plain"]:.2f} s',
        ratio=seconds['tta'] / seconds['plain'],
        goal='<= 8.3',
    )


class PeakResident(threading.Thread):
    """The largest resident memory of this process, looked at 200 times a second, above that at the start; bytes."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.base = self.peak = self.resident()
        self.done = threading.Event()

    @staticmethod
    def resident() -> int:
        return int(Path('/proc/self/statm').read_text().split()[1]) * 4096

    def run(self) -> None:
        while not self.done.wait(0.005):
            self.peak = max(self.peak, self.resident())

    def stop(self) -> int:
        self.done.set()
        self.join()
        return max(self.peak, self.resident()) - self.base


def print_memory(side: 'tuple[int, int]', number: int, device: str) -> None:
    """Print the bytes that labelling an image takes, above the image and its label map."""
    torch.zeros(8, 8) @ torch.zeros(8, 8)  # what torch itself loads is nobody's image
    # uint8 values in a bounded array, so that drawing them takes no memory that would be counted.
    image = np.tile(np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8), (64, 64, 1))[
        : side[0], : side[1]
    ]
    image, labels = np.ascontiguousarray(image), np.ones(side, np.uint8)
    watch = PeakResident()
    watch.start()
    model = segmentor(False, device, symmetries=number)
    if device.startswith('cuda'):
        torch.cuda.reset_peak_memory_stats()
    with torch.inference_mode():
        model.label_image(image, out=labels)
    peak = watch.stop()
    print(json.dumps(torch.cuda.max_memory_allocated() if device.startswith('cuda') else peak))


def memory(side: 'tuple[int, int]', number: int, device: str) -> int:
    command = [sys.executable, __file__, '--memory-of', *map(str, (*side, number)), '--device', device]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f'measuring the memory failed:\n{done.stderr}')
    return int(done.stdout.strip().splitlines()[-1])


def memory_rows(device: str, console: Console) -> 'list[dict]':
    rows = []
    for side in ((4096, 4096), (16384, 16384)):
        console.print(f'memory at {side[0]} x {side[1]} ...')
        found = memory(side, 1, device)
        goal = '<= 1.5 GB' if side[0] == 16384 else ''
        rows.append(
            dict(what=f'memory, {side[0]} x {side[1]}', ours=f'{found / 1e9:.2f} GB', beside='', ratio=None, goal=goal)
        )
    console.print('memory of the symmetries ...')
    extra = memory((2000, 2400), 8, device) - memory((2000, 2400), 1, device)
    rows.append(
        dict(what='memory, 8 symmetries', ours=f'{extra / 1e6:+.0f} MB', beside='plain', ratio=None, goal='< 300 MB')
    )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/benchmarks/sliding'))
    parser.add_argument('--memory-of', type=int, nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory_of:
        *side, number = args.memory_of
        print_memory(tuple(side), number, args.device)
        return
    console = Console()
    where = torch.cuda.get_device_name() if args.device.startswith('cuda') else f'{torch.get_num_threads()} cores'
    rows = compare_with_stock({(1962, 2405): 3, (4096, 4096): 6}, args.rounds, args.device, console)
    console.print('8192 x 8192, symmetries ...')
    rows += [growth(args.rounds, args.device), symmetries(args.rounds, args.device), *memory_rows(args.device, console)]
    table = Table('what', 'ours', 'beside', 'ratio', 'goal', title=f'Sliding windows, SegFormer-B0, on {where}')
    for r in rows:
        table.add_row(r['what'], r['ours'], r['beside'], f'{r["ratio"]:.2f}x' if r['ratio'] else '', r['goal'])
    console.print(table)
    write_json(args.work_dir / 'sliding.json', dict(device=where, rows=rows))


if __name__ == '__main__':
    main()
