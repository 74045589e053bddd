"""Regions of a label raster as GeoJSON for QuPath."""

import contextlib
import gzip
import json
import math
import os
import uuid
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import IO

import numpy as np

from ..errors import IgniteError
from ..extras import import_extra
from ..files import atomic_file, writing
from ..labels import CLASSES, PALETTE
from .polygons import Raster, outlines, survey
from .qupath import GRID, OBJECT_TYPES, SUFFIXES, check_classes
from .simplify import simplify

AREA, SHARE = 'Raster area µm^2', 'Share of tissue'
"""Measurements. QuPath shows ``Area µm^2`` of the simplified outline itself, so ours has another name."""
_NAMESPACE = uuid.UUID('6f1d2c0e-5d0b-5c55-9c9e-0d3f4a1b7e21')
_DECIMALS = 2


def labels_to_geojson(
    labels: Raster,
    um_per_px: float,
    path: str | os.PathLike | None = None,
    *,
    downsample: float | Fraction = 1.0,
    offset: tuple[float, float] = (0, 0),
    tolerance_um: float = 1.0,
    background: bool = False,
    object_type: str = 'annotation',
    classes: Sequence[str] = CLASSES,
    palette: Sequence[Sequence[int]] = PALETTE,
    name: str = '',
    overwrite: bool = False,
) -> dict | None:
    """Outline the 4-connected regions of labels for QuPath: one Polygon per region, with holes, without gaps or overlaps.

    Neighbours share every vertex of their border, also after simplification. Outlines follow the edges of pixels; the pixel
    (y, x) covers [x, x + 1] x [y, y + 1] times ``downsample``. Coordinates have at most two decimals.

    Args:
        labels: (H, W) uint8 train ids, 0 is Background: an array, a memory-mapped array or a
            :class:`~mmseg_ignite.slides.raster.DiskRaster`, read twice in bands of rows. Memory grows with the length of the
            outlines; of the largest piece of tissue it holds the polygons.
        um_per_px: Resolution of the labels in um/px.
        path: ``.geojson`` or ``.json`` file to write, also ``.gz``, feature by feature; by default the content is returned.
        downsample: Level-0 px per px of the labels, at least 0.1.
        offset: (y, x) in level-0 px that is added to coordinates; (0, 0) is right for QuPath if the labels start at the
            bounds of the slide.
        tolerance_um: Corners go whose triangle with their neighbours has an area of at most ``tolerance_um ** 2``, the
            smallest first, as in Visvalingam and Whyatt (1993); 0 keeps the edges of the pixels. See
            :func:`~mmseg_ignite.regions.simplify.simplify` for what limits it: the area of each class in each piece of
            tissue stays within 1 %, that of each region within 10 %, and no region vanishes or becomes invalid.
        background: Also outline Background. Takes more memory: the whole raster is then one piece.
        object_type: 'annotation', or 'detection', which QuPath draws faster and which cannot be edited.
        classes: Name of each label.
        palette: (R, G, B) of each label, 0..255.
        name: Name of the slide. Ids are UUIDs of the name, the labels and the number of the region, so the same input gives
            the same file.
        overwrite: Replace an existing file.

    Returns:
        The FeatureCollection, or None if it was written to ``path``. Measurements of each region: its area in um2 and its
        share (0..1) of all pixels that are not Background, both of the pixels, not of the simplified outline.

    Raises:
        IgniteError: A setting is out of range, a class name is not possible in QuPath, a label is not a class, or the file
            exists or cannot be written.

    Example:
        >>> labels_to_geojson(np.ones((2, 3), np.uint8), um_per_px=0.5)['features'][0]['geometry']['coordinates']
        [[[0, 0], [3, 0], [3, 2], [0, 2], [0, 0]]]
    """
    if object_type not in OBJECT_TYPES:
        raise IgniteError(f'object_type is {object_type!r}; one of {", ".join(OBJECT_TYPES)} was expected.')
    check_classes(classes, palette)
    kinds = [{'name': text, 'color': list(map(int, colour))} for text, colour in zip(classes, palette)]
    grid = _Grid(_checked('um_per_px', um_per_px, 1e-6), _checked('downsample', downsample, 0.1), offset)
    regions = _regions(labels, grid, _checked('tolerance_um', tolerance_um, 0), len(classes), background)
    features = _features(regions, object_type, kinds, uuid.uuid5(_NAMESPACE, name))
    if path is None:
        return {'type': 'FeatureCollection', 'features': list(features)}
    if not str(path).lower().endswith(SUFFIXES):
        raise IgniteError(f'{path} was to be written; QuPath opens {", ".join(SUFFIXES)}: choose such a name.')
    if Path(path).exists() and not overwrite:
        raise IgniteError(f'{path} exists and is kept: choose another file, move it away, or overwrite it.')
    with writing(path), atomic_file(path) as partial, _opened(partial) as stream:
        _write(stream, features)
    return None


def write_geojson(path: str | os.PathLike, labels: Raster, um_per_px: float, **settings: object) -> None:
    """Write the regions of labels to a file; :func:`labels_to_geojson` with ``path`` first.

    Example:
        >>> with open_slide('a.svs') as slide:
        ...     write_geojson('a.geojson', labels, um_per_px=0.5, downsample=slide.at(0.5).downsample, name='a.svs')
    """
    labels_to_geojson(labels, um_per_px, path, **settings)


