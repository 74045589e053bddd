import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console

from mmseg_ignite.labels import CLASSES
from mmseg_ignite.preparation.splits import make_splits, split_table
from mmseg_ignite.visualization.split_shares import plot_split_shares


def index_of(patients, rois_each=2, tested=3, absent=()):
    rng = np.random.default_rng(patients)
    rois = [
        dict(
            name=f'r{i}',
            patient=f'p{i // rois_each}',
            official_split='test' if i // rois_each < tested else 'train',
            pixels=[0 if c in absent else int(n) for c, n in enumerate(rng.integers(1, 10**6, 16))],
            unannotated=int(rng.integers(1, 10**6)),
        )
        for i in range(patients * rois_each)
    ]
    return dict(rois=rois, splits=make_splits(rois))


@pytest.fixture
def plotted(monkeypatch, tmp_path):
    """Return a function that plots an index and returns the panels and texts by protocol, and the path."""
    figures = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, 'savefig', lambda figure, *a, **k: (figures.append(figure), save(figure, *a, **k)))

    def plot(index):
        path = tmp_path / 'splits.png'
        plot_split_shares(index, path)
        panels = {a.get_title('left').split('\n')[0]: a for a in figures[-1].axes if a.get_visible()}
        return panels, {p: [t.get_text() for t in a.texts] for p, a in panels.items()}, path

    return plot


def test_bars_are_the_shares_of_pixels(plotted):
    index = index_of(15, absent=(4,))
    panels, _, path = plotted(index)
    assert list(panels) == list(index['splits'])
    names = [t.get_text() for t in panels['patient-8-1-1'].get_yticklabels()]
    assert names == [c for c in CLASSES if c != 'Inflammation']
    pixels = {r['name']: r['pixels'] for r in index['rois']}
    for protocol, parts in index['splits'].items():
        for bars, names in zip(panels[protocol].containers, parts.values()):
            assert len(bars) == 15
            for number, bar in zip([i for i in range(16) if i != 4], bars):
                total = sum(p[number] for p in pixels.values())
                assert bar.get_width() == pytest.approx(100 * sum(pixels[n][number] for n in names) / total)
    picture = Image.open(path)
    assert picture.width > 1200
    assert len(picture.convert('RGB').getcolors(10**6)) > 50


def test_target_lines_are_at_80_and_90_percent_or_divide_what_the_test_part_leaves(plotted):
    panels, _, _ = plotted(index_of(15))
    ends = {p: [c.get_segments()[0][0, 0] for c in axis.collections] for p, axis in panels.items()}
    assert ends['patient-8-1-1'] == pytest.approx([80, 90])
    assert ends['roi-8-1-1'] == pytest.approx([80, 90])
    for protocol, ratio in (('official', 8 / 9), ('fold2', 4 / 5)):
        test = panels[protocol].containers[2][0].get_width()
        assert ends[protocol] == pytest.approx([(100 - test) * ratio, 100 - test])


def test_absent_and_missing_classes_are_named(plotted):
    index = index_of(15, absent=(4, 9))
    tested = set(index['splits']['official']['test'])
    for roi in index['rois']:
        if roi['name'] in tested:
            roi['pixels'][7] = 0
    panels, texts, _ = plotted(index)
    assert texts['official'] == ['none in test']
    note = panels['official'].figure.get_supxlabel()
    assert note.endswith(f'not in the data: {CLASSES[4]}, {CLASSES[9]}')


def test_titles_count_patients_and_rois_and_leaks(plotted):
    index = index_of(6, rois_each=3, tested=2)
    index['splits']['roi-8-1-1'] = dict(
        train=[f'r{i}' for i in range(2, 17)], val=['r0'], test=['r1', 'r17']
    )  # patients 0 and 5 leak
    panels, _, _ = plotted(index)
    assert panels['official'].get_title('left').split('\n')[1:] == [
        'patients: 3 train, 1 val, 2 test',
        'ROIs: 9 train, 3 val, 6 test',
    ]
    assert panels['roi-8-1-1'].get_title('right').strip() == '2 patients leak'
    assert not any(axis.get_title('right') for protocol, axis in panels.items() if protocol != 'roi-8-1-1')


def test_a_release_with_few_patients_and_no_pixels_is_plotted(plotted):
    panels, texts, path = plotted(index_of(3, tested=0, absent=range(16)))
    assert list(panels) == ['patient-8-1-1', 'roi-8-1-1']
    assert texts['patient-8-1-1'] == ['absent'] * 16
    assert Image.open(path).height > 300


def test_table_sums_each_class_and_part():
    index = index_of(15, absent=(4,))
    table = split_table(index, 'official')
    columns = [list(column.cells) for column in table.columns]
    assert columns[0] == [*(c for c in CLASSES if c != CLASSES[4]), '(unannotated)', 'ROIs', 'patients']
    assert table.caption == f'not in the data: {CLASSES[4]}'
    rois = {r['name']: r for r in index['rois']}
    for column, part in zip(columns[1:], ('train', 'val', 'test')):
        names = index['splits']['official'][part]
        for row, label in ((0, 0), (14, 15)):
            assert float(column[row]) == pytest.approx(sum(rois[n]['pixels'][label] for n in names) / 1e6, abs=6e-4)
        assert float(column[15]) == pytest.approx(sum(rois[n]['unannotated'] for n in names) / 1e6, abs=6e-4)
        assert column[16:] == [str(len(names)), str(len({rois[n]['patient'] for n in names}))]
    console = Console(width=80, record=True)
    console.print(table)
    assert 'official' in console.export_text()
