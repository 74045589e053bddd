"""Cross-validation for ``recipe.py crossval`` with several seeds, confidence intervals and stain shifts.

The ROIs are split into folds by patient, stratified by class. For each variant, seed and fold, one training on the other
folds predicts the ROIs of this fold, clean and under each :class:`StainShift <mmseg_ignite.datasets.transforms.StainShift>`.
Trainings run in parallel, each on its own core, and alternate between variants, so that other load affects all variants
equally. Each training adds a line of JSON with pixel counts. Scores use the pooled counts; confidence intervals resample
patients and seeds.
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
from collections import Counter, deque
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from recipe_figure import plot
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
"""Estimated seconds for starting and scoring a training, used until trainings have finished."""


def prepared(release: str, out: Path, folds: int) -> str:
    """Prepare a release with splits ``fold0``, ``fold1``, ... that together test every ROI; return the folder."""
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
    """Train one variant on all folds except one, score it on that fold and print the result as a line of JSON."""
    if args.variant != 'stock':
        keep_freed_memory()
    cfg = configured(args.variant, args.config, args.data, f'fold{args.fold}', args.seed, args.work_dir)
    minutes = args.seconds / 60
    if args.iterations:
        minutes, cfg.train_cfg.max_iters, warmup = None, args.iterations, args.iterations // 20
        rise = dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=warmup)
        fall = dict(type='PolyLR', eta_min=0.0, power=1.0, begin=warmup, end=args.iterations, by_epoch=False)
        cfg.param_scheduler = [rise, fall] if warmup else [fall]
    start = time.perf_counter()
    runner = train(cfg, minutes=minutes, weights=args.weights, overwrite=True)
    seconds = args.seconds if minutes else time.perf_counter() - start
    counts = {}
    for condition in CONDITIONS:
        test(cfg, args.work_dir, report=None, shift=None if condition == CLEAN else condition)
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
    """Return {ROI: [annotated, predicted, correctly predicted pixels of each class]}."""
    return {
        name: [m.sum(1).tolist(), m.sum(0).tolist(), m.diagonal().tolist()]
        for name, m in zip(evaluation.names, evaluation.matrices)
    }


def run_all(args: argparse.Namespace, data: str) -> None:
    """Run all trainings without a result in parallel."""
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
                for slot, training in list(running.items()):
                    if training.process.poll() is not None:
                        del running[slot]
                        durations.append(time.monotonic() - training.since)
                        result = training.result()
                        with open(args.out, 'a', encoding='utf-8') as stream:
                            stream.write(json.dumps(result) + '\n')
                        progress.console.print(summary(result), highlight=False, soft_wrap=True)
                        progress.advance(bar)
                each = statistics.median(durations) if durations else args.seconds + _SCORING_S
                begun = [min(time.monotonic() - training.since, each) for training in running.values()]
                left = (each * (len(waiting) + len(running)) - sum(begun)) / args.at_once
                progress.update(bar, description=f'{left / 60:.0f} min left')
        finally:
            for training in running.values():
                training.process.kill()


def _missing(args: argparse.Namespace, data: str, iterations: int) -> list[tuple[str, int, int]]:
    """Return variant, seed and fold of the trainings without a result, alternating between variants."""
    done = {
        (r['variant'], r['seed'], r['fold'])
        for r in relevant(args, data)
        if (r['seconds'], r['equal']) == (args.seconds, args.equal) and iterations in (0, r['iterations'])
    }
    return [
        (variant, seed, fold)
        for seed in args.seeds
        for fold in (args.only_folds or range(args.folds))
        for variant in args.variants
        if (variant, seed, fold) not in done
    ]


def _iterations(args: argparse.Namespace, data: str) -> int:
    """Return the iterations of all variants: ``--iterations``, else the median of stock in the given time."""
    made = [r['iterations'] for r in relevant(args, data)
            if (r['variant'], r['seconds'], r['equal']) == ('stock', args.seconds, 'time')]  # fmt: skip
    if not args.iterations and not made:
        sys.exit(f'{args.out} has no result of stock at {args.seconds:g} s: run stock first, or set --iterations.')
    return args.iterations or int(statistics.median(made))


def relevant(args: argparse.Namespace, data: str) -> list[dict]:
    """Return the results for this config and these data."""
    wanted = Path(args.config).name, data_name(data)
    return [r for r in read_results(args.out) if (r['config'], r['data']) == wanted]


def data_name(data: str) -> str:
    """Identify a prepared data set by the hash of its index (ROIs, arrays and folds)."""
    return file_sha256(Path(data) / INDEX)[:12]


@dataclass
class Running:
    """A training in its own process.

    Attributes:
        job: Variant, seed and fold.
        process: The process.
        output: The file with its standard output and error.
        since: Start time, ``time.monotonic()``.
    """

    job: tuple[str, int, int]
    process: subprocess.Popen
    output: Path
    since: float = field(default_factory=time.monotonic)

    @classmethod
    def start(cls, args: argparse.Namespace, data: str, job: tuple, slot: int, iterations: int) -> Running:
        """Start a training; on a CPU, with one thread on the core of its slot."""
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
            command += ['crossval-one', json.dumps(settings)]
            process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, env=environment)
        return cls(job, process, folder / 'output.txt')

    def result(self) -> dict:
        """Return the result of the finished training; exit with its last output if it failed."""
        lines = self.output.read_text(encoding='utf-8', errors='replace').splitlines()
        found = [line.removeprefix('result ') for line in lines if line.startswith('result ')]
        if self.process.returncode or not found:
            message = '{}, seed {}, fold {} failed with exit status {}.'.format(*self.job, self.process.returncode)
            sys.exit('\n'.join([*lines[-20:], message]))
        return json.loads(found[0])


def crossval(args: argparse.Namespace) -> None:
    """Run the missing trainings and print the table."""
    # Each release in a work dir has its own folder.
    release = f'{zlib.crc32(str(Path(args.release).resolve()).encode()):08x}'
    data = prepared(args.release, Path(args.work_dir) / f'ignite-{release}-{args.folds}-folds', args.folds)
    run_all(args, data)
    publish(args, relevant(args, data), read_index(data))


def read_results(path: str | Path) -> list[dict]:
    """Read a file with lines of JSON; a missing file has none."""
    path = Path(path)
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()] if path.is_file() else []


def summary(result: dict) -> str:
    """Describe a result in one line."""
    scores = {c: miou(np.array(list(result['counts'][c].values())).sum(0)) for c in CONDITIONS}
    return (
        f'{result["variant"]}, seed {result["seed"]}, fold {result["fold"]}: '
        f'{", ".join(f"{c} {v:.1f}" for c, v in scores.items())}; {result["iterations"]} iterations, '
        f'{result["crops_s"]} crops/s, load {result["load"]}'
    )


def miou(counts: np.ndarray) -> np.ndarray:
    """Return the mIoU in percent of marginals (..., 3, C) over the classes with annotated pixels."""
    truth, predicted, correct = np.moveaxis(np.asarray(counts, float), -2, 0)
    with np.errstate(invalid='ignore', divide='ignore'):
        iou = np.where(truth > 0, correct / (truth + predicted - correct), np.nan)
    return 100 * np.nanmean(iou, -1)


class Scores:
    """The scores of a variant, pooled over the folds of each seed; seeds that lack a fold are skipped.

    Args:
        results: All results of the variant.
        patients: {ROI: patient}.
    """

    def __init__(self, results: list[dict], patients: dict[str, str]) -> None:
        rois = Counter()
        for result in results:
            rois[result['seed']] += len(result['counts'][CLEAN])
        self.seeds = sorted(seed for seed, count in rois.items() if count == max(rois.values()))
        used = [r for r in results if r['seed'] in self.seeds]
        self.units = sorted({patients[roi] for r in used for roi in r['counts'][CLEAN]})
        shape = (len(self.seeds), len(self.units), 3, len(CLASSES))
        self.counts = {condition: np.zeros(shape) for condition in CONDITIONS}
        for result in used:
            for condition, counts in self.counts.items():
                for roi, rows in result['counts'][condition].items():
                    counts[self.seeds.index(result['seed']), self.units.index(patients[roi])] += rows
        self.iterations = statistics.median(r['iterations'] for r in used)
        self.crops_s = statistics.median(r['crops_s'] for r in used)

    def by_seed(self, condition: str) -> np.ndarray:
        """Return the mIoU of each seed, (S,); for 'shifted', the mean over the shifts."""
        if condition == 'shifted':
            return np.mean([self.by_seed(shift) for shift in SHIFTS], 0)
        return miou(self.counts[condition].sum(1))

    def classes(self, condition: str) -> np.ndarray:
        """Return the IoU of each class in percent, pooled over patients and seeds, (C,); NaN for absent classes."""
        truth, predicted, correct = self.counts[condition].sum((0, 1))
        with np.errstate(invalid='ignore'):
            return np.where(truth > 0, 100 * correct / (truth + predicted - correct), np.nan)

    def samples(self, condition: str, weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return bootstrap samples of the mean mIoU, (B,); seeds are resampled here.

        Args:
            weights: (B, P), how often each bootstrap sample contains each patient.
        """
        scores = miou(np.einsum('bp,spkc->sbkc', weights, self.counts[condition], optimize=True))
        seeds = rng.integers(len(self.seeds), size=(len(weights), len(self.seeds)))
        return scores[seeds, np.arange(len(weights))[:, None]].mean(1)


