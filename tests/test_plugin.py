"""The package used by plain mmengine and mmseg: inference functions, loaders and config names."""

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import cv2
import mmseg
import numpy as np
import pytest
from conftest import DEMO_CONFIG, ROOT
from mmcv.transforms import LoadImageFromFile
from mmengine.config import Config
from mmengine.hub import get_config, get_model
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmseg.apis import MMSegInferencer, inference_model, init_model
from mmseg.registry import DATASETS

import mmseg_ignite
from mmseg_ignite.apis import Predictor, load_config, train
from mmseg_ignite.datasets.ignite import DATA_ROOT, PROTOCOL
from mmseg_ignite.datasets.prepared import image_path, label_path
from mmseg_ignite.engine import safe_checkpoints
from mmseg_ignite.engine.hooks import TissueCheckpointHook
from mmseg_ignite.errors import IgniteError
from mmseg_ignite.labels import CLASSES
from mmseg_ignite.registry import CHILDREN

NAME = 'segformer/segformer_mit-b0_1xb8-demo_ignite-256x256.py'
FULL_CHILD = f"_base_ = ['mmseg_ignite::{NAME}']\n"
pytestmark = pytest.mark.usefixtures('one_thread')


SHORT = {
    'train_cfg.max_iters': 1,
    'train_cfg.val_interval': 1,
    'model.data_preprocessor.size': (64, 64),
    'default_hooks.checkpoint.interval': 1,
    **{f'{part}_dataloader.num_workers': 0 for part in ('train', 'val', 'test')},
    **{f'{part}_dataloader.persistent_workers': False for part in ('train', 'val', 'test')},
}
"""One iteration without worker processes."""


@pytest.fixture(scope='module')
def checkpoint(prepared, tmp_path_factory):
    """Train with a config whose base is ``mmseg_ignite::...``, and return the checkpoint."""
    work_dir = tmp_path_factory.mktemp('plugin')
    (work_dir / 'child.py').write_text(FULL_CHILD)
    options = {'data_root': str(prepared), 'crops.crop_size': (64, 64), 'train_dataloader.batch_size': 2, **SHORT}
    train(load_config(work_dir / 'child.py', options, str(work_dir / 'work')))
    return str(work_dir / 'work' / 'iter_1.pth')


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    """Return a PNG and a JPEG of H&E-like noise whose size is not a multiple of the network's stride."""
    folder, rng = tmp_path_factory.mktemp('images'), np.random.default_rng()
    paths = []
    for suffix in ('png', 'jpg'):
        image = cv2.resize(rng.integers(0, 256, (9, 11, 3), np.uint8), (91, 75), interpolation=cv2.INTER_CUBIC)
        paths.append(str(folder / f'tissue.{suffix}'))
        cv2.imwrite(paths[-1], image)
    return paths


@pytest.fixture(scope='module')
def expected(checkpoint, images):
    """Return the labels of our own Predictor."""
    predictor = Predictor(load_config(DEMO_CONFIG), checkpoint, 'cpu')
    labels = [predictor.predict(path) for path in images]
    assert all(len(np.unique(array)) > 1 for array in labels)
    return labels


CONFIGS = dict(
    ours=str(DEMO_CONFIG),
    child=FULL_CHILD,
    region_loader=FULL_CHILD + "test_pipeline = [dict(type='LoadIGNITERegion'), dict(type='PackSegInputs')]\n",
)


def config_file(tmp_path, text):
    if not text.startswith('_base_'):
        return text
    (tmp_path / 'child.py').write_text(text)
    return str(tmp_path / 'child.py')


