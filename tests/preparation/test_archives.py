"""Only safe H&E PNGs are unpacked, atomically, and a hostile archive writes nothing."""

import os
import stat
import struct
import zipfile
import zlib

import numpy as np
import pytest

from mmseg_ignite.errors import IgniteError
from mmseg_ignite.preparation.archives import extract_he_members, he_members

LIMIT = 10**6


def fresh(size=3000):
    return np.random.default_rng().bytes(size)


def make_zip(path, members, compression=zipfile.ZIP_DEFLATED):
    """Write (name or ZipInfo, bytes) pairs; hostile names are not changed."""
    with zipfile.ZipFile(path, 'w', compression) as archive:
        for name, content in members:
            if isinstance(name, str):
                info = zipfile.ZipInfo('placeholder')
                info.filename = name
                info.compress_type = compression
                name = info
            archive.writestr(name, content)
    return path


def entry(name, mode=0o100644, dos=0):
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16 | dos
    return info


def tree(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob('*') if p.is_file()}


def patch_central(path, name, **fields):
    """Overwrite fields of a member's central directory entry; offsets from the ZIP specification, section 4.3.12."""
    offsets = {'flags': (8, '<H'), 'method': (10, '<H'), 'crc': (16, '<L'), 'size': (24, '<L'), 'header': (42, '<L')}
    data = bytearray(path.read_bytes())
    at = data.rindex(name.encode()) - 46
    assert data[at : at + 4] == b'PK\x01\x02'
    for field, value in fields.items():
        offset, form = offsets[field]
        struct.pack_into(form, data, at + offset, value)
    path.write_bytes(data)


