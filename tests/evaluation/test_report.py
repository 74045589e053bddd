import json
import re
import zlib
from base64 import b64decode
from html.parser import HTMLParser
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from report_example import evaluate, example_curves, metrics_of, synthetic_items

from mmseg_ignite.errors import IgniteError
from mmseg_ignite.evaluation.report import GalleryItem, write_report
from mmseg_ignite.evaluation.report.gallery import SIDE, encode_item
from mmseg_ignite.evaluation.report.palette import class_colours
from mmseg_ignite.evaluation.report.translations import CLASS_NAMES, TEXTS, both
from mmseg_ignite.labels import CLASSES, IGNORE, PALETTE, decode_mask


class Page(HTMLParser):
    """The elements of a page, and the text of its scripts by id or class."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.scripts, self._script = [], {}, None
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append((tag, attrs))
        if tag == 'script':
            self._script = attrs.get('id') or attrs.get('class') or 'code'

    def handle_endtag(self, tag):
        if tag == 'script':
            self._script = None

    def handle_data(self, data):
        if self._script:
            self.scripts.setdefault(self._script, []).append(data)

    def ids(self):
        return {a['id'] for _, a in self.tags if 'id' in a}


@pytest.fixture(scope='module')
def run():
    rng = np.random.default_rng()
    items = list(synthetic_items(rng))
    evaluation = evaluate(items)
    return items, evaluation, metrics_of(evaluation, rng), example_curves(rng)


def write(path, *arguments, **options):
    write_report(path, *arguments, **options)
    html = path.read_text(encoding='utf-8')
    return html, Page(html)


def test_report_holds_every_section_and_region(run, tmp_path):
    items, evaluation, metrics, curves = run
    html, page = write(tmp_path / 'report.html', metrics, evaluation, iter(items), curves, language='ko')
    sections = {
        'overview',
        'classes',
        'published',
        'confusion',
        'strata',
        'calibration',
        'boundary',
        'training',
        'gallery',
    }
    assert sections <= page.ids()
    assert [a['data-roi'] for t, a in page.tags if t == 'article'] == evaluation.names
    assert dict(page.tags)['html']['lang'] == 'ko'
    assert json.loads(''.join(page.scripts['data']))['confusion'] == evaluation.matrices.sum(0).tolist()
    assert f'{metrics["mIoU"]:.1f}<small> %' in html
    low, high = metrics['intervals']['figures']['kappa']
    assert f'{low:.3f}–{high:.3f}' in html
    assert not re.search(r'\bnan\b', re.sub(r'<script.*?</script>|<style.*?</style>', '', html, flags=re.S).lower())


def test_sections_without_data_are_absent(run, tmp_path):
    _, evaluation, metrics, _ = run
    optional = ('published', 'strata', 'calibration', 'boundary', 'intervals', 'fwIoU', 'kappa')
    bare = {k: v for k, v in metrics.items() if k not in optional}
    html, page = write(tmp_path / 'report.html', bare, evaluation)
    assert {'overview', 'classes', 'confusion'} <= page.ids()
    assert not {'published', 'strata', 'calibration', 'boundary', 'training', 'gallery', 'worst'} & page.ids()
    assert 'data-figure="kappa"' not in html


def test_no_annotated_pixel_and_missing_intervals(tmp_path):
    """Every figure may be undefined."""
    rng = np.random.default_rng()
    (item,) = synthetic_items(rng, rois=1)
    item = item._replace(truth=np.full_like(item.truth, IGNORE), um_per_px=None)
    evaluation = evaluate([item])
    rows = {c: dict(IoU=None, Dice=None, Precision=None, Recall=None, pixels=0, predicted_pixels=0) for c in CLASSES}
    metrics = dict(mIoU=None, aAcc=None, classes=rows, rois=1, classes_present=0)
    metrics['intervals'] = dict(level=95, samples=100, unit='ROI', patients=1, figures={'mIoU': None}, classes={})
    _, page = write(tmp_path / 'report.html', metrics, evaluation, [item])
    assert not [a for _, a in page.tags if a.get('class') == 'bar']  # no resolution, no scale bar


def test_pixels_without_prediction_have_a_column(run, tmp_path):
    _, evaluation, metrics, _ = run
    extra = np.random.default_rng().integers(1, 99, (len(evaluation.names), 16, 1))
    counts = np.concatenate([evaluation.matrices, extra], 2)
    with_nothing = SimpleNamespace(**vars(evaluation), counts=counts)
    _, page = write(tmp_path / 'report.html', metrics, with_nothing)
    assert json.loads(''.join(page.scripts['data']))['confusion'] == counts.sum(0).tolist()
    assert sum(a.get('role') == 'gridcell' for _, a in page.tags) == 16 * 17


def test_worst_regions_are_listed_where_none_is_shown(run, tmp_path):
    items, evaluation, metrics, _ = run
    worst = [dict(roi='roi7', patient='3', mIoU=12.34, aAcc=45.67, confused=['Stroma', 'nothing', 8.9])]
    html, page = write(tmp_path / 'report.html', {**metrics, 'worst_rois': worst}, evaluation)
    assert 'worst' in page.ids() and '12.3' in html and '8.9 %' in html
    _, page = write(tmp_path / 'report.html', {**metrics, 'worst_rois': worst}, evaluation, items)
    assert 'worst' not in page.ids()


def test_nothing_is_loaded_from_elsewhere(run, tmp_path):
    items, evaluation, metrics, curves = run
    html, page = write(tmp_path / 'report.html', metrics, evaluation, items, curves)
    for tag, attrs in page.tags:
        for name in ('src', 'href', 'action', 'srcset'):
            assert attrs.get(name, '#').startswith(('#', 'data:')), (tag, attrs)
    assert not re.search(r'https?://', html)
    policy = next(a['content'] for t, a in page.tags if a.get('http-equiv') == 'Content-Security-Policy')
    assert "default-src 'none'" in policy and 'script-src' in policy and 'unsafe-eval' not in policy


@pytest.mark.parametrize(
    'hostile',
    ['</script><script>alert(1)</script>', '"><img src=x onerror=alert(1)>', "{{ 7*7 }}'&amp;", '<!--<script>'],
)
def test_hostile_names_stay_text(run, tmp_path, hostile):
    items, _, metrics, _ = run
    item = items[0]._replace(roi=hostile, metadata={'patient': hostile, hostile: hostile})
    evaluation = evaluate([item, *items[1:]], (hostile, *CLASSES[1:]))
    rows = {hostile if c == 'Background' else c: row for c, row in metrics['classes'].items()}
    strata = {hostile: {hostile: next(iter(metrics['strata']['organ'].values()))}}
    worst = [dict(roi=hostile, patient=hostile, mIoU=1.0, aAcc=1.0, confused=[hostile, hostile, 1.0])]
    metrics = {**metrics, 'classes': rows, 'config': hostile, 'strata': strata, 'worst_rois': worst}
    for gallery in ([item, *items[1:]], ()):
        curves = {f'loss{hostile}': {0: 1.0, 1: 2.0}, 'loss': {0: 1.0, 1: 2.0}}
        _, page = write(tmp_path / 'report.html', metrics, evaluation, gallery, curves)
        assert sum(t == 'script' and 'type' not in a for t, a in page.tags) == 2
        assert not [a for _, a in page.tags if any(name.startswith('on') for name in a) or a.get('src') == 'x']
        assert json.loads(''.join(page.scripts['data']))['classes'][0]['en'] == hostile
    _, page = write(tmp_path / 'report.html', metrics, evaluation, [item])
    assert next(a['data-roi'] for t, a in page.tags if t == 'article') == hostile


def test_gallery_is_read_one_by_one(run, tmp_path):
    """A region is asked for only after the one before it has been written."""
    items, evaluation, metrics, _ = run
    target, sizes = tmp_path / 'report.html', []

    def gallery():
        for item in items:
            (partial,) = tmp_path.glob('.report.*')
            sizes.append(partial.stat().st_size)
            yield item

    write_report(target, metrics, evaluation, gallery())
    assert len(sizes) == len(items)
    assert all(before < after for before, after in zip(sizes, sizes[1:]))
    assert not list(tmp_path.glob('.report.*'))


@pytest.mark.parametrize('shape', [(37, 53), (1500, 900), (3, 2500)])
def test_region_as_encoded(shape):
    rng = np.random.default_rng()
    truth = rng.choice([*range(16), IGNORE], shape).astype(np.uint8)
    prediction = rng.integers(0, 16, shape).astype(np.uint8)
    image = rng.integers(0, 256, (*shape, 3)).astype(np.uint8)
    matrix = evaluate([GalleryItem('a', {}, image, truth, prediction, 0.5)]).matrices[0]
    found = encode_item(GalleryItem('a', {}, image, truth, prediction, 0.5), matrix, CLASSES)
    width, height = found['width'], found['height']
    assert max(width, height) == min(SIDE, max(shape))
    rows, columns = (
        np.minimum((np.arange(n) + 0.5) * s / n, s - 1).astype(int) for n, s in ((height, shape[0]), (width, shape[1]))
    )
    for key, labels in (('truth', truth), ('prediction', prediction)):
        ids = np.frombuffer(zlib.decompress(b64decode(found[key])), np.uint8).reshape(height, width)
        np.testing.assert_array_equal(ids, labels[np.ix_(rows, columns)])
    jpeg = cv2.imdecode(np.frombuffer(b64decode(found['image']), np.uint8), cv2.IMREAD_COLOR)
    assert jpeg.shape == (height, width, 3)
    valid = truth != IGNORE
    assert found['aAcc'] == pytest.approx(100 * (truth == prediction)[valid].mean())
    wrong = matrix - np.diag(np.diag(matrix))
    mistake = found['mistaken']
    assert wrong[mistake['truth'], mistake['prediction']] == wrong.max()
    assert mistake['share'] == pytest.approx(100 * wrong.max() / valid.sum())
    assert found['bar']['um'] / (0.5 * shape[1]) == pytest.approx(found['bar']['percent'] / 100)


def test_real_tissue_keeps_its_look_and_labels(real_release):
    """Every real region, within 28.5 dB of the original; with the colour at half size, as JPEG usually has it, the worst is
    at 27.3."""
    for path in sorted((real_release / 'images' / 'he').glob('*_he_roi?.png')):
        image = cv2.imread(str(path))
        mask = cv2.imread(str(real_release / 'annotations' / 'he' / path.name), cv2.IMREAD_UNCHANGED)
        truth = decode_mask(mask).labels
        item = GalleryItem(
            path.stem, {}, image[..., ::-1], truth, np.where(truth == IGNORE, 0, truth).astype(np.uint8), 0.5
        )
        found = encode_item(item, evaluate([item]).matrices[0], CLASSES)
        assert (
            cv2.PSNR(cv2.imdecode(np.frombuffer(b64decode(found['image']), np.uint8), cv2.IMREAD_COLOR), image) > 28.5
        )
        ids = np.frombuffer(zlib.decompress(b64decode(found['truth'])), np.uint8)
        np.testing.assert_array_equal(ids.reshape(truth.shape), truth)


def test_faults_are_told_in_a_sentence(run, tmp_path):
    items, evaluation, metrics, _ = run
    path = tmp_path / 'report.html'
    with pytest.raises(IgniteError, match='language'):
        write_report(path, metrics, evaluation, language='fr')
    with pytest.raises(IgniteError, match='not scored'):
        write_report(path, metrics, evaluation, [items[0]._replace(roi='other')])
    with pytest.raises(IgniteError, match='one size'):
        write_report(path, metrics, evaluation, [items[0]._replace(truth=items[0].truth[1:])])
    (tmp_path / 'file').write_text('')
    with pytest.raises(IgniteError, match='cannot be written'):
        write_report(tmp_path / 'file' / 'report.html', metrics, evaluation)
    assert not path.exists()


def test_every_class_and_text_has_both_languages():
    assert set(CLASSES) <= set(CLASS_NAMES)
    for key, texts in TEXTS.items():
        fields = [sorted(re.findall(r'\{(\w+)\}', text)) for text in texts]
        assert len(texts) == 2 and all(texts) and fields[0] == fields[1], key
    assert str(both('interval', level='<b>')).count('&lt;b&gt;') == 2
    assert both('<column>') == '&lt;column&gt;'


LMS = np.array(
    [[0.31399022, 0.63951294, 0.04649755], [0.15537241, 0.75789446, 0.08670142], [0.01775239, 0.10944209, 0.87256922]]
)
DICHROMACIES = {
    'protanopia': [[0, 1.05118294, -0.05116099], [0, 1, 0], [0, 0, 1]],
    'deuteranopia': [[1, 0, 0], [0.9513092, 0, 0.04866992], [0, 0, 1]],
    'tritanopia': [[1, 0, 0], [0, 1, 0], [-0.86744736, 1.86727089, 0]],
}  # Vienot, Brettel & Mollon (1999), as tabulated by DaltonLens


def seen_by(rgb, dichromacy):
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    simulated = np.clip(linear @ (np.linalg.inv(LMS) @ np.array(DICHROMACIES[dichromacy]) @ LMS).T, 0, 1)
    srgb = np.where(simulated <= 0.0031308, simulated * 12.92, 1.055 * simulated ** (1 / 2.4) - 0.055)
    return cv2.cvtColor(srgb[None].astype(np.float32), cv2.COLOR_RGB2LAB)[0]


@pytest.mark.parametrize('dichromacy', DICHROMACIES)
def test_second_palette_is_told_apart_without_one_kind_of_cone(dichromacy):
    """Classes that share a colour differ in stripes; other colours are at least 12 apart (CIE 1976), those of the
    official palette 0.6 times as far or less."""
    colours = [class_colours(name, i) for i, name in enumerate(CLASSES)]
    assert len({(c.safe, c.hatched) for c in colours}) == 16
    unique = sorted({c.safe for c in colours})
    rgb = np.array([[int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)] for c in unique])

    def nearest(values):
        lab = seen_by(values, dichromacy)
        return np.linalg.norm(lab[:, None] - lab, axis=2)[np.triu_indices(len(values), 1)].min()

    assert nearest(rgb) > 12
    assert nearest(np.array(PALETTE) / 255) < 0.6 * nearest(rgb)
