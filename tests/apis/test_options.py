"""--cfg-options: parsing, refusals and suggestions."""

import re
from pathlib import Path

import pytest
from config_example import CONFIG, example, load
from conftest import CONFIGS, DEMO_CONFIG
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.config import DictAction

from mmseg_ignite.apis import load_config
from mmseg_ignite.apis.arguments import config_parser
from mmseg_ignite.apis.dotted import find
from mmseg_ignite.apis.options import OptionText, apply_options, parse_value
from mmseg_ignite.errors import IgniteError

WORD = st.text('abcxyz_-./', min_size=1, max_size=6).filter(lambda word: word.lower() not in ('none', 'true', 'false'))
LEAF = st.one_of(
    WORD, st.integers(-999, 999).map(str), st.floats(-9, 9).map(repr), st.sampled_from(['True', 'False', 'None'])
)
NESTED = st.recursive(
    LEAF,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: f'[{",".join(parts)}]'),
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: f'({",".join(parts)})'),
    ),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(NESTED)
def test_values_are_parsed_like_mmengine(text):
    assert parse_value(text) == DictAction._parse_iterable(text)


@pytest.mark.parametrize(
    ('text', 'value'),
    [
        ('1,2', [1, 2]),
        ('(1, 2),(3,4)', [(1, 2), (3, 4)]),
        ("'a b'", 'a b'),
        ('[a b, c]', ['a b', 'c']),
        ("{'a': 1}", {'a': 1}),
        ('', ''),
        ('()', ()),
        ('1e-3', 0.001),
    ],
)
def test_value_is_parsed(text, value):
    assert parse_value(text) == value


@pytest.mark.parametrize('text', ['[1,2', '1,2)', ')(', '{a'])
def test_unbalanced_brackets_are_refused(text):
    with pytest.raises(IgniteError, match='brackets|is not a dictionary'):
        parse_value(text)


def test_text_keeps_spaces_and_digits():
    cfg = load(dict(data_root=OptionText('my data/00 7'), protocol=OptionText('007')))
    assert cfg.data_root == cfg.val_dataloader.dataset.data_root == 'my data/00 7' and cfg.protocol == '007'


def test_arguments_without_a_value_are_refused():
    parser = config_parser('')
    assert parser.parse_args(['c.py', '--cfg-options', 'a=b=c', 'd=']).cfg_options == {'a': 'b=c', 'd': ''}
    for word in ('data/ignite', '=x'):
        with pytest.raises(IgniteError, match='KEY=VALUE'):
            parser.parse_args(['c.py', '--cfg-options', word])


@pytest.mark.parametrize(
    ('key', 'hint'),
    [
        ('protocoll', 'protocol'),
        ('dataroot', 'data_root'),
        ('symmetries', 'model.test_cfg.symmetries'),
        ('model.test_cfg.symetries', 'model.test_cfg.symmetries'),
        ('model.backbone.drop_path', 'model.backbone.drop_path_rate'),
        ('train_dataloader.batchsize', 'train_dataloader.batch_size'),
        ('train_dataloader.dataset.protocl', 'train_dataloader.dataset.protocol'),
        ('crops.temprature', 'crops.temperature'),
        ('train_dataloader.dataset.crops.crop_sise', 'train_dataloader.dataset.crops.crop_size'),
        ('optim_wrapper.optimizer.weight_deca', 'optim_wrapper.optimizer.weight_decay'),
        ('optim_wrapper.clip_grad.maxnorm', 'optim_wrapper.clip_grad.max_norm'),
        ('default_hooks.checkpoint.intervall', 'default_hooks.checkpoint.interval'),
        ('test_evaluator.boundary_tolerance', 'test_evaluator.boundary_tolerance_um'),
        ('randomness.sead', 'randomness.seed'),
        ('batch_size', 'test_dataloader.batch_size'),
        ('quite_another_thing', None),
    ],
)
def test_unknown_key_is_refused_with_a_suggestion(key, hint):
    with pytest.raises(IgniteError, match='is unknown') as error:
        load({key: 1})
    assert f'+{key}=' in str(error.value)
    assert (f'did you mean {hint}' in str(error.value)) if hint else ('did you mean' not in str(error.value))
    assert load({f'+{key}': 1})


