"""Predicting images with the model and inference of a test."""

import inspect
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import cv2
import mmcv.transforms
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import init_default_scope
from mmseg.datasets.transforms import PackSegInputs
from mmseg.models.segmentors import EncoderDecoder
from mmseg.registry import MODELS, TRANSFORMS

from ..datasets.transforms import LoadIGNITERegion
from ..engine.compiled_inference import Compilation
from ..engine.devices import find_device, to_device
from ..engine.ensembles import Ensemble
from ..engine.optim_wrappers import autocast, prediction_dtype
from ..engine.training_record import KEY
from ..errors import IgniteError
from ..export.description import class_names
from ..files import printable
from ..images.reading import MAX_PIXELS, MAX_UM_PER_PX, MIN_UM_PER_PX, ReadImage, read_image
from ..inference.tiling import Span, grid
from ..labels import CLASSES, release_ids
from ..models.onnx_file import engine
from ..models.segmentors import label_image
from ..untrusted import is_number
from .configuration import building, load_config, resolved
from .onnx_prediction import graph_config, graph_device, graph_metas
from .prediction_rasters import BACKGROUND, Sink, empty_like, is_list, pairs, resample

MIN_SIDE = 32
"""px; the coarsest stage of MiT has one token for 32 x 32 px."""
TOLERANCE = 1.05
"""Resolutions that differ by less than this factor count as equal."""
UM_PER_PX = 0.5
"""Resolution of the release, used where neither checkpoint nor config states the resolution of the training."""
_ENDS = (mmcv.transforms.LoadImageFromFile, mmcv.transforms.LoadAnnotations, LoadIGNITERegion, PackSegInputs)


