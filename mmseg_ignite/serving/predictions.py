"""Predictions for the page: of an uploaded image, or of a region of a slide on the server."""

import itertools
import os
import re
import secrets
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL.PngImagePlugin import PngImageFile

from ..apis.input_prediction import predict_source
from ..apis.prediction_inputs import Input
from ..apis.prediction_options import PredictionOptions
from ..apis.prediction_records import fault
from ..apis.prediction_sources import Source, opened
from ..apis.predictor import MIN_SIDE, Predictor
from ..errors import IgniteError
from ..files import printable, visible_files
from ..images.reading import read_image
from ..regions.areas import SlideAreas
from ..slides import Slide, TissueMask, dicom_slides, is_slide, open_slide
from ..visualization.painter import resize
from .options import AppOptions

SHOWN_SIDES = (800, 1600)
"""px; shortest and longest of the longer side of the picture on the page."""
THUMBNAIL_SIDE = 900
_BAND = 512
"""Rows of a tissue mask that are read at once: they are as wide as the slide."""
_ADVICE = (  # of the command line, and what stands for it on the page
    ('give the resolution of its level 0 with --mpp', 'enter it in the field um/px'),
    ('--mpp is', 'the um/px is'),
    (' of --mpp was used', ' of the field was used'),
    (', as stated by --mpp', ', as in the field'),
    (r', or raise the limit with --max-pixels if there is enough memory', ''),
    (r'if you trust the file, raise the limit with \S+', 'use a smaller file.'),
    ('use a smaller --window-batch, or cut it into parts', 'choose a smaller region'),
)


@dataclass(frozen=True)
class Result:
    """A prediction in the size of the page, and its files.

    Attributes:
        name: of the image or region.
        image: (h, w, 3) uint8 RGB in the size of the page.
        labels: (h, w) uint8 train ids in the same size.
        um_per_px: resolution of this picture.
        areas: of the labels in full size.
        label_file: PNG of raw ids in full size, as ``tools/predict.py`` writes it.
        geojson_file: outlines for QuPath.
        notes: what was read, changed or assumed.
    """

    name: str
    image: np.ndarray
    labels: np.ndarray
    um_per_px: float
    areas: SlideAreas
    label_file: Path
    geojson_file: Path
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Overview:
    """A picture of an image or slide before its prediction.

    Attributes:
        name: of the file.
        picture: (h, w, 3) uint8 RGB.
        size: (H, W) px of the image, or of level 0.
        um_per_px: what the file states; None if unknown.
        note: a sentence about the resolution.
        given: resolution that was given for it instead of that in the file.
    """

    name: str
    picture: np.ndarray
    size: tuple[int, int]
    um_per_px: float | None
    note: str
    given: float | None = None


