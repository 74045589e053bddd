"""A download over a bad network ends with the right bytes or one sentence, and never requests bytes twice."""

import gzip
import hashlib
import io
import itertools
import json
import re
import shutil
import ssl
import threading
import time
import zipfile
from collections import Counter, defaultdict
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import numpy as np
import pytest
import urllib3
from conftest import tool
from rich.console import Console
from rich.progress import Progress

from mmseg_ignite.errors import IgniteError
from mmseg_ignite.preparation import archives, client, download, read_index, write_synthetic_release
from mmseg_ignite.preparation.client import TRIES
from mmseg_ignite.preparation.download import NAMES, download_release

CSV = 'data_overview.csv'
ZIP = 'images.zip'


# Behaviour of the server on one request: functions of (handler, content, first requested byte or None).


def answer(handler, content, start=None, cut=None, length=True, status=None, span=None):
    """Answer correctly, except for the given changes; ``cut`` ends the body after that many bytes."""
    body = content[start or 0 :]
    if start is not None and start >= len(content):
        return fail(416)(handler, content, start)
    handler.send_response(status or (200 if start is None else 206))
    if start is not None and status is None:
        handler.send_header('Content-Range', span or f'bytes {start}-{len(content) - 1}/{len(content)}')
    if length:
        handler.send_header('Content-Length', str(len(body)))
    handler.end_headers()
    handler.wfile.write(body[:cut])


def cut(count):
    return lambda handler, content, start: answer(handler, content, start, cut=count)


def fail(status, retry_after=None):
    def act(handler, content, start):
        handler.send_response(status)
        if retry_after is not None:
            handler.send_header('Retry-After', retry_after)
        handler.end_headers()

    return act


def whole(handler, content, start):
    answer(handler, content)


def whole_but_cut(count):
    return lambda handler, content, start: answer(handler, content, cut=count)


def other_range(handler, content, start):
    """Send the range that starts one byte later."""
    answer(handler, content, start + 1)


def no_content_range(handler, content, start):
    answer(handler, content, start, status=206)


def garbled(handler, content, start):
    answer(handler, bytes(255 - byte for byte in content), start)


def short(handler, content, start):
    answer(handler, content[:-10], start)


def longer(length):
    return lambda handler, content, start: answer(handler, content + b'more', start, length=length)


def without_length(handler, content, start):
    answer(handler, content, start, length=False)


def compressing(coding='gzip', cut=None, ranges=False):
    """Always compress, as some proxies do; ranges are then ranges of the compressed file."""

    def act(handler, content, start):
        body = gzip.compress(content)
        start = start if ranges and start else 0
        handler.send_response(206 if start else 200)
        if start:
            handler.send_header('Content-Range', f'bytes {start}-{len(body) - 1}/{len(body)}')
        handler.send_header('Content-Encoding', coding)
        handler.send_header('Content-Length', str(len(body) - start))
        handler.end_headers()
        handler.wfile.write(body[start:cut])

    return act


def damaged_gzip(handler, content, start):
    body = gzip.compress(content)
    handler.send_response(200)
    handler.send_header('Content-Encoding', 'gzip')
    handler.end_headers()
    handler.wfile.write(body[:300] + bytes(b ^ 255 for b in body[300:]))


def hang_up(handler, content, start):
    handler.close_connection = True


def redirect(to):
    def act(handler, content, start):
        handler.send_response(302)
        handler.send_header('Location', to)
        handler.end_headers()

    return act


