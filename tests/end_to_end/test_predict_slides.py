"""Predicting whole slides: files that agree with each other, resumption, faults, and several processes."""

import copy
import csv
import errno
import json
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import DEMO_CONFIG, ROOT, single_error, tool
from forks import forked, in_two, start_fork
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
from PIL import Image

from mmseg_ignite import cli
from mmseg_ignite.apis import Predictor, load_config, predict, predict_files
from mmseg_ignite.engine.ensembles import write_ensemble
from mmseg_ignite.errors import IgniteError
from mmseg_ignite.inference import slide_labels
from mmseg_ignite.labels import CLASSES

sys.path.insert(0, str(ROOT / 'tests' / 'slides'))
pytest.importorskip('openslide', reason='the packages of mmseg_ignite[slides] are not installed')
pytestmark = pytest.mark.usefixtures('one_thread')

import tifffile  # noqa: E402
from slide_example import write_slide  # noqa: E402

from mmseg_ignite.regions.qupath import qupath_faults  # noqa: E402
from mmseg_ignite.slides import TissueMask, open_slide  # noqa: E402

ALL = ('label', 'overlay', 'geojson', 'areas', 'page', 'probability', 'entropy')
SIZE = (700, 1100)  # level-0 px at 1 um/px


@pytest.fixture(scope='module')
def config():
    cfg = load_config(DEMO_CONFIG)
    cfg.model.backbone.init_cfg = None
    cfg.model.data_preprocessor.size = None
    cfg.model.test_cfg = dict(mode='slide', crop_size=(96, 96), stride=(64, 64))
    return cfg


@pytest.fixture(scope='module')
def checkpoints(config, tmp_path_factory):
    """Two networks with random weights, at 2 um/px, and an ensemble of them."""
    init_default_scope('mmseg')
    folder = tmp_path_factory.mktemp('models')
    for number in range(2):
        torch.manual_seed(number)  # any weights will do, but some predict glass alone
        state = MODELS.build(config.model).state_dict()
        # Large weights of the last layer, so that labels form regions with clear borders.
        state['decode_head.conv_seg.weight'] *= 50
        torch.save(dict(state_dict=state, meta=dict(mmseg_ignite=dict(um_per_px=2.0))), folder / f'{number}.pth')
    write_ensemble(folder / 'both.json', [folder / '0.pth', folder / '1.pth'])
    return folder


@pytest.fixture(scope='module')
def predictor(config, checkpoints):
    return Predictor(config, checkpoints / '0.pth', device='cpu')


@pytest.fixture(scope='module')
def slides(tmp_path_factory):
    """Two slides; tests must not change them."""
    folder = tmp_path_factory.mktemp('slides')
    for number in range(2):
        write_slide(folder / f's{number}.svs', SIZE, 1.0, 0.25, levels=(1, 4), tile=64, seed=number)
    return folder


@pytest.fixture(scope='module')
def predicted(config, checkpoints, slides, tmp_path_factory):
    """Everything that an ensemble gives of a slide."""
    out = tmp_path_factory.mktemp('out') / 'out'
    predictor = Predictor(config, checkpoints / 'both.json', device='cpu')
    assert not predict_files(predictor, [slides / 's0.svs'], out, lambda text: None, formats=ALL, min_area=400)
    return out


@pytest.fixture
def config_loaded_once(config, monkeypatch):
    monkeypatch.setattr('mmseg_ignite.apis.load_config', lambda *_: copy.deepcopy(config))


def run(checkpoint, *arguments):
    return tool('predict', DEMO_CONFIG, checkpoint, *arguments, '--device', 'cpu')


def labels_of(path):
    return tifffile.imread(path, level=0) - 1


def rows_of(path):
    with open(path, newline='', encoding='utf-8') as stream:
        return list(csv.DictReader(stream))


