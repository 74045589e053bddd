"""Cross-validation: a training a fold, each scored on patients that it has not seen, and an ensemble of them all."""

import gc
import hashlib
import json
import os
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

from mmengine.config import Config
from mmengine.dist import barrier
from mmseg.registry import METRICS as METRIC_TYPES

from ..datasets.prepared import read_index, roi_name
from ..datasets.protocols import FOLDS
from ..engine.distributed import is_main_process
from ..engine.ensembles import write_ensemble
from ..engine.work_dirs import POINTER, latest_checkpoint
from ..errors import IgniteError
from ..evaluation import Evaluation
from ..evaluation.folds import fold_scores
from ..evaluation.run import METRICS, RAW
from ..evaluation.text_table import table
from ..files import check_outputs, link_file, write_json
from .checks import check_data, check_parts, is_ours
from .configuration import load_config
from .publishing import ENSEMBLE, PREDICTIONS, REPORT, ensemble_scores, publish, run_files
from .testing import test, tissue_metric
from .training import train

FOLD = 'fold.json'
FORMAT = 1
ARRAY_TASK = 'SLURM_ARRAY_TASK_ID'
_NAMES = f'{FOLDS[0]} to {FOLDS[-1]}'
_FREE = ('work_dir', 'launcher', 'resume', 'data_root', 'num_workers', 'persistent_workers', 'pin_memory')
"""Settings that a fold may be gone on with, and pooled, though they differ: where and on what it runs."""


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
    say: Callable[[str], None] = print,
) -> dict:
    """Train the folds of a prepared data set and score each on its own ``val`` part by its last checkpoint.

    Fold K is a run folder ``foldK`` of the work dir. Finished ones are skipped; whoever finishes the last of the five
    writes the run of all their ROIs, with a table of the folds, and, last, ``ensemble.json`` into the work dir. The scores of
    the ensemble stand beside the folds once it was tested in the folder ``test`` of the work dir and this is called again.

    Args:
        work_dir: Defaults to None: that of :func:`load_config`, with ``-folds`` behind it.
        options: see :func:`load_config`; ``protocol`` is the fold's.
        folds: how many the data have; 5.
        only: numbers of the folds to run. Defaults to None: the one that the environment's SLURM_ARRAY_TASK_ID says, else
            all.
        resume: go on with begun folds from their newest checkpoints.
        amp, weights, minutes: of each training, see :func:`train`.
        report: language of the reports, 'en' or 'ko'; None for none.
        say: told what goes on, a line or a table each.

    Returns:
        What ``metrics.json`` of the work dir holds; nothing as long as folds are missing, and in the other processes of a
        distributed run.

    Raises:
        IgniteError: as :func:`train` and :func:`test`; no such fold, data without folds, or a fold that was begun with other
            settings, or is begun and ``resume`` not asked for.
    """
    say = say if is_main_process() else _say_nothing
    chosen = _chosen(folds, only, say)
    folder = Path(work_dir or f'{load_config(config, options).work_dir}-folds')
    load_config(config, options, str(folder))  # fails with a sentence if the folder is none
    if 'protocol' in (options or {}):
        raise IgniteError(
            f'the option protocol is {options["protocol"]!r}, but each fold is its own protocol: leave it out.'
        )
    training = dict(amp=amp, weights=weights, minutes=minutes)
    every = [_Fold(number, config, folder, options or {}, launcher, training) for number in range(len(FOLDS))]
    for fold in every:
        fold.check()
    pooled = [folder / PREDICTIONS / f'{name}.png' for fold in every for name in fold.parts['val']]
    check_outputs([*run_files(folder, report), folder / ENSEMBLE, *pooled])
    for number in chosen:
        every[number].check_start(resume)
    for number in chosen:
        _run(every[number], resume, report, say)
    if not is_main_process():
        return {}
    if missing := [str(fold.number) for fold in every if not fold.finished]:
        say(f'folds {", ".join(missing)} are not finished; whoever finishes the last of them pools all in {folder}')
        return {}
    result = _pooled(folder, report) or _pool(every, folder, report)
    say(
        f'\nall ROIs outside the test part, each predicted by the fold that has not seen its patient:\n\n{table(result)}\n'
    )
    say(f'written: {folder}' + ('' if report is None else f', see {REPORT} in it'))
    said = ' '.join(shlex.quote(f'{key}={value}') for key, value in {**(options or {}), 'protocol': FOLDS[0]}.items())
    ensemble = shlex.join([str(config), str(folder / ENSEMBLE)])
    say(
        'the ensemble, scored on the test part, which no fold has seen (run this command again to have it in the table of '
        'the folds), and used:\n'
        f'    python tools/test.py {ensemble} --work-dir {shlex.quote(str(folder / "test"))} --cfg-options {said}\n'
        f'    python tools/predict.py {ensemble} IMAGE_OR_FOLDER --out predictions'
    )
    return result


