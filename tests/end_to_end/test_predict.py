"""Predicting image files: folders with other files, resolutions, and protection of existing outputs."""

import copy
import errno
import importlib
import io
import json
import os
import sys

import mmcv.transforms
import numpy as np
import pytest
import torch
from conftest import DEMO_CONFIG, single_error, tool
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
from PIL import Image

from mmseg_ignite.apis import Predictor, load_config, predict_files
from mmseg_ignite.apis.prediction_options import PredictionOptions
from mmseg_ignite.apis.prediction_progress import WindowProgress
from mmseg_ignite.apis.testing import _remove_others
from mmseg_ignite.datasets.transforms import LoadIGNITERegion
from mmseg_ignite.errors import IgniteError
from mmseg_ignite.files import sha256
from mmseg_ignite.labels import CLASSES
from mmseg_ignite.preparation import read_index
from mmseg_ignite.visualization.overlay import write_labels

pytestmark = pytest.mark.usefixtures('one_thread')


@pytest.fixture(scope='module')
def config():
    cfg = load_config(DEMO_CONFIG)
    cfg.model.backbone.init_cfg = None
    cfg.model.data_preprocessor.size = None
    return cfg


@pytest.fixture(scope='module')
def checkpoint(config, tmp_path_factory):
    """Random weights, recorded as trained at 0.4 um/px."""
    init_default_scope('mmseg')
    path = tmp_path_factory.mktemp('model') / 'c.pth'
    state = MODELS.build(config.model).state_dict()
    torch.save(dict(state_dict=state, meta=dict(mmseg_ignite=dict(um_per_px=0.4))), path)
    return path


@pytest.fixture(scope='module')
def predictor(config, checkpoint):
    return Predictor(config, checkpoint, device='cpu')


@pytest.fixture(autouse=True)
def config_loaded_once(config, monkeypatch):
    """Loading the config in each call would take most of the time."""

    def load(path, options=None, work_dir=None, *_):
        cfg = copy.deepcopy(config)
        for dataset in (cfg[f'{part}_dataloader'].dataset for part in ('train', 'val', 'test')):
            dataset.update(options or {})
        cfg.work_dir = work_dir or cfg.work_dir
        return cfg

    monkeypatch.setattr('mmseg_ignite.apis.load_config', load)


def picture(height=64, width=80):
    return np.random.default_rng().integers(0, 256, (height, width, 3)).astype(np.uint8)


def save(path, image=None, **options):
    path.parent.mkdir(exist_ok=True, parents=True)
    Image.fromarray(picture() if image is None else image).save(path, **options)
    return path


def predict(checkpoint, *arguments):
    return tool('predict', DEMO_CONFIG, checkpoint, *arguments, '--device', 'cpu', '--min-area', 0)


def labels_of(path):
    return np.array(Image.open(path)) - 1


