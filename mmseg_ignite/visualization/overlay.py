"""Overlays (tissue, ground truth and prediction side by side, with a legend), and the files of a prediction."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from ..files import printable, result_file, writing
from ..labels import CLASSES, count_classes, encode_mask
from .colours import OFFICIAL, Colours
from .painter import blend, draw_legend, draw_scale_bar, font, legend_row, paste_framed, resize

_GAP, _TITLE, _LEGEND = 12, 30, 250  # px
_FONT = 13  # px, of the legend
_LARGEST, _SMALLEST = 1000, 320  # px, sides of a panel


def draw_overlay(
    image: np.ndarray,
    prediction: np.ndarray,
    truth: np.ndarray | None = None,
    title: str = '',
    um_per_px: float | None = None,
    colours: Colours = OFFICIAL,
) -> Image.Image:
    """Draw image, ground truth (if given) and prediction side by side, with a legend of the classes present.

    Panels are scaled down to at most 1000 px or up to at least 320 px per side. Without ground truth, the legend lists
    the predicted share of each class.

    Args:
        image: (H, W, 3) uint8 RGB.
        prediction: (H, W) uint8 train ids.
        truth: (H, W) uint8 train ids, 255 unannotated.
        title: line above the panels, e.g. the name of the ROI.
        um_per_px: resolution, for the scale bar and the area; None omits both.

    Example:
        >>> draw_overlay(image, prediction, um_per_px=0.5).save('overlay.png')
    """
    scale = min(_LARGEST / max(image.shape[:2]), max(1.0, _SMALLEST / min(image.shape[:2])))
    width, height = (max(1, round(side * scale)) for side in image.shape[1::-1])
    tissue = resize(image, (width, height))
    panels = {'image': tissue}
    for name, labels in (('ground truth', truth), ('prediction', prediction)):
        if labels is not None:
            panels[name] = blend(tissue, resize(labels, (width, height)), colours=colours)
    entries = _legend(prediction, truth, um_per_px)
    rows = max(height, legend_row(_FONT) * (len(entries) + 1))
    sheet = Image.new('RGB', (_GAP + len(panels) * (width + _GAP) + _LEGEND, rows + 2 * _TITLE + _GAP), 'white')
    draw, left, top = ImageDraw.Draw(sheet), _GAP, 2 * _TITLE - 6
    draw.text((left, 6), title, 'black', font(16))
    for name, picture in panels.items():
        draw.text((left, _TITLE), name, 'black', font(14))
        paste_framed(sheet, picture, left, top)
        left += width + _GAP
    if um_per_px:
        draw_scale_bar(draw, um_per_px / scale, (_GAP, top, width, height))
    draw_legend(sheet, entries, (left + 4, top), _LEGEND - _GAP - 8, colours, _FONT)
    return sheet


def _legend(
    prediction: np.ndarray, truth: np.ndarray | None, um_per_px: float | None
) -> list[tuple[int | None, str, str]]:
    """Return the rows of the legend: train id of the swatch, text, right-aligned value."""
    predicted = count_classes(prediction)
    if truth is not None:
        seen = np.flatnonzero(predicted + count_classes(truth))
        bare = [(None, 'not annotated, stain kept', '')] if (truth >= len(CLASSES)).any() else []
        return [(int(i), CLASSES[i], '') for i in seen] + bare
    shares = predicted / prediction.size
    texts = ['< 0.1 %' if share < 0.001 else f'{100 * share:.1f} %' for share in shares]
    area = [(None, 'whole image', f'{prediction.size * um_per_px**2 / 1e6:.3g} mm²')] if um_per_px else []
    return [(int(i), CLASSES[i], texts[i]) for i in np.flatnonzero(predicted)] + area


def prediction_files(folder: str | Path, name: str, overlay: bool = True) -> list[Path]:
    """Return the paths that :func:`write_prediction` writes; without ``overlay`` those of :func:`write_labels`."""
    return [Path(folder) / f'{name}{suffix}.png' for suffix in (('', '_overlay') if overlay else ('',))]


def write_labels(folder: str | Path, name: str, prediction: np.ndarray) -> None:
    """Write ``NAME.png``, 8 bit, raw ids 1..16, from a prediction, (H, W) uint8 train ids.

    Raises:
        IgniteError: the file cannot be written, or exists and was not written by this package.
    """
    save_picture(prediction_files(folder, name)[0], Image.fromarray(encode_mask(prediction)))


def write_prediction(
    folder: str | Path,
    name: str,
    image: np.ndarray,
    prediction: np.ndarray,
    truth: np.ndarray | None = None,
    um_per_px: float | None = None,
    colours: Colours = OFFICIAL,
) -> None:
    """Write ``NAME.png`` (see :func:`write_labels`) and ``NAME_overlay.png`` (see :func:`draw_overlay`)."""
    write_labels(folder, name, prediction)
    picture = draw_overlay(image, prediction, truth, printable(name), um_per_px, colours)
    save_picture(prediction_files(folder, name)[1], picture)


def save_picture(path: Path, picture: Image.Image) -> None:
    """Write a signed PNG or JPEG; raise IgniteError if it cannot be written or a foreign file is there."""
    options = dict(quality=92, subsampling=0) if path.suffix == '.jpg' else {}
    with writing(path), result_file(path) as partial:
        picture.save(partial, **options)
