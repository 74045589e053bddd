"""Opening checkpoint files and loading them into models. Code in a file is never run."""

import contextlib
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from mmengine.runner import CheckpointLoader

from ...errors import IgniteError
from ...files import printable
from ...models.onnx_file import is_onnx
from ...models.weight_names import LAYOUTS, layout_of
from ..compatibility import checkpoint_loaders
from .contents import CHECKSUM, checked, checksum
from .file_formats import read_checkpoint
from .mmengine_objects import ForeignContent
from .remote import local_file
from .safetensors_files import is_safetensors, read_safetensors


class DamagedCheckpoint(IgniteError):
    """A checkpoint file that is damaged or not a checkpoint, so that an earlier one must be used."""


def open_checkpoint(path: str | Path) -> dict:
    """Read a checkpoint into the CPU's memory; a hostile file can neither run code nor fill the memory.

    Tensors and plain containers are accepted, and the log history and NumPy numbers that mmengine's own runner stores. A
    checkpoint of this package has a checksum of its whole content, which is compared; the zip format also has one of each
    part. Tensors are stored uncompressed, so a file cannot grow in memory. Files of safetensors, recognised by their suffix
    or content, are read like those of torch: ``state_dict``, and ``meta`` if this package wrote them.

    Raises:
        DamagedCheckpoint: the file is truncated, changed, not a checkpoint, or contains other objects.
        IgniteError: the file is missing, or weights are NaN or infinite.
    """
    checkpoint = read_tensors(path)
    _check_finite(checkpoint.get('state_dict', checkpoint), Path(path))
    return checkpoint


def read_tensors(path: str | Path) -> dict:
    """Read a dictionary of tensors and plain containers like :func:`open_checkpoint`; values need not be finite.

    Raises:
        DamagedCheckpoint: see :func:`open_checkpoint`.
        IgniteError: the file is missing.
    """
    path = Path(path)
    if not os.path.isfile(path):  # also False for a name that is too long
        raise IgniteError(
            f'{printable(path)} is not a file; a checkpoint (.pth, .safetensors) was expected: check the path.'
        )
    check_no_graph(path)
    try:
        checkpoint = read_safetensors(path) if is_safetensors(path) else read_checkpoint(path)
    except ForeignContent as error:
        raise DamagedCheckpoint(
            f'{printable(path)} contains objects other than weights ({error}) and was not opened; a checkpoint written by '
            'tools/train.py or mmseg was expected: check where the file comes from.'
        ) from error
    except Exception as error:  # a damaged file may raise anything: struct.error, EOFError, KeyError, ...
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
        raise DamagedCheckpoint(
            f'{printable(path)} cannot be read as a checkpoint ({reason}): it may be truncated; use another one.'
        ) from error
    try:
        checkpoint = checked(checkpoint, path)
    except IgniteError as error:
        raise DamagedCheckpoint(str(error)) from error
    if CHECKSUM in checkpoint and checkpoint[CHECKSUM] != checksum(checkpoint):
        raise DamagedCheckpoint(
            f'{printable(path)} does not have the checksum it was written with, so it was damaged or changed: use another.'
        )
    return checkpoint


def check_no_graph(path: str | Path) -> None:
    """Raise IgniteError if a file is an ONNX graph, from which no weights are read."""
    if is_onnx(path):
        raise IgniteError(
            f'{printable(path)} is an ONNX graph, which only tools/predict.py takes, one alone; a checkpoint (.pth) was '
            'expected: give the one that it was written from.'
        )


def _check_finite(weights: object, path: Path) -> None:
    tensors = weights.items() if isinstance(weights, dict) else ()
    wrong = [k for k, v in tensors if isinstance(v, torch.Tensor) and v.is_floating_point() and not v.isfinite().all()]
    if wrong:
        raise IgniteError(
            f'{printable(path)} has weights that are NaN or infinite ({len(wrong)}, e.g. {printable(wrong[0][:80])}): its '
            'training diverged, use an earlier checkpoint.'
        )


_REPLACED: dict[str, Callable] = {}
"""mmengine's loaders by prefix, while a context of :func:`safe_checkpoints` is open."""
_OPEN: list[object] = []
_LOCK = threading.Lock()