class Served:
    """A local server of a record; ``script[name]`` has the behaviour of the next requests, others are answered."""

    def __init__(self):
        self.files, self.script, self.requests, self.codings = {}, defaultdict(lambda: iter(())), [], []
        self.stop_hanging = threading.Event()
        served = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                name, asked = self.path.strip('/'), self.headers['Range']
                served.requests.append((name, asked))
                served.codings.append(self.headers['Accept-Encoding'])
                content = served.record() if name == 'record' else served.files[name]
                start = int(asked.removeprefix('bytes=').removesuffix('-')) if asked else None
                next(served.script[name], answer)(self, content, start)

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        self.server.daemon_threads = True
        self.root = f'http://127.0.0.1:{self.server.server_port}'
        threading.Thread(target=self.server.serve_forever, kwargs={'poll_interval': 0.02}, daemon=True).start()

    def hang(self, handler, content, start):
        self.stop_hanging.wait(20)

    def entries(self):
        return [
            {
                'key': name,
                'size': len(content),
                'checksum': f'md5:{hashlib.md5(content).hexdigest()}',
                'links': {'self': f'{self.root}/{name}'},
            }
            for name, content in self.files.items()
        ]

    def record(self):
        return json.dumps({'id': 15674785, 'files': self.entries()}).encode()

    def asked(self, name):
        return [span for requested, span in self.requests if requested == name]

    def close(self):
        self.stop_hanging.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    """A release of 3 ROIs; read-only."""
    out = tmp_path_factory.mktemp('source') / 'release'
    write_synthetic_release(out, rois=3, patients=3, size=(64, 70), seed=7)
    (out / 'synthetic.json').unlink()  # not in a real release
    return out


def zipped(release, task):
    content = io.BytesIO()
    with zipfile.ZipFile(content, 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f'{task}/pdl1/patient9_pdl1_roi1.png', b'another task')
        for path in sorted((release / task / 'he').glob('*.png')):
            archive.write(path, f'{task}/he/{path.name}')
    return content.getvalue()


@pytest.fixture(scope='module')
def contents(source):
    served = {name: (source / name).read_bytes() for name in (CSV, 'he_label_map.json')}
    return served | {f'{task}.zip': zipped(source, task) for task in ('images', 'annotations')}


@pytest.fixture
def served(contents, monkeypatch):
    for name in ('no_proxy', 'NO_PROXY'):  # bypass a proxy of the environment
        monkeypatch.setenv(name, '127.0.0.1')
    served = Served()
    served.files = {**contents, 'models.zip': b'not ours', '../../evil.txt': b'evil'}
    yield served
    served.close()


@pytest.fixture
def out(tmp_path):
    return tmp_path / 'parent' / 'release'


@pytest.fixture
def get(served, out):
    """Return a function that runs the download and returns its waits in seconds."""

    def run(record=None):
        waits = []
        record = f'{served.root}/record' if record is None else record
        download_release(out, record, Console(file=io.StringIO()), waits.append)
        return waits

    return run


def tree(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob('*') if p.is_file()}


def assert_complete(out, source):
    """Assert that the folder has exactly the files of the release, the archives and the state."""
    found = tree(out)
    for name in ('images.zip', 'annotations.zip'):
        found.pop(name, None)
    del found['download.json']
    assert found == tree(source)


def test_each_of_the_four_files_is_requested_once(served, get, out, source, contents):
    assert get() == []
    assert_complete(out, source)
    assert sorted(served.requests) == sorted((name, None) for name in ('record', *NAMES))
    assert {p.name for p in out.parent.parent.rglob('*')}.isdisjoint({'evil.txt', 'models.zip'})
    assert {name: (out / name).read_bytes() for name in NAMES} == contents


def test_progress_and_the_archives_that_may_be_deleted_are_shown(served, out):
    console = Console(file=io.StringIO(), width=200, force_terminal=True)
    download_release(out, f'{served.root}/record', console, time.sleep)
    shown = console.file.getvalue()
    for words in (*NAMES, 'unpacking images.zip', 'unpacking annotations.zip', f'{out / ZIP} may be deleted'):
        assert words in shown


def test_a_gzipped_overview_is_stored_unchanged(served, get, out, contents):
    served.files[CSV] = gzip.compress(contents[CSV])
    get()
    assert (out / CSV).read_bytes() == served.files[CSV]


