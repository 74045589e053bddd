"""The page in a real browser: one server, with a tiny network, for the whole file."""

import base64
import json
import os
import socket
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from app_example import tiny_predictor, write_image
from conftest import ROOT
from PIL import Image

from mmseg_ignite.labels import CLASSES, PALETTE
from mmseg_ignite.serving import AppOptions, running

sys.path[:0] = [str(ROOT / 'tests' / name) for name in ('report', 'slides')]
from chromium import Page, chromium, window  # noqa: E402

pytest.importorskip('gradio', reason='gradio is not installed (pip install mmseg_ignite[app])')
pytest.importorskip('openslide', reason='the packages of mmseg_ignite[slides] are not installed')

UM = 0.5


@pytest.fixture(scope='module')
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp('chromium')) as driver:
        yield driver


@pytest.fixture(scope='module')
def site(browser, tmp_path_factory):
    """Serve the page; note each address to which the process connects."""
    from slide_example import write_slide

    predictor = tiny_predictor(tmp_path_factory.mktemp('model'))
    folder, slides = tmp_path_factory.mktemp('images'), tmp_path_factory.mktemp('slides')
    write_slide(slides / 'a.svs', (500, 700), 1.0, 0.6, levels=(1, 4), tile=64, seed=1)
    write_slide(slides / 'unknown.svs', (300, 300), None, 0.6, levels=(1,), tile=64)
    write_image(folder / 'roi.png', (150, 200))
    write_image(folder / 'next.png', (100, 100), seed=1, dpi=(25400, 25400))
    (folder / 'damaged.png').write_bytes((folder / 'roi.png').read_bytes()[:-300])
    (folder / 'large.png').write_bytes(bytes(1_200_000))
    peers, connect = [], socket.socket.connect

    def noting(self, address):
        peers.append(address)
        return connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, 'connect', noting)
        patch.setenv('GRADIO_ALLOWED_PATHS', '/')  # must not open the server
        patch.setenv('GRADIO_ANALYTICS_ENABLED', 'True')
        with running(predictor, AppOptions(port=0, max_upload=1, slides=slides)) as address:
            temporary = Path(os.environ['GRADIO_TEMP_DIR'])
            yield SimpleNamespace(
                address=address, predictor=predictor, images=folder, slides=slides, temporary=temporary, peers=peers
            )
        assert not temporary.exists()
        assert os.environ['GRADIO_ALLOWED_PATHS'] == '/'


class App(Page):
    """The opened page."""

    def __init__(self, browser, site):
        self.site = site
        code = 'performance.setResourceTimingBufferSize(5000)'
        browser.execute_cdp_cmd('Page.addScriptToEvaluateOnNewDocument', {'source': code})
        super().__init__(browser, site.address)
        self.until(lambda: self.all('#file input[type=file]'), 'the page is not built')

    def until(self, condition, what, seconds=40):
        """Wait for a true value: a busy machine takes long to start Gradio's page."""
        end = time.monotonic() + seconds
        while not (found := condition()):
            assert time.monotonic() < end, what
            time.sleep(0.05)
        return found

    def drop(self, name):
        if self.all('#file button[aria-label="Clear"]'):
            self.click('#file button[aria-label="Clear"]')
            self.until(lambda: self.all('#file input[type=file]'), 'the file stays')
        self.all('#file input[type=file]')[0].send_keys(str(self.site.images / name))

    def status(self, text):
        self.until(
            lambda: text in self.text('#status'), f'the page does not say {text!r}, but {self.text("#status")!r}'
        )
        return self.text('#status')

    def text(self, selector):
        return self.js('return document.querySelector(arguments[0])?.innerText ?? ""', selector)

    def set(self, selector, value):
        self.js(
            """const e = document.querySelector(arguments[0]);
            Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, 'value').set.call(e, arguments[1]);
            for (const name of ['input', 'change', 'pointerup', 'blur']) e.dispatchEvent(new Event(name, {bubbles: true}))""",
            selector, str(value),
        )  # fmt: skip

    def predict(self, name='roi.png', um=UM):
        self.drop(name)
        self.status(f'{name}: ')
        self.until(lambda: self.js('return !document.querySelector("#predict").disabled'), 'nothing to predict')
        self.set('#um input', um)
        time.sleep(0.2)
        self.click('#predict')
        self.status(name.removesuffix('.png') + ': ')
        self.until(lambda: self.all('#areas table') and self.all('#view img'), 'no result')

    def colours(self):
        """Return the picture on the page in the size of the image, (h, w, 3); None while it is loaded."""
        found = self.js(
            """const image = document.querySelector('#view img');
            if (!image?.complete || image.naturalWidth !== 800) return null;
            const c = new OffscreenCanvas(200, 150).getContext('2d');
            c.imageSmoothingQuality = 'high'; c.drawImage(image, 0, 0, 200, 150);
            let text = '';
            for (const value of c.getImageData(0, 0, 200, 150).data) text += String.fromCharCode(value);
            return btoa(text)"""
        )
        return found and np.frombuffer(base64.b64decode(found), np.uint8).reshape(150, 200, 4)[..., :3].astype(float)

    def shows(self, expected, where, what):
        """Wait until the picture has the expected colours (mean difference below 6) where a mask is set."""

        def right():
            found = self.colours()
            return found is not None and np.abs(found[where] - expected[where]).mean() < 6

        self.until(right, what)


