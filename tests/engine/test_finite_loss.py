"""A diverging training stops, names the batch and keeps the last good checkpoint."""

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


def test_diverging_training_stops_and_names_the_batch(prepared, tmp_path):
    """At this learning rate the first step sets weights to about 1e30; the next loss is NaN or infinite."""
    with pytest.raises(IgniteError, match=r'the loss is (nan|inf) at iteration 2 \(learning rate .*e\+') as error:
        train(config(prepared, tmp_path, **{'optim_wrapper.optimizer.lr': 1e33}))
    names = {roi['name'] for roi in read_index(prepared)['rois']}
    named = str(error.value).split('ROIs ')[1].split(')')[0].split(', ')
    assert 1 <= len(named) <= 2 and set(named) <= names
    for path in tmp_path.glob('iter_*.pth'):
        assert path.name == 'iter_1.pth' and all(
            v.isfinite().all() for v in open_checkpoint(path)['state_dict'].values()
        )


def test_non_finite_weights_are_not_saved(prepared, tmp_path, monkeypatch):
    """A finite loss may have a non-finite gradient: the step spoils the weights before any loss shows it."""
    from mmengine.optim import OptimWrapper

    step = OptimWrapper.step

    def corrupting_step(self, **kwargs):
        step(self, **kwargs)
        self.count = getattr(self, 'count', 0) + 1
        if self.count == 2:
            with torch.no_grad():
                self.optimizer.param_groups[0]['params'][0].view(-1)[0] = float('nan')

    monkeypatch.setattr(OptimWrapper, 'step', corrupting_step)
    with pytest.raises(IgniteError, match='weights are not finite after 2 iterations.*--resume'):
        train(config(prepared, tmp_path, **{'default_hooks.checkpoint.max_keep_ckpts': 1}))
    assert [path.name for path in tmp_path.glob('*.pth')] == ['iter_1.pth']
    open_checkpoint(tmp_path / 'iter_1.pth')


def test_best_checkpoint_is_not_replaced_by_non_finite_weights(prepared, tmp_path, monkeypatch):
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
def test_non_finite_weights_are_not_loaded(tmp_path, value):
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
    """A tensor that reports a CUDA device, so that the hook delays reading it."""

    device = torch.device('cuda', 0)


def test_on_an_accelerator_the_previous_loss_is_read():
    hook = FiniteLossHook()
    good, bad = (torch.tensor(value).as_subclass(OnAccelerator) for value in (1.0, float('nan')))
    hook.after_train_iter(runner(0), 0, dict(data_samples=[sample('a')]), dict(loss=good))
    hook.after_train_iter(runner(1), 1, dict(data_samples=[sample('b'), sample('b')]), dict(loss=bad))
    with pytest.raises(IgniteError, match=r'iteration 2 \(learning rate 0.5, ROIs b\)'):
        hook.after_train_iter(runner(2), 2, dict(data_samples=[sample('c')]), dict(loss=good))


@pytest.mark.parametrize('event', ['before_val_epoch', 'after_train', 'before_save_checkpoint'])
def test_on_an_accelerator_the_last_loss_is_read_too(event):
    hook = FiniteLossHook()
    bad = torch.tensor(float('inf')).as_subclass(OnAccelerator)
    hook.after_train_iter(runner(0), 0, dict(data_samples=[sample('a')]), dict(loss=bad))
    with pytest.raises(IgniteError, match='ROIs a'):
        getattr(hook, event)(None, *([{}] if event == 'before_save_checkpoint' else []))


def test_batch_of_unknown_type():
    with pytest.raises(IgniteError, match='ROIs unknown'):
        FiniteLossHook().after_train_iter(runner(0), 0, [1, 2], dict(loss=torch.tensor(float('nan'))))
    FiniteLossHook().after_train_iter(runner(0), 0, None, None)
