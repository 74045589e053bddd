"""Writing the results of a scored run: figures, a report, pictures for papers."""

import warnings
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from ..datasets.prepared import CONTEXT, by_name, check_context, image_path, open_array, read_index, roi_name
from ..datasets.transforms.shift import shifted_rgb
from ..errors import IgniteError
from ..evaluation import Evaluation, write_run
from ..evaluation.confusion import FIGURES as FOLD_FIGURES
from ..evaluation.label_files import find_prediction, read_prediction, read_truth
from ..evaluation.per_roi import worst_first
from ..evaluation.run import METRICS, RUN_FILES, score_roi
from ..evaluation.saved_metrics import read_metrics
from ..files import check_outputs
from ..labels import CLASSES, IGNORE, release_ids
from ..report import GalleryItem, write_report
from ..visualization.curves import read_scalars
from ..visualization.score_plots import FIGURE_FILES, write_figures

REPORT, FIGURES, PREDICTIONS = 'report.html', 'figures', 'predictions'
ENSEMBLE, ENSEMBLE_TEST = 'ensemble.json', 'test'
"""In the work dir of a cross-validation: the ensemble, and the run folder of its test."""


def run_files(folder: str | Path, report: str | None = 'en') -> list[Path]:
    """Return the paths that :func:`publish` writes."""
    names = RUN_FILES if report is None else (*RUN_FILES, REPORT, *(f'{FIGURES}/{name}' for name in FIGURE_FILES))
    return [Path(folder) / name for name in names]


def publish(
    folder: str | Path,
    evaluation: Evaluation,
    context: dict,
    report: str | None = 'en',
    recount: bool = True,
    **options: object,
) -> dict:
    """Write a run (see :func:`mmseg_ignite.evaluation.write_run`), its ``report.html`` and ``figures`` (PNG, SVG, PDF).

    Args:
        context: facts that the counts do not hold. With ``data`` (a prepared data set), ``predictions`` (a folder of label
            PNGs) and ``encoding`` (of these PNGs) the report shows all ROIs. The training curves are those beside
            ``checkpoint``, else those in ``folder``.
        report: language of the report, 'en' or 'ko'; None for neither report nor figures.
        recount: see :func:`regions`; False if the predictions were scored just now.
        options: those of :func:`write_run`.

    Returns:
        The content of ``metrics.json``.

    Raises:
        IgniteError: outputs may not be written (see :func:`mmseg_ignite.files.check_outputs`), or ROIs cannot be shown (see
            :func:`regions`).
    """
    folder = Path(folder)
    check_outputs(run_files(folder, report))
    result = write_run(folder, evaluation, context, **options)
    if report is None:
        return result
    gallery = ()
    if reason := _not_shown(evaluation, context):
        warnings.warn(f'{folder / REPORT} shows no regions: {reason}.')
    else:
        shift, use_context = context.get('shift'), bool(context.get('use_context'))
        sources = (context['data'], context['predictions'], context['encoding'])
        gallery = regions(evaluation, *sources, shift, use_context, recount)
    checkpoint = context.get('checkpoint')
    curves = (read_scalars(Path(checkpoint).parent) if checkpoint else {}) or read_scalars(folder)
    write_report(folder / REPORT, result, evaluation, gallery, curves, report)
    write_figures(folder / FIGURES, result, evaluation)
    return result


