"""A diverging training stops, names and saves the batch, and keeps the last good checkpoint; the batch can be replayed."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from conftest import DEMO_CONFIG, small_config, small_options, tool
from mmengine.registry import init_default_scope
from mmseg.registry import DATASETS, MODELS
from mmseg.structures import SegDataSample
from PIL import Image

from mmseg_ignite.apis import load_config, replay, train
from mmseg_ignite.datasets.prepared import read_index
from mmseg_ignite.engine import load_weights, open_checkpoint
from mmseg_ignite.engine.hooks import FiniteLossHook
from mmseg_ignite.errors import IgniteError
from mmseg_ignite.models import TissueSegmentor

pytestmark = pytest.mark.usefixtures('one_thread')


def config(prepared, work_dir, **options):
    return small_config(prepared, work_dir, 4, **{'default_hooks.checkpoint.interval': 1, **options})


@pytest.mark.parametrize('late', [False, True])
def test_diverging_training_stops_and_names_the_batch(prepared, tmp_path, monkeypatch, late):
    """At this learning rate the first step sets weights to about 1e30; the next loss is NaN or infinite.

    On an accelerator the loss is read a step late, so the weights, which the loss has spoilt, might be checked before it.
    """
    monkeypatch.setattr(FiniteLossHook, 'is_late', staticmethod(lambda device: late))
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
    with pytest.raises(IgniteError, match='weights are not finite at iteration 2.*--resume'):
        train(config(prepared, tmp_path, **{'default_hooks.checkpoint.max_keep_ckpts': 1}))
    assert [path.name for path in tmp_path.glob('*.pth')] == ['iter_1.pth']
    open_checkpoint(tmp_path / 'iter_1.pth')


def test_best_checkpoint_is_not_replaced_by_non_finite_weights(prepared, tmp_path, monkeypatch):
    """Nor is any other, however good the score."""
    from mmseg_ignite.engine.hooks import ScoreSmoothingHook

    def spoil(self, runner, metrics):
        metrics['mIoU'] = float(runner.iter)
        if runner.iter == 4:
            torch.nn.init.constant_(runner.model.decode_head.conv_seg.bias, float('inf'))

    monkeypatch.setattr(ScoreSmoothingHook, 'after_val_epoch', spoil)
    with pytest.raises(IgniteError, match='conv_seg.bias'):
        train(config(prepared, tmp_path, **{'train_cfg.val_interval': 2}))
    assert {path.name for path in tmp_path.glob('*.pth')} >= {'best_mIoU_iter_2.pth', 'iter_4.pth'}
    assert not (tmp_path / 'best_mIoU_iter_4.pth').exists()
    for path in tmp_path.glob('*.pth'):
        open_checkpoint(path)


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


@pytest.fixture
def runner(tmp_path):
    """A function that returns what the hook reads of a runner at an iteration."""
    rates = SimpleNamespace(get_lr=lambda: dict(lr=[0.5]))
    fixed = dict(optim_wrapper=rates, work_dir=str(tmp_path), cfg=SimpleNamespace(filename='c.py'))
    return lambda iteration: SimpleNamespace(iter=iteration, **fixed)


class OnAccelerator(torch.Tensor):
    """A tensor that reports a CUDA device, so that the hook delays reading it."""

    device = torch.device('cuda', 0)


def test_on_an_accelerator_the_previous_loss_is_read(runner):
    hook = FiniteLossHook()
    good, bad = (torch.tensor(value).as_subclass(OnAccelerator) for value in (1.0, float('nan')))
    hook.after_train_iter(runner(0), 0, dict(data_samples=[sample('a')]), dict(loss=good))
    hook.after_train_iter(runner(1), 1, dict(data_samples=[sample('b'), sample('b')]), dict(loss=bad))
    with pytest.raises(IgniteError, match=r'iteration 2 \(learning rate 0.5, ROIs b\)'):
        hook.after_train_iter(runner(2), 2, dict(data_samples=[sample('c')]), dict(loss=good))


@pytest.mark.parametrize('event', ['before_val_epoch', 'after_train', 'before_save_checkpoint'])
def test_on_an_accelerator_the_last_loss_is_read_too(event, runner):
    hook = FiniteLossHook()
    bad = torch.tensor(float('inf')).as_subclass(OnAccelerator)
    hook.after_train_iter(runner(0), 0, dict(data_samples=[sample('a')]), dict(loss=bad))
    with pytest.raises(IgniteError, match='ROIs a'):
        getattr(hook, event)(None, *([{}] if event == 'before_save_checkpoint' else []))


def test_batch_of_unknown_type(runner):
    with pytest.raises(IgniteError, match='ROIs unknown'):
        FiniteLossHook().after_train_iter(runner(0), 0, [1, 2], dict(loss=torch.tensor(float('nan'))))
    FiniteLossHook().after_train_iter(runner(0), 0, None, None)


class Gate(torch.nn.Module):
    bad: list[bool] = []

    def forward(self, x):
        return torch.where(torch.tensor(self.bad, device=x.device)[:, None, None, None], float('inf'), x)


@MODELS.register_module()
class BrokenSegmentor(TissueSegmentor):
    """A segmentor whose inputs become infinite if they are of one ROI."""

    def __init__(self, *args, bad_roi, **kwargs):
        super().__init__(*args, **kwargs)
        self.bad_roi, self.gate = bad_roi, Gate()

    def loss(self, inputs, data_samples):
        self.gate.bad = [sample.get('roi') == self.bad_roi for sample in data_samples]
        return super().loss(self.gate(inputs), data_samples)


def broken_config(prepared, work_dir, bad_roi, **options):
    added = {'model.type': 'BrokenSegmentor', '+model.bad_roi': bad_roi, 'randomness.seed': 3}
    dropout = {'model.backbone.drop_path_rate': 0.3, 'train_cfg.max_iters': 20, 'default_hooks.checkpoint.interval': 1}
    return small_config(prepared, work_dir, 20, **added, **dropout, **options)


@pytest.fixture(scope='module')
def stopped(prepared, tmp_path_factory):
    """A training that stopped at an ROI: its work dir, the sentence, the ROI, and the number of its first crop."""
    root = tmp_path_factory.mktemp('stopped')
    stream = dataset_of(small_config(prepared, root)).stream
    drawn = [stream.read(3, n, with_image=False)['entry']['name'] for n in range(40)]
    number = next(n for n in range(2, 40) if drawn[n] not in drawn[: n - n % 2])
    with pytest.raises(IgniteError) as error:
        train(broken_config(prepared, root, drawn[number]))
    return SimpleNamespace(root=root, error=str(error.value), roi=drawn[number], number=number, crops=drawn)


def dataset_of(cfg):
    init_default_scope('mmseg')
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    dataset.full_init()
    return dataset


def test_batch_is_saved_and_the_good_checkpoint_stays(stopped, prepared):
    iteration = stopped.number // 2 + 1
    path = stopped.root / f'nonfinite_batch_{iteration}.json'
    assert f'at iteration {iteration} ' in stopped.error and stopped.error.endswith(f'replay_batch.py CONFIG {path}".')
    step, stored = json.loads(path.read_text()), torch.load(path.with_suffix('.pth'), weights_only=True)
    assert [crop['key'] for crop in step['crops']] == [[3, 2 * iteration - 2], [3, 2 * iteration - 1]]
    assert [crop['roi'] for crop in step['crops']] == stopped.crops[2 * iteration - 2 : 2 * iteration]
    assert step['losses']['loss'] in ('nan', 'inf') and step['iteration'] == iteration and step['learning_rate'] > 0
    good = open_checkpoint(stopped.root / f'iter_{iteration - 1}.pth')['state_dict']
    assert good.keys() == stored['state_dict'].keys() and 'inputs' not in stored
    assert all(torch.equal(stored['state_dict'][name], value) for name, value in good.items())
    assert sorted(p.name for p in stored_files(stopped.root)) == sorted([path.name, path.with_suffix('.pth').name])
    assert not (stopped.root / f'iter_{iteration}.pth').exists()


def stored_files(folder):
    return folder.glob('*nonfinite*')


def test_replay_names_crop_and_module_and_draws_the_crops(stopped, prepared, tmp_path):
    from mmseg_ignite.apis.replaying import replay_text

    (path,) = stopped.root.glob('*.json')
    cfg = broken_config(prepared, tmp_path, stopped.roi)
    found = replay(cfg, path, out=tmp_path)
    alone = [not torch.tensor(list(crop['losses'].values())).isfinite().all() for crop in found['crops']]
    assert alone == [crop['roi'] == stopped.roi for crop in found['crops']] and any(alone)
    assert found['module'] == ('gate', 'Gate', True) and found['weights'] == []
    for crop in found['crops']:
        assert (
            sum(crop['pixels'].values()) == 64 * 64
            and 0 <= crop['values']['read'][0] <= crop['values']['read'][1] <= 255
        )
    assert found['picture'].parent == tmp_path and Image.open(found['picture']).width > 600
    text = replay_text(found)
    assert text.count('ALONE NOT FINITE') == sum(alone) and 'gate (Gate), whose inputs are finite' in text


def test_replay_repeats_the_step_exactly(stopped, prepared, tmp_path, monkeypatch):
    """Let the loss of a sound training count as not finite: the repeated losses, with drop path, equal the logged ones."""
    cfg = broken_config(prepared, tmp_path, 'none')
    finite = torch.isfinite
    calls = []

    def twice(value):
        calls.append(value)
        return finite(value) & (len(calls) < 3)

    with monkeypatch.context() as patch:
        patch.setattr('mmseg_ignite.engine.hooks.finite_loss_hook.torch.isfinite', twice)
        with pytest.raises(IgniteError, match='at iteration 3 '):
            train(cfg)
    found = replay(cfg, tmp_path / 'nonfinite_batch_3.json')
    assert found['losses'] == found['logged'] and found['module'] is None
    other = replay(cfg, tmp_path / 'nonfinite_batch_3.json', checkpoint=tmp_path / 'iter_1.pth')
    assert other['losses'] != found['logged']


def test_replay_repeats_colours_that_the_device_changes(prepared, tmp_path, monkeypatch):
    """The network gets the same crops again, and those of a training whose workers change the colours, but for rounding."""
    pipeline = [dict(type=name) for name in ('RandomDihedral', 'HEDJitter', 'PackTissueInputs')]
    pipeline[-1]['meta_keys'] = ('roi', 'img_path', 'img_shape', 'ori_shape')
    options = {'train_dataloader.dataset.pipeline': pipeline, 'train_dataloader.dataset.defer_colours': True}
    cfg = broken_config(prepared, tmp_path, 'none', **options)
    finite = torch.isfinite
    with monkeypatch.context() as patch:
        patch.setattr('mmseg_ignite.engine.hooks.finite_loss_hook.torch.isfinite', lambda value: finite(value) & False)
        with pytest.raises(IgniteError, match='at iteration 1 '):
            train(cfg)
    path = tmp_path / 'nonfinite_batch_1.json'
    found = replay(cfg, path, out=tmp_path / 'deferred')
    assert found['losses'] == found['logged']
    cfg.train_dataloader.dataset.defer_colours = False
    at_once = replay(cfg, path, out=tmp_path / 'at_once')
    assert at_once['losses'] == pytest.approx(found['logged'], rel=1e-3)
    for own, other in zip(found['crops'], at_once['crops']):
        assert own['values']['network'] == pytest.approx(other['values']['network'], abs=1.01 / 57)
    assert found['picture'].read_bytes() == at_once['picture'].read_bytes()
    cfg.train_dataloader.dataset.pipeline.pop(1)
    cfg.train_dataloader.dataset.defer_colours = False
    assert replay(cfg, path, out=tmp_path / 'plain')['losses'] != at_once['losses']


def test_other_config_or_data_are_refused(stopped, prepared, tmp_path):
    (path,) = stopped.root.glob('*.json')
    with pytest.raises(IgniteError, match=r'crop \[3, \d+\] of .* is another one with this config'):
        replay(broken_config(prepared, tmp_path, 'x', protocol='fold1'), path)
    with pytest.raises(IgniteError, match='has the weights of another model'):
        replay(broken_config(prepared, tmp_path, 'x', **{'model.decode_head.channels': 8}), path)


@pytest.mark.parametrize('damage', ['text', 'format', 'key', 'list', 'no tensors', 'truncated'])
def test_damaged_batch_is_one_sentence(stopped, prepared, tmp_path, damage):
    (source,) = stopped.root.glob('*.json')
    path = shutil.copy(source, tmp_path / 'batch.json')
    shutil.copy(source.with_suffix('.pth'), tmp_path / 'batch.pth')
    step = json.loads(path.read_text())
    if damage == 'text':
        path.write_text('{')
    if damage == 'format':
        path.write_text(json.dumps({**step, 'format': 2}))
    if damage == 'key':
        path.write_text(json.dumps({**step, 'crops': [{**step['crops'][0], 'key': [0, 1, [10**9, 10**9]]}]}))
    if damage == 'list':
        path.write_text('[]')
    if damage == 'no tensors':
        torch.save({'state_dict': {'a': 'text'}}, tmp_path / 'batch.pth')
    if damage == 'truncated':
        (tmp_path / 'batch.pth').write_bytes(source.with_suffix('.pth').read_bytes()[:1000])
    with pytest.raises(IgniteError, match=r'batch\.(json|pth)') as error:
        replay(broken_config(prepared, tmp_path, stopped.roi), path)
    assert '\n' not in str(error.value)


def test_images_of_other_data_sets_are_stored(prepared, tmp_path):
    """Crops that a pipeline draws cannot be made again from a key."""
    config = tmp_path / 'pipeline.py'
    config.write_text(
        f'_base_ = [{str(DEMO_CONFIG)!r}]\n'
        "pipeline = [dict(type='LoadIGNITERegion'), dict(type='RandomCrop', crop_size=(64, 64)), "
        "dict(type='PackSegInputs')]\n"
        "train_dataloader = dict(sampler=dict(_delete_=True, type='InfiniteSampler'), dataset=dict(_delete_=True, "
        "type='IGNITEDataset', split='train', pipeline=pipeline))\n"
    )
    options = {key: value for key, value in small_options(prepared, 4).items() if key != 'crops.crop_size'}
    cfg = load_config(config, {**options, 'optim_wrapper.optimizer.lr': 1e33}, str(tmp_path))
    with pytest.raises(IgniteError, match='nonfinite_batch_2.json'):
        train(cfg)
    found = replay(cfg, tmp_path / 'nonfinite_batch_2.json')
    assert len(found['crops']) == 2 and found['picture'].is_file()
    assert found['losses']['loss'] != found['losses']['loss'] or found['losses']['loss'] == float('inf')


def test_batch_without_weights_needs_a_checkpoint(prepared, stopped, tmp_path):
    cfg = broken_config(prepared, tmp_path, stopped.roi)
    cfg.custom_hooks = [dict(type='FiniteLossHook', keep_weights=False)]
    with pytest.raises(IgniteError, match='nonfinite_batch_'):
        train(cfg)
    (path,) = tmp_path.glob('*.json')
    with pytest.raises(IgniteError, match='was saved without weights'):
        replay(cfg, path)
    last = tmp_path / f'iter_{stopped.number // 2}.pth'
    assert replay(cfg, path, last)['module'] == ('gate', 'Gate', True)


def test_foreign_file_is_kept_and_the_loss_is_still_reported(runner, tmp_path):
    (tmp_path / 'nonfinite_batch_1.json').write_text('mine')
    with pytest.raises(
        IgniteError, match=r'the loss is nan at iteration 1 .*the batch was not saved.*exists and is kept'
    ):
        FiniteLossHook().after_train_iter(
            runner(0), 0, dict(data_samples=[sample('a')]), dict(loss=torch.tensor(float('nan')))
        )
    assert [path.name for path in tmp_path.iterdir()] == ['nonfinite_batch_1.json']


def test_replay_tool(stopped, prepared, tmp_path, capsys):
    (path,) = stopped.root.glob('*.json')
    options = [f'{key}={value}'.replace(', ', ',') for key, value in small_options(prepared).items()]
    config = tmp_path / 'broken.py'
    config.write_text(
        f"_base_ = [{str(DEMO_CONFIG)!r}]\nmodel = dict(type='BrokenSegmentor', bad_roi={stopped.roi!r})\n"
    )
    assert tool('replay_batch', config, path, '--out', tmp_path, '--cfg-options', *options) == 0
    assert 'first output that is not finite: gate' in capsys.readouterr().out
    assert (tmp_path / f'{path.stem}_crops.png').is_file()
    assert tool('replay_batch', config, tmp_path / 'none.json', '--cfg-options', *options) == 2
    assert 'none.json cannot be read' in capsys.readouterr().err
