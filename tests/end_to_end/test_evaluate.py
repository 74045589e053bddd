"""Scoring without a model: label PNGs of other tools, saved runs, comparisons of two runs."""

import json
import os
import re
import weakref

import numpy as np
import pytest
from conftest import single_error, tool
from PIL import Image

from mmseg_ignite.apis import regions, rescore, score_folder
from mmseg_ignite.datasets.prepared import label_path
from mmseg_ignite.errors import IgniteError
from mmseg_ignite.evaluation import Evaluation, scores, write_run
from mmseg_ignite.evaluation.tables import write_csv, write_latex
from mmseg_ignite.labels import CLASSES
from mmseg_ignite.preparation import read_index


@pytest.fixture(scope='module')
def predicted(prepared, tmp_path_factory):
    """Predictions for the official test part: {name: (H, W) uint8 train ids 0..15}; every id occurs."""
    rng, found = np.random.default_rng(2), {}
    for name in read_index(prepared)['splits']['official']['test']:
        truth = np.load(label_path(prepared, name))
        wrong = (rng.random(truth.shape) < 0.3) | (truth == 255)
        found[name] = np.where(wrong, rng.integers(0, 16, truth.shape), truth).astype(np.uint8)
    return found


def write(folder, maps, mode='L'):
    folder.mkdir(parents=True, exist_ok=True)
    for name, values in maps.items():
        image = Image.fromarray(values)
        if mode == 'P':  # a random palette: only the indices matter
            image.putpalette(list(np.random.default_rng(0).integers(0, 256, 768)))
        image.save(folder / f'{name}.png')
    return folder


def by_hand(prepared, maps):
    matrix = np.zeros((16, 16), np.int64)
    for name, prediction in maps.items():
        truth = np.load(label_path(prepared, name))
        np.add.at(matrix, (truth[truth != 255], prediction[truth != 255]), 1)
    return scores(matrix, CLASSES)


def evaluate(prepared, folder, out, *options):
    arguments = ['--predictions', folder, '--data', prepared, '--protocol', 'official', '--out', out, '--samples', 200]
    return tool('evaluate', *arguments, *options)


@pytest.mark.parametrize('mode', ['L', 'P'])
@pytest.mark.parametrize('encoding', ['raw', 'train', 'auto'])
def test_label_pngs_of_another_tool(prepared, predicted, tmp_path, encoding, mode):
    maps = {name: p if encoding == 'train' else p + 1 for name, p in predicted.items()}
    folder = write(tmp_path / 'in', maps, mode)
    (folder / 'dataset.json').write_text('{}')  # nnU-Net writes such files
    (folder / '._a.png').write_bytes(b'macOS')
    write(folder, {f'{name}_overlay': p for name, p in predicted.items()})  # tools/test.py writes such files
    options = ('--encoding', encoding, '--boundary-tolerance-um', 2, '--no-report')
    assert evaluate(prepared, folder, tmp_path / 'out', *options) == 0
    result = json.loads((tmp_path / 'out' / 'metrics.json').read_text())
    expected = by_hand(prepared, predicted)
    assert {k: result[k] for k in expected} == expected
    assert (result['rois'], result['split'], result['protocol']) == (len(predicted), 'test', 'official')
    assert result['encoding'] == ('train' if encoding == 'train' else 'raw')
    assert 0 < result['boundary']['mean_NSD'] <= 100 and 'organ' in (tmp_path / 'out' / 'per_roi.csv').read_text()


def with_context(prepared, predicted, nothing):
    """Predictions for ROIs with surrounding tissue, NAME_with_context, as the published toolkit writes them."""
    entries, rng, found = {r['name']: r for r in read_index(prepared)['rois']}, np.random.default_rng(4), {}
    for name, prediction in predicted.items():
        context = entries[name]['context']
        y, x = context['origin']
        image = rng.integers(1, 16, (context['height'], context['width'])).astype(np.uint8)
        image[:2] = nothing
        image[y : y + prediction.shape[0], x : x + prediction.shape[1]] = prediction + 1
        found[f'{name}_with_context'] = image
    return found