def test_settings_replace_none_but_not_a_value():
    """Settings of the encoder's weights are refused, since ``--weights`` sets them."""
    for option in ({'optim_wrapper.clip_grad.max_norm': 2}, {'optim_wrapper.clip_grad': {'max_norm': 2}}):
        cfg = example()
        cfg.optim_wrapper.clip_grad = cfg.model.backbone.init_cfg = None
        apply_options(cfg, option)
        assert cfg.optim_wrapper.clip_grad == {'max_norm': 2}
        with pytest.raises(IgniteError, match='init_cfg is None: set the weights with --weights FILE'):
            apply_options(cfg, {'model.backbone.init_cfg.checkpoint': OptionText('mit_b0.pth')})
    for key in ('optim_wrapper.optimizer.lr.value', 'model.type.name', 'model.backbone.patch_sizes.0.height'):
        with pytest.raises(IgniteError, match='is unknown, since .* which has no settings'):
            load({key: 1})


@pytest.mark.parametrize(
    'key',
    [
        'optim_wrapper.clip_grad.max_norm',
        'optim_wrapper.dtype',
        'optim_wrapper.accumulative_counts',
        'optim_wrapper.optimizer.amsgrad',
        'model.backbone.with_cp',
        'model.decode_head.dropout_ratio',
        'model.decode_head.loss_decode.temperature',
        'model.test_cfg.window_batch',
        'randomness.deterministic',
        'test_dataloader.dataset.use_context',
        'train_dataloader.prefetch_factor',
        'test_evaluator.calibration',
        'default_hooks.checkpoint.save_begin',
        'experiment_name',
        'load_from',
    ],
)
def test_new_key_that_is_read_is_accepted(key):
    value = {'optim_wrapper.dtype': 'float16', 'experiment_name': 'x', 'load_from': 'x'}.get(key, 1)
    cfg = load({key: value})
    for part in key.split('.'):
        cfg = cfg[part]
    assert cfg == value


@pytest.mark.parametrize(
    ('key', 'value'),
    [
        ('train_cfg.max_iters', 'abc'),
        ('train_cfg.max_iters', 0),
        ('train_cfg.max_iters', 2.5),
        ('train_dataloader.batch_size', 0),
        ('train_dataloader.batch_size', True),
        ('val_dataloader.num_workers', -1),
        ('optim_wrapper.optimizer.lr', 'fast'),
        ('optim_wrapper.optimizer.lr', float('nan')),
        ('randomness.seed', -1),
        ('data_root', 3),
        ('data_root', None),
        ('model', 3),
        ('train_dataloader.persistent_workers', 'yes'),
    ],
)
def test_value_of_the_wrong_type_is_refused(key, value):
    with pytest.raises(IgniteError, match=key.replace('.', r'\.')):
        load({key: value})


@pytest.mark.parametrize(
    ('key', 'value', 'hint'),
    [
        ('checkpoint', '/nope.pth', 'model.backbone.init_cfg.checkpoint'),
        ('crop_size', (64, 64), 'model.data_preprocessor.size'),
        ('norm_cfg.type', 'GN', 'model.decode_head.norm_cfg.type'),
        ('data_preprocessor.size', (32, 32), 'set its copies instead'),
        ('train_pipeline', [], 'train_dataloader.dataset.pipeline'),
        ('meta_keys', (), 'test_pipeline.2.meta_keys'),
        ('vis_backends', 3, 'visualizer.vis_backends'),
    ],
)
def test_variable_of_the_config_file_is_refused(key, value, hint):
    with pytest.raises(IgniteError, match='is unknown|nothing reads afterwards') as error:
        load({key: value})
    assert hint in str(error.value)


def test_list_may_replace_text():
    cfg = load({'default_hooks.checkpoint.save_best': OptionText('[mIoU, mDice]')})
    assert cfg.default_hooks.checkpoint.save_best == ['mIoU', 'mDice']


def test_option_that_reaches_no_data_set_is_refused(tmp_path):
    (tmp_path / 'c.py').write_text("_base_ = 'mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py'\n")
    with pytest.raises(IgniteError, match='protocol reaches no data set'):
        load_config(tmp_path / 'c.py', {'protocol': 'official'})


OWN = f"""_base_ = {str(CONFIG)!r}
data_root, protocol, crops = '/top', 'official', dict(temperature=0.7)
val_dataloader = dict(dataset=dict(data_root='data/ignite', protocol='patient-8-1-1'))
train_dataloader = dict(dataset=dict(crops=dict(temperature=0.5)))
"""


@pytest.mark.parametrize(
    ('option', 'value', 'loader'),
    [
        ('data_root', '/mine', 'val_dataloader'),
        ('protocol', 'fold1', 'val_dataloader'),
        ('crops.temperature', 0.1, 'train_dataloader'),
    ],
)
def test_option_that_does_not_reach_a_data_set_names_the_option_to_use(tmp_path, option, value, loader):
    (tmp_path / 'c.py').write_text(OWN)
    own = f'{loader}.dataset.{option}'
    with pytest.raises(IgniteError, match=rf'the option {option} does not reach {loader}\.dataset.*: use {own} for it'):
        load_config(tmp_path / 'c.py', {option: value})
    cfg = load_config(tmp_path / 'c.py', {option: value, own: value})
    assert find(cfg, own) == value


