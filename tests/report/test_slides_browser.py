"""The page of predicted slides in a real browser, served over HTTP and opened as a file."""

import functools
import http.server
import io
import threading
from urllib.parse import quote

import numpy as np
import pytest
from chromium import Page, chromium, window
from PIL import Image

from mmseg_ignite.labels import CLASSES, PALETTE
from mmseg_ignite.report.deep_zoom import write_deep_zoom
from mmseg_ignite.report.slides_page import SlideEntry, write_slides_page
from mmseg_ignite.visualization.colours import class_colours

HOSTILE = '</script><img src=x onerror="window.hacked=1">'
TUMOR, STROMA, FATTY = (CLASSES.index(name) for name in ('Tumor epithelium', 'Stroma', 'Fatty tissue'))
PINK, UM = (200, 120, 180), 0.5
GRAY = 0.3 * PINK[0] + 0.59 * PINK[1] + 0.11 * PINK[2]
HEIGHT, WIDTH = 1400, 1800
PLACES = {TUMOR: (300, 400), STROMA: (300, 1300), FATTY: (1000, 400), 0: (1100, 1300)}
"""(y, x) of a pixel inside each class of the first slide."""


class Server(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope='module')
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp('chromium')) as driver:
        yield driver


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    """Write four slides, one of which has a hostile name, and serve them; return folder and address."""
    out = tmp_path_factory.mktemp('out')
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    labels[:700, :900], labels[:700, 900:], labels[700:, :900] = TUMOR, STROMA, FATTY
    image = np.broadcast_to(np.uint8(PINK), (HEIGHT, WIDTH, 3))
    areas = [{'class': CLASSES[i], 'mm2': 0.1575, 'share': 1 / 3} for i in (TUMOR, STROMA, FATTY)]
    ratios = [dict(name='stroma_share', value=0.5, formula='stroma / (tumor + stroma)')]
    small = np.full((50, 70), STROMA, np.uint8)
    entries = []
    for name, folder, ids, um, notes in (
        ('first', 'first_tiles', labels, UM, ['Two tiles are missing.']),
        (HOSTILE, 'a #%ü_tiles', small, UM, [HOSTILE]),
        ('roi', 'roi_tiles', small, None, []),
    ):
        write_deep_zoom(out / folder, image[: ids.shape[0], : ids.shape[1]], ids, um)
        entries.append(SlideEntry(name, out / folder, areas if name == 'first' else [], ratios, notes))
    halves = np.zeros((1301, 1101, 3), np.uint8)
    halves[:, 600:], halves[1000:] = PINK, (0, 90, 0)
    write_deep_zoom(out / 'c', halves, np.full((1301, 1101), TUMOR, np.uint8), UM, max_um_per_px=2 * UM)
    write_slides_page(out, [*entries, SlideEntry('coarse', out / 'c', areas)])
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Server, directory=out))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield out, f'http://127.0.0.1:{server.server_port}/'
    server.shutdown()


