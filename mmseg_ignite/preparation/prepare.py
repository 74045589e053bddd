"""Turn a release into a prepared data set."""

import contextlib
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from rich.console import Console

from ..datasets.index_schema import FORMAT
from ..datasets.prepared import AUDIT, CONTEXT, FOLDERS, INDEX, OWN, PROTOCOLS, leaking_patients, read_index
from ..errors import IgniteError
from ..files import atomic_directory, check_output_folder, check_outputs, is_ours, printable, write_json
from ..images.png import DamagedPicture, check_header
from ..labels import CLASSES
from .audit import Audit, audit_release
from .findings import KINDS, errors, findings_table, write_audit
from .release import RoiRecord, disk_errors, read_overview
from .roi import FACTS
from .splits import classes_not_in_all_parts, make_splits, split_table

_REMEDY = 'free disk space, correct the permissions, or choose another output folder'
AUDIT_RULES = 1  # increment when the audit gains a check, so that files that passed an older one are read again


def audit_path(out: str | Path) -> Path:
    """Return where the audit of an unprepared release is written: beside the prepared folder."""
    out = Path(out)
    out = out if out.name not in ('', '..') else out.resolve()  # '.' has no name
    return out.parent / f'{out.name}.{AUDIT}'


def audit(
    release: str | Path,
    out: str | Path,
    exclude: Iterable[str] = (),
    drop_faulty: bool = False,
    context: bool = True,
    console: Console | None = None,
    label_map: str | Path | None = None,
) -> Audit:
    """Audit a release without preparing it: print the table of findings and write only ``OUT.audit.json``.

    The arguments are those of :func:`prepare`. Raise IgniteError if the audit found errors that would stop it, or the
    findings cannot be written.

    Example:
        >>> audit('data/release', 'data/ignite').left_out
        []
    """
    console = console or Console()
    with disk_errors(out, _REMEDY):
        _check_paths(release, Path(out))
        result = audit_release(release, exclude, drop_faulty, context=context, console=console, label_map=label_map)
        _report_findings(release, out, result, drop_faulty, console)
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
    add_files: Callable[[dict, Path], None] | None = None,
) -> dict:
    """Audit a release and publish the prepared data set at ``out`` atomically; return its index.

    ROIs whose files have the checksums of an earlier run at ``out`` are reused.

    Args:
        release: folder with the unpacked release.
        out: the prepared folder, new or written by an earlier run.
        exclude: names of ROIs to skip.
        drop_faulty: skip each ROI with an error instead of stopping.
        context: also prepare the images with tissue around the ROIs, about twice the disk space of the ROIs.
        console: for progress and tables.
        label_map: JSON file {name or id in the release: our id, 0..16}, for a release whose masks hold other ids; recorded
            in ``index.json``.
        add_files: called with the index and the unpublished folder, to add splits.png to it.

    Raises:
        IgniteError: the audit found errors (see ``OUT.audit.json``), fewer than three patients remain, the disk is too
            small, or ``out`` cannot be written or would replace the release. ``out`` is then unchanged.

    Example:
        >>> index = prepare('data/release', 'data/ignite')
        >>> len(index['rois'])
        408
    """
    console, out = console or Console(), Path(out)
    with disk_errors(out, _REMEDY):
        _check_paths(release, out)
        overview = read_overview(release, label_map)
        known = _known(out, overview.ids)
        _check_disk(overview.records, out, known, context)
        with atomic_directory(out, OWN) as partial:
            for folder in FOLDERS:
                (partial / folder).mkdir()
            result = audit_release(release, exclude, drop_faulty, partial, out, known, context, console, label_map)
            _report_findings(release, out, result, drop_faulty, console)
            _remove_left_out(partial, result)
            index = _write_index(release, out, partial, result)
            if add_files is not None:
                add_files(index, partial)
        if is_ours(audit_path(out)):
            audit_path(out).unlink()
    _report(index, known, console)
    return index


def _check_paths(release: str | Path, out: Path) -> None:
    """Raise IgniteError if publishing ``out`` would replace the release."""
    source, target = Path(release).resolve(), out.resolve()
    if target in (source, *source.parents):
        raise IgniteError(f'the release {release} is in the output folder {out}: choose another output folder.')
    if target.parent != source:
        check_output_folder(target.parent)
        check_outputs([audit_path(target)])


