"""What is wrong in a config is found before anything is built."""

import copy

import numpy as np
import pytest
from conftest import CONFIGS, DEMO_CONFIG
from mmengine.config import Config

from mmseg_ignite import apis
from mmseg_ignite.apis import load_config, train
from mmseg_ignite.apis.checks import check_classes, check_parts, check_score_names
from mmseg_ignite.apis.configuration import build_runner, resolved
from mmseg_ignite.apis.options import apply_options
from mmseg_ignite.apis.values import check_values
from mmseg_ignite.datasets import IGNITECropDataset, IGNITEDataset
from mmseg_ignite.errors import IgniteError


@pytest.fixture(scope='module')
def plain():
    return Config.fromfile(str(CONFIG))


def changed(plain, options):
    """As load_config does; reading mmseg's base anew each time would take most of the time."""
    cfg = copy.deepcopy(plain)
    apply_options(cfg, options)
    return resolved(cfg, options)


CONFIG = CONFIGS / 'segformer_mit-b0_1xb8-20k_ignite-512x512.py'


@pytest.mark.parametrize('number', [5, 15, 17])
def test_another_number_of_classes_is_refused_when_the_config_is_loaded(plain, number):
    with pytest.raises(IgniteError, match=f'num_classes is {number}.*16 classes') as error:
        changed(plain, {'model.decode_head.num_classes': number})
    assert ('Unannotated is not a class' in str(error.value)) == (number == 17)


def test_an_auxiliary_head_counts_too(tmp_path):
    (tmp_path / 'c.py').write_text(
        f"_base_ = {str(CONFIG)!r}\nmodel = dict(auxiliary_head=[dict(type='FCNHead', num_classes=19)])\n"
    )
    with pytest.raises(IgniteError, match=r'auxiliary_head\.0\.num_classes is 19'):
        load_config(tmp_path / 'c.py')


def test_fewer_classes_need_all_data_sets_to_agree(tmp_path):
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
def test_a_type_that_is_not_registered_is_named(plain, key, value, words):
    with pytest.raises(IgniteError, match=words) as error:
        changed(plain, {key: value})
    assert key in str(error.value) or value in str(error.value)


def test_a_score_that_no_validation_gives_is_named(plain):
    for options in (
        {'default_hooks.checkpoint.save_best': 'mIou'},
        {'default_hooks.checkpoint.save_best': ['mIoU', 'mDise']},
    ):
        with pytest.raises(IgniteError, match='save_best is .*did you mean (mIoU|mDice)'):
            check_score_names(changed(plain, options))
    for name in ('mIoU', 'mIoU_smoothed', 'kappa', 'auto', None, ['mIoU', 'aAcc']):
        check_score_names(changed(plain, {'default_hooks.checkpoint.save_best': name}))
    cfg = copy.deepcopy(plain)
    cfg.custom_hooks = [dict(type='EarlyStoppingHook', monitor='mIoU_smoothed')]
    with pytest.raises(IgniteError, match='custom_hooks.0.monitor'):
        check_score_names(cfg)


def test_a_wrong_score_is_refused_before_the_training(prepared, tmp_path):
    cfg = load_config(
        DEMO_CONFIG, {'data_root': str(prepared), 'default_hooks.checkpoint.save_best': 'mIou'}, str(tmp_path / 'w')
    )
    with pytest.raises(IgniteError, match='mIou'):
        train(cfg)
    assert not (tmp_path / 'w').exists()


@pytest.mark.parametrize('call', ['train', 'test', 'predict'])
@pytest.mark.parametrize(
    ('text', 'words'),
    [
        ("model = dict(type='EncoderDecoder')", 'model.backbone and model.decode_head'),
        ("model = dict(backbone=dict(type='MixVisionTransformer'))", 'model.type:'),
        ("model = 'segformer'", 'model.type and model.backbone:'),
    ],
)
def test_a_model_without_its_parts_is_refused_when_the_config_is_loaded(tmp_path, call, text, words):
    (tmp_path / 'c.py').write_text(text)
    with pytest.raises(IgniteError, match=rf'c\.py has no .*{words}'):
        load_config(tmp_path / 'c.py')
    cfg = Config.fromfile(str(tmp_path / 'c.py'))
    (tmp_path / 'c.pth').write_text('')
    with pytest.raises(IgniteError, match=words):
        {
            'train': lambda: train(cfg),
            'test': lambda: apis.test(cfg, tmp_path / 'c.pth'),
            'predict': lambda: apis.Predictor(cfg, tmp_path / 'c.pth'),
        }[call]()


NEEDED = {
    'training': ['train_dataloader', 'train_cfg', 'optim_wrapper', 'val_dataloader', 'val_evaluator', 'val_cfg'],
    'test': ['test_dataloader', 'test_evaluator', 'test_cfg'],
}


@pytest.mark.parametrize(('task', 'part'), [(task, part) for task, parts in NEEDED.items() for part in parts])
def test_a_part_that_a_run_needs_is_named(plain, tmp_path, task, part):
    run = train if task == 'training' else lambda cfg: apis.test(cfg, tmp_path / 'c.pth')
    (tmp_path / 'c.pth').write_text('')
    for change in (lambda cfg: cfg.pop(part), lambda cfg: cfg.__setitem__(part, None)):
        cfg = copy.deepcopy(plain)
        change(cfg)
        cfg.work_dir = str(tmp_path / 'w')
        with pytest.raises(IgniteError, match=f'has no {part}, which a {task} needs'):
            run(cfg)
    assert not (tmp_path / 'w').exists()


