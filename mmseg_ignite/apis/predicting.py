"""Predicting images and slides: label maps, overlays, outlines, areas, a viewer, and a record of how each was made."""

import contextlib
import os
import shutil
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from mmengine.config import Config

from ..engine.claims import Claims
from ..engine.ensembles import Ensemble
from ..engine.launchers import use_launcher
from ..errors import IgniteError
from ..files import check_writable, printable, writing
from ..provenance import file_sha256
from ..regions.areas import read_cases
from ..regions.qupath import write_classes
from .input_prediction import predict_input
from .prediction_inputs import CLASSES_FILE, PAGE, TABLES, Input, check_results, find_inputs
from .prediction_options import PredictionOptions
from .prediction_records import UNFINISHED, Records, checksums, fault, input_state, sizes, source, write_tables
from .predictor import Predictor

_SCRATCH = '.unfinished'
_CLAIMS = '.claims'
_DECISIVE = ('amp', 'training', 'inference', 'test_transforms')
"""Facts about a model that its results depend on; files may move, and devices may differ between processes."""
_WAIT = 1.0
"""Seconds between two looks at the claims of other processes."""


def predict(
    cfg: Config,
    checkpoint: str | Path,
    inputs: Sequence[str | Path],
    out: str | Path,
    device: str | None = None,
    amp: bool = False,
    report: Callable[[str], None] = print,
    symmetries: int | None = None,
    window_batch: int | None = None,
    launcher: str = 'none',
    compile: bool | None = None,
    **options: object,
) -> list[str]:
    """Predict images, slides and folders of them with a checkpoint; check everything before the model is built.

    Args:
        cfg: config of the model; it is not changed.
        checkpoint, device, amp, symmetries, window_batch, compile: see :class:`Predictor`.
        launcher: 'none', 'pytorch', 'slurm' or 'mpi'; each process takes the GPU of its rank on its machine.
        inputs, out, report, options: see :func:`predict_files`.

    Returns:
        One sentence for each input that could not be predicted.

    Raises:
        IgniteError: see :class:`Predictor` and :func:`predict_files`.

    Example:
        >>> predict(load_config(config), 'work_dirs/b0/iter_20000.pth', ['slides/*.svs'], 'predictions')
    """
    use_launcher(launcher)
    if launcher != 'none' and device is None and torch.cuda.is_available():
        device = f'cuda:{int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count()}'
    ensemble = Ensemble.read(checkpoint)
    chosen = PredictionOptions.of(options)
    read = [path for path in (cfg.filename, ensemble.path, *ensemble.members) if path]
    work = _Work(inputs, Path(out), chosen, read, len(ensemble.members) > 1)
    if Path(checkpoint).is_dir():
        report(f'checkpoint: {printable(ensemble.path)}')
    if compile:
        report('compiling encoder and decoder, which takes half a minute or more')
    faults = work.run(Predictor(cfg, checkpoint, device, amp, symmetries, window_batch, compile), report)
    if 'page' in chosen.formats and (work.out / PAGE).is_file():
        report(f'viewer: {printable(work.out / PAGE)}')
    return faults


def predict_files(
    predictor: Predictor,
    paths: Sequence[str | Path],
    out: str | Path,
    report: Callable[[str], None] = print,
    **options: object,
) -> list[str]:
    """Predict images, slides and folders of them; report an input that fails and continue with the others.

    Several processes with the same arguments share the work: each claims one input at a time. Finished inputs are skipped.
    The files are described in docs/slides.md and docs/prediction.md.

    Args:
        predictor: the model.
        paths: images, slides, ``.npy`` arrays, folders, and patterns such as ``slides/*.svs``.
        out: output folder.
        report: called with a line of text for each input.
        options: fields of :class:`.PredictionOptions`, e.g. ``um_per_px``, ``formats``, ``min_area``.

    Returns:
        One sentence for each input that could not be predicted.

    Raises:
        IgniteError: before anything is predicted: a path does not exist, a folder contains no image or slide, an option is
            implausible, or outputs may not be written (see :func:`mmseg_ignite.files.check_outputs`). Afterwards: a table
            cannot be written, e.g. because the disk is full.

    Example:
        >>> predict_files(Predictor(config, checkpoint), ['slides/'], 'predictions', formats=('label', 'geojson'))
    """
    chosen = PredictionOptions.of(options)
    return _Work(paths, Path(out), chosen, (), len(predictor.ensemble.members) > 1).run(predictor, report)


