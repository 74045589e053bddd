"""Fixtures: a small synthetic release, its prepared form, and the real tissue where it is at hand."""

import logging
import runpy
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

import mmseg_ignite  # noqa: F401  registers everything before a test touches a registry
from mmseg_ignite.apis import load_config
from mmseg_ignite.preparation import prepare, write_synthetic_release

ROOT = Path(__file__).parents[1]
REAL_RELEASE = ROOT.parent / 'shared' / 'data' / 'lung_he_release'
CONFIGS = ROOT / 'configs' / 'segformer'
DEMO_CONFIG = CONFIGS / 'segformer_mit-b0_1xb8-demo_ignite-256x256.py'


@pytest.fixture(scope='session', autouse=True)
def config_texts_once():
    """mmengine formats the text of a config anew for each checkpoint and log, half the time of these short trainings."""
    texts, pretty_text = {}, Config.pretty_text.fget

    def once(cfg):
        key = repr(cfg._cfg_dict)
        if key not in texts:
            texts[key] = pretty_text(cfg)
        return texts[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Config, 'pretty_text', property(once))
        yield


@pytest.fixture(scope='session', autouse=True)
def no_errors_of_closed_streams():
    """mmengine's loggers keep the stream that pytest captured for an earlier test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logging, 'raiseExceptions', False)
        yield


def small_options(prepared, iterations=2):
    """Options with which the demo config trains for a few iterations on the small prepared data set."""
    workers = {'num_workers': 0, 'persistent_workers': False}
    return {
        'data_root': str(prepared),
        'crops.crop_size': (64, 64),
        'model.data_preprocessor.size': (64, 64),
        'train_dataloader.batch_size': 2,
        'train_cfg.max_iters': iterations,
        'train_cfg.val_interval': 100,
        'default_hooks.checkpoint.interval': iterations,
        'default_hooks.checkpoint.max_keep_ckpts': 3,
        **{f'{part}_dataloader.{key}': value for part in ('train', 'val', 'test') for key, value in workers.items()},
    }


def small_config(prepared, work_dir, iterations=2, **options):
    """The demo config with :func:`small_options` and others."""
    return load_config(DEMO_CONFIG, {**small_options(prepared, iterations), **options}, str(work_dir))


def tool(name, *arguments):
    """Run a tool in this process, as `python tools/NAME.py ARGUMENTS` would; return its exit status."""
    before = sys.argv
    sys.argv = [name, *map(str, arguments)]
    try:
        runpy.run_path(str(ROOT / 'tools' / f'{name}.py'), run_name='__main__')
        return 0
    except SystemExit as end:
        return end.code or 0
    finally:
        sys.argv = before


@pytest.fixture(scope='session')
def release(tmp_path_factory):
    """A release of 12 ROIs of 6 patients; read-only for tests."""
    out = tmp_path_factory.mktemp('synthetic') / 'release'
    write_synthetic_release(out, rois=12, patients=6, size=(96, 112), seed=5)
    return out


@pytest.fixture(scope='session')
def prepared(release, tmp_path_factory):
    """The prepared form of ``release``; read-only for tests."""
    out = tmp_path_factory.mktemp('prepared') / 'ignite'
    prepare(release, out)
    return out


@pytest.fixture
def own_release(tmp_path):
    """A release that a test may damage."""
    out = tmp_path / 'release'
    write_synthetic_release(out, rois=4, patients=4, size=(72, 80), seed=6)
    return out


@pytest.fixture(scope='session')
def real_release():
    """Real H&E tissue in the release's layout."""
    if not REAL_RELEASE.is_dir():
        pytest.skip(f'the real tissue is not at {REAL_RELEASE}')
    return REAL_RELEASE


@pytest.fixture(scope='module')
def one_thread():
    """Arrays this small are done before a second thread has started."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
