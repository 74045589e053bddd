"""What is installed beside the code: configs, and the tools that the command ``mmseg-ignite`` runs."""

import difflib
from pathlib import Path

from .errors import IgniteError

PACKAGED = Path(__file__).with_name('.mim')
"""Folder of ``configs`` and ``tools``: copies in an installed package, links in a checkout."""
PREFIX = 'mmseg_ignite::'


def packaged_configs() -> list[str]:
    """Names of the packaged configs that are not bases of others, e.g. 'segformer/NAME.py'."""
    root = PACKAGED / 'configs'
    names = sorted(path.relative_to(root).as_posix() for path in root.glob('*/*.py'))
    return [name for name in names if not name.startswith('_base_/')]


def config_path(name: str) -> str:
    """The path of a packaged config.

    For Python, and for ``_base_`` of a config that plain mmengine reads, which knows ``mmseg_ignite::`` only after an
    import: ``_base_ = [__import__('mmseg_ignite').config_path('segformer/NAME.py')]``.

    Args:
        name: e.g. 'segformer/NAME.py', with or without 'mmseg_ignite::' before it, or the file name alone.

    Raises:
        IgniteError: there is no such config; the sentence names the most similar ones.
    """
    wanted = name.removeprefix(PREFIX)
    path = PACKAGED / 'configs' / wanted
    if path.suffix == '.py' and path.is_file():
        return str(path)
    known = packaged_configs()
    found = [one for one in known if Path(one).name == wanted]
    if not found:
        raise IgniteError(f'{name} is not a packaged config{did_you_mean(wanted, known)}')
    return str(PACKAGED / 'configs' / found[0])


def did_you_mean(name: str, candidates: list[str]) -> str:
    """The end of a sentence: the candidates of the most similar file names, or what else to do."""
    by_name = {Path(one).name: one for one in candidates}
    close = difflib.get_close_matches(Path(name).name, by_name, 2, 0.6)
    return f': did you mean {" or ".join(by_name[one] for one in close)}?' if close else ': check the path.'