def test_predictions_with_context_are_cropped_to_their_rois(prepared, predicted, tmp_path, capsys, recwarn, no_figures):
    folder = write(tmp_path / 'in', with_context(prepared, predicted, 0))
    (folder / '._x.png').write_bytes(b'macOS')
    assert evaluate(prepared, folder, tmp_path / 'out', '--boundary-tolerance-um', 2) == 0
    assert 'cropped to their ROIs' in capsys.readouterr().out
    plain = write(tmp_path / 'plain', {name: p + 1 for name, p in predicted.items()})
    assert evaluate(prepared, plain, tmp_path / 'other', '--boundary-tolerance-um', 2) == 0
    assert 'cropped' not in capsys.readouterr().out
    result, other = (json.loads((tmp_path / run / 'metrics.json').read_text()) for run in ('out', 'other'))
    expected = by_hand(prepared, predicted)
    assert {k: result[k] for k in expected} == expected
    differing = {k for k in {*result, *other} - {'provenance'} if result.get(k) != other.get(k)}
    assert result['cropped'] is True and differing == {'cropped', 'predictions'}
    assert not [w for w in recwarn if 'shows no regions' in str(w.message)]
    assert rescore(tmp_path / 'out', tmp_path / 'rescored', samples=0, report=None)['cropped'] is True


@pytest.mark.parametrize('mixed', ['both', 'either', 'size', 'unknown'])
def test_predictions_with_context_that_cannot_be_cropped_are_refused(prepared, predicted, tmp_path, capsys, mixed):
    maps = with_context(prepared, predicted, 0)
    first = next(iter(predicted))
    data = prepared
    if mixed in ('both', 'either'):
        maps[first] = predicted[first] + 1
        if mixed == 'either':
            del maps[f'{first}_with_context']
    elif mixed == 'size':
        maps[f'{first}_with_context'] = maps[f'{first}_with_context'][:-1]
    else:
        data = tmp_path / 'nocontext'
        index = read_index(prepared)
        for roi in index['rois']:
            roi['context'] = None
        data.mkdir()
        (data / 'index.json').write_text(json.dumps(index))
        (data / 'labels').symlink_to(prepared / 'labels')
    assert evaluate(data, write(tmp_path / 'in', maps), tmp_path / 'out') == 2
    wanted = dict(
        both='keep only one kind', either='keep only one kind', size='ROI with context', unknown='without --no-context'
    )
    assert wanted[mixed] in single_error(capsys)
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(('encoding', 'offset', 'nothing'), [('raw', 1, 0), ('train', 0, 255), ('auto', 0, 255)])
def test_pixel_without_prediction_counts_as_wrong(prepared, predicted, tmp_path, encoding, offset, nothing):
    maps, hit, pixels = {}, 0, 0
    for name, prediction in predicted.items():
        truth, stored = np.load(label_path(prepared, name)), prediction + np.uint8(offset)
        stored[::3] = nothing
        maps[name] = stored
        kept = np.arange(len(truth))[:, None] % 3 != 0
        hit += ((truth == prediction) & kept & (truth != 255)).sum()
        pixels += (truth != 255).sum()
    result = score_folder(
        write(tmp_path / 'in', maps), prepared, tmp_path / 'out', 'official', encoding=encoding, samples=0, report=None
    )
    assert result['aAcc'] == pytest.approx(100 * hit / pixels)
    assert sum(row['pixels'] for row in result['classes'].values()) == pixels
    shown = sum(row['predicted_pixels'] for row in result['classes'].values())
    assert hit < shown < pixels


def test_saved_run_is_rescored_and_two_runs_are_compared(prepared, predicted, tmp_path, capsys):
    worse = {name: np.where(np.arange(p.shape[1]) % 2, p, 0).astype(np.uint8) for name, p in predicted.items()}
    for run, maps in (('good', predicted), ('bad', worse)):
        folder = write(tmp_path / f'{run}_in', maps)
        assert evaluate(prepared, folder, tmp_path / run, '--encoding', 'train', '--no-report') == 0
    (tmp_path / 'g.json').write_text(json.dumps({'glass': {'Glass': ['Background'], 'Tissue': 'rest'}}))
    arguments = ['--from', tmp_path / 'good', '--out', tmp_path / 'again', '--groupings', tmp_path / 'g.json']
    capsys.readouterr()
    assert tool('evaluate', *arguments, '--samples', 200, '--no-report') == 0
    first, again = (json.loads((tmp_path / d / 'metrics.json').read_text()) for d in ('good', 'again'))
    assert again['groupings'].pop('glass')['classes_present'] == 2 and 'glass: mIoU' in capsys.readouterr().out
    assert first == again
    assert tool('compare', tmp_path / 'bad', tmp_path / 'good' / 'confusion.npz', '--out', tmp_path / 'c.json') == 0
    output = capsys.readouterr().out
    assert 'B is better than A: mIoU +' in output and 'Stroma' in output
    result = json.loads((tmp_path / 'c.json').read_text())
    bad = json.loads((tmp_path / 'bad' / 'metrics.json').read_text())
    assert result['figures']['mIoU']['difference'] == pytest.approx(first['mIoU'] - bad['mIoU'])
    assert result['figures']['mIoU']['b_better'] > 99


def regions_shown(run):
    return re.findall(
        r'<article class="region"[^>]* data-roi="([^"]+)"', (run / 'report.html').read_text(encoding='utf-8')
    )


