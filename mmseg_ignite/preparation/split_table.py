"""Count the pixels, ROIs and patients of each part of a split, as a table and for the figures."""

import numpy as np
from rich.table import Table

from ..datasets.prepared import PARTS
from ..labels import CLASSES


def split_table(index: dict, protocol: str) -> Table:
    """Tabulate ROIs, patients and megapixels per class and part of one split protocol; '-' means no pixel.

    Classes without pixels have no row; the caption names them.
    """
    table = Table('class', title=f'split {protocol}: megapixels of each class')
    for part in PARTS:
        table.add_column(part, justify='right')
    parts = members(index, protocol)
    pixels = part_pixels(parts)
    shown = held_classes(pixels)
    for i in shown:
        table.add_row(CLASSES[i], *map(_megapixels, pixels[:, i]))
    table.caption = absent_classes(shown) or None
    table.add_row(
        '(unannotated)', *(_megapixels(sum(r['unannotated'] for r in rois)) for rois in parts), end_section=True
    )
    table.add_row('ROIs', *(str(len(rois)) for rois in parts))
    table.add_row('patients', *(str(count_patients(rois)) for rois in parts))
    return table


def held_classes(pixels: np.ndarray) -> np.ndarray:
    """Return the train ids of the classes with pixels, from counts (..., 16); all classes if there are no pixels."""
    held = pixels.reshape(-1, len(CLASSES)).any(0)
    return np.flatnonzero(held) if held.any() else np.arange(len(CLASSES))


def absent_classes(shown: np.ndarray) -> str:
    """Return a note that names the classes that are not shown; empty if all are."""
    names = [name for i, name in enumerate(CLASSES) if i not in shown]
    return f'not in the data: {", ".join(names)}' if names else ''


def members(index: dict, protocol: str) -> list[list[dict]]:
    """Return the ROI entries of train, val and test."""
    by_name = {r['name']: r for r in index['rois']}
    return [[by_name[name] for name in index['splits'][protocol][part]] for part in PARTS]


def part_pixels(parts: list[list[dict]]) -> np.ndarray:
    """Return the (parts, 16) pixel counts of lists of ROI entries."""
    return np.array([np.sum([r['pixels'] for r in rois], axis=0) for rois in parts])


def count_patients(rois: list[dict]) -> int:
    return len({r['patient'] for r in rois})


def _megapixels(pixels: int) -> str:
    return f'{pixels / 1e6:.3f}' if pixels else '-'
