"""Small charts of the report as inline SVG.

The SVG comes from a template of our own because matplotlib's output does not suit a page: it is four to seven times as
large, its style rule and ids apply to the whole document, it refers to remote namespaces, and it has neither hover titles
nor texts in two languages. Only the ticks are matplotlib's.
"""

import math
from collections.abc import Callable
from itertools import cycle
from pathlib import Path

from markupsafe import Markup

from ..visualization.dataset_page import html_environment
from .translations import TEXTS

_BOX = dict(width=420, height=260, left=52, right=396, bottom=216)  # px
_TOP = 14  # px
_KEYS = dict(keys_per_row=3, key_height=15)  # px; names of several lines, above the axes
_COLOURS = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9', '#333333')
_MAX_RADIUS, _MIN_RADIUS = 15, 1.2  # px, of a dot of all pixels, and of the smallest visible one
_MAX_POINTS = 300  # per line; longer series are averaged
_MAX_DOTS = 40  # longer lines have no dots
_TEMPLATE = html_environment(Path(__file__).parent).get_template('chart.svg.j2')

Points = list[tuple[float, float]]


def line_chart(series: dict[str, Points], x_label: str, y_range: tuple[float, float] | None = None) -> Markup:
    """Return lines over a common axis of integers as SVG, empty without any point; several lines are named at the top.

    Args:
        series: {name: points (x, y)}; points that are not finite are dropped.
        x_label: key of the translations.
        y_range: limits of the y axis; by default 0 (or the smallest value) to the largest value.
    """
    finite = {name: sorted(p for p in points if all(map(math.isfinite, p))) for name, points in series.items()}
    series = {name: _thin(points) for name, points in finite.items() if points}
    if not series:
        return Markup('')
    xs, ys = zip(*(p for points in series.values() for p in points))
    lines = {
        name: [(x, y, 3 if len(points) < _MAX_DOTS else 0, f'{x:g}: {y:.4g}') for x, y in points]
        for name, points in series.items()
    }
    y_range = y_range or (min(0.0, *ys), max(ys) or 1.0)
    return _chart(lines, (min(xs), max(xs)), y_range, alt=', '.join(series), x_label=x_label, integers=True)


def reliability(bins: list[dict]) -> Markup:
    """Return the reliability diagram of ``metrics['calibration']['bins']``; dot areas are shares of the pixels."""
    lines = {'': _weighted([(b['confidence'], b['accuracy'], b['pixels']) for b in bins])}
    labels = dict(x_label='confidence', y_label='accuracy', alt='reliability')
    return _chart(lines, (0, 100), (0, 100), ideal=True, **labels)


def entropy_chart(bins: list[dict]) -> Markup:
    """Return the share of wrong pixels over entropy, of ``metrics['calibration']['entropy']``; empty without pixels."""
    points = _weighted([((b['from'] + b['to']) / 2, b['error'], b['pixels']) for b in bins])
    labels = dict(x_label='entropy_axis', y_label='error_axis', alt='entropy')
    limits = bins[0]['from'], bins[-1]['to']
    return _chart({'': points}, limits, (0, 100), _COLOURS[1:], **labels) if points else Markup('')


def _thin(points: Points) -> Points:
    """Average groups of neighbours down to ``_MAX_POINTS``."""
    step = -(-len(points) // _MAX_POINTS) or 1
    groups = [points[i : i + step] for i in range(0, len(points), step)]
    return [(group[-1][0], sum(y for _, y in group) / len(group)) for group in groups]


def _weighted(points: list[tuple[float | None, float | None, int]]) -> list[tuple[float, float, float, str]]:
    """Return (x, y, radius, hover title) of the points (x, y, pixels) that are known."""
    points = [point for point in points if point[2] and None not in point]
    total = sum(pixels for *_, pixels in points)
    shares = ((x, y, pixels / total) for x, y, pixels in points)
    form = '{:g}: {:.4g} ({:.1f} % of the pixels)'.format
    return [(x, y, max(_MIN_RADIUS, _MAX_RADIUS * share**0.5), form(x, y, 100 * share)) for x, y, share in shares]


def _axis(low: float, high: float, start: float, end: float, integers: bool) -> tuple[Callable, list]:
    """Return the map from values to px between ``start`` and ``end``, and the ticks (px, text)."""
    from matplotlib.ticker import MaxNLocator

    def position(value: float) -> float:
        return round(start + (end - start) * (value - low) / ((high - low) or 1), 1)

    locator = MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10], integer=integers, min_n_ticks=1)
    margin = 1e-9 * (high - low)
    ticks = (tick for tick in locator.tick_values(low, high).tolist() if low - margin <= tick <= high + margin)
    return position, [(position(tick), f'{tick:g}') for tick in ticks]


def _chart(
    lines: dict[str, list[tuple[float, float, float, str]]],
    x_range: tuple[float, float],
    y_range: tuple[float, float],
    colours: tuple[str, ...] = _COLOURS,
    integers: bool = False,
    **texts: object,
) -> Markup:
    """Render lines of points (x, y, radius, hover title); a radius of 0 is no dot."""
    top = _TOP + (_KEYS['key_height'] * -(-len(lines) // _KEYS['keys_per_row']) if len(lines) > 1 else 0)
    x_of, x_ticks = _axis(*x_range, _BOX['left'], _BOX['right'], integers)
    y_of, y_ticks = _axis(*y_range, _BOX['bottom'], top, False)
    lines = [
        (name, colour, [dict(x=x_of(x), y=y_of(y), radius=round(r, 2), title=title) for x, y, r, title in points])
        for (name, points), colour in zip(lines.items(), cycle(colours))
    ]
    context = dict(top=top, x_ticks=x_ticks, y_ticks=y_ticks, lines=lines, texts=TEXTS)
    return Markup(_TEMPLATE.render(**_BOX, **_KEYS, **context, **texts))
