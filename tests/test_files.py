import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from mmseg_ignite.errors import IgniteError
from mmseg_ignite.files import (
    atomic_directory,
    atomic_file,
    check_outputs,
    is_ours,
    link_file,
    printable,
    result_file,
    visible_files,
    write_json,
    write_result,
    writing,
)
from mmseg_ignite.images.png import check_png


def test_a_failed_write_keeps_the_old_file_and_leaves_no_partial_one(tmp_path):
    path = tmp_path / 'a.txt'
    path.write_text('old')
    with pytest.raises(RuntimeError), atomic_file(path) as partial:
        partial.write_text('half')
        raise RuntimeError
    assert path.read_text() == 'old' and list(tmp_path.iterdir()) == [path]


def test_a_failed_folder_keeps_the_old_one(tmp_path):
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


def test_a_folder_of_foreign_files_is_never_replaced(tmp_path):
    (tmp_path / 'thesis.docx').write_text('precious')
    with pytest.raises(IgniteError, match='other files'), atomic_directory(tmp_path, ('index',)):
        pass
    assert (tmp_path / 'thesis.docx').read_text() == 'precious'


def test_a_folder_with_foreign_files_among_ours_is_never_replaced(tmp_path):
    """Not even if it has our index."""
    out = tmp_path / 'd'
    with atomic_directory(out, ('index', 'arrays')) as partial:
        (partial / 'index').write_text('1')
    (out / 'notes.txt').write_text('precious')
    with pytest.raises(IgniteError, match='notes.txt'), atomic_directory(out, ('index', 'arrays')):
        pass
    assert (out / 'notes.txt').read_text() == 'precious' and (out / 'index').read_text() == '1'


@pytest.mark.parametrize('state', ['dangling', 'empty', 'full'])
def test_a_link_to_a_folder_is_followed(tmp_path, state):
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


def test_a_failed_swap_restores_the_old_folder(tmp_path, monkeypatch):
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


def test_new_files_and_folders_respect_the_umask(tmp_path):
    before = os.umask(0o077)
    try:
        with atomic_directory(tmp_path / 'd', ('index',)) as partial, atomic_file(partial / 'index') as file:
            file.write_text('1')
    finally:
        os.umask(before)
    assert (tmp_path / 'd').stat().st_mode & 0o777 == 0o700
    assert (tmp_path / 'd' / 'index').stat().st_mode & 0o777 == 0o600


def test_a_terminated_tool_leaves_nothing_behind(tmp_path):
    """A scheduler sends SIGTERM while a folder is being written."""
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


def test_files_are_linked_or_copied(tmp_path, monkeypatch):
    (tmp_path / 'a').write_text('new')
    (tmp_path / 'b').write_text('old')
    for _ in range(2):  # the second time it is already linked
        link_file(tmp_path / 'a', tmp_path / 'b')
        assert (tmp_path / 'b').samefile(tmp_path / 'a') and len(list(tmp_path.iterdir())) == 2

    def refuse(*paths):
        raise OSError('no links here')

    monkeypatch.setattr(os, 'link', refuse)
    link_file(tmp_path / 'a', tmp_path / 'c')
    assert (tmp_path / 'c').read_text() == 'new' and not (tmp_path / 'c').samefile(tmp_path / 'a')


CONTENTS = {
    'a.png': lambda path: Image.new('RGB', (9, 8)).save(path),
    'a.html': lambda path: path.write_text('<!DOCTYPE html><p>a</p>\n'),
    'a.svg': lambda path: path.write_text('<svg/>'),
    'a.pdf': lambda path: path.write_bytes(b'%PDF-1.4\n%%EOF\n'),
    'a.tex': lambda path: path.write_text('a & b'),
}


@pytest.mark.parametrize('name', CONTENTS)
def test_a_result_is_ours_until_it_is_changed(tmp_path, name):
    path = tmp_path / name
    CONTENTS[name](path)
    assert not is_ours(path)
    with pytest.raises(IgniteError, match='did not write'), result_file(path) as partial:
        partial.write_text('new')
    before = path.read_bytes()
    path.unlink()
    for _ in range(2):  # the second time it replaces the first
        with result_file(path) as partial:
            partial.write_bytes(before)
    assert is_ours(path) and list(tmp_path.iterdir()) == [path]
    moved = path.rename(tmp_path / f'b{path.suffix}')
    assert is_ours(moved)
    content = bytearray(moved.read_bytes())
    content[int(np.random.default_rng().integers(len(content)))] ^= 1
    moved.write_bytes(content)
    assert not is_ours(moved)
    moved.write_bytes(b'')
    assert not is_ours(moved)


def test_signed_pngs_are_pngs(tmp_path):
    image = np.random.default_rng().integers(0, 256, (30, 20), np.uint8)
    with result_file(tmp_path / 'a.png') as partial:
        Image.fromarray(image).save(partial)
    check_png((tmp_path / 'a.png').read_bytes())
    np.testing.assert_array_equal(np.array(Image.open(tmp_path / 'a.png')), image)
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / 'a.png'), cv2.IMREAD_UNCHANGED), image)
    assert 'mmseg_ignite' in Image.open(tmp_path / 'a.png').text['Software']
    Image.open(tmp_path / 'a.png').save(tmp_path / 'a.png')  # like an editor
    assert not is_ours(tmp_path / 'a.png')