# Interruptions: behaviour for images.zip, the requested ranges, the number of waits.
RESUMED = {
    'one cut': ([cut(1000)], [None, 1000], 1),
    'three cuts': ([cut(1000), cut(500), cut(1)], [None, 1000, 1500, 1501], 3),
    'cut before the first byte': ([cut(0)], [None, None], 1),
    'closed without an answer': ([hang_up, hang_up], [None, None, None], 2),
    'busy, then cut, then busy': ([fail(503), cut(1000), fail(500)], [None, None, 1000, 1000], 3),
    'Range ignored': ([cut(1000), whole], [None, 1000], 1),
    'Range ignored and cut': ([cut(1000), whole_but_cut(400)], [None, 1000, 400], 2),
    'other range': ([cut(1000), other_range], [None, 1000, None], 2),
    'no Content-Range': ([cut(1000), no_content_range], [None, 1000, None], 2),
    'range refused': ([cut(1000), fail(416)], [None, 1000, None], 2),
    'too few bytes declared': ([short], [None, -10], 1),
    'length unknown': ([without_length], [None], 0),
    'wrong bytes once': ([garbled], [None, None], 0),
    'wrong bytes in the middle': ([cut(1000), garbled], [None, 1000, None], 1),
    'more bytes declared': ([longer(True)], [None], 0),
    'more bytes undeclared': ([cut(1000), longer(False)], [None, 1000], 1),
    'compressed': ([compressing()], [None], 0),
    'compressed under the old name': ([compressing('X-GZIP ')], [None], 0),
    'compressed, after a cut': ([cut(1000), compressing()], [None, 1000], 1),
    'a compressed range': ([cut(1000), compressing(ranges=True), compressing()], [None, 1000, None], 2),
    'damaged compressed bytes': ([damaged_gzip], [None, None], 1),
}


@pytest.mark.parametrize('kind', RESUMED)
def test_interrupted_downloads_give_the_right_bytes(served, get, out, source, contents, kind):
    acts, ranges, waits = RESUMED[kind]
    served.script[ZIP] = iter(acts)
    assert len(get()) == waits
    size = len(contents[ZIP])
    assert served.asked(ZIP) == [None if n is None else f'bytes={n % size}-' for n in ranges]
    assert_complete(out, source)
    assert (out / ZIP).read_bytes() == contents[ZIP]


def test_a_server_that_always_compresses_is_supported(served, get, out, source, contents):
    """Record, tables and archives need no wait, although identity was requested."""
    for name in ('record', *NAMES):
        served.script[name] = iter([compressing()])
    assert get() == []
    assert_complete(out, source)
    assert set(served.codings) == {'identity'}
    assert {name: (out / name).read_bytes() for name in NAMES} == contents


def test_a_truncated_compressed_response_is_requested_again(served, get, out, source):
    served.script['record'] = iter([compressing(cut=40)])
    served.script[ZIP] = iter([compressing(cut=2000), compressing()])
    assert len(get()) == 2
    assert_complete(out, source)


@pytest.mark.parametrize('name', ['record', CSV, ZIP])
def test_an_unknown_compression_fails_at_once(served, get, out, name):
    served.script[name] = iter([compressing('br')])
    with pytest.raises(IgniteError, match="compressed as 'br'") as caught:
        get()
    assert len(str(caught.value).splitlines()) == 1 and served.root in str(caught.value)
    assert len(served.asked(name)) == 1


@pytest.mark.parametrize('name', NAMES)
def test_every_file_is_resumed(served, get, out, source, name):
    served.script[name] = iter([cut(100)])
    get()
    assert served.asked(name) == [None, 'bytes=100-']
    assert_complete(out, source)


def test_time_outs_are_tried_again(served, get, out, source, monkeypatch):
    monkeypatch.setattr(client, 'TIMEOUT', 0.3)
    served.script['record'] = iter([served.hang])

    def stall(handler, content, start):
        answer(handler, content, start, cut=1000)
        handler.wfile.flush()
        served.hang(handler, content, start)

    served.script[ZIP] = iter([served.hang, stall])
    assert len(get()) == 3
    assert served.asked(ZIP) == [None, None, 'bytes=1000-']
    assert_complete(out, source)


