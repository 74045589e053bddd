"""The tools as a user runs them: a tiny training, resuming, testing, prediction; then invalid calls."""

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
from conftest import DEMO_CONFIG, ROOT, cfg_options, single_error, tool, without_figures
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

pytestmark = pytest.mark.usefixtures('one_thread', 'no_figures')


def options(prepared, *more, iterations=2):
    intervals = ('train_cfg.val_interval=2', 'default_hooks.checkpoint.interval=2', 'default_hooks.logger.interval=1')
    return cfg_options(prepared, *intervals, *more, iterations=iterations)


@pytest.fixture(scope='module')
def trained(prepared, tmp_path_factory):
    work_dir = tmp_path_factory.mktemp('work')
    assert tool('train', DEMO_CONFIG, '--work-dir', work_dir, *options(prepared)) == 0
    return work_dir


@pytest.fixture(scope='module')
def tested(prepared, trained):
    arguments = [DEMO_CONFIG, trained / 'iter_2.pth', '--work-dir', trained, '--out', trained / 'out']
    assert tool('test', *arguments, *options(prepared)) == 0
    return trained


@pytest.fixture(scope='module')
def predictor(trained):
    return Predictor(DEMO_CONFIG, trained / 'iter_2.pth', device='cpu')


def test_training_writes_checkpoint_and_curves(trained):
    assert (trained / 'iter_2.pth').is_file()
    assert Image.open(trained / 'curves.png').size[0] > 500


def test_validation_overlays_and_smoothed_score(trained):
    overlays = sorted(trained.glob('progress/*/*.jpg'))
    assert overlays and all(path.name == 'iter_000002.jpg' for path in overlays)
    assert Image.open(overlays[0]).size[0] > 300
    scalars = [x for p in trained.glob('*/vis_data/scalars.json') for x in p.read_text().splitlines() if 'mIoU' in x]
    assert all('mIoU_smoothed' in x for x in scalars) and scalars


def test_validation_overlays_with_context_show_the_roi_only(prepared, trained, tmp_path):
    arguments = [*options(prepared), 'val_dataloader.dataset.use_context=True']
    assert tool('train', DEMO_CONFIG, '--work-dir', tmp_path, *arguments) == 0
    widths = {p.relative_to(tmp_path): Image.open(p).width for p in tmp_path.glob('progress/*/*.jpg')}
    assert widths == {path: Image.open(trained / path).width for path in widths} and widths


def test_early_stopping_and_best_checkpoint_use_the_smoothed_score(prepared, tmp_path):
    """A required improvement of 100 points stops the training at the second validation."""
    hooks = "custom_hooks=[dict(type='ScoreSmoothingHook'),dict(type='EarlyStoppingHook',monitor='mIoU_smoothed'"
    config = tmp_path / 'early.py'
    config.write_text(
        f"_base_ = ['{DEMO_CONFIG}']\n{hooks},rule='greater',min_delta=100,patience=1)]\n"
        "default_hooks = dict(checkpoint=dict(save_best='mIoU_smoothed'))\n"
    )
    assert tool('train', config, '--work-dir', tmp_path / 'w', *options(prepared, iterations=8)) == 0
    assert (tmp_path / 'w' / 'iter_4.pth').is_file() and not (tmp_path / 'w' / 'iter_6.pth').exists()
    assert list((tmp_path / 'w').glob('best_mIoU_smoothed_iter_*.pth'))


def test_tensorboard_receives_curves_and_overlays(prepared, tmp_path):
    accumulator = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator', reason='no tensorboard')
    assert tool('train', DEMO_CONFIG, '--work-dir', tmp_path, '--tensorboard', *options(prepared)) == 0
    events = accumulator.EventAccumulator(str(next(tmp_path.glob('*/vis_data'))), dict(images=0)).Reload().Tags()
    assert {'loss', 'mIoU'} <= set(events['scalars'])
    assert any(tag.startswith('progress/') for tag in events['images'])


