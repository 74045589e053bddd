"""Predicting images by the same model and inference as testing."""

from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.device import get_device
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS

from ..engine.optim_wrappers import half_dtype
from ..errors import IgniteError
from ..models.ensembles import load_members, set_members
from ..visualization.writers import write_prediction
from .configuration import load_config

MIN_SIDE = 32
"""px; MiT's coarsest stage has one token for 32 x 32 px, a smaller image has none."""
SUFFIXES = ('.png', '.jpg', '.jpeg', '.tif', '.tiff', '.bmp')


class Predictor:
    """A trained model that labels H&E images.

    Args:
        config: path of a config, or a loaded one; its test pipeline and ``model.test_cfg`` are used.
        checkpoint: path of its checkpoint, or of an ensemble of several (see :mod:`mmseg_ignite.models.ensembles`).
        device: e.g. 'cuda:0' or 'cpu'. Defaults to None: the best that the machine has.
        amp: automatic mixed precision. Defaults to False.

    Raises:
        IgniteError: config or checkpoint missing or not fitting.

    Example:
        >>> labels = Predictor(config, checkpoint).predict('roi.png')  # (H, W) uint8, train ids 0..15
    """

    def __init__(
        self,
        config: 'str | Path | Config',
        checkpoint: 'str | Path',
        device: 'str | None' = None,
        amp: bool = False,
    ) -> None:
        cfg = config if isinstance(config, Config) else load_config(config)
        cfg.model.backbone.init_cfg = None
        init_default_scope(cfg.get('default_scope', 'mmseg'))
        model, members = set_members(cfg.model, checkpoint)
        self.model = MODELS.build(model)
        load_members(self.model, members)
        self.model = self.model.to(device or get_device()).eval()
        self.amp = amp
        # The image is in memory already, and there are no annotations.
        self.pipeline = Compose([t for t in cfg.test_pipeline if not t['type'].startswith('Load')])

    @torch.inference_mode()
    def predict(self, image: 'np.ndarray | str | Path') -> np.ndarray:
        """Label an image of the resolution the model was trained at.

        Args:
            image: (H, W, 3) uint8 RGB, or the path of an 8-bit RGB image file.

        Returns:
            (H, W) uint8, train ids 0..15 (see :mod:`mmseg_ignite.labels`).
        """
        if not isinstance(image, np.ndarray):
            image = read_rgb(image)
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise IgniteError(
                f'the image has {image.dtype} values of shape {image.shape}; (H, W, 3) uint8 RGB was '
                'expected: convert it.'
            )
        shape = image.shape[:2]
        if min(shape) < MIN_SIDE:
            raise IgniteError(f'the image is {shape[0]} x {shape[1]} px; at least {MIN_SIDE} px a side are needed.')
        data = self.pipeline(dict(img=cv2.cvtColor(image, cv2.COLOR_RGB2BGR), img_shape=shape, ori_shape=shape))
        data = dict(inputs=[data['inputs']], data_samples=[data['data_samples']])
        device = next(self.model.parameters()).device
        with torch.autocast(device.type, half_dtype(device), enabled=self.amp):
            sample = self.model.test_step(data)[0]
        return sample.pred_sem_seg.data.squeeze(0).to(torch.uint8).cpu().numpy()


def read_rgb(path: 'str | Path') -> np.ndarray:
    """An image file as (H, W, 3) uint8 RGB."""
    path = Path(path)
    if not path.is_file():
        raise IgniteError(f'{path} is no file; an image was expected: check the path.')
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise IgniteError(f'{path} cannot be decoded as an image: it is damaged or of another kind.')
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (3, 4):
        raise IgniteError(
            f'{path} holds {image.dtype} values of shape {image.shape}; an 8-bit RGB image was expected: convert it.'
        )
    return cv2.cvtColor(image, cv2.COLOR_BGRA2RGB if image.shape[2] == 4 else cv2.COLOR_BGR2RGB)


def _expand(paths: 'list[str | Path]') -> 'Iterator[Path]':
    for path in map(Path, paths):
        if path.is_dir():
            found = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
            if not found:
                raise IgniteError(f'{path} holds no image ({", ".join(SUFFIXES)}): check the folder.')
            yield from found
        else:
            yield path


def predict_files(
    predictor: Predictor, paths: 'list[str | Path]', out: 'str | Path', report: Callable[[str], None] = print
) -> 'list[str]':
    """Predict images and folders of images; one bad image is named and does not stop the others.

    Writes ``STEM.png`` and ``STEM_overlay.png`` into ``out``.

    Returns:
        The faults, a sentence each; empty if all went well.
    """
    files, faults, taken = list(_expand(paths)), [], {}
    for number, path in enumerate(files, 1):
        try:
            if path.stem in taken:
                raise IgniteError(
                    f'{path} and {taken[path.stem]} would write the same {path.stem}.png: predict them into '
                    'two folders.'
                )
            taken[path.stem] = path
            image = read_rgb(path)
            write_prediction(out, path.stem, image, predictor.predict(image))
            report(f'[{number}/{len(files)}] {path} -> {Path(out) / path.stem}.png')
        except IgniteError as error:
            faults.append(str(error))
            report(f'[{number}/{len(files)}] skipped: {error}')
    return faults