def test_json_results_are_replaced_and_foreign_json_is_kept(tmp_path):
    path = tmp_path / 'c.json'
    for _ in range(2):
        write_result(path, dict(a=1))
    assert json.loads(path.read_text())['a'] == 1
    for content in ('{"a": 1}', '[1]', '{', '"mmseg_ignite"'):
        path.write_text(content)
        with pytest.raises(IgniteError, match='c.json'):
            write_result(path, dict(a=2))
        assert path.read_text() == content


def test_write_errors_name_the_file_and_the_reason(tmp_path):
    (tmp_path / 'a').touch()
    with pytest.raises(IgniteError, match='b.txt cannot be written .Not a directory.: choose another folder'):
        with writing(tmp_path / 'a' / 'b.txt'), atomic_file(tmp_path / 'a' / 'c' / 'b.txt'):
            pass


def test_json_keeps_file_names_of_any_bytes(tmp_path):
    name = os.fsdecode(b'caf\xe9\xff.png')
    write_json(tmp_path / 'a.json', {'file': name, 'µm': 'é'})
    assert json.loads((tmp_path / 'a.json').read_text(encoding='utf-8')) == {'file': name, 'µm': 'é'}
    assert printable(name) == 'caf\\xe9\\xff.png' and printable('é.png') == 'é.png'


@pytest.mark.parametrize('link', ['itself', 'symbolic', 'hard', 'folder'])
def test_an_input_is_never_an_output(tmp_path, link):
    source, out = tmp_path / 'in' / 'a.png', tmp_path / 'out'
    source.parent.mkdir()
    source.write_bytes(b'mask')
    if link == 'folder':
        out.symlink_to(source.parent)
    else:
        out.mkdir()
    path = source if link == 'itself' else out / 'a.png'
    if link == 'symbolic':
        path.symlink_to(source)
    elif link == 'hard':
        path.hardlink_to(source)
    with pytest.raises(IgniteError, match='input of this run'):
        check_outputs([out / 'new.png', path], [source])
    check_outputs([out / 'new.png'], [source, tmp_path / 'nothing'])


def test_foreign_files_folders_and_blocking_files_are_refused(tmp_path):
    (tmp_path / 'a.png').write_bytes(b'mask')
    (tmp_path / 'table.csv').write_text('mine')
    (tmp_path / 'b.png').mkdir()
    for path, word in (('a.png', 'did not write'), ('table.csv', 'did not write'), ('b.png', 'is a folder'),
                       ('a.png/c.png', 'because .*a.png is a file')):  # fmt: skip
        with pytest.raises(IgniteError, match=word):
            check_outputs([tmp_path / 'c.png', tmp_path / path])
    assert sorted(p.name for p in tmp_path.iterdir()) == ['a.png', 'b.png', 'table.csv']


def test_tables_are_ours_inside_our_runs(tmp_path):
    table = tmp_path / 'run' / 'tables' / 'classes.csv'
    table.parent.mkdir(parents=True)
    table.write_text('a,b')
    assert not is_ours(table)
    np.savez(tmp_path / 'run' / 'confusion.npz', other=np.zeros(1))
    assert not is_ours(table) and not is_ours(tmp_path / 'run' / 'confusion.npz')
    arrays = dict.fromkeys(('names', 'matrices', 'classes', 'metadata'), np.zeros(1))
    np.savez(tmp_path / 'run' / 'confusion.npz', **arrays)
    assert is_ours(table) and is_ours(tmp_path / 'run' / 'confusion.npz')


def test_results_are_not_written_into_releases_or_prepared_data(tmp_path, release, prepared):
    for folder in (release, release / 'images' / 'he', prepared, prepared / 'new' / 'deep'):
        with pytest.raises(IgniteError, match='never modified'):
            check_outputs([folder / 'a.png'])
    (tmp_path / 'link').symlink_to(release)
    with pytest.raises(IgniteError, match='never modified'):
        check_outputs([tmp_path / 'link' / 'images' / 'a.png'])
    check_outputs([release.parent / 'out' / 'a.png', tmp_path / 'a.png'])
    check_outputs([release / 'work_dirs' / 'run' / 'a.png'])  # for users who work in the folder of the release


def test_hidden_files_are_skipped(tmp_path):
    for name in ('b.PNG', 'a.png', '._a.png', '.b.png', 'c.txt'):
        (tmp_path / name).touch()
    assert [p.name for p in visible_files(tmp_path, ('.png',))] == ['a.png', 'b.PNG']
    with pytest.raises(IgniteError, match='c.txt'):
        visible_files(tmp_path / 'c.txt', ('.png',))


def test_long_names_are_supported(tmp_path):
    path = tmp_path / f'{"n" * 250}.png'
    with result_file(path) as partial:
        Image.new('L', (3, 3)).save(partial)
    assert is_ours(path)


@pytest.mark.parametrize('size', [1, 1000, 3 << 20])
def test_a_tiff_file_is_signed_by_its_size_and_its_ends(tmp_path, size):
    path, content = tmp_path / 'a.ome.tif', os.urandom(size)
    with result_file(path) as partial:
        partial.write_bytes(content)
    signed = path.read_bytes()
    assert is_ours(path) and signed.startswith(content) and b'mmseg_ignite' in signed[size:]
    for position in {0, size // 4, size - 1, len(signed) - 3}:
        changed = bytearray(signed)
        changed[position] ^= 1
        path.write_bytes(changed)
        assert not is_ours(path)
    for changed in (content, signed[:-1], signed[1:], signed + signed[size:], signed[size:]):
        path.write_bytes(changed)
        assert not is_ours(path)