def regions(
    evaluation: Evaluation,
    data: str | Path,
    predictions: str | Path,
    encoding: str = 'raw',
    shift: str | None = None,
    use_context: bool = False,
    recount: bool = True,
) -> Iterator[GalleryItem]:
    """Yield the ROIs of a run, worst first, one in memory at a time.

    Args:
        data: prepared data set, for images and ground truth.
        predictions: folder of ``NAME.png`` or ``NAME_with_context.png``.
        encoding: of the PNGs, see :func:`mmseg_ignite.evaluation.label_files.read_prediction`.
        shift: kind of the :class:`StainShift <mmseg_ignite.datasets.transforms.StainShift>` under which the ROIs were scored;
            it is shown too.
        use_context: whether images with context were scored, from whose colours a shift is computed.
        recount: score every ROI again and refuse one whose counts differ from the evaluation.

    Raises:
        IgniteError: a file is missing or damaged, or belongs to another prediction or ground truth than was scored.

    Example:
        >>> run = Evaluation.load('work_dirs/b0')
        >>> worst = next(regions(run, 'data/ignite', 'work_dirs/b0/predictions'))
    """
    table = _train_id_table(evaluation.classes)
    entries = by_name(read_index(data))
    for r in worst_first(evaluation.counts, evaluation.metadata):
        name, known = roi_name(evaluation.names[r]), evaluation.metadata[r]
        path = find_prediction(predictions, name) or Path(predictions) / f'{name}.png'
        truth = read_truth(data, name)
        prediction = read_prediction(path, truth.shape, encoding, entries.get(name, {}).get('context'))
        if table is not None:
            truth, prediction = cv2.LUT(truth, table), cv2.LUT(prediction, table)
        if recount and not _same_counts(evaluation, r, truth, prediction):
            raise IgniteError(
                f'{path} or its ground truth in {data} differs from what was scored: score it again, or omit the report with '
                '--no-report.'
            )
        image = _read_tissue(image_path(data, name + CONTEXT if use_context and shift else name))
        if shift is not None:
            if use_context:
                check_context([entries[name]], str(data))
            top, left = entries[name]['context']['origin'] if use_context else (0, 0)
            image = shifted_rgb(image, name, shift)[top : top + truth.shape[0], left : left + truth.shape[1]]
        yield GalleryItem(evaluation.names[r], known, image, truth, prediction, known.get('um_per_px'))


def _read_tissue(path: Path) -> np.ndarray:
    """Read an image of a prepared data set, (H, W, 3) uint8 RGB; raise IgniteError if it is none."""
    image = np.asarray(open_array(path))
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise IgniteError(
            f'{path} holds {image.dtype} values of shape {image.shape}; (H, W, 3) uint8 RGB was expected: prepare the data '
            'again.'
        )
    return image


def _same_counts(evaluation: Evaluation, r: int, truth: np.ndarray, prediction: np.ndarray) -> bool:
    counted = score_roi(evaluation.metadata[r], truth, prediction, len(evaluation.classes))
    unpredicted = 0 if evaluation.unpredicted is None else evaluation.unpredicted[r]
    return (counted['matrix'] == evaluation.matrices[r]).all() and (counted['unpredicted'] == unpredicted).all()


def _train_id_table(classes: tuple[str, ...]) -> np.ndarray | None:
    """Return the (256,) uint8 table from train ids to indices of fewer classes, 255 for the others; None for all classes."""
    if classes == CLASSES:
        return None
    table = np.full(256, IGNORE, np.uint8)
    table[release_ids(classes)[: len(classes)]] = np.arange(len(classes))
    return table


def _not_shown(evaluation: Evaluation, context: dict) -> str | None:
    """Return why the ROIs of a run cannot be shown; None if they can."""
    data, predictions = context.get('data'), context.get('predictions')
    if release_ids(evaluation.classes) is None:
        return 'its classes differ from those of the data'
    if data is None or predictions is None:
        return 'the run does not state where its predictions and its data are'
    try:
        known = {roi['name'] for roi in read_index(data)['rois']}
    except IgniteError as error:
        return str(error).rstrip('.')
    for name in map(roi_name, evaluation.names):
        if name not in known:
            return f'{data} does not contain {name}'
        if find_prediction(predictions, name) is None:
            return f'{predictions} does not contain {name}.png'
    return None


def ensemble_scores(folder: str | Path) -> dict | None:
    """Return the scores of a cross-validation's ensemble if it was tested in the folder ``test`` of its work dir, else None.

    Args:
        folder: the work dir of the cross-validation.

    Returns:
        dict: mIoU, mDice, aAcc (percent), classes_present, rois, patients, split and protocol.

    Raises:
        IgniteError: its ``metrics.json`` is damaged.
    """
    path = Path(folder) / ENSEMBLE_TEST / METRICS
    if not path.exists():
        return None
    found = read_metrics(path)
    if Path(found.get('checkpoint') or '').name != ENSEMBLE or not found.keys() >= set(FOLD_FIGURES):
        return None
    return {key: found.get(key) for key in (*FOLD_FIGURES, 'classes_present', 'rois', 'patients', 'split', 'protocol')}