def _write_index(release: str | Path, out: Path, partial: Path, result: Audit) -> dict:
    """Split the ROIs and write index and audit into the unpublished folder."""
    try:
        splits = make_splits(result.entries)
    except IgniteError:
        write_audit(audit_path(out), release, result.rois, result.findings)
        raise
    index = dict(format=FORMAT, classes=list(CLASSES), channel_order='RGB')
    index.update(release=printable(Path(release).resolve().name), audit_rules=AUDIT_RULES)
    index.update(label_map=_as_json(result.ids), splits=splits, left_out=result.left_out, rois=result.entries)
    write_json(partial / INDEX, index)
    write_audit(partial / AUDIT, release, result.rois, result.findings)
    return index


def _as_json(ids: dict[int, int] | None) -> dict[str, int] | None:
    return ids and {str(k): v for k, v in sorted(ids.items())}


def _known(out: Path, ids: dict[int, int] | None) -> dict[str, dict]:
    """Return the facts from an earlier run at ``out`` by ROI name; empty if there was none or its rules differ."""
    try:
        index = read_index(out)
        if index.get('audit_rules') != AUDIT_RULES or index.get('label_map') != _as_json(ids):
            return {}
        known = {r['name']: {k: r[k] for k in FACTS} for r in index['rois']}
        return {name: f for name, f in known.items() if all(found['kind'] in KINDS for found in f['findings'])}
    except (IgniteError, KeyError):
        return {}


def _check_disk(records: list[RoiRecord], out: Path, known: dict[str, dict], context: bool) -> None:
    """Raise IgniteError before any work if the arrays will not fit on the disk."""
    needed = 0
    new = [record.sources(context).items() for record in records if record.name not in known]
    for path in (path for sources in new for kind, path in sources if kind.endswith('image')):
        # The audit reports what cannot be read.
        with contextlib.suppress(OSError, DamagedPicture), path.open('rb') as stream:
            header = check_header(stream.read(33))
            needed += header.height * header.width * 4  # three bytes of image, one of labels
    folder = next(p for p in (out.absolute(), *out.absolute().parents) if p.is_dir())
    free = shutil.disk_usage(folder).free
    if needed > free:
        smaller = ', or skip the tissue around the ROIs with --no-context' if context else ''
        raise IgniteError(
            f'{folder} has {free / 1e9:.1f} GB free, the arrays need {needed / 1e9:.1f} GB: free disk space, choose another '
            f'output folder{smaller}.'
        )


def _report_findings(release: str | Path, out: str | Path, result: Audit, drop_faulty: bool, console: Console) -> None:
    """Print the table of findings; on errors write the audit beside ``out`` and raise IgniteError."""
    console.print(findings_table(result.findings))
    found = [f for f in errors(result.findings) if not (drop_faulty and f.roi)]
    if found:
        path = audit_path(out)
        write_audit(path, release, result.rois, result.findings)
        skip = not drop_faulty and all(f.roi for f in found)
        advice = ' Or leave ROIs out: --exclude NAME, or --drop-faulty.' if skip else ''
        more = f'{len(found) - 1} more in the table above and in' if len(found) > 1 else 'see'
        raise IgniteError(f'{release} has {len(found)} error(s): {found[0]}; {more} {path}.{advice}')


def _remove_left_out(folder: Path, result: Audit) -> None:
    """Delete the arrays of ROIs that turned out faulty only by their row or in comparison with others."""
    used = {e['name'] for e in result.entries}
    for path in folder.glob('*/*.npy'):  # not by the name of a faulty row, which may point elsewhere
        if path.stem.removesuffix(CONTEXT) not in used:
            path.unlink()


def _report(index: dict, known: dict[str, dict], console: Console) -> None:
    """Print the table of the default split, and warnings about the others."""
    default, splits, rois, lines = PROTOCOLS[0], index['splits'], index['rois'], []
    console.print(split_table(index, default))
    if missing := classes_not_in_all_parts(rois, splits[default]):
        lines.append(f'warning: {default}: {", ".join(missing)}: in three patients or more, but not in all parts.')
    if leaks := leaking_patients(rois, splits['roi-8-1-1']):
        lines.append(f'warning: roi-8-1-1 leaks: {len(leaks)} patients are in more than one part.')
    if missing := [p for p in PROTOCOLS if p not in splits]:
        lines.append(
            f'note: no {", ".join(missing)}: official needs test rows that share no patient with training rows, folds need '
            'five patients outside the test part.'
        )
    if index['left_out']:
        lines.append(f'note: left out: {", ".join(index["left_out"])}.')
    same = sum(r['arrays'].items() <= known.get(r['name'], {}).get('arrays', {}).items() for r in rois)
    lines.append(f'{len(rois)} ROIs, {same} of them unchanged; {len(splits)} splits.')
    for line in lines:
        console.print(line, soft_wrap=True, markup=False)
