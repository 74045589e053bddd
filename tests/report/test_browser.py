"""The report in a real browser: Chromium without a window, driven by selenium."""

import numpy as np
import pytest
from chromium import Page, chromium, window
from report_example import evaluate, example_curves, metrics_of, synthetic_items

from mmseg_ignite.labels import CLASSES, IGNORE, PALETTE
from mmseg_ignite.report import GalleryItem, write_report
from mmseg_ignite.visualization.colours import class_colours

MAPS = ('truth', 'prediction')
HOSTILE = '</script><img src=x onerror="window.hacked=1">'
WRONG, RIGHT = [194, 24, 91, 255], [255, 255, 255, 255]
TUMOR, STROMA = CLASSES.index('Tumor epithelium'), CLASSES.index('Stroma')
FATTY = CLASSES.index('Fatty tissue')


def small_item():
    """Return 40 x 60 px with tumor at the left, stroma at the right and an unannotated top.

    In the prediction, the border is 10 px further right, and the bottom right is fat instead of stroma. The tissue has one
    colour, so that JPEG changes nothing."""
    truth = np.full((40, 60), STROMA, np.uint8)
    truth[:, :30] = TUMOR
    prediction = np.full((40, 60), STROMA, np.uint8)
    prediction[:, :40] = TUMOR
    prediction[24:, 44:] = FATTY
    truth[:8] = IGNORE
    image = np.full((40, 60, 3), (200, 120, 180), np.uint8)
    return GalleryItem('small', {'patient': '9', 'organ': 'lung', 'scanner': 'AT2'}, image, truth, prediction, 0.5)


@pytest.fixture(scope='module')
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp('chromium')) as driver:
        yield driver


@pytest.fixture(scope='module')
def report(tmp_path_factory):
    """Return path, metrics and items of a report with a hostile region name and with :func:`small_item`."""
    rng = np.random.default_rng()
    items = [*synthetic_items(rng, rois=5), small_item()]
    items[0] = items[0]._replace(roi=HOSTILE)
    liver, other = CLASSES.index('Liver'), CLASSES.index('Stroma')  # Liver is in neither map
    items = [
        item._replace(
            **{k: np.where(getattr(item, k) == liver, other, getattr(item, k)).astype(np.uint8) for k in MAPS}
        )
        for item in items
    ]
    evaluation = evaluate(items)
    metrics = metrics_of(evaluation, rng)
    path = tmp_path_factory.mktemp('report') / 'report.html'
    write_report(path, metrics, evaluation, items, example_curves(rng))
    return path, metrics, items


class Driver(Page):
    """The opened report and the actions of the tests."""

    def __init__(self, browser, report):
        self.path, self.metrics, self.items = report
        super().__init__(browser, self.path.as_uri())

    def opacity(self, percent):
        self.js(
            'const s = document.getElementById("opacity"); s.value = arguments[0];'
            's.dispatchEvent(new Event("input", {bubbles: true}))', percent
        )  # fmt: skip

    def pixels(self, roi, kind):
        """Return a region's canvas, (H, W, 4) uint8, after pending redraws."""
        region = f'[data-roi={roi}]'
        self.js(f'document.querySelector("{region}").scrollIntoView({{block: "center"}})')
        self.until(lambda: self.js(f'return document.querySelector("{region}").classList.contains("drawn")'), roi)
        values = self.browser.execute_async_script(
            """const done = arguments[arguments.length - 1];
            requestAnimationFrame(() => requestAnimationFrame(() => {
              const c = document.querySelector(arguments[0]);
              const copy = new OffscreenCanvas(c.width, c.height).getContext('2d', {willReadFrequently: true});
              copy.drawImage(c, 0, 0);
              done([c.width, c.height, [...copy.getImageData(0, 0, c.width, c.height).data]]);
            }))""",
            f'{region} [data-kind={kind}] canvas',
        )
        width, height, data = values
        return np.array(data, np.uint8).reshape(height, width, 4)


@pytest.fixture
def page(browser, report):
    driver = Driver(browser, report)
    yield driver
    assert driver.close() == []


def test_page_opens_without_errors_and_runs_no_foreign_code(page):
    page.pixels('small', 'truth')
    assert page.js('return window.hacked') is None
    assert page.js('return document.images.length') == 0
    assert HOSTILE in page.js('return [...document.querySelectorAll(".region h3")].map(e => e.textContent)')
    resources = page.js('return performance.getEntriesByType("resource").map(e => e.name)')
    assert [name for name in resources if not name.startswith('data:')] == []