def intervals(scores: dict[str, Scores], base: str, samples: int = SAMPLES, seed: int = 0) -> dict:
    """Return {variant: {condition: (mean, low, high, difference to base, low, high)}} with 95 % percentile intervals.

    All variants use the same samples of patients, so the differences are paired; seeds are resampled for each variant.
    Further conditions are ``shifted``, the mean over the shifts, and ``loss``, clean minus shifted.
    """
    rng = np.random.default_rng(seed)
    units = scores[base].units
    weights = rng.multinomial(len(units), np.full(len(units), 1 / len(units)), samples).astype(float)
    means, sampled = {}, {}
    for name, score in scores.items():
        means[name] = {c: score.by_seed(c).mean() for c in CONDITIONS}
        sampled[name] = {c: score.samples(c, weights, rng) for c in CONDITIONS}
        for values in (means[name], sampled[name]):
            values['shifted'] = sum(values[c] for c in SHIFTS) / len(SHIFTS)
            values['loss'] = values[CLEAN] - values['shifted']
    ends = (2.5, 97.5)
    return {
        name: {
            c: (
                means[name][c], *np.percentile(sampled[name][c], ends),
                means[name][c] - means[base][c], *np.percentile(sampled[name][c] - sampled[base][c], ends),
            )
            for c in means[name]
        }
        for name in scores
    }  # fmt: skip


