"""Whole slides end to end: time compared with the network alone, memory, megapixels per second, and tiatoolbox.

    python benchmarks/slides.py [--only real large constant outlines rival] [--slide SLIDE] [--checkpoint FILE] [--rounds 3]
        [--size 30000 40000] [--tiatoolbox PYTHON] [--work-dir work_dirs/benchmarks/slides]

- real: a slide with all default outputs, and the bare network on the same windows in memory, alternately.
- large: a synthetic pyramidal slide of --size at 0.25 um/px, 30 % of its tiles tissue, with the time of each part.
- constant: the same slide with the network replaced by a constant, so that reading and writing alone are timed.
- outlines: GeoJSON of a random map of 4096 x 4096 px with more than 5,000 regions, and what QuPath's rules say of it.
- rival: tiatoolbox on the slide, by the Python of an environment that has it, see ``slides_tiatoolbox.py``.

The network is SegFormer-B0 of the 20k config: windows of 512 px, stride 384 px. Without --checkpoint it has random weights,
which give more and rougher regions than a trained network. Each part runs in its own process, whose peak memory is printed.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
from rich.console import Console
from rich.table import Table

from mmseg_ignite.apis import Predictor, load_config, predicting, prediction_writers
from mmseg_ignite.apis.predicting import predict_files
from mmseg_ignite.apis.prediction_sources import opened
from mmseg_ignite.engine.allocator import keep_freed_memory
from mmseg_ignite.models.segmentors import window_scores
from mmseg_ignite.regions import find_components, merge_specks
from mmseg_ignite.regions.geojson import write_geojson
from mmseg_ignite.regions.qupath import qupath_faults
from mmseg_ignite.slides import open_slide

ROOT = Path(__file__).parents[1]
CONFIG = str(ROOT / 'configs/segformer/segformer_mit-b0_1xb8-20k_ignite-512x512.py')
SLIDE = ROOT.parent / 'shared/data/slides/CMU-1-Small-Region.svs'
PARTS = ('real', 'large', 'constant', 'outlines', 'rival')
FUNCTIONS = {
    'merging of small regions': (predicting, 'merge_specks'),
    'areas': (predicting, 'areas'),
    'label TIFF': (prediction_writers, 'write_label_pyramid'),
    'preview': (prediction_writers, 'write_label_preview'),
    'GeoJSON': (prediction_writers, 'write_geojson'),
    'overlay': (prediction_writers, '_write_overlay'),
    'viewer tiles': (prediction_writers, 'write_deep_zoom'),
}


def build(checkpoint: Path | None, work_dir: Path) -> Predictor:
    """Return B0 with the weights of a checkpoint, else with random ones."""
    if checkpoint is None:
        cfg = load_config(CONFIG)
        cfg.model.backbone.init_cfg = None
        init_default_scope('mmseg')
        torch.manual_seed(0)
        checkpoint = work_dir / 'random.pth'
        torch.save(dict(state_dict=MODELS.build(cfg.model).state_dict()), checkpoint)
    return Predictor(CONFIG, checkpoint)


def bare_seconds(predictor: Predictor, slide: Path, most: int) -> tuple[float, int]:
    """Return the seconds of the network for the windows of a slide, measured on ``most`` or fewer, and their number."""
    item = predicting.find_inputs([slide])[0]
    with opened(item, predictor, predicting.PredictionOptions()) as source:
        places = source.windows
        step = max(1, len(places) // most)
        windows = [source.image[slice(*rows), slice(*columns)] for rows, columns in places[::step][:most]]
    settings, device = predictor.model.test_settings(), predictor.device
    batches = [np.stack(windows[i : i + 4]) for i in range(0, len(windows) - len(windows) % 4 or len(windows), 4)]
    with torch.inference_mode():
        start = time.perf_counter()
        for batch in batches:
            x = window_scores.preprocessed(predictor.model, batch, device)
            window_scores.window_scores(predictor.model, x, [{}], settings)
    return (time.perf_counter() - start) / sum(map(len, batches)) * len(places), len(places)


def predict(predictor: Predictor, slide: Path, out: Path) -> float:
    """Predict a slide with the default outputs; return the seconds."""
    start = time.perf_counter()
    faults = predict_files(predictor, [slide], out, lambda text: None, overwrite=True)
    if faults:
        sys.exit(faults[0])
    return time.perf_counter() - start


def timed_parts() -> dict[str, float]:
    """Let the functions of the outputs add their seconds to the dictionary that is returned."""
    seconds = defaultdict(float)

    def timed(name: str, function: Callable) -> Callable:
        def call(*arguments, **options):
            start = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                seconds[name] += time.perf_counter() - start

        return call

    for name, (module, function) in FUNCTIONS.items():
        setattr(module, function, timed(name, getattr(module, function)))
    Predictor.label = timed('reading, network and adding up', Predictor.label)
    return seconds


def synthetic_slide(work_dir: Path, size: tuple[int, int]) -> Path:
    """Return a synthetic slide, written if it does not exist."""
    path = work_dir / f'synthetic_{size[0]}x{size[1]}.svs'
    if not path.exists():
        sys.path.insert(0, str(ROOT / 'tests' / 'slides'))
        from slide_example import write_slide

        write_slide(path, size, 0.25, 0.3)
    return path


def measure_real(args: argparse.Namespace) -> dict:
    predictor, bare, whole = build(args.checkpoint, args.work_dir), [], []
    parts = timed_parts()
    predict(predictor, args.slide, args.work_dir / 'real')
    parts.clear()
    for _ in range(args.rounds):
        seconds, windows = bare_seconds(predictor, args.slide, 10_000)
        bare.append(seconds)
        whole.append(predict(predictor, args.slide, args.work_dir / 'real'))
    named = {name: value / args.rounds for name, value in parts.items()}
    return result(windows, statistics.median(bare), statistics.median(whole), named)


def measure_large(args: argparse.Namespace) -> dict:
    predictor, slide = build(args.checkpoint, args.work_dir), synthetic_slide(args.work_dir, args.size)
    parts = timed_parts()
    before, windows = bare_seconds(predictor, slide, 80)
    whole = predict(predictor, slide, args.work_dir / 'large')
    after, _ = bare_seconds(predictor, slide, 80)
    return result(windows, (before + after) / 2, whole, parts)


def measure_constant(args: argparse.Namespace) -> dict:
    predictor, slide = build(args.checkpoint, args.work_dir), synthetic_slide(args.work_dir, args.size)
    classes = predictor.model.out_channels

    def constant(inputs: torch.Tensor, metas: list[dict]) -> torch.Tensor:
        """Return scores that make a few classes of the brightness, without a network."""
        scores = inputs.new_zeros((len(inputs), classes, *inputs.shape[2:]))
        grey = torch.nn.functional.avg_pool2d(inputs.mean(1, keepdim=True), 64)
        scores[:, 1] = torch.nn.functional.interpolate(grey, inputs.shape[2:], mode='bilinear')[:, 0]
        scores[:, 3] = -scores[:, 1]
        return scores

    predictor.model.encode_decode = constant
    parts = timed_parts()
    whole = predict(predictor, slide, args.work_dir / 'constant')
    with open_slide(slide) as opened_slide:
        megapixels = opened_slide.size[0] * opened_slide.size[1] / 1e6
    found = result(bare_seconds(predictor, slide, 4)[1], None, whole, parts)
    return dict(found, megapixels=megapixels)


def measure_outlines(args: argparse.Namespace) -> dict:
    """Time the outlines of smooth random regions of all classes, two thirds tissue."""
    rng, side = np.random.default_rng(0), 4096
    labels = np.zeros((side, side), np.uint8)
    best = cv2.GaussianBlur(rng.standard_normal((side, side), np.float32), (0, 0), 21) * 21 + 0.6
    for label in range(1, 16):
        field = cv2.GaussianBlur(rng.standard_normal((side, side), np.float32), (0, 0), 21) * 21
        labels[field > best] = label
        np.maximum(best, field, out=best)
    merge_specks(labels, 20)
    path, seconds = args.work_dir / 'outlines.geojson', []
    for _ in range(args.rounds):
        start = time.perf_counter()
        write_geojson(path, labels, 0.5, overwrite=True)
        seconds.append(time.perf_counter() - start)
    regions = int((find_components(labels).labels > 0).sum())
    return dict(regions=regions, seconds=statistics.median(seconds), faults=qupath_faults(path))


def result(windows: int, bare: float | None, whole: float, parts: dict[str, float]) -> dict:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return dict(windows=windows, bare=bare, whole=whole, parts=dict(parts), peak_mb=peak)


def measure_rival(args: argparse.Namespace) -> dict:
    """Run tiatoolbox and then our prediction with the same network; say what QuPath's rules make of both outlines."""
    script, model = Path(__file__).with_name('slides_tiatoolbox.py'), args.work_dir / 'b0.pt'
    subprocess.run([sys.executable, '-W', 'ignore', script, '--export', model], check=True)
    command = [args.tiatoolbox, '-W', 'ignore', script, '--slide', args.slide, '--model', model]
    out = args.work_dir / 'tiatoolbox'
    done = subprocess.run([*command, '--out', out, '--batch', '4'], check=True, stdout=subprocess.PIPE, text=True)
    rival = json.loads(done.stdout.strip().splitlines()[-1])
    files = {path.name: qupath_faults(path, limit=100_000) for path in sorted(out.glob('*json'))}
    ours = qupath_faults(args.work_dir / 'real' / f'{args.slide.stem}.geojson')
    return dict(rival=rival, faults={name: len(found) for name, found in files.items()}, our_faults=len(ours))


