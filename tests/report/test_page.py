import json
import re
import zlib
from base64 import b64decode
from html import unescape
from html.parser import HTMLParser
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from report_example import evaluate, example_curves, metrics_of, synthetic_items

from mmseg_ignite.errors import IgniteError
from mmseg_ignite.evaluation import Evaluation
from mmseg_ignite.labels import CLASSES, IGNORE, PALETTE, decode_mask
from mmseg_ignite.report import GalleryItem, charts, write_report
from mmseg_ignite.report.gallery import SIDE, encode_item
from mmseg_ignite.report.translations import CLASS_NAMES, LANGUAGES, TEXTS, both
from mmseg_ignite.visualization.colours import class_colours


class Page(HTMLParser):
    """The tags of a page with their attributes, and the text of its scripts by id or class."""

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


def test_report_contains_every_section_and_region(run, tmp_path):
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


def test_report_without_annotated_pixels_and_intervals(tmp_path):
    """Every score may be undefined."""
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
    with_counts = SimpleNamespace(**vars(evaluation), counts=counts)
    _, page = write(tmp_path / 'report.html', metrics, with_counts)
    assert json.loads(''.join(page.scripts['data']))['confusion'] == counts.sum(0).tolist()
    assert sum(a.get('role') == 'gridcell' for _, a in page.tags) == 16 * 17


def test_worst_regions_are_listed_without_a_gallery(run, tmp_path):
    items, evaluation, metrics, _ = run
    worst = [dict(roi='roi7', patient='3', mIoU=12.34, aAcc=45.67, confused=['Stroma', 'nothing', 8.9])]
    html, page = write(tmp_path / 'report.html', {**metrics, 'worst_rois': worst}, evaluation)
    assert 'worst' in page.ids() and '12.3' in html and '8.9 %' in html
    _, page = write(tmp_path / 'report.html', {**metrics, 'worst_rois': worst}, evaluation, items)
    assert 'worst' not in page.ids()


def visible_text(html):
    return re.sub(r'<[^>]+>', ' ', re.sub(r'<script.*?</script>|<style.*?</style>', '', html, flags=re.S))


def test_provenance_shows_checksums_with_their_full_value(run, tmp_path):
    _, evaluation, metrics, _ = run
    known = dict(version='0.9.1', date='2026-01-02T03:04:05Z', command='tools/test.py "a" <b> & c', seed=0,
                 config_sha256='ab' * 32, checkpoint_sha256=['cd' * 32, 'ef' * 32], data_sha256='12' * 32)  # fmt: skip
    html, page = write(tmp_path / 'report.html', {**metrics, 'provenance': known}, evaluation)
    titles = [a['title'] for t, a in page.tags if a.get('class') == 'hash']
    assert titles == ['ab' * 32, 'cd' * 32, 'ef' * 32, '12' * 32]
    text = unescape(visible_text(html))
    for value in (known['version'], known['date'], known['command'], *titles):
        assert value in text
    assert 'provenance' in page.ids() and re.search(r'Seed.*?<code>0</code>', html)
    _, page = write(tmp_path / 'report.html', {**metrics, 'provenance': {}}, evaluation)
    assert 'provenance' not in page.ids()


def test_seen_patients_are_a_warning_at_the_top(run, tmp_path):
    _, evaluation, metrics, _ = run
    html, page = write(tmp_path / 'report.html', {**metrics, 'seen_patients': ['1', '<2>'], 'patients': 9}, evaluation)
    assert [a['role'] for t, a in page.tags if a.get('class') == 'warning'] == ['alert']
    assert html.index('class="warning"') < html.index('id="overview"')
    assert '2 of 9 test patients were used to train or select this checkpoint, so these scores are too high.' in html
    assert (
        '테스트 환자 9명 중 2명의 데이터가 이 체크포인트의 학습이나 선택에 쓰였으므로' in html
        and '1, &lt;2&gt;' in html
    )
    _, page = write(tmp_path / 'report.html', {**metrics, 'seen_patients': []}, evaluation)
    assert not [a for _, a in page.tags if a.get('class') == 'warning']


def with_absent(run, absent):
    """Return the evaluation without the ids ``absent``, and its metrics."""
    _, evaluation, _, _ = run
    counts = evaluation.matrices.copy()
    counts[:, absent], counts[:, :, absent] = 0, 0
    known = [dict(m, roi=n) for m, n in zip(evaluation.metadata, evaluation.names)]
    found = Evaluation(evaluation.names, counts, CLASSES, known)
    return found, found.metrics(samples=100)


