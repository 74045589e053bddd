"""Tables of a run: text, CSV and LaTeX."""

import csv
import io
import json
import re

import numpy as np
import pytest

from mmseg_ignite.evaluation import Evaluation, write_run
from mmseg_ignite.evaluation.per_roi import fold_scores
from mmseg_ignite.evaluation.tables import TABLE_FILES, latex_text, write_csv, write_latex, write_tables
from mmseg_ignite.evaluation.text_table import table
from mmseg_ignite.labels import CLASSES
from mmseg_ignite.spreadsheets import csv_cell


def random_run(rng, classes=CLASSES, rois=10, patients=6, **known):
    """Return random counts; the last class is in neither map, the second to last is only predicted."""
    counts = rng.integers(1, 90, (rois, len(classes), len(classes)))
    counts[:, -2:], counts[:, :, -1] = 0, 0
    metadata = [dict(roi=f'roi{i}', patient=f'p{i % patients}', organ=('lung', 'liver')[i % 2]) for i in range(rois)]
    return Evaluation([m['roi'] for m in metadata], counts, classes, metadata, **known)


def read(path):
    with open(path, newline='', encoding='utf-8') as stream:
        return list(csv.DictReader(stream))


def test_csv_tables_are_not_rounded(tmp_path):
    result = write_run(tmp_path, random_run(np.random.default_rng()), {}, samples=200)
    rows = read(tmp_path / 'tables' / 'classes.csv')
    assert [row['class'] for row in rows] == list(CLASSES)
    for row in rows:
        known, lines = result['classes'][row['class']], result['intervals']['classes'][row['class']]
        for key in ('IoU', 'Dice', 'Precision', 'Recall'):
            assert row[key] == ('' if known[key] is None else repr(known[key]))
        assert (int(row['pixels']), int(row['patients'])) == (known['pixels'], lines['patients'])
        if known['IoU'] is not None:
            assert [float(row['IoU low']), float(row['IoU high'])] == lines['IoU']
    overall = {row['figure']: row for row in read(tmp_path / 'tables' / 'overall.csv')}
    assert float(overall['kappa']['value']) == result['kappa']
    assert float(overall['mIoU']['value low']) == result['intervals']['figures']['mIoU'][0]
    groups = {row['group']: row for row in read(tmp_path / 'tables' / 'groupings.csv')}
    found = result['groupings']['ignite-6']
    assert float(groups['Tumor']['Dice']) == found['groups']['Tumor']['Dice']
    assert float(groups['Tumor']['Dice high']) == found['intervals']['groups']['Tumor']['Dice'][1]
    published = {(row['of'], row['name']): row for row in read(tmp_path / 'tables' / 'published.csv')}
    assert float(published['groups', 'micro_dice']['Dice']) == result['published']['groups_micro_dice']
    assert published['classes', 'Background']['Dice'] == ''
    strata = {(row['column'], row['value']): row for row in read(tmp_path / 'tables' / 'subgroups.csv')}
    assert float(strata['organ', 'lung']['aAcc high']) == result['strata']['organ']['lung']['intervals']['aAcc'][1]
    found = {f'tables/{path.name}' for path in (tmp_path / 'tables').iterdir()}
    assert found == {name for name in TABLE_FILES if 'folds' not in name} and len(found) == 10


def test_latex_tables_have_intervals_and_omit_absent_classes(tmp_path):
    result = write_run(tmp_path, random_run(np.random.default_rng()), {}, samples=200)
    lines = (tmp_path / 'tables' / 'classes.tex').read_text().splitlines()
    body = {line.split(' & ')[0]: line for line in lines[lines.index(r'\midrule') + 1 : lines.index(r'\bottomrule')]}
    assert list(body) == list(CLASSES[:-1])  # the last one is in neither map
    for name in CLASSES[:-2]:
        low, high = result['intervals']['classes'][name]['IoU']
        assert f'${result["classes"][name]["IoU"]:.1f}$ (${low:.1f}$--${high:.1f}$)' in body[name]
    columns = re.search(r'\{([lr]+)\}', lines[1])[1]
    assert all(line.endswith(r' \\') and line.count(' & ') == len(columns) - 1 for line in body.values())


@pytest.mark.parametrize('hostile', ['=1+1', '+cmd|x', '-2+3', '@SUM(A1)', '\t=1', '\r=1', '=HYPERLINK("a","b")'])
def test_cells_are_not_formulas(tmp_path, hostile):
    evaluation = random_run(np.random.default_rng(), (hostile, 'a', 'b', 'c'))
    for m in evaluation.metadata:
        m.update({hostile: hostile, 'organ': hostile + m['organ']})
    write_run(tmp_path, evaluation, {}, {hostile: {hostile: [hostile], 'other': 'rest'}}, samples=0)
    for path in (tmp_path / 'per_roi.csv', *(tmp_path / 'tables').glob('*.csv')):
        with open(path, newline='', encoding='utf-8') as stream:
            cells = [cell for row in csv.reader(stream) for cell in row]
        assert not [c for c in cells if c[:1] in tuple('=+-@\t\r\n') and not re.fullmatch(r'-?[\d.]+', c)], path
    expected = "'" + hostile.replace('\r', '\n')
    assert any(cell == expected for cell in read(tmp_path / 'per_roi.csv')[0].values())


@pytest.mark.parametrize('number', ['-1', '+2.5', '-.5e-3', -3, -0.5, None, 'plain', ''])
def test_numbers_and_plain_text_are_unchanged(number):
    assert csv_cell(number) is number


