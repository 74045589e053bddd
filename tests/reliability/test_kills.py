"""Trainings that are killed by SIGKILL, at random moments and between file operations, lose nothing."""

import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='the processes to kill are forked')
def test_killed_trainings_lose_nothing():
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': '', 'PYTHONPATH': str(ROOT)}
    done = subprocess.run(
        [sys.executable, ROOT / 'benchmarks' / 'reliability.py', '--random', '10', '--aimed', '10', '--per-run', '10'],
        capture_output=True, text=True, env=environment, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    for kind in ('random', 'aimed'):
        assert re.search(rf'^{kind}: 10 kills of \d+ runs, 0 losses$', done.stdout, re.MULTILINE), done.stdout
