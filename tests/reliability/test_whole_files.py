"""Work dirs: files that are never half written, damaged checkpoints, disks that are full, two runs at once."""

import errno
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch
from conftest import DEMO_CONFIG, ROOT, cfg_options, tool
from forks import forked
from runs import TINY, config

from mmseg_ignite.apis import train
from mmseg_ignite.engine import DamagedCheckpoint, open_checkpoint, work_dir_lock
from mmseg_ignite.engine.checkpoints.writing import remove_partial_files, write_checkpoint
from mmseg_ignite.engine.work_dir_lock import LOCK, locked
from mmseg_ignite.engine.work_dirs import resumable_checkpoint
from mmseg_ignite.errors import IgniteError

pytestmark = pytest.mark.usefixtures('one_thread')


def content(value=1.0):
    return dict(
        meta=dict(iter=1), state_dict=dict(a=torch.full((1000,), value), b=torch.arange(5)), x=[1, 'two', None, 3.5]
    )


def test_files_are_synced_before_they_get_their_name(tmp_path, monkeypatch):
    """The folder is synced too, or the name could be lost with the power."""
    events = []
    monkeypatch.setattr(os, 'fsync', lambda handle: events.append(os.readlink(f'/proc/self/fd/{handle}')))
    monkeypatch.setattr(type(tmp_path), 'replace', lambda old, new: (events.append('rename'), os.replace(old, new)))
    write_checkpoint(content(), tmp_path / 'iter_1.pth')
    assert len(events) == 3 and os.path.basename(events[0]).startswith('.iter_1.')
    assert events[1:] == ['rename', str(tmp_path)]
    assert torch.equal(open_checkpoint(tmp_path / 'iter_1.pth')['state_dict']['a'], torch.ones(1000))