def publish(args: argparse.Namespace, results: list[dict], index: dict, base: str = 'stock') -> None:
    """Print a Markdown table and write a figure for each duration and each number of iterations of the results.

    They show scores with confidence intervals and paired differences to ``base``.
    """
    patients = {roi['name']: roi['patient'] for roi in index['rois']}
    groups: dict[tuple, dict[str, list[dict]]] = {}
    for r in results:
        group = (r['seconds'], r['iterations'] if r['equal'] == 'iterations' else None)
        groups.setdefault(group, {}).setdefault(r['variant'], []).append(r)
    for (seconds, iterations), found in groups.items():
        if iterations:  # stock with equal time determined the number
            found = {base: groups.get((seconds, None), {}).get(base, []), **found}
        scores = {name: Scores(rows, patients) for name, rows in found.items() if rows}
        most = max(len(score.units) for score in scores.values())
        scores = {name: score for name, score in scores.items() if len(score.units) == most}
        reference = base if base in scores else next(iter(scores))
        rows = intervals(scores, reference)
        equal = f'{iterations} iterations' if iterations else f'time, {seconds:g} s'
        title = f'Equal {equal} per training, {most} patients'
        args.console.print(f'\n{title}\n', highlight=False)
        for line in table(scores, rows, reference):
            args.console.print('| ' + ' | '.join(line) + ' |', soft_wrap=True, highlight=False)
        by_seed = {name: {c: score.by_seed(c) for c in (CLEAN, 'shifted')} for name, score in scores.items()}
        path = Path(args.out).with_suffix(f'.{f"{iterations}-iterations" if iterations else f"{seconds:g}-s"}.png')
        plot(rows, by_seed, title, path)
        args.console.print(f'\nfigure: {path}', highlight=False)


def table(scores: dict[str, Scores], rows: dict, reference: str) -> list[list[str]]:
    """Return rows of cells, starting with the header; ``rows`` are the :func:`intervals`."""
    present = [i for i, iou in enumerate(scores[reference].classes(CLEAN)) if np.isfinite(iou)]
    head = ['recipe', 'seeds', 'iterations', 'crops/s', CLEAN, f'to {reference}', *SHIFTS, 'shifted', f'to {reference}']
    head += ['clean - shifted', *(f'IoU {CLASSES[i].split()[0]}' for i in present), 'clean, by seed']
    result = [head, ['---'] * len(head)]
    for name, score in scores.items():
        row, classes = rows[name], score.classes(CLEAN)

        def spread(c: str, at: int, sign: str = '', row: dict = row) -> str:
            return f'{row[c][at]:{sign}.1f} ({row[c][at + 1]:{sign}.1f} .. {row[c][at + 2]:{sign}.1f})'

        difference = {c: '' if name == reference else spread(c, 3, '+') for c in row}
        shifts = [f'{row[c][0]:.1f}{difference[c] and ", " + difference[c]}' for c in SHIFTS]
        result.append([
            name, str(len(score.seeds)), f'{score.iterations:.0f}', f'{score.crops_s:.1f}', spread(CLEAN, 0),
            difference[CLEAN], *shifts, spread('shifted', 0), difference['shifted'], spread('loss', 0),
            *(f'{classes[i]:.0f}' for i in present), ' '.join(f'{v:.0f}' for v in score.by_seed(CLEAN)),
        ])  # fmt: skip
    return result
