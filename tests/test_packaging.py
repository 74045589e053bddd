import subprocess
import sys
import zipfile

import pytest
from conftest import ROOT


def test_wheel_holds_configs_and_tools(tmp_path):
    """Built from a copy, so that the checkout stays clean."""
    source = tmp_path / 'source'
    tracked = subprocess.run(['git', 'ls-files'], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip('not a git checkout: the files that belong to the package are not known')
    for name in tracked.stdout.splitlines():
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '--no-build-isolation', '-w', tmp_path, source]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob('*.whl')
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in ('configs', 'tools'):
        for path in (ROOT / folder).rglob('*.py'):
            assert f'mmseg_ignite/.mim/{path.relative_to(ROOT)}' in names
    assert 'mmseg_ignite/datasets/ignite.py' in names
    for path in (ROOT / 'mmseg_ignite' / 'evaluation' / 'report').glob('*/*.*'):
        if path.suffix != '.pyc':
            assert str(path.relative_to(ROOT)) in names
    assert not [n for n in names if n.startswith(('tests', 'configs', 'tools'))]