class Predictions:
    """What the page does, without a browser.

    Args:
        predictor: the model.
        options: limits, and the folder of slides.
        folder: temporary folder for the files of results.

    Raises:
        IgniteError: a package that outlines or slides need is not installed.

    Example:
        >>> predictions = Predictions(Predictor(config, checkpoint), AppOptions(), Path('tmp'))
        >>> predictions.image('roi.png', um_per_px=0.5).areas.share_of_tissue['Stroma']
        0.41
    """

    def __init__(self, predictor: Predictor, options: AppOptions, folder: Path) -> None:
        self.predictor, self.options, self.folder = predictor, options, folder
        self._settings().check_packages(options.slides is not None, len(predictor.ensemble.members) > 1)

    def _settings(self, um_per_px: float | None = None) -> PredictionOptions:
        return PredictionOptions(um_per_px, ('label', 'geojson'), max_pixels=self.options.max_pixels)

    def look(self, path: str | Path) -> Overview:
        """Read an uploaded image and what it states of its resolution.

        Raises:
            IgniteError: it is damaged, too large, or a slide.
        """
        with plain_errors(path):
            if is_slide(path):
                raise IgniteError(
                    f'{printable(path)} is a tiled slide; an image was expected: put it into the folder of slides of the '
                    'server, or export a region as PNG.'
                )
            read = read_image(path, self.options.max_pixels)
            trained = f'{self.predictor.um_per_px:.3g}'
            if read.um_per_px:
                note = f'{read.um_per_px:.4g} um/px ({read.resolution_source}).'
            else:
                reason = read.resolution_source.removeprefix('the file ')
                note = (
                    f'Resolution unknown: the file {reason}. {trained} um/px, as in the training, is filled in. Correct it '
                    'before you predict, since classes and areas depend on it.'
                )
            size = read.pixels.shape[:2]
            return Overview(Path(path).name, shown(read.pixels), size, read.um_per_px, note)

    def image(self, path: str | Path, um_per_px: float | None, advance: Callable | None = None) -> Result:
        """Predict an uploaded image.

        Args:
            path: the file.
            um_per_px: its resolution.
            advance: called with the number of finished windows, and of all.

        Raises:
            IgniteError: see :meth:`look`; or the resolution is missing or implausible.
        """
        with plain_errors(path):
            options = self._settings(_given(um_per_px, Path(path).name))
            item = Input(Path(path), 'image')
            with opened(item, self.predictor, options) as source:
                self._check_size(Path(path).name, source.size)
                return self._predicted(item, source, options, advance)

    def slides(self) -> list[str]:
        """Return the names of the slides in the folder; links that lead out of it are left out."""
        if self.options.slides is None:
            return []
        root = Path(self.options.slides)
        found = [path for path in visible_files(root, ('',)) if path.suffix.lower() != '.dcm' and is_slide(path)]
        found += dicom_slides(root) if visible_files(root, ('.dcm',)) else []
        inside = os.path.realpath(root)
        return sorted(printable(path.name) for path in found if os.path.dirname(os.path.realpath(path)) == inside)

    @contextmanager
    def _slide(self, name: str, um_per_px: float | None) -> Iterator[Slide]:
        """Open a slide of the folder by its name."""
        if name not in self.slides():
            raise IgniteError(f'{str(name)[:80]!r} is not a slide of this server: choose one from the list.')
        path = Path(self.options.slides) / name
        with plain_errors(path), open_slide(path, um_per_px or None) as slide:
            yield slide

    def slide(self, name: str, um_per_px: float | None = None) -> Overview:
        """Read the thumbnail of a slide.

        Args:
            name: one of :meth:`slides`.
            um_per_px: resolution of level 0; None: what the file states.

        Raises:
            IgniteError: it is not in the folder, damaged, or of unknown resolution.
        """
        with self._slide(name, um_per_px) as slide:
            height, width = (side * slide.um_per_px / 1000 for side in slide.size)
            note = f'{slide.um_per_px:.4g} um/px ({slide.um_per_px_source}); {width:.2f} x {height:.2f} mm.'
            return Overview(name, slide.thumbnail(THUMBNAIL_SIDE), slide.size, slide.um_per_px, note, um_per_px)

    def region(
        self,
        name: str,
        um_per_px: float | None,
        centre_mm: tuple[float, float],
        side_mm: float,
        advance: Callable | None = None,
    ) -> Result:
        """Predict a square region of a slide, cut at the edges of the slide, at the resolution of the training.

        Glass outside the tissue mask is Background, as in ``tools/predict.py``. Coordinates of the GeoJSON are level-0 px of
        the whole slide, so that QuPath shows the outlines at their place.

        Args:
            name: one of :meth:`slides`.
            um_per_px: resolution of level 0; None: what the file states.
            centre_mm: (y, x) from the upper left corner.
            side_mm: its side.
            advance: see :meth:`image`.

        Raises:
            IgniteError: see :meth:`slide`; or the region is empty, too small or too large.
        """
        with self._slide(name, um_per_px) as slide:
            view = slide.at(self.predictor.um_per_px)
            rows, columns = region_of(view.shape[:2], view.um_per_px, centre_mm, side_mm)
            size = (rows[1] - rows[0], columns[1] - columns[0])
            if min(size) < MIN_SIDE:
                raise IgniteError(
                    f'the region has {size[0]} x {size[1]} px on {name}; at least {MIN_SIDE} px a side were expected: '
                    'choose a centre on the slide, or a larger region.'
                )
            self._check_size('the region', size)
            with plain_errors(slide.path):
                source, item = self._region_source(slide, view, rows, columns)
                return self._predicted(item, source, self._settings(), advance)

    def _region_source(self, slide: Slide, view: object, rows: tuple, columns: tuple) -> tuple[Source, Input]:
        mask = TissueMask.from_slide(slide, view)
        bands = ((top, min(top + _BAND, rows[1])) for top in range(*rows, _BAND))
        tissue = np.concatenate([mask.rows(*band)[:, slice(*columns)] for band in bands])
        size = tissue.shape
        windows = list(itertools.product(*self.predictor.spans(size)))
        place = [round(start * view.downsample) for start in (columns[0], rows[0])]
        notes = [
            f'region of {slide.path.name}, from px {place[0]:,}, {place[1]:,} of level 0',
            f'{size[1]} x {size[0]} px of {view.um_per_px:.4g} um',
            f'{100 * tissue.mean():.0f} % inside the tissue mask',
        ]
        notes += ['it has an ICC profile, which was not applied'] if slide.icc else []
        source = Source(
            view[slice(*rows), slice(*columns)],
            None,
            view.um_per_px,
            slide.um_per_px_source,
            windows,
            facts={},
            notes=notes + list(slide.notes),
            blank=None if tissue.all() else ~tissue,
            downsample=view.downsample,
            offset=(rows[0] * view.downsample, columns[0] * view.downsample),
        )
        return source, Input(Path(f'{Input(slide.path, "slide").name}_x{place[0]}_y{place[1]}.png'), 'image')

    def _check_size(self, name: str, size: tuple[int, int]) -> None:
        if size[0] * size[1] > (limit := self.options.max_pixels):
            raise IgniteError(
                f'{name} has {size[1]:,} x {size[0]:,} px; at most {limit:,} pixels are predicted: choose a smaller one.'
            )

    def _predicted(self, item: Input, source: Source, options: PredictionOptions, advance: Callable | None) -> Result:
        folder = self.folder / secrets.token_hex(16)  # not to be guessed by other users
        folder.mkdir(parents=True)
        try:
            entry, notes = predict_source(
                self.predictor, item, source, folder, options, lambda *facts: _Progress(facts[0], advance)
            )
            labels = np.asarray(PngImageFile(folder / f'{item.name}.png')) - np.uint8(1)  # Image.open has a limit
            image = shown(source.image)
            return Result(
                item.name,
                image,
                resize(labels, image.shape[1::-1]),
                source.um_per_px * labels.shape[1] / image.shape[1],
                SlideAreas(**entry['areas']),
                folder / f'{item.name}.png',
                folder / f'{item.name}.geojson',
                tuple(plain(note) for note in notes),
            )
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    @staticmethod
    def remove(result: Result | None) -> None:
        """Delete the files of a result."""
        if result is not None:
            shutil.rmtree(result.label_file.parent, ignore_errors=True)