class Slides(Page):
    """The opened page."""

    def __init__(self, browser, site, end=''):
        self.out, self.address = site
        super().__init__(browser, self.address + 'slides.html' + end)
        self.loaded()

    def loaded(self):
        """Wait until all tiles in view are drawn."""
        code = """const { viewer } = Slides, n = viewer.world.getItemCount();
        const items = Array.from({ length: n }, (_, i) => viewer.world.getItemAt(i));
        if (n !== 3 || !items.every(i => i.getOpacity() === 0 || i.getFullyLoaded())) return false;
        viewer.viewport.zoomTo(viewer.viewport.getZoom(), null, true); viewer.forceRedraw(); return true"""
        self.until(lambda: self.js(code), 'tiles are not loaded')
        self.browser.execute_async_script(
            'const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(() => requestAnimationFrame(done)))'
        )

    def pixel(self, y, x):
        """Return the colour on the canvas at a pixel of the label raster."""
        return self.js(
            """const { viewer } = Slides, point = viewer.world.getItemAt(2).imageToViewerElementCoordinates(
              new OpenSeadragon.Point(arguments[1] + .5, arguments[0] + .5));
            const r = window.devicePixelRatio, copy = new OffscreenCanvas(1, 1).getContext('2d', {willReadFrequently: true});
            copy.drawImage(viewer.drawer.canvas, -Math.floor(point.x * r), -Math.floor(point.y * r));
            return [...copy.getImageData(0, 0, 1, 1).data]""",
            y, x,
        )  # fmt: skip

    def colour(self, label):
        self.loaded()
        *rgb, alpha = self.pixel(*PLACES[label])
        assert alpha == 255
        return np.array(rgb)

    def opacity(self, percent):
        self.js(
            'const s = document.getElementById("opacity"); s.value = arguments[0];'
            's.dispatchEvent(new Event("input", {bubbles: true}))', percent
        )  # fmt: skip

    def requests(self):
        return self.js('return performance.getEntriesByType("resource").map(e => e.name)')


@pytest.fixture
def page(browser, site):
    page = Slides(browser, site)
    yield page
    assert all(name.startswith(page.address) for name in page.requests()) and not page.js('return window.hacked')
    assert page.close() == []


def close(found, expected, tolerance=4):
    return np.abs(np.asarray(found, float) - expected).max() <= tolerance


def test_labels_lie_over_gray_tissue_and_the_slider_blends_them(page):
    for label in (TUMOR, STROMA, FATTY):
        assert close(page.colour(label), 0.5 * GRAY + 0.5 * np.array(PALETTE[label]))
    assert close(page.colour(0), PINK)  # Background is hidden at first
    page.opacity(100)
    assert close(page.colour(TUMOR), PALETTE[TUMOR])
    page.opacity(0)
    assert close(page.colour(TUMOR), PINK)
    assert {'slide', 'labels'} == {name.split('/')[4] for name in page.requests() if '/first_tiles/' in name}


def test_classes_are_hidden_and_shown_without_loading_tiles_again(page):
    page.opacity(100)
    page.loaded()
    before = page.requests()
    page.click(f'[data-toggle="{TUMOR}"]')
    assert close(page.colour(TUMOR), PINK) and close(page.colour(STROMA), PALETTE[STROMA])
    page.click(f'[data-toggle="{TUMOR}"]')
    assert close(page.colour(TUMOR), PALETTE[TUMOR])
    page.click('[data-all=true]')
    assert close(page.colour(0), PALETTE[0])
    page.click('[data-all=false]')
    assert close(page.colour(STROMA), PINK)
    assert {b.get_attribute('aria-pressed') for b in page.all('[data-toggle]')} == {'false'}
    page.js(
        'document.querySelector("[data-toggle=\\"6\\"]")'
        '.dispatchEvent(new MouseEvent("click", {bubbles: true, shiftKey: true}))'
    )
    assert close(page.colour(FATTY), PALETTE[FATTY]) and close(page.colour(TUMOR), PINK)
    assert page.requests() == before


def test_outlines_leave_the_tissue_free(page):
    page.opacity(100)
    page.click('[data-switch=style] [data-value=outlines]')
    assert close(page.colour(TUMOR), PINK)
    page.js(
        'const { viewport, world } = Slides.viewer;'
        'viewport.fitBounds(world.getItemAt(2).imageToViewportRectangle(800, 250, 200, 150), true)'
    )
    page.loaded()
    assert close(page.pixel(300, 898)[:3], PALETTE[TUMOR], 70) and close(page.pixel(300, 901)[:3], PALETTE[STROMA], 70)
    assert close(page.pixel(300, 885)[:3], PINK) and close(page.pixel(300, 915)[:3], PINK)


