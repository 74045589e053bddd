"""A training that diverges stops, says where, and leaves the last good checkpoint."""

from types import SimpleNamespace

import pytest
import torch
from conftest import small_config
from mmseg.structures import SegDataSample

from mmseg_ignite.apis import train
from mmseg_ignite.datasets.prepared import read_index
from mmseg_ignite.engine import load_weights, open_checkpoint
from mmseg_ignite.engine.hooks import FiniteLossHook
from mmseg_ignite.errors import IgniteError

pytestmark = pytest.mark.usefixtures('one_thread')


def config(prepared, work_dir, **options):
    return small_config(prepared, work_dir, 4, **{'default_hooks.checkpoint.interval': 1, **options})


def test_a_diverging_training_stops_and_names_the_batch(prepared, tmp_path):
    """The first step at this rate leaves weights of 1e30; the loss after it is not a number."""
    with pytest.raises(IgniteError, match=r'the loss is (nan|inf) at iteration 2 \(learning rate .*e\+') as error:
        train(config(prepared, tmp_path, **{'optim_wrapper.optimizer.lr': 1e33}))
    names = {roi['name'] for roi in read_index(prepared)['rois']}
    said = str(error.value).split('ROIs ')[1].split(')')[0].split(', ')
    assert 1 <= len(said) <= 2 and set(said) <= names
    for path in tmp_path.glob('iter_*.pth'):
        assert path.name == 'iter_1.pth' and all(
            v.isfinite().all() for v in open_checkpoint(path)['state_dict'].values()
        )


def test_weights_that_are_not_finite_are_not_saved(prepared, tmp_path, monkeypatch):
    """A finite loss whose gradient is not: the step spoils the weights, and nothing notices it before the next loss."""
    from mmengine.optim import OptimWrapper

    step = OptimWrapper.step

    def spoiled(self, **kwargs):
        step(self, **kwargs)
        self.count = getattr(self, 'count', 0) + 1
        if self.count == 2:
            with torch.no_grad():
                self.optimizer.param_groups[0]['params'][0].view(-1)[0] = float('nan')

    monkeypatch.setattr(OptimWrapper, 'step', spoiled)
    with pytest.raises(IgniteError, match='weights are not finite after 2 iterations.*--resume'):
        train(config(prepared, tmp_path, **{'default_hooks.checkpoint.max_keep_ckpts': 1}))
    assert [path.name for path in tmp_path.glob('*.pth')] == ['iter_1.pth']
    open_checkpoint(tmp_path / 'iter_1.pth')


def test_the_best_checkpoint_is_not_replaced_by_such_weights(prepared, tmp_path, monkeypatch):
    from mmseg_ignite.engine.hooks import TissueCheckpointHook

    saved = []
    monkeypatch.setattr('mmengine.hooks.CheckpointHook.after_val_epoch', lambda *a: saved.append(a))
    model = torch.nn.Linear(2, 2)
    found = SimpleNamespace(model=model, iter=3)
    TissueCheckpointHook(save_best='mIoU', rule='greater').after_val_epoch(found, {'mIoU': 1.0})
    assert len(saved) == 1
    torch.nn.init.constant_(model.bias, float('inf'))
    with pytest.raises(IgniteError, match='bias'):
        TissueCheckpointHook(save_best='mIoU', rule='greater').after_val_epoch(found, {})
    assert len(saved) == 1


@pytest.mark.parametrize('value', [float('nan'), float('inf'), -float('inf')])
def test_weights_that_are_not_finite_are_not_loaded(tmp_path, value):
    model = torch.nn.Linear(3, 4)
    state = model.state_dict()
    state['weight'][1, 2] = value
    torch.save(dict(state_dict=state), tmp_path / 'x.pth')
    for read in (open_checkpoint, lambda path: load_weights(model, path)):
        with pytest.raises(IgniteError, match='NaN or infinite.*weight'):
            read(tmp_path / 'x.pth')


def sample(roi):
    found = SegDataSample()
    found.set_metainfo(dict(roi=roi))
    return found


def runner(iteration):
    rates = SimpleNamespace(get_lr=lambda: dict(lr=[0.5]))
    return SimpleNamespace(iter=iteration, optim_wrapper=rates)


class OnAccelerator(torch.Tensor):
    """A tensor that says it is on another device, so that the hook does not read it at once."""

    device = torch.device('cuda', 0)


def test_on_an_accelerator_the_loss_before_is_read():
    hook = FiniteLossHook()
    good, bad = (torch.tensor(value).as_subclass(OnAccelerator) for value in (1.0, float('nan')))
    hook.after_train_iter(runner(0), 0, dict(data_samples=[sample('a')]), dict(loss=good))
    hook.after_train_iter(runner(1), 1, dict(data_samples=[sample('b'), sample('b')]), dict(loss=bad))
    with pytest.raises(IgniteError, match=r'iteration 2 \(learning rate 0.5, ROIs b\)'):
        hook.after_train_iter(runner(2), 2, dict(data_samples=[sample('c')]), dict(loss=good))


@pytest.mark.parametrize('event', ['before_val_epoch', 'after_train', 'before_save_checkpoint'])
def test_on_an_accelerator_nothing_is_kept_unread(event):
    hook = FiniteLossHook()
    bad = torch.tensor(float('inf')).as_subclass(OnAccelerator)
    hook.after_train_iter(runner(0), 0, dict(data_samples=[sample('a')]), dict(loss=bad))
    with pytest.raises(IgniteError, match='ROIs a'):
        getattr(hook, event)(None, *([{}] if event == 'before_save_checkpoint' else []))


def test_a_batch_of_other_data_is_unknown():
    with pytest.raises(IgniteError, match='ROIs unknown'):
        FiniteLossHook().after_train_iter(runner(0), 0, [1, 2], dict(loss=torch.tensor(float('nan'))))
    FiniteLossHook().after_train_iter(runner(0), 0, None, None)
