"""Encode the regions of the report: tissue as JPEG, label maps as compressed ids, scores from the full-size matrices."""

import zlib
from base64 import b64encode
from typing import NamedTuple

import cv2
import numpy as np

from ..errors import IgniteError
from ..evaluation.confusion import scores
from ..evaluation.per_roi import commonest_error
from ..visualization.painter import resize, scale_bar_length

SIDE = 1000
"""Maximum side (px) of a region in the report."""
_ELSEWHERE = ('roi', 'roi_id', 'um_per_px')  # metadata that the page shows anyway
_JPEG = [cv2.IMWRITE_JPEG_QUALITY, 80, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
"""Chroma at full resolution, because nuclei differ from their surroundings in hue: 4:2:0 saves 23 % but costs 1.8 dB."""


class GalleryItem(NamedTuple):
    """A region to show.

    Example:
        >>> item = GalleryItem('roi1', {'patient': '7'}, image, truth, prediction, um_per_px=0.5)
    """

    roi: str  # name, as in the evaluation
    metadata: dict  # patient, organ, ... to show beside the region
    image: np.ndarray  # (H, W, 3) uint8 RGB
    truth: np.ndarray  # (H, W) uint8 train ids, 255 unannotated
    prediction: np.ndarray  # (H, W) uint8 train ids
    um_per_px: float | None  # None if unknown, which omits the scale bar


def encode_item(item: GalleryItem, matrix: np.ndarray, classes: tuple[str, ...]) -> dict:
    """Return the data of a region that the template and scripts need.

    Label maps are ids compressed by zlib, not pictures: colour management, or a browser that blurs canvas data to prevent
    fingerprinting, would change pictures.

    Args:
        matrix: confusion matrix at full size, (C, C) or (C, C + 1) int64 (see :func:`.page.write_report`).
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
    known = dict(patient=item.metadata.get('patient')) | item.metadata  # patient first
    bar = scale_bar_length(item.um_per_px, width) if item.um_per_px else None
    rows = [dict(id=i, **row) for i, row in enumerate(result['classes'].values())]
    return dict(
        roi=item.roi,
        metadata={k: v for k, v in known.items() if k not in _ELSEWHERE and v not in (None, '')},
        width=size[0],
        height=size[1],
        um_per_px=item.um_per_px,
        um=item.um_per_px / scale if item.um_per_px else None,
        bar=dict(um=bar, percent=100 * bar / (item.um_per_px * width)) if bar else None,
        image=b64encode(cv2.imencode('.jpg', resize(item.image, size)[..., ::-1], _JPEG)[1]).decode(),
        truth=_ids(item.truth, size),
        prediction=_ids(item.prediction, size),
        mIoU=result['mIoU'],
        aAcc=result['aAcc'],
        classes=[row for row in rows if row['pixels'] or row['predicted_pixels']],
        mistaken=commonest_error(matrix),
    )


def _ids(labels: np.ndarray, size: tuple[int, int]) -> str:
    return b64encode(zlib.compress(resize(labels, size).tobytes(), 7)).decode()  # level 9 takes eight times as long
