"""Areas of the classes of a label raster, the ratios that pathology reports, and their tables.

References:
    Stroma percentage (tumour-stroma ratio): Mesker et al., Cell Oncol 2007; van Pelt et al., Virchows Arch 2018.
    Tumour bed and necrosis: IASLC recommendations for resected lung cancer after neoadjuvant therapy, Travis et al., J Thorac
    Oncol 2020.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import cv2
import numpy as np

from ..errors import IgniteError
from ..files import printable, writing
from ..labels import CLASSES, NUM_CLASSES, histogram
from ..spreadsheets import Row, read_csv, write_csv
from .components import BAND_ROWS, Components, Raster, check_raster
from .specks import check_um_per_px

BACKGROUND = CLASSES[0]
AREAS, RATIOS_FILE = 'areas.csv', 'ratios.csv'
_CHUNK = 1 << 23
"""Pixels that OpenCV counts at once: it counts in float32, exact below 2 ** 24."""


class Ratio(NamedTuple):
    """A ratio of areas: that of the classes ``part`` divided by that of the classes ``whole``."""

    name: str  # column of ratios.csv
    part: tuple[str, ...]
    whole: tuple[str, ...]

    @property
    def formula(self) -> str:
        """The formula in class names, e.g. 'Stroma / (Tumor epithelium + Stroma)'."""
        return f'{" + ".join(self.part)} / ({" + ".join(self.whole)})'

    def value(self, areas: Mapping[str, float]) -> float | None:
        """Return the ratio, 0..1, of areas in any unit; None if the area of ``whole`` is 0."""
        whole = sum(areas.get(name, 0) for name in self.whole)
        return sum(areas.get(name, 0) for name in self.part) / whole if whole else None


_TUMOR, _STROMA, _INFLAMMATION, _NECROSIS = 'Tumor epithelium', 'Stroma', 'Inflammation', 'Necrotic tissue'
RATIOS = (
    Ratio('tumor_stroma_ratio', (_TUMOR,), (_TUMOR, _STROMA)),
    Ratio('stroma_share', (_STROMA,), (_TUMOR, _STROMA)),
    Ratio('inflammation_in_stroma', (_INFLAMMATION,), (_INFLAMMATION, _STROMA)),
    Ratio('necrosis_share', (_NECROSIS,), (_TUMOR, _STROMA, _INFLAMMATION, _NECROSIS)),
)
"""The ratios that are reported, in the order of the columns."""


@dataclass(frozen=True)
class SlideAreas:
    """The areas of one label raster; all values can be stored as JSON and given back to the constructor.

    Attributes:
        um_per_px: Side of a pixel of the raster in um.
        um_per_px_source: Where it is from, e.g. 'slide'; text for the table.
        pixels: {class: number of pixels}, all classes in the order of the labels.
        mean_disagreement: {class: mean disagreement 0..1 of its pixels, None without pixels}; None if it was not measured.
        regions: {class: number of connected regions}; None if they were not counted.
    """

    um_per_px: float
    um_per_px_source: str
    pixels: dict[str, int]
    mean_disagreement: dict[str, float | None] | None = None
    regions: dict[str, int] | None = None

    @property
    def area_mm2(self) -> dict[str, float]:
        """The area of each class in mm2."""
        return {name: count * self.um_per_px**2 / 1e6 for name, count in self.pixels.items()}

    @property
    def tissue_pixels(self) -> int:
        """The number of pixels of all classes but Background."""
        return sum(count for name, count in self.pixels.items() if name != BACKGROUND)

    @property
    def share_of_tissue(self) -> dict[str, float | None]:
        """The share of each class in the tissue, 0..1; None for Background, and for all classes if there is no tissue."""
        tissue = self.tissue_pixels
        return {name: count / tissue if tissue and name != BACKGROUND else None for name, count in self.pixels.items()}

    @property
    def ratios(self) -> dict[str, float | None]:
        """The ratios of :data:`RATIOS` by name, 0..1; None if the denominator is 0."""
        return {ratio.name: ratio.value(self.pixels) for ratio in RATIOS}


def areas(
    raster: Raster,
    um_per_px: float,
    disagreement: Raster | None = None,
    um_per_px_source: str = '',
    components: Components | None = None,
) -> SlideAreas:
    """Measure the areas of the classes of a label raster, reading it in bands of rows.

    Args:
        raster: (H, W) uint8, train ids 0..15.
        um_per_px: Side of a pixel in um, > 0.
        disagreement: (H, W) uint8, the disagreement of an ensemble at each pixel: 0..255 for 0..1.
        um_per_px_source: Where ``um_per_px`` is from; text for the table.
        components: The regions of the raster, to count those of each class.

    Raises:
        IgniteError: um/px is not a number above 0, a raster is not uint8 of shape (H, W), their sizes differ, or a label is
            above 15.

    Example:
        >>> found = areas(np.array([[0, 1], [3, 3]], np.uint8), um_per_px=500)
        >>> found.area_mm2['Stroma'], found.share_of_tissue['Stroma'], found.ratios['tumor_stroma_ratio']
        (0.5, 0.6666666666666666, 0.3333333333333333)
    """
    check_um_per_px(um_per_px)
    check_raster(raster)
    if disagreement is not None:
        check_raster(disagreement, 'the disagreement')
        if tuple(disagreement.shape) != tuple(raster.shape):
            sizes = f'{tuple(disagreement.shape)}; {tuple(raster.shape)}'
            raise IgniteError(f'the disagreement has the shape {sizes}, that of the labels, was expected.')
    counts, sums = np.zeros(256, np.int64), np.zeros(NUM_CLASSES, np.int64)
    for top in range(0, raster.shape[0], BAND_ROWS):
        band = np.ascontiguousarray(raster[top : top + BAND_ROWS])
        counts += histogram(band)
        if disagreement is not None:
            sums += _sums(band, np.ascontiguousarray(disagreement[top : top + BAND_ROWS]))
    if len(wrong := np.flatnonzero(counts[NUM_CLASSES:])):
        raise IgniteError(
            f'the label raster holds the value {wrong[0] + NUM_CLASSES}; train ids 0..{NUM_CLASSES - 1} were expected.'
        )
    pixels = dict(zip(CLASSES, counts.tolist()))
    means = {name: total / 255 / pixels[name] if pixels[name] else None for name, total in zip(CLASSES, sums.tolist())}
    regions = None
    if components is not None:
        regions = dict(zip(CLASSES, np.bincount(components.labels, minlength=NUM_CLASSES).tolist()))
    return SlideAreas(float(um_per_px), um_per_px_source, pixels, None if disagreement is None else means, regions)


def _sums(labels: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Add the uint8 values of the pixels of each class: (16,) int64."""
    labels, values, counts = labels.reshape(-1), values.reshape(-1), np.zeros((NUM_CLASSES, 256), np.int64)
    for first in range(0, labels.size, _CHUNK):
        part = [labels[first : first + _CHUNK], values[first : first + _CHUNK]]
        joint = cv2.calcHist(part, [0, 1], None, [NUM_CLASSES, 256], [0, NUM_CLASSES, 0, 256])
        counts += joint.astype(np.int64)
    return counts @ np.arange(256)


