"""Small charts as SVG, whose text is in both languages."""

import math
from collections.abc import Callable
from typing import NamedTuple

from markupsafe import Markup

from .translations import LANGUAGES, TEXTS

_WIDTH, _HEIGHT = 420, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 24, 14, 44
_KEYS, _KEY_WIDTH, _KEY_HEIGHT = 3, 118, 15
"""Names of lines in a row above the axes, and the room of each."""
_COLOURS = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9', '#333333')
_LARGEST, _SMALLEST = 15, 1.2
"""Radius of a dot that stands for all pixels, and of one that would be too small to be seen."""
_POINTS = 300
"""Most points of a line; longer series are averaged in steps."""

Points = list[tuple[float, float]]


class _Frame(NamedTuple):
    """Axes drawn, and the maps from values to places."""

    svg: list
    x: Callable[[float], float]
    y: Callable[[float], float]


def line_chart(series: dict[str, Points], x_label: str, y_range: tuple[float, float] | None = None) -> Markup:
    """Lines over a common axis of whole numbers, named at the top; ``x_label`` is a key of the translations."""
    series = {name: _thin(sorted(p for p in points if all(map(math.isfinite, p)))) for name, points in series.items()}
    series = {name: points for name, points in series.items() if points}
    if not series:
        return Markup('')
    xs, ys = ([p[i] for points in series.values() for p in points] for i in (0, 1))
    low, high = y_range or (min(0.0, min(ys)), max(ys) or 1.0)
    keys = list(series) if len(series) > 1 else []
    top = _TOP + _KEY_HEIGHT * -(-len(keys) // _KEYS)
    frame = _frame((min(xs), max(xs)), (low, high), x_label, ', '.join(series), top=top, whole=True)
    for number, (name, points) in enumerate(series.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        _line(frame, points, colour)
        if keys:
            row, column = divmod(number, _KEYS)
            place = _LEFT + _KEY_WIDTH * column, 11 + _KEY_HEIGHT * row
            frame.svg.append(Markup('<text x="{}" y="{}" class="key" fill="{}">{}</text>').format(*place, colour, name))
    return _close(frame)


def reliability(bins: list[dict]) -> Markup:
    """Accuracy over confidence of ``metrics['calibration']['bins']``; the area of a dot is its share of the pixels."""
    frame = _frame((0, 100), (0, 100), 'confidence', 'reliability', 'accuracy')
    frame.svg.append(
        Markup('<path class="ideal" d="M{:.1f} {:.1f}L{:.1f} {:.1f}"/>').format(
            frame.x(0), frame.y(0), frame.x(100), frame.y(100)
        )
    )
    seen = [b for b in bins if b['pixels'] and b['confidence'] is not None]
    points = [(b['confidence'], b['accuracy']) for b in seen]
    _line(frame, points, _COLOURS[0], weights=[b['pixels'] for b in seen])
    return _close(frame)


def entropy_chart(bins: list[dict]) -> Markup:
    """Share of wrong pixels over entropy, of ``metrics['calibration']['entropy']``; dots as those of :func:`reliability`."""
    seen = [b for b in bins if b['pixels'] and b['error'] is not None]
    if not seen:
        return Markup('')
    points = [((b['from'] + b['to']) / 2, b['error']) for b in seen]
    frame = _frame((bins[0]['from'], bins[-1]['to']), (0, 100), 'entropy_axis', 'entropy', 'error_axis')
    _line(frame, points, _COLOURS[1], weights=[b['pixels'] for b in seen])
    return _close(frame)


def _thin(points: Points) -> Points:
    """Average neighbours, so that a long log stays light."""
    step = -(-len(points) // _POINTS) or 1
    parts = [points[i : i + step] for i in range(0, len(points), step)]
    return [(part[-1][0], sum(y for _, y in part) / len(part)) for part in parts]


def _ticks(low: float, high: float, whole: bool = False) -> list[float]:
    """Up to six round numbers between two values, if ``whole`` integers."""
    span = (high - low) or abs(high) or 1.0
    power = 10 ** math.floor(math.log10(span / 4))
    steps = (s * power for s in (1, 2, 2.5, 5, 10))
    if whole:
        steps = (s * max(1, power) for s in (1, 2, 5, 10))
    step = next(s for s in steps if span / s <= 6)
    first = math.ceil(low / step - 1e-9)
    return [n * step for n in range(first, math.floor(high / step + 1e-9) + 1)]


def _frame(
    xs: tuple,
    ys: tuple,
    x_label: str,
    alt: str,
    y_label: str | None = None,
    top: int = _TOP,
    whole: bool = False,
) -> _Frame:
    (x0, x1), (y0, y1) = xs, ys
    wide, high = _WIDTH - _LEFT - _RIGHT, _HEIGHT - top - _BOTTOM

    def x(value: float) -> float:
        return _LEFT + wide * (value - x0) / ((x1 - x0) or 1)

    def y(value: float) -> float:
        return top + high * (1 - (value - y0) / ((y1 - y0) or 1))

    svg = [Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">').format(_WIDTH, _HEIGHT, alt)]
    for tick in _ticks(y0, y1):
        svg.append(Markup('<path class="grid" d="M{} {:.1f}H{}"/>').format(_LEFT, y(tick), _WIDTH - _RIGHT))
        svg.append(Markup('<text x="{}" y="{:.1f}" class="end">{:g}</text>').format(_LEFT - 7, y(tick) + 4, tick))
    for tick in _ticks(x0, x1, whole):
        svg.append(
            Markup('<text x="{:.1f}" y="{}" class="mid">{:g}</text>').format(x(tick), _HEIGHT - _BOTTOM + 17, tick)
        )
    svg.append(Markup('<path class="axis" d="M{} {:.1f}H{}"/>').format(_LEFT, y(y0), _WIDTH - _RIGHT))
    svg.append(_label(x_label, f'x="{(_LEFT + _WIDTH - _RIGHT) / 2:.0f}" y="{_HEIGHT - 8}"'))
    if y_label:
        middle = top + high / 2
        svg.append(_label(y_label, f'transform="translate(14 {middle:.0f}) rotate(-90)"'))
    return _Frame(svg, x, y)


def _label(key: str, place: str) -> Markup:
    """Text in both languages; ``place`` are attributes."""
    form = Markup(f'<text {place} class="mid label" lang="{{}}">{{}}</text>')
    return Markup('').join(form.format(language, text) for language, text in zip(LANGUAGES, TEXTS[key]))


def _line(frame: _Frame, points: Points, colour: str, weights: list[float] | None = None) -> None:
    """A line, with dots where it has few points; ``weights`` gives their areas."""
    places = [(frame.x(x), frame.y(y)) for x, y in points]
    path = 'L'.join(f'{x:.1f} {y:.1f}' for x, y in places)
    frame.svg.append(Markup('<path class="line" stroke="{}" d="M{}"/>').format(colour, path))
    form = '<circle cx="{:.1f}" cy="{:.1f}" r="{:.2f}" fill="{}"><title>{:g}: {:.4g}{}</title></circle>'
    if weights is not None:
        for (x, y), (px, py), weight in zip(points, places, weights):
            share = weight / sum(weights)
            frame.svg.append(
                Markup(form).format(
                    px, py, max(_SMALLEST, _LARGEST * share**0.5), colour, x, y, f' ({100 * share:.1f} % of the pixels)'
                )
            )
    elif len(points) < 40:
        for (x, y), (px, py) in zip(points, places):
            frame.svg.append(Markup(form).format(px, py, 3, colour, x, y, ''))


def _close(frame: _Frame) -> Markup:
    return Markup('').join([*frame.svg, Markup('</svg>')])
