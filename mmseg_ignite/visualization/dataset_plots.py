"""Figures of a prepared data set: classes, sizes, resolutions, stains, and the crops that a training samples.

In every function, ``members`` is {part of the split protocol: index entries of its ROIs}.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..datasets.transforms.stain import Stains
from ..labels import CLASSES, NUM_CLASSES, PALETTE
from ..preparation.splits import count_patients, held_classes
from .colours import EDGE
from .figures import new_figure
from .split_shares import PART_COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_CLASS_COLOURS = np.array(PALETTE) / 255
_GROUP_COLOURS = ('#0072B2', '#E69F00', '#009E73', '#CC79A7', '#56B4E9', '#D55E00', '#F0E442', '#999999')
_SWATCH_COLUMNS = 16
_ABSENT = dict(color='gray', style='italic')


class SampledCrops(NamedTuple):
    """Class counts over the crops sampled for training; arrays are (16,) int64."""

    count: int  # number of crops sampled
    pixels: np.ndarray  # of each class in the crops
    holding: np.ndarray  # number of crops that contain the class
    annotated: float  # annotated share of the pixels, 0..1
    data_pixels: np.ndarray  # of each class in the training ROIs; 0 for a class that is not trained


class PatientStains(NamedTuple):
    """Scanner, source and stains of a patient's ROIs; ``stains`` is None if the two cannot be separated."""

    patient: str
    scanner: str
    source: str
    stains: Stains | None


def natural(text: str) -> list[tuple[int, int, str]]:
    """Return a sort key that puts patient 2 before patient 10."""
    return [(0, int(p), '') if p.isdecimal() else (1, 0, p) for p in re.split(r'(\d+)', text) if p]


def class_pixels(rois: list[dict]) -> np.ndarray:
    """Return the pixels of each class in the ROIs, (16,) int64."""
    return np.array([r['pixels'] for r in rois], np.int64).reshape(-1, NUM_CLASSES).sum(0)


def percent(share: float) -> str:
    """Format a share 0..1 as percent with two significant digits."""
    return f'{two_digits(100 * share)} %' if share == 0 or share >= 1e-5 else '< 0.001 %'


def two_digits(value: float) -> str:
    """Format 0 or a number from 0.001 with two significant digits; digits before the point are all kept."""
    return f'{value:.0f}' if value == 0 or value >= 9.95 else f'{value:#.2g}'


def plain(text: str, limit: int = 24) -> str:
    """Escape a name from the release for matplotlib: one line, no formulas, no leading ``_``, which hides legend entries."""
    text = ' '.join(text.split()) or '(none)'
    text = text if len(text) <= limit else text[: limit - 1] + '…'
    return (' ' if text.startswith('_') else '') + text.replace('$', r'\$')


def _class_figure(shown: np.ndarray, extra: float = 0.0, source: str = 'the data') -> Figure:
    """Return a figure with room for a row per class in ``shown``, (N,) ids, and a line that lists the other classes.

    ``extra`` is further height in inches.
    """
    figure = new_figure(13, 1.8 + 0.25 * len(shown) + extra)
    if omitted := [name for i, name in enumerate(CLASSES) if i not in shown]:
        figure.supxlabel(f'not in {source}: {", ".join(omitted)}', fontsize=9, color='gray')
    return figure


def _class_axis(axis: Axes, shown: np.ndarray, names: bool = True) -> None:
    """Give each class in ``shown`` a row."""
    labels = [CLASSES[i] for i in shown] if names else []
    axis.set(ylim=(len(shown) - 0.5, -0.5), yticks=range(len(shown)), yticklabels=labels)
    axis.tick_params(axis='y', length=0)
    axis.spines[['top', 'right']].set_visible(False)


def _row_text(axis: Axes, x: float, row: float, text: str, **style) -> None:
    """Write text in a row, at ``x`` in axes widths."""
    axis.text(x, row, text, transform=axis.get_yaxis_transform(), va='center', size=9, **style)


