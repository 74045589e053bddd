import os
import subprocess
import sys

import pytest
from conftest import ROOT

from mmseg_ignite import environment

GOOD = {'onedl-mmengine', 'onedl-mmcv', 'onedl-mmsegmentation'}
ORIGINAL = {'mmengine', 'mmcv', 'mmsegmentation'}


@pytest.mark.parametrize(
    ('distributions', 'words'),
    [
        (GOOD, None),
        (ORIGINAL, None),
        (GOOD | {'mmcv'}, 'uninstall -y onedl-mmcv mmcv'),
        (GOOD | {'mmsegmentation'}, 'side by side'),
        (GOOD - {'onedl-mmcv'}, 'pip install onedl-mmcv'),
        (ORIGINAL - {'mmcv'} | {'mmcv-lite'}, 'operators'),
        (GOOD | {'mmcv-lite'}, 'side by side'),
    ],
)
def test_stack_fault(monkeypatch, distributions, words):
    monkeypatch.setattr(environment, 'installed', lambda name: '1.0' if name in distributions else None)
    monkeypatch.setattr(environment, 'find_spec', lambda package: None)
    fault = environment.stack_fault()
    assert fault is None if words is None else words in fault


def test_the_installed_stack_has_no_fault():
    assert environment.stack_fault() is None


def test_a_source_tree_without_metadata_is_accepted(tmp_path):
    """mmseg is on the Python path without a distribution; its configs are found too."""
    code = """
import sys
from importlib import metadata
from types import ModuleType
version = metadata.version
def hidden(name):
    if name in ('onedl-mmsegmentation', 'mmsegmentation'):
        raise metadata.PackageNotFoundError(name)
    return version(name)
metadata.version = hidden
own = sys.modules['mmseg.version'] = ModuleType('mmseg.version')  # mmsegmentation defines its version itself
own.__version__, own.version_info = '1.2.2', (1, 2, 2)
import mmseg_ignite
from mmengine.config import Config
assert Config.fromfile('child.py').model.type == 'EncoderDecoder'
"""
    (tmp_path / 'child.py').write_text("_base_ = 'mmseg::_base_/models/segformer_mit-b0.py'\n")
    run = [sys.executable, '-c', code]
    done = subprocess.run(
        run, capture_output=True, text=True, env={**os.environ, 'PYTHONPATH': str(ROOT)}, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert not done.stdout and not done.stderr  # nor messages of the imported packages


def test_import_with_both_stacks_installed_fails_with_one_sentence(tmp_path):
    """With a second distribution of mmcv on the path, the import says what to uninstall."""
    other = 'mmcv' if environment.installed('onedl-mmcv') else 'onedl-mmcv'
    folder = tmp_path / f'{other.replace("-", "_")}-9.9.dist-info'
    folder.mkdir()
    (folder / 'METADATA').write_text(f'Metadata-Version: 2.1\nName: {other}\nVersion: 9.9\n')
    paths = os.pathsep.join([str(tmp_path), str(ROOT)])
    run = [sys.executable, '-c', 'import mmseg_ignite']
    done = subprocess.run(run, capture_output=True, text=True, env={**os.environ, 'PYTHONPATH': paths})
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode and last.startswith('ImportError: mmseg_ignite cannot start') and 'pip uninstall' in last
    doctor = [sys.executable, '-c', 'import mmseg_ignite_command; mmseg_ignite_command.main()', 'doctor']
    done = subprocess.run(doctor, capture_output=True, text=True, env={**os.environ, 'PYTHONPATH': paths})
    assert done.returncode == 1 and 'FAIL  stack' in done.stdout and 'Traceback' not in done.stderr


def test_torchvision_of_another_torch_counts_as_absent(tmp_path):
    """mmseg and mmengine are prepared for absent packages only: a torchvision of another torch raises a RuntimeError."""
    for name, text in (
        ('torchvision', "raise RuntimeError('operator torchvision::nms does not exist')"),
        ('timm', 'import torchvision'),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / '__init__.py').write_text(text)
    code = """
import mmseg_ignite
from mmengine.runner import Runner
from mmengine.utils.dl_utils import collect_env
from mmseg_ignite.engine.runner import TissueRunner
from mmseg_ignite.environment import torchvision_fault
from mmseg_ignite.extras import import_extra
print(torchvision_fault())
Runner._log_env = lambda self, env_cfg: print('PyTorch' in collect_env())  # a training and a test log the versions
TissueRunner.__new__(TissueRunner)._log_env({})
try:
    import_extra('timm', 'the encoder', 'timm')
except mmseg_ignite.IgniteError as error:
    print(error)
"""
    paths = os.pathsep.join([str(tmp_path), str(ROOT)])
    found = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, env={**os.environ, 'PYTHONPATH': paths}
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.count('does not fit torch') == 2, found.stdout  # the fault, and the error of timm
    assert 'True' in found.stdout
    doctor = f'import runpy; print(runpy.run_path({str(ROOT / "mmseg_ignite/doctor.py")!r})["check_imports"]())'
    found = subprocess.run(
        [sys.executable, '-c', doctor], capture_output=True, text=True, env={**os.environ, 'PYTHONPATH': paths}
    )
    assert "('PASS'" in found.stdout and not found.stderr, found.stdout + found.stderr
