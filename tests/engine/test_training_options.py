"""Training options: time budget, mixed precision, class weights, seed."""

import json
import platform
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import DEMO_CONFIG, small_config, small_options
from mmengine.optim import OptimWrapper
from torch import nn

from mmseg_ignite.apis import load_config, train
from mmseg_ignite.apis import test as score
from mmseg_ignite.datasets import IGNITEDataset
from mmseg_ignite.datasets.prepared import read_index
from mmseg_ignite.engine.hooks import CompileHook, TimeBudgetHook
from mmseg_ignite.engine.optim_wrappers import HalfOptimWrapper, half_dtype, half_is_faster, precision, prediction_dtype
from mmseg_ignite.errors import IgniteError
from mmseg_ignite.labels import CLASSES

pytestmark = pytest.mark.usefixtures('one_thread')


def test_time_budget_is_kept_and_the_last_checkpoint_saved(prepared, tmp_path):
    seconds = 3.0
    begin = time.perf_counter()
    runner = train(small_config(prepared, tmp_path, **{'default_hooks.logger.interval': 1}), minutes=seconds / 60)
    assert runner.iter > 1
    assert (tmp_path / f'iter_{runner.iter}.pth').is_file()
    hub = runner.message_hub.runtime_info
    # One step more or less: the duration of a step is known only afterwards.
    slowest = max(float(v) for v in runner.message_hub.log_scalars['train/time'].data[0])
    assert seconds - slowest <= hub['training_seconds'] <= min(seconds + 2 * slowest, time.perf_counter() - begin)
    lines = [json.loads(x) for p in tmp_path.glob('*/vis_data/scalars.json') for x in p.read_text().splitlines()]
    rates = [x['lr'] for x in lines if 'lr' in x]
    assert rates[-1] < 0.6 * max(rates) and 'mIoU' in lines[-1]


def test_learning_rate_follows_the_clock():
    hook = TimeBudgetHook(100, warmup=0.1, power=2.0)
    assert [hook.factor(s) for s in (0, 0.05, 0.1, 1, 1.5)] == pytest.approx([0, 0.5, 1, 0, 0])
    assert hook.factor(0.55) == pytest.approx(0.25)


def test_resumed_run_uses_the_remaining_time(monkeypatch):
    """Of 300 s, 200 s are spent; at 1 s per iteration about 100 iterations remain."""
    clock = [1000.0]
    monkeypatch.setattr(time, 'perf_counter', lambda: clock[0])
    hub = SimpleNamespace(runtime_info=dict(training_seconds=200.0), update_info=lambda *a: None)
    group = dict(lr=1.0)
    runner = SimpleNamespace(param_schedulers=None, optim_wrapper=SimpleNamespace(param_groups=[group]), message_hub=hub,
                             distributed=False, iter=500, train_loop=SimpleNamespace(_max_iters=None))  # fmt: skip
    hook = TimeBudgetHook(300)
    hook.before_train(runner)
    count = 0
    while runner.train_loop._max_iters is None or runner.iter < runner.train_loop._max_iters:
        hook.before_train_iter(runner, count)
        clock[0] += 1.0
        hook.after_train_iter(runner, count)
        runner.iter, count = runner.iter + 1, count + 1
    assert 99 <= count <= 101 and hook.spent == pytest.approx(200 + count)


def test_time_budget_with_a_scheduler_is_refused():
    runner = SimpleNamespace(param_schedulers=[object()])
    with pytest.raises(IgniteError, match='param_scheduler=None'):
        TimeBudgetHook(10).before_train(runner)


@pytest.mark.parametrize('settings', [dict(seconds=0), dict(seconds=1, warmup=1), dict(seconds=1, power=0)])
def test_invalid_time_budget_is_refused(settings):
    with pytest.raises(IgniteError, match='seconds'):
        TimeBudgetHook(**settings)


@pytest.mark.parametrize('minutes', [0, -1, float('nan'), float('inf')])
def test_invalid_minutes_are_refused(prepared, tmp_path, minutes):
    with pytest.raises(IgniteError, match='minutes'):
        train(small_config(prepared, tmp_path), minutes=minutes)


@pytest.mark.parametrize('half', [False, True])
def test_seed_makes_training_reproducible(prepared, tmp_path, half):
    states = []
    for number, seed in enumerate((1, 1, 2)):
        runner = train(small_config(prepared, tmp_path / str(number), **{'randomness.seed': seed}), amp=half)
        states.append({k: v.clone() for k, v in runner.model.state_dict().items()})
    assert all(torch.equal(a, b) for a, b in zip(states[0].values(), states[1].values()))
    assert not all(torch.equal(a, b) for a, b in zip(states[0].values(), states[2].values()))


