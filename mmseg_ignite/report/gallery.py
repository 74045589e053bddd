"""Encode the regions of the report: tissue as JPEG, label maps as compressed ids, scores from the full-size matrices."""

import zlib
from base64 import b64encode
from typing import NamedTuple

import cv2
import numpy as np

from ..errors import IgniteError
from ..evaluation.confusion import scores
from ..visualization.painter import resize, scale_bar_length

SIDE = 1000
"""Maximum side (px) of a region in the report."""
_JPEG = [cv2.IMWRITE_JPEG_QUALITY, 80, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
"""Chroma at full resolution, because nuclei differ from their surroundings in hue: 4:2:0 saves 23 % but costs 1.8 dB."""


class GalleryItem(NamedTuple):
    """A region to show.

    Attributes:
        roi: name, as in the evaluation.
        metadata: patient, organ, ... to show beside the region.
        image: (H, W, 3) uint8 RGB.
        truth: (H, W) uint8 train ids, 255 unannotated.
        prediction: (H, W) uint8 train ids.
        um_per_px: resolution; None if unknown, which omits the scale bar.

    Example:
        >>> item = GalleryItem('roi1', {'patient': '7'}, image, truth, prediction, um_per_px=0.5)
    """

    roi: str
    metadata: dict
    image: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray
    um_per_px: float | None


def encode_item(item: GalleryItem, matrix: np.ndarray, classes: tuple[str, ...]) -> dict:
    """Return the data of a region that the template and scripts need.

    Label maps are ids compressed by zlib, not pictures: colour management, or a browser that blurs canvas data to prevent
    fingerprinting, would change pictures.

    Args:
        item: the region.
        matrix: confusion matrix at full size, (C, C) or (C, C + 1) int64 (see :func:`.report.write_report`).
        classes: C names.

    Raises:
        IgniteError: image and label maps differ in size.
    """
    if not item.image.shape[:2] == item.truth.shape == item.prediction.shape:
        raise IgniteError(
            f'{item.roi} has an image of {item.image.shape[:2]}, a ground truth of {item.truth.shape} and a prediction of '
            f'{item.prediction.shape} px; the same size was expected: predict it again.'
        )
    height, width = item.truth.shape
    scale = min(1.0, SIDE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    result = scores(matrix, classes)
    return dict(
        roi=item.roi,
        metadata=_shown(item.metadata),
        width=size[0],
        height=size[1],
        um_per_px=item.um_per_px,
        um=item.um_per_px / scale if item.um_per_px else None,
        bar=_scale_bar(item.um_per_px, width),
        image=_jpeg(item.image, size),
        truth=_ids(item.truth, size),
        prediction=_ids(item.prediction, size),
        mIoU=result['mIoU'],
        aAcc=result['aAcc'],
        pixels=int(matrix.sum()),
        classes=_class_rows(matrix, classes, result),
        mistaken=_mistaken(matrix, classes),
    )


def _shown(metadata: dict) -> dict:
    """Return the metadata to show: patient first, without empty values and those that the page shows anyway."""
    shown = {k: metadata.get(k) for k in ('patient', *metadata) if k not in ('roi', 'roi_id', 'um_per_px')}
    return {k: v for k, v in shown.items() if v not in (None, '')}


def _jpeg(image: np.ndarray, size: tuple[int, int]) -> str:
    return b64encode(cv2.imencode('.jpg', resize(image, size)[..., ::-1], _JPEG)[1].tobytes()).decode()


def _ids(labels: np.ndarray, size: tuple[int, int]) -> str:
    return b64encode(zlib.compress(resize(labels, size).tobytes(), 7)).decode()  # level 9 takes eight times as long


def _scale_bar(um_per_px: float | None, width: int) -> dict | None:
    """Return the length of the scale bar in um and in percent of the width; None without a resolution."""
    if not um_per_px:
        return None
    length = scale_bar_length(um_per_px, width)
    return dict(um=length, percent=100 * length / (um_per_px * width))


def _class_rows(matrix: np.ndarray, classes: tuple[str, ...], result: dict) -> list[dict]:
    """Return scores and pixels of the classes in ground truth or prediction."""
    predicted = matrix.sum(0)
    rows = [dict(id=i, predicted=int(predicted[i]), **result['classes'][name]) for i, name in enumerate(classes)]
    return [row for row in rows if row['pixels'] or row['predicted']]


def _mistaken(matrix: np.ndarray, classes: tuple[str, ...]) -> dict | None:
    """Return the most frequent confusion: true id, predicted id (C: no prediction), percent of the annotated pixels."""
    wrong = matrix.copy()
    np.fill_diagonal(wrong[:, : len(classes)], 0)
    if not wrong.any():
        return None
    truth, predicted = divmod(int(wrong.argmax()), wrong.shape[1])
    return dict(truth=truth, prediction=predicted, share=100 * float(wrong.max()) / float(matrix.sum()))