def test_regions_are_sorted_by_score_or_name(page):
    def shown():
        return page.js('return [...document.querySelectorAll(".region")].map(e => [e.dataset.roi, +e.dataset.miou])')

    worst = shown()
    assert [s for _, s in worst] == sorted(s for _, s in worst)
    page.click('[data-switch=order] [data-value=best]')
    assert [s for _, s in shown()] == sorted((s for _, s in worst), reverse=True)
    page.click('[data-switch=order] [data-value=name]')
    names = [name for name, _ in shown()]
    assert set(names) == {item.roi for item in page.items}
    assert [n for n in names if n.startswith('patient')] == [i.roi for i in page.items if i.roi.startswith('patient')]


def test_error_map_is_exact(page):
    item = small_item()
    page.click('[data-panel=error]')
    page.opacity(100)
    found = page.pixels('small', 'error')
    wrong = (item.truth != item.prediction) & (item.truth != IGNORE)
    right = (item.truth == item.prediction) & (item.truth != IGNORE)
    assert (found[wrong] == WRONG).all() and (found[right] == RIGHT).all()
    bare = found[item.truth == IGNORE].astype(int)
    assert np.abs(bare - [200, 120, 180, 255]).max() <= 3  # JPEG
    page.click(f'.desk [data-toggle="{TUMOR}"]')  # errors that involve stroma stay
    page.click(f'.desk [data-toggle="{FATTY}"]')
    found = page.pixels('small', 'error')
    stroma = (item.truth == STROMA) | (item.prediction == STROMA)
    assert (found[wrong & stroma] == WRONG).all()
    assert np.abs(found[right & ~stroma].astype(int) - [200, 120, 180, 255]).max() <= 3


def test_slider_blends_colour_and_tissue(page):
    inside = (20, 10)  # tumor, away from any border
    page.opacity(0)
    assert np.abs(page.pixels('small', 'truth')[inside].astype(int) - [200, 120, 180, 255]).max() <= 3
    page.opacity(100)
    assert page.pixels('small', 'truth')[inside].tolist() == [*PALETTE[TUMOR], 255]
    page.opacity(50)
    gray = 0.3 * 200 + 0.59 * 120 + 0.11 * 180
    expected = [0.5 * gray + 0.5 * c for c in PALETTE[TUMOR]]
    assert np.abs(page.pixels('small', 'truth')[inside][:3] - np.array(expected)).max() <= 4


def test_slider_moves_with_the_keyboard(page):
    from selenium.webdriver.common.keys import Keys

    before = page.pixels('small', 'truth')
    (slider,) = page.all('#opacity')
    slider.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert [o.text for o in page.all('.desk output')] == ['65 %']
    assert (page.pixels('small', 'truth') != before).any()


def test_legend_hides_and_shows_classes(page):
    page.opacity(100)
    before = page.pixels('small', 'prediction')
    page.click(f'.desk [data-toggle="{TUMOR}"]')
    after, item = page.pixels('small', 'prediction'), small_item()
    tumor = item.prediction == TUMOR
    assert np.abs(after[tumor].astype(int) - [200, 120, 180, 255]).max() <= 3
    np.testing.assert_array_equal(after[~tumor], before[~tumor])
    page.click(f'.desk [data-toggle="{TUMOR}"]')
    np.testing.assert_array_equal(page.pixels('small', 'prediction'), before)
    page.click('[data-all=false]')
    assert np.abs(page.pixels('small', 'prediction').astype(int) - [200, 120, 180, 255]).max() <= 3
    assert {b.get_attribute('aria-pressed') for b in page.all('[data-toggle]')} == {'false'}


