"""The regions of the report: tissue as JPEG, label maps as compressed ids, scores from the exact matrices."""

import zlib
from base64 import b64encode
from typing import NamedTuple

import cv2
import numpy as np

from ..errors import IgniteError
from ..evaluation.confusion import scores
from ..visualization.overlay import scale_bar_length

SIDE = 1000
"""Longest side (px) of a region in the report."""
_JPEG = [cv2.IMWRITE_JPEG_QUALITY, 80, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
"""Colour at full size, as nuclei differ from their surroundings in hue: halved it saves 23 % of the bytes, costs 1.8 dB."""


class GalleryItem(NamedTuple):
    """A region to show.

    Attributes:
        roi: its name, as in the evaluation.
        metadata: patient, organ, ... whatever is to be read beside it.
        image: (H, W, 3) uint8 RGB.
        truth: (H, W) uint8 train ids, 255 unannotated.
        prediction: (H, W) uint8 train ids.
        um_per_px: resolution; None where unknown, then no scale bar is drawn.
    """

    roi: str
    metadata: dict
    image: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray
    um_per_px: float | None


def encode_item(item: GalleryItem, matrix: np.ndarray, classes: tuple[str, ...]) -> dict:
    """What the page needs of a region.

    Label maps are ids compressed by zlib, not pictures: a browser that blurs what a page reads back from a canvas (to
    hinder fingerprinting) or manages colours cannot change them.

    Args:
        item: the region.
        matrix: (C, C) int64, its confusion matrix at full size, from which its scores are; or (C, C + 1), see
            :func:`.report.write_report`.
        classes: names.

    Raises:
        IgniteError: image and label maps differ in size.
    """
    if not item.image.shape[:2] == item.truth.shape == item.prediction.shape:
        raise IgniteError(
            f'{item.roi} has an image of {item.image.shape[:2]}, a ground truth of {item.truth.shape} and a prediction of '
            f'{item.prediction.shape} px; one size was expected: predict it again.'
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
        image=_base64(_jpeg(item.image, size)),
        truth=_base64(_ids(item.truth, size)),
        prediction=_base64(_ids(item.prediction, size)),
        mIoU=result['mIoU'],
        aAcc=result['aAcc'],
        pixels=int(matrix.sum()),
        classes=_class_rows(matrix, classes, result),
        mistaken=_mistaken(matrix, classes),
    )


def _shown(metadata: dict) -> dict:
    """What is written beside a region: the patient first, nothing empty, nothing that stands there anyway."""
    shown = {k: metadata.get(k) for k in ('patient', *metadata) if k not in ('roi', 'roi_id', 'um_per_px')}
    return {k: v for k, v in shown.items() if v not in (None, '')}


def _jpeg(image: np.ndarray, size: tuple[int, int]) -> bytes:
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return cv2.imencode('.jpg', small[..., ::-1], _JPEG)[1].tobytes()


def _ids(labels: np.ndarray, size: tuple[int, int]) -> bytes:
    small = cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST_EXACT)
    return zlib.compress(np.ascontiguousarray(small).tobytes(), 7)  # 9 takes eight times as long


def _base64(content: bytes) -> str:
    return b64encode(content).decode()


def _scale_bar(um_per_px: float | None, width: int) -> dict | None:
    """Length of a bar (um) that takes up to a third of the width, and its share of the width in percent."""
    if not um_per_px:
        return None
    length = scale_bar_length(um_per_px, width)
    return dict(um=length, percent=100 * length / (um_per_px * width))


def _class_rows(matrix: np.ndarray, classes: tuple[str, ...], result: dict) -> list[dict]:
    """Scores and pixels of the classes in truth or prediction."""
    predicted = matrix.sum(0)
    rows = [dict(id=i, predicted=int(predicted[i]), **result['classes'][name]) for i, name in enumerate(classes)]
    return [row for row in rows if row['pixels'] or row['predicted']]


def _mistaken(matrix: np.ndarray, classes: tuple[str, ...]) -> dict | None:
    """The commonest mistake: ids of the true and the predicted class (C: none), its share of the pixels in percent."""
    wrong = matrix.copy()
    np.fill_diagonal(wrong[:, : len(classes)], 0)
    if not wrong.any():
        return None
    truth, predicted = divmod(int(wrong.argmax()), wrong.shape[1])
    return dict(truth=truth, prediction=predicted, share=100 * float(wrong.max()) / float(matrix.sum()))