def _say_nothing(line: str) -> None:
    """In the other processes of a distributed run."""


def _chosen(folds: int, only: list[int] | None, say: Callable[[str], None]) -> list[int]:
    """The numbers of the folds to run, in order."""
    if folds != len(FOLDS):
        raise IgniteError(
            f'--folds is {folds}; prepared data have the {len(FOLDS)} folds {_NAMES}: leave it out, and train some of them '
            'with --fold.'
        )
    numbers, source, mend = only, '--fold', 'give such ones'
    if only is None:
        task = os.environ.get(ARRAY_TASK)
        if task is None:
            return list(range(len(FOLDS)))
        numbers, source, mend = [task], ARRAY_TASK, 'submit the job with --array=0-4, or give --fold'
    wrong = [n for n in numbers if str(n) not in map(str, range(len(FOLDS)))]
    if wrong or not numbers:
        raise IgniteError(
            f'{source} is {wrong[0] if wrong else "empty"}; numbers of folds, 0 to {len(FOLDS) - 1}, were expected: {mend}.'
        )
    numbers = sorted({int(n) for n in numbers})
    if only is None:
        say(f'{ARRAY_TASK} is {numbers[0]}: only that fold is run')
    return numbers


class _Fold:
    """One fold: its config, and what its folder says of how far it is.

    ``fold.json`` in it holds the settings it was begun with and, once it is trained, the name of its last checkpoint.

    Attributes:
        cfg: its config, to be read only.
        dataset: the settings of the data that are scored.
        parts: {'train' | 'val' | 'test': names of ROIs}.
    """

    def __init__(
        self, number: int, config: str | Path, folder: Path, options: dict, launcher: str, training: dict
    ) -> None:
        self.number, self.name = number, FOLDS[number]
        self.folder = folder / self.name
        self._config, self._launcher, self.training = config, launcher, training
        self._options = {**options, 'protocol': self.name}
        self.cfg = cfg = self.config()
        self.dataset = cfg.test_dataloader.dataset
        self.parts = self._parts(cfg)
        evaluators = cfg.test_evaluator if isinstance(cfg.test_evaluator, (list, tuple)) else [cfg.test_evaluator]
        self.metric = tissue_metric([METRIC_TYPES.build(e) for e in evaluators])
        self.context = dict(
            config=cfg.filename, data=self.dataset.data_root, use_context=bool(self.dataset.get('use_context'))
        )
        self._settings = {key: repr(value) for key, value in _flat(cfg.to_dict())}
        self._settings |= {f'--{key}': repr(value) for key, value in training.items()}
        self._settings['ROIs (SHA-256)'] = hashlib.sha256(json.dumps(self.parts, sort_keys=True).encode()).hexdigest()

    def config(self) -> Config:
        """The fold's config, read anew, since a run changes its own."""
        cfg = load_config(self._config, self._options, str(self.folder), self._launcher)
        for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
            if not is_ours((cfg.get(loader) or {}).get('dataset')):
                raise IgniteError(
                    f'{loader} of {self._config} has no data set of this package, which alone knows the folds: take '
                    'IGNITECropDataset to train and IGNITEDataset to validate and to test.'
                )
        for task in ('training', 'test'):
            check_parts(cfg, task)
        _check_meta_keys(cfg, self._config)
        cfg.test_dataloader.dataset.split = 'val'
        return cfg

    def _parts(self, cfg: Config) -> dict:
        """The ROIs of the parts of the fold."""
        root = self.dataset.data_root
        splits = read_index(root)['splits']
        if self.name not in splits:
            raise IgniteError(
                f'{root} has no folds, since fewer than five patients remain outside the test part: prepare more ROIs.'
            )
        part = cfg.train_dataloader.dataset.get('split', 'train')
        if part != 'train':
            raise IgniteError(
                f'train_dataloader.dataset.split is {part!r}; train was expected, since val is to be scored unseen: set that.'
            )
        return splits[self.name]

    def _read(self) -> dict | None:
        path = self.folder / FOLD
        if not path.is_file():
            return None
        try:
            known = json.loads(path.read_text(encoding='utf-8'))
        except (OSError, ValueError) as error:
            raise IgniteError(
                f'{path} cannot be read ({error}): delete {self.folder}, and run the fold again.'
            ) from error
        if not isinstance(known, dict) or known.get('format') != FORMAT or not isinstance(known.get('settings'), dict):
            raise IgniteError(f'{path} is not of format {FORMAT}: delete {self.folder}, and run the fold again.')
        return known

    def write(self, **more: object) -> None:
        """Write ``fold.json``."""
        if not is_main_process():
            return
        try:
            write_json(self.folder / FOLD, dict(format=FORMAT, settings=self._settings, **more))
        except OSError as error:
            raise IgniteError(
                f'{self.folder} cannot be written ({error.strerror or error}): choose another work dir.'
            ) from error

    @property
    def finished(self) -> bool:
        """Whether it is trained and scored; the files may be another process's."""
        return all((self.folder / name).is_file() for name in (FOLD, RAW, METRICS))

    @property
    def begun(self) -> bool:
        """Whether it has a checkpoint to go on from."""
        return (self.folder / POINTER).is_file() or latest_checkpoint(self.folder) is not None

    @property
    def checkpoint(self) -> Path | None:
        """The last checkpoint of the fold, once it is trained."""
        name = (self._read() or {}).get('checkpoint')
        return None if name is None else self.folder / Path(name).name

    def check(self) -> None:
        """Raise IgniteError if the folder holds something else than this fold with these settings."""
        holds = self.begun or (self.folder / METRICS).is_file()  # before it is read: another process may begin it now
        known = self._read()
        if known is None:
            if holds:
                raise IgniteError(
                    f'{self.folder} holds a run that is no fold of a cross-validation: choose another work dir.'
                )
            return
        before, now = known['settings'], self._settings
        for key in sorted(before.keys() | now.keys()):
            if before.get(key) != now.get(key):
                raise IgniteError(
                    f'{self.folder} was begun with {key} = {before.get(key, "nothing")}, which is now '
                    f'{now.get(key, "nothing")}: go on as it was begun, or choose another work dir.'
                )

    def check_start(self, resume: bool) -> None:
        """Raise IgniteError if the fold cannot be run: data are wrong, or it is begun and not to be gone on with."""
        if self.finished:
            return
        check_data(self.cfg, 'train_dataloader', 'val_dataloader', 'test_dataloader')
        if self.begun and self.checkpoint is None and not resume:
            raise IgniteError(
                f'{self.folder} holds a training that was begun: go on with it by --resume, or delete the folder.'
            )


