"""Growing crops: the size at each iteration, after resuming and under a time budget; unsuitable configs are refused."""

from types import SimpleNamespace

import pytest
from conftest import small_config
from mmengine.hooks import Hook
from mmseg.registry import HOOKS

from mmseg_ignite.apis import train
from mmseg_ignite.engine.hooks import CropGrowthHook, TimeBudgetHook
from mmseg_ignite.errors import IgniteError

pytestmark = pytest.mark.usefixtures('one_thread')
SEEN = []


@HOOKS.register_module()
class SizeRecorder(Hook):
    """Record the image sizes of each batch."""

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        SEEN.append({tuple(image.shape[1:]) for image in data_batch['inputs']})


@pytest.fixture(autouse=True)
def fresh():
    SEEN.clear()


def config(prepared, work_dir, steps, **options):
    small = {
        'model.data_preprocessor.size': None,
        '+model.data_preprocessor.size_divisor': 32,
        'default_hooks.checkpoint.interval': 3,
    }
    cfg = small_config(prepared, work_dir, 5, **{**small, **options})
    cfg.custom_hooks = [dict(type='CropGrowthHook', steps=steps), dict(type='SizeRecorder')]
    return cfg


def test_crops_grow_with_iterations_and_continue_after_resuming(prepared, tmp_path):
    steps = [(0.4, 32), (0.8, 48)]
    train(config(prepared, tmp_path / 'a', steps))
    expected = [{(32, 32)}] * 2 + [{(48, 48)}] * 2 + [{(64, 64)}]
    assert SEEN == expected
    (tmp_path / 'a' / 'iter_5.pth').unlink()
    SEEN.clear()
    train(config(prepared, tmp_path / 'a', steps), resume=True)
    assert SEEN == expected[3:]


def test_crops_grow_at_the_same_iterations_with_workers(prepared, tmp_path):
    cfg = config(prepared, tmp_path, [(0.6, 32)])
    cfg.train_dataloader.num_workers = 2
    train(cfg)
    assert SEEN == [{(32, 32)}] * 3 + [{(64, 64)}] * 2


def test_crops_grow_with_the_time_budget():
    clock, sampler = TimeBudgetHook(100), SimpleNamespace(sizes=[])
    runner = SimpleNamespace(
        hooks=[clock],
        train_dataloader=SimpleNamespace(sampler=sampler),
        model=SimpleNamespace(data_preprocessor=object()),
    )
    hook, sizes = CropGrowthHook([(0.5, 32), (0.8, 48)]), []
    hook.before_train(runner)
    for clock.spent in (0.0, 49.0, 50.0, 79.0, 81.0, 100.0):
        hook.before_train_iter(runner, 0)
        sizes.append(sampler.sizes)
    assert sizes == [[(0, (s, s) if s else None)] for s in (32, 32, 48, 48, None, None)]


@pytest.mark.parametrize(
    'steps', [[], 5, [(0.5,)], [(0, 32)], [(1, 32)], [(0.5, 32), (0.4, 48)], [(0.5, 0)], [('a', 32)]]
)
def test_invalid_steps_are_refused(steps):
    with pytest.raises(IgniteError, match='steps of CropGrowthHook'):
        CropGrowthHook(steps)


def test_padding_preprocessor_is_refused(prepared, tmp_path):
    cfg = config(prepared, tmp_path, [(0.5, 32)])
    cfg.model.data_preprocessor.update(size=(64, 64), size_divisor=None)
    with pytest.raises(IgniteError, match=r'pads images to \(64, 64\)'):
        train(cfg)


def test_other_sampler_is_refused(prepared, tmp_path):
    cfg = config(prepared, tmp_path, [(0.5, 32)])
    cfg.train_dataloader.sampler = dict(type='InfiniteSampler')
    cfg.train_dataloader.dataset = dict(type='IGNITEDataset', split='train', data_root=str(prepared), pipeline=[
        dict(type='LoadIGNITERegion'), dict(type='PackSegInputs')])  # fmt: skip
    with pytest.raises(IgniteError, match='needs a CropStreamSampler'):
        train(cfg)