def show(part: str, found: dict) -> None:
    if part in ('rival', 'outlines'):
        print(json.dumps(found, indent=1))
        return
    table = Table(title=f'{part}: {found["windows"]} windows, peak memory {found["peak_mb"]:.0f} MB')
    for column in ('', 'seconds', 'share'):
        table.add_column(column, justify='left' if not column else 'right')
    if found['bare']:
        table.add_row('network alone, same windows', f'{found["bare"]:.2f}', '')
    for name, seconds in sorted(found['parts'].items(), key=lambda item: -item[1]):
        table.add_row(name, f'{seconds:.2f}', f'{100 * seconds / found["whole"]:.0f} %')
    table.add_row('end to end', f'{found["whole"]:.2f}', '')
    if found['bare']:
        table.add_row('end to end / network alone', f'{found["whole"] / found["bare"]:.2f}', '')
    if 'megapixels' in found:
        table.add_row('level-0 megapixels per second', f'{found["megapixels"] / found["whole"]:.0f}', '')
    Console(width=90).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--only', nargs='+', choices=PARTS, default=PARTS[:4])
    parser.add_argument('--slide', type=Path, default=SLIDE)
    parser.add_argument('--checkpoint', type=Path)
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--size', type=int, nargs=2, default=(30_000, 40_000), metavar=('HEIGHT', 'WIDTH'))
    parser.add_argument('--tiatoolbox', type=Path, help='Python of an environment with tiatoolbox')
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/benchmarks/slides'))
    parser.add_argument('--part', choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument('--result', type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.work_dir.mkdir(parents=True, exist_ok=True)
    if args.part:
        keep_freed_memory()
        args.result.write_text(json.dumps(globals()[f'measure_{args.part}'](args)))
        return
    if 'rival' in args.only and not args.tiatoolbox:
        parser.error('rival needs --tiatoolbox PYTHON')
    for part in args.only:
        with tempfile.NamedTemporaryFile() as file:
            subprocess.run(
                [sys.executable, '-W', 'ignore', *sys.argv, '--part', part, '--result', file.name], check=True
            )
            show(part, json.loads(Path(file.name).read_text()))


if __name__ == '__main__':
    main()
