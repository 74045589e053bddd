"""Ablation of the training recipe: trainings with equal time or equal iterations, scored in the same way.

    python benchmarks/recipe.py crossval --release RELEASE [--variants ...] [--seeds 4] [--seconds 150] [--equal iterations]
    python benchmarks/recipe.py crossval --release RELEASE --config CONFIG --weights FILE --device cuda --seconds 3600
    python benchmarks/recipe.py rare [--seeds 3] [--seconds 300]
    python benchmarks/recipe.py sixteen [--seconds 1200]

``crossval`` compares variants on all ROIs of a release, see recipe_crossval.py. It prints the expected duration, continues
after an interruption, and prints a table of all stored results. With --config and --weights it compares variants of a config
that starts from ImageNet weights. ``rare`` makes a synthetic release in which one class has 0.1 % of the pixels and reports
its recall with and without class-aware crops. ``sixteen`` trains on 60 synthetic ROIs with all classes.

``stock`` uses mmseg's model, loss, transforms and optimizer settings and the system's memory allocator. Each following
variant adds one change; the last, ``ours``, is the published config, and ours-NAME makes one change to it.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
from recipe_crossval import crossval, read_results
from recipe_crossval import run_one as run_crossval_one
from recipe_variants import CHANGES, LADDER, SCRATCH, configured, is_variant
from rich.console import Console
from rich.table import Table

from mmseg_ignite.apis import test, train
from mmseg_ignite.datasets.prepared import read_index
from mmseg_ignite.engine.allocator import keep_freed_memory
from mmseg_ignite.errors import IgniteError
from mmseg_ignite.labels import CLASSES
from mmseg_ignite.preparation import prepare, write_synthetic_release

RARE_CLASS = 16
"""Id of the rare class."""


def run_one(args: argparse.Namespace) -> None:
    """Train one variant and print its scores as a line of JSON."""
    if args.variant != 'stock':
        keep_freed_memory()
    cfg = configured(args.variant, SCRATCH, args.data, args.protocol, args.seed, args.work_dir)
    runner = train(cfg, minutes=args.seconds / 60, overwrite=True)
    # The last checkpoint does not depend on the validation patients, so they may be scored.
    found = test(cfg, args.work_dir, report=None, count_validation=False)
    trained = dict(variant=args.variant, seed=args.seed, seconds=args.seconds, iterations=runner.iter)
    pace = round(runner.iter * cfg.train_dataloader.batch_size / args.seconds, 2)
    print('result', json.dumps({**trained, 'crops_s': pace, 'load': round(os.getloadavg()[1], 2), **figures(found)}))


def figures(result: dict) -> dict:
    """Select the values of ``metrics.json`` that the tables show, in percent."""
    classes = {name: c for name, c in result['classes'].items() if c['pixels']}
    return dict(
        rois=result['rois'],
        mIoU=round(result['mIoU'], 1),
        mDice=round(result['mDice'], 1),
        acc=round(result['aAcc'], 1),
        IoU={name: round(c['IoU'], 1) for name, c in classes.items()},
        recall={name: round(c['Recall'], 1) for name, c in classes.items()},
    )


def rare(args: argparse.Namespace) -> None:
    """Compare the recall of a class with 0.1 % of the pixels between class-aware and uniform crops."""
    work_dir, crops = Path(args.work_dir), {'ours': 'class-aware', 'ours-uniform': 'uniform'}
    write_synthetic_release(work_dir / 'rare', rois=80, patients=20, size=(512, 512), seed=3, rare=(RARE_CLASS, 0.0006))
    data = prepared(work_dir / 'rare', work_dir / 'rare-ignite')
    pixels, name = np.sum([roi['pixels'] for roi in read_index(data)['rois']], 0), CLASSES[RARE_CLASS - 1]
    args.console.print(f'{name}: {100 * pixels[RARE_CLASS - 1] / pixels.sum():.2f} % of the pixels')
    results = run_all(args, data, 'official', [(v, seed) for seed in range(args.seeds) for v in crops])
    table = Table('crops', 'recall of the rare class, %', 'its IoU, %', 'mIoU, %')
    for variant, title in crops.items():
        found = [r for r in results if r['variant'] == variant]
        columns = ([r['recall'][name] for r in found], [r['IoU'][name] for r in found], [r['mIoU'] for r in found])
        table.add_row(title, *map(spread, columns))
    args.console.print(table)


def sixteen(args: argparse.Namespace) -> None:
    """Train on all classes of 60 synthetic ROIs, split by patient."""
    work_dir = Path(args.work_dir)
    write_synthetic_release(work_dir / 'sixteen', rois=60, patients=20, size=(384, 384), seed=2)
    data = prepared(work_dir / 'sixteen', work_dir / 'sixteen-ignite')
    for result in run_all(args, data, 'patient-8-1-1', [('ours', seed) for seed in range(args.seeds)]):
        worst = min(result['IoU'], key=result['IoU'].get)
        args.console.print(
            f'mIoU {result["mIoU"]}, {len(result["IoU"])} classes, lowest {worst} {result["IoU"][worst]}'
        )


def prepared(release: str | Path, out: Path) -> str:
    """Prepare a release unless that was done before; return the folder."""
    if not (out / 'index.json').is_file():
        prepare(release, out)
    return str(out)


def run_all(args: argparse.Namespace, data: str, protocol: str, jobs: list[tuple[str, int]]) -> list[dict]:
    """Return the results of variants and seeds; train those without a result, each in its own process."""
    done = {(r['variant'], r['seed'], r['seconds']) for r in read_results(args.out)}
    jobs = [job for job in jobs if (*job, args.seconds) not in done]
    args.console.print(f'{len(jobs)} trainings, about {len(jobs) * (args.seconds + 20) / 60:.0f} minutes.')
    for number, (variant, seed) in enumerate(jobs, 1):
        args.console.print(f'[{number}/{len(jobs)}] {variant}, seed {seed}, {args.seconds:g} s ...')
        work_dir = Path(args.work_dir) / 'run'
        shutil.rmtree(work_dir, ignore_errors=True)
        one = ['one', variant, seed, args.seconds, data, protocol, work_dir]
        command = [sys.executable, '-W', 'ignore', __file__, *map(str, one)]
        found = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        lines = [line.removeprefix('result ') for line in found.stdout.splitlines() if line.startswith('result ')]
        if found.returncode or not lines:
            sys.exit(f'{variant} failed with exit status {found.returncode}: see above.')
        with open(args.out, 'a', encoding='utf-8') as stream:
            stream.write(lines[0] + '\n')
        args.console.print('  mIoU {mIoU}, {crops_s} crops/s'.format(**json.loads(lines[0])))
    return [r for r in read_results(args.out) if r['seconds'] == args.seconds]


def spread(values: list[float]) -> str:
    """Format mean and range."""
    if not values:
        return '-'
    mean = statistics.mean(values)
    return f'{mean:.1f}' if len(values) == 1 else f'{mean:.1f} ({min(values):.1f}-{max(values):.1f})'


def variant(name: str) -> str:
    """Check the name of a variant."""
    if not is_variant(name):
        known = f'{", ".join(LADDER)}, or ours-NAME with NAME one of {", ".join(CHANGES)}'
        raise argparse.ArgumentTypeError(f'{name!r} is not a variant; choose {known}')
    return name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tasks = parser.add_subparsers(dest='task', required=True)
    for name, seconds, seeds in (('crossval', 150, 4), ('rare', 300, 3), ('sixteen', 1200, 1)):
        task = tasks.add_parser(name)
        task.add_argument('--seconds', type=float, default=seconds, help='duration of a training')
        task.add_argument('--seeds', type=int, default=seeds)
        task.add_argument('--work-dir', default='work_dirs/benchmarks/recipe')
        task.add_argument('--out', help='file of results (default: WORK_DIR/TASK.jsonl)')
    task = tasks.choices['crossval']
    task.add_argument('--release', required=True, help='folder in the layout of IGNITE')
    task.add_argument('--variants', nargs='*', default=['stock', '+model', 'ours'], type=variant, metavar='VARIANT',
                      help='without a value: only print the table of stored results')  # fmt: skip
    task.add_argument('--folds', type=int, default=3)
    task.add_argument('--only-folds', nargs='+', type=int, help='train these folds only')
    task.add_argument('--equal', choices=('time', 'iterations'), default='time')
    task.add_argument('--iterations', type=int, default=0, help='for --equal iterations (default: as many as stock)')
    task.add_argument('--config', default=SCRATCH, help='config of ours (default: the config for random weights)')
    task.add_argument('--weights', help='encoder weights, see tools/train.py')
    task.add_argument('--device', default='cpu', choices=('cpu', 'cuda'))
    task.add_argument('--at-once', type=int, help='parallel trainings (default: one per core; one on a GPU)')
    tasks.add_parser('crossval-one').add_argument('settings', type=json.loads)
    one = tasks.add_parser('one')
    for name in ('variant', 'seed', 'seconds', 'data', 'protocol', 'work_dir'):
        one.add_argument(name, type=dict(seed=int, seconds=float).get(name, str))
    args = parser.parse_args()
    warnings.simplefilter('ignore')
    if args.task == 'crossval-one':
        return run_crossval_one(argparse.Namespace(**args.settings))
    if args.task == 'one':
        return run_one(args)
    args.console = Console()
    Path(args.work_dir).mkdir(parents=True, exist_ok=True)
    args.out = args.out or Path(args.work_dir) / f'{args.task}.jsonl'
    if args.task == 'crossval':
        args.at_once = args.at_once or (len(os.sched_getaffinity(0)) if args.device == 'cpu' else 1)
        args.seeds = range(args.seeds)
    dict(crossval=crossval, rare=rare, sixteen=sixteen)[args.task](args)


if __name__ == '__main__':
    try:  # not cli.run, which would also set the allocator for stock
        main()
    except IgniteError as error:
        sys.exit(f'error: {error}')
    except KeyboardInterrupt:
        sys.exit('stopped: run the same command again to continue.')