def plot_class_pixels(members: dict[str, list[dict]]) -> Figure:
    """Plot the pixels of each class in each part on a logarithmic axis; classes in no part are listed below."""
    counts = {part: class_pixels(rois) for part, rois in members.items()}
    known = np.concatenate(list(counts.values()))
    shown = held_classes(known)
    figure = _class_figure(shown)
    axes = figure.subplots(1, len(members))
    low = 10 ** np.floor(np.log10(known[known > 0].min(initial=10**6)) - 0.3)
    most = known.max(initial=10 * low)
    high = most * (most / low) ** 0.4  # leaves space for the numbers
    for axis, (part, pixels) in zip(axes, counts.items()):
        axis.set(xscale='log', xlim=(low, high), xlabel='pixels', axisbelow=True)
        axis.set_title(part_text(part, members[part]), loc='left', size=11)
        _class_axis(axis, shown, names=axis is axes[0])
        axis.grid(alpha=0.3)
        for row, count in enumerate(pixels[shown]):
            if count:
                axis.scatter(count, row, s=70, facecolor=_CLASS_COLOURS[shown[row]], edgecolor=EDGE, zorder=3)
                axis.text(count * 1.35, row, f'{count:,}', va='center', size=8)
            else:
                _row_text(axis, 0.015, row, 'absent', **_ABSENT)
    return figure


def part_text(part: str, rois: list[dict]) -> str:
    """Summarise a part, e.g. 'train: 42 ROIs, 31 patients'."""
    return f'{part}: {len(rois)} ROIs, {count_patients(rois)} patients'


def plot_roi_sizes(
    members: dict[str, list[dict]], crop_size: tuple[int, int] | None, um_range: tuple[float, float] | None
) -> Figure:
    """Plot height against width of the ROIs, with the crop as a box.

    Args:
        crop_size: (H, W) in px; None omits the box.
        um_range: um/px (low, high) of the crops; if given, sizes are in um, else in px.
    """
    from matplotlib.patches import Rectangle

    figure = new_figure(10.5, 5.5)
    axis = figure.subplots()
    for part, rois in members.items():
        sides = np.array([(r['width'], r['height']) for r in rois], float).reshape(-1, 2)
        if um_range:
            sides *= np.array([r['um_per_px'] for r in rois], float).reshape(-1, 1)
        style = dict(color=PART_COLOURS.get(part, 'gray'), edgecolor='white', linewidth=0.5)
        axis.scatter(*sides.T, s=34, label=f'{part} ({len(rois)})', **style)
    if crop_size is not None:
        height, width = crop_size
        for scale, style in zip(sorted(set(um_range or [1.0])), ('--', ':')):
            text = f'crop {height} x {width} px' + (f' at {scale:g} µm/px' if um_range else '')
            look = dict(fill=False, edgecolor='black', linestyle=style, label=text)
            axis.add_patch(Rectangle((0, 0), width * scale, height * scale, **look))
    unit = 'µm' if um_range else 'px'
    axis.set(xlabel=f'width ({unit})', ylabel=f'height ({unit})', axisbelow=True)
    axis.autoscale_view()
    axis.set(xlim=(0, axis.get_xlim()[1]), ylim=(0, axis.get_ylim()[1]))
    axis.set_aspect('equal', anchor='W')
    axis.grid(alpha=0.3)
    axis.legend(loc='upper left', bbox_to_anchor=(1.02, 1), frameon=False)
    return figure