def test_all_files_are_there_and_nothing_else(predicted):
    names = {path.name for path in predicted.iterdir()}
    maps = {f's0_{name}.ome.tif' for name in ('probability', 'entropy', 'disagreement')}
    assert names == maps | {
        's0.ome.tif', 's0_preview.png', 's0_overlay.jpg', 's0.geojson', 's0_tiles', 'areas.csv', 'ratios.csv', 'classes.json',
        'slides.html', 'run.json', 'records',
    }  # fmt: skip


def test_areas_of_all_files_agree(predicted):
    labels = labels_of(predicted / 's0.ome.tif')
    rows = {row['class']: row for row in rows_of(predicted / 'areas.csv')}
    content = json.loads((predicted / 's0.geojson').read_text(encoding='utf-8'))
    outlines = dict.fromkeys(CLASSES, 0.0)
    for feature in content['features']:
        (key,) = [key for key in feature['properties']['measurements'] if 'area' in key]
        outlines[feature['properties']['classification']['name']] += feature['properties']['measurements'][key]
    tissue = (labels > 0).sum()
    assert labels.shape == (350, 550) and tissue
    for number, name in enumerate(CLASSES):
        pixels = int((labels == number).sum())
        assert int(rows[name]['pixels']) == pixels
        assert float(rows[name]['area_mm2']) == pytest.approx(pixels * 4 / 1e6)
        if number:
            assert outlines[name] == pytest.approx(pixels * 4)
            assert float(rows[name]['share_of_tissue']) == pytest.approx(pixels / tissue)


def test_outlines_have_the_areas_of_the_labels_in_level_0_pixels(predicted):
    shapely = pytest.importorskip('shapely')
    assert qupath_faults(predicted / 's0.geojson') == []
    labels, areas = labels_of(predicted / 's0.ome.tif'), dict.fromkeys(CLASSES, 0.0)
    for feature in json.loads((predicted / 's0.geojson').read_text(encoding='utf-8'))['features']:
        areas[feature['properties']['classification']['name']] += shapely.geometry.shape(feature['geometry']).area
    for number, name in enumerate(CLASSES[1:], 1):
        assert areas[name] == pytest.approx(4 * (labels == number).sum(), rel=0.01)


def test_maps_agree_with_the_labels(predicted, slides):
    labels = labels_of(predicted / 's0.ome.tif')
    probability = tifffile.imread(predicted / 's0_probability.ome.tif', level=0)
    entropy, disagreement = (
        tifffile.imread(predicted / f's0_{name}.ome.tif', level=0) for name in ('entropy', 'disagreement')
    )
    assert probability.shape == (16, *labels.shape) and entropy.shape == disagreement.shape == labels.shape
    assert (np.abs(probability.astype(int).sum(0) - 255) <= 8).all()
    assert (probability.argmax(0) == labels).mean() > 0.8  # specks were merged, and equal bytes have no largest
    with open_slide(slides / 's0.svs') as slide:
        view = slide.at(2)
        glass = ~TissueMask.from_slide(slide, view).rows(0, view.shape[0])
    assert glass.any() and (probability[0][glass] == 255).all() and not probability[1:, glass].any()
    assert not disagreement[glass].any() and not entropy[glass].any() and disagreement.max() > 50
    rows = {row['class']: row for row in rows_of(predicted / 'areas.csv')}
    for number, name in enumerate(CLASSES):
        if (labels == number).any():
            expected = disagreement[labels == number].mean() / 255
            assert float(rows[name]['mean_disagreement']) == pytest.approx(expected)


def test_record_says_how_the_slide_was_read(predicted, slides, checkpoints):
    content = json.loads((predicted / 'run.json').read_text())
    (entry,) = content['images']
    assert [member['file'] for member in content['checkpoints']] == [str(checkpoints / f'{i}.pth') for i in range(2)]
    assert entry['file'] == str(slides / 's0.svs') and entry['format'] == 'aperio' and entry['level'] == 0
    assert (entry['um_per_px'], entry['predicted_um_per_px'], entry['downsample']) == (1, 2, 2)
    assert entry['bounds_offset'] == [0, 0] and entry['icc_profile'] == 'none' and 0 < entry['tissue_share'] < 1
    assert entry['windows'] > 0 and entry['seconds'] > 0 and entry['missing_pixels'] == 0


