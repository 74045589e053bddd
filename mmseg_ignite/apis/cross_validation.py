"""Cross-validation: train every fold, score it on patients it has not seen, and make an ensemble of all folds."""

import os
import shlex
from collections.abc import Callable
from pathlib import Path

from ..datasets.prepared import FOLDS, roi_name
from ..engine.distributed import is_main_process
from ..engine.ensembles import write_ensemble
from ..engine.launchers import use_launcher
from ..errors import IgniteError
from ..evaluation import Evaluation
from ..evaluation.per_roi import fold_scores
from ..evaluation.run import METRICS
from ..evaluation.saved_metrics import is_complete, read_metrics
from ..evaluation.text_table import table
from ..files import check_outputs, link_file, writing
from .configuration import load_config
from .fold_training import Fold
from .publishing import ENSEMBLE, PREDICTIONS, REPORT, ensemble_scores, publish, run_files

ARRAY_TASK = 'SLURM_ARRAY_TASK_ID'


def cross_validate(
    config: str | Path,
    work_dir: str | None = None,
    options: dict | None = None,
    folds: int = len(FOLDS),
    only: list[int] | None = None,
    resume: bool = False,
    amp: bool = False,
    weights: str | None = None,
    minutes: float | None = None,
    report: str | None = 'en',
    launcher: str = 'none',
    on_message: Callable[[str], None] = print,
) -> dict:
    """Train the folds of a prepared data set and score each on its own ``val`` part with its last checkpoint.

    Fold K is the run folder ``foldK`` of the work dir. Finished folds are skipped. The process that finishes the last fold
    writes the run of all ROIs, with a table of the folds, and then ``ensemble.json``. Test the ensemble into the folder
    ``test`` of the work dir and call this again to add its scores to the table.

    Args:
        work_dir: Defaults to None: the work dir of :func:`load_config` with the suffix ``-folds``.
        options: see :func:`load_config`; ``protocol`` is set by the fold.
        folds: number of folds in the data; 5.
        only: numbers of the folds to run. Defaults to None: the fold in the environment variable SLURM_ARRAY_TASK_ID if set,
            else all.
        resume: continue unfinished folds from their latest checkpoints.
        amp, weights, minutes: of each training, see :func:`.training.train`.
        report: language of the reports, 'en' or 'ko'; None for no reports.
        on_message: called with each message, a line or a table.

    Returns:
        The content of ``metrics.json`` of the work dir; empty while folds are missing, and in the other processes of a
        distributed run.

    Raises:
        IgniteError: see :func:`.training.train` and :func:`.testing.test`; there is no such fold, the data have no folds, or
            a fold was started with other settings, or is unfinished and ``resume`` is False.

    Example:
        >>> cross_validate(config, options={'data_root': 'data/ignite'}, minutes=30)['mIoU']  # percent
    """
    use_launcher(launcher)
    on_message = on_message if is_main_process() else lambda line: None
    chosen = _chosen(folds, only, on_message)
    options = options or {}
    folder = Path(work_dir or f'{load_config(config, options, launcher=launcher).work_dir}-folds')
    load_config(config, options, str(folder), launcher)  # raises if the work dir is a file
    if 'protocol' in options:
        raise IgniteError(
            f'the option protocol is {options["protocol"]!r}, but each fold is its own protocol: remove the option.'
        )
    training = dict(amp=amp, weights=weights, minutes=minutes)
    every = [Fold(number, config, folder, options, launcher, training) for number in range(len(FOLDS))]
    for fold in every:
        fold.check_settings()
    pooled = [folder / PREDICTIONS / f'{name}.png' for fold in every for name in fold.parts['val']]
    check_outputs([*run_files(folder, report), folder / ENSEMBLE, *pooled])
    for number in chosen:
        every[number].check_start(resume)
    for number in chosen:
        if is_main_process() and not every[number].finished:
            (folder / ENSEMBLE).unlink(missing_ok=True)  # it belongs to other trainings
        every[number].run(resume, report, on_message)
    if not is_main_process():
        return {}
    if missing := [str(fold.number) for fold in every if not fold.finished]:
        on_message(
            f'folds {", ".join(missing)} are not finished; the process that finishes the last one pools all in {folder}'
        )
        return {}
    result = _pooled(folder, report) or _pool(every, folder, report)
    on_message(
        f'\nall ROIs outside the test part, each predicted by the fold that has not seen its patient:\n\n{table(result)}\n'
    )
    on_message(f'written: {folder}' + ('' if report is None else f', see {REPORT} in it'))
    _suggest_ensemble(config, folder, options, on_message)
    return result


