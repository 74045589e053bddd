"""The tools as a user runs them: a tiny training, resumed, tested and used; then everything wrong."""

import base64
import json
import os
import re
import subprocess
import sys
import zlib

import cv2
import numpy as np
import pytest
import torch
from conftest import DEMO_CONFIG, ROOT, tool
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
from PIL import Image

from mmseg_ignite.apis import Predictor, load_config
from mmseg_ignite.apis import test as run_test
from mmseg_ignite.datasets.prepared import image_path, label_path, read_index
from mmseg_ignite.datasets.transforms.shift import shifted_rgb
from mmseg_ignite.errors import IgniteError
from mmseg_ignite.evaluation import scores
from mmseg_ignite.labels import CLASSES
from mmseg_ignite.visualization import draw_overlay
from mmseg_ignite.visualization.overlay import write_labels


def options(prepared, iterations=2):
    return [
        '--cfg-options', f'data_root={prepared}', f'train_cfg.max_iters={iterations}', 'train_cfg.val_interval=2',
        'model.data_preprocessor.size=(64,64)', 'train_dataloader.batch_size=2',
        'train_dataloader.dataset.crops.crop_size=(64,64)', 'default_hooks.checkpoint.interval=2',
        'default_hooks.logger.interval=1', 'default_hooks.checkpoint.max_keep_ckpts=3',
        *(f'{p}_dataloader.{k}' for p in ('train', 'val', 'test') for k in ('num_workers=0', 'persistent_workers=False')),
    ]  # fmt: skip


@pytest.fixture(scope='module')
def trained(prepared, tmp_path_factory):
    work_dir = tmp_path_factory.mktemp('work')
    assert tool('train', DEMO_CONFIG, '--work-dir', work_dir, *options(prepared)) == 0
    return work_dir


@pytest.fixture(scope='module')
def tested(prepared, trained):
    status = tool('test', DEMO_CONFIG, trained / 'iter_2.pth', '--work-dir', trained, '--out', trained / 'out',
                  *options(prepared))  # fmt: skip
    assert status == 0
    return trained


def test_training_leaves_checkpoint_log_and_curves(trained):
    assert (trained / 'iter_2.pth').is_file()
    assert Image.open(trained / 'curves.png').size[0] > 500


def test_the_same_rois_are_drawn_at_each_validation(trained):
    drawn = sorted(p.relative_to(trained / 'progress').as_posix() for p in trained.glob('progress/*/*.jpg'))
    assert drawn and all(name.endswith('/iter_000002.jpg') for name in drawn)
    assert Image.open(trained / 'progress' / drawn[0]).size[0] > 300
    scalars = [x for p in trained.glob('*/vis_data/scalars.json') for x in p.read_text().splitlines() if 'mIoU' in x]
    assert all('mIoU_smoothed' in x for x in scalars) and scalars


def test_validation_with_context_draws_the_roi(prepared, trained, tmp_path):
    arguments = [*options(prepared), 'val_dataloader.dataset.use_context=True']
    assert tool('train', DEMO_CONFIG, '--work-dir', tmp_path, *arguments) == 0
    drawn = {p.relative_to(tmp_path): Image.open(p).width for p in tmp_path.glob('progress/*/*.jpg')}
    assert drawn == {path: Image.open(trained / path).width for path in drawn} and drawn


def test_early_stopping_and_the_best_checkpoint_take_the_smoothed_score(prepared, tmp_path):
    """A score that must rise by 100 points stops the training at the second validation."""
    hooks = "custom_hooks=[dict(type='ScoreSmoothingHook'),dict(type='EarlyStoppingHook',monitor='mIoU_smoothed'"
    config = tmp_path / 'early.py'
    config.write_text(
        f"_base_ = ['{DEMO_CONFIG}']\n{hooks},rule='greater',min_delta=100,patience=1)]\n"
        "default_hooks = dict(checkpoint=dict(save_best='mIoU_smoothed'))\n"
    )
    assert tool('train', config, '--work-dir', tmp_path / 'w', *options(prepared, 8)) == 0
    assert (tmp_path / 'w' / 'iter_4.pth').is_file() and not (tmp_path / 'w' / 'iter_6.pth').exists()
    assert list((tmp_path / 'w').glob('best_mIoU_smoothed_iter_*.pth'))