@pytest.mark.parametrize('change', range(40))
def test_flipped_bits_are_found(tmp_path, change):
    """Any bit of a checkpoint: what is read is what was written, or the file is refused."""
    path = tmp_path / 'iter_1.pth'
    write_checkpoint(content(), path)
    generator = torch.Generator().manual_seed(change)
    data = bytearray(path.read_bytes())
    where = int(torch.randint(len(data) * 8, (1,), generator=generator))
    data[where // 8] ^= 1 << where % 8
    path.write_bytes(data)
    try:
        found = open_checkpoint(path)
    except IgniteError as error:
        assert 'iter_1.pth' in str(error)
        return
    expected = content()
    assert found['x'] == expected['x'] and found['meta'] == expected['meta']
    assert all(torch.equal(found['state_dict'][key], value) for key, value in expected['state_dict'].items())


def test_checksum_covers_names_numbers_and_order(tmp_path):
    """A file whose parts are all valid zip entries but whose content was changed is refused."""
    write_checkpoint(content(), tmp_path / 'x.pth')
    for change in (
        lambda c: c['state_dict'].update(a=c['state_dict']['a'] + 1),
        lambda c: c['meta'].update(iter=2),
        lambda c: c['x'].reverse(),
        lambda c: c['state_dict'].update(c=torch.zeros(0)),
        lambda c: c['x'].__setitem__(3, 4),
    ):
        checkpoint = open_checkpoint(tmp_path / 'x.pth')
        change(checkpoint)
        torch.save(checkpoint, tmp_path / 'y.pth')
        with pytest.raises(DamagedCheckpoint, match='does not have the checksum'):
            open_checkpoint(tmp_path / 'y.pth')


def test_damaged_checkpoint_is_kept_aside_and_the_one_before_is_used(tmp_path):
    for number in (2, 4, 6):
        write_checkpoint(content(number), tmp_path / f'iter_{number}.pth')
    data = (tmp_path / 'iter_6.pth').read_bytes()
    (tmp_path / 'iter_6.pth').write_bytes(data[: len(data) // 2])
    (tmp_path / 'iter_4.pth').write_bytes(b'')
    with pytest.warns(UserWarning, match='It is kept as iter_6.pth.damaged'):
        assert resumable_checkpoint(tmp_path) == tmp_path / 'iter_2.pth'
    for pointer in ('', '/elsewhere/iter_6.pth', 'nonsense\n\0', '../../etc/passwd', 'iter_6.pth'):
        (tmp_path / 'last_checkpoint').write_text(pointer)
        assert resumable_checkpoint(tmp_path) == tmp_path / 'iter_2.pth'
    assert (tmp_path / 'iter_6.pth.damaged').read_bytes() == data[: len(data) // 2]
    (tmp_path / 'iter_2.pth').write_bytes(b'PK')
    with pytest.raises(IgniteError, match='1 were found: .*iter_2.pth.*--overwrite'):
        resumable_checkpoint(tmp_path)
    assert resumable_checkpoint(tmp_path) is None


def test_pointer_is_rebuilt(prepared, tmp_path):
    train(config(prepared, tmp_path / 'run', {'train_cfg.max_iters': 2}))
    for text in ('', '/somebody/elses/iter_9.pth'):
        (tmp_path / 'run' / 'last_checkpoint').write_text(text)
        last = 3 if text else 2
        train(config(prepared, tmp_path / 'run', {'train_cfg.max_iters': last + 1}), resume=True)
        assert (tmp_path / 'run' / 'last_checkpoint').read_text() == str(tmp_path / 'run' / f'iter_{last + 1}.pth')


def test_older_checkpoints_that_a_killed_run_left_are_removed(prepared, tmp_path):
    """Also if the resumed run has nothing left to do."""
    settings = {'train_cfg.max_iters': 4, 'default_hooks.checkpoint.max_keep_ckpts': 1}
    train(config(prepared, tmp_path / 'run', settings))
    (tmp_path / 'run' / 'iter_2.pth').write_bytes((tmp_path / 'run' / 'iter_4.pth').read_bytes())
    train(config(prepared, tmp_path / 'run', settings), resume=True)
    assert [path.name for path in (tmp_path / 'run').glob('iter_*.pth')] == ['iter_4.pth']


def test_partial_files_of_a_killed_run_are_removed(tmp_path):
    own = ('.iter_12.ab_c1.pth', '.best_mIoU_iter_3.x.pth', '.last_checkpoint.k3')
    foreign = ('.iter_x.pth', '.notes', 'iter_2.pth', '.iter_3.pth')
    for name in own + foreign:
        (tmp_path / name).touch()
    remove_partial_files(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(foreign)


@pytest.mark.parametrize('number', [errno.ENOSPC, errno.EDQUOT, errno.EROFS], ids=errno.errorcode.get)
@pytest.mark.parametrize('moment', ['write', 'sync', 'rename'])
def test_full_disk_keeps_the_last_checkpoint(tmp_path, monkeypatch, number, moment):
    """One sentence, no partial file, the older file whole."""
    path = tmp_path / 'iter_1.pth'
    write_checkpoint(content(1), path)

    def fail(*args):
        raise OSError(number, os.strerror(number))

    if moment == 'write':
        monkeypatch.setattr('mmseg_ignite.engine.checkpoints.writing._Recorder.write', _failing_write(fail))
    elif moment == 'sync':
        monkeypatch.setattr(os, 'fsync', fail)
    else:
        monkeypatch.setattr(type(path), 'replace', fail)
    with pytest.raises(IgniteError, match=f'iter_1.pth cannot be written .{os.strerror(number)}.*--resume'):
        write_checkpoint(content(2), path)
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ['iter_1.pth']
    assert open_checkpoint(path)['state_dict']['a'][0] == 1


def _failing_write(fail):
    def write(self, data):
        try:
            fail()
        except OSError as error:
            self.error = error
            raise

    return write


def test_full_disk_of_the_log_is_one_sentence_too(prepared, tmp_path, monkeypatch):
    """mmengine appends each logged number to a file."""

    def fail(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / 'scalars.json'))

    monkeypatch.setattr('mmengine.visualization.vis_backend.LocalVisBackend.add_scalars', fail)
    with pytest.raises(IgniteError, match='scalars.json cannot be written .No space left.*--resume'):
        train(config(prepared, tmp_path / 'run'))


def test_quota_ends_a_training_with_one_sentence(prepared, tmp_path):
    """A limit on file sizes that the kernel enforces, as a quota does, in the tool itself."""
    options = cfg_options(prepared, *(f'{key}={value}'.replace(', ', ',') for key, value in TINY.items()))

    def work():
        resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))
        sys.exit(tool('train', DEMO_CONFIG, '--work-dir', tmp_path / 'run', *options))

    status, output = forked(work, tmp_path / 'output.txt', 300), (tmp_path / 'output.txt').read_text()
    assert status == 2 and 'Traceback' not in output, output[-3000:]
    assert output.count('error: ') == 1 and 'iter_2.pth cannot be written (File too large)' in output
    assert not [path for path in (tmp_path / 'run').rglob('*') if path.suffix == '.pth']


def test_second_run_in_a_work_dir_is_refused(prepared, tmp_path):
    code = f"""
import sys, time
from mmseg_ignite.engine.work_dir_lock import locked
with locked({str(tmp_path)!r}):
    print('held', flush=True)
    time.sleep(60)
"""
    holder = subprocess.Popen(
        [sys.executable, '-c', code], stdout=subprocess.PIPE, text=True, env={**os.environ, 'PYTHONPATH': str(ROOT)}
    )
    try:
        assert holder.stdout.readline() == 'held\n'
        expected = f'used by another run .process {holder.pid} on {socket.gethostname()}'
        with pytest.raises(IgniteError, match=expected):
            train(config(prepared, tmp_path))
        holder.send_signal(signal.SIGSTOP)  # alive, although it does nothing
        with pytest.raises(IgniteError, match=expected), locked(tmp_path):
            pass
    finally:
        holder.kill()
        holder.wait()
    with locked(tmp_path):  # of a dead process: taken over
        assert json.loads((tmp_path / LOCK).read_text())['pid'] == os.getpid()
        with locked(tmp_path):  # a run may take its own lock again
            pass
        assert (tmp_path / LOCK).exists()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('text', ['', 'x', '[]', '{"pid": -1}', '[' * 5000, '{"host": 1, "pid": 1e999}'], ids=range(6))
def test_lock_of_an_unknown_holder_is_taken_over_after_a_while(tmp_path, monkeypatch, text):
    monkeypatch.setattr(work_dir_lock, 'PATIENCE', 0.05)
    (tmp_path / LOCK).write_text(text)
    with locked(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())['pid'] == os.getpid()


@pytest.mark.parametrize('alive', [True, False])
def test_lock_of_another_machine_is_watched(tmp_path, monkeypatch, alive):
    """Its processes cannot be seen, but a run touches its lock every few seconds."""
    monkeypatch.setattr(work_dir_lock, 'PATIENCE', 1.5)
    (tmp_path / LOCK).write_text(json.dumps(dict(host='elsewhere', pid=os.getpid())))
    if alive:
        child = os.fork()
        if not child:
            for _ in range(100):
                os.utime(tmp_path / LOCK)
                time.sleep(0.05)
            os._exit(0)
        with pytest.raises(IgniteError, match='on elsewhere'), locked(tmp_path):
            pass
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    else:
        with locked(tmp_path):
            assert json.loads((tmp_path / LOCK).read_text())['host'] == socket.gethostname()


def test_process_of_the_same_number_is_not_the_holder(tmp_path):
    """After a restart of the machine another process may have it."""
    holder = dict(host=socket.gethostname(), pid=os.getppid(), started=1)
    (tmp_path / LOCK).write_text(json.dumps(holder))
    with locked(tmp_path):
        pass


def test_run_gives_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(work_dir_lock, 'BEAT', 0.05)
    with locked(tmp_path):
        before = (tmp_path / LOCK).stat().st_mtime_ns
        end = time.monotonic() + 10
        while (tmp_path / LOCK).stat().st_mtime_ns == before and time.monotonic() < end:
            time.sleep(0.05)
        assert (tmp_path / LOCK).stat().st_mtime_ns > before


def test_new_folder_is_removed_if_the_training_cannot_start(prepared, tmp_path):
    with pytest.raises(IgniteError):
        train(config(prepared, tmp_path / 'new'), weights='no.pth')
    assert not (tmp_path / 'new').exists()
