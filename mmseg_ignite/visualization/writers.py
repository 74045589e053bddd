"""Write pictures, and a prediction as label map and overlay."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import IgniteError
from ..files import printable, result_file
from ..labels import encode_mask
from .colours import OFFICIAL, Colours
from .overlay import draw_overlay


def save_result(path: str | Path, write: Callable[[Path], object]) -> None:
    """Write a result atomically by ``write(temporary path)``.

    Raises:
        IgniteError: the file cannot be written, or exists and was not written by this package.
    """
    try:
        with result_file(path) as partial:
            write(partial)
    except OSError as error:
        reason = error.strerror or error
        raise IgniteError(f'{printable(path)} cannot be written ({reason}): choose another folder.') from error


def prediction_files(folder: str | Path, name: str, overlay: bool = True) -> list[Path]:
    """Return the paths that :func:`write_prediction` writes; without ``overlay`` those of :func:`write_labels`."""
    return [Path(folder) / f'{name}{suffix}.png' for suffix in (('', '_overlay') if overlay else ('',))]


def write_labels(folder: str | Path, name: str, prediction: np.ndarray) -> None:
    """Write ``NAME.png``: 8 bit, raw ids 1..16.

    Args:
        folder: output folder.
        name: stem of the file name.
        prediction: (H, W) uint8 train ids.

    Raises:
        IgniteError: see :func:`save_result`.
    """
    save_result(prediction_files(folder, name)[0], Image.fromarray(encode_mask(prediction)).save)


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
    save_result(prediction_files(folder, name)[1], picture.save)
