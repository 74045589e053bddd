"""IGNITE as a data set of mmseg."""

import inspect
from collections.abc import Sequence

import numpy as np
from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS

from ..errors import IgniteError
from ..labels import CLASSES, IGNORE, PALETTE
from .crop_stream import CropStream, seeded
from .prepared import CONTEXT, check_context, image_path, label_path, metadata, read_index, select
from .transforms.loading import read_arrays, transform_name

DATA_ROOT, PROTOCOL = 'data/ignite', 'patient-8-1-1'
"""Defaults of the data sets and the configs."""
DEFAULT_CROPS = dict(um_per_px=(0.4, 0.625), rotation='any')
"""Settings of the configs' crops that differ from the defaults of CropStream."""
_FIXED = dict(reduce_zero_label=False, ignore_index=IGNORE, img_suffix='.npy', seg_map_suffix='.npy')


@DATASETS.register_module()
class IGNITEDataset(BaseSegDataset):
    """ROIs of a prepared IGNITE data set (see ``tools/prepare_ignite.py``).

    Labels are train ids 0..15; 255 marks unannotated pixels. LoadImageFromFile and LoadAnnotations of a pipeline read the
    prepared arrays here, :class:`LoadIGNITERegion` reads both; every transform of mmseg may follow. Each sample also
    carries ``roi`` (the name), ``patient``, ``um_per_px`` and ``metadata`` (organ, scanner, ... of the release).

    Args:
        data_root (str): The prepared folder, the one with ``index.json``. Defaults to 'data/ignite'.
        split (str): 'train', 'val' or 'test'. Defaults to 'train'.
        protocol (str): Which division of the ROIs: 'patient-8-1-1', 'roi-8-1-1' (leaks patients, and warns), 'official' (the
            release's own test ROIs) or 'fold0' ... 'fold4'; see docs/data.md. Defaults to 'patient-8-1-1'.
        use_context (bool): Images reach into the tissue around the ROI; the labels are those of the ROI, 255 around it, and
            ``roi_box`` (top, left, bottom, right; px) says where it lies. Defaults to False.
        kwargs: Those of :class:`mmseg.datasets.BaseSegDataset`, e.g. ``pipeline``, ``metainfo`` (fewer classes),
            ``indices``, ``test_mode``.

    Raises:
        IgniteError: no prepared data set at ``data_root``, an unknown protocol or split, a leaking split, an ROI without
            context that is to be used, ``reduce_zero_label=True``, or a loader of the pipeline with an argument that arrays
            do not take.
    """

    METAINFO = dict(classes=CLASSES, palette=[list(colour) for colour in PALETTE])

    def __init__(
        self,
        data_root: str = DATA_ROOT,
        split: str = 'train',
        protocol: str = PROTOCOL,
        use_context: bool = False,
        **kwargs,
    ) -> None:
        self.split, self.protocol, self.use_context = split, protocol, use_context
        _check_fixed(kwargs)
        kwargs['pipeline'] = read_arrays(kwargs.get('pipeline') or [])
        super().__init__(data_root=data_root, **{**kwargs, **_FIXED})

    @property
    def class_pixels(self) -> np.ndarray:
        """Annotated pixels of each class in the ROIs, (C,) int64 in the order of ``metainfo['classes']``."""
        by_name = {r['name']: r for r in read_index(self.data_root)['rois']}
        pixels = np.sum([by_name[self.get_data_info(i)['roi']]['pixels'] for i in range(len(self))], 0, dtype=np.int64)
        if not self.label_map:
            return pixels
        mapped = np.zeros(len(self.metainfo['classes']), np.int64)
        for old, new in self.label_map.items():
            if new != IGNORE:
                mapped[new] += pixels[old]
        return mapped

    def get_data_info(self, idx: int) -> dict:
        """The ROI of that number.

        Raises:
            IgniteError: a :class:`CropStreamSampler` asks, whose keys are pairs.
        """
        if isinstance(idx, tuple):
            raise IgniteError(
                f"IGNITEDataset was asked for sample {idx} by a CropStreamSampler: set the data loader's sampler to "
                'dict(type="InfiniteSampler"), or take IGNITECropDataset.'
            )
        return super().get_data_info(idx)

    def load_data_list(self) -> list[dict]:
        """One dictionary an ROI, from the index."""
        rois = select(read_index(self.data_root), self.protocol, self.split, self.data_root)
        if self.use_context:
            check_context(rois, self.data_root)
        return [
            dict(
                img_path=str(image_path(self.data_root, r['name'] + CONTEXT * self.use_context)),
                seg_map_path=str(label_path(self.data_root, r['name'])),
                roi=r['name'],
                patient=r['patient'],
                um_per_px=r['um_per_px'],
                metadata=metadata(r),
                label_map=self.label_map,
                reduce_zero_label=False,
                seg_fields=[],
                **(dict(roi_box=_box(r)) if self.use_context else {}),
            )
            for r in rois
        ]


