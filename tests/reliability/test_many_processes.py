"""Two processes train as one with the doubled batch, and a process that dies takes the other down and leaves a reason."""

import json
import os

import pytest
import torch
from forks import forked

from mmseg_ignite.engine import open_checkpoint

pytestmark = pytest.mark.skipif(not hasattr(os, 'fork'), reason='processes are forked')


@pytest.fixture(scope='module')
def runs(prepared, tmp_path_factory):
    """Run many_processes.run_all in a process of its own; return its folder, what it found, and its output."""
    folder = tmp_path_factory.mktemp('runs')

    def work():
        from many_processes import run_all  # registers hooks and a transform, which the other tests need not see

        run_all(prepared, folder)

    status, output = forked(work, folder / 'output.txt'), (folder / 'output.txt').read_text()
    assert status == 0, output[-3000:]
    return folder, json.loads((folder / 'found.json').read_text()), output


@pytest.fixture(scope='module')
def notes(runs):
    """What each process of the training in two noted, and the single process."""
    folder, found, output = runs
    assert found['equal'] == [0, 0], output[-3000:]
    return [json.loads((folder / name).read_text()) for name in ('two/rank0.json', 'two/rank1.json', 'one/rank0.json')]


def test_weights_equal_those_of_one_process_with_the_doubled_batch(runs):
    """Two processes x batches of 1 x 2 accumulated iterations against batches of 4, to the rounding of float32 sums."""
    two, one = (open_checkpoint(runs[0] / name)['state_dict'] for name in ('two/iter_4.pth', 'one/iter_2.pth'))
    assert two.keys() == one.keys()
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=1e-6, msg=name)


def test_processes_draw_disjoint_crops_of_one_stream(notes):
    first, second, alone = ([str(crop) for batch in part['crops'] for crop in batch] for part in notes)
    assert len(first) == len(second) == 4 and not set(first) & set(second)
    for step in range(2):
        ours = first[2 * step : 2 * step + 2] + second[2 * step : 2 * step + 2]
        assert sorted(ours) == sorted(alone[4 * step : 4 * step + 4])


def test_processes_have_equal_weights_and_different_random_numbers(notes):
    """diff_rank_seed, which is set here, would give mmengine's samplers another seed than that of a single process."""
    first, second, alone = notes
    assert first['start'] == second['start'] == alone['start']
    assert first['seed'] == second['seed'] == alone['seed'] == 0
    assert first['dropout'] != second['dropout']


def test_gradients_are_exchanged_once_per_step(notes):
    for part in notes[:2]:
        assert part['reduced'] and set(part['reduced']) == {1, 3}


def test_only_rank_0_of_slurm_is_the_main_process(notes, runs):
    assert [part['main'] for part in notes] == [True, False, True]


def test_scores_of_an_odd_number_of_rois_equal_those_of_one_process(runs):
    """Without a common disk: the results go through the process group, and each process writes its own label PNGs."""
    folder, found, output = runs
    assert found['scored'] == [0, 0], output[-3000:]
    two, one = (json.loads((folder / name / 'work' / 'metrics.json').read_text()) for name in ('mpi0', 'none'))
    assert one['rois'] == 3
    for scores in (two, one):
        del scores['provenance']
    assert two == one
    pictures = {
        name: {p.name for p in (folder / name).glob('work/predictions/*.png')} for name in ('mpi0', 'mpi1', 'none')
    }
    assert pictures['mpi0'] | pictures['mpi1'] == pictures['none'] and len(pictures['none']) == 3
    assert pictures['mpi1'] and pictures['mpi0'] != pictures['none']


def messages(runs, name):
    """Return what the two processes of a training wrote, which ended within a minute of its start."""
    assert runs[1][f'{name} after'] < 60
    return [(runs[0] / f'{name}{rank}.txt').read_text() for rank in range(2)]


def test_a_killed_process_takes_the_other_down_which_says_so(runs):
    first, _ = messages(runs, 'killed')
    assert runs[1]['killed'] == [2, -9], first
    assert first.count('error: ') == 1 and 'Traceback' not in first
    assert 'error: another process of the distributed run ended without an error message' in first


def test_an_exception_in_one_process_ends_both_and_is_the_only_message(runs):
    first, second = messages(runs, 'failed')
    assert runs[1]['failed'] == [2, 1], first + second
    assert 'ValueError: the augmentation is broken' in second
    assert 'error: ' not in first and 'Traceback' not in first


def test_processes_that_mpi_did_not_start_say_so(runs):
    assert runs[1]['refused'] == [2, 2]
    assert runs[2].count('OMPI_COMM_WORLD_RANK is not set') == 2