@pytest.fixture(scope='module')
def page(browser, site):
    return App(browser, site)


@pytest.fixture(scope='module')
def result(page, site):
    """Predict an image on the page; return its pixels and labels, and what the predict tool writes."""
    from mmseg_ignite.apis import predict_files

    page.predict()
    out = site.images / 'out'
    options = dict(um_per_px=UM, formats=('label', 'geojson'))
    assert not predict_files(site.predictor, [site.images / 'roi.png'], out, lambda text: None, **options)
    labels = np.asarray(Image.open(out / 'roi.png')) - 1
    return SimpleNamespace(out=out, labels=labels, image=np.asarray(Image.open(site.images / 'roi.png'), float))


def painted(result, opacity, shown):
    gray = (result.image @ [0.299, 0.587, 0.114])[..., None]
    mixed = (1 - opacity) * gray + opacity * np.array(PALETTE, float)[result.labels]
    return np.where(np.isin(result.labels, shown)[..., None], mixed, result.image)


def inner(labels):
    """Return the pixels away from borders and from the scale bar."""
    same = np.ones(labels.shape, bool)
    for axis in (0, 1):
        for step in (-2, -1, 1, 2):
            same &= np.roll(labels, step, axis) == labels
    same[[0, 1, -2, -1]], same[:, [0, 1, -2, -1]], same[120:, :80] = False, False, False
    return same


def test_overlay_areas_and_legend_are_those_of_the_prediction(page, result):
    present = np.flatnonzero(np.bincount(result.labels.ravel(), minlength=len(CLASSES)))
    shown = [i for i in present if i] or present
    page.shows(painted(result, 0.5, shown), inner(result.labels), 'the overlay has other colours')
    table = page.text('#areas')
    assert [name for name in CLASSES if name in table.split('Tissue')[0]] == [CLASSES[i] for i in present]
    largest = max((i for i in present if i), key=lambda i: (result.labels == i).sum())
    mm2 = (result.labels == largest).sum() * UM**2 / 1e6
    assert f'{mm2:.5f}' in table
    labels = [e.text for e in page.all('#classes .wrap label')]
    assert labels == [CLASSES[i] for i in present]
    swatch = page.js(
        "return getComputedStyle(document.querySelector('#classes .wrap label'), '::after').backgroundColor"
    )
    assert swatch == 'rgb({}, {}, {})'.format(*PALETTE[present[0]])
    assert 'not for diagnosis' in page.text('body') and 'SHA-256' in page.text('body')


def test_class_toggles_and_opacity_redraw_without_a_prediction(page, result, site, monkeypatch):
    calls = []
    monkeypatch.setattr(site.predictor, 'label', lambda *_: calls.append(1))
    present = np.flatnonzero(np.bincount(result.labels.ravel(), minlength=len(CLASSES)))
    shown = [i for i in present if i]
    largest = max(shown, key=lambda i: (result.labels == i).sum())
    box = f'#classes input[name="{largest}"]'
    page.click(box)
    rest = [i for i in shown if i != largest]
    page.shows(painted(result, 0.5, rest), inner(result.labels), 'the class is not hidden')
    page.click(box)
    page.shows(painted(result, 0.5, shown), inner(result.labels), 'the class does not come back')
    page.set('#opacity input[type=range]', 100)
    page.shows(painted(result, 1.0, shown), inner(result.labels), 'the classes are not opaque')
    page.set('#opacity input[type=range]', 0)
    page.shows(result.image, inner(result.labels), 'the tissue is not bare')
    page.set('#opacity input[type=range]', 50)
    assert calls == []


def test_downloads_are_the_files_of_the_predict_tool(page, result, tmp_path):
    options = {'behavior': 'allow', 'downloadPath': str(tmp_path)}
    page.browser.execute_cdp_cmd('Browser.setDownloadBehavior', options)
    for selector, name in (('#geojson', 'roi.geojson'), ('#label', 'roi.png')):
        page.click(selector)
        page.until((tmp_path / name).is_file, f'{name} is not downloaded')
        time.sleep(0.2)
        if name == 'roi.geojson':
            found = json.loads((tmp_path / name).read_text(encoding='utf-8'))
            assert found == json.loads((result.out / name).read_text(encoding='utf-8')) and found['features']
        else:
            np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / name)) - 1, result.labels)


