"""What the page does, without a browser."""

import asyncio
import contextlib
import json
import os
import socket
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from app_example import UM, tiny_predictor, write_image
from conftest import DEMO_CONFIG, ROOT, single_error, tool
from PIL import Image

from mmseg_ignite.apis import predict_files
from mmseg_ignite.errors import IgniteError
from mmseg_ignite.labels import PALETTE
from mmseg_ignite.regions.areas import areas
from mmseg_ignite.serving import AppOptions, server
from mmseg_ignite.serving.drawing import areas_table, draw_overlay, message
from mmseg_ignite.serving.gate import MAX_BODY, Gate
from mmseg_ignite.serving.predictions import Predictions, plain, region_of
from mmseg_ignite.serving.turns import Turns, Visitors, check_presence

sys.path.insert(0, str(ROOT / 'tests' / 'slides'))
pytest.importorskip('shapely', reason='shapely is not installed (pip install mmseg_ignite[app])')
pytestmark = pytest.mark.usefixtures('one_thread')


@pytest.fixture(scope='module')
def predictor(tmp_path_factory):
    return tiny_predictor(tmp_path_factory.mktemp('model'))


@pytest.fixture(scope='module')
def slides(tmp_path_factory):
    """A folder with a slide, one of unknown resolution, a damaged one, and an image."""
    pytest.importorskip('openslide', reason='the packages of mmseg_ignite[slides] are not installed')
    slide_example = pytest.importorskip('slide_example')
    folder = tmp_path_factory.mktemp('slides')
    slide_example.write_slide(folder / 'a.svs', (500, 700), 0.5, 0.6, levels=(1, 4), tile=64, seed=1)
    slide_example.write_slide(folder / 'unknown.svs', (300, 300), None, 0.6, levels=(1,), tile=64)
    (folder / 'damaged.svs').write_bytes((folder / 'a.svs').read_bytes()[:3000])
    write_image(folder / 'roi.png')
    return folder


@pytest.fixture
def predictions(predictor, tmp_path):
    return Predictions(predictor, AppOptions(max_pixels=200_000), tmp_path / 'results')


@pytest.fixture
def on_slides(predictor, slides, tmp_path):
    return Predictions(predictor, AppOptions(slides=slides), tmp_path / 'results')


def test_image_gives_the_files_and_areas_of_the_predict_tool(predictor, predictions, tmp_path):
    write_image(tmp_path / 'roi.png')
    steps = []
    found = predictions.image(tmp_path / 'roi.png', 0.5, lambda done, windows: steps.append((done, windows)))
    options = dict(um_per_px=0.5, formats=('label', 'geojson'))
    assert not predict_files(predictor, [tmp_path / 'roi.png'], tmp_path / 'out', lambda text: None, **options)
    labels = np.asarray(Image.open(tmp_path / 'out' / 'roi.png')) - 1
    assert len(np.unique(labels)) > 1
    np.testing.assert_array_equal(np.asarray(Image.open(found.label_file)) - 1, labels)
    assert found.geojson_file.read_bytes() == (tmp_path / 'out' / 'roi.geojson').read_bytes()
    assert found.areas.area_mm2 == areas(labels, 0.5).area_mm2
    assert steps[-1][0] == steps[-1][1] and found.label_file.name == 'roi.png'
    scale = found.image.shape[1] / 120
    assert found.labels.shape == found.image.shape[:2] and found.um_per_px == pytest.approx(0.5 / scale)
    centres = [((np.arange(side) + 0.5) / scale).astype(int) for side in found.labels.shape]
    assert (found.labels == labels[np.ix_(*centres)]).mean() > 0.99  # nearest neighbour
    predictions.remove(found)
    assert not list(predictions.folder.iterdir())


def test_labels_are_read_above_the_limit_of_pillow(predictions, tmp_path, monkeypatch):
    write_image(tmp_path / 'roi.png')
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 100)
    assert predictions.image(tmp_path / 'roi.png', 0.5).labels.size


