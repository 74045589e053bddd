"""One fold of a cross-validation: its config, its progress on disk, its training and its scores."""

import gc
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from mmengine.config import Config
from mmengine.dist import barrier
from mmseg.registry import METRICS as METRIC_TYPES

from ..datasets.prepared import FOLDS, read_index
from ..datasets.transforms.loading import transform_name as type_name
from ..engine.distributed import is_main_process
from ..engine.work_dirs import POINTER, latest_checkpoint
from ..errors import IgniteError
from ..evaluation.run import METRICS, RAW
from ..files import write_json, writing
from ..untrusted import NAME, Form, check_form, file_inside, plain_name, read_json
from .checks import LOADERS, check_data, check_parts, is_ours
from .configuration import load_config
from .dotted import children, walk
from .testing import test, tissue_metric
from .training import train

FOLD = 'fold.json'
FORMAT = 1
_FREE = {'work_dir', 'launcher', 'resume', 'data_root', 'num_workers', 'persistent_workers', 'pin_memory', 'timeout'}
"""Settings that may differ when a fold is continued or pooled: where it runs, and on what."""

_FORM = {
    'format': Form(lambda value: type(value) is int and value == FORMAT, f'format {FORMAT}'),
    'settings': {'*': Form(lambda value: isinstance(value, str), 'text')},
    'checkpoint?': NAME,
}