def test_no_file_but_results_is_served(page, result, site):
    def status(path):
        try:
            with urllib.request.urlopen(site.address + path) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code

    (folder,) = (site.temporary / 'results').iterdir()
    assert status(f'gradio_api/file={folder}/roi.png') == 200
    slide = site.slides / 'a.svs'
    for path in (slide, '/etc/passwd', f'{folder}/../../../../etc/passwd', ROOT / 'setup.py', 'setup.py'):
        assert status(f'gradio_api/file={path}') == 403, path
    assert status('gradio_api/file=http://127.0.0.1:9/a') == 403 and status('docs') != 200
    hostile = {'data': [{'path': '/etc/passwd', 'meta': {'_type': 'gradio.FileData'}}, 1.0, None, 50, 'official']}
    config = json.load(urllib.request.urlopen(site.address + 'config'))
    (number,) = [f['id'] for f in config['dependencies'] if f['targets'][0][1] == 'click' and len(f['inputs']) == 5]
    hostile |= {'fn_index': number, 'session_hash': 'x'}
    request = urllib.request.Request(
        site.address + 'gradio_api/queue/join', json.dumps(hostile).encode(), {'Content-Type': 'application/json'}
    )
    urllib.request.urlopen(request).read()
    answer = urllib.request.urlopen(site.address + 'gradio_api/queue/data?session_hash=x', timeout=20)
    text = ''.join(line.decode() for line, _ in zip(answer, range(40)) if line.strip())
    assert '"success":false' in text.replace(' ', '') and 'root:' not in text


def test_damaged_and_large_uploads_give_a_sentence(page, result):
    page.drop('damaged.png')
    text = page.status('damaged.png')
    assert 'cannot be' in text or 'is damaged' in text
    assert page.all('#status [role=alert]') and page.js('return document.querySelector("#predict").disabled')
    page.drop('large.png')
    page.until(lambda: 'maximum allowed size' in page.text('body'), 'the limit is not named')


def test_result_of_the_last_image_alone_is_kept(page, result, site):
    page.predict('next.png', 1.0)
    assert 'pHYs' not in page.text('#areas')
    page.until(lambda: len(list((site.temporary / 'results').iterdir())) == 1, 'older results are kept')
    assert [path.name for path in (site.temporary / 'results').glob('*/*.png')] == ['next.png']


def test_region_of_a_slide_is_chosen_by_a_click(page, result, site):
    from selenium.webdriver.common.action_chains import ActionChains

    page.js("document.querySelectorAll('button[role=tab]')[1].click()")
    page.until(lambda: page.all('#slide input') and page.all('#slide input')[0].is_displayed(), 'no list of slides')

    def choose(name):
        page.all('#slide input')[0].click()
        code = """const e = [...document.querySelectorAll('[role=option]')].find(e => e.innerText.includes(arguments[0]));
          e?.dispatchEvent(new MouseEvent('mousedown', {bubbles: true})); return !!e"""
        page.until(lambda: page.js(code, name), f'{name} is not in the list')

    choose('unknown.svs')
    assert 'enter it in the field um/px' in page.status('unknown.svs states no resolution')
    choose('a.svs')
    page.status('a.svs: 1 um/px')
    image = page.until(lambda: page.all('#thumbnail img'), 'no thumbnail')[0]
    page.until(lambda: page.js('return arguments[0].naturalWidth', image) == 700, 'no thumbnail')
    page.js('arguments[0].scrollIntoView({block: "center"})', image)
    size = image.size
    ActionChains(page.browser).move_to_element_with_offset(
        image, -size['width'] // 4, -size['height'] // 4
    ).click().perform()
    value = 'return Number(document.querySelector(arguments[0]).value)'
    page.until(lambda: abs(page.js(value, '#x input') - 0.175) < 0.01, 'the click moves no region')
    assert abs(page.js(value, '#y input') - 0.125) < 0.01
    page.click('#predict-region')
    text = page.status('region of a.svs')
    assert 'from px 0, 0 of level 0' in text and 'inside the tissue mask' in text
    (path,) = (site.temporary / 'results').glob('*/*.png')
    assert path.name == 'a_x0_y0.png' and np.asarray(Image.open(path)).min() >= 1


def test_page_fits_narrow_and_wide_windows(page, result):
    for width in (500, 1400):
        with window(page, width):
            time.sleep(0.3)
            assert page.js('return document.documentElement.scrollWidth') <= width
            assert page.js("return document.querySelector('#view').getBoundingClientRect().right") <= width


def test_nothing_is_asked_for_outside_this_computer(page, result, site):
    names = page.js('return performance.getEntriesByType("resource").map(e => e.name)')
    assert len(names) > 20 and all(name.startswith((site.address, 'data:', 'blob:')) for name in names)
    links = page.js(
        'return [...document.querySelectorAll("link[href], script[src], img[src], iframe")].map(e => e.href || e.src)'
    )
    assert all(link.startswith((site.address, 'data:', 'blob:')) for link in links)
    hosts = {address[0] for address in site.peers if isinstance(address, tuple)}
    assert hosts <= {'127.0.0.1', '::1', 'localhost'}, hosts
    severe = [e['message'] for e in page.close() if e['level'] == 'SEVERE']
    # Gradio asks for the progress of an upload that has ended already, and logs the answer, a Response of 404.
    own = [text for text in severe if '413' not in text and '/upload' not in text and not text.endswith(' Response')]
    assert own == []