def test_resolution_is_asked_for_and_never_guessed(predictions, tmp_path):
    write_image(tmp_path / 'known.png', dpi=(25400 / 0.4, 25400 / 0.4))
    write_image(tmp_path / 'camera.png', dpi=(72, 72))
    known, camera = predictions.look(tmp_path / 'known.png'), predictions.look(tmp_path / 'camera.png')
    assert known.um_per_px == pytest.approx(0.4, rel=1e-3) and 'pHYs' in known.note and known.size == (90, 120)
    assert camera.um_per_px is None and 'states 353 um/px, which is not plausible' in camera.note
    assert f'{UM:g} um/px, as in the training, is filled in. Correct it' in camera.note
    with pytest.raises(IgniteError, match='um/px of known.png is missing.*fill it in'):
        predictions.image(tmp_path / 'known.png', None)
    with pytest.raises(IgniteError, match='resolution is 50.0 um/px'):
        predictions.image(tmp_path / 'known.png', 50)


def test_faults_of_a_user_are_one_sentence_without_paths_or_options(predictions, tmp_path, monkeypatch):
    write_image(tmp_path / 'roi.png', dpi=(25400, 25400))
    (tmp_path / 'damaged.png').write_bytes((tmp_path / 'roi.png').read_bytes()[:-400])
    (tmp_path / 'text.png').write_text('no picture')
    write_image(tmp_path / 'large.png', (500, 500))
    Image.new('L', (64, 64)).save(tmp_path / 'gray.png')
    write_image(tmp_path / 'small.png', (20, 20))
    cases = {
        'damaged.png': 'damaged.png (is damaged|cannot be (read|decoded))',
        'text.png': 'text.png cannot be read',
        'large.png': 'large.png has 500 x 500 px .* at most 200,000 pixels are read: split it.$',
        'gray.png': 'gray.png is 8-bit grayscale',
        'small.png': 'the image is 20 x 20 px; at least 32',
        'missing.png': 'missing.png does not exist',
    }
    for name, text in cases.items():
        with pytest.raises(IgniteError, match=text) as fault:
            predictions.image(tmp_path / name, 1.0)
        assert str(tmp_path) not in str(fault.value) and '--' not in str(fault.value) and '\n' not in str(fault.value)
    monkeypatch.setattr('mmseg_ignite.serving.predictions.predict_source', lambda *_: 1 / 0)
    with pytest.raises(IgniteError, match=r'^roi.png cannot be predicted \(ZeroDivisionError'):
        predictions.image(tmp_path / 'roi.png', 1.0)
    assert not list(predictions.folder.iterdir())  # nothing is left of a failure


def test_only_slides_of_the_folder_can_be_read(on_slides, slides, tmp_path):
    outside = tmp_path / 'outside.svs'
    outside.write_bytes((slides / 'a.svs').read_bytes())
    link = slides / 'link.svs'
    os.symlink(outside, link)
    try:
        assert on_slides.slides() == ['a.svs', 'damaged.svs', 'unknown.svs']
        for name in ('link.svs', '../outside.svs', str(outside), '', 'roi.png', 'a.svs/../../outside.svs'):
            with pytest.raises(IgniteError, match='is not a slide of this server'):
                on_slides.slide(name)
    finally:
        link.unlink()


def test_slides_without_a_resolution_and_damaged_ones_give_a_sentence(on_slides):
    with pytest.raises(IgniteError, match=r'^unknown.svs states no resolution; .*: enter it in the field um/px.$'):
        on_slides.slide('unknown.svs')
    assert on_slides.slide('unknown.svs', 0.5).um_per_px == 0.5
    with pytest.raises(IgniteError, match='^damaged.svs '):
        on_slides.slide('damaged.svs')


