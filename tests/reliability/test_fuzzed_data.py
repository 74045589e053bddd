"""Randomly damaged data: each input is read as before, or refused with one sentence; never another exception."""

import pytest
from fuzz_cases import Sources, try_quickly
from fuzz_data import KINDS


@pytest.fixture(scope='module')
def sources(release, prepared, tmp_path_factory):
    return Sources(tmp_path_factory.mktemp('sources'), release, prepared)


@pytest.mark.parametrize('name', KINDS)
def test_damaged_data_is_read_or_refused(sources, tmp_path, name):
    try_quickly(name, KINDS[name], sources, tmp_path)


def test_there_are_enough_kinds():
    assert len(KINDS) >= 18 and sum(kind.quick for kind in KINDS.values()) >= 500