def test_tensorboard_gets_curves_and_pictures(prepared, tmp_path):
    accumulator = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator', reason='no tensorboard')
    assert tool('train', DEMO_CONFIG, '--work-dir', tmp_path, '--tensorboard', *options(prepared)) == 0
    events = accumulator.EventAccumulator(str(next(tmp_path.glob('*/vis_data'))), dict(images=0)).Reload().Tags()
    assert {'loss', 'mIoU'} <= set(events['scalars'])
    assert any(tag.startswith('progress/') for tag in events['images'])


def test_tensorboard_that_is_not_installed_is_asked_for(prepared, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr('mmseg_ignite.apis.training.find_spec', lambda name: None)
    assert tool('train', DEMO_CONFIG, '--work-dir', tmp_path, '--tensorboard', *options(prepared)) == 2
    assert 'mmseg_ignite[tensorboard]' in capsys.readouterr().err


def test_resumed_training_goes_on(prepared, trained):
    assert tool('train', DEMO_CONFIG, '--work-dir', trained, '--resume', *options(prepared, 4)) == 0
    lines = [json.loads(x) for p in sorted(trained.glob('*/vis_data/scalars.json')) for x in p.read_text().splitlines()]
    assert [x['iter'] for x in lines if 'loss' in x] == [1, 2, 3, 4]
    assert (trained / 'iter_4.pth').is_file()


def test_metrics_are_those_of_the_written_label_pngs(prepared, tested):
    """Score the PNGs by hand: what is reported is what was written."""
    found = json.loads((tested / 'metrics.json').read_text())
    matrix = np.zeros((16, 16), np.int64)
    for path in (tested / 'out').glob('*_overlay.png'):
        name = path.name.removesuffix('_overlay.png')
        truth = np.load(label_path(prepared, name)).astype(int)
        raw = np.array(Image.open(tested / 'out' / f'{name}.png')).astype(int)
        assert raw.shape == truth.shape and raw.min() >= 1 and raw.max() <= 16
        np.add.at(matrix, (truth[truth < 255], raw[truth < 255] - 1), 1)
    expected = scores(matrix, CLASSES)
    assert {k: found[k] for k in expected} == expected
    assert found['rois'] == len(list((tested / 'out').glob('*_overlay.png'))) > 0
    saved = np.load(tested / 'confusion.npz')
    np.testing.assert_array_equal(saved['matrices'].sum(0), matrix)


def run_folder(path):
    """metrics.json, per_roi.csv and what the report shows: ROIs, and the map of the prediction of each."""
    report = (path / 'report.html').read_text(encoding='utf-8')
    shown = dict(re.findall(r'<article class="region"[^>]* data-roi="([^"]+)".*?"prediction": "([^"]+)"', report, re.S))
    return json.loads((path / 'metrics.json').read_text()), (path / 'per_roi.csv').read_text(), shown


def test_the_written_label_pngs_score_and_show_as_the_test_did(prepared, tested, tmp_path):
    status = tool(
        'evaluate', '--predictions', tested / 'out', '--data', prepared, '--encoding', 'raw', '--out', tmp_path
    )
    assert status == 0
    (one, *first), (two, *second) = run_folder(tested), run_folder(tmp_path)
    assert one['checkpoint'].endswith('iter_2.pth') and one['use_context'] is False
    same = one.keys() & two.keys() - {'provenance'}
    assert {k: one[k] for k in same} == {k: two[k] for k in same}
    assert {'intervals', 'strata', 'protocol', 'predictions', 'data'} <= same
    assert first == second and len(first[1]) == one['rois'] > 1


def test_the_report_shows_every_roi_worst_first_and_the_training(prepared, tested):
    metrics, _, shown = run_folder(tested)
    assert list(shown)[:10] == [r['roi'] for r in metrics['worst_rois']] and len(shown) == metrics['rois']
    for name, prediction in shown.items():
        raw = np.array(Image.open(tested / 'out' / f'{name}.png'))  # so small that the report shows it as it is
        assert zlib.decompress(base64.b64decode(prediction)) == (raw - 1).tobytes()
    report = (tested / 'report.html').read_text(encoding='utf-8')
    assert '<html lang="en"' in report and 'id="training"' in report
    assert {p.name for p in (tested / 'figures').iterdir()} == {
        f'{name}.{kind}' for name in ('confusion', 'class_scores') for kind in ('png', 'svg', 'pdf')
    }


@pytest.fixture(scope='module')
def with_context(prepared, tested, tmp_path_factory):
    """Tested on the images with context, boundaries and calibration counted, the official part."""
    out = tmp_path_factory.mktemp('context')
    write_labels(out / 'predictions', 'patient1_he_roi999', np.ones((3, 3), np.uint8))  # of an earlier test
    extra = ['protocol=official', 'test_dataloader.dataset.use_context=True', 'test_evaluator.boundary_tolerance_um=2',
             'test_evaluator.calibration=True', 'model.test_cfg.keep_logits=True']  # fmt: skip
    status = tool('test', DEMO_CONFIG, tested / 'iter_2.pth', '--work-dir', out, '--language', 'ko', '--allow-seen-patients',
                  *options(prepared), *extra)  # fmt: skip
    assert status == 0
    return out


def test_context_is_seen_and_the_roi_is_scored(prepared, tested, with_context):
    """Against predicting the image with context as a whole and cutting the ROI out."""
    predictor = Predictor(DEMO_CONFIG, tested / 'iter_2.pth', device='cpu')
    index, matrix, differ = read_index(prepared), np.zeros((16, 16), np.int64), 0
    names = index['splits']['official']['test']
    assert {p.stem for p in (with_context / 'predictions').iterdir()} == set(names)
    for entry in index['rois']:
        if entry['name'] not in names:
            continue
        (y, x), name, truth = entry['context']['origin'], entry['name'], np.load(label_path(prepared, entry['name']))
        whole = predictor.predict(np.load(image_path(prepared, f'{name}_with_context')))
        expected = whole[y : y + truth.shape[0], x : x + truth.shape[1]]
        assert whole.size > expected.size
        found = np.array(Image.open(with_context / 'predictions' / f'{name}.png')) - 1
        np.testing.assert_array_equal(found, expected)
        differ += (found != predictor.predict(np.load(image_path(prepared, name)))).sum()
        np.add.at(matrix, (truth[truth < 255].astype(int), expected[truth < 255].astype(int)), 1)
    assert differ  # the context is seen
    result, _, shown = run_folder(with_context)
    expected = scores(matrix, CLASSES)
    assert {k: result[k] for k in expected} == expected and result['use_context'] is True
    assert set(shown) == set(names)
    assert sum(b['pixels'] for b in result['calibration']['bins']) == matrix.sum()
    assert '<html lang="ko"' in (with_context / 'report.html').read_text(encoding='utf-8')


def test_boundaries_of_a_test_with_context_are_those_of_its_label_pngs(prepared, with_context, tmp_path):
    status = tool('evaluate', '--predictions', with_context / 'predictions', '--data', prepared, '--protocol', 'official',
                  '--encoding', 'raw', '--boundary-tolerance-um', 2, '--out', tmp_path)  # fmt: skip
    assert status == 0
    (one, *first), (two, *second) = run_folder(with_context), run_folder(tmp_path)
    same = one.keys() & two.keys() - {'provenance'}
    assert {k: one[k] for k in same} == {k: two[k] for k in same} and 'boundary' in same
    assert first == second


def test_overlays_with_context_are_of_the_roi(prepared, tested, with_context, tmp_path):
    """As drawn from the prepared ROI and the written prediction."""
    arguments = ['--work-dir', tmp_path, '--out', tmp_path / 'out', '--no-report', '--allow-seen-patients']
    arguments += options(prepared)
    assert tool('test', DEMO_CONFIG, tested / 'iter_2.pth', *arguments, 'protocol=official',
                'test_dataloader.dataset.use_context=True') == 0  # fmt: skip
    assert not (tmp_path / 'report.html').exists() and not (tmp_path / 'predictions').exists()
    for path in (with_context / 'predictions').glob('*.png'):
        image, truth = (np.load(f(prepared, path.stem)) for f in (image_path, label_path))
        um = next(r['um_per_px'] for r in read_index(prepared)['rois'] if r['name'] == path.stem)
        drawn = draw_overlay(image, np.array(Image.open(path)) - 1, truth, path.stem, um)
        written = Image.open(tmp_path / 'out' / f'{path.stem}_overlay.png')
        np.testing.assert_array_equal(np.array(written)[60:-60], np.array(drawn)[60:-60])
        assert (tmp_path / 'out' / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize('use_context', [False, True])
def test_a_shift_is_what_the_network_and_the_reader_see(prepared, tested, tmp_path, use_context):
    """Labels, overlays and report against predicting the shifted images."""
    predictor, index = Predictor(DEMO_CONFIG, tested / 'iter_2.pth', device='cpu'), read_index(prepared)
    status = tool('test', DEMO_CONFIG, tested / 'iter_2.pth', '--work-dir', tmp_path, '--out', tmp_path / 'out',
                  '--shift', 'scanner', *options(prepared), f'test_dataloader.dataset.use_context={use_context}')  # fmt: skip
    assert status == 0
    result, _, shown = run_folder(tmp_path)
    assert result['shift'] == 'scanner' and set(shown) == set(index['splits']['patient-8-1-1']['test'])
    for entry in (r for r in index['rois'] if r['name'] in shown):
        name, um = entry['name'], entry['um_per_px']
        truth = np.load(label_path(prepared, name))
        image = shifted_rgb(np.load(image_path(prepared, name + '_with_context' * use_context)), name, 'scanner')
        y, x = entry['context']['origin'] if use_context else (0, 0)
        place = slice(y, y + truth.shape[0]), slice(x, x + truth.shape[1])
        expected = predictor.predict(image)[place]
        np.testing.assert_array_equal(np.array(Image.open(tmp_path / 'out' / f'{name}.png')) - 1, expected)
        drawn = draw_overlay(image[place], expected, truth, name, um)
        written = Image.open(tmp_path / 'out' / f'{name}_overlay.png')
        np.testing.assert_array_equal(np.array(written)[60:-60], np.array(drawn)[60:-60])
    report = (tmp_path / 'report.html').read_text(encoding='utf-8')
    assert 'not how well it does on the original images' in report
    assert 'shifted as if stained and scanned by another laboratory: scanner' in (tmp_path / 'metrics.txt').read_text()
    assert tool('evaluate', '--from', tmp_path) == 0
    assert run_folder(tmp_path)[0]['shift'] == 'scanner'


def test_a_shift_needs_a_loader_and_a_kind_that_there_is(prepared, tested):
    cfg = load_config(DEMO_CONFIG, dict(data_root=str(prepared)))
    with pytest.raises(IgniteError, match="kind of StainShift is 'blue'"):
        run_test(cfg, tested / 'iter_2.pth', shift='blue')
    cfg.test_dataloader.dataset.pipeline = [dict(type='PackSegInputs')]
    with pytest.raises(IgniteError, match='after which the stain could be shifted'):
        run_test(cfg, tested / 'iter_2.pth', shift='lab')


def test_stock_metric_beside_ours_agrees(prepared, tested, tmp_path, capsys):
    """mmseg's IoUMetric in a list with TissueMetric, whose options are reached by their place in it."""
    config = tmp_path / 'two.py'
    config.write_text(
        f"_base_ = ['{DEMO_CONFIG}']\ntest_evaluator = [dict(type='IoUMetric', prefix='stock'), dict(type='TissueMetric')]\n"
    )
    arguments = (config, tested / 'iter_2.pth', '--work-dir', tmp_path / 'w', *options(prepared))
    assert (
        tool('test', *arguments, 'test_dataloader.dataset.use_context=True', 'test_evaluator.1.bootstrap_samples=0')
        == 0
    )
    result = json.loads((tmp_path / 'w' / 'metrics.json').read_text())
    assert 'intervals' not in result
    logged = json.loads(next((tmp_path / 'w').glob('2*/2*.json')).read_text())
    assert logged['stock/aAcc'] == pytest.approx(result['aAcc'], abs=0.006)  # stock rounds to two places
    assert tool('test', *arguments, 'test_evaluator.0.prefix=None') == 2
    assert 'prefix' in capsys.readouterr().err


def test_fewer_classes_and_samples_without_names(prepared, tmp_path):
    """A model of three classes of the release, and mmseg's own meta keys: PNGs and report speak of the release's classes."""
    config, classes = tmp_path / 'few.py', (CLASSES[3], CLASSES[0], CLASSES[1])
    dataset = f'dict(dataset=dict(metainfo=dict(classes={classes!r}), pipeline=test_pipeline))'
    config.write_text(
        f"_base_ = ['{DEMO_CONFIG}']\nmodel = dict(decode_head=dict(num_classes=3))\n"
        "test_pipeline = [dict(type='LoadIGNITERegion'), dict(type='PackSegInputs')]\n"
        f'test_dataloader = {dataset}\n'
        f'train_dataloader = dict(dataset=dict(metainfo=dict(classes={classes!r})))\n'
        f'val_dataloader = dict(dataset=dict(metainfo=dict(classes={classes!r})))\n'
    )
    cfg = load_config(config)
    cfg.model.backbone.init_cfg = None
    init_default_scope('mmseg')
    torch.save(dict(state_dict=MODELS.build(cfg.model).state_dict()), tmp_path / 'few.pth')
    assert tool('test', config, tmp_path / 'few.pth', '--work-dir', tmp_path / 'w', *options(prepared)) == 0
    result, matrix = json.loads((tmp_path / 'w' / 'metrics.json').read_text()), np.zeros((3, 3), np.int64)
    for path in (tmp_path / 'w' / 'predictions').iterdir():
        raw, truth = np.array(Image.open(path)), np.load(label_path(prepared, path.stem))
        assert set(np.unique(raw)) <= {4, 1, 2}
        for i, t in enumerate((3, 0, 1)):
            for j, p in enumerate((4, 1, 2)):
                matrix[i, j] += ((truth == t) & (raw == p)).sum()
    expected = scores(matrix, classes)
    assert {k: result[k] for k in expected} == expected
    report = (tmp_path / 'w' / 'report.html').read_text(encoding='utf-8')
    assert report.count('<article class="region"') == result['rois']


def test_predict_agrees_with_test(prepared, tested, tmp_path, capsys):
    names = [p.name.removesuffix('_overlay.png') for p in (tested / 'out').glob('*_overlay.png')]
    (tmp_path / 'in').mkdir()
    for name in names:
        Image.fromarray(np.load(image_path(prepared, name))).save(tmp_path / 'in' / f'{name}.png')
    (tmp_path / 'in' / 'broken.png').write_bytes(b'no picture')
    (tmp_path / 'in' / 'notes.txt').write_text('not an image')
    status = tool('predict', DEMO_CONFIG, tested / 'iter_2.pth', tmp_path / 'in', '--out', tmp_path / 'out')
    assert status == 2
    assert 'broken.png' in capsys.readouterr().err
    assert not (tmp_path / 'out' / 'broken.png').exists()
    for name in names:
        ours, theirs = (np.array(Image.open(f / f'{name}.png')) for f in (tmp_path / 'out', tested / 'out'))
        np.testing.assert_array_equal(ours, theirs)
        assert (tmp_path / 'out' / f'{name}_overlay.png').is_file()


def test_mixed_precision_labels_nearly_the_same(prepared, tested, tmp_path):
    """In test and predict alike; bfloat16 may flip a pixel between two classes of almost the same logits."""
    status = tool(
        'test', DEMO_CONFIG, tested / 'iter_2.pth', '--work-dir', tmp_path, '--amp', '--no-report', *options(prepared)
    )
    assert status == 0 and not (tmp_path / 'report.html').exists()
    path = next((tmp_path / 'predictions').glob('*.png'))
    half, full = (np.array(Image.open(p)) for p in (path, tested / 'out' / path.name))
    assert (half == full).mean() > 0.8 and half.shape == full.shape
    image = np.load(image_path(prepared, path.stem))
    labels = Predictor(DEMO_CONFIG, tested / 'iter_2.pth', device='cpu', amp=True).predict(image)
    np.testing.assert_array_equal(labels + 1, half)


def test_predictor_takes_arrays_and_any_size(tested):
    predictor = Predictor(DEMO_CONFIG, tested / 'iter_2.pth', device='cpu')
    for shape in ((33, 700), (512, 513), (32, 32)):
        labels = predictor.predict(np.random.default_rng().integers(0, 256, (*shape, 3)).astype(np.uint8))
        assert labels.shape == shape and labels.dtype == np.uint8 and labels.max() < 16


def test_predictor_refuses_what_it_cannot_label(tested):
    predictor = Predictor(DEMO_CONFIG, tested / 'iter_2.pth', device='cpu')
    for image in (np.zeros((31, 99, 3), np.uint8), np.zeros((99, 99), np.uint8), np.zeros((64, 64, 3))):
        with pytest.raises(IgniteError, match='image'):
            predictor.predict(image)


def wrong(prepared, trained, tmp_path):
    """Arguments that cannot work, and a word that the sentence must hold."""
    torch.save(dict(state_dict=dict(a=torch.ones(1))), tmp_path / 'other.pth')
    (tmp_path / 'junk.pth').write_bytes(b'junk')
    (tmp_path / 'empty').mkdir()
    checkpoint, config, good = trained / 'iter_2.pth', DEMO_CONFIG, options(prepared)
    cv2.imwrite(str(tmp_path / 'gray.png'), np.zeros((20, 20), np.uint8))
    work = ['--work-dir', tmp_path / 'w']
    return [
        ('train', ['nowhere.py'], 'nowhere.py'),
        ('train', [config, *work, '--cfg-options', 'data_root=no/such/data'], 'no/such/data'),
        ('train', [config, *work, '--weights', 'no.pth', *good], 'no.pth'),
        ('train', [config, *work, *good, 'protocol=fold9'], 'fold9'),
        ('train', [config, '--work-dir', tmp_path / 'junk.pth', *good], 'is a file'),
        ('train', [config, *work, *good, 'data/ignite'], 'KEY=VALUE'),
        ('train', [config, *work, *good, 'protocoll=official'], 'did you mean protocol?'),
        ('train', [config, *work, *good, 'train_cfg.max_iters=abc'], 'train_cfg.max_iters'),
        ('train', [config, *work, *good, 'train_dataloader.dataset.reduce_zero_label=True'], 'reduce_zero_label'),
        ('train', [config, '--work-dir', trained, *good], '--overwrite'),
        ('train', [config, *work, '--resume', '--overwrite', *good], 'choose one of them'),
        ('test', [config, checkpoint, *work, *good, 'model.decode_head.num_classes=17'], '16 classes'),
        ('test', [config, checkpoint, *work, *good, 'protocol=official'], '--allow-seen-patients'),
        ('predict', [config, checkpoint, tmp_path, '--device', 'gpu', '--out', tmp_path / 'o'], 'gpu'),
        ('test', [config, checkpoint, *work, '--cfg-options', 'data_root=no/such/data'], 'no/such/data'),
        ('test', [config, 'no.pth', *work, *good], 'no.pth'),
        ('test', [config, tmp_path / 'other.pth', *work, *good], 'another model'),
        ('test', [config, tmp_path / 'junk.pth', *work, *good], 'junk.pth'),
        ('test', [config, tmp_path, *work, *good], 'checkpoint'),
        ('test', [config, checkpoint, *work, *good, 'test_evaluator.calibration=True'], 'keep_logits'),
        ('test', [config, checkpoint, *work, *good, 'test_evaluator.type=IoUMetric'], 'TissueMetric'),
        ('predict', [config, tmp_path / 'other.pth', tmp_path, '--out', tmp_path / 'o'], 'another model'),
        ('predict', [config, checkpoint, tmp_path / 'empty', '--out', tmp_path / 'o'], 'no image'),
        ('predict', [config, checkpoint, 'no.png', '--out', tmp_path / 'o'], 'no.png'),
        ('predict', [config, checkpoint, tmp_path / 'gray.png', '--out', tmp_path / 'o'], 'RGB'),
        ('prepare_ignite', ['--release', 'nowhere', '--out', tmp_path / 'p'], 'nowhere'),
        ('prepare_ignite', ['--release', tmp_path / 'empty', '--out', tmp_path / 'p'], 'data_overview.csv'),
        ('make_synthetic_release', ['--out', tmp_path / 's', '--rois', '0'], 'at least'),
        ('make_synthetic_release', ['--out', tmp_path, '--rois', '4', '--patients', '4'], 'other files'),
    ]


@pytest.mark.parametrize('number', range(29))
def test_a_wrong_call_is_one_sentence_and_status_2(prepared, trained, tmp_path, capsys, number):
    name, arguments, word = wrong(prepared, trained, tmp_path)[number]
    assert tool(name, *arguments) == 2
    said = capsys.readouterr().err
    assert word in said
    assert 'Traceback' not in said
    assert len([x for x in said.splitlines() if x.startswith('error: ')]) == 1
    for output in ('p', 's', 'o'):
        assert not list((tmp_path / output).glob('**/*.png'))


def test_all_wrong_calls_are_tried(prepared, trained, tmp_path):
    assert len(wrong(prepared, trained, tmp_path)) == 29


def test_doctor_passes_here():
    done = subprocess.run(
        [sys.executable, ROOT / 'tools' / 'doctor.py', '--data-root', 'no/such/data'], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [x for x in done.stdout.splitlines() if x[:4] in ('PASS', 'WARN', 'FAIL')]
    assert len(lines) == 8 and 'WARN  data' in done.stdout and '1 x 16 x 32 x 32' in done.stdout


def test_two_processes_without_cuda_score_as_one(prepared, tested, tmp_path):
    """torchrun on the CPU: same metrics as the single process, no ROI twice."""
    done = subprocess.run(
        [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2',
         ROOT / 'tools' / 'test.py', DEMO_CONFIG, tested / 'iter_2.pth', '--work-dir', tmp_path, '--launcher', 'pytorch',
         *options(prepared)],
        capture_output=True, text=True, env={**os.environ, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': ''},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (json.loads((d / 'metrics.json').read_text()) for d in (tested, tmp_path))
    assert one['classes'] == two['classes'] and one['rois'] == two['rois']
    assert run_folder(tested)[1:] == run_folder(tmp_path)[1:]
    assert {p.name: p.read_bytes() for p in (tmp_path / 'predictions').iterdir()} == {
        f'{name}.png': (tested / 'out' / f'{name}.png').read_bytes() for name in run_folder(tested)[2]
    }
