"""The whole way on a GPU: train, resume, test, predict; and its results compared with the CPU's."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import DEMO_CONFIG, ROOT, cfg_options, small_config, tool
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
from PIL import Image

from mmseg_ignite.apis import Predictor, load_config, replay, train
from mmseg_ignite.engine import open_checkpoint
from mmseg_ignite.engine.devices import find_device
from mmseg_ignite.errors import IgniteError

pytestmark = [pytest.mark.usefixtures('one_thread'), pytest.mark.cuda]
DETERMINISTIC = {'randomness.deterministic': True, 'randomness.seed': 3}


def picture(height=150, width=180):
    return np.random.default_rng(1).integers(0, 256, (height, width, 3)).astype(np.uint8)


def weights(work_dir, iterations=2):
    return open_checkpoint(work_dir / f'iter_{iterations}.pth')['state_dict']


def test_gpu_is_the_default():
    assert find_device().type == 'cuda'


@pytest.mark.parametrize('amp', [False, True])
def test_equal_seeds_give_equal_weights(prepared, tmp_path, amp):
    """torch promises equal bits on CUDA only with deterministic algorithms."""
    for name in 'ab':
        runner = train(small_config(prepared, tmp_path / name, **DETERMINISTIC), amp=amp)
        assert next(runner.model.parameters()).is_cuda
    a, b = (weights(tmp_path / name) for name in 'ab')
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_first_losses_are_those_of_the_cpu(prepared, tmp_path, monkeypatch):
    """Crops and weights are the same; without dropout, whose random numbers differ, losses agree to rounding."""
    monkeypatch.setattr('mmengine.device.utils.DEVICE', 'cpu')
    train(small_config(prepared, tmp_path / 'start', 1))  # initial weights are drawn on the device
    losses = []
    options = {'model.decode_head.dropout_ratio': 0.0, 'model.backbone.drop_path_rate': 0.0, **DETERMINISTIC}
    for name in ('cuda', 'cpu'):
        monkeypatch.setattr('mmengine.device.utils.DEVICE', name)
        cfg = small_config(prepared, tmp_path / name, 1, **options, **{'default_hooks.logger.interval': 1})
        cfg.load_from = str(tmp_path / 'start' / 'iter_1.pth')
        runner = train(cfg)
        assert next(runner.model.parameters()).device.type == name
        log = next((tmp_path / name).glob('*/vis_data/scalars.json')).read_text()
        losses.append(json.loads(log.splitlines()[0])['loss'])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.parametrize('first', ['cuda', 'cpu'])
def test_run_continues_on_another_device(prepared, tmp_path, monkeypatch, first):
    for number, name in enumerate((first, 'cpu' if first == 'cuda' else 'cuda')):
        monkeypatch.setattr('mmengine.device.utils.DEVICE', name)
        runner = train(small_config(prepared, tmp_path, 2 + 2 * number), resume=bool(number))
        assert next(runner.model.parameters()).device.type == name
    assert runner.iter == 4 and all(value.isfinite().all() for value in weights(tmp_path, 4).values())


@pytest.mark.parametrize('test_cfg', [dict(mode='whole'), dict(mode='slide', crop_size=(64, 64), stride=(48, 48))])
@pytest.mark.parametrize('amp', [False, True])
def test_labels_are_nearly_those_of_the_cpu(tmp_path, test_cfg, amp):
    """Rounding decides where two classes are equally likely; half precision rounds more."""
    cfg = load_config(DEMO_CONFIG)
    cfg.model.backbone.init_cfg, cfg.model.data_preprocessor.size, cfg.model.test_cfg = None, None, test_cfg
    init_default_scope('mmseg')
    torch.manual_seed(5)
    model = MODELS.build(cfg.model)
    torch.nn.init.normal_(model.decode_head.conv_seg.weight, std=1)
    torch.save(model.state_dict(), tmp_path / 'c.pth')
    cpu, gpu = (
        Predictor(cfg, tmp_path / 'c.pth', device=name, amp=amp and name == 'cuda').predict(picture())
        for name in ('cpu', 'cuda')
    )
    assert len(np.unique(cpu)) > 1 and (cpu == gpu).mean() > (0.95 if amp else 0.995)


def test_tools_train_resume_test_and_predict(prepared, tmp_path):
    """With workers and pinned memory, half precision, and a report."""
    work_dir, workers = tmp_path / 'w', ('train_dataloader.num_workers=2', 'train_dataloader.pin_memory=True')
    for iterations, resume in ((2, ()), (4, ('--resume',))):
        options = cfg_options(prepared, *workers, iterations=iterations)
        assert tool('train', DEMO_CONFIG, '--work-dir', work_dir, '--amp', *resume, *options) == 0
    options = cfg_options(prepared)
    assert tool('test', DEMO_CONFIG, work_dir / 'iter_4.pth', '--work-dir', tmp_path / 't', *options) == 0
    assert json.loads((tmp_path / 't' / 'metrics.json').read_text())['rois'] > 0
    Image.fromarray(picture()).save(tmp_path / 'a.png')
    arguments = (work_dir / 'iter_4.pth', tmp_path / 'a.png', '--out', tmp_path / 'o', '--device', 'cuda')
    assert tool('predict', DEMO_CONFIG, *arguments, *options) == 0
    assert np.array(Image.open(tmp_path / 'o' / 'a.png')).shape == (150, 180)


def test_loss_that_is_not_finite_stops_the_training_and_its_batch_is_replayed(prepared, tmp_path):
    """On CUDA, a loss is read one iteration later, in order not to wait for it."""
    cfg = small_config(prepared, tmp_path, 6, **{'optim_wrapper.optimizer.lr': 1e33}, **DETERMINISTIC)
    with pytest.raises(IgniteError, match='nonfinite_batch_'):
        train(cfg)
    (path,) = tmp_path.glob('nonfinite_batch_*.json')
    found = replay(cfg, path)
    assert not np.isfinite(found['losses']['loss']) and len(found['crops']) == 2


def test_one_process_of_torchrun_trains_with_nccl(prepared, tmp_path):
    launcher = (sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=1')
    arguments = (DEMO_CONFIG, '--work-dir', tmp_path / 'w', '--launcher', 'pytorch', *cfg_options(prepared))
    done = subprocess.run(
        [*launcher, ROOT / 'tools' / 'train.py', *arguments],
        capture_output=True, text=True, timeout=300, env={**os.environ, 'PYTHONPATH': str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert all(value.isfinite().all() for value in weights(tmp_path / 'w').values())