def plot_resolutions(members: dict[str, list[dict]], um_range: tuple[float, float] | None) -> Figure:
    """Plot a histogram of the ROIs' um/px; the range of the crops is shaded."""
    figure = new_figure(9, 3.6)
    axis = figure.subplots()
    values = [[r['um_per_px'] for r in rois if r['um_per_px']] for rois in members.values()]
    every = [*(um_range or ()), *(v for part in values for v in part)] or [1.0]
    bins = np.linspace(0.95 * min(every), 1.05 * max(every), 41)
    look = dict(color=[PART_COLOURS.get(part, 'gray') for part in members], edgecolor='white', linewidth=0.5)
    axis.hist(values, bins, stacked=True, label=list(members), **look)
    if um_range:
        text = 'crops: {:g} to {:g} µm/px'.format(*um_range)
        axis.axvspan(*um_range, color='black', alpha=0.08, zorder=0, label=text)
    axis.set(xlabel='resolution (µm/px)', ylabel='ROIs')
    axis.spines[['top', 'right']].set_visible(False)
    figure.legend(loc='outside right upper', frameon=False)
    return figure


def plot_class_presence(members: dict[str, list[dict]]) -> Figure:
    """Plot which ROI contains which class: one column per ROI, shaded by the class's share of its annotated pixels.

    ROIs are grouped by part and sorted by patient; classes in no ROI are listed below.
    """
    from matplotlib.colors import LogNorm

    parts = [sorted(rois, key=lambda r: (natural(r['patient']), natural(r['name']))) for rois in members.values()]
    rois = [r for part in parts for r in part]
    pixels = np.array([r['pixels'] for r in rois], float).reshape(-1, NUM_CLASSES)
    shown = held_classes(pixels)
    figure = _class_figure(shown, 0.4)
    axis = figure.subplots()
    share = (pixels / np.maximum(1, pixels.sum(1, keepdims=True))).T[shown]
    look = dict(aspect='auto', interpolation='nearest')
    image = axis.imshow(np.ma.masked_equal(share, 0), cmap='viridis_r', norm=LogNorm(1e-3, 1, clip=True), **look)
    bar = figure.colorbar(image, ax=axis, aspect=30, pad=0.02, format=lambda share, _: f'{100 * share:g} %')
    bar.set_label("share of the ROI's annotated pixels\n(0.1 % and less look the same)", size=9)
    # Bands of alternating shade above the matrix mark patients; ROIs of a patient are adjacent within a part.
    patients = [(i, r['patient']) for i, part in enumerate(parts) for r in part]
    shade = np.cumsum([False, *(a != b for a, b in zip(patients, patients[1:]))]) % 2
    axis.imshow(shade[None], cmap='gray', vmin=-0.3, vmax=1.3, extent=(-0.5, len(rois) - 0.5, -0.7, -1.2), **look)
    axis.hlines(np.arange(1, len(shown)) - 0.5, -0.5, len(rois) - 0.5, color='lightgray', linewidth=0.5)
    _class_axis(axis, shown)
    limits = dict(xlim=(-0.5, len(rois) - 0.5), ylim=(len(shown) - 0.5, -1.3))
    axis.set(xlabel='ROIs, sorted by patient; each band above is a patient', xticks=[], **limits)
    for name, part, start in zip(members, parts, np.cumsum([0, *map(len, parts)])):
        if part:
            axis.text(start - 0.5, -1.4, name, va='bottom', size=10)
        if start:
            axis.axvline(start - 0.5, color='black', linewidth=1.2)
    for x, text, count in ((1.04, 'ROIs', len), (1.11, 'patients', count_patients)):  # columns beside the matrix
        _row_text(axis, x, -0.95, text, ha='right')
        for row, label in enumerate(shown):
            _row_text(axis, x, row, str(count([r for r in rois if r['pixels'][label]])), ha='right')
    return figure