def test_safe_palette_has_its_colours_and_stripes(page):
    page.opacity(100)
    page.click('[data-switch=palette] [data-value=safe]')

    def rgb(label):
        return [int(class_colours(CLASSES[label], label).safe[i : i + 2], 16) for i in (1, 3, 5)]

    assert close(page.colour(TUMOR), rgb(TUMOR))
    y, x = PLACES[FATTY]
    stripes = np.array([page.pixel(y, x + 2 * i)[:3] for i in range(32)]).sum(1)
    assert stripes.max() >= sum(rgb(FATTY)) - 30 and stripes.min() < 0.6 * sum(rgb(FATTY))


def test_scale_bar_follows_the_zoom(page):
    lengths = []
    for zoom in (1, 3, 11):
        page.js('Slides.viewer.viewport.zoomTo(arguments[0] * Slides.viewer.viewport.getHomeZoom(), null, true)', zoom)
        page.loaded()
        (bar,) = page.all('#bar')
        value, unit = bar.text.split()
        um = float(value) * {'µm': 1, 'mm': 1000}[unit]
        ends = page.js(
            """const item = Slides.viewer.world.getItemAt(0);
            const at = x => item.imageToViewerElementCoordinates(new OpenSeadragon.Point(x, 0)).x;
            return [at(0), at(arguments[0])]""",
            um / UM,
        )  # fmt: skip
        width = page.js('return document.getElementById("bar").getBoundingClientRect().width')
        assert width == pytest.approx(ends[1] - ends[0], abs=0.6) and 40 < width <= 221
        lengths.append(um)
    assert lengths[0] > lengths[1] > lengths[2]


def test_language_switch_changes_all_text(page):
    def words():
        return [
            page.all('h1')[0].text, page.all('[data-toggle="3"]')[0].text, page.js('return document.title'),
            page.all('#ratios dt')[0].text.split('\n')[0],
            page.js('return Slides.viewer.canvas.getAttribute("aria-label")')[:5],
        ]  # fmt: skip

    assert words()[:4] == ['Predicted tissue', 'Stroma', 'Predicted tissue', 'Stroma share']
    before = words()
    page.click('[data-switch=language] [data-value=ko]')
    assert words()[:3] == ['조직 영역 예측 결과', '기질 Stroma', '조직 영역 예측 결과']
    assert not set(before) & set(words())
    visible = 'return [...document.querySelectorAll("body [lang=en]")].filter(e => e.getClientRects().length).length'
    assert page.js(visible) == 0


def test_panel_shows_areas_ratios_and_notes_of_the_chosen_slide(page):
    def rows():
        return [r.text.split() for r in page.all('#areas tbody tr') if r.is_displayed()]

    assert rows() == [[*CLASSES[i].split(), '0.158', '33.3'] for i in (TUMOR, STROMA, FATTY)]
    assert '0.90 × 0.70 mm' in page.all('#facts')[0].text and page.all('#notes li')[0].text == 'Two tiles are missing.'
    page.click('[data-absent]')
    assert len(rows()) == len(CLASSES)
    page.click('[data-slide="1"]')
    page.loaded()
    assert page.all('#name')[0].text == HOSTILE and page.all('#notes li')[0].text == HOSTILE
    assert close(page.pixel(25, 35)[:3], 0.5 * GRAY + 0.5 * np.array(PALETTE[STROMA]))
    page.click('[data-slide="2"]')
    page.loaded()
    assert not page.all('#bar')[0].is_displayed() and 'unknown' in page.all('#facts')[0].text
    pressed = [b.get_attribute('aria-pressed') for b in page.all('[data-slide]')]
    assert pressed == ['false', 'false', 'true', 'false'] and page.browser.current_url.endswith('#roi')


def test_address_names_the_slide(browser, site):
    page = Slides(browser, site, '#' + quote(HOSTILE))
    assert page.all('#name')[0].text == HOSTILE and page.close() == []


