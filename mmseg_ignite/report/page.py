"""The report: what the template is given, and the writing of it."""

import hashlib
from base64 import b64encode
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from ..errors import IgniteError
from ..evaluation.bootstrap import FEW_PATIENTS
from ..evaluation.confusion import Marginals
from ..evaluation.per_roi import holders
from ..files import result_file
from ..visualization.curves import panels
from . import charts
from .gallery import GalleryItem, encode_item
from .palette import class_colours
from .translations import CLASS_NAMES, LANGUAGES, TEXTS, both, class_name

_HERE = Path(__file__).parent
_HEADLINE = ('mIoU', 'mDice', 'aAcc', 'fwIoU', 'kappa')
_CONTEXT = ('config', 'checkpoint', 'split', 'protocol')
_PROVENANCE = ('version', 'date', 'seed', 'command', 'config_sha256', 'checkpoint_sha256', 'data_sha256')
_MANY = 12
"""Subgroups of a column with more rows than this are folded."""


def write_report(
    path: str | Path,
    metrics: dict,
    evaluation: object,
    gallery: Iterable[GalleryItem] = (),
    curves: dict[str, dict[int, float]] | None = None,
    language: str = 'en',
) -> None:
    """Write ``report.html``: scores, tables, charts and all regions in one file.

    Sections whose data are absent from ``metrics`` are left out. Regions are encoded one by one as the file is written, so
    a generator keeps only one of them in memory.

    Args:
        path: of the file.
        metrics: what ``metrics.json`` holds.
        evaluation: names (R,), metadata (R,), matrices (R, C, C) int64 (or ``counts``, if it has them) and classes (C,) are
            read.
        gallery: regions to show, among those of ``evaluation``.
        curves: as :func:`mmseg_ignite.visualization.curves.read_scalars` gives.
        language: 'en' or 'ko', shown first; the reader may change it.

    Raises:
        IgniteError: another language, a region that was not scored or whose parts differ in size, or a file that cannot be
            written.
    """
    if language not in LANGUAGES:
        raise IgniteError(f'the language of the report is {language!r}; one of {", ".join(LANGUAGES)} was expected.')
    classes = _classes(evaluation)
    page = _template().stream(
        language=language,
        metrics=metrics,
        headline=[_figure(metrics, key) for key in _HEADLINE if metrics.get(key) is not None],
        context=_context(metrics),
        classes=classes,
        absent=sum(c['gone'] for c in classes),
        provenance=_provenance(metrics),
        seen=sorted(set(metrics.get('seen_patients') or ())),
        pixels=int(_counts(evaluation).sum()),
        unpredicted=_counts(evaluation).shape[2] > len(evaluation.classes),
        strata={column: rows for column, rows in (metrics.get('strata') or {}).items() if rows},
        groupings=metrics.get('groupings') or {},
        gone_groups=_gone_groups(metrics),
        folds=_folds(metrics),
        few=FEW_PATIENTS,
        curves=_curve_charts(curves or {}),
        regions=_regions(gallery, evaluation),
        has_gallery=gallery is not None and gallery != (),
        data=_data(metrics, evaluation),
        charts=charts,
        many=_MANY,
    )
    try:
        with result_file(path) as partial:
            page.dump(str(partial), encoding='utf-8', errors='backslashreplace')
    except OSError as error:
        raise IgniteError(f'{path} cannot be written ({error.strerror or error}): choose another folder.') from error


