"""The states of a process's random number generators, as tensors and numbers."""

import random

import numpy as np
import torch
from mmengine.device import get_device
from mmengine.dist import all_gather_object

from ...errors import IgniteError

_NUMPY_WORDS = 624


def random_state() -> dict:
    """Return the states of PyTorch's, NumPy's and Python's global generators, and of the device if it has one."""
    _, words, position, has_gauss, gauss = np.random.get_state()
    version, internal, next_gauss = random.getstate()
    state = dict(
        torch=torch.get_rng_state(),
        numpy=dict(words=torch.from_numpy(words.astype(np.int64)), position=position, has_gauss=has_gauss, gauss=gauss),
        python=dict(version=version, internal=torch.tensor(internal, dtype=torch.int64), next_gauss=next_gauss),
    )
    if (module := _device_module()) is not None:
        state['device'] = module.get_rng_state()
    return state


def set_random_state(state: object) -> None:
    """Set the generators to what :func:`random_state` returned.

    Raises:
        IgniteError: the state is not valid.
    """
    try:
        numpy, python = state['numpy'], state['python']
        if not 0 <= numpy['position'] <= _NUMPY_WORDS or numpy['words'].shape != (_NUMPY_WORDS,):
            raise ValueError('wrong state of NumPy')
        words = numpy['words'].numpy().astype(np.uint32)
        internal = (python['version'], tuple(python['internal'].tolist()), python['next_gauss'])
        random.setstate(internal)
        np.random.set_state(('MT19937', words, numpy['position'], int(numpy['has_gauss']), float(numpy['gauss'])))
        torch.set_rng_state(state['torch'])
        if 'device' in state and (module := _device_module()) is not None:
            module.set_rng_state(state['device'])
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError, IndexError) as error:
        raise IgniteError(
            f'the random state in the checkpoint is not valid ({str(error)[:100]}): use an earlier checkpoint.'
        ) from error


def gather_random_states() -> list[dict]:
    """Return the states of all processes in order of their ranks; every process must call this."""
    return all_gather_object(random_state())


def _device_module() -> object:
    """Return the torch module of the accelerator, e.g. torch.cuda, or None on a CPU."""
    kind = get_device()
    return None if kind == 'cpu' else getattr(torch, kind, None)