def test_the_record_is_tried_again(served, get, out, source):
    served.script['record'] = iter([fail(502), cut(50), hang_up])
    assert get() == [1, 2, 4]
    assert_complete(out, source)


@pytest.mark.parametrize('where', ['while waiting', 'while reading'])
def test_the_next_call_continues_an_interrupted_one(served, out, get, source, contents, where, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), monkeypatch.context() as patch:
        if where == 'while waiting':
            served.script[ZIP] = iter([cut(1000)])
            download_release(out, f'{served.root}/record', Console(file=io.StringIO()), interrupt)
        else:
            patch.setattr(download, 'CHUNK', 1000)
            update = Progress.update
            patch.setattr(
                Progress,
                'update',
                lambda self, task, completed: (
                    interrupt()
                    if completed and self.tasks[task].description == ZIP
                    else update(self, task, completed=0)
                ),
            )
            download_release(out, f'{served.root}/record', Console(file=io.StringIO()), interrupt)
    there = (out / f'{ZIP}.part').read_bytes()
    assert 0 < len(there) <= 1000 and contents[ZIP].startswith(there)
    assert not (out / ZIP).exists()
    served.requests.clear()
    get()
    assert served.requests == [('record', None), (ZIP, f'bytes={len(there)}-')]
    assert_complete(out, source)


PARTS = {
    'whole': (lambda content: content, []),
    'half': (lambda content: content[:2000], ['bytes=2000-']),
    'of other bytes': (lambda content: bytes(2000), ['bytes=2000-', None]),
    'whole, of other bytes': (lambda content: bytes(len(content)), [None]),
    'longer than the file': (lambda content: content + b'more', [None]),
    'empty': (lambda content: b'', [None]),
}


@pytest.mark.parametrize('kind', PARTS)
def test_a_partial_file_of_an_earlier_run(served, get, out, source, contents, kind):
    part, ranges = PARTS[kind]
    out.mkdir(parents=True)
    (out / f'{ZIP}.part').write_bytes(part(contents[ZIP]))
    get()
    assert served.asked(ZIP) == ranges
    assert_complete(out, source)


def test_waits_double_up_to_a_minute_and_restart_after_progress(served, get):
    served.script[CSV] = itertools.chain([fail(500)] * (TRIES - 1), [cut(10)], [fail(500)] * (TRIES - 2))
    assert get() == [1, 2, 4, 8, 16, 32, 60, 60, 60, 1, 2, 4, 8, 16, 32, 60, 60, 60]


@pytest.mark.parametrize(
    ('value', 'wait'), [('7', 7), ('0', 1), ('99999999', 600), ('9' * 400, 600), ('soon', 1), ('-5', 1)]
)
def test_retry_after_is_honoured_up_to_a_limit(served, get, value, wait):
    served.script[CSV] = iter([fail(429, value)])
    assert get() == [wait]


def test_retry_after_may_be_a_date(served, get):
    served.script[CSV] = iter([fail(503, formatdate(time.time() + 100, usegmt=True))])
    assert get() == [pytest.approx(100, abs=10)]


HOPELESS = {
    'busy': (fail(503), 'HTTP 503'),
    'rate limit': (fail(429, '1'), 'HTTP 429'),
    'no answer': (hang_up, 'Remote end closed'),
    'cut at one place, no Range': (whole_but_cut(1000), '1,000 of'),
    'always too few bytes': (short, 'images.zip.part'),
}


@pytest.mark.parametrize('kind', HOPELESS)
def test_it_gives_up_with_a_sentence_and_the_next_call_continues(served, get, out, source, kind):
    act, words = HOPELESS[kind]
    served.script[ZIP] = itertools.chain([cut(500)], itertools.repeat(act))
    with pytest.raises(IgniteError, match=words) as caught:
        get()
    for part in (ZIP, served.root, f'{TRIES} tries', 'the same command'):
        assert part in str(caught.value)
    assert len(served.asked(ZIP)) <= 2 * TRIES + 2
    assert not (out / ZIP).exists()
    served.script[ZIP] = iter(())
    get()
    assert_complete(out, source)


