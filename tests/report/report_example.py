"""An example run: synthetic tissue, predictions with plausible errors, and their metrics computed independently."""

from types import SimpleNamespace

import cv2
import numpy as np

from mmseg_ignite.evaluation import confusion_matrix, scores
from mmseg_ignite.labels import CLASSES, IGNORE
from mmseg_ignite.preparation.synthetic import _layout, _noise
from mmseg_ignite.report import GalleryItem

GROUPS = {
    'Background': ['Background'],
    'Tumor': ['Tumor epithelium'],
    'Stroma + Inflammation': ['Stroma', 'Inflammation'],
    'Necrotic': ['Necrotic tissue'],
    'Macrophages': ['Macrophages'],
}
CONFUSIONS = {1: 2, 2: 1, 3: 13, 4: 3, 7: 10, 12: 4, 5: 0, 13: 3, 10: 7, 9: 2}
"""{true train id: predicted train id} of plausible confusions."""


def corrupt(rng, truth, share=0.15):
    """Return a prediction with shifted borders, islands of confused classes and unannotated pixels filled in."""
    shape = truth.shape
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    grain = max(6.0, min(shape) / 25)
    moved = [a + 0.25 * grain * _noise(rng, shape, grain) for a in (x, y)]
    filled = np.where(truth == IGNORE, 3, truth).astype(np.uint8)
    prediction = cv2.remap(filled, *moved, cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE)
    field = _noise(rng, shape, max(8.0, min(shape) / 8)) + 0.3 * _noise(rng, shape, grain / 2)
    wrong = field > np.quantile(field, 1 - share)
    table = np.array([CONFUSIONS.get(i, 3) for i in range(16)], np.uint8)
    return np.where(wrong, table[prediction], prediction)


