"""Compare data loading with mmseg's on synthetic ROIs of 2000 x 2400 px: reading, pipeline, rare classes, memory, preparing.

    python benchmarks/data_loading.py [--work-dir work_dirs/benchmarks/data] [--rois 80] [--quick]

Prints one table and writes data_loading.json next to the data. Speedups are ratios of medians of alternating runs; reading
and pipelines run on one core.
"""

import argparse
import contextlib
import itertools
import os
import platform
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmseg.registry import DATASETS
from PIL import Image
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import mmseg_ignite  # noqa: F401  registers the parts
from mmseg_ignite.datasets.crop_stream import CropStream
from mmseg_ignite.environment import cores
from mmseg_ignite.files import write_json
from mmseg_ignite.labels import count_classes
from mmseg_ignite.preparation import prepare, read_index, write_synthetic_release

RARE, SHARE = 14, 0.001
DEFAULTS = Path(__file__).parents[1] / 'configs' / '_base_' / 'datasets' / 'ignite.py'
STOCK_LOADING = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', reduce_zero_label=False),
    dict(type='RandomCrop', crop_size=(512, 512), cat_max_ratio=0.75),
]
STOCK_PIPELINE = [
    *STOCK_LOADING,
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """Pin the process to one core, and OpenCV and torch to one thread."""
    affinity, threads = os.sched_getaffinity(0), (cv2.getNumThreads(), torch.get_num_threads())
    os.sched_setaffinity(0, {min(affinity)})
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        os.sched_setaffinity(0, affinity)
        cv2.setNumThreads(threads[0])
        torch.set_num_threads(threads[1])


def alternately(first: Callable, second: Callable, counts: tuple[int, int], rounds: int) -> tuple[float, float]:
    """Return the median seconds per call of both, measured in turn; the calls get consecutive numbers."""
    times: tuple[list, list] = ([], [])
    numbers = itertools.count()
    for _ in range(rounds):
        for call, count, found in zip((first, second), counts, times):
            begin = time.perf_counter()
            for number in itertools.islice(numbers, count):
                call(number)
            found.append((time.perf_counter() - begin) / count)
    return statistics.median(times[0]), statistics.median(times[1])


def crop_dataset(data: Path, extra: tuple = (), **crops) -> object:
    """Return the training data set of the default config on the benchmark's data."""
    cfg = Config.fromfile(str(DEFAULTS))
    dataset = cfg.train_dataloader.dataset
    dataset.update(data_root=str(data), crops={**cfg.crops, **crops})
    dataset.pipeline = [*extra, *dataset.pipeline]
    return DATASETS.build(dataset)


def measure_reading(release: Path, data: Path, rounds: int) -> list[tuple]:
    """Time reading one 512 px crop with its labels, then the whole pipelines."""
    names = [r['name'] for r in read_index(data)['rois']]

    def samples(pipeline: list) -> Callable:
        compose = Compose(pipeline)

        def call(number: int) -> None:
            name = names[number % len(names)]
            compose(
                dict(
                    img_path=str(release / 'images' / 'he' / f'{name}.png'),
                    seg_map_path=str(release / 'annotations' / 'he' / f'{name}.png'),
                    label_map=None,
                    reduce_zero_label=False,
                    seg_fields=[],
                )
            )

        return call

    plain = CropStream(data, read_index(data)['rois'], (512, 512))
    default = crop_dataset(data)
    macenko = crop_dataset(data, (dict(type='MacenkoAugment'),))
    with one_core():
        read, stock_read = alternately(lambda n: plain.read(0, n), samples(STOCK_LOADING), (200, 8), rounds)
        ours, stock = alternately(lambda n: default[(0, n)], samples(STOCK_PIPELINE), (100, 8), rounds)
        more, _ = alternately(lambda n: macenko[(0, n)], samples(STOCK_PIPELINE), (100, 1), rounds)

    baseline = f'{1 / stock:.1f} crops/s'
    return [
        (
            'read a 512 px crop and its labels',
            f'{read * 1e3:.2f} ms',
            f'{stock_read * 1e3:.1f} ms',
            stock_read / read,
            '100x',
        ),
        ('default pipeline, one core', f'{1 / ours:.0f} crops/s', baseline, stock / ours, '120/s, 10x'),
        ('the same with MacenkoAugment', f'{1 / more:.0f} crops/s', baseline, stock / more, ''),
    ]


def measure_classes(data: Path, draws: int) -> list[tuple]:
    """Measure how often crops have a rare class, and how close uniform sampling comes to the pixel shares."""
    rois = read_index(data)['rois']
    pixels = np.sum([r['pixels'] for r in rois], 0)
    shares = pixels / pixels.sum()
    rows, defaults = [], Config.fromfile(str(DEFAULTS)).crops
    for title, arguments, wanted in (
        ('rare class, default crops', {}, '>= 5 %'),
        ('rare class, uniform sampling', dict(class_probability=0.0), ''),
    ):
        stream = CropStream(data, rois, **{**defaults, **arguments})
        present = np.mean([(stream.read(1, n, False)['gt_seg_map'] == RARE - 1).any() for n in range(draws)])
        rows.append((title, f'in {present:.1%} of crops', f'{shares[RARE - 1]:.2%} of pixels', None, wanted))
    for border in ('mirror', 'ignore'):
        stream = CropStream(data, rois, **{**defaults, 'class_probability': 0.0, 'border': border})
        crops = np.stack([count_classes(stream.read(2, n, False)['gt_seg_map']) for n in range(draws)])
        found = crops.sum(0) / crops.sum()
        error = (crops - crops.sum(1, keepdims=True) * found).std(0) / crops.sum(1).mean() / np.sqrt(draws)
        z = np.abs(found - shares) / error
        text = f'largest of 16 deviations {z.max():.1f} standard errors'
        goal = '<= 3.5' if border == 'mirror' else ''
        rows.append((f'p = 0, border {border}', text, f'mean {np.mean(z):.1f}', None, goal))
    return rows


def resident(pid: int) -> float:
    """Return the resident memory of a process, MB."""
    return int(Path(f'/proc/{pid}/statm').read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE') / 1e6


def measure_memory(data: Path, crops: int, console: Console) -> list[tuple]:
    """Measure the growth of two workers' resident memory while they read and augment crops.

    Workers hold unfinished batches, so compare medians: over the second and the last twentieth of the crops.
    """
    cfg = Config.fromfile(str(DEFAULTS)).train_dataloader
    cfg.update(num_workers=2, batch_size=8, pin_memory=False)
    cfg.dataset.update(data_root=str(data))
    loader = Runner.build_dataloader(cfg, seed=0)
    batches, used = iter(loader), []
    begin = time.perf_counter()
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task('crops by two workers', total=crops)
        for _ in range(crops // 8):
            next(batches)
            used.append([resident(w.pid) for w in batches._workers])
            progress.advance(task, 8)
    rate = crops / (time.perf_counter() - begin)
    window = len(used) // 20
    settled = np.median(used[window : 2 * window], 0)
    growth = (np.median(used[-window:], 0) - settled).max()
    peak = np.max(used[2 * window :] - settled)
    ours = f'{growth:+.1f} MB, peak {peak:+.0f} MB'
    return [(f'worker memory over {crops:,} crops', ours, f'{rate:.0f} crops/s', None, '< 20 MB')]


def measure_preparing(release: Path, work: Path, rounds: int) -> list[tuple]:
    """Compare the whole preparation with only decoding the same PNGs, on all cores."""
    paths = sorted((release / 'images' / 'he').glob('*.png')) + sorted((release / 'annotations' / 'he').glob('*.png'))
    wall: tuple[list, list] = ([], [])
    busy = []
    for _ in range(rounds):
        shutil.rmtree(work / 'fresh', ignore_errors=True)
        begin, cpu = time.perf_counter(), time.process_time()
        index = prepare(release, work / 'fresh', console=Console(quiet=True))
        wall[0].append(time.perf_counter() - begin)
        busy.append((time.process_time() - cpu) / wall[0][-1] / cores())
        begin = time.perf_counter()
        with ThreadPoolExecutor(cores()) as pool:
            list(
                pool.map(
                    lambda p: np.asarray(Image.open(p)) if p.parts[-3] == 'annotations' else cv2.imread(str(p)), paths
                )
            )
        wall[1].append(time.perf_counter() - begin)
    shutil.rmtree(work / 'fresh', ignore_errors=True)
    ours, plain = (len(index['rois']) / statistics.median(w) for w in wall)
    return [
        ('prepare, with context', f'{ours:.2f} ROIs/s', f'decode {plain:.2f} ROIs/s', ours / plain, ''),
        ('cores busy while preparing', f'{statistics.median(busy):.0%}', f'{cores()} cores', None, '>= 90 %'),
    ]


def build(work: Path, rois: int, console: Console) -> tuple[Path, Path]:
    """Return the release and the prepared data set, which are kept for the next run."""
    release, data = work / f'release_{rois}', work / f'ignite_{rois}'
    if not (release / 'data_overview.csv').is_file():
        with Progress(console=console) as progress:
            task = progress.add_task('generating ROIs', total=rois)
            write_synthetic_release(
                release,
                rois,
                max(5, rois // 2),
                (2000, 2400),
                0,
                rare=(RARE, SHARE),
                on_progress=lambda: progress.advance(task),
            )
    prepare(release, data, console=Console(quiet=True))
    return release, data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/benchmarks/data'))
    parser.add_argument('--rois', type=int, default=80)
    parser.add_argument('--quick', action='store_true', help='a tenth of the work, to check that it runs')
    args = parser.parse_args()
    console, share = Console(), 10 if args.quick else 1
    init_default_scope('mmseg')
    release, data = build(args.work_dir, args.rois, console)
    rows = []
    for title, measure in (
        ('reading', lambda: measure_reading(release, data, 3 if args.quick else 9)),
        ('classes', lambda: measure_classes(data, 10_000 // share)),
        ('memory', lambda: measure_memory(data, 20_000 // share, console)),
        ('preparing', lambda: measure_preparing(release, args.work_dir, 1 if args.quick else 3)),
    ):
        console.print(f'{title} ...')
        rows += measure()
    columns = ('what', 'ours', 'compared with', 'ratio', 'goal')
    table = Table(*columns, title=f'data loading, {platform.machine()}, {cores()} cores')
    for what, ours, baseline, ratio, goal in rows:
        table.add_row(what, ours, baseline, f'{ratio:.1f}x' if ratio else '', goal)
    console.print(table)
    write_json(args.work_dir / 'data_loading.json', [dict(zip(columns, row)) for row in rows])
    console.print(f'written: {args.work_dir / "data_loading.json"}')


if __name__ == '__main__':
    main()
