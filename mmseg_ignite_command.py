"""The command ``mmseg-ignite``: ``mmseg-ignite train CONFIG --amp`` is ``python tools/train.py CONFIG --amp``.

A module of its own, since ``mmseg-ignite doctor`` must run where mmseg_ignite cannot be imported.
"""

import ast
import difflib
import sys
from importlib.util import find_spec
from pathlib import Path

SHORT = {'prepare-ignite': 'prepare', 'browse-dataset': 'browse'}
"""Names of commands that are shorter than those of their tools."""


def tools() -> 'dict[str, Path]':
    """The tool of each command: those packaged with mmseg_ignite, which is not imported."""
    folder = Path(find_spec('mmseg_ignite').origin).parent / '.mim' / 'tools'
    named = ((path.stem.replace('_', '-'), path) for path in sorted(folder.glob('*.py')))
    return {SHORT.get(name, name): path for name, path in named}


def usage(found: 'dict[str, Path]') -> str:
    """What the commands are for, by the first lines of their tools."""
    width = max(map(len, found))
    first = {
        name: ast.get_docstring(ast.parse(path.read_text('utf-8'))).splitlines()[0] for name, path in found.items()
    }
    lines = [f'  {name:<{width}}  {line}' for name, line in first.items()]
    notes = [
        'mmseg-ignite COMMAND --help lists its arguments.',
        "MMSEG_IGNITE_VERBOSE=1 shows the whole of mmengine's log on the console.",
    ]
    return '\n'.join(['usage: mmseg-ignite COMMAND ...', '', *lines, '', *notes])


def main() -> None:
    """Run the tool that the first argument names."""
    found = tools()
    name = sys.argv[1] if len(sys.argv) > 1 else '--help'
    if name in ('-h', '--help'):
        print(usage(found))
        return
    if name not in found:
        close = difflib.get_close_matches(name, found, 1)
        hint = f'did you mean {close[0]}?' if close else f'it has {", ".join(found)}.'
        sys.exit(f'error: mmseg-ignite has no command {name}: {hint}')
    sys.argv = [f'mmseg-ignite {name}', *sys.argv[2:]]
    path = found[name]
    # As runpy.run_path, which would put the file's name into the help in place of the command's.
    exec(compile(path.read_bytes(), str(path), 'exec'), {'__name__': '__main__', '__file__': str(path)})
