"""The record of a package: what wrote it, from which weights, and the checksum of each file, so that changes are seen."""

from pathlib import Path

from ..errors import IgniteError
from ..files import is_ours, write_result
from ..provenance import file_sha256
from ..untrusted import NAME, check_form, read_json
from .description import ModelDescription

RECORD = 'export.json'
_REMEDY = 'choose another --out, or move the folder'


def write_record(folder: Path, kind: str, description: ModelDescription) -> None:
    """Write the record of the files in a folder, after all others."""
    files = {
        path.relative_to(folder).as_posix(): file_sha256(path) for path in sorted(folder.rglob('*')) if path.is_file()
    }
    checkpoints = [dict(file=name, sha256=checksum) for name, checksum in description.checkpoints]
    write_result(
        folder / RECORD,
        dict(format=kind, checkpoints=checkpoints, config_sha256=description.config_sha256, files=files),
    )


def changed_files(folder: Path) -> list[str]:
    """Return the files of a package that were added, removed or changed since it was written; the record if it is damaged."""
    record = folder / RECORD
    if record.is_symlink() or not is_ours(record):
        return [RECORD]
    try:
        content = read_json(record, _REMEDY)
        check_form(content, dict(files={'*': NAME}), record, _REMEDY)
    except IgniteError:
        return [RECORD]
    stated, found = content['files'], {}
    for path in folder.rglob('*'):
        name = path.relative_to(folder).as_posix()
        if name != RECORD and (path.is_symlink() or not path.is_dir()):
            found[name] = file_sha256(path) if path.is_file() and not path.is_symlink() else None
    return sorted(name for name in stated.keys() | found.keys() if stated.get(name) != found.get(name))
