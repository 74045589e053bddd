"""The ONNX package: a graph for ONNX Runtime, OpenVINO and others, with all that its users must know in its metadata."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..models.onnx_file import INPUTS, OUTPUTS, OnnxFile, engine, runtime
from .comparison import Agreement, compare, example_inputs
from .description import ModelDescription
from .network import ExportNetwork
from .onnx_graph import INPUT, OPSET, check_onnx, write_onnx
from .packages import Exported

GRAPH, CARD, README = FILES = ('model.onnx', 'MODEL_CARD.md', 'README.md')
MIN_SIDE = 32
"""px; the smallest input that is compared with the model."""
_SIZES = ((1, MIN_SIDE, MIN_SIDE), (2, 64, 96), (3, 65, 47), (1, 127, 161))
"""(batch, height, width) of the random inputs."""


def check(exported: Exported) -> None:
    """Raise IgniteError if a library is missing or the weights do not fit into one file."""
    runtime()
    check_onnx(ExportNetwork(exported.model, exported.inputs, exported.outputs))


def write(folder: Path, exported: Exported) -> None:
    """Write the package into an empty folder, and compare what ONNX Runtime computes with the model.

    Raises:
        IgniteError: the network cannot be recorded, or the file does not compute what the model computes.
    """
    start = time.perf_counter()
    network = ExportNetwork(exported.model, exported.inputs, exported.outputs)
    path = folder / GRAPH
    exported.report('onnx: the network is recorded, which takes a minute or more ...')
    agreement = write_graph(path, network, exported.description, example_inputs(network, exported.images, _SIZES))
    (folder / CARD).write_text(exported.card, encoding='utf-8')
    (folder / README).write_text(_readme(exported), encoding='utf-8')
    size, seconds = path.stat().st_size / 1e6, time.perf_counter() - start
    exported.report(f'onnx: {agreement}; {engine()}, {size:.1f} MB, {seconds:.0f} s')


def write_graph(
    path: Path, network: ExportNetwork, description: ModelDescription, inputs: Sequence[Tensor]
) -> Agreement:
    """Write a graph with its metadata, and compare what ONNX Runtime computes with the network.

    Args:
        path: file to write.
        inputs: of the kind ``network.inputs``, see :func:`.comparison.example_inputs`.

    Raises:
        IgniteError: see :func:`write`.
    """
    facts = dict(inputs=network.inputs, outputs=network.outputs, min_side=MIN_SIDE)
    write_onnx(path, network, description.metadata() | {key: json.dumps(value) for key, value in facts.items()})
    session = OnnxFile.read(path).session(torch.device('cpu'))
    return compare(network, lambda x: session.run(None, {INPUT: x})[0], inputs, f'{path.name} in {engine()}')


def _readme(exported: Exported) -> str:
    """Return how to run the file, in Markdown."""
    known = exported.description
    order = [['red', 'green', 'blue'], ['blue', 'green', 'red']][known.channel_order == 'BGR']
    mean, std = ([f'{value:.7g}' for value in values] for values in (known.mean, known.std))
    prepare = {
        'normalised': f'x = (rgb{"[..., ::-1]" * (known.channel_order == "BGR")} - np.float32([{", ".join(mean)}])) / '
        f'np.float32([{", ".join(std)}])\nx = x.transpose(2, 0, 1)[None]',
        'float': 'x = rgb.transpose(2, 0, 1)[None].astype(np.float32)',
        'nchw': 'x = np.ascontiguousarray(rgb.transpose(2, 0, 1)[None])',
        'nhwc': 'x = rgb[None]',
    }[exported.inputs]
    lines = [
        'import numpy as np, onnxruntime as ort',
        'from PIL import Image',
        "rgb = np.asarray(Image.open('roi.png').convert('RGB'))",
        *prepare.splitlines(),
        f"scores = ort.InferenceSession('{GRAPH}').run(None, {{'{INPUT}': x}})[0]",
        'labels = scores[0]' if exported.outputs == 'labels' else 'labels = scores.argmax(1)[0]',
    ]
    code = '\n'.join(f'    {line}' for line in lines)
    normalised = ''
    if exported.inputs == 'normalised':
        normalised = (
            f' Channels: {", ".join(order)}; mean {", ".join(mean)}; standard deviation {", ".join(std)} (0..255).'
        )
    return f"""# {known.name}: ONNX
`{GRAPH}` (opset {OPSET}, one file with all weights) segments H&E tissue at {known.um_per_px:.3g} um/px.

- Input `{INPUT}`: {INPUTS[exported.inputs]}, any N, H and W of at least {MIN_SIDE} px.{normalised}
- Output `{exported.outputs}`: {OUTPUTS[exported.outputs]}.
- Classes, in the order of the output: {', '.join(f'{number} {name}' for number, name in enumerate(known.classes))}.
- The same facts, colours and the SHA-256 of the checkpoint are in the metadata of the file, as JSON texts.

In Python:

{code}

Large images and slides: `python tools/predict.py CONFIG {GRAPH} SLIDE --out predictions` of mmseg_ignite tiles them as it
does for a checkpoint{_windows(exported)}. See {CARD} for the training, the scores and the limits of the model.
"""


def _windows(exported: Exported) -> str:
    known = exported.description
    if known.window is None:
        return ''
    return ' (windows of {} x {} px every {} x {} px)'.format(*known.window, *known.stride)