def _chosen(folds: int, only: list[int] | None, on_message: Callable[[str], None]) -> list[int]:
    """Return the sorted numbers of the folds to run."""
    if folds != len(FOLDS):
        raise IgniteError(
            f'--folds is {folds}; prepared data have {len(FOLDS)} folds, {FOLDS[0]} to {FOLDS[-1]}: remove the option, and '
            'select folds with --fold.'
        )
    numbers, source, advice = only, '--fold', 'correct it'
    if only is None:
        task = os.environ.get(ARRAY_TASK)
        if task is None:
            return list(range(len(FOLDS)))
        numbers, source, advice = [task], ARRAY_TASK, 'submit the job with --array=0-4, or use --fold'
    wrong = [n for n in numbers if str(n) not in map(str, range(len(FOLDS)))]
    if wrong or not numbers:
        raise IgniteError(
            f'{source} is {wrong[0] if wrong else "empty"}; numbers of folds, 0 to {len(FOLDS) - 1}, were expected: {advice}.'
        )
    if only is None:
        on_message(f'{ARRAY_TASK} is {numbers[0]}: only that fold is run')
    return sorted({int(n) for n in numbers})


def _suggest_ensemble(config: str | Path, folder: Path, options: dict, on_message: Callable[[str], None]) -> None:
    settings = {**options, 'protocol': FOLDS[0]}
    settings = ' '.join(shlex.quote(f'{key}={value}') for key, value in settings.items())
    ensemble = shlex.join([str(config), str(folder / ENSEMBLE)])
    on_message(
        'score the ensemble on the test part, which no fold has seen (then run this command again to add it to the table of '
        'the folds), or predict with it:\n'
        f'    python tools/test.py {ensemble} --work-dir {shlex.quote(str(folder / "test"))} --cfg-options {settings}\n'
        f'    python tools/predict.py {ensemble} IMAGE_OR_FOLDER --out predictions'
    )


def _pooled(folder: Path, report: str | None) -> dict | None:
    """Return what an earlier call has pooled; None if it is missing or outdated."""
    if not (folder / ENSEMBLE).is_file() or (report is not None and not (folder / REPORT).is_file()):
        return None
    if not (folder / METRICS).exists():
        return None
    known = read_metrics(folder / METRICS)
    current = 'folds' in known and is_complete(known) and known.get('ensemble') == ensemble_scores(folder)
    return known if current else None


def _pool(folds: list[Fold], folder: Path, report: str | None) -> dict:
    """Write the run of the ROIs of all folds, and the ensemble; two processes that do so at once write the same."""
    evaluations = [Evaluation.load(fold.folder) for fold in folds]
    for fold, evaluation in zip(folds, evaluations):
        if wrong := set(map(roi_name, evaluation.names)) ^ set(fold.parts['val']):
            raise IgniteError(
                f'{fold.folder} was not scored on the ROIs of the val part of {fold.name} (e.g. {sorted(wrong)[0]}): delete '
                f'{fold.folder / METRICS}, and score the fold again.'
            )
    evaluation, first = Evaluation.merge(evaluations), folds[0]
    predictions = folder / PREDICTIONS
    with writing(predictions, 'free disk space, or change its permissions'):
        for path in (fold.folder / PREDICTIONS / f'{name}.png' for fold in folds for name in fold.parts['val']):
            if path.is_file():
                link_file(path, predictions / path.name)
    context = dict(
        config=first.cfg.filename,
        data=first.dataset.data_root,
        use_context=bool(first.dataset.get('use_context')),
        split='val',
        protocol=', '.join(FOLDS),
        predictions=str(predictions),
        encoding='raw',
        folds=fold_scores({fold.name: part.metrics(samples=0) for fold, part in zip(folds, evaluations)}),
    )
    if tested := ensemble_scores(folder):
        context['ensemble'] = tested
    result = publish(folder, evaluation, context, report, **first.metric.options)
    write_ensemble(folder / ENSEMBLE, [fold.checkpoint for fold in folds], first.patients)
    return result
