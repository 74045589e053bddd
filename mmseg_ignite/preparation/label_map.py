"""Map the ids in the masks of a release to ours, by its own label map or by a mapping from the user."""

import gzip
import json
import re
import zlib
from pathlib import Path

from ..errors import IgniteError
from ..files import printable
from ..labels import MAX_ID, NUM_CLASSES, RAW_LABEL_MAP
from ..untrusted import MAX_GB_VARIABLE, max_decoded_bytes, read_json
from .findings import Finding

LABEL_MAP = 'he_label_map.json'
EXPANSION = 32
"""Rows of a table take about this many times the memory of their text."""
MAX_IDS = 1000
_PIECE = 1 << 20  # bytes
_NAMES = {raw_id: name for name, raw_id in RAW_LABEL_MAP.items()}


def unzipped(path: Path, findings: list[Finding]) -> bytes:
    """Read a table of the release, decompressed: one public loader stores gzip files under the plain names.

    Raises:
        OSError, EOFError, zlib.error: the file cannot be read, is a damaged gzip file, or too large to be such a table: its
            rows would take more memory than :func:`mmseg_ignite.untrusted.max_decoded_bytes`.
    """
    most, content = max_decoded_bytes() // EXPANSION, bytearray()
    with path.open('rb') as stream:
        compressed = stream.read(2) == b'\x1f\x8b'
        stream.seek(0)
        source = gzip.GzipFile(fileobj=stream) if compressed else stream
        while piece := source.read(_PIECE):
            content += piece
            if len(content) > most:
                raise OSError(
                    f'it has more than {most / 1e6:.3g} MB, a table was expected; {MAX_GB_VARIABLE} sets the limit'
                )
    if compressed:
        kind = 'label-map-compressed' if path.name == LABEL_MAP else 'overview-compressed'
        findings.append(Finding(kind, path.name, 'it is gzip-compressed under a plain name'))
    return bytes(content)


def read_label_map(release: Path, stated: str | Path | None = None) -> tuple[dict[int, int] | None, list[Finding]]:
    """Read which of our ids the masks of a release mean.

    Ids decide: another name for one of our ids is a warning. Unknown ids, missing ids, and one of our names with another id
    are errors, unless ``stated`` maps them.

    Args:
        release: folder with the label map, a JSON object {name: id}, possibly gzip-compressed.
        stated: JSON file {name or id in the release: our id, 0..16}. Other ids keep their meaning.

    Returns:
        {id in the masks: our id}, or None without ``stated``, if they are equal; and the findings.

    Raises:
        IgniteError: ``stated`` is not such a file.
    """
    findings: list[Finding] = []
    found = _read_release(release, findings)
    if stated is None:
        return None, findings + _judge(found, None)
    findings = [f for f in findings if f.kind != 'label-map-missing']
    mapping = _read_stated(Path(stated), found or {})
    findings += _judge(found, mapping)
    text = ', '.join(f'{k} is {_NAMES[v]}' for k, v in sorted(mapping.items())) or 'no id is mapped'
    findings.append(Finding('label-map-stated', printable(Path(stated).name), text))
    ids = {i: i for i in (_NAMES if found is None else found.values()) if i in _NAMES}
    return ids | mapping, findings


def _read_release(release: Path, findings: list[Finding]) -> dict[str, int] | None:
    """Read {name: id} of the release; None, with a finding, if it is unusable."""
    path = release / LABEL_MAP
    kind, detail = 'label-map-unreadable', f'it is not an object {{name: id}} with ids 0..{MAX_ID}'
    try:
        found = json.loads(unzipped(path, findings).decode('utf-8-sig'))
        if isinstance(found, dict) and len(found) <= MAX_IDS and all(_is_id(i, MAX_ID) for i in found.values()):
            return found
    except FileNotFoundError:
        kind, detail = 'label-map-missing', 'it does not exist'
    except (OSError, EOFError, zlib.error, ValueError, RecursionError, MemoryError) as error:
        detail = f'it is not JSON ({str(error)[:200]})'
    findings.append(Finding(kind, LABEL_MAP, detail))
    return None


def _is_id(value: object, most: int) -> bool:
    return type(value) is int and 0 <= value <= most


def _plain(name: str) -> str:
    return re.sub(r'[\W_]+', ' ', name).strip().casefold()


def _judge(found: dict[str, int] | None, mapping: dict[int, int] | None) -> list[Finding]:
    """Compare the names and ids of the release with ours, except ids that ``mapping`` maps; without it, all must be there."""
    if found is None:
        return []
    ours = {_plain(name): raw_id for name, raw_id in RAW_LABEL_MAP.items()}
    wrong, renamed = [], []
    for name, raw_id in found.items():
        meant = ours.get(_plain(name), raw_id)
        if raw_id in (mapping or ()) or name == _NAMES.get(raw_id):
            continue
        if raw_id not in _NAMES:
            wrong.append(f'it has the id {raw_id} ({name!r}), ours are 0..{NUM_CLASSES}')
        elif meant != raw_id:
            wrong.append(f'its id {raw_id} is {name!r}, which is {meant} here')
        else:
            renamed.append(f'its id {raw_id} is called {name!r}, here {_NAMES[raw_id]!r}')
    if mapping is None and (missing := sorted(_NAMES.keys() - found.values())):
        wrong.append('it lacks the id(s) ' + ', '.join(f'{i} ({_NAMES[i]})' for i in missing))
    findings = [Finding('label-map-changed', LABEL_MAP, '; '.join(wrong))] if wrong else []
    return findings + [Finding('label-map-names', LABEL_MAP, text) for text in renamed]


def _read_stated(path: Path, found: dict[str, int]) -> dict[int, int]:
    by_name, mapping = {_plain(name): raw_id for name, raw_id in found.items()}, {}
    content = read_json(path, 'correct the --label-map file')
    try:
        if not isinstance(content, dict) or not all(_is_id(v, NUM_CLASSES) for v in content.values()):
            raise ValueError('it holds something else')
        for key, ours in content.items():
            theirs = int(key) if re.fullmatch('[0-9]{1,3}', key) else by_name.get(_plain(key))
            if theirs is None or theirs > MAX_ID:
                known = ', '.join(map(repr, found)) or f'none, as {LABEL_MAP} cannot be read'
                raise ValueError(f'{key[:80]!r} is neither an id 0..{MAX_ID} nor a name of the release: {known}')
            if mapping.setdefault(theirs, ours) != ours:
                raise ValueError(f'it maps the id {theirs} of the release to {mapping[theirs]} and to {ours}')
    except ValueError as error:
        raise IgniteError(
            f'{printable(path)} is not a label map ({error}); JSON {{"name or id in the release": our id, 0..{NUM_CLASSES}}} '
            'was expected: correct the --label-map file.'
        ) from error
    return mapping
