"""From a release to a prepared data set."""

import contextlib
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from rich.console import Console

from ..datasets.prepared import AUDIT, CONTEXT, FOLDERS, FORMAT, INDEX, OWN, read_index
from ..datasets.protocols import PROTOCOLS, leaking_patients
from ..errors import IgniteError
from ..files import atomic_directory, check_output_folder, check_outputs, is_ours, write_json
from ..images.png import DamagedPicture, check_header
from ..labels import CLASSES
from ..visualization.split_shares import draw_split_shares, split_table
from .audit import Audit, audit_release
from .findings import errors, findings_table, printable, write_audit
from .release import RoiRecord, read_overview
from .roi import FACTS
from .splits import classes_not_in_all_parts, make_splits

AUDIT_RULES = 1
"""Raised when an audit finds what it did not find before, so that files found good by an older one are read again."""


def audit_path(out: str | Path) -> Path:
    """Where the audit of a release that was not prepared is written: beside the prepared folder."""
    out = Path(out)
    out = out if out.name not in ('', '..') else out.resolve()  # '.' has no name of its own
    return out.parent / f'{out.name}.{AUDIT}'


@contextlib.contextmanager
def _disk_errors(place: str | Path) -> Iterator[None]:
    """Turn what the disk refuses into one sentence."""
    try:
        yield
    except OSError as error:
        raise IgniteError(
            f'{error.filename or place} cannot be written or read ({error.strerror or error}): make room, correct the '
            'permissions, or choose another output folder.'
        ) from error


def audit(
    release: str | Path,
    out: str | Path,
    exclude: Iterable[str] = (),
    drop_faulty: bool = False,
    context: bool = True,
    console: Console | None = None,
    label_map: str | Path | None = None,
) -> Audit:
    """Audit a release without preparing it: prints the table, writes ``OUT.audit.json``, touches nothing else.

    Args are those of :func:`prepare`.

    Raises:
        IgniteError: the audit found errors that would stop :func:`prepare`, or the findings cannot be written.
    """
    console = console or Console()
    with _disk_errors(out):
        _check_places(release, Path(out))
        result = audit_release(release, exclude, drop_faulty, context=context, console=console, label_map=label_map)
        console.print(findings_table(result.findings))
        _stop_on_errors(release, out, result, drop_faulty)
        write_audit(audit_path(out), release, result.rois, result.findings)
    left_out = f'left out: {", ".join(result.left_out)}' if result.left_out else 'no error'
    console.print(f'{left_out}; all findings: {audit_path(out)}', soft_wrap=True, markup=False)
    return result


def prepare(
    release: str | Path,
    out: str | Path,
    exclude: Iterable[str] = (),
    drop_faulty: bool = False,
    context: bool = True,
    console: Console | None = None,
    label_map: str | Path | None = None,
) -> dict:
    """Audit a release and publish the prepared data set at ``out``, completely or not at all.

    ROIs whose files have the checksums of an earlier run at ``out`` are taken over from it.

    Args:
        release: folder with the unpacked release.
        out: the prepared folder, new or one of ours.
        exclude: names of ROIs to leave out unseen.
        drop_faulty: leave out each ROI with an error instead of stopping.
        context: prepare the images with tissue around the ROIs too, which takes about twice the room of the ROIs.
        console: for progress and tables.
        label_map: JSON file {name or id in the release: our id, 0..16}, for a release whose masks hold other ids; recorded
            in ``index.json``. Defaults to None: the ids are ours.

    Returns:
        The index that was written.

    Raises:
        IgniteError: the audit found errors (all are in ``OUT.audit.json``), fewer than three patients are left, too little
            room on the disk, ``out`` cannot be written or would replace the release. ``out`` is then as it was.
    """
    console, out = console or Console(), Path(out)
    with _disk_errors(out):
        _check_places(release, out)
        overview = read_overview(release, label_map)
        known = _known(out, overview.ids)
        _check_room(overview.records, out, known, context)
        index = _publish(release, out, exclude, drop_faulty, context, known, console, label_map)
        if is_ours(audit_path(out)):
            audit_path(out).unlink()
    _report(index, known, console)
    return index


def _check_places(release: str | Path, out: Path) -> None:
    """Raise if publishing ``out`` would replace the release."""
    source, target = Path(release).resolve(), out.resolve()
    if target in (source, *source.parents):
        raise IgniteError(f'the release {release} lies in the output folder {out}: choose another output folder.')
    if target.parent != source:
        check_output_folder(target.parent)
    check_outputs([audit_path(target)] if target.parent != source else [])


