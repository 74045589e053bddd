"""What a user of an exported model must know: classes, resolution, preprocessing, windows, training, checksums."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mmengine.config import Config
from mmseg.models.segmentors import EncoderDecoder
from torch import Tensor

from ..engine.ensembles import Ensemble
from ..engine.training_record import TrainingRecord
from ..errors import IgniteError
from ..labels import CLASSES, COLOURS
from ..provenance import file_sha256, text_sha256
from ..version import __version__

_GREY = (128, 128, 128)


@dataclass(frozen=True)
class ModelDescription:
    """Facts about a trained model that travel with every export.

    Attributes:
        name: ``experiment_name`` of the config, else its file name without the suffix; also the name of exported files.
        architecture: encoder and decode head, e.g. 'FastMixVisionTransformer + FastSegformerHead'.
        parameters: number of weights, of all members.
        members: number of networks whose probabilities are averaged.
        classes: name of each output channel.
        palette: colour (R, G, B) of each class, 0..255.
        um_per_px: resolution at which the model was trained, um/px.
        channel_order: order of the channels that the network takes, 'RGB' or 'BGR'.
        mean, std: of each channel in ``channel_order``, in 0..255; the network takes (value - mean) / std.
        window: (h, w) px of a sliding window; None if the model was tested on whole images.
        stride: (y, x) px between windows; None as for ``window``.
        checkpoints: (file name, SHA-256) of each member.
        config_sha256: SHA-256 of the config's text.
        records: what each checkpoint says of its training; None where it says nothing.
        version: version of this package.
    """

    name: str
    architecture: str
    parameters: int
    members: int
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    um_per_px: float
    channel_order: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    window: tuple[int, int] | None
    stride: tuple[int, int] | None
    checkpoints: tuple[tuple[str, str], ...]
    config_sha256: str
    records: tuple[TrainingRecord | None, ...]
    version: str = __version__

    @classmethod
    def of(cls, model: EncoderDecoder, cfg: Config, ensemble: Ensemble, metas: list[dict], um_per_px: float):
        """Describe a model built from a config, with the weights of an ensemble loaded.

        Args:
            metas: ``meta`` of each member's checkpoint.
            um_per_px: resolution of the training, um/px.

        Raises:
            IgniteError: the data preprocessor pads images, which an exported network does not, or classes and output channels
                differ in number.
        """
        classes, preprocessor = class_names(cfg), model.data_preprocessor
        if len(classes) != model.out_channels:
            raise IgniteError(
                f'{cfg.filename or "the config"} has {len(classes)} class names for {model.out_channels} output channels; as '
                'many were expected: correct test_dataloader.dataset.metainfo.'
            )
        if getattr(preprocessor, 'test_cfg', None):
            raise IgniteError(
                f'the data preprocessor of {cfg.filename or "the config"} pads images in tests, which an exported network '
                'does not: remove its test_cfg.'
            )
        normalises = getattr(preprocessor, '_enable_normalize', False)
        mean, std = (_shortest(getattr(preprocessor, name)) for name in ('mean', 'std')) if normalises else (0, 1)
        test_cfg = model.test_cfg or {}
        slides = test_cfg.get('mode') == 'slide'
        return cls(
            name=Path(str(cfg.get('experiment_name') or '')).name or Path(cfg.filename or 'model').stem,
            architecture=f'{type(model.backbone).__name__} + {type(model.decode_head).__name__}',
            parameters=sum(p.numel() for p in model.parameters()),
            members=len(ensemble.members),
            classes=classes,
            palette=tuple(COLOURS.get(name, _GREY) for name in classes),
            um_per_px=um_per_px,
            channel_order='RGB' if getattr(preprocessor, '_channel_conversion', False) else 'BGR',
            mean=tuple(mean) if normalises else (0.0,) * 3,
            std=tuple(std) if normalises else (1.0,) * 3,
            window=tuple(test_cfg['crop_size']) if slides else None,
            stride=tuple(test_cfg['stride']) if slides else None,
            checkpoints=tuple((path.name, file_sha256(path)) for path in ensemble.members),
            config_sha256=text_sha256(cfg.pretty_text),
            records=tuple(TrainingRecord.of_meta(meta) for meta in metas),
        )

    @property
    def train_patients(self) -> int | None:
        """Number of patients in any member's training or that of its initial weights; None if unknown."""
        return self._patients('train_patients')

    @property
    def val_patients(self) -> int | None:
        """Number of patients whose scores selected a checkpoint; None if unknown."""
        return self._patients('val_patients')

    def _patients(self, attribute: str) -> int | None:
        if None in self.records or not self.records:
            return None
        return len({patient for record in self.records for patient in getattr(record, attribute)})

    def metadata(self) -> dict[str, str]:
        """Return the facts as JSON texts by name, for formats with text metadata; patients are counted, not named."""
        facts: Mapping[str, object] = dict(
            name=self.name,
            architecture=self.architecture,
            members=self.members,
            classes=self.classes,
            palette=self.palette,
            um_per_px=self.um_per_px,
            channel_order=self.channel_order,
            mean=self.mean,
            std=self.std,
            window=self.window,
            stride=self.stride,
            checkpoints=[dict(file=name, sha256=checksum) for name, checksum in self.checkpoints],
            config_sha256=self.config_sha256,
            train_patients=self.train_patients,
            val_patients=self.val_patients,
            written_by=f'mmseg_ignite {self.version}',
        )
        return {key: json.dumps(value, ensure_ascii=False) for key, value in facts.items()}


def _shortest(values: Tensor) -> list[float]:
    """Return numbers in single precision as they were written: 116.28, not 116.27999877929688."""
    return [float(str(value)) for value in values.flatten().cpu().numpy().astype(np.float32)]


def class_names(cfg: Config) -> tuple[str, ...]:
    """Return the class names of a config: those of its test data set, by default IGNITE's."""
    dataset = (cfg.get('test_dataloader') or {}).get('dataset') or {}
    return tuple((dataset.get('metainfo') or {}).get('classes') or CLASSES)
