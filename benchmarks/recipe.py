"""What each part of the training recipe brings: trainings of equal time from random weights, scored alike.

    python benchmarks/recipe.py ablation --release RELEASE [--variants ...] [--seeds 3] [--seconds 600] [--test]
    python benchmarks/recipe.py rare [--seeds 3] [--seconds 300]
    python benchmarks/recipe.py sixteen [--seconds 1200]
    python benchmarks/recipe.py table RESULTS.jsonl [RIVALS.jsonl ...]

``ablation`` trains the variants in turn, each in a process of its own, on folds of the training patients, by which recipes
are chosen; with --test on all training patients, scored on the test ROIs. Images are predicted whole. A result is a line of
JSON as soon as it is there, and what is there is not trained again, so an interrupted run goes on. ``rare`` draws a release
with one class of 0.1 % of the pixels and reports its recall with and without class-aware crops; ``sixteen`` trains on 60
synthetic ROIs of all classes. ``table`` also reads results of other programs in the same form.

``stock`` is mmseg's own: model, loss, transforms, optimiser settings, and the system's allocator. Each following variant adds
to the one before it; the last, ``ours``, is the config that users get, and ours-NAME changes one thing in it.
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
import torch
from mmengine.config import Config
from rich.console import Console
from rich.table import Table

from mmseg_ignite.apis import load_config, test, train
from mmseg_ignite.engine.allocator import keep_freed_memory
from mmseg_ignite.labels import CLASSES
from mmseg_ignite.preparation import prepare, write_synthetic_release
from mmseg_ignite.preparation.store import read_index

CONFIG = Path(__file__).parents[1] / 'configs/segformer/segformer_mit-b0_1xb4-scratch_ignite-256x256.py'
SIDE, BATCH = 256, 4
META = ('roi', 'patient', 'um_per_px', 'metadata', 'ori_shape', 'img_shape', 'pad_shape', 'flip', 'flip_direction')
PACK = dict(type='PackSegInputs', meta_keys=META)
STOCK_CROPS = [
    dict(type='LoadIGNITERegion'),
    dict(type='RandomCrop', crop_size=(SIDE, SIDE), cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    PACK,
]
STOCK_OPTIMISER = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=6e-4, betas=(0.9, 0.999), weight_decay=0.01),
    paramwise_cfg=dict(
        custom_keys=dict(pos_block=dict(decay_mult=0.0), norm=dict(decay_mult=0.0), head=dict(lr_mult=10.0))
    ),
)
STOCK_LOSS = dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0)
LADDER = ('stock', '+model', '+half', '+loss', '+crops', '+stain', 'ours')
"""Each adds to the one before; +half is half precision where the device computes in it, ours the mean of the last weights."""
RARE_CLASS = 16
"""Class id that is made rare."""
OPTIONS = ('ours-ce', 'ours-uniform', 'ours-nostain', 'ours-raw', 'ours-weights', 'ours-anyscale')
"""Each changes one thing in ours: without Dice, without class-aware crops, without colour augmentation, without the mean of
the last weights, with class weights, at any angle and 0.4 to 0.625 um/px."""


def configured(variant: str, data: str, protocol: str, seed: int, work_dir: str) -> Config:
    """The config of a variant, made from ours by taking parts out."""
    cfg = load_config(CONFIG, dict(data_root=data, protocol=protocol, **{'randomness.seed': seed}), work_dir)
    cfg.model.backbone.init_cfg, cfg.model.test_cfg = None, dict(mode='whole')
    cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    averaged = variant not in (*LADDER[:-1], 'ours-raw')
    hooks = ('ClassWeightHook', *(['EMAHook'] if averaged else []))
    cfg.custom_hooks = [hook for hook in cfg.custom_hooks if hook.type in hooks]
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', by_epoch=False, interval=10**9, save_last=True)
    cfg.default_hooks.logger.interval, cfg.log_level = 10**9, 'ERROR'
    missing = LADDER[LADDER.index(variant) + 1 :] if variant in LADDER else ()
    if '+half' in missing:
        cfg.optim_wrapper = STOCK_OPTIMISER
    if '+stain' in missing:
        kept = [t for t in cfg.train_pipeline if t.type in ('RandomDihedral', 'PackSegInputs')]
        cfg.train_dataloader.dataset.pipeline = [kept[0], dict(type='PhotoMetricDistortion'), kept[1]]
    if '+crops' in missing:
        cfg.train_dataloader.sampler = dict(type='InfiniteSampler', shuffle=True)
        dataset = dict(type='IGNITEDataset', data_root=data, protocol=protocol, split='train', pipeline=STOCK_CROPS)
        cfg.train_dataloader.dataset = dataset
    if '+loss' in missing:
        cfg.model.decode_head.loss_decode = STOCK_LOSS
    if '+model' in missing:
        cfg.model.type = 'EncoderDecoder'
        cfg.model.backbone.type, cfg.model.decode_head.type = 'MixVisionTransformer', 'SegformerHead'
    if variant == 'ours-ce':
        cfg.model.decode_head.loss_decode.dice = 0.0
    elif variant == 'ours-uniform':
        cfg.train_dataloader.dataset.crops.class_probability = 0.0
    elif variant == 'ours-nostain':
        cfg.train_dataloader.dataset.pipeline = [
            t for t in cfg.train_pipeline if t.type in ('RandomDihedral', 'PackSegInputs')
        ]
    elif variant == 'ours-anyscale':
        cfg.train_dataloader.dataset.crops.update(um_per_px=(0.4, 0.625), rotation='any', resample_probability=1.0)
    elif variant == 'ours-weights':
        cfg.model.decode_head.loss_decode.temperature = 0.5
    return cfg


def run_one(args: argparse.Namespace) -> None:
    """Train one variant and print its scores, a line of JSON for each way to predict."""
    warnings.simplefilter('ignore')
    if args.variant != 'stock':
        keep_freed_memory()
    cfg = configured(args.variant, args.data, args.protocol, args.seed, args.work_dir)
    runner = train(cfg, minutes=args.seconds / 60, overwrite=True)
    trained = dict(
        rival=args.variant,
        seed=args.seed,
        seconds=args.seconds,
        its=runner.iter,
        crops_s=round(runner.iter * BATCH / args.seconds, 2),
        params_M=round(sum(p.numel() for p in runner.model.parameters()) / 1e6, 2),
        protocol=args.protocol,
        part=args.part,
        load=round(os.getloadavg()[1], 2),
        torch=torch.__version__,
    )
    for name, change in (('', {}), (' TTA', dict(symmetries=8)), (' context', dict(use_context=True))):
        if name and args.variant != 'ours':
            break
        cfg = configured(args.variant, args.data, args.protocol, args.seed, args.work_dir)
        cfg.test_dataloader.dataset.split = args.part
        if 'symmetries' in change:
            cfg.model.test_cfg.update(change)
        else:
            cfg.test_dataloader.dataset.update(change)
        # The last checkpoint was not chosen by the validation patients, who may be scored.
        found = test(cfg, args.work_dir, report=None, count_validation=False)
        print('result', json.dumps({**trained, 'rival': args.variant + name, **figures(found)}))


def figures(result: dict) -> dict:
    """Of what ``metrics.json`` holds, those of the table; percent."""
    classes = {name: c for name, c in result['classes'].items() if c['pixels']}
    return dict(
        rois=result['rois'],
        mIoU=round(result['mIoU'], 1),
        mDice=round(result['mDice'], 1),
        acc=round(result['aAcc'], 1),
        IoU={name: round(c['IoU'], 1) for name, c in classes.items()},
        recall={name: round(c['Recall'], 1) for name, c in classes.items()},
    )


def ablation(args: argparse.Namespace) -> None:
    """The variants in turn, seed by seed; on the test ROIs or fold by fold."""
    data = prepared(args.release, Path(args.work_dir) / 'ignite')
    places = [('official', 'test')] if args.test else [(f'fold{k}', 'val') for k in args.folds]
    jobs = [(v, seed, p, part) for seed in range(args.seeds) for p, part in places for v in args.variants]
    run_all(args, data, jobs)
    print_table(args.console, [args.out])


def rare(args: argparse.Namespace) -> None:
    """The recall of a class of 0.1 % of the pixels, with the default crops and with uniform ones."""
    work_dir = Path(args.work_dir)
    write_synthetic_release(work_dir / 'rare', rois=80, patients=20, size=(512, 512), seed=3, rare=(RARE_CLASS, 0.0006))
    data = prepared(work_dir / 'rare', work_dir / 'rare-ignite')
    pixels = np.sum([roi['pixels'] for roi in read_index(data)['rois']], 0)
    args.console.print(f'{CLASSES[RARE_CLASS - 1]}: {100 * pixels[RARE_CLASS - 1] / pixels.sum():.2f} % of the pixels')
    run_all(args, data, [(v, seed, 'official', 'test') for seed in range(args.seeds) for v in ('ours', 'ours-uniform')])
    table = Table('crops', 'recall of the rare class, %', 'its IoU, %', 'mIoU, %')
    for variant in ('ours', 'ours-uniform'):
        found = [r for r in read_results([args.out]) if r['rival'] == variant and r['seconds'] == args.seconds]
        name = CLASSES[RARE_CLASS - 1]
        columns = ([r['recall'][name] for r in found], [r['IoU'][name] for r in found], [r['mIoU'] for r in found])
        table.add_row('class-aware' if variant == 'ours' else 'uniform', *map(spread, columns))
    args.console.print(table)


def sixteen(args: argparse.Namespace) -> None:
    """All classes of 60 synthetic ROIs, divided by patient."""
    work_dir = Path(args.work_dir)
    write_synthetic_release(work_dir / 'sixteen', rois=60, patients=20, size=(384, 384), seed=2)
    data = prepared(work_dir / 'sixteen', work_dir / 'sixteen-ignite')
    run_all(args, data, [('ours', 0, 'patient-8-1-1', 'test')])
    for result in read_results([args.out]):
        lowest = min(result['IoU'], key=result['IoU'].get)
        args.console.print(
            f'{result["rival"]}: mIoU {result["mIoU"]}, {len(result["IoU"])} classes, lowest {lowest} {result["IoU"][lowest]}'
        )


def prepared(release: 'str | Path', out: Path) -> str:
    """The prepared form of a release."""
    if not (out / 'index.json').is_file():
        prepare(release, out)
    return str(out)


def run_all(args: argparse.Namespace, data: str, jobs: 'list[tuple[str, int, str, str]]') -> None:
    """One process a job; those whose results are there are passed over."""
    done = {(r['rival'], r['seed'], r['protocol'], r['seconds']) for r in read_results([args.out]) if 'protocol' in r}
    jobs = [job for job in jobs if (*job[:3], args.seconds) not in done]
    for number, (variant, seed, protocol, part) in enumerate(jobs, 1):
        args.console.print(f'[{number}/{len(jobs)}] {variant}, seed {seed}, {protocol}, {args.seconds:g} s ...')
        work_dir = Path(args.work_dir) / 'run'
        shutil.rmtree(work_dir, ignore_errors=True)
        one = [
            sys.executable,
            '-W',
            'ignore',
            __file__,
            'one',
            variant,
            seed,
            args.seconds,
            data,
            protocol,
            part,
            work_dir,
        ]
        found = subprocess.run(list(map(str, one)), stdout=subprocess.PIPE, text=True)
        lines = [line.removeprefix('result ') for line in found.stdout.splitlines() if line.startswith('result ')]
        if found.returncode or not lines:
            sys.exit(f'{variant} ended with status {found.returncode}: see above.')
        with open(args.out, 'a', encoding='utf-8') as stream:
            stream.writelines(line + '\n' for line in lines)
        args.console.print(
            *(f'  {r["rival"]}: mIoU {r["mIoU"]}, {r["crops_s"]} crops/s' for r in map(json.loads, lines))
        )


def read_results(paths: 'list[str | Path]') -> 'list[dict]':
    """Lines of JSON; files that are not there have none."""
    return [
        json.loads(line) for p in map(Path, paths) if p.is_file() for line in p.read_text().splitlines() if line.strip()
    ]


def spread(values: 'list[float]') -> str:
    """Mean and range."""
    if not values:
        return '-'
    mean = statistics.mean(values)
    return f'{mean:.1f}' if len(values) == 1 else f'{mean:.1f} ({min(values):.1f}-{max(values):.1f})'


def print_table(console: Console, paths: 'list[str | Path]') -> None:
    """Means and ranges over the seeds (and folds) of each variant, Markdown."""
    groups: dict[tuple, list[dict]] = {}
    for r in read_results(paths):
        groups.setdefault((r['seconds'], r['rival']), []).append(r)
    classes = list(dict.fromkeys(name.split()[0] for found in groups.values() for r in found for name in r['IoU']))
    rows = [
        ['recipe', 's', 'runs', 'mIoU', 'mDice', 'accuracy', *(f'IoU {c}' for c in classes), 'lowest IoU', 'crops/s']
    ]
    for (seconds, name), found in groups.items():
        by_class = [[v for r in found for n, v in r['IoU'].items() if n.split()[0] == c] for c in classes]
        lowest = min(v for values in by_class for v in values)
        means = [f'{statistics.mean(v):.1f}' if v else '-' for v in by_class]
        columns = [spread([r[key] for r in found]) for key in ('mIoU', 'mDice', 'acc')]
        pace = f'{statistics.mean(r["crops_s"] for r in found):.1f}'
        rows.append([name, f'{seconds:g}', str(len(found)), *columns, *means, f'{lowest:.1f}', pace])
    rows.insert(1, ['---'] * len(rows[0]))
    for row in rows:
        console.print('| ' + ' | '.join(row) + ' |', soft_wrap=True, highlight=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tasks = parser.add_subparsers(dest='task', required=True)
    for name, seconds in (('ablation', 600), ('rare', 300), ('sixteen', 1200)):
        task = tasks.add_parser(name)
        task.add_argument('--seconds', type=float, default=seconds, help='of training')
        task.add_argument('--seeds', type=int, default=3)
        task.add_argument('--work-dir', default='work_dirs/benchmarks/recipe')
        task.add_argument('--out', help='results (default: WORK_DIR/TASK.jsonl)')
    task = tasks.choices['ablation']
    task.add_argument('--release', required=True, help='in the layout of IGNITE')
    task.add_argument('--variants', nargs='+', default=LADDER, choices=(*LADDER, *OPTIONS), metavar='VARIANT')
    task.add_argument('--folds', nargs='+', type=int, default=[2, 4])
    task.add_argument('--test', action='store_true', help='all training patients, scored on the test ROIs')
    tasks.add_parser('table').add_argument('results', nargs='+')
    one = tasks.add_parser('one')
    for name in ('variant', 'seed', 'seconds', 'data', 'protocol', 'part', 'work_dir'):
        one.add_argument(name, type=dict(seed=int, seconds=float).get(name, str))
    args = parser.parse_args()
    args.console = Console()
    if args.task == 'one':
        run_one(args)
    elif args.task == 'table':
        print_table(args.console, args.results)
    else:
        Path(args.work_dir).mkdir(parents=True, exist_ok=True)
        args.out = args.out or Path(args.work_dir) / f'{args.task}.jsonl'
        dict(ablation=ablation, rare=rare, sixteen=sixteen)[args.task](args)


if __name__ == '__main__':
    main()