@pytest.mark.parametrize('status', [400, 401, 403, 404, 410, 416])
@pytest.mark.parametrize('name', ['record', ZIP])
def test_refusals_fail_at_once(served, get, status, name):
    served.script[name] = itertools.repeat(fail(status))
    with pytest.raises(IgniteError, match=f'{served.root}/{name}.*{status}'):
        get()
    assert served.asked(name) == [None]


def test_an_unreachable_server_is_one_sentence_and_waits_name_the_remaining_tries(served, out):
    served.close()
    console, waits = Console(file=io.StringIO()), []
    with pytest.raises(IgniteError, match='record cannot be read.*refused'):
        download_release(out, f'{served.root}/record', console, waits.append)
    said = re.findall(r'refused.*; (\d+) more (tries|try), the next in (\d+) s', console.file.getvalue())
    expected = [(left, 'try' if left == 1 else 'tries', wait) for left, wait in zip(range(TRIES - 1, 0, -1), waits)]
    assert said == [(str(left), word, f'{wait:.0f}') for left, word, wait in expected[1:]]


def test_an_untrusted_certificate_fails_at_once(get, monkeypatch):
    def connect(self):
        raise ssl.SSLCertVerificationError('self-signed certificate')

    monkeypatch.setattr(urllib3.connection.HTTPSConnection, 'connect', connect)
    with pytest.raises(IgniteError, match='certificate of the server is not trusted.*self-signed'):
        get('https://127.0.0.1/record')


def sign_in_page(handler, content, start):
    answer(handler, b'<html>Sign in</html>' * len(content))


@pytest.mark.parametrize('act', [garbled, sign_in_page])
def test_wrong_content_is_requested_twice_and_not_kept(served, get, out, source, act):
    served.script[ZIP] = itertools.repeat(act)
    with pytest.raises(IgniteError, match=f'{ZIP}.*twice.*MD5'):
        get()
    assert served.asked(ZIP) == [None, None]
    assert not list(out.glob(f'{ZIP}*'))
    served.script[ZIP] = iter(())
    get()
    assert served.asked(ZIP) == [None, None, None]
    assert_complete(out, source)


def test_an_endless_response_is_closed(served, get):
    """The connection is closed after the declared bytes, plus what fits into the buffers."""
    sent = []

    def endless(handler, content, start):
        handler.send_response(200)
        handler.end_headers()
        try:
            for _ in range(2000):
                handler.wfile.write(bytes(1 << 16))
                sent.append(1 << 16)
        except ConnectionError:
            pass

    served.script[CSV] = itertools.repeat(endless)
    with pytest.raises(IgniteError, match='twice'):
        get()
    assert served.asked(CSV) == [None, None]
    assert sum(sent) < 2000 << 16


def entry_with(**changes):
    def change(record):
        record['files'][0].update(changes)
        return record

    return change