def test_rescored_run_keeps_its_provenance(tmp_path):
    rng = np.random.default_rng()
    metadata = [dict(roi=f'r{i}', patient=f'p{i}') for i in range(6)]
    evaluation = Evaluation([m['roi'] for m in metadata], rng.integers(1, 9, (6, 16, 16)), CLASSES, metadata)
    known = dict(provenance=dict(version='1.2', command='a & b', seed=0), seen_patients=['p1', 'p4'])
    write_run(tmp_path, evaluation, known, samples=0)
    again = rescore(tmp_path, tmp_path / 'again', samples=0, report=None)
    assert {key: again[key] for key in known} == known
    assert (tmp_path / 'again' / 'metrics.txt').read_text().startswith('WARNING: 2 of 6 test patients')


def test_report_of_a_saved_run_shows_its_regions_if_available(prepared, predicted, tmp_path, request):
    """Move the run, move the data, change and delete predictions: the report shows only what was scored."""
    run, folder = tmp_path / 'run', write(tmp_path / 'run' / 'predictions', predicted)
    assert evaluate(prepared, folder, run, '--encoding', 'train', '--language', 'ko') == 0
    shown = regions_shown(run)
    metrics = json.loads((run / 'metrics.json').read_text())
    assert shown[:10] == [r['roi'] for r in metrics['worst_rois']] and sorted(shown) == sorted(predicted)
    assert '<html lang="ko"' in (run / 'report.html').read_text(encoding='utf-8')
    figures = {f'{name}.{kind}' for name in ('confusion', 'class_scores') for kind in ('png', 'svg', 'pdf')}
    assert {p.name for p in (run / 'figures').iterdir()} == figures

    request.getfixturevalue('no_figures')
    moved = run.rename(tmp_path / 'moved')
    assert tool('evaluate', '--from', moved, '--samples', 200) == 0
    assert regions_shown(moved) == shown
    again = json.loads((moved / 'metrics.json').read_text())
    assert again.pop('predictions') == str(moved / 'predictions') and metrics.pop('predictions') == str(folder)
    assert again == metrics
    with pytest.warns(UserWarning, match='nodata'):
        assert tool('evaluate', '--from', moved, '--samples', 0, '--data', tmp_path / 'nodata') == 0
    assert not regions_shown(moved)
    assert tool('evaluate', '--from', moved, '--samples', 0, '--data', prepared) == 0
    assert regions_shown(moved) == shown

    name = shown[-1]
    write(moved / 'predictions', {name: (predicted[name] + np.uint8(1)) % np.uint8(16)})
    with pytest.raises(IgniteError, match=f'{name}.png .*differs from what was scored'):
        rescore(moved)
    assert rescore(moved, tmp_path / 'third', report=None)['mIoU'] == metrics['mIoU']
    assert not (tmp_path / 'third' / 'report.html').exists() and not (tmp_path / 'third' / 'figures').exists()
    (moved / 'predictions' / f'{name}.png').unlink()
    with pytest.warns(UserWarning, match=f'{name}.png'):
        rescore(moved)
    assert not regions_shown(moved)


def test_one_region_is_in_memory_at_a_time(prepared, predicted, tmp_path):
    folder = write(tmp_path / 'in', predicted)
    score_folder(folder, prepared, tmp_path / 'run', 'official', encoding='train', samples=0, report=None)
    alive, most = [], 0
    for item in regions(Evaluation.load(tmp_path / 'run'), prepared, folder, 'train'):
        assert (item.prediction == predicted[item.roi]).all() and item.metadata['patient']
        alive.append(weakref.ref(item.prediction))
        del item
        most = max(most, sum(a() is not None for a in alive))
    assert len(alive) == len(predicted) > 1 and most == 1


def damage(kind, folder, predicted):
    """Damage a folder of label PNGs with raw ids; return a word of the expected message."""
    name = sorted(predicted)[0]
    path, raw = folder / f'{name}.png', predicted[name] + np.uint8(1)
    if kind == 'missing':
        path.unlink()
    elif kind == 'extra':
        Image.fromarray(raw).save(folder / 'patient9_he_roi9.png')
        return 'patient9_he_roi9'
    elif kind == 'size':
        Image.fromarray(raw[1:]).save(path)
    elif kind == 'value':
        raw[4, 5] = 17
        Image.fromarray(raw).save(path)
        return 'value 17'
    elif kind == 'rgb':
        Image.fromarray(np.stack([raw] * 3, -1)).save(path)
        return 'RGB of 8 bits'
    elif kind == '16 bit':
        Image.fromarray(raw.astype(np.uint16)).save(path)
        return '16 bits'
    elif kind == 'truncated':
        path.write_bytes(path.read_bytes()[:-900])
    elif kind == 'text':
        path.write_text('not an image')
    elif kind == 'ambiguous':
        for file in folder.glob('*.png'):
            Image.fromarray(np.minimum(np.array(Image.open(file)), 15)).save(file)
        return 'is ambiguous'
    return f'{name}.png'