def test_a_run_needs_the_parts_of_no_other_run(plain):
    cfg = copy.deepcopy(plain)
    for part in NEEDED['test']:
        cfg[part] = None
    check_parts(cfg, 'training')
    for part in NEEDED['training'][3:]:
        cfg[part] = None
    check_parts(cfg, 'training')
    cfg = copy.deepcopy(plain)
    for part in NEEDED['training']:
        cfg[part] = None
    check_parts(cfg, 'test')


@pytest.mark.parametrize(
    ('task', 'loader'), [('training', 'train_dataloader'), ('training', 'val_dataloader'), ('test', 'test_dataloader')]
)
@pytest.mark.parametrize('pipeline', [None, []])
def test_a_data_set_without_a_pipeline_is_refused(plain, task, loader, pipeline):
    cfg = copy.deepcopy(plain)
    cfg[loader].dataset.pipeline = pipeline
    with pytest.raises(IgniteError, match=rf'^{loader}\.dataset\.pipeline of .*PackSegInputs'):
        check_parts(cfg, task)


@pytest.mark.parametrize('task', NEEDED)
def test_two_metrics_that_log_one_name_are_refused(plain, task):
    name = 'test_evaluator' if task == 'test' else 'val_evaluator'
    ours, stock = dict(type='TissueMetric'), dict(type='IoUMetric')
    for pair in ([ours, stock], [stock, ours], [ours, ours], [dict(ours, prefix='a'), dict(stock, prefix='a')]):
        cfg = copy.deepcopy(plain)
        cfg[name] = pair
        with pytest.raises(IgniteError, match=rf'{name} would both log mIoU: .*{name}\.1\.prefix=other'):
            check_parts(cfg, task)
    for pair in (ours, [ours], [ours, dict(stock, prefix='other')], [dict(ours, prefix='a'), dict(ours, prefix='b')]):
        cfg = copy.deepcopy(plain)
        cfg[name] = pair
        check_parts(cfg, task)


def test_a_config_without_hooks_and_visualizer_trains(prepared, tmp_path):
    options = {'data_root': str(prepared), 'train_cfg.max_iters': 1, 'crops.crop_size': (64, 64)}
    options |= {'train_dataloader.batch_size': 2, 'train_dataloader.num_workers': 0}
    cfg = load_config(DEMO_CONFIG, options, str(tmp_path / 'w'))
    for name in ('default_hooks', 'custom_hooks', 'visualizer', 'param_scheduler', 'log_processor', 'env_cfg'):
        cfg.pop(name)
    for name in ('val_dataloader', 'val_evaluator', 'val_cfg'):
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


def test_loaders_without_workers_need_nothing_else(plain):
    cfg = changed(plain, {'train_dataloader.num_workers': 0, 'train_dataloader.prefetch_factor': 4})
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
def test_a_value_out_of_range_is_named_with_its_place(plain, key):
    cfg = copy.deepcopy(plain)
    for value in WRONG[key]:
        cfg.merge_from_dict({key: value})
        with pytest.raises(IgniteError, match=rf'^{key}(\.\w+)? is .*expected: correct it\.$'):
            check_values(cfg)


def test_values_at_the_ends_of_their_ranges_pass(plain):
    for key, values in RIGHT.items():
        cfg = copy.deepcopy(plain)
        for value in values:
            parent, name = key.rsplit('.', 1)
            cfg.merge_from_dict({parent: {name: value}})
            check_values(cfg)


def test_the_place_of_a_wrong_value_in_a_list_has_its_number():
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
def test_what_mmengine_complains_of_while_it_builds_is_a_sentence(prepared, tmp_path, options):
    cfg = load_config(DEMO_CONFIG, {'data_root': str(prepared), **options}, str(tmp_path / 'w'))
    with pytest.raises(IgniteError, match='cannot be built .*: correct the config'):
        build_runner(cfg, training=True)


def test_schedules_start_from_the_scaled_learning_rate(prepared, tmp_path):
    """Automatic scaling comes before the schedules, which remember the first rate, and is done once."""
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
    runner.scale_lr(runner.optim_wrapper, runner.auto_scale_lr)  # as Runner.train does
    assert runner.build_param_scheduler(before) == before
    assert min(group['initial_lr'] for group in runner.optim_wrapper.optimizer.param_groups) == base


def test_a_config_of_the_caller_stays_as_it_is(plain, prepared, tmp_path):
    cfg = load_config(DEMO_CONFIG, {'data_root': str(prepared)}, str(tmp_path / 'w'))
    before = copy.deepcopy(cfg)
    for call in (lambda: train(cfg, weights='no.pth', amp=True, minutes=1), lambda: apis.test(cfg, 'no.pth', amp=True)):
        with pytest.raises(IgniteError, match='no.pth'):
            call()
        assert cfg.pretty_text == before.pretty_text
    assert 'data_root' not in plain.val_dataloader.dataset
    assert (
        resolved(plain).val_dataloader.dataset.data_root == 'data/ignite'
        and 'data_root' not in plain.val_dataloader.dataset
    )


def test_a_work_dir_that_cannot_be_written_is_a_sentence(prepared, tmp_path):
    (tmp_path / 'file').write_text('')
    for work_dir in (tmp_path / 'file' / 'w', '/proc/w'):
        cfg = load_config(DEMO_CONFIG, {'data_root': str(prepared)}, str(work_dir))
        with pytest.raises(IgniteError, match='cannot be (made|written)'):
            train(cfg)
