"""Texts that leave the machine: paths in commands and configs say where data lie and who the user is, so they are masked."""

import re
import shlex
from collections.abc import Mapping
from pathlib import PurePosixPath, PureWindowsPath

from mmengine.config import Config

from ..datasets.ignite import DATA_ROOT

MASK = '...'
_START = r'(?:[A-Za-z][A-Za-z0-9+.\-]+://|[A-Za-z]:[\\/]|\\\\|~|/|\.\.[\\/])'
_WHOLE = re.compile(rf'{_START}.*', re.DOTALL)
_QUOTED = re.compile(rf"""(["']){_START}.*?\1""", re.DOTALL)
_INSIDE = re.compile(rf"""(?<![\w.\-/\\~]){_START}[^\s"',\[\](){{}}]*""")
_DATA = re.compile(r'(?:.*\.)?(?:data_root|release|data)')
"""Settings whose value is masked whatever it is."""
_DROPPED = ('init_cfg', 'pretrained', 'work_dir', 'load_from', 'resume_from', 'filename', 'launcher')
"""Settings that name files of the machine; their defaults need none."""


def is_machine_path(text: str) -> bool:
    """Return whether a text is an absolute path of any system, one above the current folder or in a home, or an address."""
    return _WHOLE.fullmatch(text) is not None


def masked_command(command: str) -> str | None:
    """Return a command with ``...`` for machine paths, addresses and data sets; None if it is not a shell command.

    Example:
        >>> masked_command('/home/me/tools/test.py configs/b0.py /home/me/b0.pth --cfg-options data_root=ignite')
        'test.py configs/b0.py ... --cfg-options data_root=...'
    """
    try:
        words = shlex.split(command)
    except ValueError:
        return None
    if not words:
        return None
    tool, *rest = words
    kept, hidden = [PurePosixPath(PureWindowsPath(tool).as_posix()).name], False
    for word in rest:
        kept.append(MASK if hidden else _masked_word(word))
        hidden = word.startswith('--') and '=' not in word and _DATA.fullmatch(word[2:]) is not None
    return ' '.join(kept)


def _masked_word(word: str) -> str:
    if is_machine_path(word):
        return MASK
    key, equals, value = word.partition('=')
    if equals and (_DATA.fullmatch(key.lstrip('-')) or is_machine_path(value)):
        return f'{key}={MASK}'
    return _INSIDE.sub(MASK, _QUOTED.sub(rf'\1{MASK}\1', word))


def masked_settings(value: object, defaults: Mapping[str, object]) -> object:
    """Return a copy of the settings of a config without machine paths.

    Args:
        value: containers and plain values.
        defaults: settings that take these values wherever they stand, e.g. {'data_root': 'data/ignite'}.
    """
    if isinstance(value, Mapping):
        return {
            key: defaults[key] if key in defaults else masked_settings(inner, defaults) for key, inner in value.items()
        }
    if isinstance(value, (list, tuple)):
        return type(value)(masked_settings(inner, defaults) for inner in value)
    return MASK if isinstance(value, str) and is_machine_path(value) else value


def portable_config(cfg: Config, name: str) -> str:
    """Return a config as Python text without initial weights and paths of the machine; ``data_root`` is the default.

    Args:
        name: name of the model, stored as ``experiment_name``, since the file is called config.py.
    """
    settings = masked_settings(_without(cfg.to_dict(), _DROPPED), {'data_root': DATA_ROOT})
    return Config({**settings, 'experiment_name': name}).pretty_text


def _without(value: object, keys: tuple[str, ...]) -> object:
    """Return a copy of nested containers without some keys of its dictionaries."""
    if isinstance(value, Mapping):
        return {key: _without(inner, keys) for key, inner in value.items() if key not in keys}
    return type(value)(_without(inner, keys) for inner in value) if isinstance(value, (list, tuple)) else value