def test_options_reach_the_data_sets_of_a_config_that_was_written_out(tmp_path):
    """In the work dir of a training, and in exported packages, each data set repeats the shared settings."""
    (tmp_path / 'c.py').write_text(f'_base_ = {str(CONFIG)!r}\ndata_root, protocol = "/top", "fold1"\n')
    (tmp_path / 'out.py').write_text(load_config(tmp_path / 'c.py').pretty_text)
    assert load_config(tmp_path / 'out.py').test_dataloader.dataset.data_root == '/top'
    given = {'data_root': '/mine', 'protocol': 'fold2', 'crops.temperature': 0.1}
    cfg = load_config(tmp_path / 'out.py', {**given, 'val_dataloader.dataset.protocol': 'fold3'})
    roots, protocols = (
        [cfg[f'{n}_dataloader'].dataset[k] for n in ('train', 'val', 'test')] for k in ('data_root', 'protocol')
    )
    assert roots == ['/mine'] * 3 and protocols == ['fold2', 'fold3', 'fold2']
    assert cfg.train_dataloader.dataset.crops.temperature == 0.1


def test_value_of_a_data_set_is_kept_even_if_it_equals_the_default(tmp_path):
    (tmp_path / 'c.py').write_text(OWN)
    cfg = load_config(tmp_path / 'c.py')
    val, test = cfg.val_dataloader.dataset, cfg.test_dataloader.dataset
    assert (val.data_root, val.protocol) == ('data/ignite', 'patient-8-1-1')
    assert (test.data_root, test.protocol) == ('/top', 'official')
    assert cfg.train_dataloader.dataset.crops.temperature == 0.5


@pytest.mark.parametrize('name', ['demo', 'scratch'])
def test_settings_of_a_child_config_reach_the_data_sets(tmp_path, name):
    base = DEMO_CONFIG if name == 'demo' else CONFIGS / 'segformer_mit-b0_1xb4-scratch_ignite-128x128.py'
    (tmp_path / 'c.py').write_text(
        f"_base_ = {str(base)!r}\ndata_root = '/d'\ncrops = dict(class_probability=0.9)\n"
        'train_dataloader = dict(dataset=dict(crops=dict(temperature=0.)))\n'
    )
    cfg = load_config(tmp_path / 'c.py')
    crops = cfg.train_dataloader.dataset.crops
    assert {cfg[f'{part}_dataloader'].dataset.data_root for part in ('train', 'val', 'test')} == {'/d'}
    assert (crops.class_probability, crops.temperature, tuple(crops.crop_size)) == (
        0.9,
        0.0,
        (256, 256) if name == 'demo' else (128, 128),
    )


@pytest.mark.parametrize('key', ['custom_hooks.99.rois', 'param_scheduler.begin', '+custom_hooks.5.rois'])
def test_index_outside_a_list_is_refused(key):
    with pytest.raises(IgniteError, match=r'is a list of \d items, numbered from 0'):
        load({key: 1})


def test_option_of_one_data_set_applies_to_it_alone():
    cfg = load({'protocol': 'official', 'val_dataloader.dataset.protocol': 'patient-8-1-1'})
    assert [cfg[f'{p}_dataloader'].dataset.protocol for p in ('train', 'val', 'test')] == [
        'official', 'patient-8-1-1', 'official'
    ]  # fmt: skip
    cfg = load_config(DEMO_CONFIG, {'crops.temperature': 0.1, 'train_dataloader.dataset.crops.crop_size': (64, 64)})
    crops = cfg.train_dataloader.dataset.crops
    assert (crops.temperature, tuple(crops.crop_size)) == (0.1, (64, 64))


def test_every_option_in_the_docs_is_accepted():
    """Each KEY=VALUE of the README and the docs, after --cfg-options or in a table."""
    root = Path(__file__).parents[2]
    text = '\n'.join(path.read_text(encoding='utf-8') for path in [root / 'README.md', *(root / 'docs').glob('*.md')])
    shown = set(
        re.findall(
            r'\b((?:model|optim_wrapper|test_dataloader|test_evaluator|randomness|crops)\.[\w.]+)=([\w.]+)', text
        )
    )
    shown = {pair for pair in shown if not pair[0].startswith('model.type')}
    assert len(shown) > 8
    for key, value in shown:
        load({key: OptionText(value)})