RECORDS = {
    'no JSON': (lambda record: b'<html>Sign in</html>', 'the JSON of'),
    'no text': (lambda record: b'\xff\xfe\x00', 'JSON'),
    'empty': (lambda record: b'', 'the JSON of'),
    'list': (lambda record: [1], 'the JSON of'),
    'null': (lambda record: None, 'the JSON of'),
    'no files': (lambda record: {'message': 'PID does not exist'}, 'the JSON of'),
    'files of another API': (lambda record: {'files': {'entries': {}}}, 'the JSON of'),
    'deep': (lambda record: b'[' * 200_000, 'the JSON of'),
    'file missing': (lambda record: {'files': record['files'][1:]}, f'KeyError.*{CSV}'),
    'no size': (lambda record: {'files': [{'key': name} for name in NAMES]}, 'size'),
    'negative size': (entry_with(size=-1), 'size -1'),
    'size as text': (entry_with(size='12'), "size '12'"),
    'true as size': (entry_with(size=True), 'size True'),
    'sha256': (entry_with(checksum='sha256:' + '0' * 64), 'checksum'),
    'no hex': (entry_with(checksum='md5:' + 'x' * 32), 'checksum'),
    'checksum null': (entry_with(checksum=None), 'the JSON of'),
    'links null': (entry_with(links=None), 'the JSON of'),
    'link number': (entry_with(links={'self': 5}), 'address 5'),
    'file link': (entry_with(links={'self': 'file:///etc/passwd'}), 'cannot be requested'),
    'ftp link': (entry_with(links={'self': 'ftp://127.0.0.1/x'}), 'cannot be requested'),
    'link without host': (entry_with(links={'self': 'http:///x'}), 'cannot be requested'),
    'link in brackets': (entry_with(links={'self': 'http://[x/y'}), 'cannot be requested'),
    'link with a newline': (entry_with(links={'self': 'http://127.0.0.1/a b\n'}), 'cannot be fetched'),
}


@pytest.mark.parametrize('kind', RECORDS)
def test_an_unusable_record_is_one_sentence(served, get, out, kind):
    change, words = RECORDS[kind]
    record = change(json.loads(served.record()))
    served.record = lambda: record if isinstance(record, bytes) else json.dumps(record).encode()
    with pytest.raises(IgniteError, match=words):
        get()
    assert served.requests == [('record', None)]
    assert tree(out).keys() <= {f'{CSV}.part'}


@pytest.mark.parametrize('record', ['file:///etc/passwd', 'ftp://host/record', '/etc/passwd', '', 'data:,{}'])
def test_only_http_addresses_are_requested(get, record):
    with pytest.raises(IgniteError, match='cannot be requested.*check the http'):
        get(record)


def test_a_redirect_is_followed_with_its_range_but_only_to_http(served, get, out, source):
    served.files['elsewhere'] = served.files[ZIP]
    served.script[ZIP] = itertools.repeat(redirect(f'{served.root}/elsewhere'))
    served.script['elsewhere'] = iter([cut(1000)])
    get()
    assert served.asked('elsewhere') == [None, 'bytes=1000-']
    assert_complete(out, source)
    (out / CSV).unlink()
    served.script[CSV] = itertools.repeat(redirect('ftp://127.0.0.1/x'))
    with pytest.raises(IgniteError, match="cannot be requested.*'ftp://127.0.0.1/x'"):
        get()


def needed(contents):
    return sum(map(len, contents.values())) + len(contents[ZIP]) + len(contents['annotations.zip'])


@pytest.fixture
def disk(monkeypatch):
    """A disk with adjustable free bytes."""
    disk = SimpleNamespace(free=0)
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: disk)
    return disk


def test_a_disk_too_small_is_reported_before_the_download(served, get, out, source, contents, disk):
    disk.free = needed(contents) - 1
    with pytest.raises(IgniteError, match=f'{disk.free:,} bytes free, but {disk.free + 1:,} are needed'):
        get()
    assert served.requests == [('record', None)]
    disk.free += 1
    get()
    assert_complete(out, source)


def test_existing_bytes_need_no_disk_space(get, out, source, contents, disk):
    out.mkdir(parents=True)
    (out / f'{ZIP}.part').write_bytes(contents[ZIP][:2000])
    (out / CSV).write_bytes(contents[CSV])
    he = out / 'annotations' / 'he'
    he.mkdir(parents=True)
    png = next((source / 'annotations' / 'he').iterdir())
    shutil.copy(png, he)
    disk.free = needed(contents) - 2000 - len(contents[CSV]) - png.stat().st_size - 1
    with pytest.raises(IgniteError, match='are needed'):
        get()
    disk.free += 1
    get()
    assert_complete(out, source)
    disk.free = 0
    get()