def _publish(
    release: str | Path,
    out: Path,
    exclude: Iterable[str],
    drop_faulty: bool,
    context: bool,
    known: dict[str, dict],
    console: Console,
    label_map: str | Path | None,
) -> dict:
    with atomic_directory(out, OWN) as partial:
        for folder in FOLDERS:
            (partial / folder).mkdir()
        result = audit_release(release, exclude, drop_faulty, partial, out, known, context, console, label_map)
        console.print(findings_table(result.findings))
        _stop_on_errors(release, out, result, drop_faulty)
        _remove_left_out(partial, result)
        try:
            splits = make_splits(result.entries)
        except IgniteError:
            write_audit(audit_path(out), release, result.rois, result.findings)
            raise
        index = dict(
            format=FORMAT,
            classes=list(CLASSES),
            channel_order='RGB',
            release=printable(Path(release).resolve().name),
            audit_rules=AUDIT_RULES,
            label_map=_as_json(result.ids),
            splits=splits,
            left_out=result.left_out,
            rois=result.entries,
        )
        write_json(partial / INDEX, index)
        write_audit(partial / AUDIT, release, result.rois, result.findings)
        draw_split_shares(index, partial / 'splits.png')
    return index


def _as_json(ids: dict[int, int] | None) -> dict[str, int] | None:
    return ids and {str(k): v for k, v in sorted(ids.items())}


def _known(out: Path, ids: dict[int, int] | None) -> dict[str, dict]:
    """What an earlier run at ``out`` found out, by ROI name; nothing if there was none or it worked by other rules."""
    try:
        index = read_index(out)
        if index.get('audit_rules') != AUDIT_RULES or index.get('label_map') != _as_json(ids):
            return {}
        return {r['name']: {k: r[k] for k in FACTS} for r in index['rois']}
    except (IgniteError, KeyError):
        return {}


def _check_room(records: list[RoiRecord], out: Path, known: dict[str, dict], context: bool) -> None:
    """Raise before the work starts if the arrays will not fit on the disk."""
    needed = 0
    for record in records:
        if record.name in known:
            continue
        for kind, path in record.sources(context).items():
            if kind in ('image', 'context_image'):
                try:
                    with path.open('rb') as stream:
                        header = check_header(stream.read(33))
                except (OSError, DamagedPicture):  # the audit will say so
                    continue
                needed += header.height * header.width * 4  # three bytes of image, one of labels
    folder = next(p for p in (out.absolute(), *out.absolute().parents) if p.is_dir())
    free = shutil.disk_usage(folder).free
    if needed > free:
        smaller = ', or leave out the tissue around the ROIs with --no-context' if context else ''
        raise IgniteError(
            f'{folder} has {free / 1e9:.1f} GB free, the arrays need {needed / 1e9:.1f} GB: make room, choose another '
            f'output folder{smaller}.'
        )


def _stop_on_errors(release: str | Path, out: Path, result: Audit, drop_faulty: bool) -> None:
    found = [f for f in errors(result.findings) if not (drop_faulty and f.roi)]
    if not found:
        return
    path = audit_path(out)
    write_audit(path, release, result.rois, result.findings)
    cure = (
        '' if drop_faulty or not all(f.roi for f in found) else ' Or leave ROIs out: --exclude NAME, or --drop-faulty.'
    )
    more = f'; {len(found) - 1} more in the table above and in {path}' if len(found) > 1 else f'; see {path}'
    raise IgniteError(f'{release} has {len(found)} error(s): {found[0]}{more}.{cure}')


def _remove_left_out(folder: Path, result: Audit) -> None:
    """ROIs that were found faulty only by their row or in comparison with others have arrays already.

    Goes by what lies in the folder: the name of a faulty row may lead elsewhere.
    """
    used = {e['name'] for e in result.entries}
    for path in folder.glob('*/*.npy'):
        if path.stem.removesuffix(CONTEXT) not in used:
            path.unlink()


def _report(index: dict, known: dict[str, dict], console: Console) -> None:
    """The default split's table, and what a user should know of the others."""

    def say(text: str) -> None:
        console.print(text, soft_wrap=True, markup=False)

    console.print(split_table(index, PROTOCOLS[0]))
    for protocol, parts in index['splits'].items():
        lacking = classes_not_in_all_parts(index['rois'], parts)
        if lacking and protocol == PROTOCOLS[0]:
            say(f'warning: {protocol}: {", ".join(lacking)}: of three patients or more, yet not in all parts.')
    if 'roi-8-1-1' in index['splits']:
        leaks = leaking_patients(index['rois'], index['splits']['roi-8-1-1'])
        if leaks:
            say(f'warning: roi-8-1-1 leaks: {len(leaks)} patients stand in more than one part.')
    missing = [p for p in PROTOCOLS if p not in index['splits']]
    if missing:
        say(
            f'note: no {", ".join(missing)}: official needs test rows that share no patient with training rows, folds '
            'need five patients outside the test part.'
        )
    if index['left_out']:
        say(f'note: left out: {", ".join(index["left_out"])}.')
    same = sum(r['arrays'].items() <= known.get(r['name'], {}).get('arrays', {}).items() for r in index['rois'])
    say(f'{len(index["rois"])} ROIs, {same} of them unchanged; {len(index["splits"])} splits.')
