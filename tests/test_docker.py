"""What can be checked of the Dockerfile without Docker: what it copies, installs and starts exists."""

import json
import re
import runpy
import sys
from types import SimpleNamespace

import pytest
from conftest import ROOT

TEXT = (ROOT / 'Dockerfile').read_text(encoding='utf-8')
LINES = [line for line in re.sub(r'\\\n', ' ', TEXT).splitlines() if line.strip() and not line.lstrip().startswith('#')]


def instructions(name):
    return [line.split(maxsplit=1)[1] for line in LINES if line.split()[0] == name]


def settings():
    """Return the arguments of setup()."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('setuptools.setup', lambda **arguments: found.update(arguments))
        runpy.run_path(str(ROOT / 'setup.py'))
    return found


def test_copied_files_exist_and_are_not_ignored():
    kept = [line[1:] for line in (ROOT / '.dockerignore').read_text().splitlines() if line.startswith('!')]
    copied = [source for line in instructions('COPY') for source in line.split()[:-1]]
    assert {'constraints.txt', 'setup.py', 'mmseg_ignite', 'configs', 'tools'} <= set(copied)
    assert set(copied) == set(kept) and all((ROOT / name).exists() for name in copied)
    read = set(re.findall(r"HERE / '([\w.-]+)'", (ROOT / 'setup.py').read_text()))
    assert read <= set(copied)


def test_installed_extras_and_pinned_packages_exist():
    (install,) = (line for line in instructions('RUN') if "'.[" in line)
    extras = re.search(r"'\.\[([\w,]+)\]'", install)[1].split(',')
    assert {'slides', 'export', 'app'} <= set(extras) <= set(settings()['extras_require'])
    constraints = (ROOT / 'constraints.txt').read_text()
    assert re.search(r'^torch==', constraints, re.M) and re.search(r'^opencv-python-headless==', constraints, re.M)
    assert all('-c constraints.txt' in part for part in install.split('&&') if 'pip install' in part)


def test_started_command_exists_and_its_arguments_are_understood(monkeypatch, tmp_path):
    (entry,), (arguments,) = (list(map(json.loads, instructions(name))) for name in ('ENTRYPOINT', 'CMD'))
    scripts = [text.split(' = ') for text in settings()['entry_points']['console_scripts']]
    assert entry == ['mmseg-ignite'] and ['mmseg-ignite', 'mmseg_ignite_command:main'] in scripts
    command = SimpleNamespace(**runpy.run_path(str(ROOT / 'mmseg_ignite_command.py')))
    assert arguments[0] in command.tools() and 'predict' in command.tools()
    started = []
    monkeypatch.setattr('mmseg_ignite.apis.load_config', lambda *given: given)
    monkeypatch.setattr('mmseg_ignite.serving.serve', lambda *given: started.append(given))
    slides = arguments.index('--slides') + 1
    arguments[slides] = str(tmp_path)  # the folder exists in the image alone
    monkeypatch.setattr(sys, 'argv', ['mmseg-ignite', *arguments])
    command.main()
    ((config, checkpoint, options, device, _),) = started
    assert config[0] == '/model/config.py' and checkpoint == '/model' and device == 'cpu'
    assert options.host == '0.0.0.0' and f'EXPOSE {options.port}' in TEXT and f':{options.port}/' in TEXT
    assert '/slides' in instructions('RUN')[-1] and '/model' in instructions('RUN')[-1]


def test_container_has_no_rights_of_root():
    (user,) = instructions('USER')
    assert user.isdigit() and int(user) > 0 and f'--uid {user}' in instructions('RUN')[-1]
    assert LINES.index(f'USER {user}') > max(LINES.index(line) for line in LINES if line.startswith(('RUN', 'COPY')))
    address = re.search(r'-p ([\d.]+):(\d+):(\d+)', TEXT)
    assert address[1] == '127.0.0.1'
