import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmseg_ignite.errors import IgniteError
from mmseg_ignite.files import atomic_directory, atomic_file, link_file


def test_failed_write_leaves_the_old_file_and_no_partial_one(tmp_path):
    path = tmp_path / 'a.txt'
    path.write_text('old')
    with pytest.raises(RuntimeError), atomic_file(path) as partial:
        partial.write_text('half')
        raise RuntimeError
    assert path.read_text() == 'old' and list(tmp_path.iterdir()) == [path]


def test_failed_folder_leaves_the_old_one(tmp_path):
    with atomic_directory(tmp_path / 'd', ('index',)) as partial:
        (partial / 'index').write_text('1')
    with pytest.raises(RuntimeError), atomic_directory(tmp_path / 'd', ('index',)) as partial:
        (partial / 'index').write_text('2')
        raise RuntimeError
    assert (tmp_path / 'd' / 'index').read_text() == '1'
    with atomic_directory(tmp_path / 'd', ('index',)) as partial:
        (partial / 'index').write_text('3')
    assert (tmp_path / 'd' / 'index').read_text() == '3'
    assert [p.name for p in tmp_path.iterdir()] == ['d']


def test_a_folder_of_other_files_is_never_replaced(tmp_path):
    (tmp_path / 'thesis.docx').write_text('precious')
    with pytest.raises(IgniteError, match='other files'), atomic_directory(tmp_path, ('index',)):
        pass
    assert (tmp_path / 'thesis.docx').read_text() == 'precious'


def test_a_folder_with_more_than_our_own_is_never_replaced(tmp_path):
    """Also where a file of our name stands among the others."""
    out = tmp_path / 'd'
    with atomic_directory(out, ('index', 'arrays')) as partial:
        (partial / 'index').write_text('1')
    (out / 'notes.txt').write_text('precious')
    with pytest.raises(IgniteError, match='notes.txt'), atomic_directory(out, ('index', 'arrays')):
        pass
    assert (out / 'notes.txt').read_text() == 'precious' and (out / 'index').read_text() == '1'


@pytest.mark.parametrize('state', ['dangling', 'empty', 'full'])
def test_a_linked_folder_is_written_where_it_points(tmp_path, state):
    target, link = tmp_path / 'disk' / 'ignite', tmp_path / 'link'
    target.parent.mkdir()
    link.symlink_to(target)
    if state != 'dangling':
        target.mkdir()
    if state == 'full':
        (target / 'index').write_text('old')
    with atomic_directory(link, ('index',)) as partial:
        (partial / 'index').write_text('new')
    assert link.is_symlink() and (target / 'index').read_text() == 'new'
    assert sorted(p.name for p in tmp_path.iterdir()) == ['disk', 'link'] and len(list(target.parent.iterdir())) == 1


def test_the_current_folder_is_not_replaced(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(IgniteError, match='current folder'), atomic_directory('.', ('index',)):
        pass


def test_a_swap_that_fails_brings_the_old_folder_back(tmp_path, monkeypatch):
    out = tmp_path / 'd'
    with atomic_directory(out, ('index',)) as partial:
        (partial / 'index').write_text('1')
    rename, calls = Path.replace, []

    def fails_second(self, target):
        calls.append(self)
        if len(calls) == 2:
            raise OSError('no')
        return rename(self, target)

    monkeypatch.setattr(Path, 'replace', fails_second)
    with pytest.raises(OSError), atomic_directory(out, ('index',)) as partial:
        (partial / 'index').write_text('2')
    assert (out / 'index').read_text() == '1' and [p.name for p in tmp_path.iterdir()] == ['d']


def test_new_files_and_folders_keep_to_the_umask(tmp_path):
    before = os.umask(0o077)
    try:
        with atomic_directory(tmp_path / 'd', ('index',)) as partial, atomic_file(partial / 'index') as file:
            file.write_text('1')
    finally:
        os.umask(before)
    assert (tmp_path / 'd').stat().st_mode & 0o777 == 0o700 and (
        tmp_path / 'd' / 'index'
    ).stat().st_mode & 0o777 == 0o600


def test_a_terminated_tool_leaves_nothing_behind(tmp_path):
    """SIGTERM, as a scheduler sends it, in the middle of writing a folder."""
    code = (
        'import os, signal, sys\n'
        'from mmseg_ignite.cli import run\n'
        'from mmseg_ignite.files import atomic_directory\n'
        'def main():\n'
        '    with atomic_directory(sys.argv[1], ("index",)) as partial:\n'
        '        (partial / "index").write_text("1")\n'
        '        os.kill(os.getpid(), signal.SIGTERM)\n'
        '        signal.pause()\n'
        'run(main)\n'
    )
    done = subprocess.run([sys.executable, '-c', code, str(tmp_path / 'd')], capture_output=True, text=True)
    assert done.returncode == 130 and 'Traceback' not in done.stderr and not list(tmp_path.iterdir())


def test_a_file_is_put_in_a_second_place_by_link_or_copy(tmp_path, monkeypatch):
    (tmp_path / 'a').write_text('new')
    (tmp_path / 'b').write_text('old')
    for _ in range(2):  # the second time it is that file already
        link_file(tmp_path / 'a', tmp_path / 'b')
        assert (tmp_path / 'b').samefile(tmp_path / 'a') and sorted(tmp_path.iterdir()) == [
            tmp_path / 'a',
            tmp_path / 'b',
        ]

    def refuse(*paths):
        raise OSError('no links here')

    monkeypatch.setattr(os, 'link', refuse)
    link_file(tmp_path / 'a', tmp_path / 'c')
    assert (tmp_path / 'c').read_text() == 'new' and not (tmp_path / 'c').samefile(tmp_path / 'a')
