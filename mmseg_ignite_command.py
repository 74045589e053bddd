"""The command ``mmseg-ignite``: ``mmseg-ignite train CONFIG --amp`` runs ``python tools/train.py CONFIG --amp``.

A separate module, since ``mmseg-ignite doctor`` must run where mmseg_ignite cannot be imported.
"""

from __future__ import annotations  # the doctor runs on older Python versions too

import ast
import difflib
import sys
from importlib.util import find_spec
from pathlib import Path

SHORT = {'prepare-ignite': 'prepare', 'browse-dataset': 'browse'}
"""Command names that are shorter than the names of their tools."""


def tools() -> dict[str, Path]:
    """Return the packaged tool of each command, without importing mmseg_ignite."""
    folder = Path(find_spec('mmseg_ignite').origin).parent / '.mim' / 'tools'
    names = ((path.stem.replace('_', '-'), path) for path in sorted(folder.glob('*.py')))
    return {SHORT.get(name, name): path for name, path in names}


def usage(found: dict[str, Path]) -> str:
    """Return the help text: each command with the first line of its tool's docstring."""
    width = max(map(len, found))
    lines = ['usage: mmseg-ignite COMMAND ...', '']
    for name, path in found.items():
        summary = ast.get_docstring(ast.parse(path.read_text('utf-8'))).splitlines()[0]
        lines.append(f'  {name:<{width}}  {summary}')
    lines += ['', 'mmseg-ignite COMMAND --help lists the arguments of a command.']
    return '\n'.join([*lines, "MMSEG_IGNITE_VERBOSE=1 shows mmengine's whole log on the console."])


def main() -> None:
    """Run the tool that the first argument names."""
    found = tools()
    name = sys.argv[1] if len(sys.argv) > 1 else '--help'
    if name in ('-h', '--help'):
        print(usage(found))
        return
    if name not in found:
        close = difflib.get_close_matches(name, found, 1)
        hint = f'did you mean {close[0]}?' if close else f'choose one of {", ".join(found)}.'
        sys.exit(f'error: mmseg-ignite has no command {name}: {hint}')
    sys.argv = [f'mmseg-ignite {name}', *sys.argv[2:]]
    path = found[name]
    # Not runpy.run_path, which would show the file name in the help instead of the command.
    exec(compile(path.read_bytes(), str(path), 'exec'), {'__name__': '__main__', '__file__': str(path)})