def test_a_full_disk_is_one_sentence(get, out, source, monkeypatch):
    def full(*args):
        raise OSError(28, 'No space left on device')

    with monkeypatch.context() as patch:
        patch.setattr(archives, 'extract_he_members', full)
        with pytest.raises(IgniteError, match='No space left on device.*the same command'):
            get()
    get()
    assert_complete(out, source)


def test_a_file_instead_of_the_folder_is_one_sentence(get, out):
    out.parent.mkdir()
    out.write_text('mine')
    with pytest.raises(IgniteError, match=str(out)):
        get()
    assert out.read_text() == 'mine'


@pytest.mark.parametrize('archives', ['kept', 'deleted'])
def test_for_a_complete_release_only_the_record_is_requested(served, get, out, source, archives):
    get()
    if archives == 'deleted':
        for name in ('images.zip', 'annotations.zip'):
            (out / name).unlink()
    before = {p: p.stat().st_mtime_ns for p in out.rglob('*')}
    served.requests.clear()
    get()
    assert served.requests == [('record', None)]
    assert {p: p.stat().st_mtime_ns for p in out.rglob('*')} == before
    assert_complete(out, source)


@pytest.mark.parametrize('archive', ['kept', 'deleted'])
@pytest.mark.parametrize('harm', ['deleted', 'truncated'])
def test_a_damaged_unpacked_file_is_restored(served, get, out, source, archive, harm):
    get()
    (out / 'images' / 'he' / 'mine.png').write_bytes(b'does not replace the lost one')
    png = out / 'images' / 'he' / 'patient2_he_roi1.png'
    png.unlink() if harm == 'deleted' else png.write_bytes(png.read_bytes()[:50])
    if archive == 'deleted':
        (out / ZIP).unlink()
    served.requests.clear()
    get()
    assert Counter(served.requests) == Counter([('record', None)] + [(ZIP, None)] * (archive == 'deleted'))
    (out / 'images' / 'he' / 'mine.png').unlink()
    assert_complete(out, source)


@pytest.mark.parametrize('name', NAMES)
def test_a_file_changed_in_the_record_is_downloaded_again(served, get, out, tmp_path, contents, name):
    get()
    if name in (ZIP, 'annotations.zip'):
        changed = tmp_path / 'changed'
        shutil.copytree(out / name.removesuffix('.zip'), changed / name.removesuffix('.zip'))
        for png in changed.rglob('*.png'):
            png.write_bytes(np.random.default_rng().bytes(500))
        served.files[name] = zipped(changed, name.removesuffix('.zip'))
    else:
        served.files[name] = contents[name] + b' '
    served.requests.clear()
    get()
    assert served.requests == [('record', None), (name, None)]
    if name in (ZIP, 'annotations.zip'):
        assert tree(out / name.removesuffix('.zip')) == tree(changed / name.removesuffix('.zip'))
    assert (out / name).read_bytes() == served.files[name]


def test_a_changed_archive_of_the_same_size_is_downloaded_again(served, get, out, contents):
    get()
    served.files[ZIP] = contents[ZIP].replace(b'patient9', b'patient8')
    served.requests.clear()
    get()
    assert served.requests == [('record', None), (ZIP, None)]
    assert (out / ZIP).read_bytes() == served.files[ZIP] != contents[ZIP]


def test_existing_files_are_used(served, get, out, source, contents):
    out.mkdir(parents=True)
    for name in (CSV, ZIP):
        (out / name).write_bytes(contents[name])
    get()
    assert Counter(served.requests) == Counter((n, None) for n in ('record', 'he_label_map.json', 'annotations.zip'))
    assert_complete(out, source)


def test_other_files_in_the_folder_are_not_touched(get, out, source, contents):
    mine = [
        'notes.txt',
        'images/mine.png',
        'images/he/mine.png',
        'images/pdl1/p.png',
        'annotations/he/m.txt',
        'models.zip',
    ]
    for name in mine:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(f'my {name}')
    (out / CSV).write_text('an older table')
    get()
    for name in mine:
        assert (out / name).read_text() == f'my {name}'
        (out / name).unlink()
    (out / f'{CSV}.bak').unlink()
    assert_complete(out, source)