@pytest.mark.parametrize('loader', ['plain', 'safe'])
@pytest.mark.parametrize('config', CONFIGS)
def test_mmseg_inference_model_accepts_paths_and_arrays(checkpoint, images, expected, tmp_path, config, loader):
    path = config_file(tmp_path, CONFIGS[config])
    if loader == 'safe':
        with safe_checkpoints():
            model = init_model(path, checkpoint, 'cpu')
    else:
        model = init_model(path, checkpoint, 'cpu')
    assert tuple(model.dataset_meta['classes']) == CLASSES
    found = [
        *inference_model(model, images),
        inference_model(model, images[0]),
    ]  # paths first: arrays change the config
    found += inference_model(model, [cv2.imread(path) for path in images])
    for sample, labels in zip(found, [*expected, expected[0], *expected], strict=True):
        np.testing.assert_array_equal(sample.pred_sem_seg.data[0].numpy(), labels)


def test_mmseg_inferencer_accepts_paths_and_arrays(checkpoint, images, expected, tmp_path):
    (tmp_path / 'child.py').write_text(FULL_CHILD)
    for config in (str(DEMO_CONFIG), str(tmp_path / 'child.py')):
        inferencer = MMSegInferencer(config, checkpoint, device='cpu', show_progress=False)
        found = inferencer(images)['predictions'] + inferencer([cv2.imread(path) for path in images])['predictions']
        for labels, wanted in zip(found, expected * 2, strict=True):
            np.testing.assert_array_equal(labels, wanted)
    drawn = inferencer(images[0], return_vis=True, out_dir=str(tmp_path / 'out'))
    assert drawn['visualization'].shape == (*expected[0].shape, 3)


def test_mmseg_refuses_truncated_images_with_our_configs(checkpoint, images, tmp_path):
    model = init_model(str(DEMO_CONFIG), checkpoint, 'cpu')
    for path in map(Path, images):
        damaged = tmp_path / path.name
        damaged.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(OSError, match='truncated'):
            inference_model(model, str(damaged))


def build(prepared, pipeline, **kwargs):
    init_default_scope('mmseg')
    return DATASETS.build(
        dict(type='IGNITEDataset', data_root=str(prepared), split='test', pipeline=pipeline, **kwargs)
    )


@pytest.mark.parametrize('prefix', ['', 'mmseg.', 'mmcv.', 'class'])
@pytest.mark.parametrize('context', [False, True])
def test_stock_loaders_read_the_prepared_arrays(prepared, prefix, context):
    image = LoadImageFromFile if prefix == 'class' else f'{prefix}LoadImageFromFile'
    labels = f'{prefix}LoadAnnotations' if prefix in ('', 'mmseg.') else 'LoadAnnotations'
    pipeline = [dict(type=image, backend_args=None), dict(type=labels, reduce_zero_label=False)]
    both = build(prepared, pipeline, use_context=context)
    whole = build(prepared, [dict(type='LoadIGNITERegion')], use_context=context)
    for stock, ours in zip(both, whole, strict=True):
        for key in ('img', 'gt_seg_map'):
            np.testing.assert_array_equal(stock[key], ours[key])
        assert stock['img_shape'] == ours['img_shape'] == ours['img'].shape[:2]
        assert stock['seg_fields'] == ours['seg_fields'] == ['gt_seg_map']


def test_labels_loaded_after_a_resize_keep_their_size(prepared):
    """mmseg's own test pipelines have this order."""
    pipeline = [dict(type='LoadImageFromFile'), dict(type='Resize', scale_factor=0.5), dict(type='LoadAnnotations')]
    for context in (False, True):
        for sample in build(prepared, pipeline, use_context=context):
            name = sample['roi'] + '_with_context' * context
            image = np.load(image_path(prepared, name))
            assert sample['gt_seg_map'].shape == image.shape[:2] == sample['ori_shape']
            assert sample['img'].shape[0] == (image.shape[0] + 1) // 2
            if not context:
                np.testing.assert_array_equal(sample['gt_seg_map'], np.load(label_path(prepared, name)))