def test_unreadable_files_are_skipped(checkpoint, predictor, tmp_path, capsys, monkeypatch):
    folder, out = tmp_path / 'in', tmp_path / 'out'
    good = save(folder / 'good.png')
    strange = folder / os.fsdecode(b'caf\xe9.png')
    strange.write_bytes(good.read_bytes())
    jpeg = io.BytesIO()
    Image.fromarray(picture(300, 300)).save(jpeg, 'JPEG')
    (folder / 'half.jpg').write_bytes(jpeg.getvalue()[: len(jpeg.getvalue()) // 2])
    (folder / 'empty.png').touch()
    (folder / 'folder.png').mkdir()
    os.mkfifo(folder / 'fifo.tif')
    save(folder / 'tiny.png', picture(31, 90))
    save(folder / 'memory.png', picture(50, 91))
    save(folder / '._good.png')
    (folder / '.hidden.png').write_bytes(b'junk')
    real = Predictor.label

    def no_memory(self, image, *arguments):
        if image.shape[1] == 91:
            raise MemoryError
        return real(self, image, *arguments)

    monkeypatch.setattr(Predictor, 'label', no_memory)
    assert predict(checkpoint, folder, '--out', out) == 2
    output = capsys.readouterr()
    assert 'Traceback' not in output.err and output.err.count('error: ') == 1
    assert '6 input(s) were skipped' in output.err
    names = {'good.png', strange.name}
    written = {p.name for p in out.iterdir() if p.suffix == '.png' and not p.name.endswith('_overlay.png')}
    assert written == names and not list(out.glob('.*'))
    run = json.loads((out / 'run.json').read_text(encoding='utf-8'))
    errors = {os.path.basename(e['file']): e['error'] for e in run['images'] if 'error' in e}
    assert set(errors) == {'half.jpg', 'empty.png', 'folder.png', 'fifo.tif', 'tiny.png', 'memory.png'}
    assert 'memory' in errors['memory.png'] and '32 px' in errors['tiny.png']
    assert all(name in output.out for name in (*errors, 'caf\\xe9.png'))
    for name in names:
        np.testing.assert_array_equal(labels_of(out / name), predictor.predict(np.array(Image.open(good))))


def test_record_describes_how_labels_were_made(checkpoint, tmp_path, capsys):
    image = picture()
    alpha = np.where(np.arange(80) < 20, 0, 255) * np.ones((64, 1))
    save(tmp_path / 'a.png', np.dstack([image, alpha]).astype(np.uint8))
    exif = Image.Exif()
    exif[274] = 6
    save(tmp_path / 'b.tif', image, exif=exif, dpi=(25400 / 0.4,) * 2)
    save(tmp_path / 'c.tif', image, save_all=True, append_images=[Image.fromarray(image)])
    assert predict(checkpoint, tmp_path / 'a.png', tmp_path / 'b.tif', tmp_path / 'c.tif', '--out', tmp_path / 'o') == 0
    run = json.loads((tmp_path / 'o' / 'run.json').read_text())
    assert run['checkpoints'] == [dict(file=str(checkpoint), sha256=sha256(checkpoint))]
    assert run['config'] == str(DEMO_CONFIG) and run['package'].startswith('mmseg_ignite ')
    assert run['classes'] == {name: i for i, name in enumerate(CLASSES, 1)}
    assert run['training'] == dict(um_per_px=0.4, um_per_px_source='checkpoint')
    a, b, c = run['images']
    assert a['transparent'] == a['fully_transparent'] == 0.25 and a['um_per_px'] is None and not a['resampled']
    assert (b['orientation'], b['height'], b['width'], b['um_per_px']) == (6, 80, 64, pytest.approx(0.4))
    assert c['pages'] == 2 and labels_of(tmp_path / 'o' / 'b.png').shape == (80, 64)
    output = capsys.readouterr().out
    for word in ('25 % transparent, 25 % fully and thus Background',
                 'EXIF orientation 6 applied', 'page 1 of 2', '0.4 um/px, XResolution',
                 'the resolution of 2 image(s) is not known; 0.4 um/px'):  # fmt: skip
        assert word in output


@pytest.mark.parametrize('um_per_px', [None, 0.8])
def test_fully_transparent_pixels_are_background(checkpoint, predictor, tmp_path, um_per_px):
    image, alpha = picture(), np.random.default_rng().integers(0, 3, (64, 80)).astype(np.uint8) * 127
    exif = Image.Exif()
    exif[274] = 6  # a quarter turn
    path = save(tmp_path / 'a.png', np.dstack([image, alpha]), exif=exif)
    blank, white = np.rot90(alpha == 0, -1), 255 - (255.0 - image) * (alpha[..., None] / 255.0)
    labels = predictor.predict(path, um_per_px)
    assert (labels[blank] == CLASSES.index('Background')).all()
    shown = predictor.predict(np.ascontiguousarray(np.rot90(np.rint(white), -1)).astype(np.uint8), um_per_px)
    np.testing.assert_array_equal(labels[~blank], shown[~blank])
    assert (shown[blank] != CLASSES.index('Background')).any()  # the model's label of white pixels
    assert predict(checkpoint, path, '--out', tmp_path / 'o', *(['--um-per-px', um_per_px] if um_per_px else [])) == 0
    np.testing.assert_array_equal(labels_of(tmp_path / 'o' / 'a.png'), labels)


def test_image_is_resampled_to_the_training_resolution(checkpoint, predictor, tmp_path, capsys):
    """An image at twice the resolution made by repeating pixels gets the labels of the original, repeated."""
    small = picture(40, 51)
    large = small.repeat(2, 0).repeat(2, 1)
    expected = predictor.predict(small)
    np.testing.assert_array_equal(predictor.predict(large, um_per_px=0.2), expected.repeat(2, 0).repeat(2, 1))
    for same in (0.4, 0.4 * 1.04, 0.4 / 1.04):
        np.testing.assert_array_equal(predictor.predict(large, um_per_px=same), predictor.predict(large))
    save(tmp_path / 'a.png', large, dpi=(25400 / 0.2,) * 2)
    save(tmp_path / 'b.png', large)
    assert predict(checkpoint, tmp_path / 'a.png', '--out', tmp_path / 'o') == 0
    assert '0.2 um/px, pHYs of the PNG; resampled to 0.4 um/px' in capsys.readouterr().out
    assert predict(checkpoint, tmp_path / 'b.png', '--out', tmp_path / 'o', '--mpp', 0.2, '--overwrite') == 0
    assert '0.2 um/px, as stated by --mpp; resampled' in capsys.readouterr().out
    for name in 'ab':
        np.testing.assert_array_equal(labels_of(tmp_path / 'o' / f'{name}.png'), expected.repeat(2, 0).repeat(2, 1))
    np.testing.assert_array_equal(predictor.predict(tmp_path / 'a.png'), expected.repeat(2, 0).repeat(2, 1))
    entry = json.loads((tmp_path / 'o' / 'run.json').read_text())['images'][0]
    assert entry['resampled'] and (entry['predicted_height'], entry['predicted_width']) == (40, 51)
    assert predict(checkpoint, tmp_path / 'a.png', '--out', tmp_path / 'p', '--um-per-px', 0.4) == 0
    assert 'the file states 0.2 um/px' in capsys.readouterr().out
    assert predictor.predict(small, um_per_px=0.8).shape == small.shape[:2]
    assert predictor.working_size((40, 51), 0.8) == (80, 102)


@pytest.mark.parametrize('um_per_px', [0.0, -1.0, 0.01, 40.0, float('nan'), float('inf')])
def test_implausible_resolution_is_refused(checkpoint, predictor, tmp_path, capsys, um_per_px):
    with pytest.raises(IgniteError, match='um/px'):
        predictor.predict(picture(), um_per_px=um_per_px)
    assert predict(checkpoint, save(tmp_path / 'a.png'), '--out', tmp_path / 'o', '--um-per-px', um_per_px) == 2
    assert not (tmp_path / 'o').exists()


def test_impossible_size_after_resampling_is_refused(predictor):
    with pytest.raises(IgniteError, match='30 x 150 px at 0.4 um/px'):
        predictor.predict(picture(60, 300), um_per_px=0.2)
    with pytest.raises(IgniteError, match='at most'):
        predictor.working_size((10_000, 10_000), 4.0)


@pytest.mark.parametrize(
    ('meta', 'crops', 'expected'),
    [
        ({'mmseg_ignite': {'um_per_px': 0.25}}, {}, (0.25, 'checkpoint')),
        ({}, {'um_per_px': (0.2, 0.8)}, (pytest.approx(0.4), 'config')),
        ({'mmseg_ignite': {}}, {'um_per_px': None}, (0.5, 'default')),
    ],
)
def test_source_of_the_training_resolution(config, checkpoint, tmp_path, meta, crops, expected):
    cfg = copy.deepcopy(config)
    cfg.train_dataloader.dataset.crops = crops
    torch.save(dict(state_dict=torch.load(checkpoint)['state_dict'], meta=meta), tmp_path / 'c.pth')
    predictor = Predictor(cfg, tmp_path / 'c.pth', device='cpu')
    assert (predictor.um_per_px, predictor.um_per_px_source) == expected


def test_inputs_and_foreign_files_are_not_overwritten(checkpoint, tmp_path, capsys):
    a = save(tmp_path / 'in' / 'a.png')
    before = a.read_bytes()
    assert predict(checkpoint, tmp_path / 'in', '--out', tmp_path / 'in') == 2
    assert 'input' in capsys.readouterr().err
    assert a.read_bytes() == before and len(list((tmp_path / 'in').iterdir())) == 1

    out = tmp_path / 'out'
    for _ in range(2):  # our own results are replaced
        assert predict(checkpoint, a, '--out', out) == 0
    for name, write in (
        ('a.png', save),
        ('a_overlay.png', save),
        ('run.json', lambda path: path.write_text('{"my": 1}')),
    ):
        old = (out / name).read_bytes()
        write(out / name)
        mine = (out / name).read_bytes()
        assert predict(checkpoint, a, '--out', out) == 2
        assert name in capsys.readouterr().err and (out / name).read_bytes() == mine
        (out / name).write_bytes(old)
    assert predict(checkpoint, a, '--out', out) == 0


def test_clashing_output_names_are_refused(checkpoint, predictor, tmp_path):
    a, b = save(tmp_path / 'x' / 'a.png'), save(tmp_path / 'y' / 'a.tif')
    c = save(tmp_path / 'x' / 'a_overlay.png')
    errors = predict_files(predictor, [a, b, c, a], tmp_path / 'o', lambda text: None, min_area=0)
    assert len(errors) == 2 and 'a.tif' in errors[0] and 'a_overlay.png' in errors[1]
    np.testing.assert_array_equal(labels_of(tmp_path / 'o' / 'a.png'), predictor.predict(a))


@pytest.mark.parametrize(
    ('arguments', 'word'),
    [
        (['in/none.png'], 'none.png'),
        (['empty'], 'no image'),
        (['in', '--device', 'gpu'], 'device gpu'),
        (['in', '--device', 'cuda:99'], 'device cuda:99'),
        (['in', '--max-pixels', '0'], 'limit'),
        (['in', '--max-pixels', '99'], 'at most 99 pixels'),
        (['in', '--out', 'in/a.png'], 'is a file'),
    ],
)
def test_invalid_calls_print_one_error_and_write_nothing(checkpoint, tmp_path, capsys, monkeypatch, arguments, word):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / 'in' / 'a.png')
    (tmp_path / 'empty').mkdir()
    assert tool('predict', DEMO_CONFIG, checkpoint, '--device', 'cpu', '--out', 'o', *arguments) == 2
    assert word in single_error(capsys)
    assert not list(tmp_path.glob('o/*.png'))


def test_unwritable_folder_is_refused_before_the_model_is_built(checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr('mmseg_ignite.apis.predicting.Predictor', None)
    a = save(tmp_path / 'a.png')
    assert predict(checkpoint, a, '--out', '/proc/none') == 2  # not even by root
    assert '/proc/none cannot be written' in single_error(capsys)


def test_unwritable_record_is_an_error(checkpoint, tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr('mmseg_ignite.apis.prediction_records.write_result', full)
    assert predict(checkpoint, save(tmp_path / 'a.png'), '--out', tmp_path / 'o') == 2
    assert 'run.json cannot be written (No space left on device)' in single_error(capsys)


@pytest.mark.parametrize('um_per_px', ['0.25', True, [0.25], 0, float('nan')])
def test_resolution_of_the_wrong_type_is_refused(predictor, tmp_path, um_per_px):
    a = save(tmp_path / 'a.png')
    for image in (picture(), a, str(a)):
        with pytest.raises(IgniteError, match='the resolution is'):
            predictor.predict(image, um_per_px=um_per_px)
    with pytest.raises(IgniteError, match='the resolution is'):
        predict_files(predictor, [a], tmp_path / 'o', um_per_px=um_per_px)
    image = picture()
    np.testing.assert_array_equal(
        predictor.predict(image, np.float32(0.8)), predictor.predict(image, float(np.float32(0.8)))
    )


@pytest.mark.parametrize('image', [None, [[0]], torch.zeros(64, 64, 3, dtype=torch.uint8)])
def test_image_of_the_wrong_type_is_refused(predictor, image):
    with pytest.raises(IgniteError, match='NumPy array or a path'):
        predictor.predict(image)


def test_missing_checkpoint_is_reported_first(tmp_path, capsys):
    for name in ('none.pth', 'none.json'):
        assert predict(tmp_path / name, tmp_path / 'none.png', '--out', tmp_path / 'o') == 2
        assert name in capsys.readouterr().err


def test_palette_changes_the_overlay_only(predictor, tmp_path):
    a = save(tmp_path / 'a.png')
    for palette in ('official', 'colour-blind'):
        assert not predict_files(predictor, [a], tmp_path / palette, lambda text: None, palette=palette)
    official, other = tmp_path / 'official', tmp_path / 'colour-blind'
    assert (official / 'a.png').read_bytes() == (other / 'a.png').read_bytes()
    assert (official / 'a_overlay.png').read_bytes() != (other / 'a_overlay.png').read_bytes()
    with pytest.raises(IgniteError, match='palette'):
        predict_files(predictor, [a], tmp_path / 'o', palette='pink')


def test_config_is_not_changed(config, checkpoint):
    before = config.pretty_text
    Predictor(config, checkpoint, device='cpu')
    assert config.pretty_text == before


@pytest.mark.parametrize(
    'loading',
    [
        [dict(type='LoadIGNITERegion')],
        [dict(type=LoadIGNITERegion)],
        [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')],
        [dict(type='mmseg.LoadImageFromFile'), dict(type='mmseg.LoadAnnotations')],
        [dict(type=mmcv.transforms.LoadImageFromFile)],
    ],
)
@pytest.mark.parametrize('key', ['test_pipeline', 'test_dataloader'])
def test_loading_transforms_are_skipped(config, checkpoint, predictor, loading, key):
    cfg = copy.deepcopy(config)
    pipeline = [*loading, dict(type='PackSegInputs')]
    if key == 'test_pipeline':
        cfg.test_pipeline = pipeline
    else:
        cfg.pop('test_pipeline')
        cfg.test_dataloader.dataset.pipeline = pipeline
    image = picture()
    np.testing.assert_array_equal(Predictor(cfg, checkpoint, device='cpu').predict(image), predictor.predict(image))


def test_missing_or_unknown_pipeline_is_refused(config, checkpoint):
    cfg = copy.deepcopy(config)
    cfg.test_pipeline = [dict(type='LoadNothing')]
    with pytest.raises(IgniteError, match='LoadNothing'):
        Predictor(cfg, checkpoint, device='cpu')
    cfg.pop('test_pipeline'), cfg.pop('test_dataloader')
    with pytest.raises(IgniteError, match='test_pipeline'):
        Predictor(cfg, checkpoint, device='cpu')


def test_model_with_fewer_classes_returns_ids_of_the_release(device, config, tmp_path):
    cfg = copy.deepcopy(config)
    cfg.model.decode_head.num_classes = 3
    names = CLASSES[3], CLASSES[0], CLASSES[9]
    cfg.test_dataloader.dataset.metainfo = dict(classes=names)
    cfg.model.backbone.init_cfg = None
    init_default_scope('mmseg')
    torch.save(MODELS.build(cfg.model).state_dict(), tmp_path / 'c.pth')
    image = picture()
    predictor = Predictor(cfg, tmp_path / 'c.pth', device=str(device))
    labels, indices = predictor.predict(image), predictor.model.label_image(image)
    np.testing.assert_array_equal(labels, np.array([3, 0, 9])[indices])
    cfg.test_dataloader.dataset.metainfo = dict(classes=('a', 'b', 'c'))
    with pytest.raises(IgniteError, match='not classes of IGNITE'):
        Predictor(cfg, tmp_path / 'c.pth', device=str(device))


@pytest.mark.parametrize('symmetries', [1, 2])
def test_progress_counts_windows(device, config, checkpoint, symmetries):
    cfg = copy.deepcopy(config)
    cfg.model.test_cfg = dict(mode='slide', crop_size=(64, 64), stride=(48, 48), symmetries=symmetries)
    predictor, done = Predictor(cfg, checkpoint, device=str(device)), []
    predictor.predict(picture(100, 200), on_progress=done.append)
    assert sum(done) == predictor.windows((100, 200)) == 2 * 4


def test_device_receives_windows_only(device, config, checkpoint):
    cfg = copy.deepcopy(config)
    cfg.model.test_cfg = dict(mode='slide', crop_size=(64, 64), stride=(48, 48))
    predictor, shapes = Predictor(cfg, checkpoint, device=str(device)), []
    hook = predictor.model.data_preprocessor.register_forward_pre_hook(
        lambda module, inputs: shapes.extend(tuple(x.shape) for x in inputs[0]['inputs'])
    )
    image = picture(100, 200)
    labels = predictor.predict(image)
    assert set(shapes) == {(3, 64, 64)} and len(shapes) == predictor.windows((100, 200))
    hook.remove()
    assert labels.shape == (100, 200)


def test_pipeline_that_resizes_is_refused(device, config, checkpoint):
    cfg = copy.deepcopy(config)
    cfg.test_pipeline.insert(1, dict(type='Resize', scale=(128, 128), keep_ratio=False))
    with pytest.raises(IgniteError, match='Resize.*size and type must stay'):
        Predictor(cfg, checkpoint, device=str(device)).predict(picture(100, 200))


def test_pipeline_that_changes_colours_is_applied(config, checkpoint, predictor):
    cfg, image = copy.deepcopy(config), picture()
    cfg.test_pipeline.insert(1, dict(type='StainShift', kind='scanner'))
    shifted = Predictor(cfg, checkpoint, device='cpu')
    np.testing.assert_array_equal(shifted.predict(image), predictor.predict(shifted._transformed(image)))
    assert (shifted._transformed(image) != image).any()


def test_progress_is_shown_on_terminals_only(monkeypatch, capsys):
    def line():
        with WindowProgress(8, 'a.png') as on_progress:
            on_progress(3)
        return capsys.readouterr().err

    assert line() == ''
    monkeypatch.setattr(sys.stderr, 'isatty', lambda: True, raising=False)
    monkeypatch.setenv('TTY_COMPATIBLE', '1')
    assert 'a.png' in line()


def test_names_that_the_terminal_cannot_encode(checkpoint, tmp_path, monkeypatch):
    save(tmp_path / 'a.png').rename(tmp_path / os.fsdecode(b'\xff\xc3\xa9.png'))
    terminal = io.TextIOWrapper(io.BytesIO(), 'ascii')
    monkeypatch.setattr(sys, 'stdout', terminal)
    assert predict(checkpoint, tmp_path, '--out', tmp_path / 'o') == 0
    terminal.flush()
    assert b'\\xff\\xe9.png' in terminal.buffer.getvalue()
    assert (tmp_path / 'o' / os.fsdecode(b'\xff\xc3\xa9.png')).is_file()


def test_no_tool_overwrites_foreign_files(prepared, tmp_path, capsys):
    """Each call also lacks a checkpoint or predictions: outputs are checked first."""
    names = read_index(prepared)['splits']['patient-8-1-1']['test']
    (tmp_path / 'c.pth').write_bytes(b'junk')
    options = ['--cfg-options', f'data_root={prepared}']
    test, browse = ('test', DEMO_CONFIG, tmp_path / 'c.pth', *options), ('browse_dataset', DEMO_CONFIG, *options)
    evaluate = ('evaluate', '--predictions', tmp_path, '--data', prepared)
    for number, (arguments, path) in enumerate(
        (
            ((*test, '--work-dir', tmp_path / 'w', '--out'), f'{names[0]}.png'),
            ((*test, '--work-dir', tmp_path / 'w', '--out'), f'{names[0]}_overlay.png'),
            ((*test, '--work-dir'), f'predictions/{names[0]}.png'),
            ((*test, '--work-dir'), 'report.html'),
            ((*evaluate, '--out'), 'metrics.json'),
            ((*evaluate, '--out'), 'per_roi.csv'),
            ((*evaluate, '--out'), 'figures/confusion.png'),
            ((*browse, '--crops', 1, '--out'), 'crops_01.png'),
            ((*browse, '--crops', 1, '--out'), 'stains.png'),
        )
    ):
        out = tmp_path / str(number)
        mine = out / path
        mine.parent.mkdir(exist_ok=True, parents=True)
        mine.write_bytes(b'mine')
        assert tool(*arguments, out) == 2
        message = capsys.readouterr().err
        assert 'did not write' in message and str(mine) in message
        assert mine.read_bytes() == b'mine' and sum(p.is_file() for p in out.rglob('*')) == 1
    for arguments in (
        (*test, '--work-dir', prepared / 'w'),
        (*evaluate, '--out', prepared / 'w'),
        (*browse, '--out', prepared / 'w'),
        ('train', DEMO_CONFIG, '--work-dir', prepared / 'w', *options),
        ('make_synthetic_release', '--rois', 4, '--patients', 4, '--out', prepared / 'w'),
    ):
        assert tool(*arguments) == 2
        assert 'never modified' in capsys.readouterr().err
    assert not (prepared / 'w').exists()


def test_earlier_predictions_are_removed_and_foreign_files_kept(tmp_path):
    for name in ('old', 'kept'):
        write_labels(tmp_path, name, np.zeros((4, 4), np.uint8))
    save(tmp_path / 'mine.png')
    save(tmp_path / '._old.png')
    _remove_others(tmp_path, ['kept'])
    assert sorted(p.name for p in tmp_path.iterdir()) == ['._old.png', 'kept.png', 'mine.png']


def test_comparison_does_not_overwrite_a_run(tmp_path, capsys):
    for name in 'ab':
        (tmp_path / name).mkdir()
        np.savez(tmp_path / name / 'confusion.npz', a=np.zeros(1))
    before = (tmp_path / 'a' / 'confusion.npz').read_bytes()
    for out, word in ((tmp_path / 'a' / 'confusion.npz', 'input'), (tmp_path / 'mine.json', 'did not write')):
        (tmp_path / 'mine.json').write_text('{}')
        assert tool('compare', tmp_path / 'a', tmp_path / 'b', '--out', out) == 2
        assert word in capsys.readouterr().err
    assert (tmp_path / 'a' / 'confusion.npz').read_bytes() == before and (tmp_path / 'mine.json').read_text() == '{}'


def test_wrong_pipeline_and_missing_packages_are_one_sentence(config, checkpoint, monkeypatch):
    cfg = copy.deepcopy(config)
    cfg.test_pipeline = ['dict(type="PackSegInputs")']
    with pytest.raises(IgniteError, match='a dict with "type" was expected'):
        Predictor(cfg, checkpoint, device='cpu')
    real = importlib.import_module

    def missing(name):
        if name == 'shapely':
            raise ImportError(name)
        return real(name)

    monkeypatch.setattr('mmseg_ignite.extras.import_module', missing)
    with pytest.raises(IgniteError, match=r'shapely .*--formats geojson needs it: run .*mmseg_ignite\[slides\]'):
        PredictionOptions().check_packages(slides=False, ensemble=False)
    PredictionOptions(formats=('label', 'overlay', 'areas')).check_packages(slides=False, ensemble=False)


def test_results_depend_on_the_transforms_of_the_pipeline(config, checkpoint, predictor, tmp_path):
    cfg, path = copy.deepcopy(config), save(tmp_path / 'a.png')
    cfg.test_pipeline.insert(1, dict(type='StainShift', kind='scanner'))
    assert not predict_files(predictor, [path], tmp_path / 'o', lambda text: None, formats=('label',))
    with pytest.raises(IgniteError, match='other settings .*a.png: test_transforms '):
        predict_files(Predictor(cfg, checkpoint, device='cpu'), [path], tmp_path / 'o', formats=('label',))