KINDS = ('missing', 'extra', 'size', 'value', 'rgb', '16 bit', 'truncated', 'text', 'ambiguous')


@pytest.mark.parametrize('kind', KINDS)
def test_damaged_predictions_print_one_error(prepared, predicted, tmp_path, capsys, kind):
    folder = write(tmp_path / 'in', {name: p + np.uint8(1) for name, p in predicted.items()})
    word = damage(kind, folder, predicted)
    options = () if kind == 'ambiguous' else ('--encoding', 'raw')
    assert evaluate(prepared, folder, tmp_path / 'out', *options) == 2
    assert word in single_error(capsys)
    assert not (tmp_path / 'out').exists()


def test_invalid_calls_print_one_error(prepared, predicted, tmp_path, capsys):
    folder = write(tmp_path / 'in', predicted)
    (tmp_path / 'g.json').write_text('{')
    (tmp_path / 'h.json').write_text('{"x": {"a": ["Bone"]}}')
    run, metadata = tmp_path / 'run', [dict(roi='a', patient='p')]
    write_run(run, Evaluation(['a'], np.ones((1, 16, 16), np.int64), CLASSES, metadata), {}, samples=0)
    good = ['--predictions', folder, '--data', prepared, '--protocol', 'official', '--encoding', 'train']
    good += ['--out', tmp_path / 'o']
    for name, arguments, word in (
        ('evaluate', ['--from', tmp_path / 'missing'], 'missing'),
        ('evaluate', ['--from', folder], 'confusion.npz'),
        ('evaluate', ['--from', folder, '--boundary-tolerance-um', '2'], '--predictions'),
        ('evaluate', good[:-2], '--out'),
        ('evaluate', [*good, '--samples', '5'], 'samples'),
        ('evaluate', [*good, '--seed', '-1'], 'seed of the bootstrap is -1'),
        ('evaluate', ['--from', run, '--seed', '-1', '--out', tmp_path / 'o'], 'seed of the bootstrap is -1'),
        ('compare', [run, run, '--seed', '-1'], 'seed of the bootstrap is -1'),
        ('evaluate', [*good, '--groupings', tmp_path / 'g.json'], 'g.json'),
        ('evaluate', [*good, '--groupings', tmp_path / 'h.json'], "'Bone'"),
        ('evaluate', [*good, '--boundary-tolerance-um', '-2'], 'tolerance'),
        ('evaluate', [*good, '--split', 'final'], 'final'),
        ('evaluate', [*good, '--data', tmp_path / 'nodata'], 'nodata'),
        ('evaluate', [*good, '--predictions', tmp_path / 'nofolder'], 'nofolder'),
        ('compare', [tmp_path / 'a', tmp_path / 'b'], 'confusion.npz'),
    ):
        assert tool(name, *arguments) == 2, arguments
        assert word in single_error(capsys)
    assert not (tmp_path / 'o').exists()


def test_folder_names_that_are_not_utf8(prepared, predicted, tmp_path, capsys):
    """All files of a run are written, as valid UTF-8."""
    strange = tmp_path / os.fsdecode(b'r\xe9')
    data, folder = strange / 'data', write(strange / 'in', predicted)
    data.symlink_to(prepared)
    assert evaluate(data, folder, strange / 'out', '--encoding', 'train') == 0
    assert tool('evaluate', '--from', strange / 'out', '--out', strange / 'again', '--samples', 200) == 0
    for run in (strange / 'out', strange / 'again'):
        assert {'report.html', 'figures', 'metrics.txt', 'metrics.json', 'tables'} <= {p.name for p in run.iterdir()}
        for path in run.rglob('*'):
            if path.suffix in ('.html', '.txt', '.csv', '.tex', '.json', '.svg'):
                path.read_text(encoding='utf-8')
        assert len(regions_shown(run)) == len(predicted)
    row = {'name': os.fsdecode(b'\xe9'), 'figure': 'x'}
    write_csv(tmp_path / 'a.csv', [row])
    write_latex(tmp_path / 'a.tex', [row])
    assert all('udce9' in (tmp_path / name).read_text(encoding='utf-8') for name in ('a.csv', 'a.tex'))


def test_unknown_encoding_is_refused(prepared, tmp_path):
    with pytest.raises(IgniteError, match='bgr'):
        score_folder(tmp_path, prepared, tmp_path / 'out', encoding='bgr')
