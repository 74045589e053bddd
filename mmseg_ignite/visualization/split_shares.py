"""Plot how the pixels of each class are distributed among the parts of the splits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..datasets.prepared import FOLDS, PARTS, is_grouped, leaking_patients
from ..files import atomic_file
from ..labels import CLASSES
from ..preparation.splits import absent_classes, count_patients, held_classes, members, part_pixels
from .figures import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PART_COLOURS = dict(train='#0072B2', val='#E69F00', test='#009E73')  # Okabe and Ito: safe for colour-blind readers
_WARNING = '#C00000'
_COLUMNS = 4


def plot_split_shares(index: dict, path: str | Path) -> None:
    """Plot for each protocol the shares of each class's pixels in train, val and test.

    Classes without pixels are not shown but named. Dashed lines mark the target shares: 80 % and 90 % for 8:1:1; for the
    other protocols, whose test ROIs are given, the rest of the class divided 8:1 (official) or 4:1 (folds). The suffix of
    ``path`` selects the format. Of the index of a prepared data set, 'rois' and 'splits' are read.
    """
    splits, shown = index['splits'], held_classes(np.array([r['pixels'] for r in index['rois']]))
    rows, columns = -(-len(splits) // _COLUMNS), min(_COLUMNS, len(splits))
    figure = new_figure(2 + 3.6 * columns, 1 + (1.6 + 0.19 * len(shown)) * rows)
    axes = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for axis, protocol in zip(axes.flat, splits):
        _panel(axis, index, protocol, shown)
    for axis in axes.flat[len(splits) :]:
        axis.set_visible(False)
    handles = [*axes[0, 0].containers, axes[0, 0].collections[0]]
    figure.legend(handles, [*PARTS, 'target'], loc='outside upper center', ncols=len(handles), frameon=False)
    text = f"share of the class's pixels (%)\n{absent_classes(shown)}"
    figure.supxlabel(text.rstrip(), fontsize='medium')
    with atomic_file(path) as partial:
        figure.savefig(partial, dpi=110)


def _panel(axis: Axes, index: dict, protocol: str, shown: np.ndarray) -> None:
    parts = members(index, protocol)
    pixels = part_pixels(parts)[:, shown]
    shares = 100 * pixels / np.maximum(1, pixels.sum(0))
    rows = np.arange(len(shown))
    for part, share, left in zip(PARTS, shares, shares.cumsum(0) - shares):
        axis.barh(rows, share, left=left, height=0.8, color=PART_COLOURS[part])
    for row, held in enumerate(pixels.T > 0):
        missing = [part for part, has in zip(PARTS, held) if not has]
        style = dict(fontsize='x-small', color=_WARNING, bbox=dict(facecolor='white', edgecolor='none', pad=1))
        if len(missing) == len(PARTS):
            axis.text(2, row, 'absent', va='center', fontsize='small', color='gray', style='italic')
        elif missing:
            axis.text(2, row, f'none in {" or ".join(missing)}', va='center', **style)
    present = rows[pixels.any(0)]
    # In percent, where training and validation should end
    outside = np.full(len(present), 90.0) if protocol.endswith('8-1-1') else 100 - shares[-1, present]
    for ends in (outside * (4 / 5 if protocol in FOLDS else 8 / 9), outside):
        axis.vlines(ends, present - 0.5, present + 0.5, color='black', linestyle='--', linewidth=1)
    axis.set(xlim=(0, 100), ylim=(len(shown) - 0.5, -0.5), yticks=rows, yticklabels=[CLASSES[i] for i in shown])
    axis.tick_params(axis='y', length=0)
    axis.spines[['top', 'right']].set_visible(False)
    patients = ', '.join(f'{count_patients(rois)} {part}' for part, rois in zip(PARTS, parts))
    counts = ', '.join(f'{len(rois)} {part}' for part, rois in zip(PARTS, parts))
    axis.set_title(f'{protocol}\npatients: {patients}\nROIs: {counts}', loc='left', fontsize='medium')
    if not is_grouped(protocol):
        leaks = len(leaking_patients(index['rois'], index['splits'][protocol]))
        axis.set_title(f'{leaks} patients leak\n\n', loc='right', fontsize='medium', color=_WARNING, weight='bold')