def test_region_has_the_coordinates_of_the_slide(on_slides, predictor, slides):
    """Predict a region from the pixels of the slide, read by OpenSlide itself, as an independent reference."""
    import openslide

    overview = on_slides.slide('a.svs')
    assert overview.size == (500, 700) and overview.um_per_px == 0.5
    found = on_slides.region(
        'a.svs', None, (0.125, 0.3), 0.16
    )  # mm; rows 0.045 to 0.205, columns 0.22 to 0.35 at the edge
    with openslide.OpenSlide(slides / 'a.svs') as slide:
        pixels = np.asarray(slide.read_region((440, 90), 0, (260, 320)).convert('RGB'), float)
    half = pixels.reshape(160, 2, 130, 2, 3).mean((1, 3))
    labels = np.asarray(Image.open(found.label_file)) - 1
    assert labels.shape == (160, 130) and found.areas.um_per_px == 1.0
    own = np.asarray(Image.fromarray(found.image).resize((130, 160), Image.Resampling.BOX), float)
    assert np.abs(own - half).mean() < 2
    content = json.loads(found.geojson_file.read_text(encoding='utf-8'))
    points = np.array([p for f in content['features'] for ring in f['geometry']['coordinates'] for p in ring])
    y, x = np.nonzero(labels)
    assert points.min(0).tolist() == [440 + 2 * x.min(), 90 + 2 * y.min()]
    assert points.max(0).tolist() == [440 + 2 * (x.max() + 1), 90 + 2 * (y.max() + 1)]
    assert found.label_file.name == 'a_x440_y90.png' and 'inside the tissue mask' in found.notes[2]


def test_region_must_lie_on_the_slide_and_be_of_a_possible_size(on_slides, predictor, slides, tmp_path):
    for centre, side, text in (
        ((5, 5), 0.1, 'has 0 x 0 px on a.svs; at least 32'),
        ((0.1, None), 0.1, 'must be numbers of mm'),
        ((float('nan'), 0.1), 0.1, 'must be numbers of mm'),
        ((0.1, 0.1), -1, 'must be numbers of mm'),
    ):
        with pytest.raises(IgniteError, match=text):
            on_slides.region('a.svs', None, centre, side)
    small = Predictions(predictor, AppOptions(slides=slides, max_pixels=2000), tmp_path)
    with pytest.raises(IgniteError, match='the region has 100 x 100 px; at most 2,000 pixels are predicted'):
        small.region('a.svs', None, (0.1, 0.1), 0.1)


def test_region_of_is_cut_at_the_edges():
    rng = np.random.default_rng()
    for _ in range(200):
        size, um = rng.integers(50, 500, 2).tolist(), rng.uniform(0.2, 2)
        centre, side = rng.uniform(0, 0.5, 2).tolist(), rng.uniform(0.01, 0.5)
        for (start, stop), c, whole in zip(region_of(size, um, centre, side), centre, size):
            places = (np.arange(whole) + 0.5) * um / 1000
            inside = np.flatnonzero(np.abs(places - c) < side / 2)
            assert 0 <= start <= stop <= whole and abs(stop - start - len(inside)) <= 1
            assert not len(inside) or abs(start - inside[0]) <= 1


def test_overlay_paints_shown_classes_and_keeps_the_stain_elsewhere():
    rng = np.random.default_rng()
    image, labels = rng.integers(0, 256, (64, 200, 3), dtype=np.uint8), np.full((64, 200), 3, np.uint8)
    labels[:, :100] = 1
    gray = np.rint(image[..., :3] @ [0.299, 0.587, 0.114])[..., None]
    top = slice(0, 20)  # above the scale bar
    for opacity in (0.3, 0.6, 1.0):
        found = draw_overlay(image, labels, 1.0, opacity, [1])
        expected = (1 - opacity) * gray + opacity * np.array(PALETTE[1])
        assert np.abs(found[top, :99] - expected[top, :99]).max() <= 1.5
        np.testing.assert_array_equal(found[top, 101:], image[top, 101:])
    np.testing.assert_array_equal(draw_overlay(image, labels, 1.0, 0.0)[top], image[top])
    assert (draw_overlay(image, labels, 1.0)[40:] != draw_overlay(image, labels, 9.0)[40:]).any()  # the scale bar


def test_table_shows_the_areas_and_escapes_text():
    labels = np.zeros((100, 100), np.uint8)
    labels[:50], labels[50:60] = 1, 3
    table = areas_table(areas(labels, 10.0))
    assert table.index('Tumor epithelium') < table.index('Stroma') < table.index('Background')
    for text in ('<td>0.5000</td><td>83.3</td>', '<td>0.1000</td><td>16.7</td>', '<td>0.4000</td><td>–</td>', '83.3 %'):
        assert text in table
    assert 'Liver' not in table and '–' in areas_table(areas(np.zeros((4, 4), np.uint8), 1.0))
    assert '<b>' not in message('<b>x</b>', 'error') and 'role="alert"' in message('x', 'error')


