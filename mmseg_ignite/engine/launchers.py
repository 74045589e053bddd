"""Which process of a run this is, as torchrun, Slurm or MPI say it before the processes know each other.

Slurm's and MPI's environment variables are translated into those of torchrun, so that a run starts in one way.
"""

import os
import re
from collections.abc import Mapping

import torch

from ..errors import IgniteError

_TORCHRUN = ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT')
_MPI = (
    ('OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_LOCAL_RANK', 'OMPI_COMM_WORLD_LOCAL_SIZE'),
    ('PMI_RANK', 'PMI_SIZE', 'MPI_LOCALRANKID', 'MPI_LOCALNRANKS'),
    ('MV2_COMM_WORLD_RANK', 'MV2_COMM_WORLD_SIZE', 'MV2_COMM_WORLD_LOCAL_RANK', 'MV2_COMM_WORLD_LOCAL_SIZE'),
)
"""Rank, processes, rank on this machine and processes on it, of Open MPI, of MPICH and Intel MPI, and of MVAPICH2."""
_START = {
    'pytorch': 'start it with torchrun --nproc_per_node=PROCESSES tools/NAME.py ... --launcher pytorch',
    'slurm': 'start it with srun, or with another --launcher',
    'mpi': 'start it with mpirun of Open MPI, MPICH, Intel MPI or MVAPICH2, or with another --launcher',
}
_rank = 0


def use_launcher(launcher: str) -> None:
    """Note by which launcher this process was started, and set the variables of torchrun for Slurm and MPI.

    The address of the first process is ``MASTER_ADDR`` if set, else this machine if the run has no other, else the first host
    of Slurm's list. The port is ``MASTER_PORT`` if set, else derived from the number of the Slurm job, or 29500 for MPI.

    Args:
        launcher: 'none', 'pytorch', 'slurm' or 'mpi'. With 'none' all variables are ignored, since those of an interactive
            Slurm allocation are also set for a single process.

    Raises:
        IgniteError: an unknown launcher, or it did not start this process.
    """
    global _rank
    if launcher == 'none':
        _rank = 0
        return
    if launcher not in _START:
        raise IgniteError(f'the launcher is {launcher!r}; none, pytorch, slurm or mpi was expected: correct it.')
    if launcher == 'slurm':
        os.environ.update(_of_slurm(os.environ))
    elif launcher == 'mpi':
        os.environ.update(_of_mpi(os.environ))
    missing = [name for name in _TORCHRUN if not os.environ.get(name)]
    if missing:
        raise _not_started(launcher, missing[0])
    _rank = _number(launcher, os.environ, 'RANK')


def launched_rank() -> int:
    """Return the rank of this process in the whole run, by the launcher of the last :func:`use_launcher`."""
    return _rank


def _of_slurm(found: Mapping[str, str]) -> dict[str, str]:
    rank, size, local = (_number('slurm', found, f'SLURM_{name}') for name in ('PROCID', 'NTASKS', 'LOCALID'))
    nodes = found.get('SLURM_STEP_NODELIST') or found.get('SLURM_NODELIST') or found.get('SLURM_JOB_NODELIST') or ''
    one = size == 1 or found.get('SLURM_STEP_NUM_NODES', found.get('SLURM_NNODES')) == '1'
    job = sum(int(found[name]) for name in ('SLURM_JOB_ID', 'SLURM_STEP_ID') if found.get(name, '').isdigit())
    address = '127.0.0.1' if one else first_host(nodes)
    return _variables(found, rank, size, local, address, 15000 + job % 15000)


def _of_mpi(found: Mapping[str, str]) -> dict[str, str]:
    names = next((names for names in _MPI if names[0] in found), _MPI[0])
    rank, size, local = (_number('mpi', found, name) for name in names[:3])
    address = '127.0.0.1' if found.get(names[3]) == found[names[1]] else ''
    if not (address or found.get('MASTER_ADDR')):
        raise IgniteError(
            f'MASTER_ADDR is not set, which a run on several machines requires ({names[3]} is {found.get(names[3])} of '
            f'{size} processes): pass the address of the machine of rank 0, e.g. mpirun -x MASTER_ADDR=node1.'
        )
    return _variables(found, rank, size, local, address, 29500)


def _variables(found: Mapping[str, str], rank: int, size: int, local: int, address: str, port: int) -> dict[str, str]:
    """Return the variables of torchrun. Where a process sees only some GPUs of its machine, their numbers start at 0."""
    values = dict(RANK=rank, WORLD_SIZE=size, LOCAL_RANK=local % (torch.cuda.device_count() or local + 1))
    values |= dict(MASTER_ADDR=found.get('MASTER_ADDR') or address, MASTER_PORT=found.get('MASTER_PORT') or port)
    return {name: str(value) for name, value in values.items()}


def _number(launcher: str, found: Mapping[str, str], name: str) -> int:
    if not found.get(name, '').isdigit():
        raise _not_started(launcher, name)
    return int(found[name])


def _not_started(launcher: str, name: str) -> IgniteError:
    value = os.environ.get(name)
    return IgniteError(
        f'the environment variable {name} is {"not set" if value is None else repr(value)}, so this process was not started '
        f'by the launcher {launcher}: {_START[launcher]}.'
    )


def first_host(nodes: str) -> str:
    """Return the first host of a list in Slurm's notation.

    Example:
        >>> first_host('gpu[03-05,9],login1')
        'gpu03'
    """
    first = re.match(r'(?:\[[^\]]*\]|[^,\[])*', nodes)[0]
    return re.sub(r'\[(\d+)[^\]]*\]', r'\1', first)
