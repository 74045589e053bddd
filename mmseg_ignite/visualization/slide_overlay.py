"""Pictures of a whole slide: classes over tissue with a legend of areas, and a colour preview of its labels."""

import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from ..errors import IgniteError
from ..files import result_file, writing
from ..labels import CLASSES, IGNORE, NUM_CLASSES
from ..slides.raster import DiskRaster
from .colours import OFFICIAL, Colours
from .painter import blend, draw_legend, draw_line, draw_scale_bar, legend_row, paste_framed, resize, stripes

MAX_SIDE = 3000
"""Longest side of the slide in an overlay (px)."""
_BAND = 252  # rows of a picture that are blended at once; a multiple of the period of the stripes


class LegendRow(NamedTuple):
    """A class in the legend of an overlay, with the values of the areas table."""

    train_id: int
    mm2: float
    share: float | None  # of the tissue, 0..1; None: not tissue


def labels_thumbnail(raster: np.ndarray | DiskRaster, max_side: int) -> np.ndarray:
    """Return a small version of a label raster; a raster that is small enough is returned whole.

    Each pixel is the label at the centre of its square (nearest neighbour), so shares of area are kept on average, and a
    structure thinner than a pixel is sampled, not outvoted by its neighbours as by a majority. One row is read at a time.

    Args:
        raster: (H, W) uint8 train ids, read as ``raster[top:bottom]``.
        max_side: Longest side of the result in px, > 0.

    Returns:
        (h, w) uint8 train ids.

    Example:
        >>> labels_thumbnail(labels, 3000).shape
        (2250, 3000)
    """
    shape = tuple(map(int, raster.shape))
    scale = min(1.0, max_side / max(shape))
    rows, columns = (_centres(side, max(1, round(side * scale))) for side in shape)
    small = np.empty((len(rows), len(columns)), np.uint8)
    for target, row in zip(small, rows):
        target[:] = raster[int(row) : int(row) + 1][0, columns]
    return small


def _centres(side: int, count: int) -> np.ndarray:
    """Return the pixels of an axis in which the centres of ``count`` equal parts lie."""
    return (2 * np.arange(count) + 1) * side // (2 * count)


def write_label_preview(
    path: str | os.PathLike, raster: np.ndarray | DiskRaster, max_side: int = 4096, colours: Colours = OFFICIAL
) -> None:
    """Write a colour PNG of the labels of a slide, for viewers that show label files as nearly black.

    It is a palette PNG, sampled as :func:`labels_thumbnail`; hatched classes have stripes.

    Raises:
        IgniteError: The file cannot be written, or exists and was not written by this package.

    Example:
        >>> write_label_preview('slide_labels.png', labels)
    """
    labels = labels_thumbnail(raster, max_side)
    dark = stripes(labels, colours)
    labels[dark] += NUM_CLASSES  # the second half of the palette
    picture = Image.fromarray(labels)
    picture.putpalette(np.concatenate([colours.rgb[:NUM_CLASSES], colours.rgb[:NUM_CLASSES] // 2]).tobytes())
    with writing(path), result_file(path) as partial:
        picture.save(partial, compress_level=3)


def draw_slide_overlay(
    thumbnail: np.ndarray,
    labels: np.ndarray,
    um_per_px: float,
    areas: Sequence[LegendRow],
    title: str = '',
    colours: Colours = OFFICIAL,
    opacity: float = 0.55,
) -> Image.Image:
    """Draw the classes over a whole slide, with a scale bar and a legend of areas; glass stays as in the slide.

    The slide is scaled down to at most 3000 px; labels are painted on it without dark borders, which would hide structures
    of a few pixels.

    Args:
        thumbnail: (h, w, 3) uint8 RGB of the slide.
        labels: (h, w) uint8 train ids of the same region, of this or another size, e.g. from :func:`labels_thumbnail`.
        um_per_px: Resolution of the thumbnail in um/px.
        areas: The classes to list, with the values of the areas table, so that picture and table agree; the last row of
            the legend is the sum of those with a share.
        title: Line above the slide, e.g. its name.
        colours: Colours of the classes.
        opacity: Weight of the colours, 0..1.

    Raises:
        IgniteError: The picture is not (h, w, 3) uint8, or the labels not (h, w) uint8.

    Example:
        >>> areas = [LegendRow(1, mm2=12.3, share=0.41), LegendRow(3, mm2=17.7, share=0.59)]
        >>> draw_slide_overlay(slide.thumbnail(3000), labels_thumbnail(labels, 3000), 8.0, areas, 'slide').save('o.jpg')
    """
    if thumbnail.shape[2:] != (3,) or labels.ndim != 2 or (thumbnail.dtype, labels.dtype) != (np.uint8, np.uint8):
        raise IgniteError(
            f'the overlay got a picture {thumbnail.dtype} {thumbnail.shape} and labels {labels.dtype} {labels.shape}; '
            'uint8 (h, w, 3) and uint8 (h, w) were expected.'
        )
    scale = min(1.0, MAX_SIDE / max(thumbnail.shape[:2]))
    width, height = (max(1, round(side * scale)) for side in thumbnail.shape[1::-1])
    size = max(13, round(max(width, height) / 90))  # px, of the font
    gap, legend, top = size, 26 * size, 3 * size
    entries = _legend(areas)
    bottom = max(top + height + gap, top + legend_row(size) * len(entries) + gap)
    sheet = Image.new('RGB', (width + legend + 3 * gap, bottom), 'white')
    draw = ImageDraw.Draw(sheet)
    draw_line(draw, (gap, size // 2), title, sheet.width - 2 * gap, round(1.4 * size))
    picture = _painted(resize(thumbnail, (width, height)), resize(labels, (width, height)), colours, opacity)
    paste_framed(sheet, picture, gap, top)
    draw_scale_bar(draw, um_per_px / scale, (gap, top, width, height), size)
    draw_legend(sheet, entries, (2 * gap + width, top), legend, colours, size)
    return sheet


def _painted(image: np.ndarray, labels: np.ndarray, colours: Colours, opacity: float) -> np.ndarray:
    """Paint the classes but Background over an image, in bands of rows whose stripes continue."""
    labels = np.where(labels == 0, IGNORE, labels).astype(np.uint8)
    return np.concatenate(
        [
            blend(image[top : top + _BAND], labels[top : top + _BAND], opacity, colours, border=1)
            for top in range(0, len(image), _BAND)
        ]
    )


def _legend(areas: Sequence[LegendRow]) -> list[tuple]:
    """Return the rows of the legend: those of the classes, and the sum of the tissue."""
    rows = [(None, '', 'mm²', '% of tissue')]
    for train_id, mm2, share in areas:
        if share is None:
            rows.append((None, f'{CLASSES[train_id]} (not painted)', _area_text(mm2), ''))
        else:
            text = '< 0.1' if 0 < share < 0.001 else f'{100 * share:.1f}'
            rows.append((train_id, CLASSES[train_id], _area_text(mm2), text))
    tissue = [row.mm2 for row in areas if row.share is not None]
    return [*rows, (None, 'Tissue', _area_text(sum(tissue)), '100.0' if tissue else '')]


def _area_text(mm2: float) -> str:
    return '< 0.001' if 0 < mm2 < 0.001 else f'{mm2:.3f}' if mm2 < 10 else f'{mm2:.1f}'
