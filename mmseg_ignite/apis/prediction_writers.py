"""The files of one predicted input, all made from the same labels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..files import printable
from ..labels import CLASSES, PALETTE
from ..regions.areas import SlideAreas
from ..regions.geojson import write_geojson
from ..report.deep_zoom import write_deep_zoom
from ..slides.pyramid import write_label_pyramid, write_map_pyramid
from ..visualization.colours import PALETTES
from ..visualization.overlay import draw_overlay, save_picture, write_labels
from ..visualization.slide_overlay import (
    MAX_SIDE,
    LegendRow,
    draw_slide_overlay,
    labels_thumbnail,
    write_label_preview,
)
from .prediction_inputs import Input
from .prediction_options import PredictionOptions
from .prediction_sources import Source

_GLASS_SIDE = 2048
"""px; the picture of the slide from which the viewer shows glass."""
_MEANINGS = {
    'probability': 'probability of each class times 255',
    'entropy': 'entropy of the class probabilities, divided by the logarithm of the number of classes, times 255',
    'disagreement': "Jensen-Shannon divergence of the members' probabilities, divided by its maximum, times 255",
}


def write_files(
    folder: Path,
    item: Input,
    source: Source,
    labels: object,
    maps: Mapping[str, object],
    areas: SlideAreas,
    options: PredictionOptions,
) -> None:
    """Write the files of an input to a folder.

    Args:
        folder: where :meth:`Input.files` are written.
        item: the input.
        source: the opened input.
        labels: (H, W) uint8 raster of train ids.
        maps: {name: raster, or list of one per class}.
        areas: of these labels.
        options: what to write.

    Raises:
        IgniteError: a file cannot be written.
    """
    name, formats, colours = item.name, options.formats, PALETTES[options.palette]
    shown = printable(name)
    if 'tiff' in formats or ('label' in formats and item.kind == 'slide'):
        write_label_pyramid(folder / f'{name}.ome.tif', labels, source.um_per_px, shown)
    if 'label' in formats and item.kind == 'slide':
        write_label_preview(folder / f'{name}_preview.png', labels, colours=colours)
    elif 'label' in formats:
        write_labels(folder, name, labels[0 : source.size[0]])
    if 'overlay' in formats:
        ending = 'png' if source.slide is None else 'jpg'
        _write_overlay(folder / f'{name}_overlay.{ending}', shown, source, labels, areas, options)
    if 'geojson' in formats:
        write_geojson(
            folder / f'{name}.geojson',
            labels,
            source.um_per_px,
            downsample=source.downsample,
            offset=source.offset,
            tolerance_um=options.tolerance,
            background=options.background,
            name=shown,
        )
    for kind, raster in maps.items():
        _write_map(folder / f'{name}_{kind}.ome.tif', kind, raster, source.um_per_px, shown)
    if 'page' in formats:
        glass = source.thumbnail(_GLASS_SIDE) if source.slide is not None else None
        seen = source.has_tissue if source.mask is not None and glass is not None else None
        um_per_px = source.um_per_px if source.slide is not None else source.stated_um_per_px
        write_deep_zoom(folder / f'{name}_tiles', source.image, labels, um_per_px, seen, glass)


def _write_overlay(
    path: Path, name: str, source: Source, labels: object, areas: SlideAreas, options: PredictionOptions
) -> None:
    """Write the whole slide under its labels, or an image beside its labels."""
    colours = PALETTES[options.palette]
    if source.slide is None:
        known = source.stated_um_per_px
        picture = draw_overlay(source.image, labels[0 : source.size[0]], None, name, known, colours)
    else:
        mm2, shares = areas.area_mm2, areas.share_of_tissue
        rows = [LegendRow(i, mm2[c], shares[c]) for i, c in enumerate(CLASSES) if areas.pixels[c]]
        thumbnail = source.thumbnail(MAX_SIDE)
        um_per_px = source.um_per_px * source.size[1] / thumbnail.shape[1]
        picture = draw_slide_overlay(thumbnail, labels_thumbnail(labels, MAX_SIDE), um_per_px, rows, name, colours)
    save_picture(path, picture)


def _write_map(path: Path, kind: str, raster: object, um_per_px: float, name: str) -> None:
    rasters, names, colours = [raster], [kind], None
    if kind == 'probability':
        rasters, names, colours = raster, CLASSES, PALETTE
    write_map_pyramid(path, rasters, names, um_per_px, name, _MEANINGS[kind], colours)
