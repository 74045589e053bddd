"""Reading checkpoints safely: hostile, damaged and incompatible files are refused."""

import os

import numpy as np
import pytest
import torch
from conftest import DEMO_CONFIG
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader

from mmseg_ignite.apis import load_config, train
from mmseg_ignite.apis import test as run_test
from mmseg_ignite.engine import load_weights, open_checkpoint, safe_checkpoints
from mmseg_ignite.errors import IgniteError


class Hostile:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def test_hostile_checkpoint_runs_no_code(tmp_path):
    torch.save(dict(state_dict={}, x=Hostile(tmp_path / 'ran')), tmp_path / 'bad.pth')
    with safe_checkpoints():
        for read in (open_checkpoint, CheckpointLoader.load_checkpoint):  # mmengine's runner calls the second
            with pytest.raises(IgniteError, match='other than weights'):
                read(str(tmp_path / 'bad.pth'))
    assert not (tmp_path / 'ran').exists()


def test_the_checkpoint_loader_of_mmengine_is_restored():
    """Also after an error and when contexts are nested."""
    before = CheckpointLoader._schemes['']
    with pytest.raises(ZeroDivisionError), safe_checkpoints():
        ours = CheckpointLoader._schemes['']
        with safe_checkpoints():
            pass
        assert CheckpointLoader._schemes[''] is ours is not before
        raise ZeroDivisionError
    assert CheckpointLoader._schemes[''] is before


@pytest.mark.parametrize('way', ['resume', 'load_from', 'init_cfg', 'test'])
def test_training_and_testing_refuse_a_hostile_checkpoint(prepared, tmp_path, way):
    """Whichever setting points to it."""
    torch.save(dict(state_dict={}, meta={}, x=Hostile(tmp_path / 'ran')), tmp_path / 'bad.pth')
    bad = str(tmp_path / 'bad.pth')
    cfg = load_config(DEMO_CONFIG, dict(data_root=str(prepared)), str(tmp_path / 'work'))
    cfg.train_dataloader.num_workers, cfg.train_dataloader.persistent_workers = 0, False
    cfg.crops.crop_size = (32, 32)
    (tmp_path / 'work').mkdir()
    if way == 'resume':
        (tmp_path / 'bad.pth').rename(tmp_path / 'work' / 'iter_1.pth')
        (tmp_path / 'work' / 'last_checkpoint').write_text('iter_1.pth')
    elif way == 'load_from':
        cfg.load_from = bad
    elif way == 'init_cfg':
        cfg.model.decode_head.init_cfg = dict(type='Pretrained', checkpoint=bad)
    with pytest.raises(IgniteError, match='other than weights'):
        run_test(cfg, bad) if way == 'test' else train(cfg, resume=way == 'resume')
    assert not (tmp_path / 'ran').exists()


def test_other_packages_cannot_extend_what_a_checkpoint_may_contain(tmp_path):
    """torch's list of allowed names is global: mmengine adds NumPy's functions to it, which crash on a hostile file."""
    torch.save(dict(x=Hostile(tmp_path / 'ran')), tmp_path / 'bad.pth')
    with torch.serialization.safe_globals([(os.mkdir, 'posix.mkdir'), Hostile]):
        with pytest.raises(IgniteError, match='other than weights'):
            open_checkpoint(tmp_path / 'bad.pth')
        assert Hostile in torch.serialization.get_safe_globals()  # as before
    assert not (tmp_path / 'ran').exists()


def test_checkpoint_cannot_access_attributes_of_allowed_classes(tmp_path):
    class Reach:
        def __reduce__(self):
            return getattr, (HistoryBuffer, 'register_statistics')

    torch.save(dict(x=Reach()), tmp_path / 'bad.pth')
    with pytest.raises(IgniteError, match='other than weights'):
        open_checkpoint(tmp_path / 'bad.pth')


def test_numpy_values_of_mmengine_become_tensors_and_numbers(tmp_path):
    """Of every number type and order that its runner stores; nothing is rebuilt by NumPy."""
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 2, (2, 3)).astype(kind) for kind in ('bool', 'u1', 'i4', 'i8', 'f4', 'f8')]
    arrays += [np.asfortranarray(rng.random((3, 4))), rng.random(0), np.float32(rng.random((2, 1, 3)))]
    history = HistoryBuffer(rng.random(5).tolist(), [1, 2, 3, 4, 5])
    torch.save(dict(arrays=arrays, number=np.float64(2.5), history=history), tmp_path / 'good.pth')
    found = open_checkpoint(tmp_path / 'good.pth')
    for array, tensor in zip(arrays, found['arrays'], strict=True):
        assert isinstance(tensor, torch.Tensor) and tensor.numpy().dtype == array.dtype
        np.testing.assert_array_equal(tensor.numpy(), array)
    assert found['number'] == 2.5 and type(found['number']) is float
    for tensor, array in zip((found['history'].values, found['history'].counts), history.data):
        np.testing.assert_array_equal(tensor.numpy(), array)


@pytest.mark.parametrize('content', [b'', b'hello', b'PK\x03\x04' + bytes(100)])
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / 'x.pth').write_bytes(content)
    with pytest.raises(IgniteError, match='x.pth'):
        open_checkpoint(tmp_path / 'x.pth')


def test_truncated_or_missing_checkpoint_is_refused(tmp_path):
    torch.save(dict(a=torch.ones(10000)), tmp_path / 'x.pth')
    os.truncate(tmp_path / 'x.pth', 20000)
    for name in ('x.pth', 'y.pth'):
        with pytest.raises(IgniteError, match=name):
            open_checkpoint(tmp_path / name)


def test_weights_of_another_model_are_refused(tmp_path):
    torch.save(dict(state_dict=torch.nn.Linear(3, 4).state_dict()), tmp_path / 'x.pth')
    load_weights(torch.nn.Linear(3, 4), tmp_path / 'x.pth')
    for other in (torch.nn.Linear(3, 5), torch.nn.Linear(3, 4, bias=False), torch.nn.BatchNorm2d(4)):
        with pytest.raises(IgniteError, match='another model'):
            load_weights(other, tmp_path / 'x.pth')
