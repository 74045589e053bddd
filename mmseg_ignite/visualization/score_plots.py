"""Figures for papers: confusion matrix, class scores, and one ROI beside its labels and prediction."""

from __future__ import annotations

import textwrap
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..evaluation.confusion import Marginals
from ..evaluation.per_roi import holders
from ..files import printable, result_file, writing
from ..labels import CLASSES, PALETTE
from .colours import EDGE, class_colours
from .figures import new_figure
from .painter import blend, length_text, scale_bar_length

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_KINDS = ('png', 'svg', 'pdf')
FIGURE_FILES = tuple(f'{name}.{kind}' for name in ('confusion', 'class_scores') for kind in _KINDS)
"""Names of the files that :func:`write_figures` writes."""
_DPI = 200
_MAX_SIDE = 8000
"""px; figures of very many classes get fewer dots per inch."""
_STYLE = {'svg.fonttype': 'none', 'pdf.fonttype': 42, 'text.parse_math': False}
"""Keep text as text; TrueType in PDF, because publishers refuse Type 3 fonts. A dollar sign in a name is no formula."""
_ABSENT = dict(va='center', color='#666666', style='italic')
_FONT = 9


def write_figures(folder: str | Path, metrics: dict, evaluation: object) -> list[Path]:
    """Write ``confusion`` and ``class_scores`` into a folder, each as PNG (200 dpi), SVG and PDF; return the paths.

    Classes in neither ground truth nor prediction are listed below the figure.

    Args:
        metrics: content of ``metrics.json``; ``classes`` and, if present, ``intervals`` are read.
        evaluation: ``matrices`` (R, C, C) int64 (or ``counts``, if it has them), ``classes`` (C,) and, if present,
            ``metadata`` (R,) are read.

    Raises:
        IgniteError: the folder cannot be written.
    """
    import matplotlib
    from matplotlib.backend_bases import get_registered_canvas_class

    classes = tuple(map(str, evaluation.classes))
    counts = np.asarray(getattr(evaluation, 'counts', evaluation.matrices))
    patients = holders(counts, getattr(evaluation, 'metadata', None) or [{}])
    with matplotlib.rc_context(_STYLE):
        confusion, class_scores = plot_confusion(counts.sum(0), classes, patients), plot_class_scores(metrics, classes)
    for name, figure in dict(confusion=confusion, class_scores=class_scores).items():
        figure.set_dpi(min(_DPI, _MAX_SIDE / max(figure.get_size_inches())))
        for kind in _KINDS:  # each canvas renders the figure once, where ``savefig`` would twice
            path = Path(folder, f'{name}.{kind}')
            with matplotlib.rc_context(_STYLE), writing(path), result_file(path) as partial:
                getattr(get_registered_canvas_class(kind)(figure), f'print_{kind}')(partial)
            figure.set_layout_engine('none')  # it has been laid out
    return [Path(folder, name) for name in FIGURE_FILES]


def write_paper_overlay(path: str | Path, item: object) -> Path:
    """Write :func:`plot_overlay` of a gallery item (roi, image, truth, prediction, um_per_px) at 200 dpi.

    Args:
        path: output file; its suffix selects the format, e.g. .png, .svg or .pdf.
        item: e.g. a :class:`mmseg_ignite.report.GalleryItem`.

    Raises:
        IgniteError: the file cannot be written.

    Example:
        >>> write_paper_overlay('figure.pdf', GalleryItem('roi1', {}, image, truth, prediction, um_per_px=0.5))
    """
    import matplotlib

    with matplotlib.rc_context(_STYLE):
        figure = plot_overlay(item.image, item.truth, item.prediction, item.um_per_px, printable(item.roi))
    with matplotlib.rc_context(_STYLE), writing(path), result_file(path) as partial:
        figure.savefig(partial, dpi=_DPI)
    return Path(path)


