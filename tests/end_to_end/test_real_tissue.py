"""A short run on real H&E tissue: prepare, train, test."""

import json

import numpy as np
import pytest
import torch
from conftest import DEMO_CONFIG, tool
from PIL import Image


@pytest.fixture
def two_threads():
    """PyTorch uses slower convolutions with one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures('two_threads')
def test_network_learns_real_tissue_from_random_weights(real_release, tmp_path):
    """After about 45 s of training the score is far above predicting the most common class everywhere."""
    data, work_dir = tmp_path / 'ignite', tmp_path / 'work'
    assert tool('prepare_ignite', '--release', real_release, '--out', data) == 0
    options = [
        '--cfg-options', f'data_root={data}', 'protocol=official', 'train_cfg.max_iters=80', 'train_cfg.val_interval=80',
        'param_scheduler.1.end=80', 'model.data_preprocessor.size=(160,160)', 'train_dataloader.batch_size=8',
        'train_dataloader.dataset.crops.crop_size=(160,160)', 'default_hooks.checkpoint.interval=80',
    ]  # fmt: skip
    assert tool('train', DEMO_CONFIG, '--work-dir', work_dir, *options) == 0
    arguments = [DEMO_CONFIG, work_dir / 'iter_80.pth', '--work-dir', work_dir, '--out', work_dir / 'out']
    assert tool('test', *arguments, '--no-report', *options) == 0

    result = json.loads((work_dir / 'metrics.json').read_text())
    matrices = np.load(work_dir / 'confusion.npz')['matrices']
    pixels = matrices.sum((0, 2))
    present = pixels > 0
    commonest = (
        100 * pixels.max() / pixels.sum()
    )  # accuracy of this prediction, and IoU of its class; other classes have 0
    assert result['rois'] == len(list((work_dir / 'out').glob('*_overlay.png'))) == 10
    assert result['mIoU'] > 2 * commonest / present.sum()
    assert result['aAcc'] > commonest
    assert np.array(Image.open(next((work_dir / 'out').glob('*_overlay.png')))).std() > 10
