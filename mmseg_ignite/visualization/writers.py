"""A prediction as files."""

from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import IgniteError
from ..files import printable, result_file
from ..labels import encode_mask
from .overlay import OFFICIAL, Colours, draw_overlay


def prediction_files(folder: str | Path, name: str, overlay: bool = True) -> list[Path]:
    """The paths that :func:`write_prediction` writes, without an overlay those of :func:`write_labels`."""
    return [Path(folder) / f'{name}{suffix}.png' for suffix in (('', '_overlay') if overlay else ('',))]


def write_labels(folder: str | Path, name: str, prediction: np.ndarray) -> None:
    """Write ``NAME.png``, 8 bit, raw ids 1..16, of a prediction (H, W) uint8 of train ids.

    Raises:
        IgniteError: the file cannot be written, or one is there that we did not write.
    """
    _save(Image.fromarray(encode_mask(prediction)), prediction_files(folder, name)[0])


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
    _save(picture, prediction_files(folder, name)[1])


def _save(picture: Image.Image, path: Path) -> None:
    try:
        with result_file(path) as partial:
            picture.save(partial)
    except OSError as error:
        reason = error.strerror or error
        raise IgniteError(f'{printable(path)} cannot be written ({reason}): choose another folder.') from error
