"""Our sliding windows beside mmseg's: time, memory, and how both grow with the image. SegFormer-B0, crop 512, stride 384.

    python benchmarks/sliding.py [--device cuda] [--rounds 3] [--work-dir work_dirs/benchmarks/sliding]

Stock is mmseg's EncoderDecoder with its own model parts. Every contestant is a process of its own, set up as its user's is:
ours keeps freed memory as our tools do, stock has the system's allocator. Each round calls every contestant once, in turn;
ratios are of medians. Memory is the peak of a fresh process: on a GPU what torch allocated, on a CPU resident memory above
image and label map, with model and windows.
"""

import argparse
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from contestants import Contestant, alternately, serve
from mmengine.config import ConfigDict
from model import build
from rich.console import Console
from rich.table import Table
from torch import nn

from mmseg_ignite.engine.allocator import keep_freed_memory
from mmseg_ignite.files import write_json

TILING = dict(mode='slide', crop_size=(512, 512), stride=(384, 384))
STOCK_SIZES = {(1962, 2405): '>= 3', (4096, 4096): '>= 6'}
MEMORY_SIZES = {(4096, 4096): '', (16384, 16384): '<= 1.5 GB'}


def segmentor(stock: bool, device: str, **test_cfg: object) -> nn.Module:
    """SegFormer-B0 with sliding windows, ours or mmseg's."""
    model = build(0, stock, device).eval()
    model.test_cfg = ConfigDict(**TILING, **test_cfg)
    return model


def labelling(model: nn.Module, device: str) -> Callable[[int, int], Callable[[], None]]:
    """Calls that label one preprocessed image of a size, as tools/test.py does."""

    def of_size(height: int, width: int) -> Callable[[], None]:
        def call() -> None:
            image = torch.rand(1, 3, height, width, device=device)
            with torch.inference_mode():
                model.predict(image)

        return call

    return of_size


def compete(name: str, device: str) -> None:
    """Be a contestant: 'stock', 'ours', or 'ours-8' with that many symmetries."""
    kind, _, number = name.partition('-')
    if kind == 'ours':
        keep_freed_memory()
    test_cfg = dict(symmetries=int(number)) if number else {}
    of_size = labelling(segmentor(kind == 'stock', device, **test_cfg), device)
    sizes = [*STOCK_SIZES, (8192, 8192), (2000, 2400)]
    serve({f'{h} x {w}': of_size(h, w) for h, w in sizes}, device)


def row(what: str, ours: float, beside: str, theirs: float, ratio: float, goal: str) -> dict:
    return dict(what=what, ours=f'{ours:.2f} s', beside=f'{beside} {theirs:.2f} s', ratio=ratio, goal=goal)


def time_rows(rounds: int, device: str, console: Console) -> list[dict]:
    ours, stock, tta = (Contestant('--contestant', name, '--device', device) for name in ('ours', 'stock', 'ours-8'))
    rows = []
    with ours, stock, tta:
        for (height, width), goal in STOCK_SIZES.items():
            name = f'{height} x {width}'
            console.print(f'{name} ...')
            seconds = alternately(dict(ours=(ours, name), stock=(stock, name)), rounds)
            ratio = seconds['stock'] / seconds['ours']
            rows.append(row(name, seconds['ours'], 'mmseg', seconds['stock'], ratio, goal))
        console.print('8192 x 8192 ...')
        four, eight = '4096 x 4096', '8192 x 8192'
        seconds = alternately({four: (ours, four), eight: (ours, eight)}, rounds)
        rows.append(row(eight, seconds[eight], four, seconds[four], seconds[eight] / seconds[four], '<= 4.3'))
        console.print('8 symmetries ...')
        size = '2000 x 2400'
        seconds = alternately(dict(plain=(ours, size), tta=(tta, size)), rounds)
        ratio = seconds['tta'] / seconds['plain']
        rows.append(row(f'8 symmetries, {size}', seconds['tta'], 'plain', seconds['plain'], ratio, '<= 8.3'))
    return rows


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


def compete_for_memory(height: int, width: int, number: int, device: str) -> None:
    """Say what labelling an image takes above the image and its label map."""
    tile = np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)
    image, labels = np.empty((height, width, 3), np.uint8), np.ones((height, width), np.uint8)
    for top in range(0, height, 256):  # by strips, so that nothing but the image itself is there before
        strip = image[top : top + 256]
        strip[:] = np.tile(tile, (1, -(-width // 256), 1))[: len(strip), :width]
    keep_freed_memory()

    def measure() -> int:
        watch = PeakResident()
        watch.start()
        model = segmentor(False, device, symmetries=number)
        with torch.inference_mode():
            model.label_image(image, out=labels)
        peak = watch.stop()
        return torch.cuda.max_memory_allocated() if device.startswith('cuda') else peak

    serve(dict(memory=measure), device)


def memory(size: tuple[int, int], number: int, device: str) -> float:
    arguments = ('--contestant', 'memory', '--memory-of', *size, number, '--device', device)
    with Contestant(*arguments) as contestant:
        return contestant.call('memory')


def memory_rows(device: str, console: Console) -> list[dict]:
    rows = []
    for size, goal in MEMORY_SIZES.items():
        console.print(f'memory at {size[0]} x {size[1]} ...')
        found = f'{memory(size, 1, device) / 1e9:.2f} GB'
        rows.append(dict(what=f'memory, {size[0]} x {size[1]}', ours=found, beside='', ratio=None, goal=goal))
    console.print('memory of 8 symmetries ...')
    extra = f'{(memory((2000, 2400), 8, device) - memory((2000, 2400), 1, device)) / 1e6:+.0f} MB'
    what = 'memory, 8 symmetries, 2000 x 2400'
    return [*rows, dict(what=what, ours=extra, beside='plain', ratio=None, goal='< 300 MB')]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/benchmarks/sliding'))
    parser.add_argument('--contestant', help=argparse.SUPPRESS)
    parser.add_argument('--memory-of', type=int, nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory_of:
        compete_for_memory(*args.memory_of, args.device)
        return
    if args.contestant:
        compete(args.contestant, args.device)
        return
    console = Console()
    where = torch.cuda.get_device_name() if args.device.startswith('cuda') else f'{torch.get_num_threads()} cores'
    rows = [*time_rows(args.rounds, args.device, console), *memory_rows(args.device, console)]
    table = Table('', 'ours', 'beside', 'ratio', 'goal', title=f'Sliding windows, SegFormer-B0, on {where}')
    for r in rows:
        table.add_row(r['what'], r['ours'], r['beside'], f'{r["ratio"]:.2f}x' if r['ratio'] else '', r['goal'])
    console.print(table)
    write_json(args.work_dir / 'sliding.json', dict(device=where, rows=rows))


if __name__ == '__main__':
    main()
