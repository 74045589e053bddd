"""Collect the data of the report's template, and write the report."""

import hashlib
from base64 import b64encode
from collections.abc import Iterable, Iterator
from itertools import repeat
from pathlib import Path

import numpy as np
from jinja2 import Template
from markupsafe import Markup

from ..errors import IgniteError
from ..evaluation.bootstrap import FEW_PATIENTS
from ..evaluation.confusion import Marginals
from ..evaluation.per_roi import holders
from ..files import result_file, writing
from ..visualization.colours import class_colours
from ..visualization.curves import Scalars, panels
from ..visualization.dataset_page import html_environment
from . import charts
from .gallery import GalleryItem, encode_item
from .translations import CLASS_NAMES, LANGUAGES, TEXTS, both, class_name

_HEADLINE = ('mIoU', 'mDice', 'aAcc', 'fwIoU', 'kappa')
_CONTEXT = ('config', 'checkpoint', 'split', 'protocol')
_PROVENANCE = ('version', 'date', 'seed', 'command', 'config_sha256', 'checkpoint_sha256', 'data_sha256')
_MAX_OPEN_ROWS = 12  # subgroup tables with more rows start collapsed


def write_report(
    path: str | Path,
    metrics: dict,
    evaluation: object,
    gallery: Iterable[GalleryItem] = (),
    curves: Scalars | None = None,
    language: str = 'en',
) -> None:
    """Write ``report.html``: scores, tables, charts and all regions in one file.

    Sections without data in ``metrics`` are omitted. Regions are encoded one by one while the file is written, so a
    generator keeps only one of them in memory.

    Args:
        metrics: content of ``metrics.json``.
        evaluation: its ``names`` (R,), ``metadata`` (R,), ``classes`` (C,) and ``matrices`` (R, C, C) int64 are read; if it
            has ``counts`` (R, C, C + 1), whose last column counts pixels without a prediction, those instead of
            ``matrices``.
        gallery: regions to show, all among those of ``evaluation``.
        curves: scalars from :func:`mmseg_ignite.visualization.curves.read_scalars`.
        language: 'en' or 'ko', the language at first; the reader can switch.

    Raises:
        IgniteError: the language is unknown, a region was not scored or its parts differ in size, or the file cannot be
            written.

    Example:
        >>> write_report('report.html', evaluation.metrics(), evaluation, language='ko')
    """
    if language not in LANGUAGES:
        raise IgniteError(f'the language of the report is {language!r}; one of {", ".join(LANGUAGES)} was expected.')
    counts = np.asarray(getattr(evaluation, 'counts', evaluation.matrices))
    classes = _classes(evaluation, counts)
    names = [dict(en=c['name'], ko=CLASS_NAMES.get(c['name'], c['name']), **c['colours']._asdict()) for c in classes]
    context = _CONTEXT if metrics.get('checkpoint') else ('predictions', *_CONTEXT)
    page = _template().stream(
        language=language,
        metrics=metrics,
        headline=_HEADLINE,
        context={key: metrics[key] for key in context if metrics.get(key)},
        classes=classes,
        absent=sum(c['gone'] for c in classes),
        provenance=_provenance(metrics),
        seen=sorted(set(metrics.get('seen_patients') or ())),
        pixels=int(counts.sum()),
        unpredicted=counts.shape[2] > len(classes),
        strata={column: rows for column, rows in (metrics.get('strata') or {}).items() if rows},
        folds=_folds(metrics),
        few=FEW_PATIENTS,
        curves=_curve_charts(curves or {}),
        regions=_regions(gallery, evaluation, counts),
        has_gallery=gallery is not None and gallery != (),
        data=dict(confusion=counts.sum(0).tolist(), classes=names, texts=TEXTS),
        charts=charts,
        many=_MAX_OPEN_ROWS,
    )
    with writing(path), result_file(path) as partial:
        page.dump(str(partial), encoding='utf-8', errors='backslashreplace')


def _template() -> Template:
    environment = html_environment(Path(__file__).parent)
    scripts = [environment.globals['static'](name) for name in ('report.js', 'gallery.js')]
    # The content security policy of the page allows scripts by checksum, so that no foreign script runs.
    hashes = ['sha256-' + b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    environment.globals.update(t=both, class_name=class_name, scripts=scripts, hashes=hashes)
    environment.filters.update(number=_number, count=_count)
    return environment.get_template('report.html.j2')


def _number(value: float | None, digits: int = 1) -> str:
    return f'{value:.{digits}f}' if isinstance(value, (int, float)) else '–'


def _count(value: int | None) -> str:
    return f'{value:,}' if isinstance(value, (int, float)) else '–'


def _provenance(metrics: dict) -> list[dict]:
    """Return key and values of each known item; an ensemble has several checkpoints."""
    known = metrics.get('provenance') or {}
    rows = {key: known[key] for key in _PROVENANCE if known.get(key) not in (None, '', [])}
    return [dict(key=k, values=[*map(str, v if isinstance(v, (list, tuple)) else [v])]) for k, v in rows.items()]


def _folds(metrics: dict) -> list[dict]:
    """Return the rows of the table of folds: each fold, mean, standard deviation, and the ensemble if it was tested."""
    if not (folds := metrics.get('folds')):
        return []
    summary = dict(mean=folds['mean'], sd=folds['sd'], ensemble=metrics.get('ensemble'))
    rows = [dict(row, name=row['fold']) for row in folds['rows']]
    return rows + [dict(row, key=key, summary=True) for key, row in summary.items() if row]


def _classes(evaluation: object, counts: np.ndarray) -> list[dict]:
    """Return name and colours of each class, its pixels and patients in the ground truth; gone if it is in neither map."""
    truth, predicted, _ = (pixels.tolist() for pixels in Marginals.of(counts.sum(0)))
    patients = holders(counts, getattr(evaluation, 'metadata', None) or [{}])
    patients = repeat(None) if patients is None else patients.tolist()
    return [
        dict(id=i, name=name, colours=class_colours(name, i), pixels=t, patients=n, gone=not t and not p)
        for i, (name, t, p, n) in enumerate(zip(map(str, evaluation.classes), truth, predicted, patients))
    ]


def _curve_charts(curves: Scalars) -> list[tuple[str, Markup]]:
    """Return (key of the translations, SVG) of each panel of training curves that has finite values."""
    found = []
    for key, names in panels(curves).items():
        limits = (0.0, 100.0) if key == 'validation' else None
        found.append((key, charts.line_chart({n: list(curves[n].items()) for n in names}, 'iteration', limits)))
    return [(key, svg) for key, svg in found if svg]


def _regions(gallery: Iterable[GalleryItem], evaluation: object, counts: np.ndarray) -> Iterator[dict]:
    matrices = dict(zip(map(str, evaluation.names), counts))
    classes = tuple(map(str, evaluation.classes))
    for item in gallery or ():
        if item.roi not in matrices:
            raise IgniteError(f'{item.roi} was not scored, so the report cannot show it: show only scored ROIs.')
        yield encode_item(item, matrices[item.roi], classes)
