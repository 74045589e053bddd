"""Exporting a trained model to other programs."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import numpy as np
from mmengine.config import Config

from ..datasets.prepared import INDEX, image_path, open_array, read_index
from ..engine.ensembles import Ensemble
from ..errors import IgniteError
from ..evaluation.run import METRICS
from ..evaluation.saved_metrics import read_metrics
from ..export import ExportNetwork, ModelDescription
from ..export.model_card import model_card
from ..export.packages import FORMATS, Exported, folder_of
from ..export.records import RECORD, changed_files, write_record
from ..files import atomic_directory, check_output_folder, printable, writing
from ..images.reading import read_image
from ..preparation.synthetic import draw_tissue
from .predictor import MIN_SIDE, Predictor

TEST = 'test'
"""Folder beside the JSON file of an ensemble that has its test, as tools/cross_validate.py suggests."""
_REAL_SIDE = 512
"""px; a comparison with the model needs no larger part of an image."""


def export(
    cfg: Config,
    checkpoint: str | Path,
    out: str | Path,
    formats: Sequence[str] = ('onnx',),
    inputs: str = 'normalised',
    outputs: str = 'logits',
    metrics: str | Path | None = None,
    images: Sequence[str | Path] = (),
    overwrite: bool = False,
    report: Callable[[str], None] = print,
) -> list[Path]:
    """Write a trained model, or an ensemble, in formats of other programs; compare what was written with the model.

    Args:
        cfg: config of the model; it is not changed.
        checkpoint: a checkpoint, a work dir or an ensemble, see :mod:`mmseg_ignite.engine.ensembles`.
        out: output folder; each format gets a folder in it.
        formats: keys of :data:`mmseg_ignite.export.packages.FORMATS`.
        inputs, outputs: kinds of input and output for ONNX, see :mod:`mmseg_ignite.export.network`.
        metrics: ``metrics.json`` of a test of this checkpoint, or its folder, for the model card. Defaults to None: the one
            beside the checkpoint or in the folder ``test`` there, if there is one.
        images: images of real tissue for the comparison. Defaults to the first ROI of the config's prepared data set if it is
            there, else synthetic tissue.
        overwrite: replace packages that an earlier export wrote and nobody changed, see
            :mod:`mmseg_ignite.export.records`.
        report: called with lines of text.

    Returns:
        the folders that were written.

    Raises:
        IgniteError: checkpoint and config do not match, a library is missing, a format cannot hold the model, a folder has
            other files or an input, or what was written does not compute what the model computes. Packages of the formats
            before the failing one are whole.

    Example:
        >>> export(load_config(config), 'work_dirs/b0', 'exported', ['onnx', 'qupath'])
    """
    folders = {name: folder_of(out, name) for name in dict.fromkeys(formats)}
    modules = {name: _module(name) for name in folders}
    inputs_read = _inputs(cfg, checkpoint, metrics, images)
    for name, folder in folders.items():
        _check_folder(folder, modules[name].FILES, overwrite, inputs_read)
    Ensemble.read(checkpoint).check_weights()
    exported = _exported(cfg, checkpoint, inputs, outputs, metrics, images, report)
    for module in modules.values():
        module.check(exported)
    for name, folder in folders.items():
        own = (RECORD, *modules[name].FILES)
        with _writing(folder), atomic_directory(folder, own) as partial:
            modules[name].write(partial, exported)
            write_record(partial, name, exported.description)
            _check_folder(folder, modules[name].FILES, overwrite, inputs_read)  # another export may have been faster
        report(f'{name}: {printable(folder)}')
    return list(folders.values())


def _module(name: str) -> ModuleType:
    if name not in FORMATS:
        raise IgniteError(f'the format is {name!r}; one of {", ".join(FORMATS)} was expected: correct it.')
    return FORMATS[name].load()


def _inputs(
    cfg: Config, checkpoint: str | Path, metrics: str | Path | None, images: Sequence[str | Path]
) -> list[Path]:
    """Return the files that an export reads and must not replace."""
    ensemble = Ensemble.read(checkpoint)
    given = [cfg.filename, metrics, *images, ensemble.path, *ensemble.members]
    return [Path(os.path.realpath(path)) for path in given if path is not None]


def _check_folder(folder: Path, own: Sequence[str], overwrite: bool, inputs: Sequence[Path]) -> None:
    """Raise IgniteError if a folder cannot be written, or has files that must not be replaced."""
    check_output_folder(folder)
    real = Path(os.path.realpath(folder))
    if found := next((path for path in inputs if real in path.parents), None):
        raise IgniteError(
            f'{printable(folder)} would be replaced, but it has an input of this export ({printable(found.name)}): choose '
            'another --out.'
        )
    found = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if not found:
        return
    shown = ', '.join(map(printable, found[:3]))
    if not overwrite:
        raise IgniteError(
            f'{printable(folder)} has files already ({shown}): choose another --out, or replace an earlier export by '
            '--overwrite.'
        )
    if foreign := [name for name in found if RECORD not in found or name not in (RECORD, *own)]:
        shown = ', '.join(map(printable, foreign[:3]))
        raise IgniteError(f'{printable(folder)} has files that no export wrote ({shown}): choose another --out.')
    if changed := changed_files(folder):
        raise IgniteError(
            f'{printable(folder)} was changed since it was exported (e.g. {printable(changed[0])}): choose another --out, or '
            'move the folder.'
        )


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Name the folder in errors of a full disk, rather than a temporary file; torch raises them as RuntimeError."""
    remedy = 'free some space, or choose another --out'
    try:
        with writing(folder, remedy):
            yield
    except IgniteError as error:
        if not isinstance(reason := error.__cause__, OSError):
            raise
        raise IgniteError(f'{printable(folder)} cannot be written ({reason.strerror or reason}): {remedy}.') from reason
    except RuntimeError as error:
        if 'PytorchStreamWriter' not in str(error):
            raise
        raise IgniteError(f'{printable(folder)} cannot be written (the disk is full?): {remedy}.') from error


