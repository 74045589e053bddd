"""Counts of a run: saving, loading, pooling, and the files computed from them."""

import csv
import json

import numpy as np
import pytest

from mmseg_ignite.errors import IgniteError
from mmseg_ignite.evaluation import Evaluation, confusion_matrix, scores, write_run
from mmseg_ignite.evaluation.bootstrap import intervals
from mmseg_ignite.evaluation.boundary import boundary_counts, boundary_scores
from mmseg_ignite.evaluation.run import score_roi
from mmseg_ignite.labels import CLASSES


def random_run(rng, rois=12, **options):
    """Return an evaluation of small random ROIs and their (truth, prediction); 255 means nothing predicted."""
    results, maps = [], []
    for i in range(rois):
        truth = rng.choice([0, 1, 3, 4, 255], (20, 24)).astype(np.uint8)
        prediction = np.where(rng.random(truth.shape) < 0.1 * i / rois + 0.3, rng.integers(0, 6, truth.shape), truth)
        prediction = np.where(prediction == 255, 0, prediction).astype(np.uint8)
        if options.get('holes'):
            prediction[:2] = 255
        metadata = dict(roi=f'roi{i}', patient=str(11 - i // 2), um_per_px=0.5 + i % 2 / 100, organ='lung',
                        scanner=['P1000', ''][i % 2], source=f's{i}')  # fmt: skip
        results.append(score_roi(metadata, truth, prediction, 16, options.get('tolerance')))
        maps.append((truth, prediction))
    return Evaluation.collect(results, CLASSES, options.get('tolerance')), maps


def test_missing_predictions_are_errors_of_their_class():
    evaluation, maps = random_run(np.random.default_rng(), holes=True)
    truth, prediction = (np.concatenate([m[i].ravel() for m in maps]) for i in (0, 1))
    result = evaluation.metrics(samples=0)
    for i, name in enumerate(CLASSES):
        row = result['classes'][name]
        assert row['pixels'] == (truth == i).sum()
        if row['pixels']:
            hit = ((truth == i) & (prediction == i)).sum()
            predicted = ((prediction == i) & (truth != 255)).sum()
            assert row['IoU'] == pytest.approx(100 * hit / (row['pixels'] + predicted - hit))
    assert result['aAcc'] == pytest.approx(100 * (truth == prediction)[truth != 255].mean())
    assert evaluation.matrices.shape == (12, 16, 16)
    assert any(row['confused'] is not None for row in result['worst_rois'])


@pytest.mark.parametrize('options', [{}, dict(holes=True, tolerance=1.0)])
def test_save_and_load(tmp_path, options):
    evaluation, _ = random_run(np.random.default_rng(), **options)
    evaluation.save(tmp_path / 'confusion.npz')
    for path in (tmp_path, tmp_path / 'confusion.npz'):
        again = Evaluation.load(path)
        assert again.metadata == evaluation.metadata and again.names == evaluation.names
        assert again.metrics(samples=150) == evaluation.metrics(samples=150)
    with np.load(tmp_path / 'confusion.npz') as data:
        assert data['matrices'].dtype == np.int64 and data['matrices'].shape == (12, 16, 16)
        assert ('boundary' in data) == ('unpredicted' in data) == bool(options)


def test_files_without_metadata_are_loaded(tmp_path):
    """Earlier versions wrote no metadata, so patients are unknown."""
    evaluation, _ = random_run(np.random.default_rng())
    np.savez_compressed(
        tmp_path / 'old.npz', names=evaluation.names, matrices=evaluation.matrices, classes=np.array(CLASSES)
    )
    result = Evaluation.load(tmp_path / 'old.npz').metrics(samples=100)
    assert result['mIoU'] == evaluation.scores()['mIoU']
    assert result['intervals']['unit'] == 'ROI' and result['strata'] == {}


@pytest.mark.parametrize('kind', ['text', 'keys', 'shape', 'missing', 'twice', 'json', 'others', 'fewer'])
def test_invalid_files_are_rejected_in_one_sentence(tmp_path, kind):
    path, eye = tmp_path / 'confusion.npz', np.eye(16, dtype=int)[None]
    if kind == 'text':
        path.write_text('text')
    elif kind == 'keys':
        np.savez(path, other=eye)
    elif kind == 'shape':
        np.savez(path, names=['a', 'b'], matrices=eye, classes=CLASSES)
    elif kind == 'twice':
        np.savez(path, names=['a', 'a'], matrices=np.repeat(eye, 2, 0), classes=CLASSES)
    elif kind == 'json':
        np.savez(path, names=['a'], matrices=eye, classes=CLASSES, metadata='{')
    elif kind == 'others':
        np.savez(path, names=['a'], matrices=eye, classes=CLASSES, metadata='[{"roi": "b"}]')
    elif kind == 'fewer':
        np.savez(path, names=['a'], matrices=eye, classes=CLASSES, unpredicted=np.zeros((2, 16)))
    with pytest.raises(IgniteError, match=r'confusion\.npz') as error:
        Evaluation.load(tmp_path)
    assert str(error.value).count('\n') == 0


def test_run_folder_matches_the_documentation(tmp_path):
    evaluation, maps = random_run(np.random.default_rng(), tolerance=1.5)
    context = dict(checkpoint='x.pth', config='c.py', split='test', protocol='official')
    result = write_run(tmp_path, evaluation, context, {'mine': {'Glass': ['Background'], 'Tissue': 'rest'}}, 300, 4)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        'confusion.npz', 'metrics.json', 'metrics.txt', 'per_roi.csv', 'tables',
    ]  # fmt: skip
    assert json.loads((tmp_path / 'metrics.json').read_text()) == result
    assert {**result, **context} == result and result['schema_version'] == 1
    assert (result['rois'], result['patients']) == (12, 6)
    assert {**result, **scores(evaluation.matrices.sum(0), CLASSES)} == result
    assert set(result['groupings']) == {'ignite-6', 'mine'} and set(result['groupings']['mine']['groups']) == {
        'Glass',
        'Tissue',
    }
    assert (result['intervals']['samples'], result['intervals']['seed'], result['intervals']['patients']) == (300, 4, 6)
    counts = sum(boundary_counts(t, p, 16, 1.5, m['um_per_px']) for (t, p), m in zip(maps, evaluation.metadata))
    assert result['boundary'] == boundary_scores(counts, CLASSES, 1.5)

    with open(tmp_path / 'per_roi.csv', newline='') as stream:
        rows = list(csv.DictReader(stream))
    assert [r['roi'] for r in rows] == evaluation.names and rows[3]['patient'] == '10' and rows[0]['scanner'] == 'P1000'
    for row, (truth, prediction) in zip(rows, maps):
        one = scores(confusion_matrix(truth, prediction, 16), CLASSES)
        assert float(row['mIoU']) == pytest.approx(one['mIoU']) and float(row['aAcc']) == pytest.approx(one['aAcc'])
        assert int(row['annotated_pixels']) == (truth != 255).sum() and int(row['classes_present']) == 4
        assert float(row['IoU Stroma']) == pytest.approx(one['classes']['Stroma']['IoU'])
        assert row['IoU Liver'] == ''


