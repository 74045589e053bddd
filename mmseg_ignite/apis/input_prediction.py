"""Predicting one input: its labels and maps, what they measure, and the files."""

import contextlib
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from ..labels import CLASSES
from ..regions.areas import areas
from ..regions.specks import merge_specks, minimum_pixels
from ..slides.raster import DiskRaster
from .prediction_inputs import Input
from .prediction_options import PredictionOptions
from .prediction_progress import WindowProgress
from .prediction_rasters import BACKGROUND
from .prediction_sources import Source, opened
from .prediction_writers import write_files
from .predictor import Predictor

_BAND = 1024
_IN_MEMORY = 1 << 26
"""px; larger rasters are on disk."""


def predict_input(
    predictor: Predictor, item: Input, folder: Path, options: PredictionOptions
) -> tuple[dict, list[str]]:
    """Predict one input and write its files to a folder that holds nothing else.

    Returns:
        its entry for the record, and notes on what was changed or assumed.

    Raises:
        IgniteError: it cannot be read or predicted, or a file cannot be written.
    """
    start = time.perf_counter()
    with opened(item, predictor, options) as source:
        entry, notes = predict_source(predictor, item, source, folder, options)
    entry['seconds'] = round(time.perf_counter() - start, 3)
    return entry, notes


def predict_source(
    predictor: Predictor,
    item: Input,
    source: Source,
    folder: Path,
    options: PredictionOptions,
    progress: Callable[[int, str, float], contextlib.AbstractContextManager] = WindowProgress,
) -> tuple[dict, list[str]]:
    """Predict an opened input; see :func:`predict_input`, which opens it.

    Args:
        item: gives the names of the files.
        source: what is predicted.
        progress: shows the windows, see :class:`.WindowProgress`.
    """
    start = time.perf_counter()
    ensemble = len(predictor.ensemble.members) > 1
    if item.kind == 'slide':
        with torch.inference_mode():
            predictor.compilation.decide(len(source.windows))
    with contextlib.ExitStack() as stack:
        labels, maps = _rasters(folder, source.size, options, ensemble, stack)
        mm2 = len(source.windows) * math.prod(predictor.window_size(source.size)) * source.um_per_px**2 / 1e6
        with progress(len(source.windows), item.path.name, mm2) as on_progress:
            predictor.label(
                *(source.image, labels, source.stated_um_per_px, on_progress, source.wanted, source.tissue, maps)
            )
            seconds = time.perf_counter() - start
            specks = merge_specks(labels, minimum_pixels(options.min_area, source.um_per_px))
            _blank(labels, source.blank)
            found = areas(labels, source.um_per_px, maps.get('disagreement'), source.um_per_px_source)
            write_files(folder, item, source, labels, maps, found, options)
        notes = [*source.notes]
        if missing := getattr(source.image, 'missing_pixels', 0):
            notes.append(f'{missing:,} px without data were read as glass')
        entry = dict(
            kind=item.kind,
            files=item.files(options, ensemble),
            height=source.size[0],
            width=source.size[1],
            **source.facts,
            missing_pixels=int(missing),
            windows=len(source.windows),
            compiled=predictor.compilation.active,
            merged_regions=specks,
            seconds=round(time.perf_counter() - start, 3),
            prediction_seconds=round(seconds, 3),
            areas=vars(found),
        )
        entry['notes'] = notes
    return entry, notes


def _blank(labels: object, blank: np.ndarray | None) -> None:
    """Set pixels to Background; merged regions may have covered them again."""
    for top in range(0, 0 if blank is None else len(blank), _BAND):
        rows = slice(top, min(top + _BAND, len(blank)))
        labels[rows] = np.where(blank[rows], np.uint8(BACKGROUND), labels[rows])


def _rasters(
    folder: Path, size: tuple[int, int], options: PredictionOptions, ensemble: bool, stack: contextlib.ExitStack
) -> tuple[object, dict]:
    """Return the rasters of labels and maps: on disk for slides, in memory for images."""

    def raster(name: str) -> object:
        if math.prod(size) <= _IN_MEMORY:
            return np.zeros(size, np.uint8)
        return stack.enter_context(DiskRaster(folder / f'.{name}.raw', size))

    maps = {name: raster(name) for name in ('entropy',) if name in options.formats}
    maps |= dict(disagreement=raster('disagreement')) if ensemble else {}
    if 'probability' in options.formats:
        maps['probability'] = [raster(f'probability{i}') for i in range(len(CLASSES))]
    return raster('labels'), maps