def plot_stains(patients: list[PatientStains]) -> Figure:
    """Plot haematoxylin strength against eosin strength by patient, and the colours of each patient's two stains."""
    from matplotlib.patches import Rectangle

    found = [p for p in patients if p.stains is not None]
    key = 'scanner' if len({p.scanner for p in patients}) > 1 else 'source'
    rows = max(1, -(-len(found) // _SWATCH_COLUMNS))
    figure = new_figure(13, max(5.2, 0.8 * rows))
    axis, grid = figure.subplots(1, 2, width_ratios=(1, 1.35))
    groups = [name for name, _ in Counter(getattr(p, key) for p in found).most_common()]
    for i, colour in enumerate(_GROUP_COLOURS[: len(groups)]):
        others = i + 1 == len(_GROUP_COLOURS) < len(groups)  # the last colour is shared
        own = groups[i:] if others else groups[i : i + 1]
        points = np.array([p.stains.strengths for p in found if getattr(p, key) in own])
        label = f'{"others" if others else plain(groups[i])} ({len(points)})'
        axis.scatter(*points.T, color=colour, edgecolor=EDGE, linewidth=0.5, s=45, label=label)
    axis.grid(alpha=0.3)
    unit = 'strength (optical density)'
    axis.set(xlabel=f'haematoxylin {unit}', ylabel=f'eosin {unit}', axisbelow=True)
    if found:
        axis.legend(title=key, frameon=False, loc='upper left', bbox_to_anchor=(0, -0.12), ncols=3, alignment='left')
    for i, patient in enumerate(sorted(found, key=lambda p: natural(p.patient))):
        row, column = divmod(i, _SWATCH_COLUMNS)
        colours = np.exp(-patient.stains.vectors * patient.stains.strengths[:, None])
        for half, colour in enumerate(colours.clip(0, 1)):
            grid.add_patch(Rectangle((column, row + 0.35 * half), 0.86, 0.35, facecolor=colour))
        grid.text(column + 0.43, row + 0.72, plain(patient.patient, 7), ha='center', va='top', size=8)
    grid.set(xlim=(-0.2, _SWATCH_COLUMNS), ylim=(max(rows, 4) + 0.1, -0.1))
    grid.set_axis_off()
    grid.set_title('haematoxylin (above) and eosin (below) of each patient', loc='left', size=11)
    return figure


def plot_sampled_crops(crops: SampledCrops) -> Figure:
    """Plot the share of each class in the training data and in the sampled crops, and the crops that contain it.

    Shares are of the annotated pixels. Classes that are not in the training data are listed below.
    """
    shown = held_classes(crops.data_pixels)
    figure = _class_figure(shown, 0.4, 'the training data')
    axis, held = figure.subplots(1, 2, width_ratios=(1.9, 1))
    data, sampled = (p / max(1, p.sum()) for p in (crops.data_pixels, crops.pixels))
    known = np.concatenate([data, sampled])
    axis.set(xscale='log', xlim=(0.5 * known[known > 0].min(), 1), xlabel='share of the annotated pixels')
    _class_axis(axis, shown)
    _class_axis(held, shown, names=False)
    for row, label in enumerate(shown):
        before, after = data[label], sampled[label]
        if not before:
            _row_text(axis, 0.015, row, 'not in the training data', **_ABSENT)
            continue
        axis.scatter(before, row, s=60, facecolor='white', edgecolor=EDGE, zorder=3)
        if after:
            axis.plot([before, after], [row, row], color=EDGE, linewidth=1.2, zorder=2)
            axis.scatter(after, row, s=90, facecolor=_CLASS_COLOURS[label], edgecolor=EDGE, zorder=4)
        text = f'{percent(after)}   × {two_digits(after / before)}' if after else 'never sampled'
        _row_text(axis, 1.01, row, f'{percent(before)} → {text}')
        share = crops.holding[label] / crops.count
        held.barh(row, 100 * share, color=_CLASS_COLOURS[label], edgecolor=EDGE, linewidth=0.8)
        held.text(100 * share + 1.5, row, percent(share), va='center', size=9)
    axis.xaxis.set_major_formatter(lambda share, _: f'{100 * share:g} %')
    axis.grid(axis='x', alpha=0.3)
    axis.text(1.01, 1.01, 'data → crops, ratio', transform=axis.transAxes, size=9)
    title = f'white: the data, roughly what uniform sampling gives; coloured: {crops.count:,} crops'
    axis.set_title(title, loc='left', size=11)
    held.set(xlim=(0, 115), xlabel='crops that contain the class (%)', xticks=range(0, 101, 20))
    return figure