class _Progress:
    """Passes the number of finished windows, and of all, on."""

    def __init__(self, windows: int, advance: Callable[[int, int], object] | None) -> None:
        self.windows, self.advance, self.done = windows, advance, 0

    def __enter__(self) -> Callable[[int], object]:
        return self._count

    def __exit__(self, *_: object) -> None:
        pass

    def _count(self, windows: int) -> None:
        self.done += windows
        if self.advance is not None:
            self.advance(self.done, self.windows)


def region_of(
    size: tuple[int, int], um_per_px: float, centre_mm: tuple[float, float], side_mm: float
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return (top, bottom) and (left, right) px of a square region, cut at the edges of a picture.

    Args:
        size: (H, W) px of the picture.
        um_per_px: its resolution.
        centre_mm: (y, x) from the upper left corner.
        side_mm: side of the square.

    Raises:
        IgniteError: a number is missing or not finite.

    Example:
        >>> region_of((1000, 2000), 1.0, centre_mm=(0.5, 0.1), side_mm=0.4)
        ((300, 700), (0, 300))
    """
    values = (*centre_mm, side_mm)
    if not all(isinstance(value, (int, float)) and np.isfinite(value) for value in values) or not side_mm > 0:
        raise IgniteError('centre and side of the region must be numbers of mm: fill them in, or click into the slide.')
    half = side_mm / 2
    spans = (((c - half) * 1000 / um_per_px, (c + half) * 1000 / um_per_px) for c in centre_mm)
    return tuple(tuple(round(min(max(place, 0), side)) for place in span) for span, side in zip(spans, size))


def plain(text: str) -> str:
    """Return a sentence with the fields of the page in place of options of the command line.

    Example:
        >>> plain('a.tif states no resolution: give the resolution of its level 0 with --mpp.')
        'a.tif states no resolution: enter it in the field um/px.'
    """
    for option, field in _ADVICE:
        text = re.sub(option, field, text)
    return text


@contextmanager
def plain_errors(path: str | Path) -> Iterator[None]:
    """Turn every error of the block into an IgniteError that a user of the page understands.

    It names the file without its folder on the server. The traceback of an unexpected error goes to the terminal.
    """
    path, name = Path(path), printable(Path(path).name)
    try:
        yield
    except IgniteError as error:
        text = str(error)
    except Exception as error:
        traceback.print_exc(file=sys.stderr)
        text = fault(name, error)
    else:
        return
    raise IgniteError(plain(text.replace(printable(path), name))) from None


def _given(um_per_px: float | None, name: str) -> float:
    """Return the resolution that a user entered, as a float."""
    if um_per_px is None:
        raise IgniteError(f'the um/px of {name} is missing; e.g. 0.25 for a 40x objective, 0.5 for 20x: fill it in.')
    return float(um_per_px)


def shown(image: np.ndarray) -> np.ndarray:
    """Return a picture in the size of the page: its longer side has 800 to 1600 px."""
    scale = min(SHOWN_SIDES[1] / max(image.shape[:2]), max(1.0, SHOWN_SIDES[0] / max(image.shape[:2])))
    return resize(image, tuple(max(1, round(side * scale)) for side in image.shape[1::-1]))