def test_one_prediction_at_a_time_and_a_limited_number_waits():
    turns, inside, go = Turns(waiting=1), threading.Event(), threading.Event()
    order = []

    def work(number):
        with turns.taken():
            order.append(number)
            inside.set()
            go.wait(10)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    threads[0].start()
    assert inside.wait(10)
    threads[1].start()
    end = time.monotonic() + 10
    while len(turns._line) < 2 and time.monotonic() < end:
        time.sleep(0.01)
    with pytest.raises(IgniteError, match='the server is busy .* 1 more are waiting.*try again in a minute'):
        with turns.taken():
            pass
    assert order == [0]
    go.set()
    for thread in threads:
        thread.join(10)
    with turns.taken():
        assert order == [0, 1]


def test_who_leaves_frees_the_place(predictions, tmp_path):
    """While a prediction waits, at the next windows of one that runs, and at the end of the server."""
    visitors, turns = Visitors(patience=0.05), Turns(waiting=1)
    has_left = visitors.watch('a')
    with visitors.listening('a'), visitors.listening('a'):
        time.sleep(0.1)
        assert not has_left()
    time.sleep(0.1)
    assert has_left() and not visitors._listeners
    with turns.taken():
        with pytest.raises(IgniteError, match='nobody waits for this prediction'), turns.taken(has_left):
            pass
        assert len(turns._line) == 1
    turns.wait_for_the_end(0.0)
    visitors = Visitors()
    has_left = visitors.watch('b')

    def advance(done, windows):
        visitors.end()
        check_presence(has_left)

    write_image(tmp_path / 'roi.png')
    with pytest.raises(IgniteError, match='nobody waits'), turns.taken(has_left):
        predictions.image(tmp_path / 'roi.png', 1.0, advance)
    assert not turns._line and not list(predictions.folder.iterdir())


def answer(path, body=b'', method='POST', length=None, max_upload=1000, visitors=None, **more):
    """Return the status and headers of the gate in front of an application that answers 200 with the body."""
    events, sent = [{'type': 'http.request', 'body': body, 'more_body': False}], []

    async def app(scope, receive, send):
        got = await receive()
        await send({'type': 'http.response.start', 'status': 200, 'headers': []})
        await send({'type': 'http.response.body', 'body': got['body']})

    async def receive():
        return events.pop(0)

    async def send(event):
        sent.append(event)

    headers = [(b'content-length', str(len(body) if length is None else length).encode())]
    headers += [(name.encode(), value.encode()) for name, value in dict(dict(host='127.0.0.1:7860'), **more).items()]
    path, _, query = path.partition('?')
    scope = dict(type='http', path=path, method=method, headers=headers, query_string=query.encode())
    asyncio.run(Gate(app, max_upload, ['Lab-PC', 'tissue.example'], visitors or Visitors())(scope, receive, send))
    assert sent[0]['status'] != 200 or sent[1]['body'] == body
    return sent[0]['status'], dict(sent[0]['headers'])


def test_gate_refuses_what_the_page_does_not_need():
    status, headers = answer(
        '/gradio_api/queue/join', b'{"data": [{"path": "a.png", "url": "http://127.0.0.1/a"}]}'
    )
    assert status == 200 and b"default-src 'self'" in headers[b'content-security-policy']
    assert answer('/gradio_api/upload', b'x' * 900)[0] == 200
    for path in (
        '/gradio_api/file=https://example.org/a', '/gradio_api/file/http://10.0.0.1/', '/gradio_api/proxy=http://a/b',
        '/gradio_api/call/predict', '/gradio_api/run-history/connect', '/gradio_api/vibe-code', '/monitoring/summary',
    ):  # fmt: skip
        assert answer(path, method='GET')[0] == 403, path
    for body in (b'{"data": [{"path": "https://example.org/a.png"}]}', b'[[{"x": {"path": " FTP://a/b"}}]]'):
        assert answer('/gradio_api/queue/join', body)[0] == 403
    assert answer('/gradio_api/queue/join', b'0' * (MAX_BODY + 1), length=5)[0] == 403
    for path, length in (('/gradio_api/upload', 200_000), ('/gradio_api/queue/join', MAX_BODY + 1), ('/x', 'a')):
        assert answer(path, length=length)[0] == 413


