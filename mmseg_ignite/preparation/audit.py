"""Find all faults of a release in one pass, in parallel."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from ..datasets.index_schema import POSSIBLE_UM_PER_PX
from ..environment import cores
from ..errors import IgniteError
from .findings import Finding, errors
from .release import RoiRecord, compare_rows, leaks, read_overview, surplus_files
from .roi import audit_roi

MAX_RESOLUTION_RATIO, IMPOSSIBLE_RATIO = 1.2, 4  # of um/px to the median of the release, or of the median to um/px

Result = TypeVar('Result')


@dataclass
class Audit:
    """Result of an audit."""

    entries: list[dict]  # index entry of each usable ROI, in the order of the overview
    findings: list[Finding]  # all faults; ROIs excluded by the user have only the finding 'excluded'
    left_out: list[str]  # names of the ROIs that are excluded or faulty
    rois: int  # number of ROIs in the overview
    ids: dict[int, int] | None = None  # {id in the masks: our id}; None if they are equal


def audit_release(
    release: str | Path,
    exclude: Iterable[str] = (),
    drop_faulty: bool = False,
    out: Path | None = None,
    old: Path | None = None,
    known: dict[str, dict] | None = None,
    context: bool = True,
    console: Console | None = None,
    label_map: str | Path | None = None,
) -> Audit:
    """Audit a release and, if ``out`` is given, write the arrays of its good ROIs.

    Args:
        drop_faulty: skip each ROI with an error; faults of the release as a whole remain errors.
        out, old, known: see :func:`mmseg_ignite.preparation.roi.audit_roi`; ``known`` by ROI name.
        release, exclude, context, console, label_map: see :func:`mmseg_ignite.preparation.prepare`.

    Raises:
        IgniteError: ``release`` is not a release, ``exclude`` has an unknown name, or ``label_map`` is wrong.
        OSError: a file cannot be read or written.
    """
    overview = read_overview(release, label_map)
    exclude = list(dict.fromkeys(exclude))
    if unknown := [n for n in exclude if n not in overview.names]:
        raise IgniteError(f'{release} lists no ROI named {", ".join(unknown)}: check the names given to --exclude.')
    findings = [f for f in overview.findings if f.roi not in exclude]
    findings += [Finding('excluded', name, 'excluded by --exclude') for name in exclude]
    if overview.readable:  # else every file would seem surplus
        findings += surplus_files(overview.folders, set(overview.names))
    records = {r.name: r for r in overview.records if r.name not in exclude}
    findings += compare_rows([n for n in overview.names if n not in exclude], list(records.values()))
    sources, known = {n: r.sources(context) for n, r in records.items()}, known or {}
    tasks = {n: partial(audit_roi, n, s, out, old, known.get(n), overview.ids) for n, s in sources.items()}
    sizes = {n: sum(p.stat().st_size for p in s.values() if p.is_file()) for n, s in sources.items()}
    facts = run_in_threads(tasks, sizes, console or Console(), 'audited')
    findings += [Finding(**f) for name in records for f in facts[name]['findings']]
    entries = [_entry(record, facts[name]) for name, record in records.items() if 'height' in facts[name]]
    findings += _compare_rois(records, entries) + _compare_images(records, facts)
    faulty = {f.roi for f in errors(findings) if f.roi}
    left_out = {*exclude, *(faulty if drop_faulty else ())}
    findings += leaks([r for name, r in records.items() if name not in left_out])
    good = [e for e in entries if e['name'] not in faulty]
    return Audit(good, findings, sorted(left_out), len(overview.names), overview.ids)


def run_in_threads(
    tasks: dict[str, Callable[[], Result]], sizes: dict[str, int], console: Console, done_word: str
) -> dict[str, Result]:
    """Return the result of each ROI's task. The largest ROIs go first, so that none runs alone at the end.

    Args:
        sizes: bytes of each ROI, for the progress bar.
        done_word: what the tasks do, e.g. 'audited', for the progress bar.

    Threads use all cores, as decoding, hashing and NumPy release the interpreter lock. Processes would start slowly, or
    fork beside the threads of OpenCV and torch.
    """
    columns = (TextColumn('{task.description}'), BarColumn(), TextColumn('left'), TimeRemainingColumn())
    facts = {}
    pool = ThreadPoolExecutor(max(1, min(cores(), len(tasks))))
    try:
        with Progress(*columns, console=console) as progress:
            bar = progress.add_task('starting', total=sum(sizes.values()) or None)
            names = {pool.submit(tasks[name]): name for name in sorted(sizes, key=sizes.get, reverse=True)}
            for done in as_completed(names):
                facts[names[done]] = done.result()
                text = f'{done_word} {len(facts)} of {len(tasks)} ROIs'
                progress.update(bar, advance=sizes[names[done]], description=text)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return facts


def _entry(record: RoiRecord, facts: dict) -> dict:
    """Return the index entry of an ROI, from its row in the overview and the facts of its files."""
    area = record.area_mm2
    um_per_px = None if area is None else 1000 * (area / (facts['height'] * facts['width'])) ** 0.5
    row = dict(name=record.name, patient=record.patient, official_split=record.split, official_fold=record.fold)
    return dict(**row, um_per_px=um_per_px, **facts, **record.metadata)


def _compare_rois(records: dict[str, RoiRecord], entries: list[dict]) -> list[Finding]:
    """Compare ROIs with their rows and with each other."""
    findings = []
    least, most = POSSIBLE_UM_PER_PX
    possible = [e['um_per_px'] for e in entries if e['um_per_px'] is not None and least <= e['um_per_px'] <= most]
    median = float(np.median(possible)) if possible else 0.0
    for entry in entries:
        name, claimed, um_per_px = entry['name'], records[entry['name']].shape, entry['um_per_px']
        if claimed is not None and claimed != (entry['height'], entry['width']):
            detail = f'it is {entry["height"]} x {entry["width"]} px, the overview says {claimed[0]} x {claimed[1]}'
            findings.append(Finding('shape-differs', name, detail, name))
        if um_per_px is None:
            continue
        ratio = max(um_per_px / median, median / um_per_px) if least <= um_per_px <= most else float('inf')
        if ratio > MAX_RESOLUTION_RATIO:
            kind = 'resolution-differs' if ratio <= IMPOSSIBLE_RATIO else 'resolution-impossible'
            expected = f'the median is {median:.3g}' if median else f'{least} to {most} are possible'
            findings.append(Finding(kind, name, f'its area gives {um_per_px:.3g} um/px, {expected}', name))
    encodings = {e['encoding'] for e in entries} - {'empty'}
    if len(encodings) > 1:
        counts = ', '.join(f'{sum(e["encoding"] == c for e in entries)} {c}' for c in sorted(encodings))
        findings.append(Finding('mask-encodings', 'annotations/he', f'both encodings occur: {counts}'))
    return findings


def _compare_images(records: dict[str, RoiRecord], facts: dict[str, dict]) -> list[Finding]:
    """Find images that occur twice, also among faulty ROIs."""
    findings, same = [], defaultdict(list)
    for name, record in records.items():
        same[facts[name].get('picture')].append(record)
    same.pop(None, None)
    for group in same.values():
        leaking = len({r.patient for r in group}) > 1
        for record in group if leaking else group[1:]:
            others = ', '.join(f'{r.name} (patient {r.patient})' for r in group if r is not record)
            kind = 'picture-patients' if leaking else 'picture-twice'
            findings.append(Finding(kind, record.name, f'it shows the same image as {others}', record.name))
    return findings
