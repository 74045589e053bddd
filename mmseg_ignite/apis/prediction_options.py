"""What a user chooses of a prediction, checked before any work."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from ..errors import IgniteError
from ..extras import import_extra
from ..files import printable
from ..images.reading import MAX_PIXELS
from ..provenance import file_sha256
from ..visualization.colours import PALETTES
from .predictor import check_resolution

FORMATS = {
    'label': 'label map: PNG of an image, pyramidal OME-TIFF of a slide, which also gets a colour preview',
    'overlay': 'picture of the tissue with its labels, legend and scale bar',
    'geojson': 'outlines for QuPath',
    'areas': 'areas.csv and ratios.csv',
    'page': 'slides.html, a viewer',
    'tiff': 'label map as pyramidal OME-TIFF, also of an image',
    'probability': 'probability of each class, pyramidal OME-TIFF',
    'entropy': 'uncertainty, pyramidal OME-TIFF',
}
"""What can be written, with a line of help."""
DEFAULT_FORMATS = ('label', 'overlay', 'geojson', 'areas', 'page')
_PACKAGES = {'geojson': ('shapely',), 'tiff': ('tifffile',), 'probability': ('tifffile',)}
_PACKAGES |= {'entropy': ('tifffile',)}


@dataclass(frozen=True)
class PredictionOptions:
    """How inputs are read, and what is written of them.

    Attributes:
        um_per_px: resolution of the inputs, um/px; None: what each file states.
        formats: what to write, see :data:`FORMATS`.
        min_area: um2; smaller regions take the label of their largest neighbour before anything is written; 0 keeps them.
        tolerance: um; how far outlines in GeoJSON may be simplified; 0: not at all.
        tissue_mask: picture of one slide or image whose pixels above 0 are tissue; None: found in slides.
        no_tissue_mask: predict glass too.
        icc: convert the colours of slides from their ICC profile to sRGB.
        background: also write Background to the GeoJSON.
        bounds_offset: coordinates of the GeoJSON start at the slide's bounds, as in QuPath.
        palette: colours of the pictures, 'official' or 'colour-blind'.
        max_pixels: images (not slides) with more pixels in their header are not decoded.
        language: shown first in slides.html, 'en' or 'ko'.
        overwrite: predict inputs again that are finished, and replace results of other settings.
        cases: CSV file with the columns slide and case.

    Raises:
        IgniteError: a value is implausible, options contradict each other, or a package for a format is not installed.
    """

    um_per_px: float | None = None
    formats: tuple[str, ...] = DEFAULT_FORMATS
    min_area: float = 100.0
    tolerance: float = 1.0
    tissue_mask: str | Path | None = None
    no_tissue_mask: bool = False
    icc: bool = False
    background: bool = False
    bounds_offset: bool = True
    palette: str = 'official'
    max_pixels: int = MAX_PIXELS
    language: str = 'en'
    overwrite: bool = False
    cases: str | Path | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, 'formats', tuple(dict.fromkeys(self.formats)))
        if self.um_per_px is not None:
            check_resolution(self.um_per_px)
        for name in self.formats:
            if name not in FORMATS:
                raise IgniteError(f'the format is {name!r}; one of {", ".join(FORMATS)} was expected.')
        if self.palette not in PALETTES:
            raise IgniteError(f'the palette is {self.palette!r}; one of {", ".join(PALETTES)} was expected.')
        if self.max_pixels < 1:
            raise IgniteError(f'the limit of pixels is {self.max_pixels}; a number above 0 was expected.')
        for name, value in (('minimum area', self.min_area), ('tolerance', self.tolerance)):
            if not 0 <= value < float('inf'):
                raise IgniteError(f'the {name} is {value}; 0 or a number above it was expected, in um.')
        if self.tissue_mask is not None and self.no_tissue_mask:
            raise IgniteError('a tissue mask is given, but also that there is none: leave one of the two options out.')
        if self.tissue_mask is not None and not Path(self.tissue_mask).is_file():
            raise IgniteError(f'{printable(self.tissue_mask)} is not a file; a picture of the tissue was expected.')

    @classmethod
    def of(cls, given: Mapping[str, object]) -> 'PredictionOptions':
        """Build options from keyword arguments; raise IgniteError for one that does not exist."""
        names = [field.name for field in fields(cls)]
        for name in given:
            if name not in names:
                raise IgniteError(f'the option is {name!r}; one of {", ".join(names)} was expected.')
        return cls(**given)

    def check_packages(self, slides: bool, ensemble: bool) -> None:
        """Raise IgniteError if a package that the formats, slides or the map of an ensemble need is not installed."""
        for name in self.formats:
            for package in _PACKAGES.get(name, ()):
                import_extra(package, f'--formats {name}')
        if slides:
            import_extra('openslide', 'reading slides')
            import_extra('tifffile', 'the label map of a slide')
        if ensemble:
            import_extra('tifffile', 'the map of disagreement of an ensemble')

    def settings(self, facts: Mapping[str, object]) -> dict:
        """Return what the results depend on, as it is read from JSON: these options and facts about the model."""
        own = asdict(self)
        for name in ('overwrite', 'cases', 'language'):
            own.pop(name)
        own['formats'] = sorted(self.formats)
        own['tissue_mask'] = self.tissue_mask and file_sha256(self.tissue_mask)
        return json.loads(json.dumps(dict(own, **facts), default=str))