def _template() -> object:
    environment = Environment(
        loader=FileSystemLoader(_HERE / 'templates'), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    scripts = [_static(name) for name in ('report.js', 'gallery.js')]
    environment.globals.update(
        t=both, class_name=class_name, style=_static('report.css'), scripts=scripts, hashes=[_hash(s) for s in scripts]
    )
    environment.filters.update(number=_number, count=_count)
    return environment.get_template('report.html.j2')


def _static(name: str) -> Markup:
    return Markup((_HERE / 'static' / name).read_text(encoding='utf-8'))


def _hash(script: str) -> str:
    """The name of a script for the page's content security policy: no other script is run, wherever it came from."""
    return 'sha256-' + b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _number(value: float | None, digits: int = 1) -> str:
    """A figure, or a dash where there is none."""
    return f'{value:.{digits}f}' if isinstance(value, (int, float)) else '–'


def _count(value: int | None) -> str:
    return f'{value:,}' if isinstance(value, (int, float)) else '–'


def _context(metrics: dict) -> dict:
    """Where the figures come from; of another tool the folder of its predictions."""
    keys = _CONTEXT if metrics.get('checkpoint') else ('predictions', *_CONTEXT)
    return {key: metrics[key] for key in keys if metrics.get(key)}


def _provenance(metrics: dict) -> list[dict]:
    """What made the figures, as far as known; an ensemble has several checkpoints."""
    known = metrics.get('provenance') or {}
    rows = [(key, known.get(key)) for key in _PROVENANCE]
    return [
        dict(key=key, values=[str(v) for v in (value if isinstance(value, (list, tuple)) else [value])])
        for key, value in rows
        if value not in (None, '', [])
    ]


def _gone_groups(metrics: dict) -> set[str]:
    """Groups of the published protocol that are in neither ground truth nor prediction."""
    groups = ((metrics.get('groupings') or {}).get('ignite-6') or {}).get('groups') or {}
    return {name for name, row in groups.items() if not row['pixels'] and not row['predicted_pixels']}


def _folds(metrics: dict) -> list[dict]:
    """Rows of the table of folds: each fold, mean, standard deviation, and the ensemble where it was tested."""
    folds = metrics.get('folds')
    if not folds:
        return []
    rows = [dict(row, name=row['fold']) for row in folds['rows']]
    rows += [dict(folds['mean'], key='mean', summary=True), dict(folds['sd'], key='sd', summary=True)]
    return rows + ([dict(metrics['ensemble'], key='ensemble', summary=True)] if metrics.get('ensemble') else [])


def _figure(metrics: dict, key: str) -> dict:
    """A headline figure: value, interval, and their places on a scale of 0..100 (kappa: 0..1)."""
    figures = (metrics.get('intervals') or {}).get('figures') or {}
    scale, digits = (100, 3) if key == 'kappa' else (1, 1)
    everything = f'{key}_all_classes'
    return dict(
        key=key,
        value=metrics[key],
        digits=digits,
        interval=figures.get(key),
        scale=scale,
        everything=metrics.get(everything),
        everything_interval=figures.get(everything),
    )


def _classes(evaluation: object) -> list[dict]:
    """Name and colours of each class, its pixels and patients in the ground truth; gone if it is in neither map."""
    counts = _counts(evaluation)
    pooled = Marginals.of(counts.sum(0))
    patients = holders(counts, getattr(evaluation, 'metadata', None) or [{}])
    return [
        dict(
            id=i,
            name=str(name),
            colours=class_colours(str(name), i),
            pixels=int(pooled.truth[i]),
            patients=None if patients is None else int(patients[i]),
            gone=not pooled.truth[i] and not pooled.predicted[i],
        )
        for i, name in enumerate(evaluation.classes)
    ]


def _data(metrics: dict, evaluation: object) -> dict:
    """What the scripts need."""
    return dict(
        confusion=_counts(evaluation).sum(0).tolist(),
        classes=[
            dict(en=c['name'], ko=CLASS_NAMES.get(c['name'], c['name']), **c['colours']._asdict())
            for c in _classes(evaluation)
        ],
        texts={key: dict(zip(LANGUAGES, text)) for key, text in TEXTS.items()},
    )


def _curve_charts(curves: dict[str, dict[int, float]]) -> list[tuple[str, Markup]]:
    """(key of the translations, SVG) of losses, learning rate and validation scores, as far as they were logged."""
    result = []
    for key, names in panels(curves).items():
        y_range = (0.0, 100.0) if key == 'validation' else None
        if svg := charts.line_chart({n: list(curves[n].items()) for n in names}, 'iteration', y_range):
            result.append((key, svg))
    return result


def _regions(gallery: Iterable[GalleryItem], evaluation: object) -> Iterator[dict]:
    matrices = dict(zip(map(str, evaluation.names), _counts(evaluation)))
    classes = tuple(map(str, evaluation.classes))
    for item in gallery or ():
        if item.roi not in matrices:
            raise IgniteError(
                f'{item.roi} is to be shown in the report but was not scored: score the ROIs that are shown.'
            )
        yield encode_item(item, matrices[item.roi], classes)


def _counts(evaluation: object) -> np.ndarray:
    """(R, C, C) int64, or (R, C, C + 1) where pixels were left without a prediction, which the last column counts."""
    return np.asarray(getattr(evaluation, 'counts', evaluation.matrices))