@pytest.mark.parametrize('prefix', ['', 'images/', 'release/v1/images/', './images/'])
@pytest.mark.parametrize('compression', [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_he_pngs_are_unpacked_and_nothing_else(tmp_path, prefix, compression):
    wanted = {f'patient{n}_he_roi1{tail}.png': fresh() for n in range(3) for tail in ('', '_with_context')}
    others = ['images/pdl1/a.png', '__MACOSX/images/he/._b.png', '__MACOSX/he/b.png', 'images/he/.DS_Store', 'he/']
    others += ['figures/c.png', 'images/he/read.txt', 'images/he/deeper/d.png', 'images/the/e.png', 'images/he/._f.png']
    members = [(f'{prefix}he/{name}', content) for name, content in wanted.items()]
    archive = make_zip(tmp_path / 'a.zip', [(name, b'other') for name in others] + members, compression)
    steps = []
    assert extract_he_members(archive, tmp_path / 'out', 'images', LIMIT, steps.append) == 6
    assert tree(tmp_path / 'out') == {f'images/he/{name}': content for name, content in wanted.items()}
    assert sum(steps) == sum(map(len, wanted.values()))


HOSTILE = {
    'parent': ('../he/x.png', 'unsafe path'),
    'parent inside': ('images/../../he/x.png', 'unsafe path'),
    'parent by backslash': ('images/he\\..\\he/x.png', 'unsafe path'),
    'absolute': ('/elsewhere/he/x.png', 'unsafe path'),
    'two slashes': ('//server/he/x.png', 'unsafe path'),
    'backslash': ('images\\he\\x.png', 'unsafe path'),
    'backslash root': ('\\he\\x.png', 'unsafe path'),
    'drive': ('C:/he/x.png', 'unsafe path'),
    'drive of the name': ('he/C:x.png', 'not have a plain file name'),
    'NUL hides the end': ('he/x.png\0.txt', 'unsafe path'),
    'NUL hides the start': ('he/x.txt\0/he/y.png', 'unsafe path'),
    'space': ('he/x y.png', 'not have a plain file name'),
    'newline': ('he/x\n.png', 'not have a plain file name'),
    'option': ('he/-x.png', 'not have a plain file name'),
    'other script': ('he/\u0445.png', 'not have a plain file name'),
    'long': (f'he/{"x" * 300}.png', 'not have a plain file name'),
    'symlink': (entry('he/x.png', stat.S_IFLNK | 0o777), 'link or not a regular'),
    'device': (entry('he/x.png', stat.S_IFCHR | 0o666), 'link or not a regular'),
    'pipe': (entry('he/x.png', stat.S_IFIFO | 0o666), 'link or not a regular'),
    'folder': (entry('he/x.png', stat.S_IFDIR | 0o755), 'link or not a regular'),
    'DOS folder': (entry('he/x.png', 0, 0x10), 'link or not a regular'),
    'twice': ('other/he/good.png', 'same file name'),
    'twice but for case': ('he/GOOD.png', 'same file name'),
}


@pytest.mark.parametrize('kind', HOSTILE)
def test_a_hostile_member_leaves_nothing_behind(tmp_path, kind):
    name, words = HOSTILE[kind]
    archive = make_zip(tmp_path / 'a.zip', [('he/good.png', fresh()), (name, b'/etc/passwd')])
    with pytest.raises(IgniteError, match=words) as caught:
        extract_he_members(archive, tmp_path / 'out', 'images', LIMIT, lambda n: None)
    assert str(archive) in str(caught.value)
    assert list(tree(tmp_path)) == ['a.zip']


@pytest.mark.parametrize(
    ('fields', 'words'), [({'flags': 1}, 'encrypted'), ({'method': 9}, 'method 9'), ({'method': 14}, 'method 14')]
)
def test_unsupported_members_are_refused_before_anything_is_written(tmp_path, fields, words):
    archive = make_zip(tmp_path / 'a.zip', [('he/a.png', fresh()), ('he/b.png', fresh())])
    patch_central(archive, 'he/b.png', **fields)
    with pytest.raises(IgniteError, match=words):
        extract_he_members(archive, tmp_path / 'out', 'images', LIMIT, lambda n: None)
    assert not (tmp_path / 'out').exists()


def test_total_over_the_cap_is_refused_and_the_cap_itself_is_not(tmp_path):
    archive = make_zip(
        tmp_path / 'a.zip', [('he/a.png', fresh(600)), ('he/b.png', fresh(400)), ('pdl1/c.png', fresh())]
    )
    with pytest.raises(IgniteError, match='1,000 bytes.*999'):
        extract_he_members(archive, tmp_path / 'out', 'images', 999, lambda n: None)
    assert not (tmp_path / 'out').exists()
    assert extract_he_members(archive, tmp_path / 'out', 'images', 1000, lambda n: None) == 2


def test_compression_bomb_is_refused(tmp_path):
    archive = make_zip(tmp_path / 'a.zip', [('he/a.png', bytes(30 * LIMIT))])
    assert archive.stat().st_size < LIMIT / 10
    with pytest.raises(IgniteError, match='1 to 1,000,000'):
        he_members(archive, LIMIT)


@pytest.mark.parametrize('checksum', ['of all', 'of the declared bytes'])
def test_no_more_bytes_than_declared_are_written(tmp_path, checksum):
    """A compression bomb declares a small size, with the CRC-32 of its content or of the declared bytes."""
    content = bytes(30 * LIMIT)
    archive = make_zip(tmp_path / 'a.zip', [('he/a.png', content)])
    patch_central(archive, 'he/a.png', size=10)
    if checksum == 'of all':
        with pytest.raises(IgniteError, match='damaged'):
            extract_he_members(archive, tmp_path / 'out', 'images', LIMIT, lambda n: None)
        assert tree(tmp_path / 'out') == {}
    else:
        patch_central(archive, 'he/a.png', crc=zlib.crc32(bytes(10)))
        extract_he_members(archive, tmp_path / 'out', 'images', LIMIT, lambda n: None)
        assert tree(tmp_path / 'out') == {'images/he/a.png': bytes(10)}


def test_reading_stops_after_the_declared_bytes(tmp_path, monkeypatch):
    """The check does not rely on zipfile."""
    archive = make_zip(tmp_path / 'a.zip', [('he/a.png', fresh(3000))])
    monkeypatch.setattr(zipfile.ZipExtFile, 'read', lambda self, n: bytes(2000))
    steps = []
    with pytest.raises(IgniteError, match='declares 3,000 bytes'):
        extract_he_members(archive, tmp_path / 'out', 'images', LIMIT, steps.append)
    assert (sum(steps), tree(tmp_path / 'out')) == (2000, {})


def test_a_member_shorter_than_declared_is_damaged(tmp_path):
    archive = make_zip(tmp_path / 'a.zip', [('he/a.png', fresh(3000))])
    patch_central(archive, 'he/a.png', size=4000)
    with pytest.raises(IgniteError, match='damaged.*4,000'):
        extract_he_members(archive, tmp_path / 'out', 'images', LIMIT, lambda n: None)
    assert tree(tmp_path / 'out') == {}


BROKEN = {
    'absent': (lambda path: path.unlink(), 'complete zip'),
    'empty': (lambda path: path.write_bytes(b''), 'complete zip'),
    'no zip': (lambda path: path.write_text('<html>Sign in</html>'), 'complete zip'),
    'truncated': (lambda path: path.write_bytes(path.read_bytes()[:-60]), 'complete zip'),
    'start lost': (lambda path: path.write_bytes(path.read_bytes()[500:]), 'a.zip'),
    'bad CRC': (lambda path: patch_central(path, 'he/b.png', crc=1), 'damaged'),
    'header elsewhere': (lambda path: patch_central(path, 'he/b.png', header=2**31), 'damaged'),
    'no H&E member': (lambda path: make_zip(path, [('pdl1/a.png', b'x')]), 'has no member he/NAME.png'),
    'no member': (lambda path: make_zip(path, []), 'has no member he/NAME.png'),
}


@pytest.mark.parametrize('kind', BROKEN)
def test_a_broken_archive_is_refused(tmp_path, kind):
    archive = make_zip(tmp_path / 'a.zip', [('he/a.png', fresh()), ('he/b.png', fresh())])
    damage, words = BROKEN[kind]
    damage(archive)
    with pytest.raises(IgniteError, match=words):
        extract_he_members(archive, tmp_path / 'out', 'images', LIMIT, lambda n: None)
    assert not (tmp_path / 'out' / 'images' / 'he' / 'b.png').exists()


def test_any_damaged_byte_is_refused_or_harmless(tmp_path):
    """Altering any byte raises no other exception and writes no wrong PNG."""
    rng = np.random.default_rng()
    source = {f'he/{name}.png': bytes(300) + fresh(200) for name in 'ab'}
    archive = make_zip(tmp_path / 'a.zip', source.items())
    whole = np.frombuffer(archive.read_bytes(), np.uint8)
    refused = 0
    for number in range(300):
        damaged = whole.copy()
        damaged[rng.integers(len(whole))] ^= rng.integers(1, 256, dtype=np.uint8)
        archive.write_bytes(damaged.tobytes())
        out = tmp_path / str(number)
        try:
            extract_he_members(archive, out, 'images', LIMIT, lambda n: None)
        except IgniteError:
            refused += 1
        found = tree(out) if out.exists() else {}
        assert {name: content for name, content in found.items() if content not in source.values()} == {}
    assert refused > 100


@pytest.mark.parametrize('link', ['images', 'images/he'])
def test_nothing_is_written_through_a_symlinked_folder(tmp_path, link):
    elsewhere = tmp_path / 'elsewhere'
    (elsewhere / 'he').mkdir(parents=True)
    path = tmp_path / 'out' / link
    path.parent.mkdir(parents=True)
    path.symlink_to(elsewhere)
    archive = make_zip(tmp_path / 'a.zip', [('he/a.png', fresh())])
    with pytest.raises(IgniteError, match='symlink'):
        extract_he_members(archive, tmp_path / 'out', 'images', LIMIT, lambda n: None)
    assert tree(elsewhere) == {}


def test_a_file_instead_of_the_folder_is_refused(tmp_path):
    (tmp_path / 'images').write_text('mine')
    archive = make_zip(tmp_path / 'a.zip', [('he/a.png', fresh())])
    with pytest.raises(IgniteError, match='real folder'):
        extract_he_members(archive, tmp_path, 'images', LIMIT, lambda n: None)
    assert (tmp_path / 'images').read_text() == 'mine'


@pytest.mark.parametrize('same', [True, False])
def test_a_symlink_instead_of_a_png_is_replaced_not_followed(tmp_path, same):
    content, target, mine = fresh(), tmp_path / 'out' / 'images' / 'he' / 'a.png', tmp_path / 'mine'
    target.parent.mkdir(parents=True)
    before = content if same else b'mine'
    mine.write_bytes(before)
    target.symlink_to(mine)
    extract_he_members(
        make_zip(tmp_path / 'a.zip', [('he/a.png', content)]), tmp_path / 'out', 'images', LIMIT, lambda n: None
    )
    assert not target.is_symlink() and target.read_bytes() == content
    assert mine.read_bytes() == before


def test_an_interrupted_unpacking_is_continued(tmp_path):
    source = {f'he/{name}.png': fresh() for name in 'abc'}
    archive = make_zip(tmp_path / 'a.zip', source.items())
    seen = []

    def interrupt(n):
        seen.append(n)
        if len(seen) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract_he_members(archive, tmp_path / 'out', 'annotations', LIMIT, interrupt)
    he = tmp_path / 'out' / 'annotations' / 'he'
    assert tree(he) == {'a.png': source['he/a.png']}  # neither the interrupted b.png nor a temporary file
    os.utime(he / 'a.png', ns=(1, 1))
    steps = []
    assert extract_he_members(archive, tmp_path / 'out', 'annotations', LIMIT, steps.append) == 3
    assert {f'he/{name}': content for name, content in tree(he).items()} == source
    assert (he / 'a.png').stat().st_mtime_ns == 1
    assert sum(steps) == 9000


@pytest.mark.parametrize('other', [b'', b'short', None])
def test_a_png_with_other_content_is_replaced(tmp_path, other):
    content = fresh()
    archive = make_zip(tmp_path / 'a.zip', [('he/a.png', content)])
    path = tmp_path / 'images' / 'he' / 'a.png'
    path.parent.mkdir(parents=True)
    path.write_bytes(fresh() if other is None else other)
    extract_he_members(archive, tmp_path, 'images', LIMIT, lambda n: None)
    assert path.read_bytes() == content
