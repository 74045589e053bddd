"""Recording a network as an ONNX graph of any batch, height and width."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch.export import Dim

from ..errors import IgniteError
from ..extras import import_extra
from ..files import atomic_file, writing
from .network import ExportNetwork

OPSET = 20
"""The first with Gelu; ONNX Runtime 1.17 and OpenVINO 2024 know it."""
INPUT = 'image'
MAX_BYTES = 2_000_000_000
"""Largest file: protobuf messages have less than 2 GiB."""
_EXAMPLE = (2, 96, 128)
"""Batch, height and width of the recorded input: unequal and above 1, so that none becomes a constant."""
_SIZES = {'batch': 0, 'height': 2, 'width': 3}
_LOGS = ('onnxscript', 'onnx_ir', 'torch.onnx', 'torch.export')


def write_onnx(path: str | Path, network: ExportNetwork, metadata: Mapping[str, str]) -> None:
    """Write a network as one ONNX file, with its weights, that takes any batch, height and width.

    Normalisations are constants of the convolutions. Names of files of this machine, which the exporter notes for each
    operator, are removed. The input is named 'image', the output 'logits', 'probabilities' or 'labels'.

    Args:
        path: file to write.
        network: on the CPU, in evaluation mode.
        metadata: texts by name, see :meth:`.ModelDescription.metadata`.

    Raises:
        IgniteError: a library is missing, the network cannot be recorded or is too large for one file, or the file cannot be
            written.

    Example:
        >>> write_onnx('b0.onnx', ExportNetwork(model, inputs='nhwc', outputs='labels'), description.metadata())
    """
    onnx = check_onnx(network)
    try:
        with _quiet(), torch.no_grad():
            model = _record(network).model_proto
        _tidy(model, network, metadata)
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # the exporter raises many types
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise IgniteError(
            f'the network cannot be recorded as an ONNX graph ({type(error).__name__}: {reason}): export a model of a '
            'packaged config with the tested versions of torch, onnx and onnxscript.'
        ) from error
    with writing(path), atomic_file(path) as partial:
        onnx.save(model, partial)


def check_onnx(network: torch.nn.Module):
    """Return the module onnx; raise IgniteError if a library is missing, or the weights are too large for one file."""
    onnx = import_extra('onnx', 'the ONNX export', 'export')
    import_extra('onnxscript', 'the ONNX export', 'export')
    size = sum(tensor.nbytes for tensor in network.state_dict().values())
    if size > MAX_BYTES:
        raise IgniteError(
            f'the weights take {size / 1e9:.2f} GB; at most {MAX_BYTES / 1e9:g} GB fit into one ONNX file: export fewer '
            'members of the ensemble, or each member by itself.'
        )
    return onnx


def _record(network: ExportNetwork):
    """Return the ``torch.onnx.ONNXProgram`` of a network."""
    batch, height, width = _EXAMPLE
    shape = (batch, height, width, 3) if network.inputs == 'nhwc' else (batch, 3, height, width)
    x = torch.zeros(shape, dtype=torch.uint8 if network.inputs in ('nchw', 'nhwc') else torch.float32)
    return torch.onnx.export(
        network,
        (x,),
        input_names=[INPUT],
        output_names=[network.outputs],
        dynamic_shapes=(dict.fromkeys(_places(network.inputs == 'nhwc').values(), Dim.DYNAMIC),),
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )


def _places(channels_last: bool) -> dict[str, int]:
    """Return which dimension of an input each size is."""
    return {name: place - (place > 0) for name, place in _SIZES.items()} if channels_last else _SIZES


def _tidy(model: object, network: ExportNetwork, metadata: Mapping[str, str]) -> None:
    """Name the sizes, add the metadata, and remove the exporter's notes, which have paths of this machine."""
    graph = model.graph
    for part in (*graph.node, *graph.input, *graph.output, *graph.initializer, *model.functions, graph, model):
        for name in ('metadata_props', 'doc_string'):
            if name in part.DESCRIPTOR.fields_by_name:
                part.ClearField(name)
    graph.ClearField('value_info')
    for value, places in (
        (graph.input[0], _places(network.inputs == 'nhwc')),
        (graph.output[0], _places(network.outputs == 'labels')),
    ):
        for name, place in places.items():
            value.type.tensor_type.shape.dim[place].dim_param = name
    for key, text in metadata.items():
        model.metadata_props.add(key=key, value=text)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's prints, logs and warnings from the user."""
    loggers = [logging.getLogger(name) for name in _LOGS]
    levels = [logger.level for logger in loggers]
    silent = io.StringIO()
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings(), contextlib.redirect_stdout(silent), contextlib.redirect_stderr(silent):
            warnings.simplefilter('ignore')
            yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)