def test_slide_and_array_of_the_same_pixels_have_equal_labels(predictor, slides, tmp_path):
    with open_slide(slides / 's0.svs') as slide:
        view = slide.at(2)
        pixels = view[0 : view.shape[0]]
    np.save(tmp_path / 'array.npy', pixels)
    Image.fromarray(pixels).save(tmp_path / 'image.png')
    inputs = [slides / 's0.svs', tmp_path / 'array.npy', tmp_path / 'image.png']
    options = dict(formats=('tiff',), min_area=0, no_tissue_mask=True)
    assert not predict_files(predictor, inputs, tmp_path / 'out', lambda text: None, **options)
    expected = predictor.predict(pixels)
    for name in ('s0', 'array', 'image'):
        np.testing.assert_array_equal(labels_of(tmp_path / 'out' / f'{name}.ome.tif'), expected)


@pytest.mark.parametrize('masked', [False, True])
def test_windows_leave_no_seams(slides, masked):
    """A network whose scores depend on the pixel alone gives the labels of the whole picture."""

    def pixelwise(windows):
        x = torch.from_numpy(windows).permute(0, 3, 1, 2).float()
        return torch.cat([x, 255 - x], 1)

    with open_slide(slides / 's1.svs') as slide:
        view = slide.at(2.4)
        whole = pixelwise(view[0 : view.shape[0]][None])[0].max(0).indices.numpy()
        mask = TissueMask.from_slide(slide, view) if masked else None
        wanted = mask.covers if masked else None
        labels = slide_labels(pixelwise, view, 6, (96, 80), (70, 64), wanted=wanted)
    where = mask.rows(0, view.shape[0]) if masked else np.ones(whole.shape, bool)
    assert 0.2 < where.mean() and (where.mean() < 0.95 or not masked)
    np.testing.assert_array_equal(labels[where], whole[where])


def test_finished_slides_are_skipped_and_others_predicted(predictor, slides, tmp_path, monkeypatch):
    out, lines, predictions = tmp_path / 'out', [], []
    real = Predictor.label

    def label(self, *arguments):
        predictions.append(arguments)
        return real(self, *arguments)

    monkeypatch.setattr(Predictor, 'label', label)
    options = dict(formats=('label', 'geojson', 'areas'))
    for number, (paths, expected) in enumerate((([slides / 's0.svs'], 1), ([slides], 1), ([slides], 0))):
        predictions.clear()
        assert not predict_files(predictor, paths, out, lines.append, **options)
        assert len(predictions) == expected, number
    assert lines[-1].endswith('s1.svs is finished already')
    (out / 's1.geojson').unlink()
    predictions.clear()
    assert not predict_files(predictor, [slides / '*.svs'], out, lines.append, **options)
    assert len(predictions) == 1 and (out / 's1.geojson').exists()
    with pytest.raises(IgniteError, match='s0.svs: min_area 100.0, now 7.*--overwrite'):
        predict_files(predictor, [slides], out, **dict(options, min_area=7))
    predictions.clear()
    assert not predict_files(
        predictor, [slides / 's0.svs'], out, lines.append, overwrite=True, **dict(options, min_area=7)
    )
    assert len(predictions) == 1 and {row['slide'] for row in rows_of(out / 'areas.csv')} == {'s0'}
    (out / 's0.geojson').write_text('{"mine": 1}')
    with pytest.raises(IgniteError, match='s0.geojson exists and is kept'):
        predict_files(predictor, [slides], out, overwrite=True, **options)


def test_changed_slide_is_predicted_again(predictor, slides, tmp_path):
    path, out, lines = tmp_path / 'a.svs', tmp_path / 'out', []
    for name in ('s0.svs', 's1.svs'):
        path.write_bytes((slides / name).read_bytes())
        os.utime(path, ns=(1, hash(name) % 10**9))
        assert not predict_files(predictor, [path], out, lines.append, formats=('label',))
    assert not any('finished' in line for line in lines)


