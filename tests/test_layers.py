"""The package has layers: a module imports only its own layer and lower ones."""

import ast
from pathlib import Path

import mmseg_ignite

ROOT = Path(mmseg_ignite.__file__).parent
LAYERS = (
    'errors', 'version', 'labels', 'environment', 'extras', 'packaged', 'messages', 'registry', 'files',
    'untrusted', 'spreadsheets', 'provenance', 'images', 'slides', 'datasets', 'preparation', 'inference', 'regions',
    'models', 'evaluation', 'visualization', 'report', 'engine', 'export', 'apis', 'serving', 'cli',
)  # fmt: skip
"""From bottom to top."""


def _imports(path: Path) -> set[str]:
    """Return the layers that a module imports anywhere in its code."""
    package = path.relative_to(ROOT).parts[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        base = package[: len(package) - node.level + 1]
        names = [*base, *(node.module or '').split('.')] if node.module else base
        found |= {names[0]} if names else {alias.name for alias in node.names}
    return found


def test_no_module_imports_a_higher_layer():
    wrong = []
    for path in sorted(ROOT.rglob('*.py')):
        own = path.relative_to(ROOT).with_suffix('').parts[0]
        if own in LAYERS:
            wrong += [
                f'{path.relative_to(ROOT)} imports {layer}'
                for layer in sorted(_imports(path) & set(LAYERS))
                if LAYERS.index(layer) > LAYERS.index(own)
            ]
    assert wrong == []


def test_every_module_has_a_layer_and_uses_relative_imports():
    entries = {path.name.removesuffix('.py') for path in ROOT.iterdir() if path.suffix == '.py' or path.is_dir()}
    assert entries - {'__init__', '__pycache__', '.mim', 'utils', 'doctor'} == set(LAYERS)
    absolute = [path.name for path in ROOT.rglob('*.py') if 'import mmseg_ignite' in path.read_text(encoding='utf-8')]
    assert set(absolute) <= {'doctor.py'}
