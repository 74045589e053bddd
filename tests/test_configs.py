import pytest
import torch
from conftest import CONFIGS, small_options
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample

from mmseg_ignite.apis import load_config, train
from mmseg_ignite.errors import IgniteError

NAME = 'segformer_mit-b{}_1xb8-20k_ignite-512x512.py'
MILLION_PARAMETERS = (3.7, 13.7, 24.7, 44.6, 61.4, 82.0)  # Xie et al. 2021, with mmseg's 256-channel head


@pytest.mark.parametrize('size', range(6))
def test_config_builds_and_runs_forward_and_backward(size):
    cfg = load_config(CONFIGS / NAME.format(size))
    assert f'mit_b{size}_' in cfg.model.backbone.init_cfg.checkpoint
    assert cfg.work_dir == f'work_dirs/{NAME.format(size)[:-3]}'
    init_default_scope('mmseg')
    cfg.model.backbone.init_cfg = None
    cfg.model.data_preprocessor.size = (64, 64)
    cfg.model.decode_head.norm_cfg.type = 'BN'  # the runner does this for a single process
    cfg.model.backbone.setdefault('norm_cfg', dict(type='LN', eps=1e-6))
    model = MODELS.build(cfg.model).train()
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(MILLION_PARAMETERS[size], rel=0.02)
    samples = [SegDataSample(gt_sem_seg=PixelData(data=torch.randint(16, (1, 64, 64)))) for _ in range(2)]
    data = dict(inputs=[torch.randint(256, (3, 64, 64), dtype=torch.uint8) for _ in samples], data_samples=samples)
    data = model.data_preprocessor(data, training=True)
    loss, _ = model.parse_losses(model(**data, mode='loss'))
    loss.backward()
    assert loss.isfinite()
    missing = [n for n, p in model.named_parameters() if p.grad is None]
    assert not missing
    assert model(data['inputs']).shape == (2, 16, 16, 16)


def test_child_configs_are_short():
    for size in range(1, 6):
        assert len((CONFIGS / NAME.format(size)).read_text().splitlines()) <= 12


def test_configs_for_other_hardware_are_short():
    names = [f'segformer_mit-b{size}_4xb8-20k_ignite-512x512.py' for size in range(6)]
    names += [f'segformer_mit-b{size}_1xb4-accum2-40k_ignite-512x512.py' for size in (4, 5)]
    for name in names:
        cfg, plain = load_config(CONFIGS / name), load_config(CONFIGS / NAME.format(name[15]))
        assert cfg.model == plain.model and len((CONFIGS / name).read_text().splitlines()) <= 13
        steps, plain_steps = (
            c.train_cfg.max_iters / c.optim_wrapper.get('accumulative_counts', 1) for c in (cfg, plain)
        )
        assert steps == plain_steps and cfg.param_scheduler[-1].end == cfg.train_cfg.max_iters
        assert cfg.train_dataloader.batch_size * cfg.optim_wrapper.get('accumulative_counts', 1) == 8


def test_config_with_recomputed_blocks_trains(tmp_path, prepared):
    """A step of two batches, with fewer blocks than B5 has."""
    name = 'segformer_mit-b5_1xb4-cp-accum2-40k_ignite-512x512.py'
    options = small_options(prepared) | {'crops.crop_size': (32, 32), 'model.data_preprocessor.size': (32, 32)}
    cfg = load_config(CONFIGS / name, options | {'model.backbone.num_layers': [1, 1, 2, 1]}, str(tmp_path))
    plain = load_config(CONFIGS / name.replace('-cp', ''))
    assert cfg.model.backbone.with_cp and cfg.optim_wrapper.accumulative_counts == 2
    assert cfg.param_scheduler == plain.param_scheduler
    cfg.custom_hooks, cfg.default_hooks.checkpoint = [], None
    runner = train(cfg, weights='none')
    assert runner.iter == 2 and all(block.with_cp for _, blocks, _ in runner.model.backbone.layers for block in blocks)


def test_options_reach_all_data_sets():
    cfg = load_config(CONFIGS / NAME.format(0), dict(data_root='d', protocol='official'))
    for part in ('train', 'val', 'test'):
        dataset = cfg[f'{part}_dataloader'].dataset
        assert (dataset.data_root, dataset.protocol, dataset.split) == ('d', 'official', part)


def test_settings_at_the_top_of_a_child_config_reach_the_data_sets(tmp_path):
    base = CONFIGS / NAME.format(0)
    (tmp_path / 'c.py').write_text(
        f"_base_ = {str(base)!r}\nprotocol = 'official'\ndata_root = '/d'\ncrops = dict(class_probability=0.1)\n"
        "val_dataloader = dict(dataset=dict(protocol='fold1'))\n"
    )
    cfg = load_config(tmp_path / 'c.py', {'crops.temperature': 0.7})
    datasets = [cfg[f'{part}_dataloader'].dataset for part in ('train', 'val', 'test')]
    assert [dataset.protocol for dataset in datasets] == ['official', 'fold1', 'official']
    assert {dataset.data_root for dataset in datasets} == {'/d'}
    crops = cfg.train_dataloader.dataset.crops
    assert (crops.class_probability, crops.temperature, crops.rotation) == (0.1, 0.7, 'any')
    assert 'crops' not in cfg.val_dataloader.dataset


@pytest.mark.parametrize(
    ('text', 'words'),
    [
        ('x = ', 'SyntaxError'),
        ('_base_ = "missing.py"', 'missing.py'),
        ('x = 1', 'no model'),
        ('1 / 0', 'ZeroDivision'),
    ],
)
def test_invalid_configs_are_refused(tmp_path, text, words):
    (tmp_path / 'c.py').write_text(text)
    with pytest.raises(IgniteError, match=words):
        load_config(tmp_path / 'c.py')


def test_a_missing_config_is_named(tmp_path):
    with pytest.raises(IgniteError, match='nowhere.py'):
        load_config(tmp_path / 'nowhere.py')


def test_an_mmseg_config_can_use_our_parts(tmp_path):
    """mmseg's own B1 config finds the data set by its registry name."""
    (tmp_path / 'c.py').write_text(
        "_base_ = 'mmseg::segformer/segformer_mit-b1_8xb2-160k_ade20k-512x512.py'\n"
        "custom_imports = dict(imports=['mmseg_ignite'])\n"
        "train_dataloader = dict(dataset=dict(_delete_=True, type='IGNITEDataset', data_root='d', split='train'))\n"
    )
    assert Config.fromfile(str(tmp_path / 'c.py')).train_dataloader.dataset.type == 'IGNITEDataset'
