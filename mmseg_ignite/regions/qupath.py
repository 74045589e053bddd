"""QuPath's rules for GeoJSON, as read in the sources of QuPath 0.5 to 0.8, and its list of classes."""

import gzip
import json
import math
import os
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import IgniteError
from ..extras import import_extra
from ..files import write_json
from ..labels import CLASSES, PALETTE

GRID = 0.01
"""Grid in level-0 px on which QuPath (0.6 and later) puts coordinates."""
OBJECT_TYPES = ('annotation', 'detection')
SUFFIXES = ('.geojson', '.json', '.geojson.gz', '.json.gz')
_PRIMITIVES = (str, int, float, bool, type(None))


def name_fault(name: object) -> str | None:
    """Return what is wrong with the name of a class, or None."""
    if not isinstance(name, str) or not name.strip():
        return f'the class name {name!r} is blank'
    if ':' in name:
        return f"the class name {name!r} has a ':', at which QuPath splits names"
    if '\n' in name or '\r' in name:
        return f'the class name {name!r} has a line break'
    return f"the class name {name!r} ends in '*', which QuPath takes for an ignored class" if name[-1] == '*' else None


def check_classes(classes: Sequence[str], palette: Sequence[Sequence[int]]) -> None:
    """Raise IgniteError unless QuPath keeps the names, they differ, and each class has a colour (R, G, B) of 0..255."""
    faults = [fault for fault in map(name_fault, classes) if fault]
    faults += [f'the class name {name!r} occurs twice' for name in {n for n in classes if list(classes).count(n) > 1}]
    if len(palette) != len(classes) or not all(_is_colour(list(colour)) for colour in palette):
        faults.append(f'the palette of {len(classes)} classes does not hold a colour (R, G, B) of 0..255 for each')
    if faults:
        raise IgniteError(f'{faults[0]}: correct the classes.')


def class_list(classes: Sequence[str], palette: Sequence[Sequence[int]]) -> dict:
    """Return the content of ``PROJECT/classifiers/classes.json``: colours are signed 0xFFRRGGBB."""
    colours = (int.from_bytes(bytes([255, *colour]), 'big', signed=True) for colour in palette)
    return {'pathClasses': [{'name': name, 'color': colour} for name, colour in zip(classes, colours)]}


def write_classes(
    path: str | os.PathLike,
    classes: Sequence[str] = CLASSES,
    palette: Sequence[Sequence[int]] = PALETTE,
    overwrite: bool = False,
) -> None:
    """Write QuPath's list of classes with their colours, for ``PROJECT/classifiers/classes.json``.

    Args:
        path: File to write.
        classes: Names.
        palette: (R, G, B) of each class, 0..255.
        overwrite: Replace an existing file with other content.

    Raises:
        IgniteError: The names or colours are not usable, or the file exists with other content and stays.

    Example:
        >>> write_classes('out/classes.json')
    """
    check_classes(classes, palette)
    content = class_list(classes, palette)
    if Path(path).exists() and not overwrite:
        try:
            same = json.loads(Path(path).read_bytes()) == content
        except (OSError, ValueError):
            same = False
        if not same:
            raise IgniteError(f'{path} exists with other classes and is kept: choose another folder, or move it away.')
        return
    write_json(path, content)


def qupath_faults(source: str | os.PathLike | dict, limit: int = 20) -> list[str]:
    """Check a GeoJSON file, or its content, by the rules of QuPath's importer.

    Args:
        source: Path of a ``.geojson`` or ``.json`` file, or one of these with ``.gz`` added, or the content as a dict.
        limit: Number of faults after which the check stops.

    Returns:
        One sentence per fault; an empty list if QuPath would read every feature. QuPath itself does not run.

    Example:
        >>> qupath_faults({'type': 'FeatureCollection', 'features': []})
        []
    """
    found, faults = [], _faults(source)
    while len(found) < limit and (fault := next(faults, None)):
        found.append(fault)
    return found


def _faults(source: str | os.PathLike | dict) -> Iterator[str]:
    if not isinstance(source, dict):
        if not str(source).lower().endswith(SUFFIXES):
            yield f'the name {Path(source).name} ends in none of {", ".join(SUFFIXES)}'
            return
        try:
            content = Path(source).read_bytes()
            content = gzip.decompress(content) if str(source).lower().endswith('.gz') else content
            source = json.loads(content.decode('utf-8'), parse_constant=_no_constant)
        except (OSError, EOFError, ValueError, RecursionError) as error:
            yield f'the file is not JSON in UTF-8 ({error})'
            return
    if not isinstance(source, dict) or source.get('type') != 'FeatureCollection':
        yield 'the root is not a FeatureCollection'
        return
    if not isinstance(source.get('features'), list):
        yield 'the root has no list of features'
        return
    seen = set()
    for number, feature in enumerate(source['features']):
        if not isinstance(feature, dict) or feature.get('type') != 'Feature':
            yield f'feature {number} is not a Feature'
            continue
        faults = [*_id_faults(feature.get('id'), seen), *_geometry_faults(feature.get('geometry'))]
        yield from (f'feature {number}: {fault}' for fault in [*faults, *_property_faults(feature.get('properties'))])


