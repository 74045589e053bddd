"""ONNX files that tools/export.py has written: what they state of themselves, and sessions of ONNX Runtime that run them."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

from ..errors import IgniteError
from ..extras import import_extra
from ..files import printable
from ..untrusted import NAME, Form, check_form, is_number, parse_json

SUFFIX = '.onnx'
CPU, CUDA = 'CPUExecutionProvider', 'CUDAExecutionProvider'
INPUTS = {
    'normalised': 'float32 (N, 3, H, W), normalised, channels in the order that the network takes',
    'float': 'float32 (N, 3, H, W) RGB, 0..255',
    'nchw': 'uint8 (N, 3, H, W) RGB',
    'nhwc': 'uint8 (N, H, W, 3) RGB',
}
OUTPUTS = {
    'logits': 'float32 (N, classes, H, W) logits; of an ensemble the logarithm of the mean probabilities',
    'probabilities': 'float32 (N, classes, H, W), 0..1',
    'labels': 'uint8 (N, H, W) class indices',
}
"""Kinds of input and output."""
MAX_TEXT = 1 << 20
"""Longest value of the metadata, characters."""
_MAX_BYTES = (1 << 31) - 1
"""Limit of protobuf, in which ONNX files are written."""
_WRITER = 'an .onnx file written by tools/export.py was expected'
_REMEDY = 'export the checkpoint with tools/export.py'
_QUIET = 4  # fatal errors only: each error is raised as well


def _one_of(values: Collection[str]) -> Form:
    return Form(lambda value: isinstance(value, str) and value in values, f'one of {", ".join(values)}')


def _three(low: float, what: str) -> Form:
    return Form(
        lambda value: isinstance(value, list) and len(value) == 3 and all(is_number(x, low, 1e6) for x in value), what
    )


_FORM = {
    'classes': [NAME],
    'um_per_px': Form(lambda value: is_number(value, 0.05, 5), '0.05 to 5 um/px'),
    'channel_order': _one_of(('RGB', 'BGR')),
    'mean': _three(-1e6, 'three numbers'),
    'std': _three(1e-6, 'three numbers above 0'),
    'inputs': _one_of(INPUTS),
    'outputs': _one_of(OUTPUTS),
    'checkpoints?': [{'file': NAME, 'sha256': NAME}],
}


@dataclass(frozen=True)
class OnnxFile:
    """What an ONNX file states, and its content, read once.

    Attributes:
        path: the file.
        content: its bytes.
        classes: names of the output channels.
        um_per_px: resolution of the training, um/px.
        channel_order, mean, std: of normalised inputs, see :class:`mmseg_ignite.export.ModelDescription`.
        inputs, outputs: kinds of input and output, keys of ``INPUTS`` and ``OUTPUTS``.
        checkpoints: ``file`` and ``sha256`` of each checkpoint that it was written from.

    Example:
        >>> file = OnnxFile.read('exported/onnx/b0.onnx')
        >>> session = file.session(torch.device('cpu'))
    """

    path: Path
    content: bytes
    classes: tuple[str, ...]
    um_per_px: float
    channel_order: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    inputs: str
    outputs: str
    checkpoints: tuple[dict, ...] = ()

    @classmethod
    def read(cls, path: str | Path) -> OnnxFile:
        """Read an ONNX file and check it. Nothing in it is run, and no other file is opened.

        Raises:
            IgniteError: onnx or ONNX Runtime is not installed; the file is missing, damaged, refers to other files, was not
                written by ``tools/export.py``, or its input or output is not what its metadata state.
        """
        onnx = import_extra('onnx', 'an .onnx file in place of a checkpoint', 'export')
        runtime()
        try:
            content = _content(path)
            model = onnx.load_model_from_string(content)
        except IgniteError:
            raise
        except OSError as error:
            raise IgniteError(f'{printable(path)} cannot be read ({error.strerror}): check the path.') from error
        except Exception as error:  # DecodeError of protobuf, which is no dependency of this package
            raise IgniteError(f'{printable(path)} is damaged or no ONNX file: copy it again, or {_REMEDY}.') from error
        if outside := next(_external(onnx, model), None):
            raise IgniteError(
                f'{printable(path)} keeps weights in another file ({printable(outside[:80])}), which is not opened; one file '
                f'with all weights was expected: {_REMEDY}.'
            )
        if wrong := next(_not_numbers(onnx, model.graph), None):
            raise IgniteError(f'{printable(path)} has weights that are NaN (e.g. {printable(wrong[:80])}): {_REMEDY}.')
        stated = _metadata(path, model)
        known = {name: stated[name] for name in ('um_per_px', 'channel_order', 'inputs', 'outputs')}
        lists = {name: tuple(stated[name]) for name in ('classes', 'mean', 'std')}
        file = cls(Path(path), content, **known, **lists, checkpoints=tuple(stated.get('checkpoints', ())))
        file._check_ports(onnx, model.graph)
        return file

    def session(self, device: torch.device) -> object:
        """Start an ``onnxruntime.InferenceSession`` on a device, with as many threads as torch.

        Raises:
            IgniteError: ONNX Runtime cannot run the graph, or not on this device.
        """
        ort, providers = runtime(), provider_of(device)
        options = ort.SessionOptions()
        options.log_severity_level = _QUIET
        options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
        try:
            session = ort.InferenceSession(self.content, options, providers=providers)
        except Exception as error:  # types of ONNX Runtime's own, without a common base
            raise IgniteError(
                f'ONNX Runtime {ort.__version__} cannot load {printable(self.path)} ({reason(error)}): {_REMEDY}, or install '
                'the tested version.'
            ) from error
        if device.type == 'cuda' and CUDA not in session.get_providers():
            raise IgniteError(
                f'ONNX Runtime {ort.__version__} cannot use {device} (its CUDA libraries could not be loaded): install the '
                'onnxruntime-gpu that fits CUDA and cuDNN, or pass --device cpu.'
            )
        return session

    def _check_ports(self, onnx: ModuleType, graph: object) -> None:
        """Raise IgniteError unless the graph has the input and the output of its metadata, of any batch and size."""
        weights, classes = {tensor.name for tensor in graph.initializer}, len(self.classes)
        images = (None, None, None, 3) if self.inputs == 'nhwc' else (None, 3, None, None)
        labels = (None, None, None) if self.outputs == 'labels' else (None, classes, None, None)
        wanted = dict(
            input=[('UINT8' if self.inputs in ('nhwc', 'nchw') else 'FLOAT', images)],
            output=[('UINT8' if self.outputs == 'labels' else 'FLOAT', labels)],
        )
        ports = dict(input=[value for value in graph.input if value.name not in weights], output=list(graph.output))
        for kind, values in ports.items():
            found = [_port(onnx, value) for value in values]
            if found != wanted[kind]:
                raise IgniteError(
                    f'{printable(self.path)} has the {kind} {_ports(found)}; {_ports(wanted[kind])} was expected from its '
                    f'metadata: {_REMEDY}.'
                )


def runtime() -> ModuleType:
    """Import ONNX Runtime; raise IgniteError if it is not installed."""
    return import_extra('onnxruntime', 'an .onnx file in place of a checkpoint', 'export')


def engine() -> str:
    """Return the name and version of ONNX Runtime, for records."""
    return f'onnxruntime {runtime().__version__}'


def provider_of(device: torch.device) -> list[str | tuple]:
    """Return the providers of a session for a device.

    Raises:
        IgniteError: the installed ONNX Runtime has none.
    """
    if device.type == 'cpu':
        return [CPU]
    if device.type != 'cuda' or CUDA not in runtime().get_available_providers():
        remedy = 'install onnxruntime-gpu in place of onnxruntime, or ' if device.type == 'cuda' else ''
        raise IgniteError(f'{engine()} cannot use the device {device}: {remedy}pass --device cpu.')
    return [(CUDA, dict(device_id=device.index or 0)), CPU]


def reason(error: Exception) -> str:
    """Return the first line of an error of ONNX Runtime, without its codes and shortened."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return re.sub(r'^\[ONNXRuntimeError\]( : \w+){2} : |Fatal error: ', '', text)[:200]


