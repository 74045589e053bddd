"""The instrument of ``recipe.py crossval``: every ROI is a test ROI, several seeds, intervals, shifted stains.

The ROIs are divided by patient into folds, stratified by class. A training of a variant and seed on the other folds predicts
those of one, clean and under each :class:`StainShift <mmseg_ignite.datasets.transforms.StainShift>`. Trainings run side by
side, each on a core of its own, variants in turn, so that what disturbs the machine disturbs all alike. A training leaves a
line of JSON with its counts; scores follow from the pooled counts, intervals from samples of patients and seeds.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
import zlib
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from recipe_figure import draw
from recipe_variants import configured
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from mmseg_ignite.apis import test, train
from mmseg_ignite.datasets.prepared import INDEX, read_index
from mmseg_ignite.datasets.transforms.shift import SHIFTS
from mmseg_ignite.engine.allocator import keep_freed_memory
from mmseg_ignite.evaluation import Evaluation
from mmseg_ignite.files import write_json
from mmseg_ignite.labels import CLASSES
from mmseg_ignite.preparation import prepare
from mmseg_ignite.preparation.splits import divide
from mmseg_ignite.provenance import file_sha256

CLEAN = 'clean'
CONDITIONS = (CLEAN, *SHIFTS)
SAMPLES = 4000
_SCORING_S = 40
"""Guess at what starting a training and scoring it takes beside the training, until some have ended."""


def prepared(release: str, out: Path, folds: int) -> str:
    """A prepared data set whose ``fold0``, ``fold1``, ... together test every ROI."""
    if not (out / INDEX).is_file():
        prepare(release, out)
    index = read_index(out)
    patients = sorted({roi['patient'] for roi in index['rois']})
    features = np.zeros((len(patients), len(CLASSES) + 1))
    for roi in index['rois']:
        features[patients.index(roi['patient'])] += [*roi['pixels'], 1]
    fold_of = dict(zip(patients, divide(features, (1,) * folds).tolist()))
    index['splits'] = {
        f'fold{k}': dict(
            train=[roi['name'] for roi in index['rois'] if fold_of[roi['patient']] != k],
            val=[],
            test=[roi['name'] for roi in index['rois'] if fold_of[roi['patient']] == k],
        )
        for k in range(folds)
    }
    write_json(out / INDEX, index)
    return str(out)


def run_one(args: argparse.Namespace) -> None:
    """Train one variant on all folds but one, score it on that one, print a line of JSON."""
    if args.variant != 'stock':
        keep_freed_memory()
    cfg = configured(args.variant, args.config, args.data, f'fold{args.fold}', args.seed, args.work_dir)
    minutes = args.seconds / 60
    if args.iterations:
        minutes, cfg.train_cfg.max_iters, warmup = None, args.iterations, args.iterations // 20
        rise = [dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=warmup)] if warmup else []
        cfg.param_scheduler = [
            *rise,
            dict(type='PolyLR', eta_min=0.0, power=1.0, begin=warmup, end=args.iterations, by_epoch=False),
        ]
    start = time.perf_counter()
    runner = train(cfg, minutes=minutes, weights=args.weights, overwrite=True)
    seconds = args.seconds if minutes else time.perf_counter() - start
    counts = {}
    for condition in CONDITIONS:
        shift = None if condition == CLEAN else condition
        test(cfg, args.work_dir, report=None, shift=shift)
        counts[condition] = marginals(Evaluation.load(args.work_dir))
    batch = cfg.train_dataloader.batch_size
    result = dict(
        variant=args.variant,
        seed=args.seed,
        fold=args.fold,
        seconds=args.seconds,
        equal='iterations' if args.iterations else 'time',
        config=Path(args.config).name,
        data=data_name(args.data),
        iterations=runner.iter,
        crops_s=round(runner.iter * batch / seconds, 2),
        load=round(os.getloadavg()[0], 2),
        counts=counts,
    )
    print('result', json.dumps(result))


def marginals(evaluation: Evaluation) -> dict[str, list[list[int]]]:
    """Of each ROI the annotated, the predicted and the rightly predicted pixels of each class."""
    return {
        name: [m.sum(1).tolist(), m.sum(0).tolist(), m.diagonal().tolist()]
        for name, m in zip(evaluation.names, evaluation.matrices)
    }


def run_all(args: argparse.Namespace, data: str) -> None:
    """All trainings whose results are not there yet, side by side."""
    iterations = _iterations(args, data) if args.equal == 'iterations' else 0
    waiting, running, durations = deque(_missing(args, data, iterations)), {}, []
    minutes = -(-len(waiting) // args.at_once) * (args.seconds + _SCORING_S) / 60
    args.console.print(f'{len(waiting)} trainings, {args.at_once} at a time: about {minutes:.0f} minutes.')
    columns = (TextColumn('trainings'), BarColumn(), MofNCompleteColumn(), TextColumn('{task.description}'))
    with Progress(*columns, console=args.console, refresh_per_second=1) as progress:
        bar = progress.add_task('', total=len(waiting))
        try:
            while waiting or running:
                for slot in range(args.at_once):
                    if slot not in running and waiting:
                        running[slot] = Running.start(args, data, waiting.popleft(), slot, iterations)
                time.sleep(0.5)
                for slot, one in list(running.items()):
                    if one.process.poll() is not None:
                        del running[slot]
                        durations.append(time.monotonic() - one.since)
                        result = one.result()
                        with open(args.out, 'a', encoding='utf-8') as stream:
                            stream.write(json.dumps(result) + '\n')
                        progress.console.print(summary(result), highlight=False, soft_wrap=True)
                        progress.advance(bar)
                each = statistics.median(durations) if durations else args.seconds + _SCORING_S
                begun = [min(time.monotonic() - one.since, each) for one in running.values()]
                left = (each * (len(waiting) + len(running)) - sum(begun)) / args.at_once
                progress.update(bar, description=f'{left / 60:.0f} min left')
        finally:
            for one in running.values():
                one.process.kill()


def _missing(args: argparse.Namespace, data: str, iterations: int) -> list[tuple[str, int, int]]:
    """Variant, seed and fold of the trainings without a result, variants in turn."""
    alike = [
        r
        for r in relevant(args, data)
        if (r['seconds'], r['equal']) == (args.seconds, args.equal) and iterations in (0, r['iterations'])
    ]
    done = {(r['variant'], r['seed'], r['fold']) for r in alike}
    return [
        (variant, seed, fold)
        for seed in args.seeds
        for fold in (args.only_folds or range(args.folds))
        for variant in args.variants
        if (variant, seed, fold) not in done
    ]


def _iterations(args: argparse.Namespace, data: str) -> int:
    """How many iterations all variants are given: those asked for, else as many as stock made in the time."""
    made = [r['iterations'] for r in relevant(args, data)
            if (r['variant'], r['seconds'], r['equal']) == ('stock', args.seconds, 'time')]  # fmt: skip
    if not args.iterations and not made:
        sys.exit(f'{args.out} has no result of stock at {args.seconds:g} s to equal: run it, or give --iterations.')
    return args.iterations or int(statistics.median(made))


def relevant(args: argparse.Namespace, data: str) -> list[dict]:
    """The results that are of this config and of these data."""
    wanted = Path(args.config).name, data_name(data)
    return [r for r in read_results(args.out) if (r['config'], r['data']) == wanted]


def data_name(data: str) -> str:
    """A prepared data set by its contents: ROIs, arrays and folds."""
    return file_sha256(Path(data) / INDEX)[:12]


@dataclass
class Running:
    """A training in a process of its own.

    Attributes:
        job: variant, seed and fold.
        process, output: the process, and the file that it writes to.
        since: when it began, ``time.monotonic()``.
    """

    job: tuple[str, int, int]
    process: subprocess.Popen
    output: Path
    since: float = field(default_factory=time.monotonic)

    @classmethod
    def start(cls, args: argparse.Namespace, data: str, job: tuple, slot: int, iterations: int) -> Running:
        """Begin one; on a CPU with one thread, on the core of its slot."""
        folder = Path(args.work_dir) / f'run{slot}'
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        settings = dict(zip(('variant', 'seed', 'fold'), job), seconds=args.seconds, data=data, config=args.config)
        settings.update(work_dir=str(folder / 'work'), weights=args.weights, iterations=iterations)
        command = [sys.executable, '-W', 'ignore', str(Path(__file__).with_name('recipe.py'))]
        environment = dict(os.environ)
        if args.device == 'cpu':
            environment.update(OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='')
            cores = sorted(os.sched_getaffinity(0))
            command = ['taskset', '-c', str(cores[slot % len(cores)]), *command]
        with open(folder / 'output.txt', 'w', encoding='utf-8') as stream:
            process = subprocess.Popen(
                [*command, 'crossval-one', json.dumps(settings)],
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=environment,
            )
        return cls(job, process, folder / 'output.txt')

    def result(self) -> dict:
        """What the training that has ended found; the command ends where it failed."""
        lines = self.output.read_text(encoding='utf-8', errors='replace').splitlines()
        found = [line.removeprefix('result ') for line in lines if line.startswith('result ')]
        if self.process.returncode or not found:
            said = '{}, seed {}, fold {} ended with status {}.'.format(*self.job, self.process.returncode)
            sys.exit('\n'.join([*lines[-20:], said]))
        return json.loads(found[0])


def crossval(args: argparse.Namespace) -> None:
    """Train what is missing, and print the table."""
    # Another release of the same work dir gets a folder of its own.
    release = f'{zlib.crc32(str(Path(args.release).resolve()).encode()):08x}'
    data = prepared(args.release, Path(args.work_dir) / f'ignite-{release}-{args.folds}-folds', args.folds)
    run_all(args, data)
    publish(args, relevant(args, data), read_index(data))


def read_results(path: str | Path) -> list[dict]:
    """Lines of JSON; a file that is not there has none."""
    path = Path(path)
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()] if path.is_file() else []


def summary(result: dict) -> str:
    """A training in one line."""
    scores = {c: miou(np.array(list(result['counts'][c].values())).sum(0)) for c in CONDITIONS}
    return (
        f'{result["variant"]}, seed {result["seed"]}, fold {result["fold"]}: '
        f'{", ".join(f"{c} {v:.1f}" for c, v in scores.items())}; {result["iterations"]} iterations, '
        f'{result["crops_s"]} crops/s, load {result["load"]}'
    )


def miou(counts: np.ndarray) -> np.ndarray:
    """mIoU in percent of marginals (..., 3, C) over the classes that have annotated pixels."""
    truth, predicted, correct = np.moveaxis(np.asarray(counts, float), -2, 0)
    with np.errstate(invalid='ignore', divide='ignore'):
        iou = np.where(truth > 0, correct / (truth + predicted - correct), np.nan)
    return 100 * np.nanmean(iou, -1)


class Scores:
    """The pooled scores of a variant: each seed's over all its folds, their mean, and samples of it.

    Args:
        results: those of the variant.
        patients: {ROI: patient}.
    """

    def __init__(self, results: list[dict], patients: dict[str, str]) -> None:
        by_seed: dict[int, list[dict]] = {}
        for result in results:
            by_seed.setdefault(result['seed'], []).append(result)
        complete = max(sum(len(r['counts'][CLEAN]) for r in found) for found in by_seed.values())
        self.seeds = [
            s for s, found in sorted(by_seed.items()) if sum(len(r['counts'][CLEAN]) for r in found) == complete
        ]
        self.units = sorted({patients[roi] for r in by_seed[self.seeds[0]] for roi in r['counts'][CLEAN]})
        self.counts = {}  # of each condition (seeds, patients, 3, C)
        for condition in CONDITIONS:
            counts = np.zeros((len(self.seeds), len(self.units), 3, len(CLASSES)))
            for s, seed in enumerate(self.seeds):
                for result in by_seed[seed]:
                    for roi, rows in result['counts'][condition].items():
                        counts[s, self.units.index(patients[roi])] += rows
            self.counts[condition] = counts
        used = [r for r in results if r['seed'] in self.seeds]
        self.iterations = statistics.median(r['iterations'] for r in used)
        self.crops_s = statistics.median(r['crops_s'] for r in used)

    def by_seed(self, condition: str) -> np.ndarray:
        """mIoU of each seed, (S,); of 'shifted' the mean over the shifts."""
        if condition == 'shifted':
            return np.mean([self.by_seed(shift) for shift in SHIFTS], 0)
        return miou(self.counts[condition].sum(1))

    def classes(self, condition: str) -> np.ndarray:
        """IoU of each class, pooled over patients and seeds, NaN for absent ones, (C,)."""
        truth, predicted, correct = self.counts[condition].sum((0, 1))
        with np.errstate(invalid='ignore'):
            return np.where(truth > 0, 100 * correct / (truth + predicted - correct), np.nan)

    def samples(self, condition: str, drawn: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The mean mIoU of as many seeds, drawn with replacement, over the drawn patients, (B,).

        Args:
            drawn: (B, P), how often each sample holds each patient.
        """
        pooled = np.einsum('bp,spkc->sbkc', drawn, self.counts[condition], optimize=True)
        scores = miou(pooled)
        seeds = rng.integers(len(self.seeds), size=(len(drawn), len(self.seeds)))
        return scores[seeds, np.arange(len(drawn))[:, None]].mean(1)