def test_python_call_returns_the_record(predictor, slides, tmp_path):
    record = predictor.predict_slide(slides / 's0.svs', tmp_path, formats=('label', 'geojson'))
    assert record['files'] == ['s0.geojson', 's0.ome.tif', 's0_preview.png'] and record['windows'] > 0
    with pytest.raises(IgniteError, match='does not exist'):
        predictor.predict_slide(slides / 'none.svs', tmp_path)
    with pytest.raises(IgniteError, match="the option is 'format'"):
        predictor.predict_slide(slides / 's0.svs', tmp_path, format='label')


def truncated(path, slides):
    content = (slides / 's0.svs').read_bytes()
    path.write_bytes(content[: len(content) // 2])


def plain_tiff(path, slides):
    tifffile.imwrite(path, np.zeros((300, 300), np.uint16), tile=(64, 64))


def no_resolution(path, slides):
    write_slide(path, SIZE, None, 0.4, levels=(1, 4), tile=64)


def zero_resolution(path, slides):
    write_slide(path, SIZE, 0.0, 0.4, levels=(1, 4), tile=64)


def text(path, slides):
    path.write_text('not a slide')


@pytest.mark.parametrize(
    ('make', 'word'),
    [
        (truncated, ''),
        (plain_tiff, ''),
        (no_resolution, '--mpp'),
        (zero_resolution, '--mpp'),
        (text, ''),
        (lambda path, slides: path.touch(), 'empty'),
        (lambda path, slides: path.mkdir(), ''),
    ],
    ids=['truncated', 'no slide', 'no um/px', '0 um/px', 'text', 'empty', 'folder'],
)
@pytest.mark.usefixtures('config_loaded_once')
def test_bad_slide_is_one_sentence_and_the_others_are_predicted(checkpoints, slides, tmp_path, capsys, make, word):
    folder = tmp_path / 'in'
    folder.mkdir()
    suffix = '.tif' if make is plain_tiff else '.svs'
    make(folder / f'bad{suffix}', slides)
    (folder / 'good.svs').write_bytes((slides / 's1.svs').read_bytes())
    out = tmp_path / 'out'
    paths = [folder / f'bad{suffix}', folder / 'good.svs'] if (folder / f'bad{suffix}').is_file() else [folder]
    assert run(checkpoints / '0.pth', *paths, '--out', out, '--formats', 'label', 'areas') == 2
    message = single_error(capsys)
    assert f'bad{suffix}' in message and word in message and message.count('\n') == 1
    assert {p.name for p in out.iterdir()} == {
        'good.ome.tif', 'good_preview.png', 'areas.csv', 'ratios.csv', 'run.json', 'records'
    }  # fmt: skip
    errors = [entry.get('error') for entry in json.loads((out / 'run.json').read_text())['images']]
    assert sum(error is not None for error in errors) == 1 and len(errors) == 2


@pytest.mark.parametrize('where', ['write_geojson', 'write_label_pyramid', 'write_deep_zoom'])
@pytest.mark.usefixtures('config_loaded_once')
def test_full_disk_leaves_nothing_half_written(checkpoints, slides, tmp_path, capsys, monkeypatch, where):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(f'mmseg_ignite.apis.prediction_writers.{where}', full)
    assert run(checkpoints / '0.pth', slides / 's0.svs', '--out', tmp_path / 'o') == 2
    assert 'No space left on device' in single_error(capsys)
    assert {path.name for path in (tmp_path / 'o').iterdir()} == {'run.json', 'records', 'classes.json'}


@pytest.mark.usefixtures('config_loaded_once')
def test_masks(checkpoints, slides, tmp_path, capsys):
    """A mask of the right half; masks of another shape, of several slides, or that contradict another option."""
    mask = np.zeros((70, 110), np.uint8)
    mask[:, 55:] = 255
    Image.fromarray(mask).save(tmp_path / 'mask.png')
    Image.fromarray(mask[:30]).save(tmp_path / 'wrong.png')
    slide, labels = slides / 's0.svs', ('--formats', 'label', '--min-area', 0)
    assert (
        run(checkpoints / '0.pth', slide, '--out', tmp_path / 'o', '--tissue-mask', tmp_path / 'mask.png', *labels) == 0
    )
    assert run(checkpoints / '0.pth', slide, '--out', tmp_path / 'all', '--no-tissue-mask', *labels) == 0
    found, whole = (labels_of(tmp_path / name / 's0.ome.tif') for name in ('o', 'all'))
    assert not found[:, :275].any()
    assert (found[:, 330:] == whole[:, 330:]).mean() > 0.98  # as without a mask, where all windows are the same
    for arguments, word in (
        ((slide, '--tissue-mask', tmp_path / 'wrong.png'), 'wrong.png'),
        ((slides, '--tissue-mask', tmp_path / 'mask.png'), 'there are 2'),
        ((slide, '--tissue-mask', tmp_path / 'mask.png', '--no-tissue-mask'), 'leave one'),
        ((slide, '--tissue-mask', tmp_path / 'none.png'), 'none.png'),
    ):
        assert run(checkpoints / '0.pth', *arguments, '--out', tmp_path / 'p', *labels) == 2
        assert word in single_error(capsys)
    assert not list(tmp_path.glob('p/*.tif'))


@pytest.mark.usefixtures('config_loaded_once')
def test_bad_outputs_and_options_are_refused_first(checkpoints, slides, tmp_path, capsys, config, monkeypatch):
    whole = copy.deepcopy(config)
    whole.model.test_cfg = dict(mode='whole')
    for arguments, word in (
        ((slides / 's0.svs', '--out', '/proc/none'), '/proc/none'),
        ((slides / 's0.svs', '--out', tmp_path, '--min-area', -1), 'minimum area'),
        ((slides / 's0.svs', '--out', tmp_path, '--mpp', 9), '9.0 um/px'),
        ((slides / '*.tiff', '--out', tmp_path), 'matches no file'),
        ((slides / 's0.svs', '--out', tmp_path, '--icc'), 'no ICC profile'),
    ):
        assert run(checkpoints / '0.pth', *arguments, '--formats', 'label') == 2
        assert word in single_error(capsys)
    monkeypatch.setattr('mmseg_ignite.apis.load_config', lambda *_: copy.deepcopy(whole))
    assert run(checkpoints / '0.pth', slides / 's0.svs', '--out', tmp_path / 'o', '--formats', 'label') == 2
    assert 'model.test_cfg.mode=slide' in single_error(capsys)


def test_coordinates_start_at_the_bounds(predictor, slides, tmp_path, monkeypatch):
    """With bounds, outlines start at them, and at the corner of the slide on request."""
    from mmseg_ignite.slides import openslide_source

    monkeypatch.setattr(openslide_source, '_bounds', lambda properties: (128, 192, 512, 640))
    points = []
    for bounds_offset in (True, False):
        out = tmp_path / str(bounds_offset)
        options = dict(formats=('geojson', 'label'), bounds_offset=bounds_offset, tolerance=0, no_tissue_mask=True)
        record = predictor.predict_slide(slides / 's0.svs', out, **options)
        assert record['bounds_offset'] == [128, 192] and labels_of(out / 's0.ome.tif').shape == (256, 320)
        content = json.loads((out / 's0.geojson').read_text(encoding='utf-8'))
        points.append(np.array([p for f in content['features'] for ring in f['geometry']['coordinates'] for p in ring]))
    np.testing.assert_allclose(points[1] - points[0], [[192, 128]] * len(points[0]))
    assert points[0].min() >= 0


def test_cases_get_mean_and_minimum(predictor, slides, tmp_path):
    (tmp_path / 'cases.csv').write_text('slide,case\ns0,A\ns1,A\n')
    options = dict(formats=('areas',), cases=tmp_path / 'cases.csv')
    assert not predict_files(predictor, [slides], tmp_path / 'out', lambda text: None, **options)
    assert len(rows_of(tmp_path / 'out' / 'ratios.csv')) == 4


# several processes

WINDOWS = {
    'model.data_preprocessor.size': None,
    'model.test_cfg.crop_size': (96, 96),
    'model.test_cfg.stride': (64, 64),
}


def predicting(checkpoints, slides, out, seconds):
    """Return the work of a process that predicts slides, says so before each, and then waits."""

    def work():
        cfg = load_config(DEMO_CONFIG, WINDOWS)
        real = Predictor.label

        def label(self, *arguments):
            print('predicting', flush=True)
            time.sleep(seconds)
            return real(self, *arguments)

        Predictor.label = label
        formats, launcher = ('label', 'geojson', 'areas', 'page'), 'pytorch' if 'RANK' in os.environ else 'none'
        cli.run(lambda: predict(cfg, checkpoints / '0.pth', [slides], out, 'cpu', formats=formats, launcher=launcher))

    return work


def contents(out: Path) -> dict:
    """Return all files; JSON without what depends on the run."""
    found = {}
    for path in sorted(path for path in out.rglob('*') if path.is_file()):
        content = path.read_bytes()
        if path.suffix == '.json' and path.parent.name in ('records', out.name):
            content = json.loads(content)
            for entry in (content, *content.get('images', ())):
                for key in ('seconds', 'prediction_seconds', 'date', 'command', 'input'):
                    entry.pop(key, None)
        found[str(path.relative_to(out))] = content
    return found


@pytest.fixture(scope='module')
def alone(predictor, slides, tmp_path_factory):
    """The files of one process."""
    out = tmp_path_factory.mktemp('alone') / 'out'
    formats = ('label', 'geojson', 'areas', 'page')
    assert not predict_files(predictor, [slides], out, lambda text: None, formats=formats)
    return contents(out)


def test_two_processes_give_the_files_of_one(checkpoints, slides, alone, tmp_path):
    work = predicting(checkpoints, slides, tmp_path / 'out', 2)
    status = forked(lambda: sys.exit(int(any(in_two(work)))), tmp_path / 'output.txt', 200)
    output = (tmp_path / 'output.txt').read_text()
    assert status == 0, output
    assert output.count('predicting') == 2
    found = contents(tmp_path / 'out')
    assert found.keys() == alone.keys()
    different = [name for name in alone if name != 'run.json' and found[name] != alone[name]]
    assert different == []
    run_alone, run_here = alone['run.json'], found['run.json']
    assert run_here['images'] == run_alone['images'] and run_here.keys() == run_alone.keys()


@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGTERM])
def test_process_that_ends_half_way_leaves_its_slide_to_the_others(
    predictor, checkpoints, slides, alone, tmp_path, number
):
    out = tmp_path / 'out'
    process = start_fork(predicting(checkpoints, slides, out, 60), tmp_path / 'output.txt')
    while not (tmp_path / 'output.txt').exists() or 'predicting' not in (tmp_path / 'output.txt').read_text():
        assert process.is_alive()
        time.sleep(0.05)
    time.sleep(0.2)
    os.kill(process.pid, number)
    process.join(60)
    assert process.exitcode == (-signal.SIGKILL if number == signal.SIGKILL else 130)
    assert 'Traceback' not in (tmp_path / 'output.txt').read_text()
    left = {path.name for path in out.iterdir()} - {'classes.json', 'run.json', 'records'}
    assert left == ({'.claims', '.unfinished'} if number == signal.SIGKILL else set())
    formats = ('label', 'geojson', 'areas', 'page')
    assert not predict_files(predictor, [slides], out, lambda text: None, formats=formats)
    found = contents(out)
    assert found.keys() == alone.keys()
    assert [name for name in alone if name != 'run.json' and found[name] != alone[name]] == []