def test_half_precision_trains_and_resumes(prepared, tmp_path):
    runner = train(small_config(prepared, tmp_path), amp=True)
    wrapper = runner.optim_wrapper
    assert type(wrapper) is HalfOptimWrapper and wrapper.dtype == torch.bfloat16
    assert not wrapper.loss_scaler.is_enabled()
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in runner.model.parameters())
    resumed = train(small_config(prepared, tmp_path, **{'train_cfg.max_iters': 3}), amp=True, resume=True)
    assert resumed.iter == 3


@pytest.mark.parametrize('half', [True, False])
def test_validations_compute_in_the_precision_of_the_training(prepared, tmp_path, half):
    """A test of the saved averages on the same ROIs gives the same counts with --amp, and others without."""
    options = {'train_cfg.val_interval': 3, 'default_hooks.checkpoint.interval': 3}
    cfg = small_config(prepared, tmp_path / 'run', 3, **options)
    cfg.custom_hooks.append(dict(type='EMAHook', ema_type='ForeachEMA', momentum=0.5, update_buffers=True))
    runner = train(cfg, amp=half)
    logged = runner.message_hub.log_scalars
    scores = {}
    for amp in (True, False):
        options = {**small_options(prepared), 'test_dataloader.dataset.split': 'val'}
        cfg = load_config(DEMO_CONFIG, options, str(tmp_path / f'test {amp}'))
        scores[amp] = score(cfg, tmp_path / 'run' / 'iter_3.pth', report=None, amp=amp, allow_seen_patients=True)
    names = ('mIoU', 'mDice', 'mAcc', 'aAcc', 'fwIoU')
    same = {amp: all(found[name] == logged[f'val/{name}'].current() for name in names) for amp, found in scores.items()}
    assert same == {half: True, not half: False}


def test_one_rule_of_precision(monkeypatch):
    assert precision('cpu') == precision('cpu', 'bfloat16') == (torch.bfloat16, False)
    assert precision('cpu', 'float16') == (torch.float16, True)
    for faster, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr('mmseg_ignite.engine.optim_wrappers.half_is_faster', lambda device, f=faster: f)
        assert precision('cpu', 'fastest') == (dtype, False)
        assert prediction_dtype(dict(optim_wrapper=dict(dtype='fastest')), torch.device('cpu'), True) == dtype
    for name, expected in (('float16', torch.float16), (None, torch.bfloat16)):
        cfg = load_config(DEMO_CONFIG, {'optim_wrapper.dtype': name} if name else {})
        assert prediction_dtype(cfg, torch.device('cpu'), True) == expected
        assert prediction_dtype(cfg, torch.device('cpu'), False) == torch.float32


def test_half_precision_on_a_cpu_is_bfloat16():
    assert half_dtype('cpu') == torch.bfloat16


@pytest.mark.parametrize('faster', [True, False])
def test_fastest_precision_avoids_emulated_half(monkeypatch, faster):
    monkeypatch.setattr('mmseg_ignite.engine.optim_wrappers.half_is_faster', lambda device: faster)
    model = nn.Linear(4, 2)
    wrapper = HalfOptimWrapper('fastest', optimizer=torch.optim.SGD(model.parameters(), 0.1))
    with wrapper.optim_context(model):
        out = model(torch.ones(1, 4))
    assert out.dtype == wrapper.dtype == (torch.bfloat16 if faster else torch.float32)


def test_half_precision_of_a_cpu_is_read_from_its_flags():
    flags = Path('/proc/cpuinfo')
    if not flags.is_file() or platform.machine() != 'x86_64':
        pytest.skip('reads the flags of an x86 CPU from /proc/cpuinfo')
    words = flags.read_text().split()
    assert half_is_faster('cpu') == ('avx512_bf16' in words or 'amx_tile' in words)
    assert half_is_faster('cuda')


def test_unknown_precision_is_refused():
    with pytest.raises(IgniteError, match='float8'):
        HalfOptimWrapper('float8', optimizer=torch.optim.SGD(nn.Linear(4, 2).parameters(), 0.1))


