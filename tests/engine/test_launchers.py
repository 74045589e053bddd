"""The rank of a process before the process group exists, by launcher."""

import os

import pytest
import torch

from mmseg_ignite.apis import load_config
from mmseg_ignite.engine.distributed import is_main_process
from mmseg_ignite.engine.launchers import first_host, use_launcher
from mmseg_ignite.errors import IgniteError

SLURM = dict(
    SLURM_PROCID='5', SLURM_NTASKS='8', SLURM_LOCALID='1', SLURM_NODELIST='gpu[03-05],a1', SLURM_JOB_ID='31007'
)
OPEN_MPI = dict(
    OMPI_COMM_WORLD_RANK='3', OMPI_COMM_WORLD_SIZE='4', OMPI_COMM_WORLD_LOCAL_RANK='3', OMPI_COMM_WORLD_LOCAL_SIZE='4'
)
INTEL_MPI = dict(PMI_RANK='2', PMI_SIZE='4', MPI_LOCALRANKID='0', MPI_LOCALNRANKS='2')
MVAPICH = {name.replace('OMPI_', 'MV2_'): value for name, value in OPEN_MPI.items()}
TORCHRUN = dict(RANK='1', WORLD_SIZE='2', LOCAL_RANK='1', MASTER_ADDR='h', MASTER_PORT='29501')


@pytest.fixture
def environment(monkeypatch):
    """Set the variables of a launcher and no others; afterwards this process is a single one again."""

    def put(**variables):
        clean = {
            name: os.environ[name] for name in os.environ if not name.startswith(PREFIXES) and name not in TORCHRUN
        }
        monkeypatch.setattr(os, 'environ', {**clean, **variables})

    yield put
    use_launcher('none')


PREFIXES = ('SLURM_', 'OMPI_', 'PMI_', 'MPI_', 'MV2_')


@pytest.mark.parametrize(
    ('launcher', 'variables', 'expected'),
    [
        ('pytorch', TORCHRUN, TORCHRUN),
        ('slurm', SLURM, dict(RANK='5', WORLD_SIZE='8', LOCAL_RANK='1', MASTER_ADDR='gpu03', MASTER_PORT='16007')),
        ('slurm', SLURM | dict(SLURM_NNODES='1', RANK='0'), dict(RANK='5', MASTER_ADDR='127.0.0.1')),
        ('slurm', SLURM | dict(MASTER_ADDR='x', MASTER_PORT='1'), dict(MASTER_ADDR='x', MASTER_PORT='1')),
        ('mpi', OPEN_MPI, dict(RANK='3', WORLD_SIZE='4', LOCAL_RANK='3', MASTER_ADDR='127.0.0.1', MASTER_PORT='29500')),
        ('mpi', INTEL_MPI | dict(MASTER_ADDR='n1'), dict(RANK='2', WORLD_SIZE='4', LOCAL_RANK='0', MASTER_ADDR='n1')),
        ('mpi', MVAPICH, dict(RANK='3', WORLD_SIZE='4', LOCAL_RANK='3')),
    ],
)
def test_variables_of_each_launcher_become_those_of_torchrun(environment, monkeypatch, launcher, variables, expected):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 0)
    environment(**variables)
    use_launcher(launcher)
    assert {name: os.environ[name] for name in expected} == expected
    assert not is_main_process()
    use_launcher(launcher)  # again
    assert {name: os.environ[name] for name in expected} == expected


def test_a_process_that_sees_one_gpu_uses_it(environment, monkeypatch):
    """As with srun --gpus-per-task=1."""
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 1)
    environment(**OPEN_MPI)
    use_launcher('mpi')
    assert os.environ['LOCAL_RANK'] == '0'


def test_a_single_process_in_an_allocation_is_the_main_one(environment):
    environment(**SLURM, **OPEN_MPI, **TORCHRUN)
    use_launcher('none')
    assert is_main_process()
    assert os.environ['RANK'] == TORCHRUN['RANK']


def test_an_mpi_process_of_rank_0_is_the_main_one(environment):
    environment(**OPEN_MPI | dict(OMPI_COMM_WORLD_RANK='0'), SLURM_PROCID='1')
    use_launcher('mpi')
    assert is_main_process()


@pytest.mark.parametrize(
    ('launcher', 'variables', 'sentence'),
    [
        ('pytorch', {}, r'^the environment variable RANK is not set, .* launcher pytorch: start it with torchrun'),
        ('pytorch', TORCHRUN | dict(RANK='x'), r"RANK is 'x', so this process was not started"),
        ('slurm', {}, r'SLURM_PROCID is not set, .*: start it with srun'),
        ('mpi', {}, r'OMPI_COMM_WORLD_RANK is not set, .*: start it with mpirun'),
        ('mpi', INTEL_MPI, r'^MASTER_ADDR is not set, .*MPI_LOCALNRANKS is 2 of 4 processes'),
        ('Slurm', {}, r"^the launcher is 'Slurm'; none, pytorch, slurm or mpi was expected"),
    ],
)
def test_a_wrong_launcher_is_refused(environment, launcher, variables, sentence):
    environment(**variables)
    with pytest.raises(IgniteError, match=sentence):
        load_config('config.py', launcher=launcher)


@pytest.mark.parametrize(
    ('nodes', 'host'),
    [('n1', 'n1'), ('n1,n2', 'n1'), ('gpu[03-05,9],a', 'gpu03'), ('r[1-2]n[3,4]', 'r1n3'), ('a[7]', 'a7'), ('', '')],
)
def test_first_host(nodes, host):
    assert first_host(nodes) == host
