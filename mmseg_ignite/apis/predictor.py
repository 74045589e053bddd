"""Predicting images with the model and inference of a test."""

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
from ..engine.devices import find_device, to_device
from ..engine.ensembles import Ensemble
from ..engine.optim_wrappers import autocast, prediction_dtype
from ..errors import IgniteError
from ..images.reading import MAX_PIXELS, MAX_UM_PER_PX, MIN_UM_PER_PX, ReadImage, read_image
from ..inference.tiling import grid
from ..labels import CLASSES, release_ids
from ..models import TissueSegmentor
from .configuration import building, load_config, resolved

MIN_SIDE = 32
"""px; the coarsest stage of MiT has one token for 32 x 32 px."""
TOLERANCE = 1.05
"""Resolutions that differ by less than this factor count as equal."""
UM_PER_PX = 0.5
"""Resolution of the release, used where neither checkpoint nor config states the resolution of the training."""
_BACKGROUND = CLASSES.index('Background')
_LOADERS = (mmcv.transforms.LoadImageFromFile, mmcv.transforms.LoadAnnotations, LoadIGNITERegion)


class Predictor:
    """A trained model that labels H&E images.

    Args:
        config: path of a config, or a loaded config, which is not changed; its test pipeline and ``model.test_cfg`` are used.
        checkpoint: path of a checkpoint, a work dir or an ensemble (see :mod:`mmseg_ignite.engine.ensembles`).
        device: e.g. 'cuda:0' or 'cpu'. Defaults to None: the best device of the machine.
        amp: automatic mixed precision. Defaults to False.

    Attributes:
        ensemble: the :class:`Ensemble <mmseg_ignite.engine.ensembles.Ensemble>` of checkpoints.
        um_per_px: resolution at which the model was trained, um/px.
        um_per_px_source: what states it: 'checkpoint', 'config' or 'default'.

    Raises:
        IgniteError: checkpoint or config are missing or do not match, or there is no such device.

    Example:
        >>> labels = Predictor(config, checkpoint).predict('roi.png')  # (H, W) uint8, train ids 0..15
    """

    def __init__(
        self, config: str | Path | Config, checkpoint: str | Path, device: str | None = None, amp: bool = False
    ) -> None:
        self.ensemble = Ensemble.read(checkpoint)
        device = find_device(device)
        cfg = resolved(config) if isinstance(config, Config) else load_config(config)
        cfg.model.backbone.init_cfg = None
        init_default_scope(cfg.get('default_scope', 'mmseg'))
        self.pipeline = Compose(_without_loading(_test_pipeline(cfg)))
        with building(cfg):
            self.ensemble.check_members(cfg.model)
            self.model = MODELS.build(self.ensemble.model_config(cfg.model))
        metas = self.ensemble.load_into(self.model)
        self.model = to_device(self.model, device).eval()
        self.dtype = prediction_dtype(cfg, device, amp)
        self.um_per_px, self.um_per_px_source = _training_resolution(metas[0], cfg)
        self._train_ids = _train_ids(cfg)

    @torch.inference_mode()
    def predict(
        self,
        image: np.ndarray | ReadImage | str | Path,
        um_per_px: float | None = None,
        on_progress: Callable[[int], object] | None = None,
    ) -> np.ndarray:
        """Label an image.

        An image whose resolution differs from the training's by more than 5 % is resampled, and its labels are resampled
        back. Fully transparent pixels of a file become Background.

        Args:
            image: (H, W, 3) uint8 RGB, or an 8-bit RGB image file: its path, or the result of
                :func:`mmseg_ignite.images.reading.read_image`.
            um_per_px: resolution of the image, 0.05 to 5 um/px. Defaults to None: what the file states, else the resolution
                of the training.
            on_progress: called with the number of newly predicted windows after each batch, see :meth:`windows`.

        Returns:
            (H, W) uint8, train ids 0..15 (see :mod:`mmseg_ignite.labels`).

        Raises:
            IgniteError: the file cannot be read, the array or object has another form, the size at the resolution of the
                training is too small or too large, or the resolution is implausible.
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
                f'the image has {image.dtype} values of shape {image.shape}; (H, W, 3) uint8 RGB was expected: convert it.'
            )
        shape = image.shape[:2]
        size = self.working_size(shape, um_per_px)
        if size != shape:
            shrinks = size[0] * size[1] < shape[0] * shape[1]
            image = cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
        labels = self._label(image, on_progress or (lambda windows: None))
        if size != shape:
            labels = cv2.resize(labels, shape[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
        if self._train_ids is not None:
            labels = cv2.LUT(labels, self._train_ids)
        if blank is not None:
            labels[blank] = _BACKGROUND
        return labels

    def working_size(self, shape: tuple[int, int], um_per_px: float | None = None) -> tuple[int, int]:
        """Return the size (H, W) px at which an image is predicted: its own, or the size at the training's resolution.

        Args:
            shape: (H, W) px of the image.
            um_per_px: resolution of the image; None if unknown.

        Raises:
            IgniteError: the size is too small or too large, or the resolution is implausible.
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
            raise IgniteError(f'the image is {found}; at least {MIN_SIDE} px per side are required.')
        if resampled and size[0] * size[1] > max(MAX_PIXELS, shape[0] * shape[1]):
            raise IgniteError(f'the image is {found}; at most {MAX_PIXELS:,} pixels are predicted: cut it into parts.')
        return size

    def windows(self, size: tuple[int, int]) -> int:
        """Return the number of windows predicted for an image of (H, W) px at the resolution of the training."""
        test_cfg = self.model.test_cfg
        if test_cfg.get('mode') != 'slide':
            return 1
        return math.prod(
            len(grid(side, crop, step)) for side, crop, step in zip(size, test_cfg['crop_size'], test_cfg['stride'])
        )

    def _label(self, image: np.ndarray, on_progress: Callable[[int], object]) -> np.ndarray:
        """Return the network's labels (H, W) uint8 of an image (H, W, 3) uint8 RGB."""
        shape = image.shape[:2]
        data = self.pipeline(dict(img=cv2.cvtColor(image, cv2.COLOR_RGB2BGR), img_shape=shape, ori_shape=shape))
        inputs, sample = data['inputs'], data['data_samples']
        device = next(self.model.parameters()).device
        with autocast(device, self.dtype):
            if isinstance(self.model, TissueSegmentor) and self.model.labels_raw_images(inputs, sample):
                rgb = inputs.numpy()[::-1].transpose(1, 2, 0)
                return self.model.label_image(rgb, on_progress=on_progress)
            # Another segmentor, or a pipeline that resizes: the inference of mmseg, with the image whole on the device.
            sample = self.model.test_step(dict(inputs=[inputs], data_samples=[sample]))[0]
        on_progress(self.windows(shape))
        return sample.pred_sem_seg.data.squeeze(0).to(torch.uint8).cpu().numpy()


