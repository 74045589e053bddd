"""Time and memory of our sliding windows and mmseg's for growing images; SegFormer-B0, crop 512, stride 384.

    python benchmarks/sliding.py [--device cuda] [--rounds 3] [--work-dir work_dirs/benchmarks/sliding]

Stock is mmseg's EncoderDecoder with its own model parts. Each contestant runs in its own process with the settings of its
users: ours keeps freed memory like our tools, stock uses the system allocator. Contestants alternate; ratios are of medians.
Memory is the peak of a new process: memory allocated by torch on a GPU, resident memory without image and label map on a CPU.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from contestants import Contestant, alternately, serve
from mmengine.config import ConfigDict
from model import build, peak_increase
from rich.console import Console
from rich.table import Table
from torch import nn

from mmseg_ignite.engine.allocator import keep_freed_memory
from mmseg_ignite.files import write_json

TILING = dict(mode='slide', crop_size=(512, 512), stride=(384, 384))
STOCK_SIZES = {(1962, 2405): '>= 3', (4096, 4096): '>= 6'}
MEMORY_SIZES = {(4096, 4096): '', (16384, 16384): '<= 1.5 GB'}


def segmentor(stock: bool, device: str, **test_cfg: object) -> nn.Module:
    """Build SegFormer-B0 with sliding windows, ours or mmseg's."""
    model = build(0, stock, device).eval()
    model.test_cfg = ConfigDict(**TILING, **test_cfg)
    return model


def labelling(model: nn.Module, device: str) -> Callable[[int, int], Callable[[], None]]:
    """Return a function from an image size to a call that labels a preprocessed image, as tools/test.py does."""

    def of_size(height: int, width: int) -> Callable[[], None]:
        def call() -> None:
            image = torch.rand(1, 3, height, width, device=device)
            with torch.inference_mode():
                model.predict(image)

        return call

    return of_size


def compete(name: str, device: str) -> None:
    """Run as the contestant 'stock', 'ours', or 'ours-8' with that many symmetries."""
    kind, _, number = name.partition('-')
    if kind == 'ours':
        keep_freed_memory()
    test_cfg = dict(symmetries=int(number)) if number else {}
    of_size = labelling(segmentor(kind == 'stock', device, **test_cfg), device)
    sizes = [*STOCK_SIZES, (8192, 8192), (2000, 2400)]
    serve({f'{h} x {w}': of_size(h, w) for h, w in sizes}, device)


def row(what: str, ours: float, baseline: str, theirs: float, ratio: float, goal: str) -> dict:
    return dict(what=what, ours=f'{ours:.2f} s', baseline=f'{baseline} {theirs:.2f} s', ratio=ratio, goal=goal)


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


def compete_for_memory(height: int, width: int, number: int, device: str) -> None:
    """Report the memory for labelling an image, without the image and its label map."""
    tile = np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)
    image, labels = np.empty((height, width, 3), np.uint8), np.ones((height, width), np.uint8)
    for top in range(0, height, 256):  # by strips, to allocate nothing but the image
        strip = image[top : top + 256]
        strip[:] = np.tile(tile, (1, -(-width // 256), 1))[: len(strip), :width]
    keep_freed_memory()

    def label() -> None:
        model = segmentor(False, device, symmetries=number)
        with torch.inference_mode():
            model.label_image(image, out=labels)

    serve(dict(memory=lambda: peak_increase(label, device)), device)


def memory(size: tuple[int, int], number: int, device: str) -> float:
    arguments = ('--contestant', 'memory', '--memory-of', *size, number, '--device', device)
    with Contestant(*arguments) as contestant:
        return contestant.call('memory')


def memory_rows(device: str, console: Console) -> list[dict]:
    rows = []
    for size, goal in MEMORY_SIZES.items():
        console.print(f'memory at {size[0]} x {size[1]} ...')
        found = f'{memory(size, 1, device) / 1e9:.2f} GB'
        rows.append(dict(what=f'memory, {size[0]} x {size[1]}', ours=found, baseline='', ratio=None, goal=goal))
    console.print('memory of 8 symmetries ...')
    extra = f'{(memory((2000, 2400), 8, device) - memory((2000, 2400), 1, device)) / 1e6:+.0f} MB'
    what = 'memory, 8 symmetries, 2000 x 2400'
    return [*rows, dict(what=what, ours=extra, baseline='plain', ratio=None, goal='< 300 MB')]


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
    table = Table('', 'ours', 'baseline', 'ratio', 'goal', title=f'Sliding windows, SegFormer-B0, on {where}')
    for r in rows:
        table.add_row(r['what'], r['ours'], r['baseline'], f'{r["ratio"]:.2f}x' if r['ratio'] else '', r['goal'])
    console.print(table)
    write_json(args.work_dir / 'sliding.json', dict(device=where, rows=rows))


if __name__ == '__main__':
    main()