def test_slide_coarser_than_its_labels_lies_under_them(page):
    page.click('[data-slide="3"]')
    page.opacity(0)
    page.loaded()
    assert page.js('return Slides.viewer.world.getItemAt(0).getContentSize().x') == 551
    for (y, x), expected in {
        (500, 590): (0, 0, 0),
        (500, 610): PINK,
        (990, 610): PINK,
        (1010, 610): (0, 90, 0),
    }.items():
        assert close(page.pixel(y, x)[:3], expected, 12)


def test_keyboard_and_pointer(page):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    page.opacity(100)
    canvas = page.all('#stage [tabindex="0"]')[0]
    state = 'const v = Slides.viewer.viewport; return [v.getZoom(), v.getCenter().x, v.getRotation(), v.getFlip()]'
    zoom, x, *_ = page.js(state)
    canvas.send_keys('+', '+', '+')
    page.until(lambda: page.js(state)[0] > zoom, 'no zoom')
    canvas.send_keys(Keys.ARROW_RIGHT)
    page.until(lambda: page.js(state)[1] > x, 'no move')
    canvas.send_keys('r', 'f', '0')
    page.until(lambda: page.js(state)[:2] == pytest.approx([zoom, x]), 'not fitted')
    assert page.js(state)[2:] == [0, False]
    canvas.send_keys('l')
    assert close(page.colour(TUMOR), PINK) and page.all('#shown')[0].get_attribute('aria-pressed') == 'false'
    page.click('#shown')
    assert close(page.colour(TUMOR), PALETTE[TUMOR])
    stage = page.js('return document.getElementById("stage").getBoundingClientRect().toJSON()')
    for label, name in ((TUMOR, 'Tumor epithelium'), (0, 'Background')):
        y, x = PLACES[label]
        at = page.js(
            'const p = Slides.viewer.world.getItemAt(2).imageToViewerElementCoordinates('
            'new OpenSeadragon.Point(arguments[0], arguments[1])); return [p.x, p.y]', x, y
        )  # fmt: skip
        (box,) = page.all('#stage')
        dx, dy = round(at[0] - stage['width'] / 2), round(at[1] - stage['height'] / 2)
        ActionChains(page.browser).move_to_element_with_offset(box, dx, dy).perform()
        page.until(lambda name=name: page.all('#pointer')[0].text == name, f'{name} is not at the pointer')


def test_page_fits_the_width_of_the_window(page):
    for width in (1400, 800, 400):
        with window(page, width):
            for language in ('en', 'ko'):
                page.click(f'[data-switch=language] [data-value={language}]')
                assert page.js('return document.documentElement.scrollWidth') <= width
            page.loaded()
            box = page.js('return document.getElementById("stage").getBoundingClientRect().toJSON()')
            assert box['width'] >= 0.55 * width and box['height'] > 400
            assert page.pixel(*PLACES[TUMOR])[3] == 255


def test_page_works_without_a_server(browser, site):
    out, address = site
    page = Slides(browser, (out, out.as_uri() + '/'))
    page.opacity(100)
    page.loaded()
    x, y = page.js(
        'const b = document.getElementById("stage").getBoundingClientRect(), y = arguments[0], x = arguments[1];'
        'const p = Slides.viewer.world.getItemAt(2).imageToViewerElementCoordinates(new OpenSeadragon.Point(x, y));'
        'return [b.x + p.x, b.y + p.y]', *PLACES[TUMOR]
    )  # fmt: skip
    picture = Image.open(io.BytesIO(page.browser.get_screenshot_as_png())).convert('RGB')
    assert close(picture.getpixel((int(x), int(y))), PALETTE[TUMOR]) and page.close() == []


def test_missing_tiles_are_named(browser, site, tmp_path):
    out, address = site
    tile = out / 'roi_tiles' / 'labels' / '0' / '0_0.js'
    content = tile.read_bytes()
    tile.unlink()
    try:
        page = Page(browser, address + 'slides.html#roi')
        page.until(lambda: 'folders of tiles' in page.all('.load-error')[0].text, 'no message')
    finally:
        tile.write_bytes(content)
        page.close()
