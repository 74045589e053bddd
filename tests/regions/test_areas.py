"""Areas, ratios and their tables."""

import csv
import io
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from mmseg_ignite.errors import IgniteError
from mmseg_ignite.files import is_ours, write_result
from mmseg_ignite.labels import CLASSES
from mmseg_ignite.regions import RATIOS, SlideAreas, find_components, read_cases, write_areas
from mmseg_ignite.regions import areas as measure
from mmseg_ignite.spreadsheets import read_csv

FORMULAS = {
    'tumor_stroma_ratio': lambda a: a['Tumor epithelium'] / (a['Tumor epithelium'] + a['Stroma']),
    'stroma_share': lambda a: a['Stroma'] / (a['Tumor epithelium'] + a['Stroma']),
    'inflammation_in_stroma': lambda a: a['Inflammation'] / (a['Inflammation'] + a['Stroma']),
    'necrosis_share': lambda a: (
        a['Necrotic tissue'] / (a['Tumor epithelium'] + a['Stroma'] + a['Inflammation'] + a['Necrotic tissue'])
    ),
}


def some_areas(rng, **counts):
    """Return areas of random numbers of pixels; those of the classes in ``counts`` are given, '_' for a space."""
    pixels = {name: int(rng.integers(1, 10**9)) for name in CLASSES}
    return SlideAreas(0.5, 'slide', pixels | {name.replace('_', ' '): count for name, count in counts.items()})


def test_areas_equal_counts_of_the_whole_raster():
    rng = np.random.default_rng()
    labels = rng.integers(0, 15, (1300, 77), np.uint8)  # class 15 is absent
    disagreement, um_per_px = rng.integers(0, 256, labels.shape, np.uint8), rng.uniform(0.1, 2)
    found = measure(labels, um_per_px, disagreement, components=find_components(labels))
    tissue = (labels > 0).sum()
    for i, name in enumerate(CLASSES):
        own = labels == i
        assert found.pixels[name] == own.sum()
        assert found.area_mm2[name] == pytest.approx(own.sum() * (um_per_px / 1000) ** 2, rel=1e-12)
        assert found.share_of_tissue[name] == (None if i == 0 else own.sum() / tissue)
        mean = disagreement[own].mean() / 255 if own.any() else None
        assert found.mean_disagreement[name] == (None if mean is None else pytest.approx(mean, rel=1e-12))
    assert sum(found.regions.values()) == len(find_components(labels)) and found.regions[CLASSES[15]] == 0
    assert measure(labels, um_per_px) == SlideAreas(um_per_px, '', found.pixels)
    assert SlideAreas(**json.loads(json.dumps(asdict(found)))) == found


def test_counts_are_exact_above_the_precision_of_float32():
    labels = np.full((500, 40_000), 3, np.uint8)  # one band
    labels[0, 0] = 1
    found = measure(labels, 1.0, np.full_like(labels, 255))
    assert found.pixels['Stroma'] == 19_999_999 and found.mean_disagreement['Stroma'] == 1.0


def test_ratios_equal_their_formulas():
    found = some_areas(np.random.default_rng())
    assert list(found.ratios) == list(FORMULAS) == [ratio.name for ratio in RATIOS]
    for ratio in RATIOS:
        assert found.ratios[ratio.name] == pytest.approx(FORMULAS[ratio.name](found.area_mm2), rel=1e-12)
    assert found.ratios['tumor_stroma_ratio'] + found.ratios['stroma_share'] == pytest.approx(1)
    assert RATIOS[1].formula == 'Stroma / (Tumor epithelium + Stroma)'


def test_the_docs_have_the_formulas():
    docs = Path(__file__).parents[2] / 'docs'
    text = '\n'.join(path.read_text(encoding='utf-8') for path in docs.glob('*.md'))
    for ratio in RATIOS:
        assert f'| `{ratio.name}` | {ratio.formula} |' in text


def test_glass_has_no_shares_and_no_ratios():
    found = measure(np.zeros((3, 4), np.uint8), 0.5)
    assert found.tissue_pixels == 0 and found.pixels['Background'] == 12
    assert set(found.share_of_tissue.values()) == set(found.ratios.values()) == {None}


@pytest.mark.parametrize(
    'arguments, words',
    [
        ((np.full((2, 2), 255, np.uint8), 1.0), 'value 255; train ids 0..15'),
        ((np.zeros((2, 2), np.uint8), 0), 'um/px is 0'),
        ((np.zeros((2, 2), np.int64), 1.0), 'label raster is int64'),
        ((np.zeros((2, 2), np.uint8), 1.0, np.zeros((2, 3), np.uint8)), r'\(2, 3\); \(2, 2\)'),
        ((np.zeros((2, 2), np.uint8), 1.0, np.zeros((2, 2))), 'disagreement is float64'),
    ],
)
def test_wrong_rasters_are_refused(arguments, words):
    with pytest.raises(IgniteError, match=words):
        measure(*arguments)


