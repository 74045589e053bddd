"""Predicting images by the same model and inference as testing."""

import inspect
import math
import os
from collections.abc import Callable
from pathlib import Path

import cv2
import mmcv.transforms
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS, TRANSFORMS

from ..datasets.transforms import LoadIGNITERegion
from ..engine.devices import find_device
from ..engine.ensembles import is_ensemble, load_members, read_ensemble, set_members
from ..engine.optim_wrappers import half_dtype
from ..engine.work_dirs import find_checkpoint
from ..errors import IgniteError
from ..images.reading import MAX_PIXELS, MAX_UM_PER_PX, MIN_UM_PER_PX, ReadImage, read_image
from ..inference.tiling import grid
from ..labels import CLASSES, release_ids
from .configuration import building, load_config, resolved

MIN_SIDE = 32
"""px; MiT's coarsest stage has one token for 32 x 32 px, a smaller image has none."""
TOLERANCE = 1.05
"""Resolutions that differ by less than this factor count as the same."""
UM_PER_PX = 0.5
"""Resolution of the release, where neither checkpoint nor config says at which one the model was trained."""
_BACKGROUND = CLASSES.index('Background')
_LOADERS = (mmcv.transforms.LoadImageFromFile, mmcv.transforms.LoadAnnotations, LoadIGNITERegion)


