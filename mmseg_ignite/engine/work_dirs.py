"""The folder of a run: what it holds, and where a run is resumed from. A work dir can be moved, copied and renamed."""

import contextlib
import re
import shutil
from pathlib import Path

from ..errors import IgniteError
from ..files import check_writable, is_ours

POINTER = 'last_checkpoint'
ABORTED = 'aborted'
"""Folder for the logs of runs that ended before their first checkpoint."""
_CHECKPOINTS = ('iter_*.pth', 'epoch_*.pth', 'best_*.pth')
_TRAINING = (POINTER, 'curves.png', 'progress', ABORTED)
_RESULTS = (
    'confusion.npz', 'per_roi.csv', 'metrics.txt', 'metrics.json', 'report.html', 'figures', 'tables', 'predictions',
)  # fmt: skip
"""Of a test in the same folder."""
_LOGS = re.compile(r'\d{8}_\d{6}')


def checkpoints(work_dir: 'str | Path') -> 'list[Path]':
    """The checkpoints that a training can be resumed from, the newest first."""
    found = [
        (int(number[1]), path)
        for path in Path(work_dir).glob('*.pth')
        if path.is_file() and (number := re.fullmatch(r'(?:iter|epoch)_(\d+)\.pth', path.name))
    ]
    return [path for _, path in sorted(found, reverse=True)]


def latest_checkpoint(work_dir: 'str | Path') -> 'Path | None':
    """The checkpoint that ``last_checkpoint`` names, in this folder, else the newest; None if there is none.

    mmengine writes the path at the time of the training. Only its last part counts here, so that a folder that was moved or
    copied is complete in itself.
    """
    pointer = Path(work_dir) / POINTER
    try:
        name = Path(pointer.read_text(encoding='utf-8').strip()).name
    except (OSError, ValueError):
        name = ''
    if name and (path := Path(work_dir) / name).is_file():
        return path
    return next(iter(checkpoints(work_dir)), None)


def find_checkpoint(checkpoint: 'str | Path') -> Path:
    """A checkpoint file as it is; of a work dir, its latest checkpoint.

    Raises:
        IgniteError: there is none.
    """
    path = Path(checkpoint)
    if path.is_dir():
        latest = latest_checkpoint(path)
        if latest is None:
            raise IgniteError(f'{path} holds no checkpoint (iter_*.pth); the work dir of a training was expected.')
        return latest
    if not path.is_file():
        raise IgniteError(f'{path} is not a file; a checkpoint (.pth) was expected: check the path.')
    return path


def start_afresh(work_dir: 'str | Path', overwrite: bool = False) -> None:
    """Make a work dir ready for a new training, so that files of two runs never mix.

    Logs of runs that ended before their first checkpoint move to ``aborted``.

    Args:
        overwrite: delete the earlier run: checkpoints, logs, curves, scores and predictions. Other files stay.

    Raises:
        IgniteError: the folder holds an earlier training and ``overwrite`` is False, or it cannot be written.
    """
    folder = Path(work_dir)
    check_writable(folder)
    used = sorted(path for pattern in _CHECKPOINTS for path in folder.glob(pattern))
    if used and not overwrite:
        raise IgniteError(
            f'{folder} holds an earlier training ({used[0].name}): continue it with --resume, replace it with --overwrite, '
            'or choose another --work-dir.'
        )
    logs = [path for path in folder.iterdir() if path.is_dir() and _LOGS.fullmatch(path.name)]
    if overwrite:
        _delete([*used, *logs, *(folder / name for name in _TRAINING), *_own_results(folder)])
        return
    for path in logs:
        target = folder / ABORTED / path.name
        if not target.exists():
            target.parent.mkdir(exist_ok=True)
            path.rename(target)


def _own_results(folder: Path) -> 'list[Path]':
    """The results of a test in a folder, without files that we did not write."""
    files = []
    for path in (folder / name for name in _RESULTS):
        files += [path] if path.is_file() else path.rglob('*') if path.is_dir() and not path.is_symlink() else []
    return [path for path in files if path.is_file() and is_ours(path)]


def _delete(paths: 'list[Path]') -> None:
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # a folder that still holds other files stays
                path.parent.rmdir()
