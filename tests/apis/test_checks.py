"""Mistakes in a config are found before anything is built."""

import copy

import numpy as np
import pytest
from config_example import CONFIG, example, load
from conftest import DEMO_CONFIG
from mmengine.config import Config

from mmseg_ignite import apis
from mmseg_ignite.apis import load_config, train
from mmseg_ignite.apis.checks import check_classes, check_parts, check_score_names
from mmseg_ignite.apis.configuration import build_runner, resolved
from mmseg_ignite.apis.values import check_values
from mmseg_ignite.datasets import IGNITECropDataset, IGNITEDataset
from mmseg_ignite.errors import IgniteError


@pytest.mark.parametrize('number', [5, 15, 17])
def test_wrong_number_of_classes_is_refused_on_loading(number):
    with pytest.raises(IgniteError, match=f'num_classes is {number}.*16 classes') as error:
        load({'model.decode_head.num_classes': number})
    assert ('Unannotated is not a class' in str(error.value)) == (number == 17)


def test_classes_of_an_auxiliary_head_are_checked(tmp_path):
    (tmp_path / 'c.py').write_text(
        f"_base_ = {str(CONFIG)!r}\nmodel = dict(auxiliary_head=[dict(type='FCNHead', num_classes=19)])\n"
    )
    with pytest.raises(IgniteError, match=r'^model\.auxiliary_head\.0\.num_classes is 19'):
        load_config(tmp_path / 'c.py')


def test_all_data_sets_of_a_run_must_agree_on_fewer_classes(tmp_path):
    meta = "dict(dataset=dict(metainfo=dict(classes=('Stroma', 'Liver'))))"
    (tmp_path / 'c.py').write_text(
        f'_base_ = {str(CONFIG)!r}\nmodel = dict(decode_head=dict(num_classes=2))\n'
        f'train_dataloader = {meta}\nval_dataloader = {meta}\n'
    )
    cfg = load_config(tmp_path / 'c.py')
    check_classes(cfg, 'train_dataloader', 'val_dataloader')
    with pytest.raises(IgniteError, match='test_dataloader has 16 classes'):
        check_classes(cfg, 'test_dataloader')


@pytest.mark.parametrize(
    ('key', 'value', 'words'),
    [
        ('optim_wrapper.optimizer.type', 'AdmW', 'did you mean AdamW'),
        ('model.backbone.type', 'FastMixVisionTransfromer', 'did you mean FastMixVisionTransformer'),
        ('val_evaluator.type', 'TissueMetrics', 'did you mean TissueMetric'),
        ('custom_hooks.0.type', 'NoSuchHook', 'not registered'),
        ('train_dataloader.dataset.pipeline.0.type', 'RandomDihedrals', 'did you mean RandomDihedral'),
        ('param_scheduler.1.type', 'PolyLRR', 'did you mean PolyLR'),
    ],
)
def test_unregistered_type_is_refused_with_a_suggestion(key, value, words):
    with pytest.raises(IgniteError, match=words) as error:
        load({key: value})
    assert key in str(error.value) or value in str(error.value)


def best(name):
    return dict(checkpoint=dict(save_best=name))


def test_unknown_score_is_refused_with_a_suggestion():
    for name in ('mIou', ['mIoU', 'mDise']):
        with pytest.raises(IgniteError, match=r'save_best(\.1)? is .*did you mean (mIoU|mDice)\?'):
            check_score_names(example(default_hooks=best(name)))
    for name in ('mIoU', 'mIoU_smoothed', 'kappa', 'auto', None, ['mIoU', 'aAcc']):
        check_score_names(example(default_hooks=best(name)))
    with pytest.raises(IgniteError, match='custom_hooks.0.monitor'):
        check_score_names(example(custom_hooks=[dict(type='EarlyStoppingHook', monitor='mIoU_smoothed')]))
    with pytest.raises(IgniteError, match='save_best is .* computes no score'):
        check_score_names(example(val_evaluator=None, custom_hooks=None, default_hooks=best('mIoU')))