def intervals(scores: dict[str, Scores], base: str, samples: int = SAMPLES, seed: int = 0) -> dict:
    """{variant: {condition: (mean, low, high, difference to base, low, high)}}, 95 % percentile intervals.

    All variants are drawn the same patients, so what these share cancels out of the differences; seeds are drawn for each.
    ``shifted``, the mean over the shifts, and ``loss``, clean less shifted, stand beside the conditions.
    """
    rng = np.random.default_rng(seed)
    units = scores[base].units
    drawn = rng.multinomial(len(units), np.full(len(units), 1 / len(units)), samples).astype(float)
    means, draws = {}, {}
    for name, one in scores.items():
        means[name] = {c: one.by_seed(c).mean() for c in CONDITIONS}
        draws[name] = {c: one.samples(c, drawn, rng) for c in CONDITIONS}
        for values in (means[name], draws[name]):
            values['shifted'] = sum(values[c] for c in SHIFTS) / len(SHIFTS)
            values['loss'] = values[CLEAN] - values['shifted']
    ends = (2.5, 97.5)
    return {
        name: {
            c: (
                means[name][c], *np.percentile(draws[name][c], ends),
                means[name][c] - means[base][c], *np.percentile(draws[name][c] - draws[base][c], ends),
            )
            for c in means[name]
        }
        for name in scores
    }  # fmt: skip


