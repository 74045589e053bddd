"""The IGNITE data sets for mmseg."""

import inspect
from collections.abc import Sequence

import numpy as np
from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS

from ..errors import IgniteError, require
from ..labels import CLASSES, IGNORE, PALETTE, relabel_table
from .crop_stream import CropStream, seeded
from .deferred import deferred_transforms
from .prepared import CONTEXT, by_name, check_context, image_path, label_path, metadata, read_index, select
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
    prepared arrays here, :class:`.transforms.LoadIGNITERegion` reads both; any transform of mmseg may follow. Each sample
    also has ``roi`` (its name), ``patient``, ``um_per_px`` and ``metadata`` (organ, scanner, ... from the release).

    Args:
        data_root: prepared folder, with ``index.json``.
        split: 'train', 'val' or 'test'.
        protocol: 'patient-8-1-1', 'roi-8-1-1' (leaks patients, and warns), 'official' (the release's own test ROIs) or
            'fold0' ... 'fold4'; see docs/data.md.
        use_context: include the tissue around the ROI in the image; labels around the ROI are 255, and ``roi_box`` (top,
            left, bottom, right; px; the last two exclusive) is its position.
        kwargs: arguments of :class:`mmseg.datasets.BaseSegDataset`, e.g. ``pipeline``, ``metainfo`` (fewer classes),
            ``indices``, ``test_mode``.

    Raises:
        IgniteError: no prepared data set at ``data_root``, an unknown protocol or split, a leaking split, no context with
            ``use_context``, or an argument (of a loader too) that does not apply to prepared arrays.

    Example:
        >>> dataset = IGNITEDataset('data/ignite', split='val', pipeline=[dict(type='LoadIGNITERegion')])
        >>> image, labels = dataset[0]['img'], dataset[0]['gt_seg_map']  # (H, W, 3) and (H, W)
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
        for key, value in _FIXED.items():
            found, why = kwargs.get(key, value), 'prepared labels are 0..15, and 255 where unannotated'
            require(found == value, f'{key} of the data set', found, f'{value!r} ({why})')
        kwargs['pipeline'] = read_arrays(kwargs.get('pipeline') or [])
        super().__init__(data_root=data_root, **{**kwargs, **_FIXED})

    @property
    def entries(self) -> list[dict]:
        """The index entries of the ROIs."""
        entries = by_name(read_index(self.data_root))
        return [entries[self.get_data_info(i)['roi']] for i in range(len(self))]

    @property
    def class_pixels(self) -> np.ndarray:
        """Annotated pixels of each class in the ROIs, (C,) int64 in the order of ``metainfo['classes']``."""
        pixels = np.sum([entry['pixels'] for entry in self.entries], 0, dtype=np.int64)
        if not self.label_map:
            return pixels
        new_ids = relabel_table(self.label_map)[: len(pixels)]
        return np.bincount(new_ids, pixels, IGNORE)[: len(self.metainfo['classes'])].astype(np.int64)

    def get_data_info(self, idx: int) -> dict:
        """Return the information on ROI number ``idx``; raise IgniteError if a CropStreamSampler asks for a pair."""
        if isinstance(idx, tuple):
            remedy = 'set the sampler to dict(type="InfiniteSampler"), or use IGNITECropDataset'
            raise IgniteError(f'IGNITEDataset was asked for sample {idx} by a CropStreamSampler: {remedy}.')
        return super().get_data_info(idx)

    def load_data_list(self) -> list[dict]:
        """Return one dictionary per ROI, from the index."""
        rois = select(read_index(self.data_root), self.protocol, self.split, self.data_root)
        if self.use_context:
            check_context(rois, self.data_root)
        return [self._sample(roi, metadata=metadata(roi), seg_fields=[], label_map=self.label_map) for roi in rois]

    def _sample(self, entry: dict, **more: object) -> dict:
        """Return what the samples of an ROI have in common, and ``more``."""
        name = entry['name']
        sample = dict(
            img_path=str(image_path(self.data_root, name + CONTEXT * self.use_context)),
            seg_map_path=str(label_path(self.data_root, name)),
            roi=name,
            patient=entry['patient'],
            um_per_px=entry['um_per_px'],
            reduce_zero_label=False,
        )
        if self.use_context:
            top, left = entry['context']['origin']
            sample['roi_box'] = top, left, top + entry['height'], left + entry['width']
        return {**sample, **more}


LOADERS = ('LoadImageFromFile', 'LoadAnnotations', 'LoadIGNITERegion')
_CROP_SETTINGS = [key for key in inspect.signature(CropStream).parameters if key not in ('root', 'rois', 'label_map')]


@DATASETS.register_module()
class IGNITECropDataset(IGNITEDataset):
    """An endless stream of training crops of a prepared IGNITE data set.

    Use with :class:`.crop_stream.CropStreamSampler`, which requests crop n of a seed. Image and labels of a sample are read
    before the pipeline, which holds augmentations only, mmseg's or ours. They get the same random numbers for the same
    (seed, n) in any worker or process.

    A sample's keys: ``img`` (np.uint8, (H, W, 3), BGR), ``gt_seg_map`` (np.uint8, (H, W)), ``seg_fields``, ``img_shape``,
    ``ori_shape``, ``roi``, ``patient``, ``um_per_px`` (of the crop), ``img_path``, ``seg_map_path``, ``crop`` (its
    :class:`CropPosition <mmseg_ignite.datasets.crop_stream.CropPosition>`), ``sample_idx`` (n). A packed sample always has
    ``crop`` and ``crop_key``, by which the data set returns this sample again.

    Args:
        data_root, split, kwargs: see :class:`IGNITEDataset`.
        defer_colours: leave HEDJitter, RandStainNA and RandomScannerEffects, which must be the last ones before
            PackTissueInputs, to :class:`mmseg_ignite.models.TissueDataPreProcessor`: workers only draw their random numbers,
            the same ones, and the device of the model changes the colours. ``img`` is then the crop before these changes.
        crops: arguments of :class:`mmseg_ignite.datasets.crop_stream.CropStream`, e.g. ``crop_size``, which override
            :data:`DEFAULT_CROPS`.

    Example:
        >>> dataset = IGNITECropDataset('data/ignite', crops=dict(crop_size=(256, 256)))
        >>> dataset[(0, 7)]['img'].shape  # crop 7 of seed 0
        (256, 256, 3)
    """

    def __init__(
        self,
        data_root: str = DATA_ROOT,
        split: str = 'train',
        crops: dict | None = None,
        defer_colours: bool = False,
        **kwargs,
    ) -> None:
        require(isinstance(defer_colours, bool), 'defer_colours of the data set', defer_colours, 'True or False')
        self._crops = {**DEFAULT_CROPS, **(crops or {})}
        if loaders := [name for name in map(transform_name, kwargs.get('pipeline', ())) if name in LOADERS]:
            raise IgniteError(
                f'the pipeline of IGNITECropDataset has {loaders[0]}, but crops are read before: remove it.'
            )
        if kwargs.get('use_context'):
            raise IgniteError('use_context of IGNITECropDataset is set in its crops: use crops=dict(use_context=True).')
        super().__init__(data_root, split, **kwargs)
        if defer_colours:
            self.pipeline.transforms = deferred_transforms(self.pipeline.transforms)

    def full_init(self) -> None:
        """Read the index and the points."""
        super().full_init()
        if hasattr(self, 'stream'):
            return
        if unknown := sorted(self._crops.keys() - set(_CROP_SETTINGS)):
            known = ', '.join(_CROP_SETTINGS)
            raise IgniteError(f'crops of the data set has the unknown setting {unknown[0]}: choose from {known}.')
        self.stream = CropStream(self.data_root, self.entries, label_map=self.label_map, **self._crops)

    def get_subset_(self, indices: Sequence[int] | int) -> None:
        """Raise IgniteError: the stream samples all ROIs; pass ``indices`` to the constructor instead."""
        raise IgniteError('a subset of IGNITECropDataset cannot be taken afterwards: pass indices to its constructor.')

    def __getitem__(self, key: tuple) -> dict:
        """Return crop ``n`` of the stream of ``seed`` after the pipeline; the key is (seed, n) or (seed, n, crop size)."""
        if not isinstance(key, tuple):
            remedy = 'set the sampler of the data loader to dict(type="CropStreamSampler")'
            raise IgniteError(f'IGNITECropDataset was asked for sample {key}, but needs (seed, n): {remedy}.')
        self.full_init()
        seed, n, *size = key
        with seeded(seed, n):
            crop = self.crop(seed, n, *size)
            position, sample = crop['crop'], self.pipeline(crop)
        packed = sample.get('data_samples') if isinstance(sample, dict) else None
        if packed is not None:  # whatever meta_keys PackSegInputs has
            packed.set_metainfo(dict(crop_key=key, crop=position))
        return sample

    def crop(self, seed: int, n: int, crop_size: tuple[int, int] | None = None) -> dict:
        """Return crop ``n`` of the stream of ``seed``, before the pipeline."""
        crop = self.stream.read(seed, n, crop_size=crop_size)
        entry, position, shape = crop.pop('entry'), crop.pop('position'), crop['gt_seg_map'].shape
        crop.update(seg_fields=['gt_seg_map'], img_shape=shape, ori_shape=shape, crop=position, sample_idx=n)
        um_per_px = None if entry['um_per_px'] is None else entry['um_per_px'] * position.zoom
        return self._sample(entry, **crop, label_map=None, um_per_px=um_per_px)