def _flat(node: object, name: str = '') -> Iterator[tuple[str, object]]:
    """The values of nested settings by dotted names, but for those that are free."""
    if not isinstance(node, (dict, list, tuple)) or not node:
        yield name, node
        return
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        if key not in _FREE:
            yield from _flat(value, f'{name}.{key}' if name else str(key))


def _run(fold: _Fold, resume: bool, report: str | None, say: Callable[[str], None]) -> None:
    """Train and score a fold, as far as that is left to do."""
    head = f'fold {fold.number} of 0 to {len(FOLDS) - 1}'
    if fold.finished:
        say(f'{head}: finished already, skipped')
        return
    if is_main_process():
        (fold.folder.parent / ENSEMBLE).unlink(missing_ok=True)  # it is of other trainings
    checkpoint = fold.checkpoint
    if checkpoint is None:
        say(f'{head}: training in {fold.folder}')
        fold.write()
        train(_named(fold, 'train'), resume, **fold.training)
        gc.collect()  # the runner's cycles hold the model, its optimizer and the workers
        barrier()  # the last checkpoint is written
        checkpoint = latest_checkpoint(fold.folder)
        fold.write(checkpoint=checkpoint.name)
    say(f'{head}: scoring its val part by {checkpoint.name}')
    # The last checkpoint was not chosen by its validation patients, so their scores are those of unseen patients.
    test(_named(fold, 'test'), checkpoint, report=report, count_validation=False)
    gc.collect()


