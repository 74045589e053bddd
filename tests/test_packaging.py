import os
import re
import runpy
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import ROOT

command = SimpleNamespace(**runpy.run_path(str(ROOT / 'mmseg_ignite_command.py')))


def test_wheel_contains_configs_and_tools(tmp_path):
    """Build from a copy, so that the checkout stays clean."""
    source = tmp_path / 'source'
    tracked = subprocess.run(['git', 'ls-files'], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip('not a git checkout, so the files of the package are unknown')
    for name in tracked.stdout.splitlines():
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '--no-build-isolation', '-w', tmp_path, source]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob('*.whl')
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder, ending in (('configs', '.py'), ('tools', '.py'), ('tools', '.sh')):
        for path in (ROOT / folder).rglob(f'*{ending}'):
            assert f'mmseg_ignite/.mim/{path.relative_to(ROOT)}' in names
    assert 'mmseg_ignite/datasets/ignite.py' in names
    data = [
        name
        for name in tracked.stdout.splitlines()
        if re.fullmatch(r'mmseg_ignite/(report|serving|visualization)/.*', name)
    ]
    kinds = {'.py', '.j2', '.css', '.js', '.yml', '.md', '.txt'}
    assert {Path(name).suffix for name in data} == kinds and set(data) <= names
    assert not [n for n in names if n.startswith(('tests', 'configs', 'tools'))]
    zipfile.ZipFile(wheel).extractall(tmp_path / 'installed')
    (points,) = (tmp_path / 'installed').glob('*.dist-info/entry_points.txt')
    assert 'mmseg-ignite = mmseg_ignite_command:main' in points.read_text()
    check_installed(tmp_path / 'installed', tmp_path)


INSTALLED = """
import sys
import mmseg_ignite, mmseg_ignite_command
from mmengine.config import Config
from mmengine.hub import get_config
from mmseg_ignite.apis import load_config
from mmseg_ignite.errors import IgniteError
name = 'segformer/segformer_mit-b0_1xb8-demo_ignite-256x256.py'
inside = mmseg_ignite.__file__.replace('__init__.py', '.mim/configs/')
open('child.py', 'w').write(f"_base_ = ['mmseg_ignite::{name}']\\n")
for cfg in (Config.fromfile('child.py'), get_config(f'mmseg_ignite::{name}'), Config.fromfile(inside + name)):
    assert cfg.model.type == 'TissueSegmentor'
assert load_config(name.split('/')[1]).filename == load_config(f'mmseg_ignite::{name}').filename == inside + name
try:
    load_config('configs/' + name)
except IgniteError as error:
    print(error)
for command in ([], ['train', '--help']):
    sys.argv = ['mmseg-ignite', *command]
    mmseg_ignite_command.main()
"""


def check_installed(folder, where):
    """Without the checkout, check configs by name, the command, and that a wrong path is not a packaged config."""
    run = [sys.executable, '-c', INSTALLED]
    environment = {**os.environ, 'PYTHONPATH': str(folder)}
    done = subprocess.run(run, capture_output=True, text=True, env=environment, cwd=where)
    assert done.returncode == 0, done.stderr
    assert str(folder) in done.stdout and f'config: {ROOT}' not in done.stdout
    assert 'did you mean mmseg_ignite::segformer/' in done.stdout
    assert 'usage: mmseg-ignite train ' in done.stdout and 'cross-validate ' in done.stdout


def test_every_tool_is_a_command_with_help(capsys, monkeypatch):
    """In a checkout, configs and tools are links."""
    found = command.tools()
    assert {path.stem for path in found.values()} == {path.stem for path in (ROOT / 'tools').glob('*.py')}
    assert {'train', 'test', 'predict', 'prepare', 'evaluate', 'compare', 'cross-validate', 'browse', 'doctor'} <= set(
        found
    )
    for name in found:
        monkeypatch.setattr(sys, 'argv', ['mmseg-ignite', name, '--help'])
        with pytest.raises(SystemExit) as end:
            command.main()
        assert end.value.code == 0 and f'usage: mmseg-ignite {name} ' in capsys.readouterr().out
    monkeypatch.setattr(sys, 'argv', ['mmseg-ignite', 'pedict'])
    with pytest.raises(SystemExit, match='did you mean predict'):
        command.main()
