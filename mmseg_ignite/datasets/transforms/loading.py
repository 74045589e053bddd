"""Read images and labels from the prepared arrays."""

import inspect
from pathlib import Path

import cv2
import numpy as np
from mmcv.transforms import LoadImageFromFile
from mmseg.registry import TRANSFORMS

from ...errors import IgniteError
from ...images.reading import check_picture
from ...labels import IGNORE, relabel_table
from ..prepared import open_array, read_labels


@TRANSFORMS.register_module()
class LoadIGNITERegion(LoadImageFromFile):
    """Read a whole ROI with its labels from the prepared arrays, or an ordinary image file like mmseg.

    For training crops use :class:`mmseg_ignite.datasets.IGNITECropDataset`, which reads only the crop.

    Required keys: ``img_path``, an array (.npy) of a prepared data set or an image file, or ``img``, the image. Optional
    keys: ``seg_map_path``, an array of a prepared data set; ``label_map``, {train id: new id}; ``roi_box``, (top, left,
    bottom, right) of the labels in a larger image, around which they are 255. Added keys: ``img`` (np.uint8, (H, W, 3), BGR
    as everywhere in mmseg), ``img_shape``, ``ori_shape``; with ``seg_map_path`` also ``gt_seg_map`` (np.uint8, (H, W), 0..15
    and 255) and ``seg_fields``.

    Args:
        image, labels: read the image; read the labels, of the size ``ori_shape``.
        kwargs: arguments of mmcv's LoadImageFromFile, for image files.
    """

    def __init__(self, image: bool = True, labels: bool = True, **kwargs) -> None:
        super().__init__(**kwargs)
        self.image, self.labels = image, labels

    def transform(self, results: dict) -> dict | None:
        """Read image, labels or both."""
        path = results.get('img_path')
        if self.image and path is not None and Path(path).suffix != '.npy':
            check_picture(path)
            results = super().transform(results)
        elif self.image:
            if path is not None:
                # One pass copies the rows out of the memory map and converts RGB to mmseg's BGR.
                results['img'] = cv2.cvtColor(np.asarray(open_array(path)), cv2.COLOR_RGB2BGR)
            results['img_shape'] = results['ori_shape'] = results['img'].shape[:2]
        if self.labels and results is not None and results.get('seg_map_path') is not None:
            results['gt_seg_map'] = _read_labels(results)
            results.setdefault('seg_fields', []).append('gt_seg_map')
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(image={self.image}, labels={self.labels})'


def _read_labels(results: dict) -> np.ndarray:
    labels = read_labels(results['seg_map_path'])
    if results.get('roi_box') is not None:
        top, left, bottom, right = results['roi_box']
        inner, labels = labels, np.full(results['ori_shape'], IGNORE, np.uint8)
        labels[top:bottom, left:right] = inner
    label_map = results.get('label_map')
    return labels if label_map is None else relabel_table(label_map)[labels]


_STOCK = dict(LoadImageFromFile=dict(labels=False), LoadAnnotations=dict(image=False))
"""mmseg's loaders, and the arguments of the :class:`LoadIGNITERegion` that replaces them."""
_OF_FILES = ('imdecode_backend', 'backend_args', 'file_client_args', '_scope_')
"""Arguments of mmseg's loaders on how to read and decode a file; arrays need neither."""


def transform_name(transform: object) -> str:
    """Return the class name of a transform: a built one, or its config with a class or a name (with or without scope)."""
    kind = transform.get('type') if isinstance(transform, dict) else type(transform)
    return kind.__name__ if inspect.isclass(kind) else str(kind).split('.')[-1]


def read_arrays(pipeline: list[object]) -> list[object]:
    """Replace mmseg's LoadImageFromFile and LoadAnnotations in a pipeline (configs or built) by :class:`LoadIGNITERegion`.

    So one pipeline serves both IGNITEDataset and mmseg's inference functions, which look for these two names. Raise
    IgniteError if one of the two has an argument that would change what is read.
    """
    replaced = []
    for transform in pipeline:
        stock = _STOCK.get(name := transform_name(transform))
        for key, value in transform.items() if stock and isinstance(transform, dict) else ():
            if key not in ('type', *_OF_FILES) and value not in (None, False, 'color'):
                raise IgniteError(
                    f'{name} of IGNITEDataset has {key}={value!r}, but 8-bit images and train ids are read from prepared '
                    'arrays: remove this argument.'
                )
        replaced.append(dict(type=LoadIGNITERegion, **stock) if stock else transform)
    return replaced
