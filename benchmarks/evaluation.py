"""Time of scoring synthetic label maps of 2000 x 2400 px: complete runs, single steps, and the bootstrap.

    python benchmarks/evaluation.py [--work-dir work_dirs/benchmarks/evaluation] [--rois 41] [--quick]

Print a table and write evaluation.json to the work dir. Ratios are of medians of alternating runs; single steps run on one
core.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import timeit
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import torch
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table

from mmseg_ignite.apis import load_config, score_folder
from mmseg_ignite.datasets.index_schema import FORMAT
from mmseg_ignite.datasets.prepared import INDEX
from mmseg_ignite.environment import cores
from mmseg_ignite.evaluation import TissueMetric
from mmseg_ignite.evaluation.bootstrap import intervals, paired
from mmseg_ignite.evaluation.boundary import boundary_counts
from mmseg_ignite.evaluation.calibration import calibration_counts
from mmseg_ignite.evaluation.confusion import confusion_matrix
from mmseg_ignite.files import write_json
from mmseg_ignite.labels import CLASSES, IGNORE, count_classes

SHAPE = (2000, 2400)
CONFIG = Path(__file__).parents[1] / 'configs' / 'segformer' / 'segformer_mit-b0_1xb8-20k_ignite-512x512.py'


def blobs(rng: np.random.Generator, classes: int, cells: int) -> np.ndarray:
    """Return a patchy label map (H, W) uint8; more cells give smaller patches."""
    noise = rng.normal(size=(classes, cells, cells)).astype(np.float32)
    best, labels = np.full(SHAPE, -np.inf, np.float32), np.zeros(SHAPE, np.uint8)
    for c, field in enumerate(noise):
        field = cv2.resize(field, SHAPE[::-1], interpolation=cv2.INTER_CUBIC)
        labels[field > best] = c
        np.maximum(best, field, out=best)
    return labels


def pair(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a ground truth of 8 classes with an unannotated strip, and a prediction that is correct for two thirds."""
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(16)[:8].astype(np.uint8)
    truth = chosen[blobs(rng, 8, 20)]
    prediction = np.where(blobs(rng, 3, 30) == 0, chosen[blobs(rng, 8, 40)], truth)
    truth[:200] = IGNORE
    return truth, prediction


def build(work: Path, rois: int, console: Console) -> tuple[Path, Path]:
    """Write a prepared data set with labels only and a folder of predicted PNGs with raw ids, unless they exist."""
    data, predictions = work / f'data_{rois}', work / f'predictions_{rois}'
    if (data / INDEX).is_file():
        return data, predictions
    (data / 'labels').mkdir(parents=True, exist_ok=True)
    predictions.mkdir(exist_ok=True)
    entries = []
    for i in track(range(rois), 'writing label maps', console=console, transient=True):
        truth, prediction = pair(i)
        name = f'patient{i % 20}_he_roi{i}'
        np.save(data / 'labels' / f'{name}.npy', truth)
        Image.fromarray(prediction + np.uint8(1)).save(predictions / f'{name}.png')
        facts = dict(zip(('height', 'width'), truth.shape), pixels=count_classes(truth).tolist())
        entries.append(dict(name=name, patient=str(i % 20), um_per_px=0.5, organ='lung', scanner=f's{i % 3}', **facts))
    parts = dict(train=[], val=[], test=[e['name'] for e in entries])
    write_json(data / INDEX, dict(format=FORMAT, classes=list(CLASSES), splits={'official': parts}, rois=entries))
    return data, predictions


def alternately(calls: list[Callable], rounds: int) -> list[float]:
    """Return the median seconds of each call; calls alternate."""
    rounds_of_seconds = [[timeit.timeit(call, number=1) for call in calls] for _ in range(rounds)]
    return [statistics.median(seconds) for seconds in zip(*rounds_of_seconds)]


def measure_scoring(data: Path, predictions: Path, work: Path, rounds: int) -> list[tuple]:
    """Compare tools/evaluate.py with only decoding the same PNGs in as many threads (ratio: to Pillow)."""
    paths = sorted(predictions.glob('*.png'))

    def decode(call: Callable) -> None:
        with ThreadPoolExecutor(cores()) as pool:
            list(pool.map(lambda p: np.asarray(call(p)).shape, paths))

    def score(**options) -> None:
        score_folder(predictions, data, work / 'run', 'official', encoding='raw', report=None, **options)

    decoding, faster, scoring, boundaries = alternately(
        [
            lambda: decode(Image.open),
            lambda: decode(lambda p: cv2.imread(str(p), cv2.IMREAD_UNCHANGED)),
            score,
            lambda: score(boundary_tolerance_um=5.0),
        ],
        rounds,
    )
    baseline = f'decode: Pillow {decoding:.2f} s, OpenCV {faster:.2f} s'
    return [
        (f'score {len(paths)} PNGs, all scores', f'{scoring:.2f} s', baseline, scoring / decoding, '<= 2x'),
        ('the same with boundaries at 5 um', f'{boundaries:.2f} s', baseline, boundaries / decoding, ''),
    ]


