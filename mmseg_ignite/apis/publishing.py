"""What is left of a scored run: its figures, a report to look at, pictures for papers."""

import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from ..datasets.prepared import CONTEXT, image_path, label_path, open_array, read_index, roi_name
from ..datasets.transforms.shift import shifted_rgb
from ..errors import IgniteError
from ..evaluation import Evaluation, write_run
from ..evaluation.folds import FIGURES as FIGURES_OF_FOLDS
from ..evaluation.label_files import find_prediction, read_prediction
from ..evaluation.per_roi import worst_first
from ..evaluation.run import METRICS, RUN_FILES, score_roi
from ..files import check_outputs
from ..labels import CLASSES, IGNORE, release_ids
from ..report import GalleryItem, write_report
from ..visualization.curves import read_scalars
from ..visualization.score_plots import FIGURE_FILES, write_figures

REPORT, FIGURES, PREDICTIONS = 'report.html', 'figures', 'predictions'
ENSEMBLE, ENSEMBLE_TEST = 'ensemble.json', 'test'
"""Of a cross-validation: the ensemble, and the run folder in which it is tested."""


def run_files(folder: str | Path, report: str | None = 'en') -> list[Path]:
    """The paths that :func:`publish` writes."""
    names = RUN_FILES if report is None else (*RUN_FILES, REPORT, *(f'{FIGURES}/{name}' for name in FIGURE_FILES))
    return [Path(folder) / name for name in names]


def publish(folder: str | Path, evaluation: Evaluation, context: dict, report: str | None = 'en', **options) -> dict:
    """Write a run (see :func:`mmseg_ignite.evaluation.write_run`), its ``report.html`` and ``figures`` (PNG, SVG, PDF).

    Args:
        context: what the counts do not know. With ``data`` (a prepared data set), ``predictions`` (a folder of label PNGs)
            and ``encoding`` (theirs) the report shows all ROIs; with ``checkpoint`` the training that its folder holds, else
            that of ``folder``.
        report: language of the report, 'en' or 'ko'; None writes neither report nor figures.
        options: those of :func:`write_run`.

    Returns:
        What ``metrics.json`` holds.

    Raises:
        IgniteError: outputs that may not be written (see :func:`mmseg_ignite.files.check_outputs`), or regions that cannot
            be shown, see :func:`regions`.
    """
    folder = Path(folder)
    check_outputs(run_files(folder, report))
    result = write_run(folder, evaluation, context, **options)
    if report is not None:
        gallery = ()
        if fault := _fault(evaluation, context):
            warnings.warn(f'{folder / REPORT} shows no regions: {fault}.')
        else:
            gallery = regions(
                evaluation, context['data'], context['predictions'], context['encoding'], context.get('shift'),
                bool(context.get('use_context')),
            )  # fmt: skip
        write_report(folder / REPORT, result, evaluation, gallery, _curves(folder, context.get('checkpoint')), report)
        write_figures(folder / FIGURES, result, evaluation)
    return result


def regions(
    evaluation: Evaluation,
    data: str | Path,
    predictions: str | Path,
    encoding: str = 'raw',
    shift: str | None = None,
    use_context: bool = False,
) -> Iterator[GalleryItem]:
    """The ROIs of a run, worst first, one in memory at a time: image and truth of the prepared data, prediction of its PNG.

    Each is counted again, so that nothing else is shown than what was scored.

    Args:
        data: the prepared data set.
        predictions: folder of ``NAME.png`` or ``NAME_with_context.png``.
        encoding: theirs, see :func:`mmseg_ignite.evaluation.label_files.read_prediction`.
        shift: the :class:`StainShift <mmseg_ignite.datasets.transforms.StainShift>` that was scored, which is shown too.
        use_context: whether images with context were scored, whose colours a shift goes by.

    Raises:
        IgniteError: a file is missing or damaged, or is of another prediction or truth than was scored.
    """
    places = _places(evaluation.classes)
    contexts = {roi['name']: roi.get('context') for roi in read_index(data)['rois']}
    for r in worst_first(evaluation.counts, evaluation.metadata):
        name, known = roi_name(evaluation.names[r]), evaluation.metadata[r]
        path = find_prediction(predictions, name) or Path(predictions) / f'{name}.png'
        truth = np.asarray(open_array(label_path(data, name)))
        prediction = read_prediction(path, truth.shape, encoding, contexts.get(name))
        if places is not None:
            truth, prediction = cv2.LUT(truth, places), cv2.LUT(prediction, places)
        counted = score_roi(known, truth, prediction, len(evaluation.classes))
        unpredicted = 0 if evaluation.unpredicted is None else evaluation.unpredicted[r]
        if (counted['matrix'] != evaluation.matrices[r]).any() or (counted['unpredicted'] != unpredicted).any():
            raise IgniteError(
                f'{path} or its ground truth in {data} is not that which was scored: score it again, or leave the report '
                'away with --no-report.'
            )
        image = np.asarray(open_array(image_path(data, name + CONTEXT if use_context and shift else name)))
        if shift is not None:
            top, left = contexts[name]['origin'] if use_context else (0, 0)
            image = shifted_rgb(image, name, shift)[top : top + truth.shape[0], left : left + truth.shape[1]]
        yield GalleryItem(evaluation.names[r], known, image, truth, prediction, known.get('um_per_px'))


def _places(classes: tuple[str, ...]) -> np.ndarray | None:
    """Table from train ids to places in a list of fewer classes: (256,) uint8, 255 for the others; None if all are there."""
    if classes == CLASSES:
        return None
    places = np.full(256, IGNORE, np.uint8)
    places[release_ids(classes)[: len(classes)]] = np.arange(len(classes))
    return places


def _fault(evaluation: Evaluation, context: dict) -> str | None:
    """Why the ROIs of a run cannot be shown; None if they can."""
    data, predictions = context.get('data'), context.get('predictions')
    if release_ids(evaluation.classes) is None:
        return 'its classes are not those of the data'
    if data is None or predictions is None:
        return 'the run does not say where its predictions and its data are'
    try:
        known = {roi['name'] for roi in read_index(data)['rois']}
    except IgniteError as error:
        return str(error).rstrip('.')
    for name in map(roi_name, evaluation.names):
        if name not in known:
            return f'{data} does not hold {name}'
        if find_prediction(predictions, name) is None:
            return f'{predictions} does not hold {name}.png'
    return None


def ensemble_scores(folder: str | Path) -> dict | None:
    """The scores of a cross-validation's ensemble, if it was tested in the folder ``test`` of its work dir; else None.

    Args:
        folder: the work dir of the cross-validation.

    Returns:
        dict: mIoU, mDice, aAcc (percent), classes_present, rois, patients, split and protocol.
    """
    try:
        found = json.loads((Path(folder) / ENSEMBLE_TEST / METRICS).read_text(encoding='utf-8'))
        if Path(found['checkpoint']).name != ENSEMBLE:
            return None
        return {
            key: found.get(key)
            for key in (*FIGURES_OF_FOLDS, 'classes_present', 'rois', 'patients', 'split', 'protocol')
        }
    except (OSError, ValueError, KeyError, TypeError):  # not tested, or not by us
        return None


def _curves(folder: Path, checkpoint: str | None) -> dict[str, dict[int, float]]:
    """What the training logged, in the checkpoint's folder or in that of the run; empty if nothing."""
    return (read_scalars(Path(checkpoint).parent) if checkpoint else {}) or read_scalars(folder)