def test_tables_hold_all_values_unrounded(tmp_path):
    rng = np.random.default_rng()
    labels = rng.integers(0, 5, (50, 60), np.uint8)
    plain, mapped = measure(labels, 0.1 + 0.2), measure(labels, 1 / 3, labels, 'given', find_components(labels))
    slides = {'=1+1': plain, 'Größe, "b"': mapped}
    write_areas(tmp_path / 'new', slides, {'=1+1': '-A', 'Größe, "b"': '-A'})
    assert sorted(path.name for path in (tmp_path / 'new').iterdir()) == ['areas.csv', 'ratios.csv']
    content = (tmp_path / 'new' / 'areas.csv').read_text(encoding='utf-8')
    cells = list(csv.reader(io.StringIO(content)))
    assert cells[0] == [
        *('slide', 'case', 'class', 'pixels', 'area_mm2', 'share_of_tissue', 'mean_disagreement', 'regions'),
        *('um_per_px', 'um_per_px_source'),
    ]  # fmt: skip
    assert cells[1][:3] == ["'=1+1", "'-A", 'Background'] and len(cells) == 1 + 2 * len(CLASSES)
    for row in read_csv(tmp_path / 'new' / 'areas.csv'):
        found, name = slides[row['slide']], row['class']
        assert row['case'] == '-A' and row['um_per_px_source'] == found.um_per_px_source
        assert int(row['pixels']) == found.pixels[name] and float(row['um_per_px']) == found.um_per_px
        assert float(row['area_mm2']) == found.area_mm2[name]
        assert row['share_of_tissue'] == ('' if name == 'Background' else repr(found.share_of_tissue[name]))
        mean = None if found is plain else found.mean_disagreement[name]
        assert row['mean_disagreement'] == ('' if mean is None else repr(mean))
        assert row['regions'] == ('' if found is plain else str(found.regions[name]))
    write_areas(tmp_path, {'a': plain})
    assert 'mean_disagreement' not in (head := read_csv(tmp_path / 'areas.csv')[0]) and 'regions' not in head


def test_ratios_have_rows_for_cases_of_several_slides(tmp_path):
    rng = np.random.default_rng()
    slides = {name: some_areas(rng) for name in ('a1', 'b1', 'a2', 'c')}
    slides['a3'] = some_areas(rng, Stroma=0, Tumor_epithelium=0, Inflammation=0)
    cases = {'a1': 'A', 'a2': 'A', 'a3': 'A', 'b1': 'B'}
    write_areas(tmp_path, slides, cases)
    rows = {row['slide']: row for row in read_csv(tmp_path / 'ratios.csv')}
    assert list(rows) == ['a1', 'b1', 'a2', 'c', 'a3', 'A (mean of 3)', 'A (minimum of 3)']
    assert [row['case'] for row in rows.values()] == ['A', 'B', 'A', '', 'A', 'A', 'A']
    for ratio in RATIOS:
        known = [slides[name].ratios[ratio.name] for name in ('a1', 'a2', 'a3')]
        assert [rows[name][ratio.name] for name in ('a1', 'a2', 'a3')] == ['' if v is None else repr(v) for v in known]
        known = [value for value in known if value is not None]
        assert float(rows['A (mean of 3)'][ratio.name]) == pytest.approx(np.mean(known))
        assert float(rows['A (minimum of 3)'][ratio.name]) == min(known)
    assert rows['a3']['stroma_share'] == '' and rows['a3']['necrosis_share'] == '1.0'


def test_tables_are_whole_or_absent(tmp_path):
    found = some_areas(np.random.default_rng())
    write_areas(tmp_path, {'a': found})
    before = (tmp_path / 'areas.csv').read_bytes()
    broken = SlideAreas(0.5, '', {})
    object.__setattr__(broken, 'pixels', None)
    with pytest.raises(AttributeError):
        write_areas(tmp_path, {'a': found, 'b': broken})
    assert (tmp_path / 'areas.csv').read_bytes() == before and len(list(tmp_path.iterdir())) == 2
    with pytest.raises(IgniteError, match='no slides'):
        write_areas(tmp_path, {})
    (tmp_path / 'file').touch()
    with pytest.raises(IgniteError, match='areas.csv cannot be written'):
        write_areas(tmp_path / 'file', {'a': found})


def test_tables_are_ours_beside_our_run(tmp_path):
    write_areas(tmp_path, {'a': some_areas(np.random.default_rng())})
    assert not is_ours(tmp_path / 'areas.csv')
    (tmp_path / 'run.json').write_text('{"mine": 1}')
    assert not is_ours(tmp_path / 'areas.csv')
    (tmp_path / 'run.json').unlink()
    write_result(tmp_path / 'run.json', {})
    assert is_ours(tmp_path / 'areas.csv') and is_ours(tmp_path / 'ratios.csv')


def test_cases_are_read(tmp_path):
    path = tmp_path / 'cases.csv'
    path.write_text('\ufeffcase,note,slide\r\nÄ,x,a1\r\n"B, 2",, a2 \r\n\r\n', encoding='utf-8')
    assert read_cases(path, ['a1', 'a2', 'a3']) == {'a1': 'Ä', 'a2': 'B, 2'}
    write_areas(tmp_path, {'=a': some_areas(np.random.default_rng())}, {'=a': '+1 B'})
    assert read_cases(tmp_path / 'ratios.csv', ['=a']) == {'=a': '+1 B'}  # names come back from our own tables


@pytest.mark.parametrize(
    'content, words',
    [
        ('slide,patient\na,1\n', "columns 'slide', 'patient'; the column 'case' was expected"),
        ('slide;case\na;1\n', "the column 'slide' was expected"),
        ('slide,case\nb,1\n', "slide 'b', which is not in this run; names such as 'a'"),
        ('slide,case\na,1\na,1\n', "slide 'a' twice"),
        ('slide,case\na,\n', "no case for the slide 'a'"),
        ('slide,case\na\n', 'one cell per column'),
        ('', 'one cell per column'),
        (b'slide,case\n\xff,1\n', 'not UTF-8'),
        (None, 'cannot be read'),
    ],
)
def test_wrong_tables_of_cases_are_refused(tmp_path, content, words):
    path = tmp_path / 'cases.csv'
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(IgniteError, match=f'cases.csv .*{words}') as error:
        read_cases(path, ['a'])
    assert '\n' not in str(error.value)
