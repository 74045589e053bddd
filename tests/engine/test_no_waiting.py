"""A training iteration between two logs never waits for the device: forward, loss, backward, optimizer and all hooks."""

import pytest
import torch
from conftest import small_config
from mmengine.logging import MessageHub
from torch.utils._python_dispatch import TorchDispatchMode

from mmseg_ignite.apis import train
from mmseg_ignite.engine import ResumableTrainLoop
from mmseg_ignite.engine.late_values import LateFlag

pytestmark = pytest.mark.usefixtures('one_thread')

READS = ('_local_scalar_dense', 'nonzero', 'masked_select', 'equal', 'unique', '_unique2', 'is_nonzero', 'item')
"""Operations whose result the host needs."""


class Waits(TorchDispatchMode):
    """Collect the operations for which CUDA would wait: reads, boolean masks as indices, and tensors made of host values."""

    def __init__(self):
        super().__init__()
        self.found, self.operations = [], 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.__name__.split('.')[0]
        self.operations += 1
        if name in ('index', 'index_put', 'index_put_', '_index_put_impl_'):
            if any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]):
                self.found.append(f'{name} with a mask')
        elif name in READS or name == 'lift_fresh':
            self.found.append(name)
        return function(*args, **(kwargs or {}))


def test_waits_are_found():
    x = torch.arange(4.0)
    with Waits() as waits:
        float(x[0])
        x[x > 1]
        bool(x.sum() > 0)
        x.new_tensor(1.0)
        x.masked_fill(x > 1, 0)
    assert waits.found == ['_local_scalar_dense', 'index with a mask', '_local_scalar_dense', 'lift_fresh']


CASES = {
    'float32, clipped': {'optim_wrapper.clip_grad.max_norm': 1.0},
    'bfloat16': {'optim_wrapper.type': 'HalfOptimWrapper', 'optim_wrapper.dtype': 'bfloat16'},
    'float16, scaled, clipped, accumulated': {
        'optim_wrapper.type': 'HalfOptimWrapper',
        'optim_wrapper.dtype': 'float16',
        'optim_wrapper.clip_grad.max_norm': 1.0,
        'optim_wrapper.accumulative_counts': 2,
    },
    'weighted focal loss': {
        'model.decode_head.loss_decode.temperature': 0.5,
        'model.decode_head.loss_decode.gamma': 2.0,
    },
}


def run(prepared, tmp_path, monkeypatch, options, watched, iterations=(2, 3, 4, 5)):
    """Train eight iterations; ``watched`` are the contexts of those from the third to the sixth, where nothing is logged."""
    cfg = small_config(prepared, tmp_path, 8, **{'default_hooks.logger.interval': 8, **options})
    cfg.custom_hooks += [dict(type='EMAHook', ema_type='ForeachEMA', momentum=0.01, update_buffers=True)]
    run_iter = ResumableTrainLoop.run_iter

    def watch(self, batch):
        if self._iter not in iterations:
            return run_iter(self, batch)
        with watched():
            return run_iter(self, batch)

    monkeypatch.setattr(ResumableTrainLoop, 'run_iter', watch)
    return train(cfg)


@pytest.mark.parametrize('case', CASES)
def test_no_operation_of_an_iteration_waits(prepared, tmp_path, monkeypatch, case):
    """The backward pass runs in this thread on a CPU, so its operations are counted too."""
    waits = Waits()
    runner = run(prepared, tmp_path, monkeypatch, CASES[case], lambda: waits)
    assert waits.found == [] and waits.operations > 1000
    losses = runner.message_hub.get_scalar('train/loss').data[0]
    assert len(losses) == 8 and len(set(losses)) == 8


@pytest.mark.cuda
@pytest.mark.parametrize('case', CASES)
def test_cuda_does_not_wait(prepared, tmp_path, monkeypatch, case):
    """PyTorch itself raises at the first operation for which the host waits."""

    class Watched:
        def __enter__(self):
            torch.cuda.set_sync_debug_mode('error')

        def __exit__(self, *_):
            torch.cuda.set_sync_debug_mode('default')

    runner = run(prepared, tmp_path, monkeypatch, CASES[case], Watched)
    assert len(runner.message_hub.get_scalar('train/loss').data[0]) == 8


def test_history_is_that_of_mmengine_whenever_it_is_read(prepared, tmp_path, monkeypatch):
    """Every history of two runs, in order, at every iteration and in the checkpoint; those of times differ."""
    options = {'optim_wrapper.clip_grad.max_norm': 1.0, 'train_cfg.val_interval': 3}
    histories = []
    for number, late in enumerate((True, False)):
        found, run_iter = [], ResumableTrainLoop.run_iter

        def read(self, batch, run_iter=run_iter, found=found):
            run_iter(self, batch)
            scalars = self.runner.message_hub.log_scalars
            found.append({k: [tuple(x) for x in b.data] for k, b in scalars.items() if 'time' not in k})

        with monkeypatch.context() as patch:
            patch.setattr(ResumableTrainLoop, 'run_iter', read)
            if not late:
                patch.setattr('mmseg_ignite.engine.runner.LateMessageHub', MessageHub)
            runner = train(small_config(prepared, tmp_path / str(number), 4, **options))
        content = torch.load(tmp_path / str(number) / 'iter_4.pth', weights_only=False)['mmseg_ignite']['history']
        found.append({k: v['values'].tolist() for k, v in content.items() if 'time' not in k})
        found.append(list(content))
        histories.append(found)
    assert histories[0] == histories[1]
    assert type(runner.message_hub) is MessageHub and 'train/grad_norm' in histories[0][0]


def test_a_logged_tensor_that_changes_later_keeps_its_value(prepared, tmp_path):
    from mmseg_ignite.engine.late_values import MAX_WAITING, LateMessageHub

    hub, value = LateMessageHub('own'), torch.zeros((), dtype=torch.float64)
    for _ in range(5):
        hub.update_scalar('x', value)
        value += 0.1
    hub.update_scalar('x', 7)  # behind those that wait
    expected = [0.0, 0.1, 0.2, 0.1 + 0.2, 0.1 + 0.2 + 0.1, 7]
    assert hub.get_scalar('x').data[0].tolist() == pytest.approx(expected, rel=1e-15)
    for number in range(MAX_WAITING + 5):
        hub.update_scalar('y', torch.tensor([number]), 2)
    values, counts = hub.state_dict()['log_scalars']['y'].data
    assert values.tolist() == list(range(MAX_WAITING + 5)) and set(counts) == {2}
    with pytest.raises(KeyError):
        hub.get_scalar('z')


@pytest.mark.parametrize('value', [True, False])
def test_late_flag(value, device):
    flag = torch.full((), value, device=device)
    assert LateFlag(flag).read() is value