@pytest.mark.parametrize(
    ('transform', 'words'),
    [
        (dict(type='LoadImageFromFile', to_float32=True), 'to_float32=True'),
        (dict(type='mmseg.LoadImageFromFile', color_type='grayscale'), "color_type='grayscale'"),
        (dict(type='LoadAnnotations', reduce_zero_label=True), 'reduce_zero_label=True'),
    ],
)
def test_arguments_that_do_not_apply_to_arrays_are_refused(prepared, transform, words):
    with pytest.raises(IgniteError, match=f'{words}.*remove this argument'):
        build(prepared, [transform])


def test_configs_are_found_by_name(tmp_path):
    """As a base of another config, by mmengine's functions and by ours."""
    (tmp_path / 'child.py').write_text(FULL_CHILD)
    ours = Config.fromfile(str(DEMO_CONFIG))
    for cfg in (
        Config.fromfile(str(tmp_path / 'child.py')),
        get_config(f'mmseg_ignite::{NAME}'),
        Config.fromfile(mmseg_ignite.config_path(NAME)),
        load_config(f'mmseg_ignite::{NAME}'),
    ):
        assert cfg.model.decode_head == ours.model.decode_head
    assert type(get_model(f'mmseg_ignite::{NAME}')).__name__ == 'TissueSegmentor'


def test_plain_mmengine_reads_a_config_that_imports_the_package(tmp_path):
    """In a new process that has not imported mmseg_ignite; our configs are also read by path.

    The import prints nothing and does not change mmengine's checkpoint loader.
    """
    text = f"_base_ = [__import__('mmseg_ignite').config_path('{NAME}')]\ntrain_cfg = dict(max_iters=7)\n"
    (tmp_path / 'child.py').write_text(text)
    code = f"""
import sys
from mmengine.config import Config
from mmengine.runner import CheckpointLoader
loader = CheckpointLoader._schemes['']
Config.fromfile({str(DEMO_CONFIG)!r}, import_custom_modules=False)
assert 'mmseg_ignite' not in sys.modules
assert Config.fromfile('child.py').train_cfg.max_iters == 7
assert 'mmseg_ignite' in sys.modules and CheckpointLoader._schemes[''] is loader
"""
    environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
    run = [sys.executable, '-c', code]
    done = subprocess.run(run, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0 and not done.stdout and not done.stderr, done.stdout + done.stderr


def test_settings_that_plain_mmengine_ignores_are_reported(prepared, tmp_path):
    """Top-level ``crops`` do not reach the data set; the settings of the docs' example do."""
    init_default_scope('mmseg')
    cfg = Config.fromfile(str(DEMO_CONFIG))
    cfg.data_root = str(prepared)
    runner = SimpleNamespace(cfg=cfg)
    with pytest.raises(IgniteError, match=r'data_root=.*crops=.*crop_size.*does not reach train_dataloader'):
        TissueCheckpointHook().before_run(runner)
    (tmp_path / 'child.py').write_text(next(text for text in examples()[0] if '0.7' in text))
    runner.cfg = Config.fromfile(str(tmp_path / 'child.py'))
    assert runner.cfg.train_dataloader.dataset.crops.class_probability == 0.7
    TissueCheckpointHook().before_run(runner)


def test_a_base_by_name_trains_with_plain_mmengine_in_a_new_process(prepared, tmp_path):
    """After ``import mmseg_ignite`` alone, everything in the config must be found through its scope."""
    (tmp_path / 'child.py').write_text(FULL_CHILD)
    data = {f'{part}_dataloader.dataset.data_root': str(prepared) for part in ('train', 'val', 'test')}
    crops = dict(crop_size=(64, 64), um_per_px=None, rotation='quarter')
    data |= {f'train_dataloader.dataset.crops.{key}': value for key, value in crops.items()}
    data |= {'work_dir': 'work', 'train_dataloader.batch_size': 2}
    code = f"""
import mmseg_ignite
from mmengine.config import Config
from mmengine.runner import Runner
cfg = Config.fromfile('child.py')
cfg.merge_from_dict({ {**SHORT, **data}!r})
Runner.from_cfg(cfg).train()
"""
    environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'}
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / 'work' / 'iter_1.pth').is_file()


