"""The formats of exported models, and what each of them is written from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import numpy as np
from mmengine.config import Config
from mmseg.models.segmentors import EncoderDecoder

from .description import ModelDescription


@dataclass(frozen=True)
class Exported:
    """A trained model to be written, see :func:`mmseg_ignite.apis.export`.

    Attributes:
        model: segmentor with its weights, in evaluation mode, on the CPU.
        description: what its users must know.
        metas: ``meta`` of each member's checkpoint.
        card: model card in Markdown.
        images: (h, w, 3) uint8 RGB images of real tissue, with which written files are compared with the model.
        inputs, outputs: kinds of input and output for ONNX, see :mod:`.network`.
        report: receives lines of text.
        config: config of the model; None if unknown.
        scores: content of ``metrics.json``; None if the model was not tested.
        patients: names of the training patients that the JSON file of an ensemble states.
    """

    model: EncoderDecoder
    description: ModelDescription
    metas: Sequence[dict]
    card: str
    images: Sequence[np.ndarray] = ()
    inputs: str = 'normalised'
    outputs: str = 'logits'
    report: Callable[[str], None] = field(default=print)
    config: Config | None = None
    scores: dict | None = None
    patients: Sequence[str] = ()


class Format(NamedTuple):
    """A format: what it is, and its module.

    The module has ``FILES``, the names of all entries of a package (the first is in every package), ``check(exported)``,
    which raises IgniteError if the model cannot be written in the format or a library is missing, and
    ``write(folder, exported)``, which writes the package into an empty folder and compares it with the model.
    """

    text: str
    module: str

    def load(self) -> object:
        """Import the module."""
        return import_module(f'.{self.module}', __package__)


FORMATS = {
    'onnx': Format('ONNX graph for ONNX Runtime and others', 'onnx_package'),
    'qupath': Format('pixel classifier for QuPath 0.6 or newer, without Python', 'qupath_package'),
    'bioimageio': Format('BioImage.IO package', 'bioimageio_package'),
    'huggingface': Format("folder for transformers' from_pretrained", 'hugging_face'),
    'safetensors': Format(
        'weights and training record, opened by these tools like a checkpoint', 'safetensors_package'
    ),
}


def folder_of(out: str | Path, name: str) -> Path:
    """Return the folder of a format in the output folder."""
    return Path(out) / name