def plot_confusion(pooled: np.ndarray, classes: tuple[str, ...], patients: np.ndarray | None = None) -> Figure:
    """Plot a row-normalised confusion matrix: percent of the ground truth, and pixels in small print.

    Rows of classes without ground truth stay gray.

    Args:
        pooled: (C, C) int64, rows are ground truth; or (C, C + 1), the last column counts pixels without a prediction.
        classes: C names.
        patients: (C,) number of patients with each class; None if unknown.
    """
    marginals = Marginals.of(pooled)
    kept = (marginals.truth > 0) | (marginals.predicted > 0)
    omitted = [name for name, keep in zip(classes, kept) if not keep]
    pooled = pooled[kept][:, [*kept, *[True] * (pooled.shape[1] - len(classes))]]
    classes = tuple(name for name, keep in zip(classes, kept) if keep)
    truth = pooled.sum(1, keepdims=True)
    share = np.divide(100.0 * pooled, truth, out=np.full(pooled.shape, np.nan), where=truth > 0)
    side = 2.9 + 0.46 * len(classes)
    figure = new_figure(side + 0.5, side - 0.4)
    axis = figure.subplots()
    axis.set_facecolor('#eeeeee')
    image = axis.imshow(share, cmap='Blues', vmin=0, vmax=100)
    for (row, column), value in np.ndenumerate(share):
        if value >= 0.5:  # shares that round to 0 stay blank, so that mistakes stand out
            style = dict(ha='center', va='center', color='white' if value > 55 else 'black', in_layout=False)
            axis.text(column, row - 0.14, f'{value:.0f}', fontsize=_FONT - 1, **style)
            axis.text(column, row + 0.26, _short(pooled[row, column]), fontsize=_FONT - 3.5, **style)
    for row in np.flatnonzero(truth[:, 0] == 0):
        axis.text(0, row, 'absent', fontsize=_FONT - 1, **_ABSENT)
    ticks, columns = np.arange(len(classes)), (*classes, 'no prediction')[: pooled.shape[1]]
    axis.set_xticks(np.arange(len(columns)), columns, rotation=45, ha='right', rotation_mode='anchor', fontsize=_FONT)
    held = repeat('') if patients is None else (f', {n} patient{"" if n == 1 else "s"}' for n in patients[kept])
    labels = [f'{name}\n{_short(total)} px{text}' for name, total, text in zip(classes, truth[:, 0], held)]
    axis.set_yticks(ticks, labels, fontsize=_FONT - 1)
    axis.set_xticks(np.arange(1, len(columns)) - 0.5, minor=True)
    axis.set_yticks(ticks[1:] - 0.5, minor=True)
    axis.grid(which='minor', color='white', linewidth=1)
    axis.tick_params(which='both', length=0)
    axis.set_xlabel('prediction', fontsize=_FONT + 1)
    axis.set_ylabel('ground truth', fontsize=_FONT + 1)
    bar = figure.colorbar(image, ax=axis, shrink=0.6, pad=0.02)
    bar.set_label('% of the ground truth (small: pixels)', fontsize=_FONT)
    bar.outline.set_visible(False)
    _list_omitted(figure, omitted, 12 * side)
    return figure


def _short(pixels: int) -> str:
    """Format a number of pixels in at most four characters, e.g. 749, 1.2k, 43k, 2.1M."""
    for unit, letter in ((1e9, 'G'), (1e6, 'M'), (1e3, 'k')):
        if pixels >= 0.9995 * unit:
            return f'{pixels / unit:.{int(pixels < 9.95 * unit)}f}{letter}'
    return str(pixels)


def _list_omitted(figure: Figure, names: list[str], width: float) -> None:
    """List the omitted classes, if any, at the bottom, in lines of ``width`` characters."""
    if names:
        text = textwrap.fill(f'in neither ground truth nor prediction: {", ".join(names)}', max(30, int(width)))
        figure.supxlabel(f'{figure.get_supxlabel()}\n{text}'.lstrip(), fontsize=_FONT - 1)