def test_strata_are_scored_from_their_own_rois():
    evaluation, maps = random_run(np.random.default_rng())
    strata = evaluation.metrics(samples=0)['strata']
    assert list(strata) == ['patient', 'scanner']  # organ has a single value, source a different one per ROI
    assert list(strata['patient']) == ['6', '7', '8', '9', '10', '11']
    chosen = [confusion_matrix(*maps[i], 16) for i in range(1, 12, 2)]
    alone = scores(sum(chosen), CLASSES)
    found = strata['scanner']['unknown']
    assert found['rois'] == 6 and found['patients'] == 6 and found['pixels'] == sum(m.sum() for m in chosen)
    assert {k: alone[k] for k in ('mIoU', 'mDice', 'aAcc', 'classes_present')}.items() <= found.items()
    assert 'intervals' not in found


def test_intervals_of_a_stratum_resample_its_own_patients():
    evaluation, _ = random_run(np.random.default_rng(), 10)  # five patients with two ROIs each
    strata = evaluation.metrics(samples=200, seed=3)['strata']
    chosen = range(0, 10, 2)
    alone = intervals(evaluation.matrices[chosen], [evaluation.metadata[r] for r in chosen], CLASSES, 200, 3)
    found = strata['scanner']['P1000']
    assert found['intervals'] == {key: alone['figures'][key] for key in ('mIoU', 'mDice', 'aAcc')}
    assert 'note' not in found
    assert all('intervals' not in row for row in strata['patient'].values())  # one patient has no spread
    few, _ = random_run(np.random.default_rng(), 8)
    assert 'only 4 patients' in few.metrics(samples=200)['strata']['scanner']['unknown']['note']


