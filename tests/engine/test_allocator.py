"""Freed memory stays with the process: count the page faults of repeated allocations."""

import os
import subprocess
import sys

import pytest

COUNT = """
import resource, torch
if {keep}:
    from mmseg_ignite.engine.allocator import keep_freed_memory
    print(keep_freed_memory())
def touch():
    torch.ones(1 << 24)  # 64 MB
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    touch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def run(keep, **environment):
    clean = {k: v for k, v in os.environ.items() if not k.startswith(('MALLOC_', 'LD_PRELOAD', 'GLIBC_'))}
    command = [sys.executable, '-c', COUNT.format(keep=keep)]
    done = subprocess.run(command, env={**clean, **environment}, capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='needs glibc on Linux')
def test_freed_memory_is_reused():
    usual = int(run(keep=False)[-1])
    assert usual > 20 * 16  # even in huge pages
    *_, done, faults = run(keep=True)
    if done == 'False':
        pytest.skip('this system does not use glibc')
    # The heap may grow by one tensor a few times before freed memory can be reused.
    assert int(faults) < usual / 4


def test_user_settings_take_precedence():
    assert run(keep=True, MALLOC_TOP_PAD_='100000')[-2] == 'False'