def test_gate_refuses_pages_of_other_servers():
    """A name that points to this computer (DNS rebinding), and requests of pages elsewhere, also on other ports."""
    for host in ('127.0.0.1:7860', 'LOCALHOST:1', '[::1]:7860', '192.168.1.2', 'lab-pc:7860', 'tissue.example'):
        assert answer('/config', method='GET', host=host)[0] == 200, host
        for scheme in ('http', 'https'):
            assert answer('/gradio_api/queue/join', b'{}', host=host, origin=f'{scheme}://{host}')[0] == 200
    for host in ('evil.example', 'evil.example:7860', '', 'localhost.evil.example', '127.0.0.1.evil.example', '[x'):
        assert answer('/config', method='GET', host=host)[0] == 403, host
    assert answer('/', b'', host='tissue.example', origin='https://tissue.example:443')[0] == 200
    for origin in ('http://evil.example', 'null', 'http://127.0.0.1:8888', 'http://127.0.0.1'):
        assert answer('/gradio_api/queue/join', b'{}', origin=origin)[0] == 403, origin
        assert answer('/config', method='OPTIONS', origin=origin)[0] == 403, origin


def test_gate_counts_who_listens():
    seen = []

    class Noted(Visitors):
        def listening(self, session):
            seen.append(session)
            return super().listening(session)

    answer('/gradio_api/queue/data?session_hash=abc', method='GET', visitors=Noted())
    answer('/config?session_hash=abc', method='GET', visitors=Noted())
    assert seen == ['abc']


def test_options_are_checked(tmp_path):
    hosts = ('127.0.0.1', '127.3.0.1', '::1', 'localhost', '0.0.0.0', '192.168.1.2', 'example.org')
    assert [AppOptions(host=host).is_loopback for host in hosts] == [True] * 4 + [False] * 3
    for wrong in (dict(port=70000), dict(max_upload=0), dict(max_pixels=0), dict(waiting=-1), dict(waiting=99)):
        with pytest.raises(IgniteError, match='was expected: correct it'):
            AppOptions(**wrong)
    with pytest.raises(IgniteError, match='a folder of slides was expected'):
        AppOptions(slides=tmp_path / 'none')


def test_advice_of_the_command_line_becomes_that_of_the_page():
    assert plain('--mpp is 9; 0.05 to 5 um/px was expected: correct it.').startswith('the um/px is 9;')
    assert plain('a has 9 px, 2 GB when decoded: if you trust the file, raise the limit with X=2.').endswith(
        'decoded: use a smaller file.'
    )


def test_tool_reports_a_wrong_option_in_one_sentence(capsys, tmp_path):
    assert tool('app', DEMO_CONFIG, tmp_path / 'a.pth', '--slides', tmp_path / 'none') == 2
    assert 'a folder of slides was expected' in single_error(capsys)


def test_server_warns_on_other_hosts_and_names_a_port_in_use(predictor, monkeypatch):
    pytest.importorskip('gradio', reason='gradio is not installed (pip install mmseg_ignite[app])')
    with socket.socket() as other:
        other.bind(('127.0.0.1', 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(IgniteError, match=f'^port {port} of 127.0.0.1 cannot be used .*choose another with --port'):
            with server.running(predictor, AppOptions(port=port)):
                pass
    monkeypatch.setattr(server, 'Predictor', lambda *_: predictor)
    monkeypatch.setattr(server, 'running', lambda *_: contextlib.nullcontext('http://localhost:1/'))
    monkeypatch.setattr(server.threading, 'Event', lambda: SimpleNamespace(wait=lambda: None))
    for host, count in (('127.0.0.1', 1), ('0.0.0.0', 2)):
        lines = []
        server.serve(None, 'a.pth', AppOptions(host), report=lines.append)
        assert len(lines) == count and lines[-1].startswith('open http://localhost:1/ in a browser')
        assert count == 1 or lines[0].startswith('warning: everybody who reaches 0.0.0.0 can use the page')