def synthetic_items(rng, rois=4, size=(120, 150)):
    """Yield regions of colour noise with smooth label maps, partly unannotated."""
    for i in range(rois):
        truth = _layout(rng, size, rng.choice(16, 5, replace=False))
        truth[: size[0] // 8, : size[1] // 5] = IGNORE
        image = np.clip(np.array([225, 180, 210]) + 20 * rng.standard_normal((*size, 3)), 0, 255).astype(np.uint8)
        metadata = dict(
            patient=str(i // 2 + 1),
            organ=('lung', 'liver')[i % 2],
            scanner=('P1000', 'DP200', 'AT2')[i % 3],
            source='synthetic',
            histological_subtype=('adenocarcinoma', 'squamous cell carcinoma, not otherwise specified')[i % 2],
        )
        yield GalleryItem(f'patient{i // 2 + 1}_he_roi{i}', metadata, image, truth, corrupt(rng, truth), 0.5)


def evaluate(items, classes=CLASSES):
    """Return a duck-typed evaluation."""
    matrices = np.stack([confusion_matrix(i.truth, i.prediction, len(classes)) for i in items])
    return SimpleNamespace(
        names=[i.roi for i in items], matrices=matrices, classes=classes, metadata=[dict(i.metadata) for i in items]
    )


def _dice(matrix):
    with np.errstate(invalid='ignore'):
        return 200 * np.diag(matrix) / (matrix.sum(0) + matrix.sum(1))


def _none(value):
    return None if not np.isfinite(value) else float(value)


def _published(pooled, classes):
    counted = pooled.copy()
    counted[0] = 0
    index = [next((g for g, names in enumerate(GROUPS.values()) if c in names), len(GROUPS)) for c in classes]
    grouped = np.zeros((len(GROUPS) + 1,) * 2, np.int64)
    np.add.at(grouped, np.ix_(index, index), counted)
    return dict(
        classes={c: _none(d) for c, d in zip(classes[1:], _dice(counted)[1:])},
        mean_dice=_none(np.nanmean(_dice(counted)[1:])),
        micro_dice=_none(200 * np.trace(counted) / (2 * counted.sum() + counted[0].sum())),
        groups={g: _none(d) for g, d in zip(list(GROUPS)[1:] + ['Rest'], _dice(grouped)[1:])},
        groups_mean_dice=_none(np.nanmean(_dice(grouped)[1:])),
        groups_micro_dice=_none(200 * np.trace(grouped) / (2 * grouped.sum())),
    )


def _extra(pooled):
    total, hit, truth = pooled.sum(), np.diag(pooled), pooled.sum(1)
    expected = (truth * pooled.sum(0)).sum() / total**2
    with np.errstate(invalid='ignore'):
        iou = 100 * hit / (truth + pooled.sum(0) - hit)
    return dict(
        fwIoU=float(np.nansum(iou * truth) / total),
        kappa=float((hit.sum() / total - expected) / (1 - expected)),
        mIoU_all_classes=float(np.nanmean(iou)),
        mDice_all_classes=float(np.nanmean(_dice(pooled))),
    )


def _figures(matrices, classes):
    pooled = matrices.sum(0)
    result = {**scores(pooled, classes), **_extra(pooled)}
    for i, row in enumerate(result['classes'].values()):
        row['predicted_pixels'] = int(pooled[:, i].sum())
    return result


def _interval(values):
    values = [v for v in values if v is not None]
    return [float(v) for v in np.percentile(values, (2.5, 97.5))] if values else None


def metrics_of(evaluation, rng, samples=60):
    """Return a metrics dict of schema 1; boundary and calibration are invented."""
    matrices, classes, n = evaluation.matrices, evaluation.classes, len(evaluation.names)
    result = _figures(matrices, classes)
    draws = [_figures(matrices[rng.integers(0, n, n)], classes) for _ in range(samples)]
    keys = ('mIoU', 'mDice', 'aAcc', 'fwIoU', 'kappa', 'mIoU_all_classes')
    intervals = dict(
        level=95, samples=samples, seed=0, unit='patient', patients=len({m['patient'] for m in evaluation.metadata}),
        figures={k: _interval([d[k] for d in draws]) for k in keys},
        classes={
            c: {**{k: _interval([d['classes'][c][k] for d in draws]) for k in ('IoU', 'Dice')},
                'patients': len({m['patient'] for m, matrix in zip(evaluation.metadata, matrices) if matrix[i].any()})}
            for i, c in enumerate(classes)
        },
    )  # fmt: skip
    strata = {}
    for column in ('organ', 'scanner', 'histological_subtype', 'patient'):
        for value in sorted({str(m[column]) for m in evaluation.metadata if column in m}):
            chosen = [i for i, m in enumerate(evaluation.metadata) if str(m.get(column)) == value]
            part = scores(matrices[chosen].sum(0), classes)
            strata.setdefault(column, {})[value] = dict(
                rois=len(chosen), patients=len({evaluation.metadata[i]['patient'] for i in chosen}),
                pixels=int(matrices[chosen].sum()), **{k: part[k] for k in ('mIoU', 'mDice', 'aAcc', 'classes_present')},
            )  # fmt: skip
    edges = np.linspace(0, 1, 11)
    spans = [{'from': float(a), 'to': float(b)} for a, b in zip(edges, edges[1:])]
    bins = [
        dict(s, pixels=int(1000 * 2**i), confidence=100 * s['to'] - 5, accuracy=max(0.0, 90 * s['to'] - 6))
        for i, s in enumerate(spans)
    ]
    entropy = [dict(s, pixels=int(90_000 / 2**i), error=4.0 + 8 * i) for i, s in enumerate(spans)]
    seen = {c: row for c, row in result['classes'].items() if row['pixels']}
    return dict(
        schema_version=1, **result, intervals=intervals, strata=strata, published=_published(matrices.sum(0), classes),
        calibration=dict(ece=5.3, bins=bins, entropy=entropy),
        boundary=dict(
            tolerance_um=5.0, mean_boundary_F1=61.0, mean_NSD=66.0,
            classes={c: dict(boundary_F1=0.9 * row['Dice'], NSD=0.95 * row['Dice']) for c, row in seen.items()},
        ),
        rois=n, checkpoint='iter_20000.pth', config='segformer_mit-b0.py', split='test', protocol='official',
    )  # fmt: skip


def example_curves(rng):
    steps = range(50, 20_001, 50)
    decay = {s: float(2.2 * np.exp(-s / 5000) + 0.25 + 0.05 * rng.random()) for s in steps}
    return {
        'loss': decay,
        'decode.loss_ce': {s: 0.7 * v for s, v in decay.items()},
        'lr': {s: 6e-5 * (1 - s / 20_000) for s in steps},
        'mIoU': {s: 70 - 50 * float(np.exp(-s / 4000)) for s in range(2000, 20_001, 2000)},
        'aAcc': {s: 90 - 40 * float(np.exp(-s / 4000)) for s in range(2000, 20_001, 2000)},
    }
