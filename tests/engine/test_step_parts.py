"""Averages, memory format and parameter groups change the speed of a step only: equal weights, and old runs resume."""

import copy

import pytest
import torch
from conftest import small_config
from mmengine.model import ExponentialMovingAverage
from torch import nn

from mmseg_ignite.apis import train
from mmseg_ignite.engine import ForeachEMA, TissueRunner, open_checkpoint
from mmseg_ignite.engine.devices import channels_last
from mmseg_ignite.errors import IgniteError

pytestmark = pytest.mark.usefixtures('one_thread')


def network():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1).double())


@pytest.mark.parametrize('update_buffers', [True, False])
@pytest.mark.parametrize('interval', [1, 2])
def test_averages_equal_those_of_mmengine(update_buffers, interval):
    """Bit by bit, also when one continues from the state of the other."""
    model = network()
    settings = dict(momentum=0.3, interval=interval, update_buffers=update_buffers)
    stock, own = ExponentialMovingAverage(model, **settings), ForeachEMA(model, **settings)
    for number in range(7):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += torch.randn_like(parameter)
        model[1](torch.randn(2, 4, 5, 5))  # changes the running statistics
        stock.update_parameters(model)
        own.update_parameters(model)
        expected, found = stock.state_dict(), own.state_dict()
        assert expected.keys() == found.keys()
        assert all(torch.equal(found[key], value) for key, value in expected.items())
        if number == 3:
            stock, own = ExponentialMovingAverage(network(), **settings), ForeachEMA(network(), **settings)
            stock.load_state_dict(found)
            own.load_state_dict(expected)
    assert not torch.equal(own.state_dict()['module.0.weight'], model[0].weight)


def hook(kind):
    return dict(type='EMAHook', ema_type=kind, momentum=0.1, update_buffers=True)


def trained(prepared, work_dir, iterations, kind='ForeachEMA', resume=False, **options):
    cfg = small_config(prepared, work_dir, 4, **{'default_hooks.checkpoint.interval': 2, **options})
    cfg.custom_hooks += [hook(kind)]
    if iterations < 4:
        cfg.train_cfg.max_iters = iterations
    runner = train(cfg, resume=resume)
    return runner, open_checkpoint(work_dir / f'iter_{iterations}.pth')


def equal_tensors(one, other):
    """Compare the tensors of two nested containers."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal_tensors(value, other[key]) for key, value in one.items())
    return True


def by_parameter(checkpoint, runner):
    """Return the optimizer's settings and state of each parameter by its name."""
    names = {id(parameter): name for name, parameter in runner.model.named_parameters()}
    known = [p for group in runner.optim_wrapper.optimizer.param_groups for p in group['params']]
    found = {}
    for group in checkpoint['optimizer']['param_groups']:
        for number in group['params']:
            settings = {key: value for key, value in group.items() if key != 'params'}
            found[names[id(known[number])]] = settings, checkpoint['optimizer']['state'][number]
    return found


DEFAULT = {'optim_wrapper.constructor': 'DefaultOptimWrapperConstructor'}


@pytest.fixture(scope='module')
def stock(prepared, tmp_path_factory):
    """Four iterations with mmengine's average and a group for each parameter; a checkpoint after two."""
    work_dir = tmp_path_factory.mktemp('stock')
    return work_dir, *trained(prepared, work_dir, 4, 'ExponentialMovingAverage', **DEFAULT)


def test_merged_groups_train_equally(stock, prepared, tmp_path):
    _, other, expected = stock
    runner, found = trained(prepared, tmp_path, 4)
    groups = runner.optim_wrapper.optimizer.param_groups
    settings = [(group['initial_lr'], group['weight_decay']) for group in groups]
    assert len(set(settings)) == len(groups) == 3 < len(other.optim_wrapper.optimizer.param_groups)
    assert all(equal_tensors(found[key], expected[key]) for key in ('state_dict', 'ema_state_dict'))
    mine, theirs = by_parameter(found, runner), by_parameter(expected, other)
    assert mine.keys() == theirs.keys()
    for name, (values, state) in theirs.items():
        assert mine[name][0] == values and equal_tensors(mine[name][1], state), name


def test_run_with_a_group_for_each_parameter_is_resumed_exactly(stock, prepared, tmp_path):
    work_dir, _, expected = stock
    (tmp_path / 'iter_2.pth').write_bytes((work_dir / 'iter_2.pth').read_bytes())
    runner, found = trained(prepared, tmp_path, 4, resume=True)
    assert runner.resumed.iteration == 2 and len(runner.optim_wrapper.optimizer.param_groups) == 3
    assert all(equal_tensors(found[key], expected[key]) for key in ('state_dict', 'ema_state_dict'))
    for one, other in zip(found['param_schedulers'], expected['param_schedulers']):
        assert one['last_step'] == other['last_step'] and len(one['_last_value']) == 4  # three groups and the base


def test_groups_of_other_settings_are_not_merged(stock, prepared, tmp_path):
    from mmseg_ignite.engine.checkpoints.writing import write_checkpoint

    checkpoint = open_checkpoint(stock[0] / 'iter_2.pth')
    checkpoint['optimizer']['param_groups'][0]['lr'] *= 2
    write_checkpoint(checkpoint, tmp_path / 'iter_2.pth')
    with pytest.raises(IgniteError, match='other parameter groups'):
        trained(prepared, tmp_path, 4, resume=True)


def in_channels_last(patch):
    """Make every run store its weights as on CUDA, but with the initial values of a CPU."""
    load = TissueRunner.load_or_resume

    def convert(self):
        channels_last(self.model)
        load(self)

    patch.setattr(TissueRunner, 'load_or_resume', convert)


@pytest.mark.parametrize('accumulated', [1, 3])
def test_channels_last_weights_change_no_file_and_no_result(prepared, tmp_path, monkeypatch, accumulated):
    """Accumulated gradients and averages included; fused optimizers need states and gradients stored as the weights."""
    options = {
        'optim_wrapper.accumulative_counts': accumulated
    }  # of 3, iteration 2 has gradients and no optimizer state
    _, expected = trained(prepared, tmp_path / 'contiguous', 4, **options)
    in_channels_last(monkeypatch)
    _, found = trained(prepared, tmp_path / 'whole', 4, **options)
    assert all(equal_tensors(found[key], expected[key]) for key in ('state_dict', 'ema_state_dict', 'optimizer'))
    assert all(value.is_contiguous() for value in found['state_dict'].values())
    (tmp_path / 'resumed').mkdir()
    (tmp_path / 'resumed' / 'iter_2.pth').write_bytes((tmp_path / 'whole' / 'iter_2.pth').read_bytes())
    runner, resumed = trained(prepared, tmp_path / 'resumed', 4, resume=True, **options)
    assert all(equal_tensors(resumed[key], expected[key]) for key in ('state_dict', 'ema_state_dict', 'optimizer'))
    moved = [p for p in runner.model.parameters() if not p.is_contiguous()]
    assert len(moved) >= 5
    for parameter in moved:
        states = runner.optim_wrapper.optimizer.state[parameter]
        assert states['exp_avg'].stride() == states['exp_avg_sq'].stride() == parameter.stride()


def test_copies_keep_the_memory_format():
    model = network()
    channels_last(model)
    average = ForeachEMA(model)
    for copied in (copy.deepcopy(model), average.module):
        assert copied[0].weight.is_contiguous(memory_format=torch.channels_last)
        assert not copied[0].weight.is_contiguous()