def publish(args: argparse.Namespace, results: list[dict], index: dict, base: str = 'stock') -> None:
    """Scores with intervals and paired differences to ``base``: for each time, and each number of iterations that all were
    given, a table in Markdown and a figure beside the results."""
    patients = {roi['name']: roi['patient'] for roi in index['rois']}
    groups: dict[tuple, dict[str, list[dict]]] = {}
    for r in results:
        group = (r['seconds'], r['iterations'] if r['equal'] == 'iterations' else None)
        groups.setdefault(group, {}).setdefault(r['variant'], []).append(r)
    for (seconds, iterations), found in groups.items():
        if iterations:  # stock's time made the number
            found = {base: groups.get((seconds, None), {}).get(base, []), **found}
        scores = {name: Scores(rows, patients) for name, rows in found.items() if rows}
        most = max(len(one.units) for one in scores.values())
        scores = {name: one for name, one in scores.items() if len(one.units) == most}
        reference = base if base in scores else next(iter(scores))
        rows = intervals(scores, reference)
        title = (
            f'Equal {f"{iterations} iterations" if iterations else f"time, {seconds:g} s"} a training, {most} patients'
        )
        args.console.print(f'\n{title}\n', highlight=False)
        for line in table(scores, rows, reference):
            args.console.print('| ' + ' | '.join(line) + ' |', soft_wrap=True, highlight=False)
        by_seed = {name: {c: one.by_seed(c) for c in (CLEAN, 'shifted')} for name, one in scores.items()}
        place = Path(args.out).with_suffix(f'.{f"{iterations}-iterations" if iterations else f"{seconds:g}-s"}.png')
        draw(rows, by_seed, title, place)
        args.console.print(f'\nfigure: {place}', highlight=False)


