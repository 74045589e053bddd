"""Claims on items of a shared folder."""

import json
import os
import socket
import subprocess
import sys
import threading
import time

import pytest

from mmseg_ignite.engine import claims as module
from mmseg_ignite.engine.claims import Claims, take_away
from mmseg_ignite.errors import IgniteError


def dead_pid():
    process = subprocess.Popen([sys.executable, '-c', ''])
    process.wait()
    return process.pid


def test_one_holder_at_a_time(tmp_path):
    claims = Claims(tmp_path / 'claims')
    with claims.claimed('a') as first, claims.claimed('a') as second, claims.claimed('b') as other:
        assert (first, second, other) == (True, False, True)
        assert claims.is_mine('a') and claims.holder('a') == f'process {os.getpid()} on {socket.gethostname()}'
    assert not list((tmp_path / 'claims').iterdir())
    with claims.claimed('a') as again:
        assert again


def test_claim_is_released_after_an_error(tmp_path):
    claims = Claims(tmp_path)
    with pytest.raises(KeyError), claims.claimed('a'):
        raise KeyError
    assert not claims.path('a').exists()


def test_claim_of_a_killed_process_that_nobody_waits_for_is_taken_over(tmp_path):
    """A container without an init process keeps the number of such a process for ever."""
    claims = Claims(tmp_path)
    process = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE)
    holder = dict(module.identity(), pid=process.pid, started=module._started(process.pid))
    claims.path('a').write_text(json.dumps(holder))
    with claims.claimed('a') as mine:
        assert not mine
    process.kill()
    while module._started(process.pid) is not None:
        time.sleep(0.01)
    with claims.claimed('a') as mine:
        assert mine
    process.communicate()


def test_claim_with_a_long_name_is_taken_over(tmp_path):
    claims = Claims(tmp_path)
    claims.path(name := 'a' * 240).write_text(json.dumps(dict(host=socket.gethostname(), pid=dead_pid())))
    with claims.claimed(name) as mine:
        assert mine


@pytest.mark.parametrize('content', [None, '', '{"host": 1}', '[1]'])
def test_claim_of_a_dead_process_is_taken_over(tmp_path, monkeypatch, content):
    """At once on this machine; an unreadable one, and one of another machine, after some time without a touch."""
    claims = Claims(tmp_path)
    own_machine = content is None
    content = json.dumps(dict(host=socket.gethostname(), pid=dead_pid())) if own_machine else content
    claims.path('a').write_text(content)
    with claims.claimed('a') as mine:
        assert mine is own_machine
    monkeypatch.setattr(module, 'PATIENCE', 0.0)
    with claims.claimed('a') as mine:
        assert mine


def test_claim_of_another_machine_lives_while_it_is_touched(tmp_path, monkeypatch):
    claims = Claims(tmp_path)
    claims.path('a').write_text(json.dumps(dict(host='elsewhere', pid=1)))
    monkeypatch.setattr(module, 'PATIENCE', 0.3)
    for _ in range(4):
        time.sleep(0.2)
        os.utime(claims.path('a'))
        with claims.claimed('a') as mine:
            assert not mine
    assert claims.holder('a') == 'process 1 on elsewhere'
    time.sleep(0.35)
    with claims.claimed('a') as mine:
        assert mine


def test_claim_that_was_taken_over_is_not_released(tmp_path):
    claims = Claims(tmp_path)
    with claims.claimed('a'):
        claims.path('a').write_text(json.dumps(dict(host='elsewhere', pid=1)))
        assert not claims.is_mine('a')
    assert claims.path('a').exists()


def test_a_faster_process_keeps_its_claim(tmp_path, monkeypatch):
    """Another process takes the dead claim over between the check and the removal."""
    path, faster = tmp_path / 'a.claim', dict(host='faster', pid=2)
    path.write_text(json.dumps(faster))
    answers = iter([dict(host='dead', pid=1), faster])
    monkeypatch.setattr(module, 'read_holder', lambda path: next(answers))
    take_away(path, dict(host='dead', pid=1))
    assert json.loads(path.read_text()) == faster and len(list(tmp_path.iterdir())) == 1


def test_living_process_touches_its_claim(tmp_path, monkeypatch):
    monkeypatch.setattr(module, 'BEAT', 0.02)
    claims = Claims(tmp_path)
    with claims.claimed('a'):
        before, end = claims.path('a').stat().st_mtime_ns, time.monotonic() + 5
        while claims.path('a').stat().st_mtime_ns == before and time.monotonic() < end:
            time.sleep(0.02)
        assert claims.path('a').stat().st_mtime_ns > before
    assert threading.active_count() < 20


def test_unwritable_folder_is_reported():
    with pytest.raises(IgniteError, match='cannot be written'):
        Claims('/proc/none')
