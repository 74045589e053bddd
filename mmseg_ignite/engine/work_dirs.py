"""The work dir of a run: its files, and the checkpoint to resume from. A work dir can be moved, copied and renamed."""

import contextlib
import os
import re
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

from ..errors import IgniteError
from ..files import check_outputs, check_writable, is_ours, writing
from .checkpoints.opening import DamagedCheckpoint, open_checkpoint
from .checkpoints.remote import local_file
from .distributed import is_main_process

POINTER = 'last_checkpoint'
ABORTED, REPLACED = 'aborted', '.replaced'
"""Folders for logs of runs that ended before their first checkpoint, and for a run while it is replaced."""
CURVES = 'curves.png'
_CHECKPOINT = re.compile(r'(?:best_.+_)?(?:iter|epoch)_(\d+)\.pth')
_RESUMABLE = re.compile(r'(?:iter|epoch)_(\d+)\.pth')
_RESULTS = (
    'confusion.npz', 'per_roi.csv', 'metrics.txt', 'metrics.json', 'report.html', 'figures', 'tables', 'predictions',
)  # fmt: skip
"""Results of a test in the same folder."""
_LOGS = re.compile(r'\d{8}_\d{6}')


def checkpoints(work_dir: str | Path) -> list[Path]:
    """Return the checkpoints that a training can be resumed from, the latest first."""
    found = [
        (int(number[1]), path)
        for path in Path(work_dir).glob('*.pth')
        if path.is_file() and not path.is_symlink() and (number := _RESUMABLE.fullmatch(path.name))
    ]
    return [path for _, path in sorted(found, reverse=True)]


def latest_checkpoint(work_dir: str | Path) -> Path | None:
    """Return the latest checkpoint by the number in its name, else the one named by ``last_checkpoint``; None without any.

    mmengine writes an absolute path into ``last_checkpoint``. Only the file name is used, so that a moved or copied folder is
    complete, and only for names without a number: a run may have been killed before it wrote the file.
    """
    if found := checkpoints(work_dir):
        return found[0]
    pointer = Path(work_dir) / POINTER
    if not pointer.is_file():  # a pipe would never end
        return None
    try:
        with open(pointer, 'rb') as stream:
            name = Path(stream.read(5000).decode('utf-8').strip()).name
        path = Path(work_dir) / name
        return path if name.endswith('.pth') and path.is_file() and not path.is_symlink() else None
    except (OSError, ValueError):
        return None


def resumable_checkpoint(work_dir: str | Path) -> Path | None:
    """Return the latest checkpoint that is whole; rename damaged ones to ``NAME.damaged`` and say so.

    Raises:
        IgniteError: there are checkpoints, and all are damaged.
    """
    damaged: list[Path] = []
    reason = ''
    while path := next((p for p in [*checkpoints(work_dir), latest_checkpoint(work_dir)] if p not in damaged), None):
        try:
            open_checkpoint(path)
            return path
        except IgniteError as error:
            damaged.append(path)
            if not path.exists():  # the main process of a distributed run has renamed it
                continue
            if not isinstance(error, DamagedCheckpoint):
                raise
            reason = reason or str(error).rstrip('.')
            if is_main_process():
                with writing(path), contextlib.suppress(FileNotFoundError):
                    path.replace(path.with_name(f'{path.name}.damaged'))
                warnings.warn(f'{str(error).rstrip(".")}. It is kept as {path.name}.damaged.')
    if damaged:
        raise IgniteError(
            f'{work_dir} has no checkpoint that can be resumed from, although {len(damaged)} were found: {reason}. Start '
            'again with --overwrite.'
        )
    return None


def find_checkpoint(checkpoint: str | Path) -> Path:
    """Return a checkpoint file, or the latest checkpoint of a work dir.

    Raises:
        IgniteError: there is no such file, or no checkpoint in the work dir.
    """
    path = local_file(checkpoint)
    if os.path.isdir(path):  # unlike Path.is_dir, also for a name that is too long
        latest = latest_checkpoint(path)
        if latest is None:
            raise IgniteError(f'{path} contains no checkpoint (iter_*.pth); the work dir of a training was expected.')
        return latest
    if not os.path.isfile(path):
        raise IgniteError(f'{path} is not a file; a checkpoint (.pth, .safetensors) was expected: check the path.')
    return path


