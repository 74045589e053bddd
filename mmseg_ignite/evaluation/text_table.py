"""The scores of a run as plain text, for the console and ``metrics.txt``."""

from collections.abc import Iterable, Iterator

from .confusion import FIGURES


def table(result: dict) -> str:
    """Format scores as a table with one row per class, followed by one line per further result.

    Classes that were predicted but have no ground truth are marked as absent; classes in neither are listed below the table.
    ``result`` holds the contents of ``metrics.json``, or the return value of :func:`.confusion.scores`.
    """
    boundary = result.get('boundary')
    headings = ['IoU', 'Dice', 'Acc', *(['bnd F1', 'NSD'] if boundary else [])]
    head = f'{"class":<22}' + ''.join(f'{text:>8}' for text in headings) + f'{"pixels":>13}'
    rule = '-' * len(head)
    lines = [head, rule]
    if seen := set(result.get('seen_patients') or ()):
        patients = f'{len(seen)} of {result.get("patients") or len(seen)} test patients'
        problem = 'were used to train or to choose this checkpoint; these scores are too high.'
        lines = [f'WARNING: {patients} {problem}', '', *lines]
    for name, row in result['classes'].items():
        values = [row[key] for key in ('IoU', 'Dice', 'Recall')]
        values += [boundary['classes'][name][key] for key in ('boundary_F1', 'NSD')] if boundary else []
        if row['IoU'] is not None:
            lines.append(f'{name:<22}{_cells(values)}{row["pixels"]:>13,}')
        elif row['predicted_pixels']:
            lines.append(f'{name:<22}{"absent":>{8 * len(values)}}{0:>13}')
    lines.append(rule)
    if result['mIoU'] is None:
        return '\n'.join([*lines, 'no annotated pixel: nothing to score'])
    means = [result[key] for key in ('mIoU', 'mDice', 'mAcc')]
    means += [boundary[key] for key in ('mean_boundary_F1', 'mean_NSD')] if boundary else []
    lines.append(f'{"mean of " + str(result["classes_present"]) + " present":<22}{_cells(means)}')
    return '\n'.join([*lines, *_remarks(result)])


def _cells(values: Iterable[float | None]) -> str:
    return ''.join(f'{"-" if value is None else format(value, ".2f"):>8}' for value in values)


def _remarks(result: dict) -> Iterator[str]:
    """Yield the lines below the table."""
    if shift := result.get('shift'):
        yield f'the images were shifted as if stained and scanned by another laboratory: {shift}'
    if absent := [name for name, row in result['classes'].items() if not row['pixels'] and not row['predicted_pixels']]:
        yield f'in neither ground truth nor prediction: {", ".join(absent)}'
    kappa = '' if result['kappa'] is None else f', kappa {result["kappa"]:.3f}'
    yield f'pixel accuracy (aAcc) {result["aAcc"]:.2f} %, frequency-weighted IoU {result["fwIoU"]:.2f}{kappa}'
    if boundary := result.get('boundary'):
        yield f'boundary F1 (bnd F1) and normalised surface Dice (NSD) at a tolerance of {boundary["tolerance_um"]:g} um'
    if (ece := (result.get('calibration') or {}).get('ece')) is not None:
        yield f'expected calibration error (ECE) {ece:.2f} %'
    for name, row in result.get('groupings', {}).items():
        if row['mIoU'] is not None:
            yield f'{name}: mIoU {row["mIoU"]:.2f}, mDice {row["mDice"]:.2f}, aAcc {row["aAcc"]:.2f}'
    if intervals := result.get('intervals'):
        known = {k: v for k, v in intervals['figures'].items() if k in FIGURES and v is not None}
        ranges = ', '.join(f'{k} {low:.2f}..{high:.2f}' for k, (low, high) in known.items())
        yield f'{intervals["level"]} % intervals over {intervals["patients"]} {intervals["unit"]}s: {ranges}'
        if 'note' in intervals:
            yield f'note: {intervals["note"]}'
    if folds := result.get('folds'):
        yield ''
        yield f'{"fold":<22}' + ''.join(f'{key:>8}' for key in FIGURES) + f'{"ROIs":>8}{"patients":>10}'
        rows = {row['fold']: row for row in folds['rows']} | {'mean': folds['mean'], 'SD': folds['sd']}
        rows |= {'ensemble, test part': result['ensemble']} if result.get('ensemble') else {}
        for name, row in rows.items():
            cells = _cells(row[key] for key in FIGURES)
            yield f'{name:<22}{cells}{row.get("rois") or "":>8}{row.get("patients") or "":>10}'