def _checked(name: str, value: object, lowest: float) -> float:
    """Return a setting as a float; raise IgniteError if it is not a finite number from ``lowest`` on."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not (math.isfinite(number) and number >= lowest):
        raise IgniteError(f'{name} is {value!r}; a number of at least {lowest:g} was expected: correct it.')
    return number


class _Grid:
    """Converts px of the raster into output coordinates."""

    def __init__(self, um_per_px: float, downsample: float, offset: tuple[float, float]) -> None:
        self.um_per_px, self.downsample = um_per_px, downsample
        self.offset = [_checked('offset', value, -math.inf) for value in (offset[1], offset[0])]

    def place(self, points: np.ndarray) -> np.ndarray:
        """Return (m, 2) points on the grid of level-0 px; equal points stay equal."""
        return np.round(points * self.downsample + self.offset, _DECIMALS) + 0.0  # no -0.0

    def unfit(self, polygons: np.ndarray) -> np.ndarray:
        """Return which polygons QuPath would refuse or change: not valid, or lost or parted on its grid."""
        shapely = import_extra('shapely', 'the outlines of regions')
        unfit = ~shapely.is_valid(polygons)
        for number in np.flatnonzero(~unfit & self._has_long_line(polygons)):
            try:
                snapped = shapely.set_precision(polygons[number], GRID)
            except shapely.GEOSException:
                unfit[number] = True
            else:
                unfit[number] = snapped.is_empty or snapped.geom_type != 'Polygon'
        return unfit

    def _has_long_line(self, polygons: np.ndarray) -> np.ndarray:
        """Return which polygons have an oblique line of 40 raster px or more.

        A corner of the raster is at least 1 / n px away from any line of n px between two others. With n below 40 this is
        more than three times 0.0071 px: the grid can move the corner and the line by half a diagonal each, and joins corners
        to lines that are closer than that. So other polygons keep their shape on the grid.
        """
        shapely = import_extra('shapely', 'the outlines of regions')
        _, points, (rings, parts) = shapely.to_ragged_array(polygons)
        x, y = np.abs(np.diff(points, axis=0, append=points[-1:])).T
        lines = (x > 0) & (y > 0) & (np.hypot(x, y) >= 40 * self.downsample * min(self.downsample, 1))
        lines[rings[1:] - 1] = False  # from the end of a ring to the next ring
        return np.logical_or.reduceat(lines, rings[parts[:-1]])


def _regions(
    labels: Raster, grid: _Grid, tolerance_um: float, classes: int, background: bool
) -> Iterator[tuple[int, float, float | None, list]]:
    """Yield label, area in um2, share of tissue (None for Background) and rings of each region."""
    shapely = import_extra('shapely', 'the outlines of regions')
    counts, pieces = survey(labels, classes, whole=background)
    tissue = int(counts[1:].sum())
    for piece in outlines(labels, pieces):
        polygons = simplify(piece, tolerance_um / grid.um_per_px, grid.place, grid.unfit, background)
        kept = np.flatnonzero((piece.labels > 0) | background)
        if not len(kept):
            continue
        _, points, (rings, parts) = shapely.to_ragged_array(polygons[kept])
        points = points.astype(np.int64) if (points == np.rint(points)).all() else points
        for number, region in enumerate(kept):
            pixels, label = int(piece.pixels[region]), int(piece.labels[region])
            area = round(pixels * grid.um_per_px**2, 4)
            bounds = rings[parts[number] : parts[number + 1] + 1]
            yield (
                label,
                int(area) if area.is_integer() else area,
                round(pixels / tissue, 9) if label else None,
                [points[start:stop].tolist() for start, stop in zip(bounds[:-1], bounds[1:])],
            )


def _features(regions: Iterator[tuple], object_type: str, kinds: list[dict], namespace: uuid.UUID) -> Iterator[dict]:
    """Yield the GeoJSON feature of each region."""
    for number, (label, area, share, rings) in enumerate(regions):
        identity = uuid.uuid5(namespace, f'{number} {label} {area} {rings[0][0]}')
        yield {
            'type': 'Feature',
            'id': str(identity),
            'geometry': {'type': 'Polygon', 'coordinates': rings},
            'properties': {
                'objectType': object_type,
                'classification': dict(kinds[label]),
                'isLocked': False,
                'measurements': {AREA: area} if share is None else {AREA: area, SHARE: share},
            },
        }


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """Open a file to write, compressed if it ends in .gz; the bytes depend only on the content."""
    with open(path, 'wb') as stream:
        if path.suffix.lower() != '.gz':
            yield stream
            return
        with gzip.GzipFile('', 'wb', compresslevel=6, fileobj=stream, mtime=0) as packed:
            yield packed


def _write(stream: IO[bytes], features: Iterator[dict]) -> None:
    """Write a FeatureCollection, one feature per line."""
    encoder, start = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(',', ':')), '\n'
    stream.write(b'{"type":"FeatureCollection","features":[')
    for feature in features:
        rings, *rest = encoder.encode(feature).partition('"properties"')
        rings = rings.replace('.0,', ',').replace('.0]', ']')  # integers among coordinates with decimals
        stream.write(''.join((start, rings, *rest)).encode())
        start = ',\n'
    stream.write(b'\n]}\n')
