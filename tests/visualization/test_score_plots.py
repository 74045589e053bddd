import numpy as np
import pytest
from PIL import Image

from mmseg_ignite.errors import IgniteError
from mmseg_ignite.evaluation import scores
from mmseg_ignite.evaluation.report import GalleryItem
from mmseg_ignite.labels import CLASSES, IGNORE, PALETTE
from mmseg_ignite.visualization import score_plots as plots


class Run:
    classes = CLASSES

    def __init__(self, matrices):
        self.matrices = matrices


@pytest.fixture
def run():
    """Ten random matrices in which Liver is absent."""
    rng = np.random.default_rng()
    matrices = rng.integers(0, 50, (10, 16, 16)) + 400 * np.eye(16, dtype=np.int64)
    matrices[:, CLASSES.index('Liver')] = 0
    return Run(matrices)


def metrics_of(run):
    result = scores(run.matrices.sum(0), CLASSES)
    lines = {c: dict(IoU=[r['IoU'] - 5, r['IoU'] + 4], Dice=None) for c, r in result['classes'].items() if r['pixels']}
    return {**result, 'intervals': dict(level=95, unit='patient', patients=7, classes=lines)}


def test_figures_are_files_for_print(run, tmp_path):
    for path in plots.write_figures(tmp_path / 'figures', metrics_of(run), run):
        picture = Image.open(path)
        assert picture.info['dpi'] == pytest.approx((200, 200), abs=0.1)
        assert min(picture.size) > 1000
        assert np.array(picture.convert('L')).std() > 10
    assert {p.name for p in (tmp_path / 'figures').iterdir()} == {'confusion.png', 'class_scores.png'}
    (tmp_path / 'file').write_text('')
    with pytest.raises(IgniteError, match='cannot be written'):
        plots.write_figures(tmp_path / 'file', metrics_of(run), run)


def test_confusion_shows_percent_of_the_truth(run):
    pooled = run.matrices.sum(0)
    axis = plots.plot_confusion(pooled, CLASSES).axes[0]
    written = {(round(t.get_position()[1]), round(t.get_position()[0])): t.get_text() for t in axis.texts}
    for (row, column), count in np.ndenumerate(pooled):
        share = 100 * count / pooled[row].sum() if pooled[row].any() else np.nan
        if share >= 0.5:
            assert written.pop((row, column)) == f'{share:.0f}'
    assert written == {(CLASSES.index('Liver'), 0): 'absent'}


def test_pixels_without_prediction_lower_the_shares(run):
    pooled = run.matrices.sum(0)
    counts = np.concatenate([pooled, pooled.sum(1, keepdims=True)], 1)  # half of each class
    axis = plots.plot_confusion(counts, CLASSES).axes[0]
    assert [t.get_text() for t in axis.get_xticklabels()] == [*CLASSES, 'no prediction']
    last = [t.get_text() for t in axis.texts if round(t.get_position()[0]) == 16]
    assert last == ['50'] * 15


def test_bars_have_official_colours_dark_edges_and_whiskers(run):
    metrics = metrics_of(run)
    left, right = plots.plot_class_scores(metrics, CLASSES).axes
    for axis, key in ((left, 'IoU'), (right, 'Dice')):
        bars = {round(p.get_y() + p.get_height() / 2): p for p in axis.patches}
        assert CLASSES.index('Liver') not in bars and len(bars) == 15
        for row, bar in bars.items():
            assert bar.get_width() == pytest.approx(metrics['classes'][CLASSES[row]][key])
            assert bar.get_facecolor()[:3] == pytest.approx(np.array(PALETTE[row]) / 255)
            assert max(bar.get_edgecolor()[:3]) < 0.3  # white Background must be seen
    ends = {tuple(line.get_xdata()) for line in left.lines}
    for name in CLASSES:
        interval = metrics['intervals']['classes'].get(name, {}).get('IoU')
        assert interval is None or tuple(interval) in ends
    metrics['intervals']['classes']['Stroma']['patients'] = 1
    lines = plots.plot_class_scores(metrics, CLASSES).axes[0].lines
    assert tuple(metrics['intervals']['classes']['Stroma']['IoU']) not in {tuple(line.get_xdata()) for line in lines}


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
