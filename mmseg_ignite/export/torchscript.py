"""TorchScript files that older versions of PyTorch run: those inside QuPath 0.6 (2.5.1) and 0.7 (2.7.1)."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ..errors import IgniteError

FILE_VERSION = 10
"""Newest version of the file format that PyTorch 2.5.1 reads; 2.13 writes it as well."""
OPERATORS = frozenset(
    f'aten::{name}'
    for name in (
        'Int.Tensor _convolution adaptive_avg_pool2d add.Scalar add.Tensor add_.Scalar add_.Tensor addmm amax avg_pool2d '
        'batch_norm bmm cat chunk clamp clamp_min clone contiguous conv2d cos div.Scalar div.Tensor div_.Tensor dropout elu '
        'exp expand expand_as flatten.using_ints flip floor floor_divide gelu group_norm hardsigmoid hardswish hardtanh '
        'index_select instance_norm layer_norm leaky_relu linear log matmul max_pool2d mean mean.dim mul.Scalar mul.Tensor '
        'mul_.Tensor neg pad permute pow.Tensor_Scalar prelu reciprocal relu relu6 relu_ repeat reshape roll rsqrt '
        'select.int sigmoid silu silu_ sin size size.int slice.Tensor softmax.int softplus split.Tensor split_with_sizes '
        'sqrt squeeze squeeze.dim stack sub.Scalar sub.Tensor sum sum.dim_IntList t tanh to.dtype transpose.int type_as '
        'unbind.int unflatten.int unsqueeze upsample_bicubic2d upsample_bicubic2d.vec upsample_bilinear2d '
        'upsample_bilinear2d.vec upsample_nearest2d upsample_nearest2d.vec var_mean.correction view'
    ).split()
)
"""Operators with the same schema in PyTorch 2.5.1, 2.7.1 and 2.13.0: ``_jit_get_all_schemas()`` of the three was compared.

None of them creates a tensor on a device, so that the file runs on any.
"""


def write_torchscript(network: nn.Module, path: Path, size: tuple[int, int]) -> None:
    """Record a network for inputs of one size, with its weights as constants, and write it for PyTorch 2.5.1 and newer.

    The file has no paths and no source lines of this machine, which ``torch.jit.save`` adds.

    Args:
        network: float32 (1, 3, h, w) to one tensor, in evaluation mode, on the CPU.
        path: file to write, with the suffix ``.pt``.
        size: (h, w) px of the inputs.

    Raises:
        IgniteError: the network uses an operator that is not in ``OPERATORS``.

    Example:
        >>> write_torchscript(ExportNetwork(model, 'float', 'probabilities'), Path('model.pt'), (512, 512))
    """
    with warnings.catch_warnings(), torch.no_grad():
        # TorchScript is deprecated, but it is what QuPath runs; sizes become constants on purpose.
        warnings.simplefilter('ignore')
        traced = torch.jit.trace(network.eval(), torch.zeros(1, 3, *size), check_trace=False)
        frozen = torch.jit.freeze(traced)
        whole = io.BytesIO()
        torch.jit.save(frozen, whole)
    if faults := _operator_faults(frozen):
        raise IgniteError(
            f'the model cannot be written as TorchScript: {faults[0]}, which PyTorch 2.5.1 (QuPath 0.6) may not have or do '
            'in another way: export it as ONNX.'
        )
    whole.seek(0)
    content = io.BytesIO()  # torch's own writer ends the process if the disk is full
    reader, writer = torch._C.PyTorchFileReader(whole), torch._C.PyTorchFileWriter(content)
    for name in reader.get_all_records():
        if not name.startswith('.data/') and not name.endswith('.debug_pkl'):  # the latter have paths and source lines
            record = reader.get_record(name)
            writer.write_record(name, record, len(record))
    writer.set_min_version(int(reader.get_record('.data/version')))
    writer.write_end_of_file()
    path.write_bytes(content.getbuffer())


def load_torchscript(path: Path) -> torch.jit.ScriptModule:
    """Open a TorchScript file on the CPU."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return torch.jit.load(str(path), map_location='cpu')


def torchscript_runner(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Return a TorchScript file as a function of a float32 array (N, 3, h, w)."""
    module = load_torchscript(path)

    @torch.no_grad()
    def run(x: np.ndarray) -> np.ndarray:
        return module(torch.from_numpy(x)).numpy()

    return run


def torchscript_faults(path: Path) -> list[str]:
    """Return what keeps PyTorch 2.5.1 from running a TorchScript file, one sentence each."""
    version = int(torch._C.PyTorchFileReader(str(path)).get_record('.data/version'))
    faults = [f'the file format is {version}; at most {FILE_VERSION} was expected'] if version > FILE_VERSION else []
    return faults + _operator_faults(load_torchscript(path))


def _operator_faults(module: torch.jit.ScriptModule) -> list[str]:
    names = {name for name in torch.jit.export_opnames(module) if not name.startswith('prim::')} - OPERATORS
    return [f'it uses the operator {name}' for name in sorted(names)]
