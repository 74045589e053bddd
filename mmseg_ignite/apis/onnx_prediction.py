"""An .onnx file in place of a checkpoint: its device, its segmentor and what it states."""

import warnings
from pathlib import Path

import torch
from mmengine.config import Config

from ..engine.devices import find_device
from ..engine.training_record import KEY
from ..errors import IgniteError
from ..export.description import class_names
from ..files import printable
from ..models.onnx_file import engine, provider_of
from ..models.segmentors import OnnxSegmentor


def graph_device(path: Path, name: str | None, amp: bool, compile: bool | None = None) -> torch.device:
    """Return the device to run a graph on.

    Args:
        path: the .onnx file.
        name: e.g. 'cuda:0'. Defaults to None: the best device of the machine, or the CPU, with a warning, if the installed
            ONNX Runtime cannot use that one.
        amp, compile: what was asked of torch; a graph has neither.

    Raises:
        IgniteError: there is no such device, ONNX Runtime cannot use it, or ``amp`` or ``compile`` is True.
    """
    if amp:
        raise IgniteError(f'{printable(path)} is an ONNX graph, whose precision is fixed: leave out --amp.')
    if compile:
        raise IgniteError(
            f'{printable(path)} is an ONNX graph, which ONNX Runtime compiles itself: leave out --compile.'
        )
    device = find_device(name)
    try:
        provider_of(device)
    except IgniteError:
        if name is not None:
            raise
        warnings.warn(f'{engine()} cannot use {device}, so {printable(path)} runs on the CPU.')
        return torch.device('cpu')
    return device


def graph_config(path: Path, cfg: Config, device: torch.device) -> dict:
    """Return the ``model`` of a segmentor that runs a graph with the windows of a config."""
    return dict(
        type='OnnxSegmentor', path=str(path), device=str(device), test_cfg=dict(cfg.model.get('test_cfg') or {})
    )


def graph_metas(model: OnnxSegmentor, cfg: Config) -> list[dict]:
    """Return what a graph states of its training, in the form of a checkpoint's ``meta``.

    Raises:
        IgniteError: the classes of the graph are not those of the config.
    """
    file, expected = model.file, class_names(cfg)
    if file.classes != expected:
        number = next((i for i, pair in enumerate(zip(file.classes, expected)) if pair[0] != pair[1]), None)
        found = f'{len(file.classes)} classes, not {len(expected)}'
        if number is not None:
            found = f'{file.classes[number]!r} as class {number}, not {expected[number]!r}'
        raise IgniteError(
            f'{printable(file.path)} has {found} as {cfg.filename or "the config"}: use the config it was exported with.'
        )
    return [{KEY: dict(um_per_px=file.um_per_px)}]