def read_cases(path: str | os.PathLike, slides: Iterable[str]) -> dict[str, str]:
    """Read the case of each slide from a CSV file with the columns ``slide`` and ``case``; others are not read.

    Args:
        path: UTF-8 CSV file with commas and a header.
        slides: Names of the slides, as in areas.csv. Slides that are not in the file have no case.

    Returns:
        {slide: case}.

    Raises:
        IgniteError: The file cannot be read, lacks a column, names an unknown slide or a slide twice, or a case is empty.

    Example:
        >>> _ = Path('cases.csv').write_text('slide,case\\na1,A\\na2,A\\nb1,B\\n')
        >>> read_cases('cases.csv', ['a1', 'a2', 'b1'])
        {'a1': 'A', 'a2': 'A', 'b1': 'B'}
    """
    rows, known, cases = read_csv(path, 'correct the file, which needs the columns slide and case'), set(slides), {}
    name = printable(path)
    for row in rows:
        for column in ('slide', 'case'):
            if column not in row:
                found = ', '.join(map(repr, row))[:200]
                raise IgniteError(f'{name} has the columns {found}; the column {column!r} was expected: add it.')
        slide, case = row['slide'].strip(), row['case'].strip()
        if slide not in known:
            example = f'names such as {min(known)!r}' if known else 'none'
            raise IgniteError(
                f'{name} has the slide {slide!r}, which is not in this run; {example} were expected: correct it.'
            )
        if slide in cases:
            raise IgniteError(f'{name} has the slide {slide!r} twice; once was expected: remove one of the rows.')
        if not case:
            raise IgniteError(f'{name} has no case for the slide {slide!r}: fill it in, or remove the row.')
        cases[slide] = case
    return cases


