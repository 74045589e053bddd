"""Contact sheets: many crops on one picture, each as the network sees it, beside its labels."""

from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageDraw

from ..labels import CLASSES, PALETTE
from .overlay import blend, font

COLUMNS, PANEL = 4, 320
_GAP, _LINE, _TEXT, _SWATCH = 24, 30, 24, 22
_CAPTION = 3  # lines
_OPACITY = 0.65  # more than an overlay's: several purples must be told apart
_ROOM = 14  # px from a border, for a number of two digits


class Crop(NamedTuple):
    """What is shown of a training sample.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        labels: (H, W) uint8, train ids 0..15, 255 unannotated.
        roi: name of the ROI it comes from.
        um_per_px: resolution of the crop.
        number: n of the stream.
        train_id: the class it was placed around, -1 for a uniform draw, None where nobody chose.
    """

    image: np.ndarray
    labels: np.ndarray
    roi: str
    um_per_px: float
    number: int
    train_id: int | None = None


def draw_contact_sheet(crops: list[Crop], title: str) -> Image.Image:
    """Crops in rows of four: the image, beside it its labels over gray tissue, under them what they are.

    Colours alone do not tell all 16 classes apart, so a region with room for it bears the class's id of the release
    (1..16), as the legend does, which holds the classes seen on the sheet. A crop fills a panel of 320 px with its longer
    side; a smaller one is enlarged by repeating its pixels.

    Args:
        crops: at least one.
        title: the line above.
    """
    columns = min(COLUMNS, len(crops))
    cell_width, cell_height = 2 * PANEL + _GAP, PANEL + _CAPTION * _LINE + _GAP
    width, top = columns * cell_width + _GAP, 2 * _LINE
    entries = _place_legend(_legend(crops), width - 2 * _GAP)
    bottom = top + -(-len(crops) // columns) * cell_height
    sheet = Image.new('RGB', (width, bottom + (entries[-1][3] + 1) * (_LINE + 8) + _GAP), 'white')
    draw = ImageDraw.Draw(sheet)
    _write(draw, (_GAP, _LINE // 2), title, width - 2 * _GAP)
    for i, crop in enumerate(crops):
        row, column = divmod(i, columns)
        _draw_crop(sheet, draw, crop, _GAP + column * cell_width, top + row * cell_height)
    for colour, text, x, row in entries:
        left, upper = _GAP + x, bottom + row * (_LINE + 8)
        if colour is not None:
            draw.rectangle((left, upper + 4, left + _SWATCH, upper + 4 + _SWATCH), colour, outline='black', width=2)
            left += _SWATCH + 10
        _write(draw, (left, upper), text, width)
    return sheet


def _draw_crop(sheet: Image.Image, draw: ImageDraw.ImageDraw, crop: Crop, left: int, top: int) -> None:
    image, labels = _fit(crop.image, crop.labels)
    height, width = labels.shape
    for x, panel in ((left, image), (left + PANEL + 2, blend(image, labels, _OPACITY))):
        sheet.paste(Image.fromarray(panel), (x, top))
        draw.rectangle((x - 1, top - 1, x + width, top + height), outline='gray')
    for train_id, x, y in _number_places(labels):
        text = dict(font=font(18), anchor='mm', stroke_width=3, stroke_fill='white')
        draw.text((left + PANEL + 2 + x, top + y), str(train_id + 1), 'black', **text)
    side = crop.um_per_px * crop.image.shape[1]
    number = f'n = {crop.number}'
    if crop.train_id is not None:
        number += ', uniform' if crop.train_id < 0 else f', around {CLASSES[crop.train_id]}'
    for line, text in enumerate((crop.roi, number, f'{crop.um_per_px:.3f} µm/px, {side:.0f} µm wide')):
        _write(draw, (left, top + PANEL + 2 + line * _LINE), text, 2 * PANEL)


def _fit(image: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scale to the panel. Labels are scaled before they are blended, so that their borders stay sharp."""
    scale = PANEL / max(labels.shape)
    size = tuple(max(1, round(side * scale)) for side in labels.shape[::-1])
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST_EXACT
    return cv2.resize(image, size, interpolation=method), cv2.resize(
        labels, size, interpolation=cv2.INTER_NEAREST_EXACT
    )


def _number_places(labels: np.ndarray) -> list[tuple[int, int, int]]:
    """(train id, x, y) of the place of each class that is farthest from its border, where its number has room."""
    places = []
    for train_id in np.unique(labels[labels < len(CLASSES)]).tolist():
        mask = np.pad(labels == train_id, 1).astype(np.uint8)
        _, distance, _, (x, y) = cv2.minMaxLoc(cv2.distanceTransform(mask, cv2.DIST_L2, 3))
        if distance >= _ROOM:
            places.append((train_id, x - 1, y - 1))
    return places


def _legend(crops: list[Crop]) -> list[tuple[tuple | None, str]]:
    """Colour, id of the release and name of each class on the sheet; no colour for what is not annotated."""
    seen = np.unique(np.concatenate([np.unique(crop.labels) for crop in crops]))
    entries = [(PALETTE[i], f'{i + 1} {CLASSES[i]}') for i in seen if i < len(CLASSES)]
    return entries + [(None, 'in H&E colours: not annotated')] if seen[-1] >= len(CLASSES) else entries


def _place_legend(entries: list, width: int) -> list[tuple[tuple | None, str, int, int]]:
    """Add to each entry its left edge (px) and its row."""
    placed, x, row = [], 0, 0
    for colour, text in entries:
        needed = int(font(_TEXT).getlength(text)) + (_SWATCH + 10 if colour is not None else 0)
        if x and x + needed > width:
            x, row = 0, row + 1
        placed.append((colour, text, x, row))
        x += needed + 2 * _GAP
    return placed


def _write(draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, width: int) -> None:
    """One line of text, cut to ``width`` px."""
    text = ' '.join(text.split())[:200]
    if font(_TEXT).getlength(text) > width:
        while text and font(_TEXT).getlength(text + '…') > width:
            text = text[:-1]
        text += '…'
    draw.text(at, text, 'black', font(_TEXT))