@contextlib.contextmanager
def fresh_start(work_dir: str | Path, overwrite: bool = False) -> Iterator[None]:
    """Clear a work dir for a new training that is built inside the context, so that files of two runs never mix.

    Logs of runs that ended before their first checkpoint move to ``aborted``. With ``overwrite`` the earlier training is
    moved aside, deleted on success, and restored if an exception ends the context.

    Args:
        overwrite: replace the earlier run: its checkpoints, logs, curves, scores and predictions. Other files stay.

    Raises:
        IgniteError: the folder contains an earlier training and ``overwrite`` is False, or a foreign file with a name that a
            training writes, or cannot be written.
    """
    folder = Path(work_dir)
    check_writable(folder)
    used = [path for path in sorted(folder.glob('*.pth')) if path.is_file() and _CHECKPOINT.fullmatch(path.name)]
    if used and not overwrite:
        raise IgniteError(
            f'{folder} contains an earlier training ({used[0].name}): continue it with --resume, replace it with '
            '--overwrite, or choose another --work-dir.'
        )
    if not used:
        _check_foreign(folder)
    logs = [path for path in folder.iterdir() if _LOGS.fullmatch(path.name) and (path / 'vis_data').is_dir()]
    if not overwrite:
        _move(logs, folder, folder / ABORTED)
        yield
        return
    aside = folder / REPLACED
    if aside.exists():
        raise IgniteError(
            f'{aside} was left by a run that was killed while replacing another: move its files back, or delete it.'
        )
    progress = folder.glob('progress/*/iter_*.jpg')
    training = [folder / POINTER, folder / CURVES, *folder.glob('nonfinite_batch_*'), *folder.glob('*.pth.damaged')]
    training = [path for path in training if path.is_file()]
    moved = [*used, *logs, *training, *progress, *_own_results(folder)]
    try:
        _move(moved, folder, aside)
        yield
    except BaseException:
        _move([path for path in aside.rglob('*') if not path.is_dir()], aside, folder)
        shutil.rmtree(aside, ignore_errors=True)
        raise
    shutil.rmtree(aside, ignore_errors=True)
    emptied = {parent for path in moved for parent in path.parents if folder in parent.parents}
    for parent in sorted(emptied, key=lambda parent: -len(parent.parts)):
        with contextlib.suppress(OSError):  # a folder with other files stays
            parent.rmdir()


def replaced_files(work_dir: str | Path) -> list[Path]:
    """Return the checkpoints that ``overwrite`` replaces."""
    return [path for path in Path(work_dir).glob('*.pth') if _CHECKPOINT.fullmatch(path.name)]


def _check_foreign(folder: Path) -> None:
    """Raise IgniteError if a folder without a training contains a file that a training would replace."""
    pointer = folder / POINTER
    if pointer.exists() and not (pointer.is_file() and _names_a_checkpoint(pointer)):
        raise IgniteError(
            f'{pointer} is not a pointer to a checkpoint and would be replaced: choose another --work-dir.'
        )
    check_outputs([folder / CURVES])


def _names_a_checkpoint(pointer: Path) -> bool:
    with contextlib.suppress(OSError, ValueError):
        text = pointer.read_text(encoding='utf-8')
        return len(text) < 5000 and _RESUMABLE.fullmatch(Path(text.strip()).name) is not None
    return False


def _own_results(folder: Path) -> list[Path]:
    """Return the results of a test in a folder that this package wrote."""
    files = []
    for path in (folder / name for name in _RESULTS):
        files += [path] if path.is_file() else path.rglob('*') if path.is_dir() and not path.is_symlink() else []
    return [path for path in files if path.is_file() and is_ours(path)]


def _move(paths: list[Path], source: Path, target: Path) -> None:
    """Move files and folders from one folder to another, keeping their relative paths and replacing what exists."""
    for path in paths:
        moved = target / path.relative_to(source)
        moved.parent.mkdir(parents=True, exist_ok=True)
        if moved.is_dir():
            shutil.rmtree(moved)
        path.replace(moved)