def test_missing_tensorboard_is_named(prepared, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr('mmseg_ignite.apis.training.find_spec', lambda name: None)
    assert tool('train', DEMO_CONFIG, '--work-dir', tmp_path, '--tensorboard', *options(prepared)) == 2
    assert 'mmseg_ignite[tensorboard]' in capsys.readouterr().err


def test_training_resumes(prepared, trained):
    assert tool('train', DEMO_CONFIG, '--work-dir', trained, '--resume', *options(prepared, iterations=4)) == 0
    lines = [json.loads(x) for p in sorted(trained.glob('*/vis_data/scalars.json')) for x in p.read_text().splitlines()]
    assert [x['iter'] for x in lines if 'loss' in x] == [1, 2, 3, 4]
    assert (trained / 'iter_4.pth').is_file()


def test_metrics_match_the_written_label_pngs(prepared, tested):
    """Score the PNGs with plain NumPy."""
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
    """Return metrics.json, per_roi.csv and the report's ROIs: {name: encoded prediction}."""
    report = (path / 'report.html').read_text(encoding='utf-8')
    shown = dict(re.findall(r'<article class="region"[^>]* data-roi="([^"]+)".*?"prediction": "([^"]+)"', report, re.S))
    return json.loads((path / 'metrics.json').read_text()), (path / 'per_roi.csv').read_text(), shown


def assert_same_run(first, second):
    """Compare two run folders; return the keys that both metrics.json have."""
    (metrics, *files), (other_metrics, *other_files) = run_folder(first), run_folder(second)
    common = metrics.keys() & other_metrics.keys() - {'provenance'}
    assert {k: metrics[k] for k in common} == {k: other_metrics[k] for k in common}
    assert files == other_files
    return common


def test_label_pngs_get_the_scores_and_report_of_the_test(prepared, tested, tmp_path):
    arguments = ['--predictions', tested / 'out', '--data', prepared, '--encoding', 'raw', '--out', tmp_path]
    assert tool('evaluate', *arguments) == 0
    metrics = run_folder(tested)[0]
    assert metrics['checkpoint'].endswith('iter_2.pth') and metrics['use_context'] is False
    common = assert_same_run(tested, tmp_path)
    assert {'intervals', 'strata', 'protocol', 'predictions', 'data'} <= common
    assert len(run_folder(tested)[2]) == metrics['rois'] > 1


def test_report_shows_training_and_all_rois_worst_first(prepared, tested):
    metrics, _, shown = run_folder(tested)
    assert list(shown)[:10] == [r['roi'] for r in metrics['worst_rois']] and len(shown) == metrics['rois']
    for name, prediction in shown.items():
        raw = np.array(Image.open(tested / 'out' / f'{name}.png'))  # small enough to be shown at full resolution
        assert zlib.decompress(base64.b64decode(prediction)) == (raw - 1).tobytes()
    report = (tested / 'report.html').read_text(encoding='utf-8')
    assert '<html lang="en"' in report and 'id="training"' in report
    assert {p.name for p in (tested / 'figures').iterdir()} == {
        f'{name}.{kind}' for name in ('confusion', 'class_scores') for kind in ('png', 'svg', 'pdf')
    }


@pytest.fixture(scope='module')
def with_context(prepared, tested, tmp_path_factory):
    """A test on the images with context of the official test part, with boundary scores and calibration."""
    out = tmp_path_factory.mktemp('context')
    write_labels(out / 'predictions', 'patient1_he_roi999', np.ones((3, 3), np.uint8))  # from an earlier test
    extra = ['protocol=official', 'test_dataloader.dataset.use_context=True', 'test_evaluator.boundary_tolerance_um=2',
             'test_evaluator.calibration=True', 'model.test_cfg.keep_logits=True']  # fmt: skip
    arguments = ['--work-dir', out, '--language', 'ko', '--allow-seen-patients', *options(prepared, *extra)]
    with without_figures():
        assert tool('test', DEMO_CONFIG, tested / 'iter_2.pth', *arguments) == 0
    return out


def test_network_sees_the_context_and_the_roi_is_scored(prepared, predictor, with_context):
    """Compare with predicting the image with context and cropping the labels to the ROI."""
    index, matrix, differ = read_index(prepared), np.zeros((16, 16), np.int64), 0
    names = index['splits']['official']['test']
    assert {p.stem for p in (with_context / 'predictions').iterdir()} == set(names)
    for entry in index['rois']:
        if entry['name'] not in names:
            continue
        (y, x), name, truth = entry['context']['origin'], entry['name'], np.load(label_path(prepared, entry['name']))
        full = predictor.predict(np.load(image_path(prepared, f'{name}_with_context')))
        expected = full[y : y + truth.shape[0], x : x + truth.shape[1]]
        assert full.size > expected.size
        found = np.array(Image.open(with_context / 'predictions' / f'{name}.png')) - 1
        np.testing.assert_array_equal(found, expected)
        differ += (found != predictor.predict(np.load(image_path(prepared, name)))).sum()
        np.add.at(matrix, (truth[truth < 255].astype(int), expected[truth < 255].astype(int)), 1)
    assert differ  # the context matters
    result, _, shown = run_folder(with_context)
    expected = scores(matrix, CLASSES)
    assert {k: result[k] for k in expected} == expected and result['use_context'] is True
    assert set(shown) == set(names)
    assert sum(b['pixels'] for b in result['calibration']['bins']) == matrix.sum()
    assert '<html lang="ko"' in (with_context / 'report.html').read_text(encoding='utf-8')


def test_boundary_scores_with_context_match_the_label_pngs(prepared, with_context, tmp_path):
    arguments = ['--predictions', with_context / 'predictions', '--data', prepared, '--protocol', 'official']
    arguments += ['--encoding', 'raw', '--boundary-tolerance-um', 2, '--out', tmp_path]
    assert tool('evaluate', *arguments) == 0
    assert 'boundary' in assert_same_run(with_context, tmp_path)


def test_overlays_with_context_show_the_roi_only(prepared, tested, with_context, tmp_path):
    """Compare with overlays made from the prepared ROI and the written prediction."""
    arguments = ['--work-dir', tmp_path, '--out', tmp_path / 'out', '--no-report', '--allow-seen-patients']
    arguments += options(prepared, 'protocol=official', 'test_dataloader.dataset.use_context=True')
    assert tool('test', DEMO_CONFIG, tested / 'iter_2.pth', *arguments) == 0
    assert not (tmp_path / 'report.html').exists() and not (tmp_path / 'predictions').exists()
    for path in (with_context / 'predictions').glob('*.png'):
        image, truth = (np.load(f(prepared, path.stem)) for f in (image_path, label_path))
        um = next(r['um_per_px'] for r in read_index(prepared)['rois'] if r['name'] == path.stem)
        overlay = draw_overlay(image, np.array(Image.open(path)) - 1, truth, path.stem, um)
        written = Image.open(tmp_path / 'out' / f'{path.stem}_overlay.png')
        np.testing.assert_array_equal(np.array(written)[60:-60], np.array(overlay)[60:-60])
        assert (tmp_path / 'out' / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize('use_context', [False, True])
def test_shift_applies_to_network_overlays_and_report(prepared, tested, predictor, tmp_path, use_context):
    """Compare labels and overlays with predictions of the shifted images."""
    index = read_index(prepared)
    arguments = ['--work-dir', tmp_path, '--out', tmp_path / 'out', '--shift', 'scanner']
    arguments += options(prepared, f'test_dataloader.dataset.use_context={use_context}')
    assert tool('test', DEMO_CONFIG, tested / 'iter_2.pth', *arguments) == 0
    result, _, shown = run_folder(tmp_path)
    assert result['shift'] == 'scanner' and set(shown) == set(index['splits']['patient-8-1-1']['test'])
    for entry in (r for r in index['rois'] if r['name'] in shown):
        name, um = entry['name'], entry['um_per_px']
        truth = np.load(label_path(prepared, name))
        image = shifted_rgb(np.load(image_path(prepared, name + '_with_context' * use_context)), name, 'scanner')
        y, x = entry['context']['origin'] if use_context else (0, 0)
        region = slice(y, y + truth.shape[0]), slice(x, x + truth.shape[1])
        expected = predictor.predict(image)[region]
        np.testing.assert_array_equal(np.array(Image.open(tmp_path / 'out' / f'{name}.png')) - 1, expected)
        overlay = draw_overlay(image[region], expected, truth, name, um)
        written = Image.open(tmp_path / 'out' / f'{name}_overlay.png')
        np.testing.assert_array_equal(np.array(written)[60:-60], np.array(overlay)[60:-60])
    report = (tmp_path / 'report.html').read_text(encoding='utf-8')
    assert 'not how well it does on the original images' in report
    assert 'shifted as if stained and scanned by another laboratory: scanner' in (tmp_path / 'metrics.txt').read_text()
    assert tool('evaluate', '--from', tmp_path, '--samples', 0) == 0
    assert run_folder(tmp_path)[0]['shift'] == 'scanner'


def test_unknown_shift_or_missing_loader_is_refused(prepared, tested):
    cfg = load_config(DEMO_CONFIG, dict(data_root=str(prepared)))
    with pytest.raises(IgniteError, match="kind of StainShift is 'blue'"):
        run_test(cfg, tested / 'iter_2.pth', shift='blue')
    cfg.test_dataloader.dataset.pipeline = [dict(type='PackSegInputs')]
    with pytest.raises(IgniteError, match='after which the stain could be shifted'):
        run_test(cfg, tested / 'iter_2.pth', shift='lab')


def test_iou_metric_of_mmseg_agrees(prepared, tested, tmp_path, capsys):
    """Use mmseg's IoUMetric and TissueMetric in a list, whose options are addressed by index."""
    config = tmp_path / 'two.py'
    config.write_text(
        f"_base_ = ['{DEMO_CONFIG}']\ntest_evaluator = [dict(type='IoUMetric', prefix='stock'), dict(type='TissueMetric')]\n"
    )
    arguments = (config, tested / 'iter_2.pth', '--work-dir', tmp_path / 'w', '--no-report', *options(prepared))
    more = ('test_dataloader.dataset.use_context=True', 'test_evaluator.1.bootstrap_samples=0')
    assert tool('test', *arguments, *more) == 0
    result = json.loads((tmp_path / 'w' / 'metrics.json').read_text())
    assert 'intervals' not in result
    logged = json.loads(next((tmp_path / 'w').glob('2*/2*.json')).read_text())
    assert logged['stock/aAcc'] == pytest.approx(result['aAcc'], abs=0.006)  # mmseg rounds to two decimals
    assert tool('test', *arguments, 'test_evaluator.0.prefix=None') == 2
    assert 'prefix' in capsys.readouterr().err


def test_fewer_classes_and_stock_meta_keys(prepared, tmp_path):
    """A model with three classes and mmseg's own meta keys writes PNGs and a report with the classes of the release."""
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
    (tmp_path / 'in' / 'broken.png').write_bytes(b'not an image')
    (tmp_path / 'in' / 'notes.txt').write_text('not an image')
    arguments = [DEMO_CONFIG, tested / 'iter_2.pth', tmp_path / 'in', '--out', tmp_path / 'out', '--min-area', 0]
    assert tool('predict', *arguments) == 2
    assert 'broken.png' in capsys.readouterr().err
    assert not (tmp_path / 'out' / 'broken.png').exists()
    for name in names:
        ours, theirs = (np.array(Image.open(f / f'{name}.png')) for f in (tmp_path / 'out', tested / 'out'))
        np.testing.assert_array_equal(ours, theirs)
        assert (tmp_path / 'out' / f'{name}_overlay.png').is_file()


def test_mixed_precision_changes_few_labels(prepared, tested, tmp_path):
    """Test and prediction agree; bfloat16 may change pixels whose two highest logits are almost equal."""
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


def test_predictor_accepts_arrays_of_any_size(predictor):
    for shape in ((33, 700), (512, 513), (32, 32)):
        labels = predictor.predict(np.random.default_rng().integers(0, 256, (*shape, 3)).astype(np.uint8))
        assert labels.shape == shape and labels.dtype == np.uint8 and labels.max() < 16


def test_predictor_refuses_invalid_images(predictor):
    for image in (np.zeros((31, 99, 3), np.uint8), np.zeros((99, 99), np.uint8), np.zeros((64, 64, 3))):
        with pytest.raises(IgniteError, match='image'):
            predictor.predict(image)


def invalid_calls(prepared, trained, tmp_path):
    """Return invalid calls: tool, arguments and a word of the expected message."""
    torch.save(dict(state_dict=dict(a=torch.ones(1))), tmp_path / 'other.pth')
    (tmp_path / 'junk.pth').write_bytes(b'junk')
    (tmp_path / 'empty').mkdir()
    checkpoint, config, good = trained / 'iter_2.pth', DEMO_CONFIG, options(prepared)
    cv2.imwrite(str(tmp_path / 'gray.png'), np.zeros((20, 20), np.uint8))
    work = ['--work-dir', tmp_path / 'w']
    return [
        ('train', ['missing.py'], 'missing.py'),
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
        ('prepare_ignite', ['--release', 'missing', '--out', tmp_path / 'p'], 'missing'),
        ('prepare_ignite', ['--release', tmp_path / 'empty', '--out', tmp_path / 'p'], 'data_overview.csv'),
        ('make_synthetic_release', ['--out', tmp_path / 's', '--rois', '0'], 'at least'),
        ('make_synthetic_release', ['--out', tmp_path, '--rois', '4', '--patients', '4'], 'other files'),
    ]


@pytest.mark.parametrize('number', range(29))
def test_invalid_call_prints_one_error_and_returns_2(prepared, trained, tmp_path, capsys, number):
    name, arguments, word = invalid_calls(prepared, trained, tmp_path)[number]
    assert tool(name, *arguments) == 2
    assert word in single_error(capsys)
    for output in ('p', 's', 'o'):
        assert not list((tmp_path / output).glob('**/*.png'))


def test_all_invalid_calls_are_tested(prepared, trained, tmp_path):
    assert len(invalid_calls(prepared, trained, tmp_path)) == 29


def test_doctor_passes(capsys):
    status, output = tool('doctor', '--data-root', 'no/such/data'), capsys.readouterr().out
    assert status == 0, output
    lines = [x for x in output.splitlines() if x[:4] in ('PASS', 'WARN', 'FAIL')]
    assert len(lines) == 9 and 'WARN  data' in output and '1 x 16 x 32 x 32' in output


def test_two_cpu_processes_score_as_one(prepared, tested, tmp_path):
    """tools/dist_test.sh on the CPU gives the metrics of a single process and scores no ROI twice."""
    done = subprocess.run(
        ['bash', ROOT / 'tools' / 'dist_test.sh', DEMO_CONFIG, tested / 'iter_2.pth', '2', '--work-dir', tmp_path,
         *options(prepared)],
        capture_output=True, text=True, env={**os.environ, 'PYTHON': sys.executable, 'CUDA_VISIBLE_DEVICES': ''},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    (metrics, *files), (other_metrics, *other_files) = run_folder(tested), run_folder(tmp_path)
    assert metrics['classes'] == other_metrics['classes'] and metrics['rois'] == other_metrics['rois']
    assert files == other_files
    assert {p.name: p.read_bytes() for p in (tmp_path / 'predictions').iterdir()} == {
        f'{name}.png': (tested / 'out' / f'{name}.png').read_bytes() for name in run_folder(tested)[2]
    }