def check_resolution(um_per_px: float) -> None:
    """Raise IgniteError unless a resolution is a number that is plausible for a microscope."""
    if isinstance(um_per_px, bool) or not isinstance(um_per_px, (int, float, np.integer, np.floating)):
        raise IgniteError(f'the resolution is {um_per_px!r}; a number of um/px was expected, e.g. 0.25: correct it.')
    if not MIN_UM_PER_PX <= um_per_px <= MAX_UM_PER_PX:
        raise IgniteError(
            f'the resolution is {um_per_px} um/px; {MIN_UM_PER_PX} to {MAX_UM_PER_PX} was expected, e.g. 0.25 for a 40x '
            'objective, 0.5 for 20x: correct it.'
        )


def _test_pipeline(cfg: Config) -> list[dict]:
    """Return ``test_pipeline`` of a config, else the pipeline of its test data set."""
    pipeline = cfg.get('test_pipeline') or ((cfg.get('test_dataloader') or {}).get('dataset') or {}).get('pipeline')
    if not pipeline:
        raise IgniteError(
            f'{cfg.filename or "the config"} has neither test_pipeline nor test_dataloader.dataset.pipeline: add '
            'test_pipeline = [dict(type="LoadIGNITERegion"), dict(type="PackSegInputs")].'
        )
    return pipeline


def _without_loading(pipeline: list[dict]) -> list[dict]:
    """Remove the transforms that read images or annotations from a pipeline."""
    kept = []
    for transform in pipeline:
        name = transform['type']
        kind = name if inspect.isclass(name) else TRANSFORMS.get(name)
        # mmseg.LoadImageFromFile: mmseg's registry does not look up a name with its scope in mmcv's registry.
        if _loads(kind) or (kind is None and _loads(TRANSFORMS.get(name.split('.')[-1]))):
            continue
        if kind is None:
            raise IgniteError(
                f'the test pipeline has the transform {name!r}, which is not registered: correct its name, or import its '
                'module with custom_imports.'
            )
        kept.append(transform)
    return kept


def _loads(kind: object) -> bool:
    return inspect.isclass(kind) and issubclass(kind, _LOADERS)


def _training_resolution(meta: dict, cfg: Config) -> tuple[float, str]:
    """Return the um/px at which a model was trained, and what states it."""
    stored = (meta.get('mmseg_ignite') or {}).get('um_per_px')
    if stored:
        return float(stored), 'checkpoint'
    dataset = (cfg.get('train_dataloader') or {}).get('dataset') or {}
    crops = (dataset.get('crops') or {}).get('um_per_px')
    if isinstance(crops, (tuple, list)) and len(crops) == 2:
        return math.sqrt(crops[0] * crops[1]), 'config'
    return UM_PER_PX, 'default'


def _train_ids(cfg: Config) -> np.ndarray | None:
    """Return the (256,) uint8 table from the ids of a model to train ids; None if they are equal."""
    dataset = (cfg.get('test_dataloader') or {}).get('dataset') or {}
    classes = tuple((dataset.get('metainfo') or {}).get('classes') or CLASSES)
    if classes == CLASSES:
        return None
    table = release_ids(classes)
    if table is None:
        raise IgniteError(
            f'the classes of the config, {", ".join(classes)}, are not classes of IGNITE, whose ids label PNGs hold: use the '
            'names of the release.'
        )
    return table
