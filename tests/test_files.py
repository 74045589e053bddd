import pytest

from mmseg_ignite.errors import IgniteError
from mmseg_ignite.files import atomic_directory, atomic_file


def test_failed_write_leaves_the_old_file_and_no_partial_one(tmp_path):
    path = tmp_path / 'a.txt'
    path.write_text('old')
    with pytest.raises(RuntimeError), atomic_file(path) as partial:
        partial.write_text('half')
        raise RuntimeError
    assert path.read_text() == 'old' and list(tmp_path.iterdir()) == [path]


def test_failed_folder_leaves_the_old_one(tmp_path):
    with atomic_directory(tmp_path / 'd', 'index') as partial:
        (partial / 'index').write_text('1')
    with pytest.raises(RuntimeError), atomic_directory(tmp_path / 'd', 'index') as partial:
        (partial / 'index').write_text('2')
        raise RuntimeError
    assert (tmp_path / 'd' / 'index').read_text() == '1'
    with atomic_directory(tmp_path / 'd', 'index') as partial:
        (partial / 'index').write_text('3')
    assert (tmp_path / 'd' / 'index').read_text() == '3'
    assert [p.name for p in tmp_path.iterdir()] == ['d']


def test_a_folder_of_other_files_is_never_replaced(tmp_path):
    (tmp_path / 'thesis.docx').write_text('precious')
    with pytest.raises(IgniteError, match='other files'), atomic_directory(tmp_path, 'index'):
        pass
    assert (tmp_path / 'thesis.docx').read_text() == 'precious'
