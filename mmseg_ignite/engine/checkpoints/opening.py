"""Opening checkpoint files and loading them into models. Code in a file is never run."""

import contextlib
import pickle
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader

from ...errors import IgniteError
from ..compatibility import checkpoint_loaders
from .remote import local_file

try:  # NumPy 2 moved its private reconstruction function; checkpoints of both versions exist
    from numpy._core.multiarray import _reconstruct, scalar
except ImportError:
    from numpy.core.multiarray import _reconstruct, scalar

_STATISTICS = ('min', 'max', 'current', 'mean')


def _statistic(owner: object, name: str) -> object:
    """Replace ``getattr``, with which the log history refers to its own four methods, and allow nothing else."""
    if owner is not HistoryBuffer or name not in _STATISTICS:
        raise pickle.UnpicklingError(f'Unsupported attribute {name!r}')
    return getattr(HistoryBuffer, name)


_DTYPES = {type(np.dtype(t)) for t in (np.float64, np.float32, np.int64, np.int32, np.uint8, np.bool_)}
SAFE_GLOBALS = [HistoryBuffer, (_statistic, 'builtins.getattr'), np.ndarray, np.dtype, *_DTYPES]
for _module in ('numpy._core.multiarray', 'numpy.core.multiarray'):  # names in NumPy 2 and 1
    SAFE_GLOBALS += [(_reconstruct, f'{_module}._reconstruct'), (scalar, f'{_module}.scalar')]


def open_checkpoint(path: str | Path, map_location: object = None) -> dict:
    """Read a checkpoint with ``weights_only=True`` and no fallback, so that a hostile file cannot run code.

    Tensors, plain containers, mmengine's log history and NumPy arrays are accepted; mmengine's runner stores the latter two
    for resuming.

    Raises:
        IgniteError: the file is missing, truncated, not a checkpoint or contains other objects, or weights are not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise IgniteError(f'{path} is not a file; a checkpoint (.pth) was expected: check the path.')
    try:
        known = torch.serialization.get_safe_globals()  # leaving the context must not remove these
        with torch.serialization.safe_globals([g for g in SAFE_GLOBALS if g not in known]):
            checkpoint = torch.load(path, map_location=map_location or 'cpu', weights_only=True)
    except pickle.UnpicklingError as error:
        foreign = 'unsupported' in str(error).lower()
        reason = 'contains objects other than weights' if foreign else 'is not a PyTorch checkpoint'
        raise IgniteError(
            f'{path} {reason} and was not opened; a checkpoint written by tools/train.py or mmseg was '
            'expected: check where the file comes from.'
        ) from error
    except Exception as error:  # a damaged file may raise anything: struct.error, EOFError, KeyError, ...
        reason = (str(error) or type(error).__name__).splitlines()[0][:120]
        raise IgniteError(
            f'{path} cannot be read as a checkpoint ({reason}): it may be truncated; use another one.'
        ) from error
    if not isinstance(checkpoint, dict):
        raise IgniteError(
            f'{path} contains a {type(checkpoint).__name__}; a dictionary with a state_dict was expected.'
        )
    _check_finite(checkpoint.get('state_dict', checkpoint), path)
    return checkpoint


def _check_finite(weights: object, path: Path) -> None:
    tensors = weights.items() if isinstance(weights, dict) else ()
    wrong = [k for k, v in tensors if isinstance(v, torch.Tensor) and v.is_floating_point() and not v.isfinite().all()]
    if wrong:
        raise IgniteError(
            f'{path} has weights that are NaN or infinite ({len(wrong)}, e.g. {wrong[0]}), so its training diverged: use an '
            'earlier checkpoint.'
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
    checkpoint = open_checkpoint(local_file(filename), map_location)
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
    weights = checkpoint.get('state_dict', checkpoint)
    weights = {k.removeprefix('module.'): v for k, v in weights.items()}
    own = {k: v for k, v in model.state_dict().items() if skip_prefix is None or not k.startswith(skip_prefix)}
    wrong = [
        k for k in own.keys() | weights.keys() if k not in own or k not in weights or own[k].shape != weights[k].shape
    ]
    if wrong:
        raise IgniteError(
            f'{path} is a checkpoint of another model: {len(wrong)} of {len(own)} weights differ in name '
            f'or shape, e.g. {sorted(wrong)[0]}: use the config it was trained with.'
        )
    model.load_state_dict(weights, strict=skip_prefix is None)
    return checkpoint.get('meta', {}) if 'state_dict' in checkpoint else {}
