import io

import numpy as np
import pytest
from PIL import Image

from mmseg_ignite.datasets.transforms.stain import Stains
from mmseg_ignite.labels import CLASSES
from mmseg_ignite.visualization.dataset_plots import (
    PatientStains,
    SampledCrops,
    natural,
    percent,
    plain,
    plot_class_pixels,
    plot_class_presence,
    plot_resolutions,
    plot_roi_sizes,
    plot_sampled_crops,
    plot_stains,
    two_digits,
)

HOSTILE = ('$\\frac{', '_hidden', '<b>', 'two\nlines', 'x' * 300, '', '{}%s')


def roi(name, patient, pixels, side=1000, um_per_px=0.5):
    return dict(name=name, patient=patient, pixels=pixels, height=side, width=2 * side, um_per_px=um_per_px)


@pytest.fixture
def members():
    """Three parts of ROIs with random classes; class 13 is in none, class 7 only in train."""
    rng, parts = np.random.default_rng(), {}
    for part, count in (('train', 9), ('val', 2), ('test', 3)):
        pixels = rng.integers(0, 2, (count, 16)) * rng.integers(1, 10**6, (count, 16))
        pixels[:, 13] = 0
        pixels[:, 7] = 5 if part == 'train' else 0
        parts[part] = [roi(f'{part}{i}', f'{part}{i // 2}', row.tolist()) for i, row in enumerate(pixels)]
    return parts


def texts(axis):
    return [t.get_text() for t in axis.texts]


def rendered(figure):
    """Render the figure; raises if that fails."""
    stream = io.BytesIO()
    figure.savefig(stream, dpi=60)
    return Image.open(stream)


def held(members):
    """Return the ids of the classes in any ROI."""
    return [c for c in range(16) if any(r['pixels'][c] for rois in members.values() for r in rois)]


def test_class_pixels_are_points_with_their_number_or_marked_absent(members):
    figure = plot_class_pixels(members)
    assert 13 not in held(members) and CLASSES[13] in figure.get_supxlabel()
    for axis, rois in zip(figure.axes, members.values()):
        expected = [sum(r['pixels'][c] for r in rois) for c in held(members)]
        points = np.concatenate([c.get_offsets() for c in axis.collections])
        assert sorted(map(tuple, points)) == sorted((n, row) for row, n in enumerate(expected) if n)
        assert axis.get_xscale() == 'log' and not axis.patches  # bar lengths mean nothing on a logarithmic axis
        assert texts(axis) == [f'{count:,}' if count else 'absent' for count in expected]
        assert axis.get_title(loc='left').endswith(f'{len(rois)} ROIs, {len({r["patient"] for r in rois})} patients')
    rendered(figure)
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == [CLASSES[c] for c in held(members)]


def test_margin_counts_rois_and_patients(members):
    axis = plot_class_presence(members).axes[0]
    rois = sum(members.values(), [])
    for row, label in enumerate(held(members)):
        holders = [r for r in rois if r['pixels'][label] > 0]
        found = [t.get_text() for t in axis.texts if t.get_position()[1] == row]
        assert found == [str(len(holders)), str(len({r['patient'] for r in holders}))]


def test_matrix_shows_shares_of_annotated_pixels_sorted_by_patient():
    first, second = [0] * 16, [0] * 16
    first[3], first[4], second[3] = 30, 10, 7
    axis = plot_class_presence(dict(train=[roi('b', '10', second), roi('a', '9', first)])).axes[0]
    shares = axis.images[0].get_array()
    assert [t.get_text() for t in axis.get_yticklabels()] == [CLASSES[3], CLASSES[4]]
    assert shares.tolist() == [[0.75, 1.0], [0.25, None]]  # patient 9 before patient 10


def test_sizes_have_the_unit_of_the_axis(members):
    for um_range, factor, unit in ((None, 1, 'px'), ((0.4, 0.6), 0.5, 'µm')):
        axis = plot_roi_sizes(members, (256, 512), um_range).axes[0]
        points = np.concatenate([c.get_offsets() for c in axis.collections])
        assert (points == [2000 * factor, 1000 * factor]).all() and len(points) == 14
        assert unit in axis.get_xlabel() and unit in axis.get_ylabel()
        boxes = [(box.get_width(), box.get_height()) for box in axis.patches]
        np.testing.assert_allclose(boxes, [(512 * s, 256 * s) for s in um_range or (1,)])