def _no_constant(name: str) -> None:
    raise ValueError(f'{name} is not a number of JSON')


def _id_faults(identity: object, seen: set) -> Iterator[str]:
    try:
        valid = str(uuid.UUID(identity)) == identity.lower()
    except (ValueError, AttributeError, TypeError):
        valid = False
    if not valid:
        yield f'the id {identity!r} is not a UUID'
    elif identity.lower() in seen:
        yield f'the id {identity} occurs twice'
    else:
        seen.add(identity.lower())


def _geometry_faults(geometry: object) -> Iterator[str]:
    kind = geometry.get('type') if isinstance(geometry, dict) else None
    if kind not in ('Polygon', 'MultiPolygon'):
        yield f'the geometry is {kind!r}; Polygon or MultiPolygon was expected'
        return
    parts = geometry.get('coordinates')
    parts = [parts] if kind == 'Polygon' else parts
    if not isinstance(parts, list) or not parts or not all(isinstance(p, list) and p for p in parts):
        yield 'the geometry has no rings'
        return
    if kind == 'MultiPolygon' and len(parts) == 1:
        yield 'the MultiPolygon has one part; a Polygon was expected'
    faults = [fault for part in parts for ring in part if (fault := _ring_fault(ring))]
    yield from faults or _shape_faults(parts)


def _ring_fault(ring: object) -> str | None:
    if not isinstance(ring, list) or not all(
        isinstance(p, list) and len(p) == 2 and all(map(_is_number, p)) for p in ring
    ):
        return 'a ring is not a list of two finite numbers each'
    if len(ring) < 4:
        return f'a ring has {len(ring)} positions; at least 4 were expected'
    return None if ring[0] == ring[-1] else 'a ring is not closed'


def _shape_faults(parts: list) -> Iterator[str]:
    """Check in QuPath's order: valid as it is, then neither lost nor parted on the grid."""
    shapely = import_extra('shapely', 'the check of outlines')
    polygons = [shapely.Polygon(part[0], part[1:]) for part in parts]
    shape = polygons[0] if len(polygons) == 1 else shapely.MultiPolygon(polygons)
    if not shape.is_valid:
        yield f'the geometry is not valid ({shapely.is_valid_reason(shape)})'
        return
    try:
        snapped = shapely.set_precision(shape, GRID)
    except shapely.GEOSException as error:
        yield f'the geometry cannot be put on a grid of {GRID} px ({error})'
        return
    if snapped.is_empty:
        yield f'the geometry vanishes on a grid of {GRID} px'
    elif shapely.get_num_geometries(snapped) != len(parts):
        yield f'the geometry falls into {shapely.get_num_geometries(snapped)} parts on a grid of {GRID} px'


def _property_faults(properties: object) -> Iterator[str]:
    if not isinstance(properties, dict):
        yield 'there are no properties'
        return
    if properties.get('objectType') not in OBJECT_TYPES:
        yield f'objectType is {properties.get("objectType")!r}; one of {", ".join(OBJECT_TYPES)} was expected'
    kind = properties.get('classification')
    if not isinstance(kind, dict) or not {'name', 'color'} <= kind.keys():
        yield 'the classification is not an object with name and color'
    else:
        yield from filter(None, [name_fault(kind['name'])])
        if not _is_colour(kind['color']):
            yield f'the color is {kind["color"]!r}; three integers of 0..255 were expected'
    measurements, metadata = properties.get('measurements', {}), properties.get('metadata', {})
    if not isinstance(measurements, dict) or not all(map(_is_number, measurements.values())):
        yield 'the measurements are not an object of finite numbers'
    if not isinstance(metadata, dict) or not all(isinstance(value, _PRIMITIVES) for value in metadata.values()):
        yield 'the metadata is not an object of texts, numbers and booleans'
    if not isinstance(properties.get('isLocked', False), bool):
        yield f'isLocked is {properties["isLocked"]!r}; true or false was expected'
    if 'isEllipse' in properties:
        yield 'isEllipse is set'


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_colour(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 3
        and all(isinstance(v, int) and not isinstance(v, bool) and 0 <= v <= 255 for v in value)
    )