def test_safe_palette_shows_its_colours_and_stripes(page):
    page.opacity(100)
    page.click('[data-switch=palette] [data-value=safe]')
    found, item = page.pixels('small', 'prediction'), small_item()

    def rgb(label):
        return [int(class_colours(CLASSES[label], label).safe[i : i + 2], 16) for i in (1, 3, 5)]

    assert found[20, 10, :3].tolist() == rgb(TUMOR)
    fat = {tuple(p) for p in found[item.prediction == FATTY][:, :3].tolist()}
    assert tuple(rgb(FATTY)) in fat and len(fat) > 2  # colour, stripes, border
    swatch = page.js('return getComputedStyle(document.querySelector("#class-table .c1")).backgroundColor')
    assert swatch == 'rgb({}, {}, {})'.format(*rgb(TUMOR))
    page.browser.refresh()
    assert page.js('return document.documentElement.dataset.palette') == 'safe'  # remembered


def test_table_sorts_by_mouse_and_keyboard(page):
    from selenium.webdriver.common.keys import Keys

    def order(column):
        return page.js(
            'const rows = [...document.querySelectorAll("#class-table tbody tr")];'
            'return rows.map(r => r.cells[arguments[0]].dataset.value)', column
        )  # fmt: skip

    def present(column):
        values = order(column)
        assert values == sorted(values, key=lambda v: v == '')  # absent classes stay last
        return [float(v) for v in values if v]

    buttons = page.all('#class-table .sort')
    buttons[1].click()
    assert present(1) == sorted(present(1), reverse=True)
    assert page.all('#class-table th')[1].get_attribute('aria-sort') == 'descending'
    buttons[1].send_keys(Keys.ENTER)
    assert present(1) == sorted(present(1))
    buttons[0].send_keys(Keys.SPACE)
    assert order(0) == sorted(CLASSES)
    expected = {c: row['IoU'] for c, row in page.metrics['classes'].items()}
    assert dict(zip(order(0), order(1))) == {c: '' if v is None else str(v) for c, v in expected.items()}


def test_language_switch_changes_all_text(page):
    def words():
        return page.js('return document.querySelector("h1").innerText'), page.all('.desk [data-toggle="3"]')[0].text

    assert words() == ('Tissue segmentation report', 'Stroma')
    page.click('[data-switch=language] [data-value=ko]')
    assert words() == ('조직 영역 분할 평가 보고서', '기질 Stroma')
    assert page.all('.matrix tbody td')[0].get_attribute('aria-label').startswith('배경 (Background) → ')
    assert page.all('#opacity')[0].get_attribute('aria-label') == '불투명도'
    english = page.js(
        'return [...document.querySelectorAll("body [lang=en]")].filter(e => e.getClientRects().length).length'
    )
    assert english == 0
    page.browser.refresh()
    assert words()[0] == '조직 영역 분할 평가 보고서'  # remembered


def test_confusion_matrix_shows_numbers_on_hover_and_focus(page):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    counts = np.array(page.js('return Report.data.confusion'))
    present = np.flatnonzero(counts.sum(1))
    i = int(present[0])
    cells = page.all('.matrix [role=gridcell]')
    ActionChains(page.browser).move_to_element(cells[16 * i + i]).perform()
    text = page.all('#cell')[0].text
    assert f'{counts[i, i]:,} px' in text and CLASSES[i] in text
    cells[16 * i + i].send_keys(Keys.ARROW_RIGHT)
    right = next(j for j in range(i + 1, 16) if counts[:, j].sum() + counts[j].sum())  # the next visible class
    assert f'{CLASSES[i]} → {CLASSES[right]}: ' in page.all('#cell')[0].text
    assert page.js('return document.activeElement.cellIndex') == right + 1
    for mode, sums in (('rows', counts.sum(1)), ('columns', counts.sum(0))):
        page.click(f'[data-switch=normalise] [data-value={mode}]')
        share, *pixels = cells[16 * i + i].text.split('\n')
        assert float(share or 0) == pytest.approx(100 * counts[i, i] / sums[i], abs=0.51)
        if pixels:
            digits, unit = pixels[0].rstrip('kM'), {'k': 1e3, 'M': 1e6}.get(pixels[0][-1], 1)
            assert float(digits) * unit == pytest.approx(counts[i, i], rel=0.06)
    page.click('[data-switch=normalise] [data-value=absolute]')
    assert page.js('return document.querySelector(".strong") !== null')


