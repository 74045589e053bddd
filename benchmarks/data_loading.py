"""Compare data loading with mmseg's on synthetic ROIs of 2000 x 2400 px: reading, pipeline, rare classes, memory, preparing.

    python benchmarks/data_loading.py [--work-dir work_dirs/benchmarks/data] [--rois 80] [--quick]
    python benchmarks/data_loading.py --only loader [--device cuda] [--workers 4]

Prints one table and writes data_loading.json next to the data. Speedups are ratios of medians of alternating runs; reading
and pipelines run on one core. The part ``loader`` measures the data loader of a training alone, and its batches of 8 on the
device, normalised: as mmseg collates, packs and prepares them, and as our configs do, with and without ``defer_colours``.
"""

import argparse
import contextlib
import functools
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
from mmseg.registry import DATASETS, MODELS
from PIL import Image
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch.utils.data import DataLoader

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


KINDS = dict(mmseg=(False, False), ours=(True, False), deferred=(True, True))
"""Whether samples are packed, collated and prepared by our parts, and whether the device changes the colours."""


def training_loader(data: Path, kind: str, workers: int, pin: bool) -> DataLoader:
    """Return the data loader of the default config."""
    cfg = Config.fromfile(str(DEFAULTS))
    settings = cfg.train_dataloader
    settings.update(num_workers=workers, persistent_workers=False, pin_memory=pin)
    ours, deferred = KINDS[kind]
    settings.dataset.update(data_root=str(data), crops=cfg.crops, defer_colours=deferred)
    if not ours:
        settings.collate_fn = dict(type='pseudo_collate')
        settings.dataset.pipeline[-1].type = 'PackSegInputs'
    return Runner.build_dataloader(settings, seed=0)


def preprocessor(kind: str, device: torch.device) -> torch.nn.Module:
    """Return the data preprocessor of the default model, or mmseg's."""
    settings = Config.fromfile(str(DEFAULTS.parents[1] / 'models' / 'segformer_mit-b0.py')).data_preprocessor
    settings.update(size=(512, 512), type='TissueDataPreProcessor' if KINDS[kind][0] else 'SegDataPreProcessor')
    return MODELS.build(settings).to(device)


def crops_per_second(loader: DataLoader, use: Callable[[dict], object], batches: int) -> float:
    """Return the crops that arrive in a second, from the second batch on."""
    begin = 0.0
    for number, batch in enumerate(itertools.islice(loader, batches + 1)):
        use(batch)
        if not number:
            begin = time.perf_counter()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return batches * len(batch['inputs']) / (time.perf_counter() - begin)


def milliseconds(call: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Return the median duration of a call, until the device has finished."""
    times = []
    for _ in range(repeats + 2):
        begin = time.perf_counter()
        call()
        if device.type == 'cuda':
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - begin)
    return statistics.median(times[2:]) * 1e3


def measure_loader(data: Path, device: torch.device, workers: int, batches: int, rounds: int) -> list[tuple]:
    """Measure the loader with one worker alone, the preparation of a batch, and batches on the device."""
    on_gpu, rows = device.type == 'cuda', []
    prepare = {kind: preprocessor(kind, device) for kind in KINDS}
    for title, count, users in (
        ('loader alone, one worker', 1, dict.fromkeys(KINDS, len)),
        (
            f'normalised on {device.type}, workers: {workers}',
            workers,
            {kind: functools.partial(prepare[kind], training=True) for kind in KINDS},
        ),
    ):
        found: dict[str, list] = {kind: [] for kind in KINDS}
        for _ in range(rounds):
            for kind, use in users.items():
                loader = training_loader(data, kind, count, on_gpu and title.startswith('normalised'))
                found[kind].append(crops_per_second(loader, use, batches))
        rates = {kind: statistics.median(each) for kind, each in found.items()}
        for kind in ('ours', 'deferred'):
            ratio = rates[kind] / rates['mmseg']
            rows.append((f'{title}: {kind}', f'{rates[kind]:.0f} crops/s', f'{rates["mmseg"]:.0f} crops/s', ratio, ''))
    spent = {}
    for kind in KINDS:
        batch = next(iter(training_loader(data, kind, 1, on_gpu)))
        spent[kind] = milliseconds(lambda: prepare[kind](batch, True), device, 5 * rounds)  # noqa: B023
    for kind in ('ours', 'deferred'):
        title = f'prepare a batch of 8 on {device.type}: {kind}'
        rows.append((title, f'{spent[kind]:.2f} ms', f'{spent["mmseg"]:.2f} ms', spent['mmseg'] / spent[kind], ''))
    return rows


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
    loader = training_loader(data, 'ours', 2, False)
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
    parser.add_argument(
        '--only', choices=('reading', 'loader', 'classes', 'memory', 'preparing'), help='measure one part'
    )
    parser.add_argument('--device', type=torch.device, default=torch.device('cpu'), help='of the prepared batches')
    parser.add_argument('--workers', type=int, default=min(4, cores()), help='of the loader of these batches')
    parser.add_argument('--quick', action='store_true', help='a tenth of the work, to check that it runs')
    args = parser.parse_args()
    console, share = Console(), 10 if args.quick else 1
    init_default_scope('mmseg')
    release, data = build(args.work_dir, args.rois, console)
    rows = []
    for title, measure in (
        ('reading', lambda: measure_reading(release, data, 3 if args.quick else 9)),
        (
            'loader',
            lambda: measure_loader(data, args.device, args.workers, 12 if args.quick else 60, 3 if args.quick else 5),
        ),
        ('classes', lambda: measure_classes(data, 10_000 // share)),
        ('memory', lambda: measure_memory(data, 20_000 // share, console)),
        ('preparing', lambda: measure_preparing(release, args.work_dir, 1 if args.quick else 3)),
    ):
        if args.only in (None, title):
            console.print(f'{title} ...')
            rows += measure()
    columns = ('what', 'ours', 'compared with', 'ratio', 'goal')
    card = f', {torch.cuda.get_device_name(args.device)}' if args.device.type == 'cuda' else ''
    table = Table(*columns, title=f'data loading, {platform.machine()}, {cores()} cores{card}')
    for what, ours, baseline, ratio, goal in rows:
        table.add_row(what, ours, baseline, f'{ratio:.1f}x' if ratio else '', goal)
    console.print(table)
    write_json(args.work_dir / 'data_loading.json', [dict(zip(columns, row)) for row in rows])
    console.print(f'written: {args.work_dir / "data_loading.json"}')


if __name__ == '__main__':
    main()
