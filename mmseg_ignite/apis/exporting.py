"""Exporting a trained model to other programs."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from mmengine.config import Config

from ..datasets.prepared import image_path, open_array, read_index
from ..engine.ensembles import Ensemble
from ..errors import IgniteError
from ..evaluation.run import METRICS
from ..evaluation.saved_metrics import read_metrics
from ..export import ExportNetwork, ModelDescription
from ..export.model_card import model_card
from ..export.packages import FORMATS, Exported, folder_of
from ..files import atomic_directory, printable
from ..images.reading import read_image
from ..preparation.synthetic import draw_tissue
from .predictor import Predictor

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
        metrics: ``metrics.json`` of a test of this checkpoint, for the model card. Defaults to None: the one beside the
            checkpoint, if there is one.
        images: images of real tissue for the comparison. Defaults to the first ROI of the config's prepared data set if it is
            there, else synthetic tissue.
        overwrite: replace packages that an earlier export wrote.
        report: called with lines of text.

    Returns:
        the folders that were written.

    Raises:
        IgniteError: checkpoint and config do not match, a library is missing, a format cannot hold the model, a folder has
            other files, or what was written does not compute what the model computes.

    Example:
        >>> export(load_config(config), 'work_dirs/b0', 'exported', ['onnx', 'qupath'])
    """
    folders = {name: folder_of(out, name) for name in dict.fromkeys(formats)}
    modules = {name: FORMATS[name].load() for name in folders}
    for name, folder in folders.items():
        _check_folder(folder, modules[name].FILES, overwrite)
    Ensemble.read(checkpoint).check_weights()
    exported = _exported(cfg, checkpoint, inputs, outputs, metrics, images, report)
    for module in modules.values():
        module.check(exported)
    for name, folder in folders.items():
        with atomic_directory(folder, modules[name].FILES) as partial:
            modules[name].write(partial, exported)
        report(f'{name}: {printable(folder)}')
    return list(folders.values())


def _check_folder(folder: Path, own: Sequence[str], overwrite: bool) -> None:
    """Raise IgniteError if a folder has files that must not be replaced."""
    found = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if found and not (overwrite and own[0] in found and set(found) <= {*own}):
        remedy = (
            'choose another --out' if overwrite else 'choose another --out, or replace an earlier export by --overwrite'
        )
        raise IgniteError(f'{printable(folder)} has files already ({", ".join(map(printable, found[:3]))}): {remedy}.')


def _exported(
    cfg: Config,
    checkpoint: str | Path,
    inputs: str,
    outputs: str,
    metrics: str | Path | None,
    images: Sequence[str | Path],
    report: Callable[[str], None],
) -> Exported:
    predictor = Predictor(cfg, checkpoint, 'cpu')
    if predictor.transforms:
        raise IgniteError(
            f'the test pipeline of {cfg.filename or "the config"} changes images ({predictor.transforms[0][:80]}), which an '
            'exported network does not: remove the transform and measure the scores again.'
        )
    ExportNetwork(predictor.model, inputs, outputs)  # refuses models that cannot be exported
    description = ModelDescription.of(
        *(predictor.model, predictor.config, predictor.ensemble, predictor.metas, predictor.um_per_px)
    )
    scores = _scores(predictor.ensemble, metrics, report)
    return Exported(
        *(predictor.model, description, predictor.metas, model_card(description, scores)),
        *(_real_images(cfg, images, report), inputs, outputs, report),
    )


def _scores(ensemble: Ensemble, metrics: str | Path | None, report: Callable[[str], None]) -> dict | None:
    """Return the scores of this checkpoint; None if none are stated.

    Raises:
        IgniteError: the file is damaged, or states the scores of another checkpoint.
    """
    path = Path(metrics) if metrics is not None else ensemble.path.parent / METRICS
    if metrics is None and not path.is_file():
        report(
            f'note: there is no {printable(path)}, so the model card has no scores: test the model first, or pass --metrics.'
        )
        return None
    found = read_metrics(path)
    known = (found.get('provenance') or {}).get('checkpoint_sha256')
    if known == ensemble.checksums()['checkpoint_sha256']:
        return found
    fault = f'{printable(path)} has the scores of another checkpoint than {printable(ensemble.path)}'
    if metrics is not None:
        raise IgniteError(f'{fault}: test this one with tools/test.py and pass its metrics.json.')
    report(f'note: {fault}, so the model card has no scores: test the model first, or pass --metrics.')
    return None


def _real_images(cfg: Config, paths: Sequence[str | Path], report: Callable[[str], None]) -> list[np.ndarray]:
    """Return images to compare with, (h, w, 3) uint8 RGB, at most 512 px per side."""
    if paths:
        return [_centre(read_image(path).pixels) for path in paths]
    dataset = (cfg.get('test_dataloader') or {}).get('dataset') or {}
    root = dataset.get('data_root') or cfg.get('data_root')
    if root and (Path(root) / 'index.json').is_file():
        name = read_index(root)['rois'][0]['name']
        return [_centre(np.asarray(open_array(image_path(root, name))))]
    report('note: no tissue is at hand for the comparison (--images); synthetic tissue takes its place.')
    return [draw_tissue((_REAL_SIDE, _REAL_SIDE))]


def _centre(image: np.ndarray) -> np.ndarray:
    top, left = (max(0, (side - _REAL_SIDE) // 2) for side in image.shape[:2])
    return np.ascontiguousarray(image[top : top + _REAL_SIDE, left : left + _REAL_SIDE])