def table(scores: dict[str, Scores], rows: dict, reference: str) -> list[list[str]]:
    """Rows of cells, the head first; ``rows`` are the :func:`intervals`."""
    present = [i for i, iou in enumerate(scores[reference].classes(CLEAN)) if np.isfinite(iou)]
    head = ['recipe', 'seeds', 'iterations', 'crops/s', CLEAN, f'to {reference}', *SHIFTS, 'shifted', f'to {reference}']
    head += ['clean - shifted', *(f'IoU {CLASSES[i].split()[0]}' for i in present), 'clean, by seed']
    result = [head, ['---'] * len(head)]
    for name, one in scores.items():
        row, classes = rows[name], one.classes(CLEAN)

        def spread(c: str, at: int, sign: str = '', row: dict = row) -> str:
            return f'{row[c][at]:{sign}.1f} ({row[c][at + 1]:{sign}.1f} .. {row[c][at + 2]:{sign}.1f})'

        difference = {c: '' if name == reference else spread(c, 3, '+') for c in row}
        shifts = [f'{row[c][0]:.1f}{difference[c] and ", " + difference[c]}' for c in SHIFTS]
        result.append([
            name, str(len(one.seeds)), f'{one.iterations:.0f}', f'{one.crops_s:.1f}', spread(CLEAN, 0), difference[CLEAN],
            *shifts, spread('shifted', 0), difference['shifted'], spread('loss', 0),
            *(f'{classes[i]:.0f}' for i in present), ' '.join(f'{v:.0f}' for v in one.by_seed(CLEAN)),
        ])  # fmt: skip
    return result
