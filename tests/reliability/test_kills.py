"""Trainings that are killed by SIGKILL, at random moments and between file operations, lose nothing."""

import os
import re
import sys

import pytest
from conftest import tool
from forks import forked


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='the processes to kill are forked')
def test_killed_trainings_lose_nothing(tmp_path):
    options = ('--random', 10, '--aimed', 10, '--per-run', 10)
    status = forked(lambda: sys.exit(tool('reliability', *options, folder='benchmarks')), tmp_path / 'output.txt', 900)
    output = (tmp_path / 'output.txt').read_text()
    assert status == 0, output[-3000:]
    for kind in ('random', 'aimed'):
        assert re.search(rf'^{kind}: 10 kills of \d+ runs, 0 losses$', output, re.MULTILINE), output