def _exported(
    cfg: Config,
    checkpoint: str | Path,
    inputs: str,
    outputs: str,
    metrics: str | Path | None,
    images: Sequence[str | Path],
    report: Callable[[str], None],
) -> Exported:
    tissue = _real_images(cfg, images, report)
    predictor = Predictor(cfg, checkpoint, 'cpu')
    if predictor.transforms:
        raise IgniteError(
            f'the test pipeline of {cfg.filename or "the config"} changes images ({predictor.transforms[0][:80]}), which an '
            'exported network does not: remove the transform and measure the scores again.'
        )
    ExportNetwork(predictor.model, inputs, outputs)  # refuses models that cannot be exported
    description = ModelDescription.of(*(predictor.model, cfg, predictor.ensemble, predictor.metas, predictor.um_per_px))
    scores = _scores(predictor.ensemble, metrics, report)
    return Exported(
        model=predictor.model,
        description=description,
        metas=predictor.metas,
        card=model_card(description, scores),
        images=tissue,
        inputs=inputs,
        outputs=outputs,
        report=report,
        config=cfg,
        scores=scores,
        patients=sorted(predictor.ensemble.patients),
    )


def _scores(ensemble: Ensemble, metrics: str | Path | None, report: Callable[[str], None]) -> dict | None:
    """Return the scores of this checkpoint; None if none are stated.

    Raises:
        IgniteError: the file is damaged, or states the scores of another checkpoint.
    """
    advice = 'test the model with tools/test.py first, or pass --metrics.'
    if metrics is not None:
        path = Path(metrics) / METRICS if Path(metrics).is_dir() else Path(metrics)
        found = read_metrics(path)
        if fault := _foreign(found, ensemble):
            raise IgniteError(f'{printable(path)} {fault}: test this one with tools/test.py and pass its metrics.json.')
        return found
    folder, faults = ensemble.path.parent, []
    for path in (folder / METRICS, folder / TEST / METRICS):
        if path.is_file():
            found = read_metrics(path)
            fault = _foreign(found, ensemble)
            if not fault:
                return found
            faults.append(f'{printable(path)} {fault}')
    reason = faults[0] if faults else f'there is no {printable(folder / METRICS)}'
    report(f'note: {reason}, so the model card has no scores: {advice}')
    return None


def _foreign(metrics: dict, ensemble: Ensemble) -> str | None:
    """Return why the scores are not those of an ensemble; None if they are."""
    stated, own = metrics.get('provenance') or {}, ensemble.checksums()
    if not stated.get('checkpoint_sha256'):
        return 'does not state whose scores it has'
    same = all(stated.get(key) == value for key, value in own.items())
    return None if same else f'has the scores of another checkpoint than {printable(ensemble.path)}'


def _real_images(cfg: Config, paths: Sequence[str | Path], report: Callable[[str], None]) -> list[np.ndarray]:
    """Return images to compare with, (h, w, 3) uint8 RGB, 32 to 512 px per side."""
    if paths:
        images = [_centre(read_image(path).pixels) for path in paths]
        for path, image in zip(paths, images):
            if min(image.shape[:2]) < MIN_SIDE:
                raise IgniteError(
                    f'{printable(path)} is {image.shape[0]} x {image.shape[1]} px; at least {MIN_SIDE} px per side were '
                    'expected: choose another image.'
                )
        return images
    dataset = (cfg.get('test_dataloader') or {}).get('dataset') or {}
    root = dataset.get('data_root') or cfg.get('data_root')
    if root and (Path(root) / INDEX).is_file():
        if rois := read_index(root)['rois']:
            return [_centre(np.asarray(open_array(image_path(root, rois[0]['name']))))]
    report('note: no tissue is at hand for the comparison (--images); synthetic tissue takes its place.')
    return [draw_tissue((_REAL_SIDE, _REAL_SIDE))]


def _centre(image: np.ndarray) -> np.ndarray:
    top, left = (max(0, (side - _REAL_SIDE) // 2) for side in image.shape[:2])
    return np.ascontiguousarray(image[top : top + _REAL_SIDE, left : left + _REAL_SIDE])