def test_classes_in_neither_map_are_hidden(run, tmp_path):
    evaluation, metrics = with_absent(run, [7, 14])
    gone = [c for c, row in metrics['classes'].items() if not row['pixels'] and not row['predicted_pixels']]
    assert {CLASSES[7], CLASSES[14]} <= set(gone) and len(gone) < 16
    html, page = write(tmp_path / 'report.html', metrics, evaluation)
    rows = {a['data-class']: a.get('class') for t, a in page.tags if t == 'tr' and 'data-class' in a}
    assert [CLASSES[int(i)] for i, kind in rows.items() if kind == 'gone'] == gone
    assert sum(a.get('role') == 'gridcell' and a.get('class') == 'gone' for _, a in page.tags) == 16 * len(gone)
    assert f'Show absent classes ({len(gone)})' in html
    evaluation, metrics = with_absent(run, [])
    evaluation.matrices[0] += 1
    html, page = write(tmp_path / 'report.html', evaluation.metrics(samples=0), evaluation)
    assert 'Show absent classes' not in visible_text(html)
    assert not [a for t, a in page.tags if t == 'tr' and a.get('class') == 'gone']


def test_confusion_matrix_lists_pixels_and_patients_of_each_class(run, tmp_path):
    _, evaluation, metrics, _ = run
    html, _ = write(tmp_path / 'report.html', metrics, evaluation)
    table = html[html.index('class="matrix"') :]
    found = re.findall(
        r'<td class="sum">([\d,]+)</td><td class="sum">(\d+)</td></tr>', table[: table.index('</table>')]
    )
    for (pixels, patients), i in zip(found, range(16), strict=True):
        assert int(pixels.replace(',', '')) == evaluation.matrices[:, i].sum()
        held = {m['patient'] for m, matrix in zip(evaluation.metadata, evaluation.matrices) if matrix[i].any()}
        assert int(patients) == len(held)


def test_protocol_groups_and_subgroups_have_intervals(tmp_path):
    rng = np.random.default_rng()
    known = [dict(roi=f'r{i}', patient=f'p{i % 6}', organ=('lung', 'liver')[i % 6 < 4]) for i in range(12)]
    evaluation = Evaluation([m['roi'] for m in known], rng.integers(1, 99, (12, 16, 16)), CLASSES, known)
    metrics = evaluation.metrics(samples=200)
    html, _ = write(tmp_path / 'report.html', metrics, evaluation)

    def section(name):
        return html[html.index(f'<section id="{name}"') :].split('</section>')[0]

    def text(interval):
        return '{:.1f}–{:.1f}'.format(*interval)

    published, group = metrics['published']['intervals'], metrics['groupings']['ignite-6']['intervals']
    assert text(published['classes']['Stroma']) in section('published')
    assert text(published['groups_micro_dice']) in section('published')
    assert text(group['groups']['Tumor']['IoU']) in section('groupings') and text(group['figures']['mDice']) in section(
        'groupings'
    )
    strata = metrics['strata']['organ']
    assert {name: row['patients'] for name, row in strata.items()} == {'lung': 2, 'liver': 4}
    for row in strata.values():  # fewer than five patients each: marked
        for key in ('mIoU', 'mDice', 'aAcc'):
            assert f'{text(row["intervals"][key])}<sup>†</sup>' in section('strata')
    assert '†' not in re.sub(r'<p class="note">.*?</p>', '', section('published'))


def test_folds_form_a_table(run, tmp_path):
    _, evaluation, metrics, _ = run
    rows = [
        dict(fold=f'fold{k}', rois=3, patients=2, classes_present=5, mIoU=40.0 + k, mDice=50.0, aAcc=60.0)
        for k in range(5)
    ]
    folds = dict(rows=rows, mean=dict(mIoU=42.0, mDice=50.0, aAcc=60.0), sd=dict(mIoU=1.6, mDice=0.0, aAcc=None))
    html, page = write(tmp_path / 'report.html', {**metrics, 'folds': folds}, evaluation)
    table = html[html.index('<section id="folds"') :].split('</section>')[0]
    assert 'folds' in page.ids() and '44.0' in table and '42.0' in table and '1.6' in table and 'nsemble' not in table
    ensemble = dict(mIoU=47.5, mDice=55.0, aAcc=66.0, rois=9, patients=4, classes_present=6)
    html, _ = write(tmp_path / 'report.html', {**metrics, 'folds': folds, 'ensemble': ensemble}, evaluation)
    table = html[html.index('<section id="folds"') :].split('</section>')[0]
    assert '47.5' in table and 'Ensemble, test part' in table