@pytest.mark.parametrize('node', CHILDREN, ids=lambda node: node.name)
def test_a_registry_with_our_scope_imports_the_modules_of_its_parents(node, monkeypatch):
    asked, parents = [], [node.parent, node.parent.parent]
    for parent in parents:
        monkeypatch.setattr(parent, 'import_from_location', lambda parent=parent: asked.append(parent))
    node.get('NoSuchThing')
    assert asked == parents


def examples():
    """Return the configs in docs/plugin.md."""
    text = (ROOT / 'docs' / 'plugin.md').read_text()
    indented = [textwrap.dedent(block) for block in re.findall(r'(?:^    .*\n)+', text, re.M) if '_base_' in block]
    return indented, re.search(r'```python\n(.*?)```', text, re.S)[1]


def test_bases_in_the_docs_are_read(tmp_path):
    indented, _ = examples()
    assert len(indented) == 3
    for text in indented:
        (tmp_path / 'child.py').write_text(text)
        cfg = Config.fromfile(str(tmp_path / 'child.py'))
        assert cfg.model.type == 'TissueSegmentor'
        for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
            wanted = ('data/mine', 'official') if 'official' in text else ('data/ignite', 'patient-8-1-1')
            found = loader.dataset.get('data_root', DATA_ROOT), loader.dataset.get('protocol', PROTOCOL)
            assert found == wanted


def test_the_config_in_the_docs_trains_with_plain_mmengine(prepared, tmp_path):
    """Train mmseg's SegFormer with our data, transforms, loss and metric in mmengine's runner; then run mmseg's inference."""
    configs = Path(mmseg.__file__).parent / '.mim' / 'configs'
    text = examples()[1].replace("'../segformer/", f"'{configs}/segformer/").replace('data/ignite', str(prepared))
    text = text.replace('(512, 512)', '(64, 64)').replace('batch_size=8', 'batch_size=2')
    (tmp_path / 'segformer.py').write_text(text)
    cfg = Config.fromfile(str(tmp_path / 'segformer.py'))
    cfg.merge_from_dict({'work_dir': str(tmp_path / 'work'), 'model.backbone.init_cfg': None, **SHORT})
    runner = Runner.from_cfg(cfg)
    runner.train()
    scores = runner.test()
    assert 0 <= scores['mIoU'] <= 100
    assert len(runner.test_evaluator.metrics[0].rois) == len(runner.test_dataloader.dataset)
    model = init_model(cfg, str(tmp_path / 'work' / 'iter_1.pth'), 'cpu')
    image = np.full((70, 90, 3), 128, np.uint8)
    assert inference_model(model, image).pred_sem_seg.shape == (70, 90)


def test_a_packaged_config_is_found_by_its_file_name_and_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in (DEMO_CONFIG.name, f'mmseg_ignite::{NAME}'):
        assert load_config(name).work_dir == f'work_dirs/{DEMO_CONFIG.stem}'
        printed = capsys.readouterr().out
        assert printed.startswith('config: ') and printed.strip().endswith(f'.mim/configs/{NAME}')


@pytest.mark.parametrize(
    ('name', 'words'),
    [
        (f'confgis/segformer/{DEMO_CONFIG.name}', f'did you mean mmseg_ignite::{NAME}'),
        (f'/nowhere/{DEMO_CONFIG.name}', f'did you mean mmseg_ignite::{NAME}'),
        ('mine/segformr.py', 'did you mean mine/segformer.py'),
        ('mmseg_ignite::segformer/segformer_mit-b0_1xb8-demo_ignite-512x512.py', 'did you mean segformer/segformer_'),
        ('mmseg_ignite::zzz.py', 'check the path'),
        ('quite_another.py', 'check the path'),
        ('ignite.py', 'is not a file'),  # a base, not a config
    ],
)
def test_a_wrong_path_never_selects_another_config(tmp_path, monkeypatch, name, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine' / 'segformer.py').write_text('')
    with pytest.raises(IgniteError, match=words):
        load_config(name)