def test_text_is_escaped_for_latex(tmp_path):
    assert latex_text('a_b & 5 % #1 {x} $y$') == r'a\_b \& 5 \% \#1 \{x\} \$y\$'
    assert latex_text('a\\b~c^d\ne') == r'a\textbackslash{}b\textasciitilde{}c\textasciicircum{}d e'
    write_latex(tmp_path / 't.tex', [{'50 % & more': r'\input{x}', 'pixels': 1234, 'none': None}])
    text = (tmp_path / 't.tex').read_text()
    assert r'50 \% \& more & pixels & none \\' in text and r'\textbackslash{}input\{x\} & 1,234 & -- \\' in text


def test_folds_with_mean_sd_and_ensemble(tmp_path):
    rng = np.random.default_rng()
    folds = {f'fold{k}': random_run(rng, rois=4 + k).metrics(samples=0) for k in range(5)}
    found = fold_scores(folds)
    for key in ('mIoU', 'mDice', 'aAcc'):
        values = [folds[name][key] for name in folds]
        mean = sum(values) / 5
        assert found['mean'][key] == pytest.approx(mean)
        assert found['sd'][key] == pytest.approx((sum((v - mean) ** 2 for v in values) / 4) ** 0.5)
    assert [(row['fold'], row['rois']) for row in found['rows']] == [(f'fold{k}', 4 + k) for k in range(5)]
    context = dict(folds=found, ensemble=dict(mIoU=71.25, mDice=80.0, aAcc=90.0, rois=3))
    result = write_run(tmp_path, random_run(rng), context, samples=0)
    assert json.loads((tmp_path / 'metrics.json').read_text())['folds'] == found
    rows = read(tmp_path / 'tables' / 'folds.csv')
    assert [row['fold'] for row in rows] == [*folds, 'mean', 'SD', 'ensemble, test part']
    assert float(rows[6]['aAcc']) == found['sd']['aAcc'] and rows[7]['mIoU'] == '71.25'
    text = (tmp_path / 'metrics.txt').read_text()
    assert re.search(rf'mean +{found["mean"]["mIoU"]:.2f}', text) and re.search(r'ensemble, test part +71.25', text)
    write_tables(tmp_path, {k: v for k, v in result.items() if k != 'folds'})
    assert not list((tmp_path / 'tables').glob('folds.*'))  # removed, as they belong to an earlier run


def test_single_folds_and_undefined_scores_have_no_sd():
    found = fold_scores({'fold0': dict(mIoU=None, mDice=3.0, aAcc=4.0, rois=1, patients=None, classes_present=0)})
    assert found['mean'] == dict(mIoU=None, mDice=3.0, aAcc=4.0) and set(found['sd'].values()) == {None}


def test_text_table_with_boundaries_and_calibration():
    rng = np.random.default_rng()
    plain = table(random_run(rng).metrics(samples=0))
    assert 'NSD' not in plain and 'ECE' not in plain
    counted = random_run(rng, boundary=rng.integers(1, 9, (10, 16, 4)), boundary_tolerance_um=2.5,
                       confidence=rng.random((10, 15, 3)), entropy=rng.random((10, 20, 2)))  # fmt: skip
    result = counted.metrics(samples=0)
    text = table(result)
    assert 'at a tolerance of 2.5 um' in text and f'(ECE) {result["calibration"]["ece"]:.2f} %' in text
    stroma = next(line.split() for line in text.splitlines() if line.startswith('Stroma'))
    row = result['boundary']['classes']['Stroma']
    assert stroma[4:6] == [f'{row["boundary_F1"]:.2f}', f'{row["NSD"]:.2f}']
    mean = next(line.split() for line in text.splitlines() if line.startswith('mean of'))
    assert mean[-2:] == [f'{result["boundary"][f"mean_{key}"]:.2f}' for key in ('boundary_F1', 'NSD')]
    assert len({len(line) for line in text.splitlines()[: 2 + 15]}) == 1  # columns are aligned


def test_text_table_lists_absent_classes_in_one_line():
    text = table(random_run(np.random.default_rng()).metrics(samples=0))
    assert 'in neither ground truth nor prediction: Keratinization' in text
    assert [line.split()[0] for line in text.splitlines() if 'absent' in line] == ['Liver']  # it was predicted


def test_warning_about_seen_patients(tmp_path):
    evaluation = random_run(np.random.default_rng())
    write_run(tmp_path, evaluation, dict(seen_patients=['p1', 'p3']), samples=0)
    first = (tmp_path / 'metrics.txt').read_text().splitlines()[0]
    assert first == (
        'WARNING: 2 of 6 test patients were used to train or to choose this checkpoint; these scores are too high.'
    )
    write_run(tmp_path, evaluation, dict(seen_patients=[]), samples=0)
    assert 'WARNING' not in (tmp_path / 'metrics.txt').read_text()


def test_quotes_and_line_breaks_in_csv(tmp_path):
    rows = [{'a "b"': 'x,y\nz', 'ü': 1.5}, {'a "b"': None, 'ü': 2}]
    write_csv(tmp_path / 't.csv', rows)
    text = (tmp_path / 't.csv').read_text(encoding='utf-8')
    assert list(csv.reader(io.StringIO(text))) == [['a "b"', 'ü'], ['x,y\nz', '1.5'], ['', '2']]
