"""Contact sheets: training crops as the network sees them, each beside its labels."""

from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageDraw

from ..labels import CLASSES, PALETTE
from .painter import blend, draw_line, font, paste_framed, resize

COLUMNS, PANEL = 4, 320
_GAP, _LINE, _TEXT, _SWATCH = 24, 30, 24, 22  # px
_ROW = _LINE + 8  # px, of the legend
_CAPTION_LINES = 3
_OPACITY = 0.65  # higher than in overlays: there are several purples to distinguish
_NUMBER_MARGIN = 14  # px that a number of two digits needs on each side


class Crop(NamedTuple):
    """A training sample as shown on a contact sheet."""

    image: np.ndarray  # (H, W, 3) uint8 RGB
    labels: np.ndarray  # (H, W) uint8 train ids 0..15, 255 unannotated
    roi: str  # name of the source ROI
    um_per_px: float  # resolution of the crop; NaN if unknown
    number: int  # index in the stream
    train_id: int | None = None  # class around which it was sampled; -1: uniformly; None: the pipeline chose the crop


def classes_in(crops: list[Crop]) -> np.ndarray:
    """Return the sorted ids in the labels of the crops, with 255 if a pixel is unannotated."""
    return np.unique(np.concatenate([np.unique(crop.labels) for crop in crops]))


def draw_contact_sheet(crops: list[Crop], title: str) -> Image.Image:
    """Draw crops (at least one) in rows of four: the image, its labels over gray tissue, and a caption below both.

    Colours alone do not distinguish all 16 classes, so regions that are large enough carry their raw id (1..16), as does
    the legend. The longer side of a crop fills a panel of 320 px; smaller crops are enlarged by repeating pixels.
    """
    columns = min(COLUMNS, len(crops))
    cell_width, cell_height = 2 * PANEL + _GAP, PANEL + _CAPTION_LINES * _LINE + _GAP
    width, top = columns * cell_width + _GAP, 2 * _LINE
    bottom = top + -(-len(crops) // columns) * cell_height
    sheet = Image.new('RGB', (width, bottom + (len(CLASSES) + 1) * _ROW + _GAP), 'white')
    draw = ImageDraw.Draw(sheet)
    draw_line(draw, (_GAP, _LINE // 2), title, width - 2 * _GAP, _TEXT)
    for i, crop in enumerate(crops):
        row, column = divmod(i, columns)
        _draw_crop(sheet, draw, crop, _GAP + column * cell_width, top + row * cell_height)
    return sheet.crop((0, 0, width, _draw_legend(draw, crops, bottom, width) + _GAP))


def _draw_crop(sheet: Image.Image, draw: ImageDraw.ImageDraw, crop: Crop, left: int, top: int) -> None:
    scale = PANEL / max(crop.labels.shape)
    size = tuple(max(1, round(side * scale)) for side in crop.labels.shape[::-1])
    # Labels are resized before blending, so that class borders stay sharp.
    image, labels = resize(crop.image, size, cv2.INTER_NEAREST_EXACT), resize(crop.labels, size)
    paste_framed(sheet, image, left, top)
    paste_framed(sheet, blend(image, labels, _OPACITY), left + PANEL + 2, top)
    for train_id in np.unique(labels[labels < len(CLASSES)]).tolist():
        mask = np.pad(labels == train_id, 1).astype(np.uint8)
        # The number is centred on the pixel farthest from the border of its class, if it fits there.
        _, distance, _, (x, y) = cv2.minMaxLoc(cv2.distanceTransform(mask, cv2.DIST_L2, 3))
        if distance >= _NUMBER_MARGIN:
            style = dict(font=font(18), anchor='mm', stroke_width=3, stroke_fill='white')
            draw.text((left + PANEL + 1 + x, top + y - 1), str(train_id + 1), 'black', **style)
    number = f'n = {crop.number}'
    if crop.train_id is not None:
        number += ', uniform' if crop.train_id < 0 else f', around {CLASSES[crop.train_id]}'
    extent = f'{crop.um_per_px:.3f} µm/px, {crop.um_per_px * crop.image.shape[1]:.0f} µm wide'
    extent = extent if crop.um_per_px > 0 else 'unknown µm/px'
    for line, text in enumerate((crop.roi, number, extent)):
        draw_line(draw, (left, top + PANEL + 2 + line * _LINE), text, 2 * PANEL, _TEXT)


def _draw_legend(draw: ImageDraw.ImageDraw, crops: list[Crop], top: int, width: int) -> int:
    """Draw the classes on the sheet, wrapped to ``width`` px; return the bottom (px)."""
    left = _GAP
    for train_id in classes_in(crops):
        known = train_id < len(CLASSES)
        text = f'{train_id + 1} {CLASSES[train_id]}' if known else 'in H&E colours: not annotated'
        swatch = _SWATCH + 10 if known else 0
        needed = swatch + int(font(_TEXT).getlength(text))
        if left > _GAP and left + needed > width - _GAP:
            left, top = _GAP, top + _ROW
        if known:
            box = (left, top + 4, left + _SWATCH, top + 4 + _SWATCH)
            draw.rectangle(box, PALETTE[train_id], outline='black', width=2)
        draw_line(draw, (left + swatch, top), text, width, _TEXT)
        left += needed + 2 * _GAP
    return top + _ROW
