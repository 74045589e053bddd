"""How the pixels of each class fall on the parts of the splits: a picture of all protocols, a table of one."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table

from ..datasets.protocols import FOLDS, PARTS, is_grouped, leaking_patients
from ..files import atomic_file
from ..labels import CLASSES

PART_COLOURS = dict(train='#0072B2', val='#E69F00', test='#009E73')  # Okabe and Ito: told apart by the colour-blind too
_WARNING = '#C00000'
_COLUMNS = 4


def split_table(index: dict, protocol: str) -> Table:
    """ROIs, patients and megapixels per class and part of one split protocol; '-' where a part has no pixel.

    Classes that the release lacks have no row; the caption names them.
    """
    table = Table(title=f'split {protocol}: megapixels of each class')
    table.add_column('class')
    for part in PARTS:
        table.add_column(part, justify='right')
    members = _members(index, protocol)
    pixels = _pixels(members)
    shown = held_classes(pixels)
    for i in shown:
        table.add_row(CLASSES[i], *map(_megapixels, pixels[:, i]))
    if left_out := _left_out(shown):
        table.caption = left_out
    unannotated = (sum(r['unannotated'] for r in rois) for rois in members)
    table.add_row('(unannotated)', *(_megapixels(pixels) for pixels in unannotated), end_section=True)
    table.add_row('ROIs', *(str(len(rois)) for rois in members))
    table.add_row('patients', *(str(_patients(rois)) for rois in members))
    return table


def draw_split_shares(index: dict, path: str | Path) -> None:
    """Draw for each protocol which share of each class's pixels stands in train, val and test.

    Classes that the release lacks are left out and named. Dashed lines mark the wanted shares: 80 % and 90 % for 8:1:1; for
    the other protocols what the given test ROIs leave of the class, divided 8:1 (official) or 4:1 (folds).

    Args:
        index: of a prepared data set; 'rois' and 'splits' are read.
        path: of the picture; its suffix decides the format.
    """
    splits, shown = index['splits'], held_classes(np.array([r['pixels'] for r in index['rois']]))
    rows = -(-len(splits) // _COLUMNS)
    columns = min(_COLUMNS, len(splits))
    figure = Figure(figsize=(2 + 3.6 * columns, 1 + (1.6 + 0.19 * len(shown)) * rows), layout='constrained')
    axes = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for axis, protocol in zip(axes.flat, splits):
        _panel(axis, index, protocol, shown)
    for axis in axes.flat[len(splits) :]:
        axis.set_visible(False)
    handles = [*axes[0, 0].containers, axes[0, 0].collections[0]]
    figure.legend(handles, [*PARTS, 'wanted'], loc='outside upper center', ncols=len(handles), frameon=False)
    text = "share of the class's pixels (%)"
    figure.supxlabel(f'{text}\n{_left_out(shown)}'.rstrip(), fontsize='medium')
    with atomic_file(path) as partial:
        figure.savefig(partial, dpi=110)


def held_classes(pixels: np.ndarray) -> np.ndarray:
    """Ids of the classes that have pixels, of counts (..., 16); all classes if none has."""
    held = pixels.reshape(-1, len(CLASSES)).any(0)
    return np.flatnonzero(held) if held.any() else np.arange(len(CLASSES))


def _left_out(shown: np.ndarray) -> str:
    """Which classes have no row; empty if all have one."""
    names = [name for i, name in enumerate(CLASSES) if i not in shown]
    return f'not in the data: {", ".join(names)}' if names else ''


def _panel(axis: Axes, index: dict, protocol: str, shown: np.ndarray) -> None:
    members = _members(index, protocol)
    pixels = _pixels(members)[:, shown]
    shares = 100 * pixels / np.maximum(1, pixels.sum(0))
    rows = np.arange(len(shown))
    for part, share, left in zip(PARTS, shares, shares.cumsum(0) - shares):
        axis.barh(rows, share, left=left, height=0.8, color=PART_COLOURS[part])
    for row, held in enumerate(pixels.T > 0):
        _mark_missing(axis, row, [part for part, has in zip(PARTS, held) if not has])
    present = rows[pixels.any(0)]
    for ends in _wanted(protocol, shares[:, present]):
        axis.vlines(ends, present - 0.5, present + 0.5, color='black', linestyle='--', linewidth=1)
    axis.set(xlim=(0, 100), ylim=(len(shown) - 0.5, -0.5), yticks=rows, yticklabels=[CLASSES[i] for i in shown])
    axis.tick_params(axis='y', length=0)
    axis.spines[['top', 'right']].set_visible(False)
    patients = ', '.join(f'{_patients(rois)} {part}' for part, rois in zip(PARTS, members))
    counts = ', '.join(f'{len(rois)} {part}' for part, rois in zip(PARTS, members))
    axis.set_title(f'{protocol}\npatients: {patients}\nROIs: {counts}', loc='left', fontsize='medium')
    if not is_grouped(protocol):
        leaks = len(leaking_patients(index['rois'], index['splits'][protocol]))
        axis.set_title(f'{leaks} patients leak\n\n', loc='right', fontsize='medium', color=_WARNING, weight='bold')


def _mark_missing(axis: Axes, row: int, missing: list[str]) -> None:
    """Say in a class's row that no part has it, or which parts have none of it."""
    if len(missing) == len(PARTS):
        axis.text(2, row, 'absent', va='center', fontsize='small', color='gray', style='italic')
    elif missing:
        box = dict(facecolor='white', edgecolor='none', pad=1)
        text = f'none in {" or ".join(missing)}'
        axis.text(2, row, text, va='center', fontsize='x-small', color=_WARNING, bbox=box)


def _wanted(protocol: str, shares: np.ndarray) -> np.ndarray:
    """Where training and where validation should end in each class, in percent, from the (parts, classes) shares."""
    outside = np.full(shares.shape[1], 90.0) if protocol.endswith('8-1-1') else 100 - shares[-1]
    return np.stack([outside * (4 / 5 if protocol in FOLDS else 8 / 9), outside])


def _members(index: dict, protocol: str) -> list[list[dict]]:
    """The ROI entries of train, val and test."""
    by_name = {r['name']: r for r in index['rois']}
    return [[by_name[name] for name in index['splits'][protocol][part]] for part in PARTS]


def _pixels(members: list[list[dict]]) -> np.ndarray:
    """(parts, classes) pixel counts."""
    return np.array([np.sum([r['pixels'] for r in rois], axis=0) for rois in members])


def _patients(rois: list[dict]) -> int:
    return len({r['patient'] for r in rois})


def _megapixels(pixels: int) -> str:
    return f'{pixels / 1e6:.3f}' if pixels else '-'