def test_unknown_score_is_refused_before_the_training(prepared, tmp_path):
    cfg = load_config(
        DEMO_CONFIG, {'data_root': str(prepared), 'default_hooks.checkpoint.save_best': 'mIou'}, str(tmp_path / 'w')
    )
    with pytest.raises(IgniteError, match='mIou'):
        train(cfg)
    assert not (tmp_path / 'w').exists()


@pytest.mark.parametrize('call', [lambda cfg, checkpoint: train(cfg), apis.test, apis.Predictor])
@pytest.mark.parametrize(
    ('text', 'words'),
    [
        ("model = dict(type='EncoderDecoder')", 'model.backbone and model.decode_head'),
        ("model = dict(backbone=dict(type='MixVisionTransformer'))", 'model.type:'),
        ("model = 'segformer'", 'model.type and model.backbone:'),
    ],
)
def test_incomplete_model_is_refused_on_loading(tmp_path, call, text, words):
    (tmp_path / 'c.py').write_text(text)
    with pytest.raises(IgniteError, match=rf'c\.py has no .*{words}'):
        load_config(tmp_path / 'c.py')
    cfg = Config.fromfile(str(tmp_path / 'c.py'))
    (tmp_path / 'c.pth').write_text('')
    with pytest.raises(IgniteError, match=words):
        call(cfg, tmp_path / 'c.pth')


NEEDED = {
    'training': ['train_dataloader', 'train_cfg', 'optim_wrapper', 'val_dataloader', 'val_evaluator', 'val_cfg'],
    'test': ['test_dataloader', 'test_evaluator', 'test_cfg'],
}


@pytest.mark.parametrize(('task', 'part'), [(task, part) for task, parts in NEEDED.items() for part in parts])
def test_missing_part_of_a_run_is_named(tmp_path, task, part):
    run = train if task == 'training' else lambda cfg: apis.test(cfg, tmp_path / 'c.pth')
    (tmp_path / 'c.pth').write_text('')
    without, none = example(work_dir=str(tmp_path / 'w')), example(work_dir=str(tmp_path / 'w'), **{part: None})
    without.pop(part)
    for cfg in (without, none):
        with pytest.raises(IgniteError, match=f'has no {part}, which a {task} needs'):
            run(cfg)
    assert not (tmp_path / 'w').exists()


def test_parts_of_other_runs_are_not_required():
    check_parts(example(**dict.fromkeys(NEEDED['test'])), 'training')
    check_parts(example(**dict.fromkeys(NEEDED['test'] + NEEDED['training'][3:])), 'training')
    check_parts(example(**dict.fromkeys(NEEDED['training'])), 'test')


RUNS = [('training', 'train_dataloader'), ('training', 'val_dataloader'), ('test', 'test_dataloader')]


@pytest.mark.parametrize(('task', 'loader'), RUNS)
def test_data_set_without_a_pipeline_is_refused(task, loader):
    cfg = example()
    for pipeline in (None, []):
        cfg[loader].dataset.pipeline = pipeline
        with pytest.raises(IgniteError, match=rf'^{loader}\.dataset\.pipeline of .*PackSegInputs'):
            check_parts(cfg, task)
    cfg[loader].dataset = None
    with pytest.raises(IgniteError, match=rf'has no {loader}\.dataset, which a {task} needs'):
        check_parts(cfg, task)


@pytest.mark.parametrize('task', NEEDED)
def test_metrics_that_log_the_same_score_are_refused(task):
    name = 'test_evaluator' if task == 'test' else 'val_evaluator'
    ours, stock = dict(type='TissueMetric'), dict(type='IoUMetric')
    for pair in ([ours, stock], [stock, ours], [ours, ours], [dict(ours, prefix='a'), dict(stock, prefix='a')]):
        with pytest.raises(IgniteError, match=rf'{name} would both log mIoU: .*{name}\.1\.prefix=other'):
            check_parts(example(**{name: pair}), task)
    for pair in (ours, [ours], [ours, dict(stock, prefix='other')], [dict(ours, prefix='a'), dict(ours, prefix='b')]):
        check_parts(example(**{name: pair}), task)