class Fold:
    """One fold; ``fold.json`` in its folder holds its settings and, once it is trained, the name of its last checkpoint.

    Attributes:
        cfg: its config; read only.
        dataset: settings of the data set that is scored.
        parts: {'train' | 'val' | 'test': names of ROIs}.
        metric: the :class:`TissueMetric <mmseg_ignite.evaluation.TissueMetric>` of its config.
        training: arguments of :func:`train`.
    """

    def __init__(
        self, number: int, config: str | Path, folder: Path, options: dict, launcher: str, training: dict
    ) -> None:
        self.number, self.name = number, FOLDS[number]
        self.folder = folder / self.name
        self._config, self._launcher, self.training = config, launcher, training
        self._options = {**options, 'protocol': self.name}
        self.cfg = self._load()
        self.dataset = self.cfg.test_dataloader.dataset
        self.parts = self._parts()
        evaluators = self.cfg.test_evaluator
        evaluators = evaluators if isinstance(evaluators, (list, tuple)) else [evaluators]
        self.metric = tissue_metric([METRIC_TYPES.build(evaluator) for evaluator in evaluators])
        settings = ((key, value) for key, value in walk(self.cfg) if not children(value))
        self._settings = {key: repr(value) for key, value in settings if not _FREE & {*key.split('.')}}
        self._settings |= {f'--{key}': repr(value) for key, value in training.items()}
        self._settings['ROIs (SHA-256)'] = hashlib.sha256(json.dumps(self.parts, sort_keys=True).encode()).hexdigest()

    def _load(self, stage: str | None = None) -> Config:
        """Read the config of the fold; ``stage`` names it, so that mmengine separates the logs of runs in one process."""
        cfg = load_config(self._config, self._options, str(self.folder), self._launcher)
        for loader in LOADERS:
            if not is_ours((cfg.get(loader) or {}).get('dataset')):
                raise IgniteError(
                    f'{loader} of {self._config} has no data set of this package, and others do not know the folds: use '
                    'IGNITECropDataset to train and IGNITEDataset to validate and to test.'
                )
        for task in ('training', 'test'):
            check_parts(cfg, task)
        _check_meta_keys(cfg, self._config)
        cfg.test_dataloader.dataset.split = 'val'
        if stage is not None:
            cfg.experiment_name = f'{Path(cfg.filename).stem}-{self.name}-{stage}'
            if cfg.get('visualizer'):
                cfg.visualizer.pop('name', None)
        return cfg

    def _parts(self) -> dict:
        root = self.dataset.data_root
        splits = read_index(root)['splits']
        if self.name not in splits:
            raise IgniteError(
                f'{root} has no folds, since fewer than five patients remain outside the test part: prepare more ROIs.'
            )
        part = self.cfg.train_dataloader.dataset.get('split', 'train')
        if part != 'train':
            raise IgniteError(
                f'train_dataloader.dataset.split is {part!r}; train was expected, since val is scored as unseen: correct it.'
            )
        return splits[self.name]

    def _read(self) -> dict | None:
        path = self.folder / FOLD
        if not path.is_file():
            return None
        remedy = f'delete {self.folder}, and run the fold again'
        known = read_json(path, remedy)
        check_form(known, _FORM, path, remedy)
        return known

    def _write(self, **more: object) -> None:
        if is_main_process():
            with writing(self.folder, 'choose another work dir'):
                write_json(self.folder / FOLD, dict(format=FORMAT, settings=self._settings, **more))

    @property
    def finished(self) -> bool:
        """Whether the fold is trained and scored, perhaps by another process."""
        return all((self.folder / name).is_file() for name in (FOLD, RAW, METRICS))

    @property
    def started(self) -> bool:
        """Whether the fold has a checkpoint to continue from."""
        return (self.folder / POINTER).is_file() or latest_checkpoint(self.folder) is not None

    @property
    def checkpoint(self) -> Path | None:
        """The last checkpoint of the fold, once it is trained."""
        name = (self._read() or {}).get('checkpoint')
        return (
            None if name is None else file_inside(self.folder, plain_name(name, self.folder / FOLD), self.folder / FOLD)
        )

    @property
    def patients(self) -> set[object]:
        """The patients outside the test part; each is in the training part of four folds."""
        names = {*self.parts['train'], *self.parts['val']}
        return {entry['patient'] for entry in read_index(self.dataset.data_root)['rois'] if entry['name'] in names}

    def check_settings(self) -> None:
        """Raise IgniteError if the folder contains anything but this fold with these settings."""
        used = (
            self.started or (self.folder / METRICS).is_file()
        )  # before fold.json is read: another process may start it
        known = self._read()
        if known is None:
            if used:
                raise IgniteError(
                    f'{self.folder} contains a run that is not a fold of a cross-validation: choose another work dir.'
                )
            return
        before, now = known['settings'], self._settings
        for key in sorted(before.keys() | now.keys()):
            if before.get(key) != now.get(key):
                raise IgniteError(
                    f'{self.folder} was started with {_shown(key)} = {_shown(before.get(key, "nothing"))}, which is now '
                    f'{_shown(now.get(key, "nothing"))}: continue with the same settings, or choose another work dir.'
                )

    def check_start(self, resume: bool) -> None:
        """Raise IgniteError if the data are wrong, or if the fold was started and ``resume`` is False."""
        if self.finished:
            return
        check_data(self.cfg, *LOADERS)
        if self.started and self.checkpoint is None and not resume:
            raise IgniteError(
                f'{self.folder} contains an unfinished training: continue it with --resume, or delete the folder.'
            )

    def run(self, resume: bool, report: str | None, on_message: Callable[[str], None]) -> None:
        """Train and score the fold, skipping what is finished."""
        head = f'fold {self.number} of 0 to {len(FOLDS) - 1}'
        if self.finished:
            on_message(f'{head}: already finished, skipped')
            return
        checkpoint = self.checkpoint
        if checkpoint is None:
            on_message(f'{head}: training in {self.folder}')
            self._write()
            train(self._load('train'), resume, **self.training)
            gc.collect()  # the reference cycles of the runner keep the model, its optimizer and the workers
            barrier()  # the last checkpoint is written
            checkpoint = latest_checkpoint(self.folder)
            self._write(checkpoint=checkpoint.name)
        on_message(f'{head}: scoring its val part with {checkpoint.name}')
        # The last checkpoint was not selected by its validation patients, so they count as unseen.
        test(self._load('test'), checkpoint, report=report, count_validation=False)
        gc.collect()


def _shown(text: str) -> str:
    """Return text of a file for a sentence: short, and with line breaks escaped."""
    return repr(text[:200])[1:-1]


def _check_meta_keys(cfg: Config, config: str | Path) -> None:
    """Raise IgniteError if the test pipeline drops the keys that scores of unseen patients require."""
    for transform in cfg.test_dataloader.dataset.get('pipeline') or ():
        if type_name(transform) not in ('PackSegInputs', 'PackTissueInputs'):
            continue
        if missing := [key for key in ('roi', 'patient') if key not in transform.get('meta_keys', ())]:
            raise IgniteError(
                f'PackSegInputs of the test pipeline of {config} drops {" and ".join(missing)}, which cross-validation '
                'requires: add them to its meta_keys, as configs/_base_/datasets/ignite.py does.'
            )