class Predictor:
    """A trained model that labels H&E images and slides.

    Args:
        config: path of a config, or a loaded config, which is not changed; its test pipeline and ``model.test_cfg`` are used.
        checkpoint: path of a checkpoint, a work dir or an ensemble (see :mod:`mmseg_ignite.engine.ensembles`), or of an
            .onnx file that ``tools/export.py`` has written (see :mod:`.onnx_prediction`).
        device: e.g. 'cuda:0' or 'cpu'. Defaults to None: the best device of the machine.
        amp: automatic mixed precision. Defaults to False.
        symmetries, window_batch: replace those of ``model.test_cfg``, see :class:`TissueSegmentor`.
        compile: True compiles encoder and decoder now, which takes half a minute or more; full batches of windows are then
            predicted by them. False never does. Defaults to None: slides are predicted by compiled networks if that pays.

    Attributes:
        compilation: the :class:`Compilation <mmseg_ignite.engine.compiled_inference.Compilation>`.
        ensemble: the :class:`Ensemble <mmseg_ignite.engine.ensembles.Ensemble>` of checkpoints.
        engine: name and version of what runs the network, 'torch 2.13.0' or 'onnxruntime 1.32.0'.
        config: the resolved config.
        metas: ``meta`` of each checkpoint.
        um_per_px: resolution at which the model was trained, um/px.
        um_per_px_source: what states it: 'checkpoint', 'config' or 'default'.
        transforms: the transforms of the test pipeline that change images, as text.

    Raises:
        IgniteError: checkpoint or config are missing or do not match, there is no such device, or the networks cannot be
            compiled.

    Example:
        >>> predictor = Predictor(config, checkpoint)
        >>> labels = predictor.predict('roi.png')  # (H, W) uint8, train ids 0..15
        >>> predictor.predict_slide('slide.svs', 'predictions')  # the files of tools/predict.py
    """

    def __init__(
        self,
        config: str | Path | Config,
        checkpoint: str | Path,
        device: str | None = None,
        amp: bool = False,
        symmetries: int | None = None,
        window_batch: int | None = None,
        compile: bool | None = None,
    ) -> None:
        self.ensemble = Ensemble.read(checkpoint)
        is_graph = self.ensemble.is_graph
        device = graph_device(self.ensemble.path, device, amp, compile) if is_graph else find_device(device)
        cfg = resolved(config) if isinstance(config, Config) else load_config(config)
        self.config_file, self.amp = cfg.filename, amp
        cfg.model.backbone.init_cfg = None
        given = dict(symmetries=symmetries, window_batch=window_batch)
        cfg.model.test_cfg = {
            **(cfg.model.get('test_cfg') or {}),
            **{key: value for key, value in given.items() if value is not None},
        }
        init_default_scope(cfg.get('default_scope', 'mmseg'))
        transforms = _inner_transforms(_test_pipeline(cfg))
        self._transforms = Compose(transforms) if transforms else None
        self.transforms = [str(dict(transform)) for transform in transforms]
        self._names = ', '.join(str(transform['type']) for transform in transforms)
        with building(cfg):
            self.ensemble.check_members(cfg.model)
            known = graph_config(self.ensemble.path, cfg, device) if is_graph else self.ensemble.model_config(cfg.model)
            self.model = MODELS.build(known)
        if not isinstance(self.model, EncoderDecoder):
            kind = type(self.model).__name__
            raise IgniteError(f'the model is a {kind}; an EncoderDecoder of mmseg was expected: choose another config.')
        self.config, self.metas = cfg, graph_metas(self.model, cfg) if is_graph else self.ensemble.load_into(self.model)
        self.engine = engine() if is_graph else f'torch {torch.__version__}'
        self.model = to_device(self.model, device).eval()
        self.device, self.dtype = device, prediction_dtype(cfg, device, amp)
        self.um_per_px, self.um_per_px_source = _training_resolution(self.metas[0], cfg, self.ensemble.members[0])
        self._ids = _train_ids(cfg)
        self.compilation = Compilation(self.model, self.dtype, False if is_graph else compile)
        if compile:
            with torch.inference_mode():
                self.compilation.compile()

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
        labels = np.empty(image.shape[:2], np.uint8)
        self.label(image, labels, um_per_px, on_progress)
        if blank is not None:
            labels[blank] = BACKGROUND
        return labels

    def predict_slide(self, path: str | Path, out: str | Path, **options: object) -> dict:
        """Predict a whole slide (or an image) and write the files of ``tools/predict.py`` to a folder.

        Args:
            path: a slide that OpenSlide reads, a tiled OME-TIFF, or an image.
            out: output folder.
            options: fields of :class:`.prediction_options.PredictionOptions`, e.g. ``formats``, ``um_per_px``, ``min_area``.

        Returns:
            the record of the slide in ``run.json``: files, um/px, level, windows, areas, time, ...

        Raises:
            IgniteError: the slide cannot be read, or something cannot be written.

        Example:
            >>> predictor.predict_slide('slide.svs', 'predictions', formats=('label', 'geojson'))['files']
            ['slide.geojson', 'slide.ome.tif', 'slide_preview.png']
        """
        from .predicting import predict_one  # imports this module

        return predict_one(self, path, out, **options)

    @torch.inference_mode()
    def label(
        self,
        image: np.ndarray,
        out: np.ndarray,
        um_per_px: float | None = None,
        on_progress: Callable[[int], object] | None = None,
        wanted: Callable[[Span, Span], bool] | None = None,
        tissue: Callable[[int, int], np.ndarray] | None = None,
        maps: Mapping[str, object] | None = None,
    ) -> None:
        """Label an image or a view of a slide, written row by row; the one way of all predictions.

        Args:
            image: (H, W, 3) uint8 RGB array, or an object that is read like one, e.g. a view of a slide.
            out: (H, W) uint8 raster to write to: train ids.
            um_per_px: resolution of an array, which is resampled as in :meth:`predict`; None: that of the training.
            on_progress, wanted, maps: see :func:`mmseg_ignite.models.segmentors.label_image`; rasters of probabilities are in
                the order of train ids.
            tissue: function of rows (top, bottom) of ``out`` that returns where tissue is, (rows, W) bool; other pixels
                become Background.

        Raises:
            IgniteError: the image has an impossible size, or the test pipeline changes it.
        """
        shape = tuple(image.shape[:2])
        size = self.working_size(shape, um_per_px)
        maps = maps or {}
        if size == shape:
            self._label_windows(self._transformed(image), out, on_progress, wanted, tissue, maps)
            return
        small, few = np.empty(size, np.uint8), {name: empty_like(sink, size) for name, sink in maps.items()}
        self._label_windows(self._transformed(resample(image, size)), small, on_progress, wanted, None, few)
        for sink, found, method, fill in ((out, small, cv2.INTER_NEAREST_EXACT, BACKGROUND), *pairs(maps, few)):
            Sink(sink, tissue, fill=fill)[0 : shape[0]] = cv2.resize(found, shape[::-1], interpolation=method)

    def _label_windows(
        self,
        image: np.ndarray,
        out: np.ndarray,
        on_progress: Callable[[int], object] | None,
        wanted: Callable[[Span, Span], bool] | None,
        tissue: Callable[[int, int], np.ndarray] | None,
        maps: Mapping[str, object],
    ) -> None:
        maps = {
            name: [Sink(x, tissue) for x in sink] if is_list(sink) else Sink(sink, tissue)
            for name, sink in maps.items()
        }
        if 'probability' in maps:
            channels = maps['probability']
            channels[BACKGROUND].fill = 255
            for unknown in set(range(len(channels))) - {*self._ids.tolist()}:  # classes that the model does not know
                channels[unknown][0 : image.shape[0]] = 0
            maps['probability'] = [channels[i] for i in self._ids]
        ids = None if np.array_equal(self._ids, np.arange(len(CLASSES))) else self._ids
        with autocast(self.device, self.dtype):
            label_image(self.model, image, Sink(out, tissue, ids), on_progress, wanted, maps)

    def _transformed(self, image: np.ndarray) -> np.ndarray:
        """Apply the transforms of the test pipeline that are neither loading nor packing; usually there are none."""
        if self._transforms is None:
            return image
        if not isinstance(image, np.ndarray):
            raise IgniteError(
                f'the test pipeline has transforms of whole images ({self._names}), but slides are read in windows: remove '
                'them from test_pipeline.'
            )
        shape = image.shape[:2]
        data = dict(img=cv2.cvtColor(image, cv2.COLOR_RGB2BGR), img_shape=shape, ori_shape=shape)
        found = self._transforms(data)['img']
        if found.shape != image.shape or found.dtype != np.uint8:
            raise IgniteError(
                f'the test pipeline ({self._names}) turns an image of {image.shape} uint8 into {found.shape} {found.dtype}; '
                'size and type must stay: remove what resizes, pads or normalises, as images are resampled by their um/px.'
            )
        return cv2.cvtColor(found, cv2.COLOR_BGR2RGB)

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

    def spans(self, size: tuple[int, int]) -> tuple[list[Span], list[Span]]:
        """Return (start, stop) of the rows and columns of windows of an image of (H, W) px at the training's resolution."""
        test_cfg = self.model.test_cfg
        if test_cfg.get('mode') != 'slide':
            return [(0, size[0])], [(0, size[1])]
        return tuple(grid(*axis) for axis in zip(size, test_cfg['crop_size'], test_cfg['stride']))

    def window_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return (h, w) px of the windows of an image of (H, W) px at the resolution of the training."""
        return tuple(spans[0][1] - spans[0][0] for spans in self.spans(size))

    def windows(self, size: tuple[int, int]) -> int:
        """Return the number of windows predicted for an image of (H, W) px at the resolution of the training."""
        return math.prod(map(len, self.spans(size)))


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


def _inner_transforms(pipeline: list[dict]) -> list[dict]:
    """Remove the transforms that read images or annotations, and those that pack, from a pipeline."""
    kept = []
    for transform in pipeline:
        if not isinstance(transform, Mapping) or 'type' not in transform:
            raise IgniteError(
                f'the test pipeline has {str(transform)[:80]!r}; a dict with "type" was expected: correct test_pipeline in '
                'the config file.'
            )
        name = transform['type']
        kind = name if inspect.isclass(name) else TRANSFORMS.get(name)
        # mmseg.LoadImageFromFile: mmseg's registry does not look up a name with its scope in mmcv's registry.
        if _is_end(kind) or (kind is None and _is_end(TRANSFORMS.get(name.split('.')[-1]))):
            continue
        if kind is None:
            raise IgniteError(
                f'the test pipeline has the transform {name!r}, which is not registered: correct its name, or import its '
                'module with custom_imports.'
            )
        kept.append(transform)
    return kept


def _is_end(kind: object) -> bool:
    return inspect.isclass(kind) and issubclass(kind, _ENDS)


def _training_resolution(meta: dict, cfg: Config, path: Path) -> tuple[float, str]:
    """Return the um/px at which a model was trained, and what states it."""
    record = meta.get(KEY)
    stored = record.get('um_per_px') if isinstance(record, dict) else None
    if stored is not None:
        if not is_number(stored, MIN_UM_PER_PX, MAX_UM_PER_PX):
            raise IgniteError(
                f'{printable(path)} states that it was trained at {str(stored)[:40]} um/px; {MIN_UM_PER_PX} to '
                f'{MAX_UM_PER_PX:g} was expected: check where the file comes from.'
            )
        return float(stored), 'checkpoint'
    dataset = (cfg.get('train_dataloader') or {}).get('dataset') or {}
    crops = (dataset.get('crops') or {}).get('um_per_px')
    if isinstance(crops, (tuple, list)) and len(crops) == 2:
        return math.sqrt(crops[0] * crops[1]), 'config'
    return UM_PER_PX, 'default'


def _train_ids(cfg: Config) -> np.ndarray:
    """Return the train id of each class of a model, uint8."""
    classes = class_names(cfg)
    table = release_ids(classes)
    if table is None:
        raise IgniteError(
            f'the classes of the config, {", ".join(map(str, classes))}, are not classes of IGNITE, whose ids label PNGs '
            'hold: use the names of the release.'
        )
    return table[: len(classes)]