def test_worst_rois_and_their_commonest_error():
    evaluation, _ = random_run(np.random.default_rng(), 14)
    evaluation.matrices[5] = 0
    evaluation.matrices[5, 1, 3], evaluation.matrices[5, 3, 3] = 40, 60
    evaluation.matrices[2] = 0  # nothing annotated: not scored
    evaluation.matrices[7] = np.diag([9] * 16)
    worst = evaluation.metrics(samples=0)['worst_rois']
    assert len(worst) == 10 and [r['mIoU'] for r in worst] == sorted(r['mIoU'] for r in worst)
    row = next(r for r in worst if r['roi'] == 'roi5')
    assert row['confused'] == ['Tumor epithelium', 'Stroma', 40.0] and row['aAcc'] == 60
    assert not {'roi2', 'roi7'} & {r['roi'] for r in worst}


def test_run_without_annotated_pixels(tmp_path):
    result = write_run(tmp_path, Evaluation(['a'], np.zeros((1, 16, 16), np.int64), CLASSES), {}, samples=100)
    assert result['mIoU'] is None and result['intervals']['figures']['mIoU'] is None and result['worst_rois'] == []
    assert 'nothing to score' in (tmp_path / 'metrics.txt').read_text()


def test_other_classes_have_no_published_scores():
    result = Evaluation(['a', 'b'], np.ones((2, 3, 3), np.int64), ('x', 'y', 'z')).metrics(samples=0)
    assert 'published' not in result and result['groupings'] == {} and 'intervals' not in result


def test_unwritable_folder_is_rejected(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(IgniteError, match='cannot be written'):
        write_run(tmp_path / 'file', Evaluation(['a'], np.ones((1, 2, 2), np.int64), ('x', 'y')), {}, samples=0)


def small_run(names, **counts):
    """Return a run of two classes whose counts depend on the ROI names."""
    return Evaluation(names, np.array([np.full((2, 2), ord(n)) for n in names]), ('x', 'y'), **counts)


def test_runs_on_different_rois_are_merged_by_name():
    a = small_run(
        ['d', 'b'], unpredicted=np.array([[1, 2], [3, 4]]), boundary=np.ones((2, 2, 4)), boundary_tolerance_um=5.0
    )
    b = small_run(['c', 'a'], boundary=np.zeros((2, 2, 4)), boundary_tolerance_um=5.0)
    merged = Evaluation.merge([a, b])
    assert merged.names == [m['roi'] for m in merged.metadata] == ['a', 'b', 'c', 'd']
    assert merged.matrices[:, 0, 0].tolist() == [97, 98, 99, 100]
    assert merged.unpredicted.tolist() == [[0, 0], [3, 4], [0, 0], [1, 2]]  # None counts as 0
    assert merged.boundary[:, 0, 0].tolist() == [0, 1, 0, 1] and merged.boundary_tolerance_um == 5.0
    merged = Evaluation.merge([a, small_run(['c'])])
    assert merged.boundary is None is merged.boundary_tolerance_um and merged.confidence is None
    for other, word in (
        (small_run(['b']), 'ROI b'),
        (small_run(['c'], boundary=np.zeros((1, 2, 4)), boundary_tolerance_um=2.0), 'boundary_tolerance_um'),
        (Evaluation(['c'], np.ones((1, 2, 2), int), ('y', 'x')), 'classes'),
    ):
        with pytest.raises(IgniteError, match=word):
            Evaluation.merge([a, other])
