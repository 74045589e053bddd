"""What a label map says of a tissue: its connected regions, their outlines for QuPath, areas and ratios."""

from .areas import RATIOS, SlideAreas, areas, read_cases, write_areas
from .components import Components, find_components
from .geojson import labels_to_geojson, write_geojson
from .specks import merge_specks, minimum_pixels

__all__ = [
    'RATIOS', 'Components', 'SlideAreas', 'areas', 'find_components', 'labels_to_geojson', 'merge_specks', 'minimum_pixels',
    'read_cases', 'write_areas', 'write_geojson',
]  # fmt: skip
