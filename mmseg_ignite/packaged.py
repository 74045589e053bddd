"""The configs that are installed with the package."""

import difflib
from pathlib import Path

from .errors import IgniteError

_CONFIGS = Path(__file__).with_name('.mim') / 'configs'
"""A copy in an installed package, a link in a checkout."""
PREFIX = 'mmseg_ignite::'


def packaged_configs() -> list[str]:
    """Return the names of the packaged configs except the bases, e.g. 'segformer/NAME.py'."""
    paths = sorted(path for path in _CONFIGS.glob('*/*.py') if path.parent.name != '_base_')
    return [path.relative_to(_CONFIGS).as_posix() for path in paths]


def config_path(name: str) -> str:
    """Return the path of a packaged config; raise IgniteError with the most similar names if there is none.

    For Python, and for ``_base_`` of a config that plain mmengine reads, which knows ``mmseg_ignite::`` only after an
    import: ``_base_ = [__import__('mmseg_ignite').config_path('segformer/NAME.py')]``. ``name`` may be the file
    name alone, and may have the prefix 'mmseg_ignite::'.

    Example:
        >>> cfg = Config.fromfile(config_path('segformer/segformer_mit-b0_1xb8-20k_ignite-512x512.py'))
    """
    wanted = name.removeprefix(PREFIX)
    path = _CONFIGS / wanted
    if path.suffix == '.py' and path.is_file():
        return str(path)
    known = packaged_configs()
    if same := [config for config in known if Path(config).name == wanted]:
        return str(_CONFIGS / same[0])
    raise IgniteError(f'{name} is not a packaged config{did_you_mean(wanted, known)}')


def did_you_mean(name: str, candidates: list[str]) -> str:
    """Return the end of an error message: the candidates with the most similar file names, or the advice to check."""
    by_name = {Path(candidate).name: candidate for candidate in candidates}
    close = difflib.get_close_matches(Path(name).name, by_name, 2, 0.6)
    return f': did you mean {" or ".join(by_name[match] for match in close)}?' if close else ': check the path.'