def test_deterministic_training(prepared, tmp_path):
    try:
        assert train(small_config(prepared, tmp_path, **{'randomness.deterministic': True})).iter == 2
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_half_forward_pass_updates_weights_as_in_float32(device):
    """All numbers are exactly representable, so half precision does not round."""
    weights = []
    for kind in (OptimWrapper, HalfOptimWrapper):
        model = nn.Linear(4, 2, bias=False, device=device)
        nn.init.constant_(model.weight, 0.5)
        wrapper = kind(optimizer=torch.optim.SGD(model.parameters(), 0.25), clip_grad=dict(max_norm=4.0))
        with wrapper.optim_context(model):
            out = model(torch.ones(1, 4, device=device))
        assert out.dtype == (half_dtype(device) if kind is HalfOptimWrapper else torch.float32)
        wrapper.update_params(out.float().sum())
        weights.append(model.weight.detach().clone())
    assert torch.equal(*weights) and float(weights[0][0, 0]) < 0.5


def test_float16_scales_the_loss_and_skips_an_overflow(device):
    model = nn.Linear(4, 2, device=device)
    wrapper = HalfOptimWrapper('float16', optimizer=torch.optim.SGD(model.parameters(), 0.1))
    assert wrapper.loss_scaler.is_enabled()
    before, scale = model.weight.detach().clone(), wrapper.loss_scaler.get_scale()
    wrapper.update_params(model(torch.full((1, 4), float('inf'), device=device)).sum())
    assert torch.equal(model.weight, before) and wrapper.loss_scaler.get_scale() < scale
    other = nn.Linear(4, 2, device=device).parameters()
    other = HalfOptimWrapper('float16', optimizer=torch.optim.SGD(other, 0.1))
    other.load_state_dict(wrapper.state_dict())
    assert other.loss_scaler.get_scale() == wrapper.loss_scaler.get_scale()
    plain = OptimWrapper(torch.optim.SGD(nn.Linear(4, 2).parameters(), 0.1))
    other.load_state_dict(plain.state_dict())


def test_compiled_modules_are_used_in_training_only(prepared, tmp_path, monkeypatch):
    calls = []

    def compiled(forward, **options):
        def call(*arguments):
            calls.append((options, torch.is_grad_enabled()))
            return forward(*arguments)

        return call

    monkeypatch.setattr(torch, 'compile', compiled)
    cfg = small_config(prepared, tmp_path, 3, **{'train_cfg.val_interval': 2})
    cfg.custom_hooks.append(dict(type='CompileHook', mode='default'))
    runner = train(cfg)
    assert calls == 2 * runner.iter * [(dict(mode='default'), True)]  # encoder and decoder in each step
    assert 'forward' not in vars(runner.model.backbone)
    keys = torch.load(tmp_path / 'iter_3.pth', weights_only=False)['state_dict'].keys()
    assert keys == runner.model.state_dict().keys()


@pytest.mark.parametrize(
    'options', [dict(mode='reduce-overhead'), dict(mode='max-autotune'), dict(options={'triton.cudagraphs': True})]
)
def test_cuda_graphs_are_refused(options):
    with pytest.raises(IgniteError, match=r'CUDA graphs.*max-autotune-no-cudagraphs'):
        CompileHook(**options)


def test_options_replace_the_mode():
    assert CompileHook().options == dict(mode='default')
    assert CompileHook(mode='max-autotune-no-cudagraphs').options == dict(mode='max-autotune-no-cudagraphs')
    assert CompileHook(options=dict(epilogue_fusion=False)).options['mode'] is None


def test_class_weights_are_computed_from_the_training_rois(prepared, tmp_path):
    runner = train(small_config(prepared, tmp_path, **{'model.decode_head.loss_decode.temperature': 1.0}))
    index = read_index(prepared)
    names = index['splits']['patient-8-1-1']['train']
    pixels = np.sum([roi['pixels'] for roi in index['rois'] if roi['name'] in names], 0)
    weight = runner.model.decode_head.loss_decode.class_weight.double().numpy()
    present = pixels > 0
    np.testing.assert_allclose(weight[present] * pixels[present], pixels.sum() / present.sum(), rtol=1e-5)
    assert not weight[~present].any()


def test_class_pixels_of_fewer_classes(prepared):
    full = IGNITEDataset(str(prepared), 'train')
    reduced = IGNITEDataset(str(prepared), 'train', metainfo=dict(classes=('Stroma', 'Tumor epithelium')))
    assert reduced.class_pixels.tolist() == full.class_pixels[[3, 1]].tolist()


def test_class_weights_need_a_dataset_with_pixel_counts(prepared, tmp_path):
    cfg = small_config(prepared, tmp_path, **{'model.decode_head.loss_decode.temperature': 1.0})
    cfg.train_dataloader.dataset = dict(
        type='BaseSegDataset', pipeline=[], lazy_init=True, metainfo=dict(classes=CLASSES)
    )
    with pytest.raises(IgniteError, match='BaseSegDataset does not know how many pixels'):
        train(cfg)
