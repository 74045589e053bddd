"""Fixtures: a small synthetic release, its prepared form, and real tissue if it is available."""

import functools
import gc
import logging
import os
import re
import runpy
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, settings
from mmengine.logging import MessageHub, MMLogger
from mmengine.utils.dl_utils import collect_env

import mmseg_ignite  # noqa: F401  registers everything before a test uses a registry
from mmseg_ignite.apis import load_config
from mmseg_ignite.preparation import prepare, write_synthetic_release

ROOT = Path(__file__).parents[1]
REAL_RELEASE = ROOT.parent / 'shared' / 'data' / 'lung_he_release'
CONFIGS = ROOT / 'configs' / 'segformer'
DEMO_CONFIG = CONFIGS / 'segformer_mit-b0_1xb8-demo_ignite-256x256.py'

GPU = torch.cuda.is_available()  # asked before tests hide it; from now on, the driver ignores CUDA_VISIBLE_DEVICES
REAL = dict(is_available=torch.cuda.is_available, device_count=torch.cuda.device_count)
HIDDEN = dict(is_available=lambda: False, device_count=lambda: 0)
VISIBLE = os.environ.get('CUDA_VISIBLE_DEVICES')

settings.register_profile(  # time limits would fail on a busy machine; the device is the same for all examples
    'any machine', deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
settings.load_profile('any machine')


HEAVY = ('test_kills', 'test_launch_scripts', 'test_exact_resume', 'test_many_processes', 'test_cross_validation',
         'test_work_dirs', 'test_tools', 'test_predict', 'test_predict_slides', 'test_browse', 'test_signals')  # fmt: skip
"""Files of a minute or so. They come first when files are distributed: the last one would run while nothing else does."""


def pytest_configure(config):
    config.option.loadscopereorder = (
        False  # of pytest-xdist: by the number of tests, which says little about their time
    )
    config.pluginmanager.register(FailuresAtOnce(config.pluginmanager))
    if not GPU and re.search(r'(?<!not )\bcuda\b', config.option.markexpr or ''):
        raise pytest.UsageError('the tests of -m cuda need an NVIDIA GPU that torch can use; torch.cuda finds none.')


def pytest_collection_modifyitems(config, items):
    """Put heavy files first. Without a GPU, deselect the tests that need one, rather than report hundreds as skipped."""
    items.sort(key=lambda item: item.path.stem not in HEAVY)
    needing = [] if GPU else [item for item in items if item.get_closest_marker('cuda')]
    if needing:
        config.hook.pytest_deselected(items=needing)
        items[:] = [item for item in items if not item.get_closest_marker('cuda')]


class FailuresAtOnce:
    """Print each failed test and its error when it fails: a run that is cut off prints no summary."""

    def __init__(self, plugins):
        self.plugins = plugins

    def pytest_runtest_logreport(self, report):
        terminal = self.plugins.get_plugin('terminalreporter')  # not in a worker of xdist
        if report.failed and terminal:
            crash = getattr(report.longrepr, 'reprcrash', None)
            error = (crash.message if crash else str(report.longrepr)).strip().partition('\n')[0]
            terminal.write_line(f'\n{report.when} of {report.nodeid} failed: {error[:300]}')
            terminal.flush()


@pytest.fixture(params=['cpu', *([pytest.param('cuda:0', marks=pytest.mark.cuda)] if GPU else [])])
def device(request):
    """The CPU and, marked ``cuda``, the GPU of a machine that has one."""
    return torch.device(request.param)


def _set_gpu(patch, visible):
    """Show the GPU to torch, mmengine and subprocesses, or hide it."""
    for name, function in (REAL if visible else HIDDEN).items():
        patch.setattr(torch.cuda, name, function)
    patch.setattr('mmengine.device.utils.DEVICE', 'cuda' if visible else 'cpu')
    if visible and VISIBLE is None:
        patch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    else:
        patch.setenv('CUDA_VISIBLE_DEVICES', VISIBLE if visible else '')


@pytest.fixture(scope='session', autouse=True)
def hidden_gpu():
    """Hide the GPU: tests compare results of the CPU, most of them bit by bit, and should give the same on any machine."""
    with pytest.MonkeyPatch.context() as patch:
        if GPU:
            _set_gpu(patch, visible=False)
        yield


@pytest.fixture(autouse=True)
def exact_gpu(request, hidden_gpu):
    """Show the GPU to tests marked ``cuda``, and start each test with settings in which equal computations agree.

    TF32 has 10 bits of mantissa, so float32 results would agree to three digits only, and cudnn.benchmark chooses kernels by
    their time. Configs and ``randomness.deterministic`` change these settings in a training. Other CUDA kernels still add
    in any order, e.g. in the gradient of a resize: equality bit by bit needs ``randomness.deterministic``.
    """
    with pytest.MonkeyPatch.context() as patch:
        if GPU and request.node.get_closest_marker('cuda'):
            _set_gpu(patch, visible=True)
        backends = torch.backends
        backends.cuda.matmul.allow_tf32 = backends.cudnn.allow_tf32 = False
        backends.cudnn.benchmark = backends.cudnn.deterministic = False
        yield
        torch.use_deterministic_algorithms(False)


@pytest.fixture(scope='session', autouse=True)
def fast_mmengine():
    """Drop mmengine's slowest steps: laying out the text of each config, and querying the machine for each runner."""
    gc.freeze()  # mmengine collects garbage for each data set, which would visit all imported modules
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('yapf.yapflib.yapf_api.FormatCode', lambda text, **_: (text, True))
        patch.setattr('mmengine.runner.runner.collect_env', functools.cache(collect_env))
        patch.setattr(logging, 'raiseExceptions', False)  # its loggers write to streams of earlier tests, now closed
        yield


@pytest.fixture(autouse=True)
def new_instances():
    """Forget mmengine's loggers and histories after a test: it names them by the second, so the next run would share them."""
    yield
    MMLogger._instance_dict.clear()
    MessageHub._instance_dict.clear()


def small_options(prepared, iterations=2):
    """Config options for training the demo config for a few iterations on the small prepared data set."""
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


def small_config(prepared, work_dir, iterations=2, pictures=False, **options):
    """Load the demo config with :func:`small_options` and ``options``; hooks that plot stay only if ``pictures``."""
    cfg = load_config(DEMO_CONFIG, {**small_options(prepared, iterations), **options}, str(work_dir))
    plotting = () if pictures else ('TrainingCurvesHook', 'ValidationOverlayHook')
    cfg.custom_hooks = [hook for hook in cfg.custom_hooks if hook.type not in plotting]
    return cfg


def cfg_options(prepared, *more, iterations=2):
    """Return :func:`small_options` and further ``KEY=VALUE`` as arguments of a tool."""
    options = small_options(prepared, iterations).items()
    return ['--cfg-options', *(f'{key}={value}'.replace(', ', ',') for key, value in options), *more]


@contextmanager
def without_figures():
    """Skip the figures for papers (PNG, SVG, PDF), which take most of the time of a report."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('mmseg_ignite.apis.publishing.write_figures', lambda *_: [])
        yield


def tool(name, *arguments, folder='tools'):
    """Run ``python FOLDER/NAME.py ARGUMENTS`` in this process and return its exit status."""
    before = sys.argv
    sys.argv = [name, *map(str, arguments)]
    try:
        runpy.run_path(str(ROOT / folder / f'{name}.py'), run_name='__main__')
        return 0
    except SystemExit as end:
        return end.code or 0
    finally:
        sys.argv = before


def single_error(capsys):
    """Return the error message that a tool printed; check that there is exactly one and no traceback."""
    output = capsys.readouterr().err
    assert output.count('error: ') == 1 and 'Traceback' not in output, output
    return output[output.index('error: ') :]


@pytest.fixture(scope='session')
def release(tmp_path_factory):
    """A release with 12 ROIs from 6 patients; tests must not change it."""
    out = tmp_path_factory.mktemp('synthetic') / 'release'
    write_synthetic_release(out, rois=12, patients=6, size=(96, 112), seed=5)
    return out


@pytest.fixture(scope='session')
def prepared(release, tmp_path_factory):
    """The prepared form of ``release``; tests must not change it."""
    out = tmp_path_factory.mktemp('prepared') / 'ignite'
    prepare(release, out)
    return out


@pytest.fixture
def own_release(tmp_path):
    """A release that a test may change."""
    out = tmp_path / 'release'
    write_synthetic_release(out, rois=4, patients=4, size=(72, 80), seed=6)
    return out


@pytest.fixture(scope='session')
def real_release():
    """Real H&E tissue in the layout of the release."""
    if not REAL_RELEASE.is_dir():
        pytest.skip(f'the real tissue is not at {REAL_RELEASE}')
    return REAL_RELEASE


@pytest.fixture(scope='module')
def one_thread():
    """Use one thread: arrays this small are processed before a second thread has started."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def no_figures():
    """See :func:`without_figures`."""
    with without_figures():
        yield


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A local server of ``files`` {name: bytes} at ``root``, and torch's folder of downloads, ``cache``.

    ``requests`` has the names requested so far and their Range. ``answer`` (optional) is called with (handler, content) in
    place of the normal answer.
    """
    state = SimpleNamespace(files={}, requests=[], answer=None, cache=tmp_path / 'torch' / 'checkpoints')

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            name = self.path[1:].partition('?')[0]
            state.requests.append((name, self.headers.get('Range')))
            content = state.files.get(name)
            if state.answer is not None:
                return state.answer(self, content)
            self.send_response(404 if content is None else 200)
            self.send_header('Content-Length', str(len(content or b'')))
            self.end_headers()
            self.wfile.write(content or b'')

        def log_message(self, *args):
            pass

    for name in ('http_proxy', 'HTTP_PROXY', 'all_proxy', 'ALL_PROXY'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'torch'))
    with ThreadingHTTPServer(('127.0.0.1', 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        state.root = f'http://127.0.0.1:{server.server_port}'
        yield state
        server.shutdown()
