"""Opening an image, an array on disk or a slide for the network."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import cv2
import numpy as np

from ..errors import IgniteError
from ..files import printable
from ..images.reading import ReadImage, read_image
from ..inference.tiling import Span
from ..slides.levels import EQUAL
from ..slides.reader import Slide, open_slide
from ..slides.tissue import TissueMask
from .prediction_inputs import Input
from .prediction_options import PredictionOptions
from .predictor import TOLERANCE, Predictor, check_resolution

_PICTURE_SIDE = 3000
"""px; the largest picture of a slide that is drawn."""


@dataclass
class Source:
    """An input that can be predicted.

    Attributes:
        image: (H, W, 3) uint8 RGB array, or a view of a slide; it has the size of the labels.
        stated_um_per_px: resolution of an array, if known; None for a view, which has the resolution of the training.
        um_per_px: resolution of the labels, um/px.
        um_per_px_source: what states it.
        windows: rows and columns of the windows that the network predicts.
        facts: what was found and done, for the record.
        notes: what was changed or assumed, for people.
        mask: where tissue is; None: everywhere.
        blank: (H, W) bool, pixels that become Background; None: none.
        downsample: level-0 px per px of the labels.
        offset: (y, x) level-0 px to add to coordinates.
        slide: the open slide.
    """

    image: object
    stated_um_per_px: float | None
    um_per_px: float
    um_per_px_source: str
    windows: list[tuple[Span, Span]]
    facts: dict
    notes: list[str] = field(default_factory=list)
    mask: TissueMask | None = None
    blank: np.ndarray | None = None
    downsample: float = 1.0
    offset: tuple[float, float] = (0, 0)
    slide: Slide | None = None
    _picture: np.ndarray | None = field(default=None, repr=False)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the labels in px."""
        return tuple(map(int, self.image.shape[:2]))

    @property
    def wanted(self) -> Callable[[Span, Span], bool] | None:
        """Which windows are predicted; None: all."""
        return self.mask.covers if self.slide is not None and self.mask is not None else None

    @property
    def tissue(self) -> Callable[[int, int], np.ndarray] | None:
        """Function of rows (top, bottom) that returns where tissue is; None: everywhere."""
        if self.mask is None and self.blank is None:
            return None
        return self._tissue_rows

    def _tissue_rows(self, top: int, bottom: int) -> np.ndarray:
        found = np.ones((bottom - top, self.size[1]), bool) if self.mask is None else self.mask.rows(top, bottom)
        return found if self.blank is None else found & ~self.blank[top:bottom]

    def has_tissue(self, rows: slice, columns: slice) -> bool:
        """Return whether a rectangle touches tissue."""
        return self.mask is None or self.mask.covers((rows.start, rows.stop), (columns.start, columns.stop))

    def thumbnail(self, max_side: int) -> np.ndarray:
        """Return a picture (h, w, 3) uint8 RGB of the whole with at most ``max_side``, or 3000, px a side."""
        if self._picture is None:  # read once: without a pyramid, the whole slide is decoded for it
            self._picture = np.asarray(self.image) if self.slide is None else self.slide.thumbnail(_PICTURE_SIDE)
        scale = max_side / max(self._picture.shape[:2])
        if scale >= 1:
            return self._picture
        size = tuple(max(1, round(side * scale)) for side in self._picture.shape[1::-1])
        return cv2.resize(self._picture, size, interpolation=cv2.INTER_AREA)


@contextlib.contextmanager
def opened(item: Input, predictor: Predictor, options: PredictionOptions) -> Iterator[Source]:
    """Open an input at the resolution of the training; close it afterwards.

    Raises:
        IgniteError: it cannot be read, its resolution is unknown (slides) or implausible, or its size is impossible.
    """
    if item.kind == 'slide':
        with open_slide(item.path, options.um_per_px) as slide:
            yield _slide_source(slide, predictor, options)
    else:
        yield (_array_source if item.kind == 'array' else _image_source)(item, predictor, options)


def _image_source(item: Input, predictor: Predictor, options: PredictionOptions) -> Source:
    read = read_image(item.path, options.max_pixels)
    known, origin = (options.um_per_px, 'option') if options.um_per_px else (read.um_per_px, read.resolution_source)
    facts = dict(
        transparent=read.transparent,
        fully_transparent=0.0 if read.blank is None else float(read.blank.mean()),
        orientation=read.orientation,
        pages=read.pages,
    )
    return _flat(read.pixels, known, origin, read.um_per_px, predictor, options, facts, _image_notes(read), read.blank)