def _named(fold: _Fold, stage: str) -> Config:
    """The fold's config with a name of its own, by which mmengine keeps logs and pictures of a process's runs apart."""
    cfg = fold.config()
    cfg.experiment_name = f'{Path(cfg.filename).stem}-{fold.name}-{stage}'
    if cfg.get('visualizer'):
        cfg.visualizer.pop('name', None)
    return cfg


def _pooled(folder: Path, report: str | None) -> dict | None:
    """What an earlier call has pooled; None if there is something to do."""
    if not (folder / ENSEMBLE).is_file() or (report is not None and not (folder / REPORT).is_file()):
        return None
    try:
        known = json.loads((folder / METRICS).read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return None
    return known if 'folds' in known and known.get('ensemble') == ensemble_scores(folder) else None  # else tested since


def _patients(fold: _Fold) -> set[object]:
    """The patients outside the test part, each of whom is in the training part of four folds."""
    entries = read_index(fold.dataset.data_root)['rois']
    names = {*fold.parts['train'], *fold.parts['val']}
    return {entry['patient'] for entry in entries if entry['name'] in names}


def _check_meta_keys(cfg: Config, config: str | Path) -> None:
    """Raise IgniteError if the test pipeline drops what scores of unseen patients need."""
    pipeline = cfg.test_dataloader.dataset.get('pipeline') or ()
    packing = [t for t in pipeline if str(t.get('type')).split('.')[-1] == 'PackSegInputs']
    for transform in packing:
        lacking = [key for key in ('roi', 'patient') if key not in transform.get('meta_keys', ())]
        if lacking:
            raise IgniteError(
                f'PackSegInputs of the test pipeline of {config} drops {" and ".join(lacking)}, by which cross-validation '
                'scores patients: add them to its meta_keys, as configs/_base_/datasets/ignite.py does.'
            )


def _pool(every: list[_Fold], folder: Path, report: str | None) -> dict:
    """Write the run of all folds' ROIs and the ensemble; two processes that do so at once write the same."""
    evaluations = [Evaluation.load(fold.folder) for fold in every]
    for fold, evaluation in zip(every, evaluations):
        if wrong := set(map(roi_name, evaluation.names)) ^ set(fold.parts['val']):
            raise IgniteError(
                f'{fold.folder} was not scored on the ROIs of the val part of {fold.name} (e.g. {sorted(wrong)[0]}): delete '
                f'{fold.folder / METRICS}, and score the fold again.'
            )
    evaluation, first = Evaluation.merge(evaluations), every[0]
    predictions = folder / PREDICTIONS
    try:
        for fold in every:
            for name in fold.parts['val']:
                if (path := fold.folder / PREDICTIONS / f'{name}.png').is_file():
                    link_file(path, predictions / path.name)
    except OSError as error:
        raise IgniteError(
            f'{predictions} cannot be written ({error.strerror or error}): make room, or mend its rights.'
        ) from error
    context = dict(first.context, split='val', protocol=', '.join(FOLDS), predictions=str(predictions), encoding='raw')
    context['folds'] = fold_scores({fold.name: part.metrics(samples=0) for fold, part in zip(every, evaluations)})
    if tested := ensemble_scores(folder):
        context['ensemble'] = tested
    result = publish(folder, evaluation, context, report, **first.metric.options)
    write_ensemble(folder / ENSEMBLE, [fold.checkpoint for fold in every], _patients(first))
    return result