class Predictor:
    """A trained model that labels H&E images.

    Args:
        config: path of a config, or a loaded one, which is not changed; its test pipeline and ``model.test_cfg`` are used.
        checkpoint: path of its checkpoint, or of an ensemble of several (see :mod:`mmseg_ignite.engine.ensembles`).
        device: e.g. 'cuda:0' or 'cpu'. Defaults to None: the best that the machine has.
        amp: automatic mixed precision. Defaults to False.

    Attributes:
        um_per_px: resolution at which the model was trained, um/px.
        um_per_px_source: where that is known from: 'checkpoint', 'config' or 'default'.

    Raises:
        IgniteError: checkpoint or config missing or not fitting, no such device.

    Example:
        >>> labels = Predictor(config, checkpoint).predict('roi.png')  # (H, W) uint8, train ids 0..15
    """

    def __init__(
        self,
        config: str | Path | Config,
        checkpoint: str | Path,
        device: str | None = None,
        amp: bool = False,
    ) -> None:
        checkpoint_files(checkpoint)
        device = find_device(device)
        cfg = resolved(config) if isinstance(config, Config) else load_config(config)
        cfg.model.backbone.init_cfg = None
        init_default_scope(cfg.get('default_scope', 'mmseg'))
        self.pipeline = Compose(_without_loading(_test_pipeline(cfg)))
        model, members = set_members(cfg.model, checkpoint)
        with building(cfg):
            self.model = MODELS.build(model)
        metas = load_members(self.model, members)
        self.model = self.model.to(device).eval()
        self.amp = amp
        self.um_per_px, self.um_per_px_source = _training_resolution(metas[0], cfg)
        self._train_ids = _train_ids(cfg)

    @torch.inference_mode()
    def predict(
        self,
        image: np.ndarray | ReadImage | str | Path,
        um_per_px: float | None = None,
        advance: Callable[[float], object] | None = None,
    ) -> np.ndarray:
        """Label an image.

        An image of another resolution than the model was trained at (by more than 5 %) is resampled to that, and its labels
        are resampled back. Fully transparent pixels of a file are Background, whatever the model says.

        Args:
            image: (H, W, 3) uint8 RGB, or an 8-bit RGB image file: its path, or what
                :func:`mmseg_ignite.images.read_image` gives.
            um_per_px: resolution of the image, 0.05 to 5 um/px. Defaults to None: what the file states, else that of the
                training.
            advance: called with the number of windows that were predicted, after each batch; see :meth:`windows`.

        Returns:
            (H, W) uint8, train ids 0..15 (see :mod:`mmseg_ignite.labels`).

        Raises:
            IgniteError: a file that cannot be read, an array or object of another form, a size that is too small or too
                large at the resolution of the training, or a resolution that is implausible or not a number.
        """
        blank = None
        if not isinstance(image, np.ndarray):
            if not isinstance(image, (ReadImage, str, os.PathLike)):
                kind = type(image).__name__
                raise IgniteError(f'the image is a {kind}; a NumPy array or a path was expected: convert it.')
            read = image if isinstance(image, ReadImage) else read_image(image)
            image, blank = read.pixels, read.blank
            um_per_px = read.um_per_px if um_per_px is None else um_per_px
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise IgniteError(
                f'the image has {image.dtype} values of shape {image.shape}; (H, W, 3) uint8 RGB was '
                'expected: convert it.'
            )
        shape = image.shape[:2]
        size = self.working_size(shape, um_per_px)
        if size == shape:
            labels = self._label(image, advance)
        else:
            shrinks = size[0] * size[1] < shape[0] * shape[1]
            small = cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
            labels = self._label(small, advance)
            labels = cv2.resize(labels, shape[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
        if self._train_ids is not None:
            labels = cv2.LUT(labels, self._train_ids)
        if blank is not None:
            labels[blank] = _BACKGROUND
        return labels

    def working_size(self, shape: tuple[int, int], um_per_px: float | None = None) -> tuple[int, int]:
        """The size (H, W) px at which an image is predicted: its own, or that at the resolution of the training.

        Args:
            shape: (H, W) px of the image.
            um_per_px: its resolution; None if unknown.

        Raises:
            IgniteError: the size is too small or too large, or the resolution implausible.
        """
        if um_per_px is not None:
            check_resolution(um_per_px)
        zoom = um_per_px / self.um_per_px if um_per_px else 1.0
        resampled = not 1 / TOLERANCE <= zoom <= TOLERANCE
        size = (max(1, round(shape[0] * zoom)), max(1, round(shape[1] * zoom))) if resampled else tuple(shape)
        found = f'{shape[0]} x {shape[1]} px'
        if resampled:
            found += f' of {um_per_px:.3g} um/px, which is {size[0]} x {size[1]} px at {self.um_per_px:.3g} um/px'
        if min(size) < MIN_SIDE:
            raise IgniteError(f'the image is {found}; at least {MIN_SIDE} px a side are needed.')
        if resampled and size[0] * size[1] > max(MAX_PIXELS, shape[0] * shape[1]):
            raise IgniteError(f'the image is {found}; at most {MAX_PIXELS:,} pixels are predicted: cut it into parts.')
        return size

    def windows(self, size: tuple[int, int]) -> int:
        """The number of windows that are predicted for an image of (H, W) px at the resolution of the training."""
        test_cfg = self.model.test_cfg
        if test_cfg.get('mode') != 'slide':
            return 1
        return math.prod(
            len(grid(side, crop, step)) for side, crop, step in zip(size, test_cfg['crop_size'], test_cfg['stride'])
        )

    def _label(self, image: np.ndarray, advance: Callable[[float], object] | None) -> np.ndarray:
        """Labels (H, W) uint8 of an image (H, W, 3) uint8 RGB as the network gives them."""
        shape = image.shape[:2]
        data = self.pipeline(dict(img=cv2.cvtColor(image, cv2.COLOR_RGB2BGR), img_shape=shape, ori_shape=shape))
        data = dict(inputs=[data['inputs']], data_samples=[data['data_samples']])
        device = next(self.model.parameters()).device
        passes = self.model.test_cfg.get('symmetries', 1)
        hook = None
        if advance is not None:
            hook = self.model.backbone.register_forward_hook(lambda _, inputs, __: advance(len(inputs[0]) / passes))
        try:
            with torch.autocast(device.type, half_dtype(device), enabled=self.amp):
                sample = self.model.test_step(data)[0]
        finally:
            if hook is not None:
                hook.remove()
        return sample.pred_sem_seg.data.squeeze(0).to(torch.uint8).cpu().numpy()


def check_resolution(um_per_px: float) -> None:
    """Raise IgniteError unless a resolution is a number, and plausible for a microscope."""
    if isinstance(um_per_px, bool) or not isinstance(um_per_px, (int, float, np.integer, np.floating)):
        raise IgniteError(f'the resolution is {um_per_px!r}; a number of um/px was expected, e.g. 0.25: correct it.')
    if not MIN_UM_PER_PX <= um_per_px <= MAX_UM_PER_PX:
        raise IgniteError(
            f'the resolution is {um_per_px} um/px; {MIN_UM_PER_PX} to {MAX_UM_PER_PX} was expected, e.g. 0.25 for a 40x '
            'objective, 0.5 for 20x: correct it.'
        )


def checkpoint_files(checkpoint: str | Path) -> list[Path]:
    """The file of a checkpoint, the latest one of a work dir, or those of the members of an ensemble.

    Raises:
        IgniteError: a file is missing, or the ensemble is none.
    """
    if is_ensemble(checkpoint):
        return read_ensemble(checkpoint)
    return [find_checkpoint(checkpoint)]


def _test_pipeline(cfg: Config) -> list[dict]:
    """The transforms of a test: ``test_pipeline``, else those of the test data set."""
    pipeline = cfg.get('test_pipeline') or ((cfg.get('test_dataloader') or {}).get('dataset') or {}).get('pipeline')
    if not pipeline:
        raise IgniteError(
            f'{cfg.filename or "the config"} has no test_pipeline and no test_dataloader.dataset.pipeline; the transforms of '
            'an image were expected: add test_pipeline = [dict(type="LoadIGNITERegion"), dict(type="PackSegInputs")].'
        )
    return pipeline


def _without_loading(pipeline: list[dict]) -> list[dict]:
    """A pipeline without the transforms that read images or annotations: the image is in memory, annotations are none."""
    kept = []
    for transform in pipeline:
        name = transform['type']
        kind = name if inspect.isclass(name) else TRANSFORMS.get(name)
        # mmseg.LoadImageFromFile: mmseg's registry does not pass a name with its scope on to mmcv's.
        if _loads(kind) or (kind is None and _loads(TRANSFORMS.get(name.split('.')[-1]))):
            continue
        if kind is None:
            raise IgniteError(
                f'the test pipeline has the transform {name!r}, which is not registered: correct its name, or import the '
                'module that registers it by custom_imports.'
            )
        kept.append(transform)
    return kept


def _loads(kind: object) -> bool:
    return inspect.isclass(kind) and issubclass(kind, _LOADERS)


def _training_resolution(meta: dict, cfg: Config) -> tuple[float, str]:
    """um/px at which a model was trained, and where that is known from."""
    stored = (meta.get('mmseg_ignite') or {}).get('um_per_px')
    if stored:
        return float(stored), 'checkpoint'
    dataset = (cfg.get('train_dataloader') or {}).get('dataset') or {}
    crops = (dataset.get('crops') or {}).get('um_per_px')
    if isinstance(crops, (tuple, list)) and len(crops) == 2:
        return math.sqrt(crops[0] * crops[1]), 'config'
    return UM_PER_PX, 'default'


def _train_ids(cfg: Config) -> np.ndarray | None:
    """Table (256,) uint8 from the ids of a model to train ids; None if they are the same."""
    dataset = (cfg.get('test_dataloader') or {}).get('dataset') or {}
    classes = tuple((dataset.get('metainfo') or {}).get('classes') or CLASSES)
    if classes == CLASSES:
        return None
    table = release_ids(classes)
    if table is None:
        raise IgniteError(
            f'the classes of the config, {", ".join(classes)}, are not those of IGNITE, as whose ids label maps are written: '
            'use the names of the release.'
        )
    return table