def test_every_roi_is_in_the_histogram(members):
    axis = plot_resolutions(members, (0.4, 0.6)).axes[0]
    assert sum(bar.get_height() for stack in axis.containers for bar in stack) == 14


def test_shares_are_printed_with_their_ratio():
    data, pixels, holding = (np.zeros(16, np.int64) for _ in range(3))
    data[:4], pixels[:3], holding[:3] = (600, 200, 100, 100), (100, 100, 200), (10, 20, 5)
    figure = plot_sampled_crops(SampledCrops(40, pixels, holding, 0.5, data))
    left, right = figure.axes
    assert texts(left)[:4] == [
        '60 % → 25 %   × 0.42',
        '20 % → 25 %   × 1.2',
        '10 % → 50 %   × 5.0',
        '10 % → never sampled',
    ]
    assert [t.get_text() for t in left.get_yticklabels()] == list(CLASSES[:4])
    assert figure.get_supxlabel() == f'not in the training data: {", ".join(CLASSES[4:])}'
    assert texts(right) == ['25 %', '50 %', '12 %', '0 %']
    rendered(figure)


def stains(strength):
    return Stains(np.array([[0.56, 0.72, 0.41], [0.21, 0.80, 0.56]]), np.array([strength, 1.0]))


@pytest.mark.parametrize('key', ['scanner', 'source'])
def test_hostile_names_of_scanners_and_patients_are_rendered(key):
    rows = [dict(patient=text, scanner='one', source='one') | {key: text} for text in HOSTILE]
    figure = plot_stains([PatientStains(**row, stains=stains(i + 1)) for i, row in enumerate(rows)])
    assert rendered(figure).width > 500
    legend = figure.axes[0].get_legend()
    assert legend.get_title().get_text() == key and len(legend.get_texts()) == len(HOSTILE)


def test_stains_of_more_groups_than_colours_and_of_none():
    many = [PatientStains(str(i), f's{i}', 'x', stains(i)) for i in range(1, 20)]
    figure = plot_stains([*many, PatientStains('99', 'x', 'x', None)])
    assert sum(len(c.get_offsets()) for c in figure.axes[0].collections) == 19
    assert figure.axes[0].get_legend().get_texts()[-1].get_text() == 'others (12)'
    assert '99' not in texts(figure.axes[1])
    assert rendered(plot_stains([PatientStains('1', 'x', 'x', None)])).width > 500


def test_an_empty_part_and_a_single_roi_are_rendered():
    members = dict(train=[roi('a', '1', [5] + [0] * 15)], val=[], test=[])
    for figure in (
        plot_class_pixels(members), plot_class_presence(members), plot_roi_sizes(members, None, None),
        plot_resolutions(members, None),
    ):  # fmt: skip
        rendered(figure)
    assert texts(plot_class_pixels(members).axes[1]) == ['absent']
    nothing = dict(train=[roi('a', '1', [0] * 16)], val=[], test=[])
    assert texts(plot_class_pixels(nothing).axes[0]) == ['absent'] * 16


@pytest.mark.parametrize(
    'share,text',
    [(0, '0 %'), (1, '100 %'), (0.5, '50 %'), (0.0994, '9.9 %'), (0.0996, '10 %'), (0.001234, '0.12 %'), (1e-9, '< 0.001 %')],
)  # fmt: skip
def test_percent(share, text):
    assert percent(share) == text


def test_two_digits():
    assert [two_digits(v) for v in (0, 0.8, 1, 12.3, 345)] == ['0', '0.80', '1.0', '12', '345']


def test_natural_order():
    assert sorted(['10', '2', 'b', 'a10', 'a9', ''], key=natural) == ['', '2', '10', 'a9', 'a10', 'b']


def test_plain_text_is_one_short_line_that_legends_show():
    for text in HOSTILE:
        shown = plain(text)
        assert shown.strip() and '\n' not in shown and not shown.startswith('_') and len(shown) <= 26
