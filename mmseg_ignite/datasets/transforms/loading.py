"""Reading from the prepared arrays."""

import inspect
from pathlib import Path

import cv2
import numpy as np
from mmcv.transforms import LoadImageFromFile
from mmseg.registry import TRANSFORMS

from ...errors import IgniteError
from ...labels import IGNORE
from ..prepared import open_array


@TRANSFORMS.register_module()
class LoadIGNITERegion(LoadImageFromFile):
    """Read a whole ROI with its labels from the prepared arrays, or an ordinary image file as mmseg does.

    For training crops see :class:`IGNITECropDataset`, which reads no more than a crop.

    Required Keys:

    - img_path: an array (.npy) of a prepared data set, or an image file; not needed where ``img`` holds the image already
    - seg_map_path (optional): an array of a prepared data set
    - label_map (dict, optional)
    - roi_box (top, left, bottom, right; optional): where the labels lie in a larger image; around them they are 255

    Added Keys:

    - img (np.uint8, (H, W, 3), BGR as everywhere in mmseg), img_shape, ori_shape
    - gt_seg_map (np.uint8, (H, W), 0..15 and 255), seg_fields: only with seg_map_path

    Args:
        image (bool): Read the image. Defaults to True.
        labels (bool): Read the labels, which are as large as ``ori_shape``. Defaults to True.
        kwargs: Those of mmcv's LoadImageFromFile, for image files.
    """

    def __init__(self, image: bool = True, labels: bool = True, **kwargs) -> None:
        super().__init__(**kwargs)
        self.image, self.labels = image, labels

    def transform(self, results: dict) -> dict | None:
        """Read what is asked for."""
        if self.image:
            results = self._read_image(results)
        if self.labels and results is not None and results.get('seg_map_path') is not None:
            results['gt_seg_map'] = _read_labels(results)
            results.setdefault('seg_fields', []).append('gt_seg_map')
        return results

    def _read_image(self, results: dict) -> dict | None:
        path = results.get('img_path')
        if path is not None and Path(path).suffix != '.npy':
            return super().transform(results)
        if path is not None:
            # One pass copies the rows out of the memory map and turns RGB into mmseg's BGR.
            results['img'] = cv2.cvtColor(np.asarray(open_array(path)), cv2.COLOR_RGB2BGR)
        results['img_shape'] = results['ori_shape'] = results['img'].shape[:2]
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(image={self.image}, labels={self.labels})'


def _read_labels(results: dict) -> np.ndarray:
    labels = np.array(open_array(results['seg_map_path']))
    if results.get('roi_box') is not None:
        top, left, bottom, right = results['roi_box']
        around = np.full(results['ori_shape'], IGNORE, np.uint8)
        around[top:bottom, left:right] = labels
        labels = around
    if results.get('label_map') is not None:
        table = np.full(256, IGNORE, np.uint8)
        table[list(results['label_map'])] = list(results['label_map'].values())
        labels = table[labels]
    return labels


_STOCK = dict(LoadImageFromFile=dict(labels=False), LoadAnnotations=dict(image=False))
"""mmseg's loaders, and what :class:`LoadIGNITERegion` reads in their place."""
_OF_FILES = ('imdecode_backend', 'backend_args', 'file_client_args', '_scope_')
"""Arguments of mmseg's loaders that say how a file is read and decoded; arrays need neither."""


def transform_name(transform: object) -> str:
    """The class name of a transform, given as the settings of a config (a name, perhaps with scope, or a class) or built."""
    kind = transform.get('type') if isinstance(transform, dict) else type(transform)
    return kind.__name__ if inspect.isclass(kind) else str(kind).split('.')[-1]


def read_arrays(pipeline: list[object]) -> list[object]:
    """A pipeline in which mmseg's LoadImageFromFile and LoadAnnotations read the prepared arrays.

    So one pipeline serves both IGNITEDataset and mmseg's inference functions, which look for these two names.

    Args:
        pipeline: transforms, as settings or built.

    Returns:
        The same with :class:`LoadIGNITERegion` in their places.

    Raises:
        IgniteError: one of them has an argument that would change what is read.
    """
    return [_reading_arrays(t) if transform_name(t) in _STOCK else t for t in pipeline]


def _reading_arrays(transform: object) -> dict:
    name = transform_name(transform)
    arguments = dict(transform) if isinstance(transform, dict) else {}
    for key, value in arguments.items():
        if key not in ('type', *_OF_FILES) and value not in (None, False, 'color'):
            raise IgniteError(
                f'{name} of IGNITEDataset has {key}={value!r}; it reads 8-bit images and train ids from prepared arrays and '
                'takes no such argument: leave it out.'
            )
    return dict(type=LoadIGNITERegion, **_STOCK[name])
