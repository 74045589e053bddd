"""The pictures and the tables of the page."""

import html
from collections.abc import Collection, Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw

from ..labels import CLASSES, IGNORE
from ..regions.areas import BACKGROUND, RATIOS, SlideAreas
from ..report.translations import TEXTS
from ..visualization.colours import PALETTES, class_colours
from ..visualization.painter import blend, draw_scale_bar

_FADE = 0.2
"""Below this opacity, the gray of the tissue under the colours fades into the stain."""
_MARK = ((0, 0, 0), 5), ((255, 230, 0), 2)
"""Colours and widths (px) of the lines around a region: visible on glass and on tissue."""


def draw_overlay(
    image: np.ndarray,
    labels: np.ndarray,
    um_per_px: float,
    opacity: float = 0.5,
    shown: Collection[int] | None = None,
    palette: str = 'official',
) -> np.ndarray:
    """Paint the shown classes over a picture, with a scale bar; hidden classes leave the stain as it is.

    Args:
        image: (h, w, 3) uint8 RGB.
        labels: (h, w) uint8 train ids.
        um_per_px: resolution of the picture.
        opacity: weight of the colours, 0..1; 0 is the picture alone.
        shown: train ids; None: all.
        palette: 'official' or 'colour-blind'.

    Returns:
        (h, w, 3) uint8 RGB.

    Example:
        >>> draw_overlay(result.image, result.labels, result.um_per_px, opacity=0.4, shown=[1, 3])
    """
    hidden = np.isin(labels, list(range(len(CLASSES)) if shown is None else shown), invert=True)
    painted = blend(image, np.where(hidden, np.uint8(IGNORE), labels), opacity, PALETTES[palette])
    weight = min(1.0, opacity / _FADE)
    picture = Image.fromarray(cv2.addWeighted(painted, weight, image, 1 - weight, 0) if weight < 1 else painted)
    height, width = labels.shape
    size = max(12, width // 60)
    draw_scale_bar(ImageDraw.Draw(picture), um_per_px, (0, 0, width, height), size)
    return np.asarray(picture)


def draw_region(thumbnail: np.ndarray, spans: Sequence[tuple[float, float]] | None) -> np.ndarray:
    """Draw a region into the thumbnail of a slide.

    Args:
        thumbnail: (h, w, 3) uint8 RGB.
        spans: (top, bottom) and (left, right), 0..1 of the slide; None: no region.
    """
    picture = thumbnail.copy()
    if spans is not None:
        (top, bottom), (left, right) = (
            [round(place * (side - 1)) for place in span] for span, side in zip(spans, picture.shape)
        )
        for colour, width in _MARK:
            cv2.rectangle(picture, (left, top), (right, bottom), colour, width)
    return picture


def areas_table(areas: SlideAreas, palette: str = 'official') -> str:
    """Return the HTML of the areas and ratios: a row for each class that is present, the largest first."""
    mm2, shares = areas.area_mm2, areas.share_of_tissue
    present = sorted((name for name in CLASSES if areas.pixels[name]), key=lambda name: -areas.pixels[name])
    present.sort(key=lambda name: name == BACKGROUND)  # last, since it is not tissue
    tissue = sum(mm2[name] for name in present if name != BACKGROUND)
    decimals = next((n for n, least in ((2, 10), (3, 1), (4, 0.1)) if tissue >= least), 5)
    rows = [
        f'<tr><th scope="row">{_swatch(name, palette)}{html.escape(name)}</th><td>{mm2[name]:.{decimals}f}</td>'
        f'<td>{_percent(shares[name])}</td></tr>'
        for name in present
    ]
    whole = _percent(1.0 if tissue else None)
    total = f'<tr class="sum"><th scope="row">Tissue</th><td>{tissue:.{decimals}f}</td><td>{whole}</td></tr>'
    head = '<tr><th scope="col">Class</th><th scope="col">mm²</th><th scope="col">% of tissue</th></tr>'
    ratios = ''.join(
        f'<dt>{TEXTS[ratio.name]["en"]}<b>{_percent(areas.ratios[ratio.name], " %")}</b></dt>'
        f'<dd>{html.escape(ratio.formula)}</dd>'
        for ratio in RATIOS
    )
    return (
        f'<div class="measures"><table><thead>{head}</thead><tbody>{"".join(rows)}</tbody><tfoot>{total}</tfoot></table>'
        f'<dl>{ratios}</dl></div>'
    )


def swatch_styles(classes: Sequence[int], palette: str = 'official') -> str:
    """Return the style sheet that gives the check box of each class its colour."""
    rules = (
        f'#classes .wrap label:nth-of-type({place}) {{--fill: {_fill(CLASSES[number], palette)}}}'
        for place, number in enumerate(classes, 1)
    )
    return f'<style>{"".join(rules)}</style>'


def message(text: str, kind: str = 'note') -> str:
    """Return the HTML of a line to the user; kind: 'note', 'error' or 'done'."""
    role = 'alert' if kind == 'error' else 'status'
    return f'<div class="message {kind}" role="{role}">{html.escape(text)}</div>' if text else ''


def _percent(share: float | None, unit: str = '') -> str:
    if share is None:
        return '–'
    return f'&lt; 0.1{unit}' if 0 < share < 0.001 else f'{100 * share:.1f}{unit}'


def _fill(name: str, palette: str) -> str:
    colours = class_colours(name, 0)
    if palette == 'official':
        return colours.official
    if not colours.hatched:
        return colours.safe
    dark = '#' + ''.join(f'{int(colours.safe[i : i + 2], 16) // 2:02x}' for i in (1, 3, 5))
    return f'repeating-linear-gradient(135deg, {dark} 0 2px, {colours.safe} 2px 6px)'


def _swatch(name: str, palette: str) -> str:
    return f'<i class="swatch" style="background: {_fill(name, palette)}"></i>'