def test_config_without_hooks_visualizer_and_validation_trains(prepared, tmp_path):
    options = {'data_root': str(prepared), 'train_cfg.max_iters': 1, 'crops.crop_size': (64, 64)}
    options |= {'train_dataloader.batch_size': 2, 'train_dataloader.num_workers': 0}
    cfg = load_config(DEMO_CONFIG, options, str(tmp_path / 'w'))
    optional = ('default_hooks', 'custom_hooks', 'visualizer', 'param_scheduler', 'log_processor', 'env_cfg')
    for name in (*optional, 'val_dataloader', 'val_evaluator', 'val_cfg'):
        cfg.pop(name)
    cfg.train_cfg.pop('val_interval')
    cfg.optim_wrapper.pop('type')
    train(cfg, amp=True, tensorboard=True)
    assert len(list((tmp_path / 'w').glob('*.pth'))) == 1


@pytest.mark.parametrize('kind', [IGNITEDataset, IGNITECropDataset])
@pytest.mark.parametrize('setting', [dict(reduce_zero_label=True), dict(ignore_index=0), dict(img_suffix='.png')])
def test_settings_that_contradict_the_prepared_labels_are_refused(prepared, kind, setting):
    with pytest.raises(IgniteError, match=next(iter(setting))):
        kind(str(prepared), 'train', **setting)
    kind(str(prepared), 'train', reduce_zero_label=False)


def test_settings_of_workers_are_removed_from_loaders_without_workers():
    cfg = load({'train_dataloader.num_workers': 0, 'train_dataloader.prefetch_factor': 4})
    assert cfg.train_dataloader.persistent_workers is False and 'prefetch_factor' not in cfg.train_dataloader
    assert cfg.val_dataloader.persistent_workers is True


WRONG = {
    'optim_wrapper.clip_grad': [dict(max_norm='abc'), dict(max_norm=-1), dict(max_norm=0), dict(clip_value=-0.1)],
    'model.data_preprocessor.size': [64, (64,), (0, 64), (64.0, 64.0)],
    'default_hooks.checkpoint.interval': [0, -2, True, 1.5, '10'],
    'default_hooks.checkpoint.max_keep_ckpts': [0, -2],
    'model.backbone.drop_path_rate': [2, 1, -0.1, float('nan')],
    'model.decode_head.channels': [0],
    'crops.crop_size': [(0, 0), 64],
    'train_dataloader.dataset.crops.crop_size': [(-1, 8)],
    'optim_wrapper.optimizer.lr': [-1, float('inf'), 'fast'],
    'randomness.seed': [-1, 2**32, 0.5],
    'train_cfg.val_interval': [0],
}
RIGHT = {
    'optim_wrapper.clip_grad': [dict(max_norm=1), dict(max_norm=float('inf'), norm_type=2), None],
    'model.data_preprocessor.size': [None, [64, 32]],
    'default_hooks.checkpoint.interval': [-1, 1],
    'default_hooks.checkpoint.max_keep_ckpts': [-1, 3],
    'model.backbone.drop_path_rate': [0, 0.0, 0.99],
    'randomness.seed': [None, 0, 2**32 - 1],
}


@pytest.mark.parametrize('key', WRONG)
def test_value_out_of_range_is_refused(key):
    cfg = example()
    for value in WRONG[key]:
        cfg.merge_from_dict({key: value})
        with pytest.raises(IgniteError, match=rf'^{key}(\.\w+)? is .*expected: correct it\.$'):
            check_values(cfg)


def test_values_at_the_limits_of_their_ranges_are_accepted():
    for key, values in RIGHT.items():
        cfg = example()
        for value in values:
            parent, name = key.rsplit('.', 1)
            cfg.merge_from_dict({parent: {name: value}})
            check_values(cfg)


