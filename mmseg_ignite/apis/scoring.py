"""Scoring without a model: a saved run again, label PNGs of another tool, two runs against each other."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ..datasets.prepared import CONTEXT as WITH_CONTEXT
from ..datasets.prepared import INDEX, metadata, read_index, select
from ..engine.ensembles import Ensemble
from ..environment import cores
from ..errors import IgniteError
from ..evaluation import Evaluation, compare
from ..evaluation.bootstrap import SAMPLES, check_bootstrap
from ..evaluation.boundary import check_tolerance
from ..evaluation.groupings import FORM, REMEDY, check_groupings
from ..evaluation.label_files import ENCODINGS, find_prediction, read_labels, read_prediction, read_truth
from ..evaluation.run import METRICS, score_roi
from ..evaluation.saved_metrics import read_metrics
from ..files import check_outputs, visible_files, write_result, writing
from ..labels import CLASSES, IGNORE, NUM_CLASSES, histogram
from ..provenance import file_sha256, provenance
from ..untrusted import check_form, read_json
from .publishing import PREDICTIONS, ensemble_scores, publish, run_files

CONTEXT = (
    'checkpoint', 'config', 'data', 'split', 'protocol', 'use_context', 'predictions', 'encoding', 'cropped', 'provenance',
    'seen_patients', 'folds', 'ensemble', 'shift',
)  # fmt: skip
"""Keys of metrics.json that do not follow from the counts; they are kept when a run is scored again."""


def rescore(
    run: str | Path,
    out: str | Path | None = None,
    groupings: dict | None = None,
    samples: int = SAMPLES,
    seed: int = 0,
    data: str | Path | None = None,
    report: str | None = 'en',
) -> dict:
    """Compute all figures of a saved run again, e.g. with other groupings; nothing is predicted.

    Args:
        run: folder of the run, or its ``confusion.npz``.
        out: output folder. Defaults to None: the folder of the run.
        data: the prepared data set, if it was moved since the run. The report shows the ROIs if the data set and the
            predictions of the run still exist.
        report: language of the report, 'en' or 'ko'; None for no report.

    Returns:
        The content of ``metrics.json``.

    Raises:
        IgniteError: there is no such run, its files are damaged, or a grouping is wrong.

    Example:
        >>> rescore('work_dirs/b0', groupings={'tumour': {'tumour': ['Tumor epithelium'], 'other': 'rest'}})
    """
    evaluation, run = Evaluation.load(run), Path(run)
    folder = run if run.is_dir() else run.parent
    check_outputs(run_files(out or folder, report))
    context = _context(folder)
    if data is not None:
        context['data'] = str(data)
    return publish(out or folder, evaluation, context, report, groupings=groupings, samples=samples, seed=seed)


def _context(folder: Path) -> dict:
    """Return the facts in an earlier metrics.json that do not follow from the counts; empty if there is none.

    The paths of checkpoint, data and predictions may lead out of the folder, since a run is written beside neither. They are
    opened only as what they should be, see :func:`.publishing.publish`.
    """
    if not (folder / METRICS).exists():
        return {}
    found = read_metrics(folder / METRICS)
    context = {key: found[key] for key in CONTEXT if key in found}
    if Path(context.get('predictions') or '').name == PREDICTIONS and (folder / PREDICTIONS).is_dir():
        context['predictions'] = str(folder / PREDICTIONS)  # the folder may have been moved or copied
    if 'folds' in context and (tested := ensemble_scores(folder)):
        context['ensemble'] = tested
    return context


def score_folder(
    predictions: str | Path,
    data: str | Path,
    out: str | Path,
    protocol: str = 'patient-8-1-1',
    split: str = 'test',
    encoding: str = 'auto',
    groupings: dict | None = None,
    boundary_tolerance_um: float | None = None,
    samples: int = SAMPLES,
    seed: int = 0,
    report: str | None = 'en',
    checkpoint: str | Path | None = None,
    allow_seen_patients: bool = False,
) -> dict:
    """Score label PNGs of any tool, ``NAME.png`` for each ROI of one part of a prepared data set.

    Args:
        predictions: folder of 8-bit PNGs with one channel (or palettes). ``NAME_overlay.png`` and hidden files are ignored.
            The folder may instead contain NAME_with_context.png for all ROIs, predicted with the tissue around the ROI; these
            are cropped to the ROI, and ``cropped`` in metrics.json is true.
        data: prepared data set with the ground truth.
        out: output folder.
        encoding: 'raw': ids 1..16, 0 where nothing was predicted; 'train': ids 0..15, 255 where nothing was predicted;
            'auto': raw if a pixel is 16, train if a pixel is 255. A pixel without prediction counts as an error of its class.
        report: language of the report, 'en' or 'ko'; None for no report.
        checkpoint: the checkpoint, work dir or ensemble that made the predictions; its training patients are refused.
        allow_seen_patients: also score patients that the checkpoint was trained on; the report warns of it.

    Returns:
        The content of ``metrics.json``.

    Raises:
        IgniteError: the checkpoint is missing or has seen a patient to be scored; files are missing, unexpected, damaged, of
            another size or with other values; the encoding cannot be determined.

    Example:
        >>> score_folder('nnunet_predictions', 'data/ignite', 'work_dirs/nnunet')['mIoU']  # percent
    """
    ensemble = None if checkpoint is None else Ensemble.read(checkpoint)
    _check_settings(encoding, groupings, samples, seed, boundary_tolerance_um)
    entries = select(read_index(data), protocol, split, str(data))
    if not entries:
        raise IgniteError(f'{data} has no ROI in the {split} part of {protocol}: nothing to score.')
    context = dict(data=str(data), predictions=str(predictions), encoding=encoding, split=split, protocol=protocol)
    checksums = {} if ensemble is None else ensemble.checksums()
    context['provenance'] = provenance(data_sha256=file_sha256(Path(data) / INDEX), seed=seed, **checksums)
    if ensemble is not None:
        context['checkpoint'] = str(ensemble.path)
        if seen := ensemble.seen_patients(ensemble.metas(), data, entries, allow_seen_patients):
            context['seen_patients'] = seen
    folder = Path(predictions)
    inputs = [folder / f'{e["name"]}{suffix}.png' for e in entries for suffix in ('', WITH_CONTEXT)]
    check_outputs(run_files(out, report), inputs)
    if _check_files(folder, [e['name'] for e in entries], f'the {split} part of {protocol}'):
        context['cropped'] = True
    files = {e['name']: find_prediction(folder, e['name']) for e in entries}
    if encoding == 'auto':
        context['encoding'] = encoding = _detect_encoding(folder, files.values())

    def score(entry: dict) -> dict:
        truth = read_truth(data, entry['name'])
        prediction = read_prediction(files[entry['name']], truth.shape, encoding, entry.get('context'))
        known = dict(roi=entry['name'], patient=entry['patient'], um_per_px=entry['um_per_px'], **metadata(entry))
        return score_roi(known, truth, prediction, NUM_CLASSES, boundary_tolerance_um)

    evaluation = Evaluation.collect(list(_parallel(score, entries)), CLASSES, boundary_tolerance_um)
    options = dict(groupings=groupings, samples=samples, seed=seed)
    return publish(out, evaluation, context, report, recount=False, **options)


def _check_settings(encoding: str, groupings: dict | None, samples: int, seed: int, tolerance: float | None) -> None:
    """Check the settings of :func:`score_folder` before any work."""
    if encoding not in (*ENCODINGS, 'auto'):
        raise IgniteError(f'{encoding!r} is not an encoding of label PNGs: choose one of {", ".join(ENCODINGS)}, auto.')
    check_groupings(groupings, CLASSES)
    if samples:
        check_bootstrap(samples, seed)
    if tolerance is not None:
        check_tolerance(tolerance)


def _parallel(call: Callable, items: Iterable) -> Iterator:
    """Yield results in order; cancel the remaining calls at the first error."""
    with ThreadPoolExecutor(cores()) as pool:
        try:
            yield from pool.map(call, items)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _check_files(folder: Path, names: list[str], part: str) -> bool:
    """Return whether the predictions are NAME_with_context.png; raise unless all exist, of one kind, and nothing else."""
    if not folder.is_dir():
        raise IgniteError(f'{folder} is not a folder; a folder of label PNGs was expected: check the path.')
    found = {path.stem for path in visible_files(folder, ('.png',)) if path.suffix == '.png' and path.is_file()}
    plain, around = (sorted(name for name in names if name + suffix in found) for suffix in ('', WITH_CONTEXT))
    if plain and around:
        raise IgniteError(
            f'{folder} contains predictions of ROIs ({plain[0]}.png) and of ROIs with context '
            f'({around[0]}{WITH_CONTEXT}.png): keep only one kind.'
        )
    missing = sorted(set(names) - set(plain or around))
    if missing:
        raise IgniteError(
            f'{folder} lacks {len(missing)} of the {len(names)} ROIs of {part}, e.g. {missing[0]}.png: predict them, '
            'or choose another split or protocol.'
        )
    known = {name + suffix for name in names for suffix in ('', WITH_CONTEXT, '_overlay', f'{WITH_CONTEXT}_overlay')}
    if extra := sorted(found - known):
        raise IgniteError(
            f'{folder} contains PNGs that belong to no ROI of {part} ({len(extra)}, e.g. {extra[0]}.png): move them away, or '
            'choose another split or protocol.'
        )
    return bool(around)


def _detect_encoding(folder: Path, files: Iterable[Path]) -> str:
    """Return the only encoding that fits the values of the files; read no more files than necessary."""
    for counts in _parallel(lambda path: histogram(read_labels(path)), files):
        if counts[NUM_CLASSES]:
            return 'raw'
        if counts[IGNORE]:
            return 'train'
    raise IgniteError(
        f'the PNGs of {folder} contain neither {NUM_CLASSES} (raw ids 1..16) nor 255 (train ids 0..15), so their encoding '
        'is ambiguous: use --encoding raw or --encoding train.'
    )


def compare_runs(
    a: str | Path,
    b: str | Path,
    out: str | Path | None = None,
    samples: int = SAMPLES,
    seed: int = 0,
    allow_seen_patients: bool = False,
) -> dict:
    """Compare run B with run A, see :func:`mmseg_ignite.evaluation.compare`; write the result as JSON if asked.

    Raises:
        IgniteError: there are no such runs, they are not comparable, or one scored patients that its checkpoint was trained
            on and ``allow_seen_patients`` is False.

    Example:
        >>> result = compare_runs('work_dirs/b0', 'work_dirs/b2')
        >>> print(comparison_table(result))  # from mmseg_ignite.evaluation.comparison
    """
    for run in (a, b):
        folder = Path(run) if Path(run).is_dir() else Path(run).parent
        if (seen := _context(folder).get('seen_patients')) and not allow_seen_patients:
            raise IgniteError(
                f'{run} scored {len(seen)} patients that its checkpoint was trained or validated on, e.g. {seen[0]}, so a '
                'comparison would favour it: test it on unseen patients, or pass --allow-seen-patients.'
            )
    if out is not None:
        check_outputs([out], [path for run in (a, b) for path in (run, *run_files(run))])
    result = dict(a=str(a), b=str(b), **compare(Evaluation.load(a), Evaluation.load(b), samples, seed))
    if out is not None:
        with writing(out, 'choose another file'):
            write_result(out, result)
    return result


def read_groupings(path: str | Path) -> dict:
    """Read groupings from a JSON file, {grouping: {group: [class names] or 'rest'}}; they are checked when scoring.

    Raises:
        IgniteError: there is no such file, it is not JSON or has another form.

    Example:
        >>> rescore('work_dirs/b0', groupings=read_groupings('groupings.json'))
    """
    found = read_json(path, REMEDY)
    check_form(found, FORM, path, REMEDY)
    return found