@contextlib.contextmanager
def safe_checkpoints() -> Iterator[None]:
    """Make mmengine open every checkpoint with :func:`open_checkpoint` too, as a context manager or decorator.

    mmengine's own loaders run the code in a file, on the disk or from an address. ``train`` and ``test`` of
    :mod:`mmseg_ignite.apis` run inside this context, so that ``resume``, ``load_from`` and ``init_cfg`` never do, whatever
    scheme they have; addresses are downloaded by :func:`.remote.fetch`. When the last context ends, also if several threads
    have one, mmengine's loaders are restored.

    Example:
        >>> with safe_checkpoints():
        ...     model = mmseg.apis.init_model(config, checkpoint)
    """
    with _LOCK:
        foreign = {prefix: loader for prefix, loader in checkpoint_loaders().items() if loader is not _load_safely}
        _REPLACED.update(foreign)
        _OPEN.append(None)
        CheckpointLoader.register_scheme(list(foreign), _load_safely, force=True)
    try:
        yield
    finally:
        with _LOCK:
            _OPEN.pop()
            for prefix in list(_REPLACED) if not _OPEN else ():
                CheckpointLoader.register_scheme(prefix, _REPLACED.pop(prefix), force=True)


def _load_safely(filename: str, map_location: object = None) -> dict:
    """Open a checkpoint in place of mmengine's loaders; from ``mmcls://`` only the backbone, without its prefix."""
    checkpoint = open_checkpoint(local_file(filename))  # models copy weights to their own device
    if not filename.startswith('mmcls://'):
        return checkpoint
    weights = checkpoint.get('state_dict', checkpoint)
    names = [name for name in weights if name.startswith('backbone.')]
    return dict(state_dict={name.removeprefix('backbone.'): weights[name] for name in names})


def load_weights(model: torch.nn.Module, path: str | Path, skip_prefix: str | None = None) -> dict:
    """Load a checkpoint's weights into a model; keys and shapes must match exactly.

    Args:
        skip_prefix: skip the model's keys that start with this prefix. Defaults to None: skip none.

    Returns:
        The checkpoint's ``meta`` (empty for bare weights).

    Raises:
        IgniteError: see :func:`open_checkpoint`, or the checkpoint belongs to another model.
    """
    checkpoint = open_checkpoint(path)
    own = {k: v for k, v in model.state_dict().items() if skip_prefix is None or not k.startswith(skip_prefix)}
    weights = fitting_weights(checkpoint.get('state_dict', checkpoint), own, path)
    model.load_state_dict(weights, strict=skip_prefix is None)
    return checkpoint.get('meta', {}) if 'state_dict' in checkpoint else {}


def fitting_weights(weights: dict, own: dict[str, torch.Tensor], path: str | Path) -> dict[str, torch.Tensor]:
    """Return weights without the prefix of wrapped models, if their names and shapes are those of a model's ``own``.

    Raises:
        IgniteError: names, shapes or kinds of numbers differ.
    """
    names = [str(name).removeprefix('module.') for name in weights]
    if twice := next((name for name, count in Counter(names).items() if count > 1), None):
        raise IgniteError(
            f'{printable(path)} has the weight {printable(twice[:80])} twice, with and without the prefix module.; one was '
            'expected: use the config and the checkpoint of one training.'
        )
    weights = dict(zip(names, weights.values()))
    wrong = [k for k in own.keys() | weights.keys() if not fits(weights.get(k), own.get(k))]
    if wrong:
        layout = layout_of(weights)
        remedy = 'use the config it was trained with'
        if layout not in (None, 'mmseg'):
            remedy = f'it has the names of {LAYOUTS[layout]}: convert it with tools/convert_weights.py'
        raise IgniteError(
            f'{printable(path)} is a checkpoint of another model: {len(wrong)} of {len(own)} weights differ in name or '
            f'shape, e.g. {printable(sorted(wrong)[0][:80])}: {remedy}.'
        )
    return weights


def fits(found: object, own: torch.Tensor | None) -> bool:
    """Return whether a value from a file has the shape and the kind of numbers of a weight."""
    return (
        isinstance(found, torch.Tensor)
        and own is not None
        and found.shape == own.shape
        and found.is_floating_point() == own.is_floating_point()
    )