def _check_fixed(settings: dict) -> None:
    """Raise IgniteError if a setting of BaseSegDataset differs from the only value that fits the prepared data."""
    for key, value in _FIXED.items():
        if settings.get(key, value) != value:
            raise IgniteError(
                f'{key} of the data set is {settings[key]!r}; {value!r} was expected, since prepared labels are 0..15, '
                'and 255 where unannotated: leave it out.'
            )


def _box(entry: dict) -> tuple[int, int, int, int]:
    """Where an ROI lies in its image with context: (top, left, bottom, right), the last two exclusive."""
    top, left = entry['context']['origin']
    return top, left, top + entry['height'], left + entry['width']


_GIVEN = {'root', 'rois', 'label_map'}
LOADERS = ('LoadImageFromFile', 'LoadAnnotations', 'LoadIGNITERegion')


@DATASETS.register_module()
class IGNITECropDataset(IGNITEDataset):
    """The training crops of a prepared IGNITE data set, an endless stream.

    Goes with :class:`CropStreamSampler`, which asks for crop n of a seed. A sample reaches the pipeline with its image
    and labels read already, so the pipeline holds augmentations only; mmseg's own serve as well as ours, and draw the
    same numbers for the same (seed, n) wherever they run.

    Args:
        crops (dict): Arguments of :class:`mmseg_ignite.datasets.crop_stream.CropStream`, e.g. ``crop_size``, over
            :data:`DEFAULT_CROPS`. Defaults to None: no changes.
        kwargs: Those of :class:`IGNITEDataset`.

    A sample's keys: ``img`` (np.uint8, (H, W, 3), BGR), ``gt_seg_map`` (np.uint8, (H, W)), ``seg_fields``, ``img_shape``,
    ``ori_shape``, ``roi``, ``patient``, ``um_per_px`` (of the crop), ``img_path``, ``seg_map_path``, ``crop`` (its
    :class:`Place <mmseg_ignite.datasets.crop_stream.Place>`), ``sample_idx`` (n).
    """

    def __init__(self, data_root: str = DATA_ROOT, split: str = 'train', crops: dict | None = None, **kwargs) -> None:
        self._crops = {**DEFAULT_CROPS, **(crops or {})}
        loaders = [name for name in map(transform_name, kwargs.get('pipeline', ())) if name in LOADERS]
        if loaders:
            raise IgniteError(
                f'the pipeline of IGNITECropDataset holds {loaders[0]}, but its crops are read already: remove it.'
            )
        if kwargs.get('use_context'):
            raise IgniteError(
                'use_context of IGNITECropDataset is a setting of its crops: write crops=dict(use_context=True).'
            )
        super().__init__(data_root, split, **kwargs)

    def full_init(self) -> None:
        """Read the index and the points."""
        if self._fully_initialized:
            return
        super().full_init()
        by_name = {r['name']: r for r in read_index(self.data_root)['rois']}
        rois = [by_name[self.get_data_info(i)['roi']] for i in range(len(self))]
        unknown = self._crops.keys() - inspect.signature(CropStream).parameters.keys() | self._crops.keys() & _GIVEN
        if unknown:
            known = [k for k in inspect.signature(CropStream).parameters if k not in _GIVEN]
            raise IgniteError(
                f'crops of the data set has no setting {", ".join(sorted(unknown))}; it has {", ".join(known)}: mend it.'
            )
        self.stream = CropStream(self.data_root, rois, label_map=self.label_map, **self._crops)

    def get_subset_(self, indices: Sequence[int] | int) -> None:
        """Not supported: the stream draws from all ROIs; give ``indices`` to the constructor instead."""
        raise IgniteError('IGNITECropDataset cannot be cut afterwards: give indices to its constructor.')

    def __getitem__(self, key: tuple) -> dict:
        """Crop ``n`` of the stream of ``seed``, after the pipeline.

        Args:
            key: (seed, n), or (seed, n, (H, W)) for a crop of another size than ``crops`` says.

        Raises:
            IgniteError: the key is no pair (seed, n): the data loader has another sampler.
        """
        if not isinstance(key, tuple):
            raise IgniteError(
                f"IGNITECropDataset was asked for sample {key}; it needs (seed, n): set the data loader's sampler to "
                'dict(type="CropStreamSampler").'
            )
        self.full_init()
        seed, n, *size = key
        with seeded(seed, n):
            return self.pipeline(self.crop(seed, n, *size))

    def crop(self, seed: int, n: int, crop_size: tuple[int, int] | None = None) -> dict:
        """Crop ``n`` of the stream of ``seed`` as the pipeline gets it."""
        crop = self.stream.read(seed, n, crop_size=crop_size)
        entry, place = crop['entry'], crop['place']
        shape = crop['gt_seg_map'].shape
        return dict(
            img=crop['img'],
            gt_seg_map=crop['gt_seg_map'],
            seg_fields=['gt_seg_map'],
            img_shape=shape,
            ori_shape=shape,
            roi=entry['name'],
            patient=entry['patient'],
            um_per_px=entry['um_per_px'] * place.zoom,
            img_path=str(image_path(self.data_root, entry['name'])),
            seg_map_path=str(label_path(self.data_root, entry['name'])),
            crop=place,
            label_map=None,
            reduce_zero_label=False,
            sample_idx=n,
        )