def test_dot_areas_are_shares_of_pixels():
    bins = [
        {'from': i / 5, 'to': (i + 1) / 5, 'pixels': n, 'confidence': 20.0 * i + 10, 'accuracy': 50.0, 'error': 9.0}
        for i, n in enumerate((1, 4, 0, 45, 50))
    ]
    bins[2].update(confidence=None, accuracy=None, error=None)
    for chart in (charts.reliability(bins), charts.entropy_chart(bins)):
        radii = [float(r) for r in re.findall(r'<circle [^>]*r="([\d.]+)"', chart)]
        assert np.square(radii) / np.square(radii).sum() == pytest.approx([0.01, 0.04, 0.45, 0.5], abs=0.002)
        assert '(45.0 % of the pixels)' in chart and '<rect' not in chart


@pytest.mark.parametrize('last', [1, 2, 3, 5, 9, 17, 3113, 20_000])
def test_iteration_ticks_are_integers(last):
    chart = charts.line_chart({'loss': [(n, 1.0) for n in {1, last}]}, 'iteration')
    ticks = [float(t) for t in re.findall(r'class="mid">([^<]+)<', chart)]
    assert 1 <= len(ticks) <= 7 and all(t == int(t) and 1 <= t <= last for t in ticks)


def test_page_is_self_contained(run, tmp_path):
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
def test_hostile_names_are_escaped(run, tmp_path, hostile):
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


def test_gallery_is_read_lazily(run, tmp_path):
    """A region is requested only after the previous one has been written."""
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
def test_encoded_region_matches_its_arrays(shape):
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
    *pair, share = found['mistaken']
    assert wrong[tuple(pair)] == wrong.max()
    assert share == pytest.approx(100 * wrong.max() / valid.sum())
    assert found['bar']['um'] / (0.5 * shape[1]) == pytest.approx(found['bar']['percent'] / 100)


def test_real_tissue_keeps_its_appearance_and_labels(real_release):
    """Every real region is within 28.5 dB of the original; with 4:2:0 chroma, the usual choice, the worst has 27.3 dB."""
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


def test_errors_are_one_sentence(run, tmp_path):
    items, evaluation, metrics, _ = run
    path = tmp_path / 'report.html'
    with pytest.raises(IgniteError, match='language'):
        write_report(path, metrics, evaluation, language='fr')
    with pytest.raises(IgniteError, match='not scored'):
        write_report(path, metrics, evaluation, [items[0]._replace(roi='other')])
    with pytest.raises(IgniteError, match='same size'):
        write_report(path, metrics, evaluation, [items[0]._replace(truth=items[0].truth[1:])])
    (tmp_path / 'file').write_text('')
    with pytest.raises(IgniteError, match='cannot be written'):
        write_report(tmp_path / 'file' / 'report.html', metrics, evaluation)
    assert not path.exists()


def test_every_class_and_text_has_both_languages():
    assert set(CLASSES) <= set(CLASS_NAMES)
    for key, texts in TEXTS.items():
        fields = [sorted(re.findall(r'\{(\w+)\}', texts[language])) for language in LANGUAGES]
        assert set(texts) == set(LANGUAGES) and all(texts.values()) and fields[0] == fields[1], key
        assert '간질' not in texts['ko']  # stroma is 기질
        assert ('데이터 구분' in texts['ko']) == ('plit' in texts['en'] or key == 'split'), key
        assert ('분할' in texts['ko']) == ('egmentation' in texts['en']), key
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
def test_safe_palette_is_distinct_in_every_dichromacy(dichromacy):
    """Classes that share a colour differ in stripes; other colours are more than 12 apart (CIE 1976).

    The smallest distance in the official palette is less than 0.6 times that."""
    colours = [class_colours(name, i) for i, name in enumerate(CLASSES)]
    assert len({(c.safe, c.hatched) for c in colours}) == 16
    unique = sorted({c.safe for c in colours})
    rgb = np.array([[int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)] for c in unique])

    def nearest(values):
        lab = seen_by(values, dichromacy)
        return np.linalg.norm(lab[:, None] - lab, axis=2)[np.triu_indices(len(values), 1)].min()

    assert nearest(rgb) > 12
    assert nearest(np.array(PALETTE) / 255) < 0.6 * nearest(rgb)
