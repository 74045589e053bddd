"""From a release to a prepared data set."""

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from ..errors import IgniteError
from ..files import atomic_directory, write_json
from ..labels import CLASSES, count_classes
from .release import RoiRecord, read_image, read_mask, read_overview, sha256
from .splits import PARTS, make_splits
from .store import FORMAT, INDEX, image_path, label_path


def _prepare_roi(record: RoiRecord, out: Path) -> 'dict | str':
    """Write one ROI's arrays and return its index entry, or a sentence on what is wrong with it."""
    try:
        image, mask = read_image(record.image_path), read_mask(record.mask_path)
        if image.shape[:2] != mask.labels.shape:
            raise IgniteError(
                f'{record.mask_path} is {mask.labels.shape[0]} x {mask.labels.shape[1]} px, its image '
                f'{image.shape[0]} x {image.shape[1]}: the same size was expected, download both again.'
            )
    except IgniteError as error:
        return str(error)
    np.save(image_path(out, record.name), image)
    np.save(label_path(out, record.name), mask.labels)
    pixels = count_classes(mask.labels)
    return dict(
        name=record.name,
        patient=record.patient,
        official_split=record.split,
        official_fold=record.fold,
        height=image.shape[0],
        width=image.shape[1],
        um_per_px=record.um_per_px,
        pixels=pixels.tolist(),
        unannotated=int(mask.labels.size - pixels.sum()),
        stray=mask.stray,
        encoding=mask.encoding,
        overview_shape=list(record.shape),
        image_sha256=sha256(record.image_path),
        mask_sha256=sha256(record.mask_path),
        **record.metadata,
    )


def _prepare_all(records: 'list[RoiRecord]', out: Path, console: Console) -> 'list[dict | str]':
    columns = (TextColumn('preparing'), BarColumn(), MofNCompleteColumn(), TextColumn('ROIs'), TimeRemainingColumn())
    workers = min(
        len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1, len(records)
    )
    with Progress(*columns, console=console) as progress, ProcessPoolExecutor(workers) as pool:
        task = progress.add_task('', total=len(records))
        futures = [pool.submit(_prepare_roi, record, out) for record in records]
        results = []
        for future in futures:
            results.append(future.result())
            progress.advance(task)
    return results


def prepare(release: 'str | Path', out: 'str | Path', console: 'Console | None' = None) -> dict:
    """Read a release, check every ROI, and publish the prepared data set at ``out``.

    Returns:
        The index that was written.

    Raises:
        IgniteError: anything wrong with the release; ``out`` is then as it was.
    """
    console = console or Console()
    records = read_overview(release)
    with atomic_directory(out, INDEX) as partial:
        (partial / 'images').mkdir()
        (partial / 'labels').mkdir()
        results = _prepare_all(records, partial, console)
        faults = [r for r in results if isinstance(r, str)]
        if faults:
            for fault in faults[1:]:
                console.print(f'also: {fault}', soft_wrap=True, markup=False)
            raise IgniteError(faults[0] + (f' ({len(faults) - 1} more above.)' if len(faults) > 1 else ''))
        index = dict(
            format=FORMAT,
            classes=list(CLASSES),
            channel_order='RGB',
            release=Path(release).name,
            splits=make_splits(results),
            rois=results,
        )
        write_json(partial / INDEX, index)
    _report(index, console.print)
    return index


def _report(index: dict, show: Callable) -> None:
    for roi in index['rois']:
        if roi['stray']:
            show(f'note: {roi["name"]} had {roi["stray"]} stray pixel(s), now unannotated.')
        if roi['encoding'] == 'empty':
            show(f'warning: {roi["name"]} has no annotated pixel.')
        if roi['overview_shape'] != [roi['height'], roi['width']]:
            show(
                f'warning: {roi["name"]} is {roi["height"]} x {roi["width"]} px, the overview says '
                f'{roi["overview_shape"][0]} x {roi["overview_shape"][1]}.'
            )
    show(summary_table(index))
    if 'official' not in index['splits']:
        show('note: no "official" split: the release marks no test rows, or its own test patients leak.')


def summary_table(index: dict, protocol: str = 'patient-8-1-1') -> Table:
    """ROIs, patients and megapixels per class and part of one split protocol."""
    table = Table(title=f'split {protocol}: megapixels of each class')
    table.add_column('class')
    by_name = {r['name']: r for r in index['rois']}
    parts = {p: [by_name[n] for n in index['splits'][protocol][p]] for p in PARTS}
    for part in PARTS:
        table.add_column(part, justify='right')
    for number, name in enumerate(CLASSES):
        table.add_row(name, *(f'{sum(r["pixels"][number] for r in parts[p]) / 1e6:.3f}' for p in PARTS))
    table.add_row(
        '(unannotated)', *(f'{sum(r["unannotated"] for r in parts[p]) / 1e6:.3f}' for p in PARTS), end_section=True
    )
    table.add_row('ROIs', *(str(len(parts[p])) for p in PARTS))
    table.add_row('patients', *(str(len({r['patient'] for r in parts[p]})) for p in PARTS))
    return table
