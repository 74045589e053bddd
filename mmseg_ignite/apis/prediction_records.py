"""Records of predicted inputs, by which a run knows what is finished, and the tables made from them."""

import contextlib
import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..engine.claims import Claims
from ..errors import IgniteError
from ..files import printable, write_result, writing
from ..labels import CLASSES
from ..provenance import provenance
from ..regions.areas import RATIOS, SlideAreas, read_cases, write_areas
from ..report.slides_page import SlideEntry, write_slides_page
from ..version import __version__
from .prediction_inputs import RECORDS, RUN, Input
from .prediction_options import PredictionOptions

_TABLES_CLAIM = '.tables'
UNFINISHED = 'it was not finished: run again.'


class Records:
    """The records in an output folder, ``records/NAME.json``, each written when all files of the input are in place.

    Args:
        out: output folder.
        key: what the results depend on, see :meth:`.PredictionOptions.key`.
    """

    def __init__(self, out: Path, key: str) -> None:
        self.out, self.key = out, key
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
        """Return all records of this key, sorted by name."""
        names = sorted(path.stem for path in self.folder.glob('*.json') if not path.name.startswith('.'))
        return [record for record in map(self.read, names) if record.get('key') == self.key]

    def write(self, name: str, entry: Mapping[str, object]) -> None:
        """Write a record. Checksums, by which files are known as ours, are kept from the record before if there are none."""
        entry = dict(dict(checksums=self.read(name).get('checksums', {})), **entry)
        with writing(self.path(name)):
            write_result(self.path(name), dict(key=self.key, **entry))

    def is_finished(self, item: Input) -> bool:
        """Return whether all files of an unchanged input are there, whole."""
        record = self.read(item.name)
        if (
            record.get('key') != self.key
            or 'error' in record
            or not record.get('sizes')
            or record.get('input') != input_state(item.path)
        ):
            return False
        return all(size == _size(self.out / name) for name, size in record.get('sizes', {}).items())

    def check_others(self, overwrite: bool) -> None:
        """Remove the records of other settings if results may be overwritten.

        Raises:
            IgniteError: there are some, and results may not be overwritten.
        """
        for path in sorted(self.folder.glob('*.json')):
            record = self.read(path.stem)
            if record and record.get('key') != self.key and 'error' not in record:
                if not overwrite:
                    raise IgniteError(
                        f'{printable(self.out)} has results of another checkpoint or other options (of '
                        f'{printable(record.get("file", path.stem))}): choose another folder, or replace them by --overwrite.'
                    )
                replaced = dict(record, key=self.key, error=UNFINISHED)
                replaced.pop('written_by')
                write_result(path, replaced)


def input_state(path: Path) -> list[int]:
    """Return the size in bytes and the time of the last change of a file."""
    with contextlib.suppress(OSError):
        status = path.stat()
        return [status.st_size, status.st_mtime_ns]
    return []


def _size(path: Path) -> int | None:
    """Return the size of a file, -1 of a folder, None if there is nothing."""
    if path.is_dir():
        return -1
    with contextlib.suppress(OSError):
        return path.stat().st_size
    return None


def checksums(folder: Path, names: Sequence[str]) -> dict[str, int]:
    """Return the CRC-32 of the files of types without a signature."""
    return {name: zlib.crc32((folder / name).read_bytes()) for name in names if name.endswith('.geojson')}


def sizes(folder: Path, names: Sequence[str]) -> dict[str, int | None]:
    """Return the sizes of files in bytes, -1 for a folder."""
    return {name: _size(folder / name) for name in names}


def write_tables(
    records: Records, claims: Claims, facts: Mapping[str, object], options: PredictionOptions, faults: Sequence[dict]
) -> None:
    """Write ``run.json``, ``areas.csv``, ``ratios.csv`` and ``slides.html`` of all finished inputs of the folder.

    Of several processes one writes at a time, and the last one sees all records.

    Args:
        records: of the folder.
        claims: claims of the folder.
        facts: model, checkpoints and options, for ``run.json``.
        options: of the run.
        faults: entries of inputs that have no record because of the name.

    Raises:
        IgniteError: a file cannot be written, or the file of cases is wrong.
    """
    with claims.waited(_TABLES_CLAIM):
        entries = records.all()
        done = [entry for entry in entries if 'error' not in entry]
        if 'areas' in options.formats and done:
            found = {entry['name']: SlideAreas(**entry['areas']) for entry in done}
            write_areas(records.out, found, read_cases(options.cases, found) if options.cases else None)
        if 'page' in options.formats and done:
            write_slides_page(records.out, [_page_entry(records.out, entry) for entry in done], options.language)
        hidden = ('key', 'areas', 'input', 'name', 'written_by', 'sizes', 'checksums')
        listed = [{key: value for key, value in entry.items() if key not in hidden} for entry in entries]
        content = dict(package=f'mmseg_ignite {__version__}', **facts)
        content['classes'] = {name: number for number, name in enumerate(CLASSES, 1)}  # the raw ids of label files
        with writing(records.out / RUN):
            write_result(records.out / RUN, dict(**content, images=[*listed, *faults], **_last_run()))


def _last_run() -> dict:
    return {key: value for key, value in provenance().items() if key in ('date', 'command')}


def _page_entry(out: Path, entry: dict) -> SlideEntry:
    areas = SlideAreas(**entry['areas'])
    mm2, shares, values = areas.area_mm2, areas.share_of_tissue, areas.ratios
    rows = [{'class': name, 'mm2': mm2[name], 'share': shares[name]} for name in CLASSES if areas.pixels[name]]
    ratios = [dict(name=ratio.name, value=values[ratio.name], formula=ratio.formula) for ratio in RATIOS]
    return SlideEntry(entry['name'], out / f'{entry["name"]}_tiles', rows, ratios, entry.get('notes', ()))