def test_a_wrong_archive_is_replaced_only_by_a_complete_one(served, get, out, contents):
    out.mkdir(parents=True)
    (out / ZIP).write_bytes(b'mine')
    served.script[ZIP] = itertools.repeat(garbled)
    with pytest.raises(IgniteError, match='twice'):
        get()
    assert (out / ZIP).read_bytes() == b'mine'
    served.script[ZIP] = iter(())
    get()
    assert (out / ZIP).read_bytes() == contents[ZIP]


@pytest.mark.parametrize('text', ['', 'mine', '[]', '{}', '{"archives": []}', '{"archives": {"images.zip": {}}}'])
def test_a_foreign_state_file_is_refused_and_kept(served, get, out, text):
    out.mkdir(parents=True)
    (out / 'download.json').write_text(text)
    with pytest.raises(IgniteError, match='download.json is not (valid JSON|a list).*move it away'):
        get()
    assert (out / 'download.json').read_text() == text
    assert served.requests == []


def test_a_hostile_archive_with_the_right_checksum_is_refused(served, get, out, tmp_path):
    content = io.BytesIO()
    with zipfile.ZipFile(content, 'w') as archive:
        archive.writestr('images/../../he/evil.png', b'evil')
    served.files[ZIP] = content.getvalue()
    with pytest.raises(IgniteError, match='unsafe path'):
        get()
    assert not list(tmp_path.rglob('evil.png'))


def test_an_interrupted_unpacking_downloads_nothing_again(served, get, out, source, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Progress, 'advance', interrupt)
        with pytest.raises(KeyboardInterrupt):
            get()
    served.requests.clear()
    get()
    assert served.requests == [('record', None)]
    assert_complete(out, source)


def test_a_proxy_of_the_environment_is_used(served, get, out, source, monkeypatch):
    """The local server acts as the proxy: it gets the full address of a host that does not exist."""
    for name in ('no_proxy', 'NO_PROXY'):
        monkeypatch.delenv(name)
    monkeypatch.setenv('http_proxy', served.root)
    served.files['http://record.invalid/api'] = b'seen by the proxy'
    with pytest.raises(IgniteError, match='the JSON of'):
        get('http://record.invalid/api')
    assert served.requests == [('http://record.invalid/api', None)]


def test_one_command_downloads_and_prepares(served, source, out, tmp_path):
    arguments = ['--download', '--record', f'{served.root}/record', '--release', out, '--out', tmp_path / 'ignite']
    assert tool('prepare_ignite', *arguments) == 0
    assert tool('prepare_ignite', '--release', source, '--out', tmp_path / 'plain') == 0
    fetched, plain = (read_index(tmp_path / folder) for folder in ('ignite', 'plain'))
    assert fetched['rois'] == plain['rois'] and len(fetched['rois']) == 3
    assert fetched['splits'] == plain['splits']


def test_a_missing_record_ends_the_command_with_a_sentence(served, out, tmp_path, capsys):
    served.script['record'] = itertools.repeat(fail(404))
    arguments = ['--download', '--record', f'{served.root}/record', '--release', out, '--out', tmp_path / 'ignite']
    assert tool('prepare_ignite', *arguments) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith('error: ')]
    assert len(said) == 1 and '404' in said[0] and not (tmp_path / 'ignite').exists()


def test_a_table_corrected_by_the_user_is_kept_as_bak(get, out, source):
    get()
    (out / CSV).write_text('corrected')
    get()
    assert (out / CSV).read_bytes() == (source / CSV).read_bytes() and (out / f'{CSV}.bak').read_text() == 'corrected'


def test_a_long_wait_is_announced(served, out):
    served.script[ZIP] = iter([fail(503, '120')])
    said = io.StringIO()
    download_release(out, f'{served.root}/record', Console(file=said), lambda seconds: None)
    assert 'in 120 s' in said.getvalue()