def test_panels_and_large_view(page):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.actions.wheel_input import ScrollOrigin
    from selenium.webdriver.common.keys import Keys

    page.click('[data-panel=truth]')
    shown = page.js(
        'return [...document.querySelectorAll("[data-roi=small] .pane:not([hidden])")].map(p => p.dataset.kind)'
    )
    assert shown == ['image', 'prediction']
    page.pixels('small', 'image')
    page.click('[data-roi=small] [data-kind=prediction]')
    stages = page.until(lambda: page.all('.stage canvas'), 'no stage')
    assert len(stages) == 2

    def transforms():
        return [s.get_attribute('style').split('transform:')[1].split(';')[0] for s in stages]

    before = transforms()
    box = page.all('.stage')[1]
    ActionChains(page.browser).scroll_from_origin(ScrollOrigin.from_element(box), 0, -300).perform()
    zoomed = transforms()
    ActionChains(page.browser).drag_and_drop_by_offset(box, 40, 10).perform()
    dragged = transforms()
    assert len({before[0], zoomed[0], dragged[0]}) == 3
    assert all(a == b for a, b in (before, zoomed, dragged))  # both panels show the same part
    assert 'prediction' in page.all('#pointer')[0].text
    page.all('dialog')[0].send_keys('0')
    assert transforms() == before
    page.all('dialog')[0].send_keys(Keys.ESCAPE)
    page.until(lambda: not page.js('return document.getElementById("viewer").open'), 'still open')


def test_regions_off_screen_free_their_pixels(page):
    """Canvases are drawn only near the screen, and emptied when they leave it."""
    page.js('window.scrollTo(0, 0)')
    page.pixels('small', 'truth')
    page.js('document.body.style.paddingBottom = "9000px"; window.scrollTo(0, document.body.scrollHeight)')
    page.until(lambda: page.js('return !document.querySelector(".region.drawn")'), 'regions keep their pixels')
    assert page.js('return Math.max(...[...document.querySelectorAll(".region canvas")].map(c => c.width))') == 1


@pytest.mark.parametrize('width', [1400, 800, 400])
def test_page_fits_the_width_of_the_window(page, width):
    with window(page, width):
        for language in ('en', 'ko'):
            page.click(f'[data-switch=language] [data-value={language}]')
            assert page.js('return document.documentElement.scrollWidth') <= width


def test_tissue_is_the_first_panel_and_four_panels_form_a_square(page):
    shown = '.region .pane:not([hidden])'
    first = page.js(
        f'return [...document.querySelector(".region").querySelectorAll("{shown}")].map(p => p.dataset.kind)'
    )
    assert first == ['image', 'truth', 'prediction']
    page.click('[data-panel=error]')
    with window(page, 1400):
        boxes = page.js(
            'return [...document.querySelectorAll("[data-roi=small] .frame")].map(f => f.getBoundingClientRect().toJSON())'
        )
        assert len(boxes) == 4
        columns, rows = ({round(box[key]) for box in boxes} for key in ('left', 'top'))
        assert len(columns) == len(rows) == 2
        assert max(box['right'] for box in boxes) <= 1400
        assert max(box['bottom'] for box in boxes) - min(box['top'] for box in boxes) < 900


def test_absent_classes_are_shown_on_demand(page):
    counts = np.array(page.js('return Report.data.confusion'))
    absent = int(((counts.sum(0) + counts.sum(1)) == 0).sum())

    def rows():
        return page.js(
            'return [".matrix tbody tr", "#class-table tbody tr", ".desk [data-toggle]"].map('
            's => [...document.querySelectorAll(s)].filter(e => e.getClientRects().length).length)'
        )

    assert absent and rows() == [16 - absent] * 3
    page.click('#classes .toggle')
    assert rows() == [16] * 3
    assert {b.get_attribute('aria-pressed') for b in page.all('[data-absent].toggle')} == {'true'}
    page.click('#confusion .toggle')
    assert rows() == [16 - absent] * 3


def test_tables_wider_than_the_window_show_a_hint(page):
    def state():
        return page.js(
            'const box = document.querySelector("#class-table").parentElement;'
            'return [box.className, box.previousElementSibling.getClientRects().length > 0]'
        )  # fmt: skip

    with window(page, 1400):
        page.until(lambda: state() == ['wide', False], 'a table that fits shows the hint')
    with window(page, 400):
        page.until(lambda: state() == ['wide more-right', True], 'a table that does not fit shows no hint')
        page.js('document.querySelector("#class-table").parentElement.scrollLeft = 9999')
        page.until(lambda: state() == ['wide more-left', True], 'the hint does not change at the end of the table')
