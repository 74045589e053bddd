import numpy as np
import pytest
from PIL import Image

from mmseg_ignite.errors import IgniteError
from mmseg_ignite.evaluation import scores
from mmseg_ignite.labels import CLASSES, IGNORE, PALETTE
from mmseg_ignite.report import GalleryItem
from mmseg_ignite.visualization import score_plots as plots


class Run:
    classes = CLASSES

    def __init__(self, matrices):
        self.matrices = matrices


@pytest.fixture
def run():
    """Ten random matrices; Liver is only predicted, and Keratinization is in neither map."""
    rng = np.random.default_rng()
    matrices = rng.integers(0, 50, (10, 16, 16)) + 400 * np.eye(16, dtype=np.int64)
    matrices[:, CLASSES.index('Liver')] = 0
    matrices[:, -1], matrices[:, :, -1] = 0, 0
    return Run(matrices)


def metrics_of(run):
    result = scores(run.matrices.sum(0), CLASSES)
    lines = {c: dict(IoU=[r['IoU'] - 5, r['IoU'] + 4], Dice=None) for c, r in result['classes'].items() if r['pixels']}
    return {**result, 'intervals': dict(level=95, unit='patient', patients=7, classes=lines)}


def test_figures_are_written_for_print(run, tmp_path):
    written = plots.write_figures(tmp_path / 'figures', metrics_of(run), run)
    assert {p.name for p in (tmp_path / 'figures').iterdir()} == {p.name for p in written} == set(plots.FIGURE_FILES)
    assert len(plots.FIGURE_FILES) == 6
    for path in written:
        if path.suffix == '.svg':
            text = path.read_text(encoding='utf-8')
            assert '>Tumor epithelium' in text and 'font' in text  # text, not outlines
        if path.suffix == '.pdf':
            content = path.read_bytes()
            assert content.startswith(b'%PDF') and b'/Type3' not in content and b'/Subtype /Type3' not in content
        if path.suffix != '.png':
            continue
        picture = Image.open(path)
        assert picture.info['dpi'] == pytest.approx((200, 200), abs=0.1)
        assert min(picture.size) > 1000
        assert np.array(picture.convert('L')).std() > 10
    (tmp_path / 'file').write_text('')
    with pytest.raises(IgniteError, match='cannot be written'):
        plots.write_figures(tmp_path / 'file', metrics_of(run), run)


def test_confusion_shows_percent_of_the_ground_truth(run):
    pooled, patients = run.matrices.sum(0), np.arange(16)
    figure = plots.plot_confusion(pooled, CLASSES, patients)
    axis, written = figure.axes[0], {}
    for text in axis.texts:
        written.setdefault((round(text.get_position()[1]), round(text.get_position()[0])), []).append(text.get_text())
    for (row, column), count in np.ndenumerate(pooled):
        share = 100 * count / pooled[row].sum() if pooled[row].any() else np.nan
        if share >= 0.5:
            percent, pixels = written.pop((row, column))
            assert percent == f'{share:.0f}'
            assert float(pixels.rstrip('k')) * (1000 if pixels.endswith('k') else 1) == pytest.approx(count, rel=0.05)
    assert written == {(CLASSES.index('Liver'), 0): ['absent']}
    labels = [t.get_text() for t in axis.get_yticklabels()]
    assert [label.split('\n')[0] for label in labels] == list(CLASSES[:-1])
    assert labels[1].endswith('px, 1 patient') and labels[5].endswith('px, 5 patients')
    assert 'neither' in figure.get_supxlabel() and 'Keratinization' in figure.get_supxlabel()


@pytest.mark.parametrize(
    ('pixels', 'text'),
    [
        (0, '0'),
        (749, '749'),
        (1000, '1.0k'),
        (9949, '9.9k'),
        (9951, '10k'),
        (43_210, '43k'),
        (2_130_000, '2.1M'),
        (3 * 10**9, '3.0G'),
    ],
)
def test_pixel_counts_are_abbreviated(pixels, text):
    assert plots._short(pixels) == text


def test_pixels_without_prediction_reduce_the_shares(run):
    pooled = run.matrices.sum(0)
    counts = np.concatenate([pooled, pooled.sum(1, keepdims=True)], 1)  # half of each class
    axis = plots.plot_confusion(counts, CLASSES).axes[0]
    assert [t.get_text() for t in axis.get_xticklabels()] == [*CLASSES[:-1], 'no prediction']
    last = [t.get_text() for t in axis.texts if round(t.get_position()[0]) == 15]
    assert last[::2] == ['50'] * 14


def test_bars_have_official_colours_dark_edges_and_whiskers(run):
    metrics = metrics_of(run)
    left, right = plots.plot_class_scores(metrics, CLASSES).axes
    for axis, key in ((left, 'IoU'), (right, 'Dice')):
        bars = {round(p.get_y() + p.get_height() / 2): p for p in axis.patches}
        assert CLASSES.index('Liver') not in bars and len(bars) == 14
        printed = {round(t.get_position()[1]): t.get_text() for t in axis.texts if t.get_position()[1] >= 0}
        assert printed.pop(CLASSES.index('Liver')) == 'absent'
        assert printed == {row: f'{metrics["classes"][CLASSES[row]][key]:.1f}' for row in bars}
        for row, bar in bars.items():
            assert bar.get_width() == pytest.approx(metrics['classes'][CLASSES[row]][key])
            assert bar.get_facecolor()[:3] == pytest.approx(np.array(PALETTE[row]) / 255)
            assert max(bar.get_edgecolor()[:3]) < 0.3  # white Background must be visible
    ends = {tuple(line.get_xdata()) for line in left.lines}
    for name in CLASSES:
        interval = metrics['intervals']['classes'].get(name, {}).get('IoU')
        assert interval is None or tuple(interval) in ends
    metrics['intervals']['classes']['Stroma']['patients'] = 1
    lines = plots.plot_class_scores(metrics, CLASSES).axes[0].lines
    assert tuple(metrics['intervals']['classes']['Stroma']['IoU']) not in {tuple(line.get_xdata()) for line in lines}


def test_zero_scores_are_printed_and_classes_in_neither_map_are_listed(run):
    metrics = metrics_of(run)
    metrics['classes']['Stroma'].update(IoU=0.0, Dice=0.0)
    figure = plots.plot_class_scores(metrics, CLASSES)
    row = CLASSES.index('Stroma')
    for axis in figure.axes:
        assert [t.get_text() for t in axis.texts if t.get_position()[1] == row] == ['0.0']
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == list(CLASSES[:-1])
    assert figure.get_supxlabel().endswith('in neither ground truth nor prediction: Keratinization')


@pytest.mark.parametrize('shape', [(60, 90), (300, 40), (20, 400)])
def test_overlay_of_any_shape(shape, tmp_path):
    rng = np.random.default_rng()
    truth = rng.choice([*range(16), IGNORE], shape).astype(np.uint8)
    item = GalleryItem('roi', {}, rng.integers(0, 256, (*shape, 3)).astype(np.uint8), truth, truth % 16, 0.5)
    path = plots.write_paper_overlay(tmp_path / 'overlay.png', item)
    assert Image.open(path).width > 1500
    figure = plots.plot_overlay(item.image, truth, item.prediction)
    assert [t.get_text() for t in figure.axes[3].get_legend().get_texts()] == list(CLASSES)
    assert not figure.axes[0].patches  # no scale bar without a resolution