def predict_one(predictor: Predictor, path: str | Path, out: str | Path, **options: object) -> dict:
    """Predict one input like :func:`predict_files`; return its record, or raise what went wrong as IgniteError."""
    work = _Work([path], Path(out), PredictionOptions.of(options), (), len(predictor.ensemble.members) > 1)
    if len(work.inputs) != 1:
        raise IgniteError(f'{printable(path)} holds {len(work.inputs)} inputs; one slide or image was expected.')
    faults = work.run(predictor, lambda text: None)
    if faults:
        raise IgniteError(faults[0])
    return work.records.read(work.inputs[0].name)


class _Work:
    """The inputs to predict into a folder, checked before the model is built.

    Attributes:
        inputs: in order.
        records: of the folder; known from the start of :meth:`run`.
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        out: Path,
        options: PredictionOptions,
        read: Sequence[str | Path],
        ensemble: bool,
    ) -> None:
        self.inputs, self.out, self.options, self.ensemble = find_inputs(paths), out, options, ensemble
        options.check_packages(any(item.kind == 'slide' for item in self.inputs), ensemble)
        if options.tissue_mask is not None and len(self.inputs) > 1:
            raise IgniteError(
                f'{printable(options.tissue_mask)} is the tissue mask of one input, but there are {len(self.inputs)}: '
                'predict that one alone.'
            )
        further = [path for path in (options.tissue_mask, options.cases) if path]
        self.faults = check_results(self.inputs, out, options, [*read, *further], ensemble)
        names = {*Records(out, {}).names(), *(item.name for item in self.inputs)}
        self.cases = read_cases(options.cases, names) if options.cases else None
        check_writable(out)

    def run(self, predictor: Predictor, report: Callable[[str], None]) -> list[str]:
        """Predict what is not finished; return one sentence for each input that failed."""
        facts = _facts(predictor, self.options)
        predictor.compilation.report = report
        settings = self.options.settings(
            {name: facts[name] for name in _DECISIVE} | dict(checkpoints=_checksums(facts))
        )
        self.records, self.claims = Records(self.out, settings), Claims(self.out / _CLAIMS)
        with self.claims.waited('.start'):
            self.records.check_others(self.options.overwrite)
            if 'geojson' in self.options.formats:
                with writing(self.out / CLASSES_FILE):
                    write_classes(self.out / CLASSES_FILE)
        for item in () if self.options.overwrite else self.inputs:
            if item not in self.faults and (other := self.records.other_input(item)):
                self.faults[item] = (
                    f'{printable(item.path)} would replace the results of {other} in {printable(self.out)}: choose another '
                    'folder, or replace them by --overwrite.'
                )
        faults: dict[Input, str] = dict(self.faults)
        try:
            for number, item in enumerate(self.inputs, 1):
                if item in self.faults:
                    report(f'[{number}/{len(self.inputs)}] skipped: {self.faults[item]}')
            self._predict_all(predictor, report, faults)
        finally:
            named = [dict(file=printable(item.path), error=fault) for item, fault in self.faults.items()]
            facts['compilation'] = predictor.compilation.record()
            write_tables(self.records, self.claims, facts, self.options, named, self.cases)
            for folder in (_SCRATCH, _CLAIMS):
                with contextlib.suppress(OSError):  # another process is at work
                    (self.out / folder).rmdir()
        self._report_assumed(predictor, report)
        return [faults[item] for item in self.inputs if item in faults]

    def _predict_all(self, predictor: Predictor, report: Callable[[str], None], faults: dict[Input, str]) -> None:
        """Predict each input in this process or wait until another process has done it."""
        started = time.time()
        waiting = [(number, item) for number, item in enumerate(self.inputs, 1) if item not in self.faults]
        fresh, reported = self.options.overwrite, False
        while waiting:
            left = []
            for place, (number, item) in enumerate(waiting, 1):
                predictor.compilation.further = sum(other.kind == 'slide' for _, other in waiting[place:])
                before = f'[{number}/{len(self.inputs)}] '
                with self.claims.claimed(item.name) as mine:
                    if not mine:
                        left.append((number, item))
                        continue
                    self.records.check_other(item.name)
                    done = self._finished(item, started, fresh)
                    line = done if done is not None else self._predict_one(predictor, item)
                    if line is None:
                        left.append((number, item))
                        continue
                    if error := self.records.read(item.name).get('error'):
                        faults[item], line = error, f'skipped: {error}'
                    report(before + line)
            if left and len(left) == len(waiting):
                if not reported:
                    holder = self.claims.holder(left[0][1].name)
                    report(f'waiting for {printable(left[0][1].path)}, which {holder or "another process"} predicts')
                    reported = True
                time.sleep(_WAIT)
            waiting = left

    def _finished(self, item: Input, started: float, fresh: bool) -> str | None:
        """Return a line about an input that need not be predicted; None if it must be."""
        record = self.records.path(item.name)
        with contextlib.suppress(OSError):
            recent = record.stat().st_mtime >= started
            failed = self.records.read(item.name).get('error', UNFINISHED) != UNFINISHED
            if recent and failed:  # in another process
                return ''
            if self.records.is_finished(item) and (recent or not fresh):
                return f'{printable(item.path)} is finished already'
        return None

    def _predict_one(self, predictor: Predictor, item: Input) -> str | None:
        """Predict an input and record the result or the fault.

        Returns:
            a line of text; None if another process has taken the input over, because this one was suspended.
        """
        name, shared = printable(item.path), self.out / _SCRATCH / item.name
        # A folder of its own: the process that takes an input over must not lose its files to a suspended one.
        scratch = shared / f'{socket.gethostname()}.{os.getpid()}'
        known = dict(name=item.name, file=name, source=source(item.path), input=input_state(item.path))
        shutil.rmtree(shared, ignore_errors=True)  # of a process that was killed
        try:
            with writing(self.out, 'free some space or choose another folder'):
                _make(scratch)
            entry, notes = predict_input(predictor, item, scratch, self.options)
            if not self.claims.is_mine(item.name):
                return None
            files = entry['files']
            found = dict(checksums=checksums(scratch, files), written=files)
            with writing(self.out, 'free some space or choose another folder'):
                self.records.keep(item.name, known, files, scratch)
            entry |= dict(found, sizes=sizes(self.out, files))
        except IgniteError as error:
            text = str(error)
            entry, notes = dict(error=text if name in text else f'{name}: {text}'), []
        except Exception as error:  # affects this input only: out of memory, an error of a decoder, ...
            entry, notes = dict(error=fault(name, error)), []
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
            with contextlib.suppress(OSError):
                shared.rmdir()
        if not self.claims.is_mine(item.name):
            return None
        self.records.write(item.name, dict(known, **entry))
        files = entry.get('files') or [TABLES[0]]  # --formats areas: only the tables
        first = next((file for file in files if file in (f'{item.name}.png', f'{item.name}.ome.tif')), files[0])
        return f'{name} -> {printable(self.out / first)}' + (f' ({"; ".join(notes)})' if notes else '')

    def _report_assumed(self, predictor: Predictor, report: Callable[[str], None]) -> None:
        entries = [self.records.read(item.name) for item in self.inputs if item not in self.faults]
        if assumed := sum('um_per_px' in entry and entry['um_per_px'] is None for entry in entries):
            report(
                f'note: the resolution of {assumed} image(s) is not known; {predictor.um_per_px:.3g} um/px, as in training, '
                'was assumed: state theirs with --mpp.'
            )


def _make(folder: Path) -> None:
    """Create a folder; the one around it may be removed by another process that has finished."""
    for _ in range(10):
        with contextlib.suppress(FileNotFoundError):
            return folder.mkdir(parents=True)
    folder.mkdir(parents=True)


def _facts(predictor: Predictor, options: PredictionOptions) -> dict:
    """Return what ``run.json`` says of the model; the results depend on it."""
    return dict(
        config=predictor.config_file and printable(predictor.config_file),
        checkpoint=printable(predictor.ensemble.path),
        checkpoints=[dict(file=printable(path), sha256=file_sha256(path)) for path in predictor.ensemble.members],
        **({'exported_from': predictor.model.file.checkpoints} if predictor.ensemble.is_graph else {}),
        engine=predictor.engine,
        device=str(predictor.device),
        amp=predictor.amp,
        training=dict(um_per_px=predictor.um_per_px, um_per_px_source=predictor.um_per_px_source),
        inference=dict(sorted((predictor.model.test_cfg or {}).items())),
        test_transforms=predictor.transforms,
        palette=options.palette,
        formats=list(options.formats),
        min_area_um2=options.min_area,
        tolerance_um=options.tolerance,
    )


def _checksums(facts: Mapping[str, object]) -> list[str]:
    return [member['sha256'] for member in facts['checkpoints']]