def write_areas(
    folder: str | os.PathLike, slides: Mapping[str, SlideAreas], cases: Mapping[str, str] | None = None
) -> None:
    """Write ``areas.csv``, one row a slide and class, and ``ratios.csv``, one row a slide, each whole or not at all.

    Where a case has several slides, ``ratios.csv`` also has the rows 'CASE (mean of n)' and 'CASE (minimum of n)': the mean
    and the minimum of each ratio over the n slides; slides without a value of the ratio do not count. Older tables of these
    names are replaced (see :func:`mmseg_ignite.files.check_outputs`). Empty cells have no value.

    Args:
        folder: Folder of the tables; it is created.
        slides: {name: areas}, at least one, in the order of the rows.
        cases: {name of a slide: case}; slides that are not in it have no case.

    Raises:
        IgniteError: There is no slide, or a table cannot be written.

    Example:
        >>> write_areas('out', {'a1': areas(labels, um_per_px=0.5)}, cases={'a1': 'A'})
    """
    if not slides:
        raise IgniteError(
            f'{printable(folder)} cannot get tables of areas: there are no slides; at least one was expected.'
        )
    cases = cases or {}
    for name, rows in ((AREAS, _area_rows(slides, cases)), (RATIOS_FILE, _ratio_rows(slides, cases))):
        with writing(path := Path(folder) / name):
            write_csv(path, rows)


def _area_rows(slides: Mapping[str, SlideAreas], cases: Mapping[str, str]) -> list[Row]:
    """Return the rows of areas.csv; the columns of values that no slide has are left out."""
    optional = [
        key for key in ('mean_disagreement', 'regions') if any(getattr(found, key) for found in slides.values())
    ]
    rows = []
    for slide, found in slides.items():
        area, share, more = found.area_mm2, found.share_of_tissue, {key: getattr(found, key) or {} for key in optional}
        for name, pixels in found.pixels.items():
            rows.append(
                {
                    'slide': slide,
                    'case': cases.get(slide),
                    'class': name,
                    'pixels': pixels,
                    'area_mm2': area[name],
                    'share_of_tissue': share[name],
                    **{key: values.get(name) for key, values in more.items()},
                    'um_per_px': found.um_per_px,
                    'um_per_px_source': found.um_per_px_source,
                }
            )
    return rows


def _ratio_rows(slides: Mapping[str, SlideAreas], cases: Mapping[str, str]) -> list[Row]:
    """Return the rows of ratios.csv: the slides, then the cases with several slides in the order of their first slides."""
    rows = [{'slide': slide, 'case': cases.get(slide), **found.ratios} for slide, found in slides.items()]
    by_case: dict[str, list[Row]] = {}
    for row in rows:
        if row['case'] is not None:
            by_case.setdefault(row['case'], []).append(row)
    for case, own in by_case.items():
        for title, statistic in (('mean', fmean), ('minimum', min)) if len(own) > 1 else ():
            values = {ratio.name: [row[ratio.name] for row in own if row[ratio.name] is not None] for ratio in RATIOS}
            summary = {name: statistic(known) if known else None for name, known in values.items()}
            rows.append({'slide': f'{case} ({title} of {len(own)})', 'case': case, **summary})
    return rows
