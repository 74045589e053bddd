"""A prediction as files."""

from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import IgniteError
from ..files import atomic_file
from ..labels import encode_mask
from .overlay import draw_overlay


def write_labels(folder: 'str | Path', name: str, prediction: np.ndarray) -> None:
    """Write ``NAME.png``, 8 bit, raw ids 1..16, of a prediction (H, W) uint8 of train ids."""
    try:
        with atomic_file(Path(folder) / f'{name}.png') as partial:
            Image.fromarray(encode_mask(prediction)).save(partial)
    except OSError as error:
        raise IgniteError(f'{folder} cannot be written ({error.strerror or error}): choose another folder.') from error


def write_prediction(
    folder: 'str | Path',
    name: str,
    image: np.ndarray,
    prediction: np.ndarray,
    truth: 'np.ndarray | None' = None,
    um_per_px: 'float | None' = None,
) -> None:
    """Write ``NAME.png`` (see :func:`write_labels`) and ``NAME_overlay.png`` (see :func:`draw_overlay`)."""
    write_labels(folder, name, prediction)
    try:
        with atomic_file(Path(folder) / f'{name}_overlay.png') as partial:
            draw_overlay(image, prediction, truth, name, um_per_px).save(partial)
    except OSError as error:
        raise IgniteError(f'{folder} cannot be written ({error.strerror or error}): choose another folder.') from error