def plot_class_scores(metrics: dict, classes: tuple[str, ...]) -> Figure:
    """Plot IoU and Dice of each class as bars, with values, intervals as whiskers and the mean as a line."""
    intervals, every = metrics.get('intervals') or {}, metrics['classes']
    omitted = [name for name in classes if not every[name]['pixels'] and not every[name].get('predicted_pixels')]
    colours = {name: class_colours(name, i).official for i, name in enumerate(classes) if name not in omitted}
    figure = new_figure(9, 1.3 + 0.3 * len(colours))
    for axis, key, mean in zip(figure.subplots(1, 2, sharey=True), ('IoU', 'Dice'), ('mIoU', 'mDice')):
        for row, (name, colour) in enumerate(colours.items()):
            value = every[name][key]
            if value is None:
                axis.text(1, row, 'absent', fontsize=_FONT, **_ABSENT)
                continue
            axis.barh(row, value, height=0.72, color=colour, edgecolor=EDGE, linewidth=0.8)
            style = dict(transform=axis.get_yaxis_transform(), va='center', ha='right', fontsize=_FONT)
            axis.text(1.11, row, f'{value:.1f}', **style)
            interval = (intervals.get('classes') or {}).get(name) or {}
            if interval.get(key) and interval.get('patients') != 1:  # one patient has no spread
                _whisker(axis, row, *interval[key])
        if metrics.get(mean) is not None:
            axis.axvline(metrics[mean], color=EDGE, linestyle='--', linewidth=1, zorder=0)
            axis.text(metrics[mean], -0.75, f'{mean} {metrics[mean]:.1f}', ha='center', va='bottom', fontsize=_FONT)
        axis.set_xlim(0, 100)
        axis.set_xlabel(f'{key} (%)', fontsize=_FONT + 1)
        axis.set_yticks(range(len(colours)), list(colours), fontsize=_FONT)
        axis.tick_params(axis='y', length=0)
        axis.spines[['top', 'right']].set_visible(False)
    axis.set_ylim(len(colours) - 0.4, -0.8)
    if intervals.get('classes'):
        units = f'{intervals.get("patients")} {intervals.get("unit", "patient")}s'
        text = f'whiskers: {intervals.get("level", 95)} % intervals, bootstrap over {units}'
        figure.supxlabel(text, fontsize=_FONT - 1)
    _list_omitted(figure, omitted, 130)
    return figure


def _whisker(axis: object, row: int, low: float, high: float) -> None:
    """Draw a black line on a wider white one, so that it shows on every colour."""
    for width, colour in ((2.8, 'white'), (1.3, 'black')):
        style = dict(color=colour, zorder=3)
        axis.plot([low, high], [row, row], linewidth=width, solid_capstyle='butt', **style)
        axis.plot([low, high], [row, row], linestyle='', marker='|', markersize=7, markeredgewidth=width, **style)


def plot_overlay(
    image: np.ndarray, truth: np.ndarray, prediction: np.ndarray, um_per_px: float | None = None, title: str = ''
) -> Figure:
    """Plot image, ground truth and prediction side by side, with a legend of the classes present.

    Args:
        image: (H, W, 3) uint8 RGB.
        truth: (H, W) uint8 train ids, 255 unannotated.
        prediction: (H, W) uint8 train ids.
        um_per_px: resolution for the scale bar; None omits it.
    """
    from matplotlib.patches import Patch

    height, width = truth.shape
    seen = [i for i in np.union1d(truth, prediction) if i < len(CLASSES)]
    panel_height = max(min(3.2 * height / width, 9.0), 0.24 * (len(seen) + 1))
    figure = new_figure(3 * 3.2 + 2.0, panel_height + 0.6)
    axes = figure.subplots(1, 4, width_ratios=(3.2, 3.2, 3.2, 1.9))
    panels = (('image', image), ('ground truth', blend(image, truth)), ('prediction', blend(image, prediction)))
    for axis, (name, picture) in zip(axes, panels):
        axis.imshow(picture, interpolation='lanczos')
        axis.set_title(name, fontsize=_FONT + 1, loc='left')
        axis.set(xticks=[], yticks=[])
    if um_per_px:
        _scale_bar(axes[0], um_per_px, height, width)
    axes[3].axis('off')
    handles = [Patch(facecolor=np.array(PALETTE[i]) / 255, edgecolor=EDGE, label=CLASSES[i]) for i in seen]
    axes[3].legend(handles=handles, loc='upper left', frameon=False, fontsize=_FONT, borderpad=0, handlelength=1.2)
    figure.suptitle(title, fontsize=_FONT + 2, x=0.01, ha='left')
    return figure


def _scale_bar(axis: object, um_per_px: float, height: int, width: int) -> None:
    from matplotlib.patches import Rectangle

    length = scale_bar_length(um_per_px, width)
    pixels, gap, thick = length / um_per_px, 0.03 * width, max(1.0, 0.012 * width)
    bottom, high = height - gap, 5.5 * thick
    axis.add_patch(Rectangle((gap / 2, bottom - high), pixels + gap, high + gap / 2, facecolor='white', alpha=0.85))
    axis.add_patch(Rectangle((gap, bottom - thick), pixels, thick, facecolor='black'))
    axis.text(gap + pixels / 2, bottom - 1.6 * thick, length_text(length), ha='center', va='bottom', fontsize=_FONT - 1)
