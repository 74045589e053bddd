"""The inputs of a prediction: images, whole slides and arrays on disk, and the names of their results."""

import glob
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import IgniteError
from ..files import check_outputs, is_ours, printable, visible_files
from ..images.reading import SUFFIXES
from ..slides.reader import SLIDE_SUFFIXES, dicom_slides, is_slide
from .prediction_options import PredictionOptions

RUN = 'run.json'
TABLES = ('areas.csv', 'ratios.csv')
PAGE = 'slides.html'
CLASSES_FILE = 'classes.json'
RECORDS = 'records'
TILES_LIST = 'tiles.json'
_FOLDER_SUFFIXES = tuple(dict.fromkeys((*SUFFIXES, *SLIDE_SUFFIXES)))
_LONGEST_NAME = 200
"""Bytes of a name, so that those of its results, with what is added while they are written, are below 255."""


@dataclass(frozen=True)
class Input:
    """A file to predict.

    Attributes:
        path: the file.
        kind: 'image', 'slide' or 'array' (an ``.npy`` file).
    """

    path: Path
    kind: str

    @property
    def name(self) -> str:
        """The first part of the names of its results: the file name without suffix."""
        return re.sub(r'\.ome$', '', self.path.stem, flags=re.IGNORECASE)

    def files(self, options: PredictionOptions, ensemble: bool = False) -> list[str]:
        """Return the names of the files and folders that are written for it, sorted."""
        pyramid = 'tiff' in options.formats or ('label' in options.formats and self.kind == 'slide')
        found = {f'{self.name}.ome.tif'} if pyramid else set()
        if 'label' in options.formats:
            found.add(f'{self.name}_preview.png' if self.kind == 'slide' else f'{self.name}.png')
        overlay = '_overlay.jpg' if self.kind == 'slide' else '_overlay.png'  # JPEG for the size of a slide's
        endings = dict(overlay=overlay, geojson='.geojson', page='_tiles')
        found |= {self.name + ending for name, ending in endings.items() if name in options.formats}
        maps = [name for name in ('probability', 'entropy') if name in options.formats]
        found |= {f'{self.name}_{name}.ome.tif' for name in maps + ['disagreement'] * ensemble}
        return sorted(found)


def find_inputs(paths: Iterable[str | os.PathLike]) -> list[Input]:
    """Return the inputs that files, folders and patterns such as ``slides/*.svs`` name, each once, in order.

    A folder gives its visible images and slides; DICOM files of one series are one slide. Results of this package are left
    out of folders and patterns, so that results beside their inputs do not become inputs.

    Raises:
        IgniteError: a path does not exist, or a folder or a pattern gives nothing.
    """
    found: dict[tuple[str, str], Input] = {}
    for path in map(Path, paths):
        for file in _expand(path):
            kind = 'array' if file.suffix.lower() == '.npy' else 'slide' if is_slide(file) else 'image'
            found.setdefault((os.path.realpath(file), file.name), Input(file, kind))
    return list(found.values())


def _expand(path: Path) -> Sequence[Path]:
    if path.is_dir():
        inside = [file for file in visible_files(path, _FOLDER_SUFFIXES) if file.suffix.lower() != '.dcm']
        inside += dicom_slides(path) if visible_files(path, ('.dcm',)) else []
        if not (inside := [file for file in inside if not is_ours(file)]):
            expected = ', '.join(_FOLDER_SUFFIXES)
            raise IgniteError(f'{printable(path)} contains no image or slide ({expected}): check the folder.')
        return sorted(inside)
    if os.path.lexists(path):
        return [path]
    if glob.has_magic(os.fspath(path)):
        matches = [
            match for match in sorted(map(Path, glob.glob(os.fspath(path), recursive=True))) if not _is_result(match)
        ]
        if matches:
            return [file for match in matches for file in (_expand(match) if match.is_dir() else [match])]
        raise IgniteError(f'{printable(path)} matches no file: check the pattern.')
    raise IgniteError(f'{printable(path)} does not exist; an image, a slide or a folder was expected: check the path.')


def _is_result(path: Path) -> bool:
    """Return whether a path is a result of this package, or in a folder of its tiles or records."""
    if path.name in (CLASSES_FILE, RECORDS) and is_ours(path.parent / RUN):
        return True
    return is_ours(path) or any(is_ours(folder / TILES_LIST) for folder in (path, *path.parents[:3]))


def check_results(
    inputs: Sequence[Input],
    out: Path,
    options: PredictionOptions,
    read: Iterable[str | os.PathLike] = (),
    ensemble: bool = False,
) -> dict[Input, str]:
    """Check the files to be written before any work.

    Args:
        inputs: what is predicted.
        out: output folder.
        options: what is written.
        read: further files that are read, e.g. config and checkpoints.
        ensemble: whether several networks predict.

    Returns:
        {input: why it cannot be predicted}, for inputs that would write a file of an earlier one, and impossible names.

    Raises:
        IgniteError: a file may not be written, see :func:`mmseg_ignite.files.check_outputs`.
    """
    faults, taken = {}, {}
    for item in inputs:
        # The name too: two inputs of one name would share their record.
        written = [f'{item.name}/', *item.files(options, ensemble)]
        clash = next((name for name in written if name in taken), None)
        if fault := _name_fault(item):
            faults[item] = fault
        elif clash is None:
            taken.update(dict.fromkeys(written, item))
        else:
            faults[item] = (
                f'{printable(item.path)} and {printable(taken[clash].path)} would both write '
                f'{printable(clash.rstrip("/"))}: predict them into two folders.'
            )
    tables = [RUN, *(TABLES if 'areas' in options.formats else ()), *([PAGE] if 'page' in options.formats else [])]
    files = [name for name in (*taken, *tables) if not name.endswith(('/', '_tiles'))]
    inside = [out / RECORDS / f'{item.name}.json' for item in dict.fromkeys(taken.values())]
    check_outputs([out / name for name in files] + inside, [*(item.path for item in inputs), *read])
    for name in taken:
        if name.endswith('_tiles'):
            _check_tiles(out / name)
    return faults


def _name_fault(item: Input) -> str | None:
    """Return why the results of an input cannot have its name, or None."""
    if item.path.name.startswith('.'):
        return f'{printable(item.path)} has a name that starts with a dot, so its results would be hidden: rename it.'
    if (size := len(os.fsencode(item.name))) > _LONGEST_NAME:
        return (
            f'{printable(item.path)} has a name of {size} bytes without its suffix; at most {_LONGEST_NAME} were expected, '
            'as its results have longer names: shorten it.'
        )
    return None


def _check_tiles(folder: Path) -> None:
    """Raise IgniteError if a folder of tiles cannot be replaced, because it is something else."""
    if os.path.lexists(folder) and not is_ours(folder / TILES_LIST):
        if folder.is_symlink() or not folder.is_dir() or any(folder.iterdir()):
            raise IgniteError(
                f'{printable(folder)} exists and is kept (mmseg_ignite did not write it or it was changed since): choose '
                'another output folder, or move it away.'
            )