def _array_source(item: Input, predictor: Predictor, options: PredictionOptions) -> Source:
    name = printable(item.path)
    if not item.path.is_file():
        raise IgniteError(f'{name} is missing or not a regular file; an array was expected: check the path.')
    try:
        image = np.load(item.path, mmap_mode='r', allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise IgniteError(f'{name} cannot be read as an array ({error}): save it with numpy.save.') from error
    if not isinstance(image, np.ndarray):
        raise IgniteError(f'{name} is an archive of arrays; one array was expected: save it with numpy.save.')
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise IgniteError(
            f'{name} is {image.dtype} of shape {image.shape}; (H, W, 3) uint8 RGB was expected: convert it.'
        )
    return _flat(image, options.um_per_px, 'option', None, predictor, options, {}, [], None)


def _flat(
    image: np.ndarray,
    known: float | None,
    origin: str,
    stated: float | None,
    predictor: Predictor,
    options: PredictionOptions,
    facts: dict,
    notes: list[str],
    blank: np.ndarray | None,
) -> Source:
    """Return the source of an image or array: ``known`` is its resolution, and ``stated`` what the file says."""
    size = predictor.working_size(image.shape[:2], known)
    resampled, rows, columns = size != image.shape[:2], *predictor.spans(size)
    before = []
    if known:
        before.append(f'{known:.3g} um/px, ' + ('as stated by --mpp' if origin == 'option' else origin))
        if stated and not 1 / TOLERANCE <= known / stated <= TOLERANCE:
            before.append(f'the file states {stated:.3g} um/px')
    if resampled:
        before.append(f'resampled to {predictor.um_per_px:.3g} um/px of the training')
    facts = dict(
        um_per_px=known,
        um_per_px_source=origin,
        predicted_height=size[0],
        predicted_width=size[1],
        resampled=resampled,
        **facts,
    )
    um_per_px, source = (known, origin) if known else (predictor.um_per_px, 'assumed, as in training')
    mask = None
    if options.tissue_mask is not None:
        mask = TissueMask.from_file(options.tissue_mask, image)
    windows = [(row, column) for row in rows for column in columns]
    return Source(image, known, um_per_px, source, windows, facts, before + notes, mask, blank)


def _image_notes(read: ReadImage) -> list[str]:
    notes = []
    if read.transparent:
        blank = 0.0 if read.blank is None else float(read.blank.mean())
        notes.append(f'{100 * read.transparent:.3g} % transparent, {100 * blank:.3g} % fully and thus Background')
    if read.orientation != 1:
        notes.append(f'EXIF orientation {read.orientation} applied')
    if read.pages > 1:
        notes.append(f'page 1 of {read.pages}')
    return notes


def _slide_source(slide: Slide, predictor: Predictor, options: PredictionOptions) -> Source:
    if predictor.model.test_cfg.get('mode') != 'slide':
        raise IgniteError(
            f'{slide.name} is a slide, which is predicted in windows, but model.test_cfg.mode is not "slide": pass '
            '--cfg-options model.test_cfg.mode=slide model.test_cfg.crop_size=512,512 model.test_cfg.stride=384,384.'
        )
    view = slide.at(predictor.um_per_px, icc=options.icc)
    check_resolution(view.um_per_px)
    rows, columns = predictor.spans(predictor.working_size(view.shape[:2]))
    if options.tissue_mask is not None:
        mask = TissueMask.from_file(options.tissue_mask, view)
    else:
        mask = None if options.no_tissue_mask else TissueMask.from_slide(slide, view)
    windows = [(row, column) for row in rows for column in columns if mask is None or mask.covers(row, column)]
    notes = [f'{slide.format}, level {view.level} of {slide.um_per_px:.4g} um/px read at {view.um_per_px:.4g} um/px']
    if (stated := slide.stated_um_per_px) and any(abs(slide.um_per_px - value) > EQUAL * value for value in stated):
        notes.append(f'the file states {stated[0]:.4g} um/px, but {slide.um_per_px:.4g} of --mpp was used')
    notes += [] if mask is None else [f'{100 * mask.share:.0f} % inside the tissue mask']
    notes += ['colours converted from its ICC profile'] if options.icc else []
    notes += ['it has an ICC profile, which was not applied'] if slide.icc and not options.icc else []
    facts = dict(
        format=slide.format,
        um_per_px=slide.um_per_px,
        um_per_px_source=slide.um_per_px_source,
        predicted_um_per_px=view.um_per_px,
        level=view.level,
        downsample=float(view.downsample),
        level_0_size=list(slide.full_size),
        bounds_offset=list(slide.offset),
        icc_profile='applied' if options.icc else 'present, not applied' if slide.icc else 'none',
        tissue_share=None if mask is None else mask.share,
        notes=list(slide.notes),
    )
    return Source(
        view,
        None,
        view.um_per_px,
        slide.um_per_px_source,
        windows,
        facts,
        notes + list(slide.notes),
        mask,
        downsample=view.downsample,
        offset=(0, 0) if options.bounds_offset else slide.offset,
        slide=slide,
    )
