"""Randomly damaged files of runs, folds, ensembles, groupings and checkpoints: each is read, or ends in one sentence."""

import pytest
from fuzz_cases import Sources, try_quickly
from fuzz_runs import KINDS

pytestmark = pytest.mark.usefixtures('one_thread')


@pytest.fixture(scope='module')
def sources(release, prepared, tmp_path_factory):
    return Sources(tmp_path_factory.mktemp('sources'), release, prepared)


@pytest.mark.parametrize('name', KINDS)
def test_damaged_files_work_or_end_in_one_sentence(sources, tmp_path, name):
    try_quickly(name, KINDS[name], sources, tmp_path)


def test_there_are_enough_kinds():
    assert len(KINDS) >= 16 and sum(kind.quick for kind in KINDS.values()) >= 400
