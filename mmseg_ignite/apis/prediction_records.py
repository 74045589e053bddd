"""Records of predicted inputs, by which a run knows what is finished, and the tables made from them."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from ..engine.claims import Claims
from ..errors import IgniteError
from ..files import is_ours, printable, write_result, writing
from ..labels import CLASSES
from ..provenance import provenance
from ..regions.areas import RATIOS, SlideAreas, write_areas
from ..report.slides_page import SlideEntry, write_slides_page
from ..version import __version__
from .prediction_inputs import PAGE, RECORDS, RUN, TABLES, TILES_LIST, Input
from .prediction_options import PredictionOptions

_TABLES_CLAIM = '.tables'
UNFINISHED = 'it was not finished: run again.'


class Records:
    """The records in an output folder, ``records/NAME.json``, each written when all files of the input are in place.

    Args:
        out: output folder.
        settings: what the results depend on, see :meth:`.PredictionOptions.settings`.

    Attributes:
        key: checksum of the settings, 16 hex digits.
    """

    def __init__(self, out: Path, settings: Mapping[str, object]) -> None:
        self.out, self.settings = out, settings
        text = json.dumps(settings, sort_keys=True)
        self.key = hashlib.sha256(text.encode('utf-8', 'surrogateescape')).hexdigest()[:16]
        self.folder = out / RECORDS

    def path(self, name: str) -> Path:
        """Return the file of a record."""
        return self.folder / f'{name}.json'

    def read(self, name: str) -> dict:
        """Return a record; {} if there is none."""
        with contextlib.suppress(OSError, ValueError, RecursionError):
            found = json.loads(self.path(name).read_bytes())
            if isinstance(found, dict) and isinstance(found.get('key'), str):
                return found
        return {}

    def all(self) -> list[dict]:
        """Return all records of this key, sorted by name, without those whose files somebody removed."""
        found = [record for record in map(self.read, self.names()) if record.get('key') == self.key]
        return [record for record in found if 'error' in record or self.is_whole(record)]

    def names(self) -> list[str]:
        """Return the names of all inputs that have a record."""
        return sorted(path.stem for path in self.folder.glob('*.json') if not path.name.startswith('.'))

    def write(self, name: str, entry: Mapping[str, object]) -> None:
        """Write a record; what is known of the files in place is kept from the record before, unless it is given."""
        before = self.read(name)
        entry = dict({key: before[key] for key in ('checksums', 'written') if key in before}, **entry)
        with writing(self.path(name)):
            write_result(self.path(name), dict(key=self.key, settings=self.settings, **entry))

    def is_finished(self, item: Input) -> bool:
        """Return whether all files of an unchanged input are there, whole."""
        record = self.read(item.name)
        unchanged = record.get('key') == self.key and record.get('input') == input_state(item.path)
        return unchanged and self.is_whole(record)

    def is_whole(self, record: Mapping[str, object]) -> bool:
        """Return whether a record is that of a finished input whose files are all in place."""
        sizes = record.get('sizes')
        if 'error' in record or not isinstance(sizes, dict):
            return False
        return all(size is not None and size == _size(self.out / name) for name, size in sizes.items())

    def other_input(self, item: Input) -> str | None:
        """Return the file of which the results with the name of an input are, if it is another file."""
        record = self.read(item.name)
        same = record.get('source') == source(item.path) or record.get('input') == input_state(item.path)
        return record.get('file') if not same and self.is_whole(record) else None

    def keep(self, name: str, known: Mapping[str, object], files: Sequence[str], scratch: Path) -> None:
        """Move the files of an input from a folder to the output folder, and remove those of earlier settings.

        Until the caller writes the final record, the one written here says which files may be ours, should the process be
        killed now.
        """
        before = self.read(name)
        found, former = checksums(scratch, files), before.get('checksums', {})
        both = {file: [*former.get(file, ()), *found.get(file, ())] for file in {*former, *found}}
        stale = [file for file in before.get('written', ()) if file not in files]
        self.write(name, dict(known, error=UNFINISHED, checksums=both, written=[*files, *stale]))
        for file in files:
            target = self.out / file
            if target.is_dir() and not target.is_symlink():
                target.replace(scratch / f'.old.{file}')
            (scratch / file).replace(target)
        for file in stale:
            _remove(self.out / file)

    def check_others(self, overwrite: bool) -> None:
        """Declare the records of other settings unfinished, and remove their tables, if results may be overwritten.

        Raises:
            IgniteError: there are some, and results may not be overwritten.
        """
        others = [name for name in self.names() if self._of_others(self.read(name))]
        if others and not overwrite:
            self.check_other(others[0])
        for name in (*TABLES, PAGE) if others else ():
            _remove(self.out / name)
        for name in others:
            replaced = dict(self.read(name), key=self.key, settings=self.settings, error=UNFINISHED)
            replaced.pop('written_by', None)
            with writing(self.path(name)):
                write_result(self.path(name), replaced)

    def check_other(self, name: str) -> None:
        """Raise IgniteError if an input has a result of other settings, e.g. of a process that runs at the same time."""
        record = self.read(name)
        if self._of_others(record):
            raise IgniteError(
                f'{printable(self.out)} has results of other settings ({printable(record.get("file", name))}: '
                f'{self._difference(record)}): choose another folder, or replace them by --overwrite.'
            )

    def _difference(self, record: Mapping[str, object]) -> str:
        """Describe the settings in which a record differs."""
        before = record.get('settings')
        before = before if isinstance(before, dict) else {}
        names = [name for name in self.settings if before.get(name) != self.settings[name]]
        if 'checkpoints' in names:
            return 'another checkpoint'
        shown = [f'{name} {_short(before.get(name))}, now {_short(self.settings[name])}' for name in names]
        return '; '.join(shown) or 'another version'

    def _of_others(self, record: Mapping[str, object]) -> bool:
        return bool(record) and record.get('key') != self.key and 'error' not in record


def source(path: Path) -> str:
    """Return where a file is, as valid text."""
    return printable(os.path.realpath(path))


def _remove(path: Path) -> None:
    """Remove a file or folder of tiles if it is ours."""
    if path.is_dir() and not path.is_symlink() and is_ours(path / TILES_LIST):
        shutil.rmtree(path, ignore_errors=True)
    elif is_ours(path):
        with writing(path):
            path.unlink()


def _short(value: object) -> str:
    text = ' '.join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 100 else f'{text[:97]}...'


def input_state(path: Path) -> list[int]:
    """Return the size in bytes and the time of the last change of a file."""
    with contextlib.suppress(OSError):
        status = path.stat()
        return [status.st_size, status.st_mtime_ns]
    return []


def _size(path: Path) -> int | None:
    """Return the size of a file, -1 of a folder of tiles, None if there is nothing."""
    if path.is_dir():
        return -1 if is_ours(path / TILES_LIST) else None
    with contextlib.suppress(OSError):
        return path.stat().st_size
    return None


def checksums(folder: Path, names: Sequence[str]) -> dict[str, list[int]]:
    """Return the CRC-32, in a list, of the files of types without a signature."""
    return {name: [_crc32(folder / name)] for name in names if name.endswith('.geojson')}


def _crc32(path: Path) -> int:
    checksum = 0
    with open(path, 'rb') as stream:
        while block := stream.read(1 << 20):
            checksum = zlib.crc32(block, checksum)
    return checksum


def sizes(folder: Path, names: Sequence[str]) -> dict[str, int | None]:
    """Return the sizes of files in bytes, -1 for a folder."""
    return {name: _size(folder / name) for name in names}


def write_tables(
    records: Records,
    claims: Claims,
    facts: Mapping[str, object],
    options: PredictionOptions,
    faults: Sequence[dict],
    cases: Mapping[str, str] | None = None,
) -> None:
    """Write ``run.json``, ``areas.csv``, ``ratios.csv`` and ``slides.html`` of all finished inputs of the folder.

    Of several processes one writes at a time, and the last one sees all records.

    Args:
        records: of the folder.
        claims: claims of the folder.
        facts: model, checkpoints and options, for ``run.json``.
        options: of the run.
        faults: entries of inputs that have no record because of the name.
        cases: {name of a slide: case}.

    Raises:
        IgniteError: a file cannot be written.
    """
    with claims.waited(_TABLES_CLAIM):
        for name in (RUN, *TABLES, PAGE):  # half-written ones of a process that was killed
            stem, suffix = os.path.splitext(name)
            for path in records.out.glob(f'.{stem}.????????{suffix}'):
                path.unlink(missing_ok=True)
        entries = records.all()
        done = [entry for entry in entries if 'error' not in entry]
        hidden = ('key', 'settings', 'areas', 'input', 'name', 'written_by', 'sizes', 'checksums', 'written', 'source')
        listed = [{key: value for key, value in entry.items() if key not in hidden} for entry in entries]
        content = dict(package=f'mmseg_ignite {__version__}', **facts)
        content['classes'] = {name: number for number, name in enumerate(CLASSES, 1)}  # the raw ids of label files
        # First, since the tables, which have no signature, count as ours in the folder of one of our runs.
        with writing(records.out / RUN):
            write_result(records.out / RUN, dict(**content, images=[*listed, *faults], **_last_run()))
        if 'areas' in options.formats and done:
            found = {entry['name']: SlideAreas(**entry['areas']) for entry in done}
            write_areas(records.out, found, cases)
        if 'page' in options.formats and done:
            write_slides_page(records.out, [_page_entry(records.out, entry) for entry in done], options.language)


def _last_run() -> dict:
    return {key: value for key, value in provenance().items() if key in ('date', 'command')}


def _page_entry(out: Path, entry: dict) -> SlideEntry:
    areas = SlideAreas(**entry['areas'])
    mm2, shares, values = areas.area_mm2, areas.share_of_tissue, areas.ratios
    known = entry.get('um_per_px') is not None  # assumed areas of images are in the tables, which say so
    rows = [
        {'class': name, 'mm2': mm2[name] if known else None, 'share': shares[name]}
        for name in CLASSES
        if areas.pixels[name]
    ]
    ratios = [dict(name=ratio.name, value=values[ratio.name], formula=ratio.formula) for ratio in RATIOS]
    return SlideEntry(entry['name'], out / f'{entry["name"]}_tiles', rows, ratios, entry.get('notes', ()))


def fault(name: str, error: Exception) -> str:
    """Return a sentence about an unexpected error."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f'{name} cannot be predicted ({error.strerror}): free some space.'
    text = (str(error) or 'no further details').splitlines()[0]
    if _out_of_memory(error):
        return f'{name} cannot be predicted (there is not enough memory): use a smaller --window-batch, or cut it into parts.'
    return f'{name} cannot be predicted ({type(error).__name__}: {text}): check the file, or cut it into parts.'


def _out_of_memory(error: Exception) -> bool:
    """Return whether Python, CUDA or torch on a CPU (a RuntimeError) ran out of memory."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or 'not enough memory' in str(error)