def test_value_out_of_range_in_a_list_is_named_with_its_index():
    cfg = Config(dict(model=dict(auxiliary_head=[dict(num_classes=16), dict(num_classes=0)])))
    with pytest.raises(IgniteError, match=r'^model\.auxiliary_head\.1\.num_classes is 0'):
        check_values(cfg)


@pytest.mark.parametrize(
    'options',
    [
        {'param_scheduler.0.end': 0},
        {'param_scheduler.1.begin': 900},
        {'param_scheduler.0.start_factor': 5},
        {'model.decode_head.in_channels': [32, 64, 160]},
        {'model.decode_head.dropout_ratio': 1.5},
        {'model.backbone.num_heads': [0, 2, 5, 8]},
    ],
    ids=lambda options: next(iter(options)),
)
def test_errors_while_building_become_a_sentence(prepared, tmp_path, options):
    cfg = load_config(DEMO_CONFIG, {'data_root': str(prepared), **options}, str(tmp_path / 'w'))
    with pytest.raises(IgniteError, match='cannot be built .*: correct the config'):
        build_runner(cfg, training=True)


def test_schedules_start_from_the_scaled_learning_rate(prepared, tmp_path):
    """Schedules store the initial rate, so it must be scaled before they are built, and only once."""
    lr = float(np.random.default_rng().uniform(1e-4, 1e-3))
    options = {
        'data_root': str(prepared),
        'optim_wrapper.optimizer.lr': lr,
        'auto_scale_lr': dict(enable=True, base_batch_size=2),
        'train_dataloader.batch_size': 6,
        'train_dataloader.num_workers': 0,
    }
    runner = build_runner(load_config(DEMO_CONFIG, options, str(tmp_path / 'w')), training=True)
    base = min(group['initial_lr'] for group in runner.optim_wrapper.optimizer.param_groups)
    assert base == pytest.approx(3 * lr)
    before = runner.param_schedulers
    runner.scale_lr(runner.optim_wrapper, runner.auto_scale_lr)  # like Runner.train
    assert runner.build_param_scheduler(before) == before
    assert min(group['initial_lr'] for group in runner.optim_wrapper.optimizer.param_groups) == base


@pytest.mark.parametrize(
    'call',
    [
        lambda cfg, checkpoint: train(cfg, weights='missing.pth', amp=True, minutes=1),
        lambda cfg, checkpoint: apis.test(cfg, checkpoint, out=checkpoint, amp=True, shift='lab'),
        apis.Predictor,
    ],
    ids=['train', 'test', 'predict'],
)
def test_config_of_the_caller_is_not_changed(prepared, tmp_path, call):
    """Each call fails after it has resolved and modified its copy: at the weights, the output folder or the pipeline."""
    (tmp_path / 'c.pth').write_text('')
    paths = dict(data_root=str(prepared), work_dir=str(tmp_path / 'w'))
    cfg = example(**paths, test_pipeline=[dict(type='NoSuchTransform')])
    before = copy.deepcopy(cfg)
    with pytest.raises(IgniteError, match=r'missing\.pth|c\.pth is a file|NoSuchTransform'):
        call(cfg, tmp_path / 'c.pth')
    assert cfg.pretty_text == before.pretty_text and 'data_root' not in cfg.test_dataloader.dataset


def test_data_sets_get_the_default_root():
    cfg = example()
    cfg.pop('data_root')
    assert resolved(cfg).val_dataloader.dataset.data_root == 'data/ignite'


def test_unwritable_work_dir_is_refused(prepared, tmp_path):
    (tmp_path / 'file').write_text('')
    for work_dir in (tmp_path / 'file' / 'w', '/proc/w'):
        cfg = load_config(DEMO_CONFIG, {'data_root': str(prepared)}, str(work_dir))
        with pytest.raises(IgniteError, match='cannot be (created|written)'):
            train(cfg)