def measure_parts(rounds: int) -> list[tuple]:
    """Measure the steps of one ROI on one core."""
    truth, prediction = pair(0)
    probabilities = np.full((16, *SHAPE), 0.02, np.float32)
    np.put_along_axis(probabilities, prediction[None].astype(np.int64), 0.7, 0)
    affinity, threads = os.sched_getaffinity(0), cv2.getNumThreads()
    os.sched_setaffinity(0, {min(affinity)})
    cv2.setNumThreads(1)
    try:
        counting, boundary, calibration = alternately(
            [
                lambda: confusion_matrix(truth, prediction, 16),
                lambda: boundary_counts(truth, prediction, 16, 5.0, 0.5),
                lambda: calibration_counts(probabilities, truth),
            ],
            rounds,
        )
    finally:
        os.sched_setaffinity(0, affinity)
        cv2.setNumThreads(threads)
    return [
        ('confusion matrix of an ROI', f'{counting * 1e3:.1f} ms', '', None, ''),
        ('boundaries of an ROI, 8 classes', f'{boundary:.2f} s', '', None, '1 s'),
        ('calibration of an ROI', f'{calibration:.2f} s', '', None, ''),
    ]


def measure_share(rounds: int) -> list[tuple]:
    """Compare TissueMetric with the prediction of the same ROI by SegFormer-B0 with sliding windows."""
    cfg = load_config(CONFIG)
    cfg.model.backbone.init_cfg = None
    init_default_scope('mmseg')
    model = revert_sync_batchnorm(MODELS.build(cfg.model)).eval()
    metric = TissueMetric()
    metric.dataset_meta = dict(classes=CLASSES)
    truth, _ = pair(0)
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, *SHAPE)).astype(np.uint8))
    sample = SegDataSample(metainfo=dict(roi='one', ori_shape=SHAPE, img_shape=SHAPE))
    sample.gt_sem_seg = PixelData(data=torch.from_numpy(truth)[None])
    found = []

    def predict() -> None:
        with torch.inference_mode():
            found[:] = model.test_step(dict(inputs=[image], data_samples=[sample]))

    predict()  # warm up, and get a prediction to count
    predicting, counting = alternately([predict, lambda: metric.process({}, [found[0].to_dict()])], max(1, rounds // 2))
    percentage = f'{100 * counting / (counting + predicting):.2f} % of the test'
    baseline = f'SegFormer-B0 predicting it {predicting:.1f} s'
    return [('TissueMetric, one ROI', f'{counting * 1e3:.1f} ms, {percentage}', baseline, None, '< 3 %')]


def measure_bootstrap(work: Path, rounds: int) -> list[tuple]:
    """Measure 10,000 samples over the patients of the scored run."""
    result = json.loads((work / 'run' / 'metrics.json').read_text())
    with np.load(work / 'run' / 'confusion.npz') as run:
        matrices, metadata = run['matrices'], json.loads(str(run['metadata']))
    one, two = alternately(
        [
            lambda: intervals(matrices, metadata, CLASSES, 10_000),
            lambda: paired(matrices, matrices, metadata, CLASSES, 10_000),
        ],
        rounds,
    )
    title = f'10,000 samples, {len(matrices)} ROIs of {result["intervals"]["patients"]} patients'
    return [(title, f'{one:.3f} s', '', None, '< 2 s'), ('paired, two runs', f'{two:.3f} s', '', None, '< 2 s')]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/benchmarks/evaluation'))
    parser.add_argument('--rois', type=int, default=41)
    parser.add_argument('--quick', action='store_true', help='one round and fewer ROIs, to check that it works')
    args = parser.parse_args()
    console, rounds = Console(), 1 if args.quick else 5
    data, predictions = build(args.work_dir, 3 if args.quick else args.rois, console)
    rows = measure_scoring(data, predictions, args.work_dir, rounds)
    rows += measure_parts(rounds) + measure_share(rounds) + measure_bootstrap(args.work_dir, rounds)
    shutil.rmtree(args.work_dir / 'run')
    columns = ('what', 'ours', 'baseline', 'ratio', 'goal')
    table = Table(*columns, title=f'evaluation, {platform.machine()}, {cores()} cores')
    for what, ours, baseline, ratio, goal in rows:
        table.add_row(what, ours, baseline, f'{ratio:.2f}x' if ratio else '', goal)
    console.print(table)
    write_json(args.work_dir / 'evaluation.json', [dict(zip(columns, row)) for row in rows])
    console.print(f'written: {args.work_dir / "evaluation.json"}')


if __name__ == '__main__':
    main()
