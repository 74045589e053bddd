"""The tools as a user runs them: a tiny training, resumed, tested and used; then everything wrong."""

import json
import logging
import os
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from conftest import DEMO_CONFIG, ROOT, tool
from PIL import Image

from mmseg_ignite.apis import Predictor
from mmseg_ignite.errors import IgniteError
from mmseg_ignite.evaluation import scores
from mmseg_ignite.labels import CLASSES
from mmseg_ignite.preparation.store import image_path, label_path


@pytest.fixture(autouse=True)
def no_noise_of_closed_streams(monkeypatch):
    """mmengine's loggers keep the stream that pytest captured for an earlier test."""
    monkeypatch.setattr(logging, 'raiseExceptions', False)


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


def test_the_written_label_pngs_score_as_the_test_did(prepared, tested, tmp_path):
    status = tool(
        'evaluate', '--predictions', tested / 'out', '--data', prepared, '--encoding', 'raw', '--out', tmp_path
    )
    assert status == 0
    one, two = (json.loads((d / 'metrics.json').read_text()) for d in (tested, tmp_path))
    assert one['checkpoint'].endswith('iter_2.pth') and two['encoding'] == 'raw'
    same = one.keys() & two.keys()
    assert {k: one[k] for k in same} == {k: two[k] for k in same} and {'intervals', 'strata', 'protocol'} <= same
    assert (tested / 'per_roi.csv').read_text() == (tmp_path / 'per_roi.csv').read_text()


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
        ('test', [config, checkpoint, *work, '--cfg-options', 'data_root=no/such/data'], 'no/such/data'),
        ('test', [config, 'no.pth', *work, *good], 'no.pth'),
        ('test', [config, tmp_path / 'other.pth', *work, *good], 'another model'),
        ('test', [config, tmp_path / 'junk.pth', *work, *good], 'junk.pth'),
        ('test', [config, tmp_path, *work, *good], 'checkpoint'),
        ('predict', [config, tmp_path / 'other.pth', tmp_path, '--out', tmp_path / 'o'], 'another model'),
        ('predict', [config, checkpoint, tmp_path / 'empty', '--out', tmp_path / 'o'], 'no image'),
        ('predict', [config, checkpoint, 'no.png', '--out', tmp_path / 'o'], 'no.png'),
        ('predict', [config, checkpoint, tmp_path / 'gray.png', '--out', tmp_path / 'o'], 'RGB'),
        ('prepare_ignite', ['--release', 'nowhere', '--out', tmp_path / 'p'], 'nowhere'),
        ('prepare_ignite', ['--release', tmp_path / 'empty', '--out', tmp_path / 'p'], 'data_overview.csv'),
        ('make_synthetic_release', ['--out', tmp_path / 's', '--rois', '0'], 'at least'),
        ('make_synthetic_release', ['--out', tmp_path, '--rois', '4', '--patients', '4'], 'other files'),
    ]


@pytest.mark.parametrize('number', range(18))
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
    assert len(wrong(prepared, trained, tmp_path)) == 18


def test_doctor_passes_here():
    done = subprocess.run(
        [sys.executable, ROOT / 'tools' / 'doctor.py', '--data-root', 'no/such/data'], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [x for x in done.stdout.splitlines() if x[:4] in ('PASS', 'WARN', 'FAIL')]
    assert len(lines) == 8 and 'WARN  data' in done.stdout and 'PASS  model' in done.stdout


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