def _content(path: str | Path) -> bytes:
    """Read a file that is no larger than an ONNX file can be."""
    with open(path, 'rb') as stream:
        size = os.fstat(stream.fileno()).st_size
        if size > _MAX_BYTES:
            raise IgniteError(
                f'{printable(path)} has {size / 1e9:.3g} GB; at most 2 GB were expected, as an ONNX file cannot hold more: '
                f'{_REMEDY}.'
            )
        return stream.read(_MAX_BYTES)


def _external(onnx: ModuleType, model: object) -> Iterator[str]:
    """Yield the paths of other files that the tensors of a model, also in subgraphs and functions, are in."""
    waiting: list[object] = [model]
    while waiting:
        message = waiting.pop()
        if isinstance(message, onnx.TensorProto):
            if message.data_location == onnx.TensorProto.EXTERNAL or message.external_data:
                yield next((entry.value for entry in message.external_data if entry.key == 'location'), '')
            continue
        for field, value in message.ListFields():
            if field.message_type is not None:
                waiting += [value] if hasattr(value, 'ListFields') else list(value)


def _not_numbers(onnx: ModuleType, graph: object) -> Iterator[str]:
    """Yield the names of weights that have NaN; infinity is a valid constant, e.g. of a mask."""
    kinds = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE}
    for tensor in graph.initializer:
        if tensor.data_type in kinds:
            with contextlib.suppress(Exception):  # ONNX Runtime refuses tensors of another size than stated
                if np.isnan(onnx.numpy_helper.to_array(tensor)).any():
                    yield tensor.name


def _metadata(path: str | Path, model: object) -> dict:
    """Return the facts in a file's metadata, checked."""
    texts = {entry.key: entry.value for entry in model.metadata_props if entry.key in {k.rstrip('?') for k in _FORM}}
    missing = [name for name in _FORM if not name.endswith('?') and name not in texts]
    if missing:
        raise IgniteError(
            f'{printable(path)} does not state its {", ".join(missing)}; {_WRITER}, whose metadata say how images are '
            f'prepared: {_REMEDY}.'
        )
    if long := [name for name, text in texts.items() if len(text) > MAX_TEXT]:
        raise IgniteError(f'{printable(path)} has {len(texts[long[0]]):,} characters as {long[0]}: {_REMEDY}.')
    stated = {name: parse_json(text, f'{name} of {printable(path)}', _REMEDY) for name, text in texts.items()}
    check_form(stated, _FORM, path, _REMEDY)
    return stated


def _port(onnx: ModuleType, value: object) -> tuple[str, tuple]:
    """Return the type and shape of an input or output; None for a size that is not fixed."""
    tensor = value.type.tensor_type
    sizes = tuple(dim.dim_value if dim.HasField('dim_value') else None for dim in tensor.shape.dim)
    return onnx.TensorProto.DataType.Name(tensor.elem_type), sizes


def _ports(ports: list[tuple[str, tuple]]) -> str:
    shown = [f'{kind} ({", ".join("?" if size is None else str(size) for size in shape)})' for kind, shape in ports]
    return ' and '.join(shown)[:300] or 'nothing'


def is_onnx(path: str | os.PathLike) -> bool:
    """Return whether a file name is that of an ONNX graph."""
    return os.fspath(path).lower().endswith(SUFFIX)
