"""tiatoolbox's SemanticSegmentor on a slide with our network: seconds, memory, and the faults of its polygons.

    python benchmarks/slides_tiatoolbox.py --export work_dirs/benchmarks/b0.pt
    TIATOOLBOX/bin/python benchmarks/slides_tiatoolbox.py --slide SLIDE --model work_dirs/benchmarks/b0.pt --out D [--batch 4]

The first command, with our Python, writes SegFormer-B0 with random but fixed weights as TorchScript. The second, with the
Python of an environment with tiatoolbox, predicts the slide at 0.5 um/px in windows of 512 px with a stride of 384 px. It
leaves the train ids (``labels.npy``) and tiatoolbox's QuPath JSON, annotation store, and GeoJSON of that store in D, and
prints one JSON object in a line: seconds, peak memory, and what QuPath would say of both files.
The store needs a Python whose sqlite3 can load extensions, e.g. Debian's; without it, only the QuPath JSON is written.
"""

import argparse
import json
import re
import resource
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

WINDOW, STRIDE, UM_PER_PX, CLASSES = 512, 384, 0.5, 16


class Probabilities(nn.Module):
    """A segmentor from windows (N, 3, 512, 512) float32 RGB 0..255 to probabilities (N, 16, 512, 512) float32."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        normalise = self.network.data_preprocessor
        logits = self.network.decode_head(self.network.backbone((images - normalise.mean) / normalise.std))
        return nn.functional.interpolate(logits, (WINDOW, WINDOW), mode='bilinear', align_corners=False).softmax(1)


@torch.inference_mode()
def export(path: Path) -> None:
    """Write our network as TorchScript and check that it computes the same for another number of windows."""
    from model import build

    network, images = Probabilities(build(0, False, 'cpu').eval()), torch.rand(3, 3, WINDOW, WINDOW) * 255
    with torch.backends.mkldnn.flags(enabled=False):  # our fused operations cannot be traced
        script = torch.jit.trace(network, images[:2])
    torch.testing.assert_close(script(images), network(images), rtol=1e-4, atol=1e-6)
    path.parent.mkdir(parents=True, exist_ok=True)
    script.save(str(path))


def wrap(path: Path) -> nn.Module:
    """Return the TorchScript file as a model of tiatoolbox."""
    from tiatoolbox.models.architecture.utils import argmax_last_axis
    from tiatoolbox.models.models_abc import ModelABC

    class Scripted(ModelABC):
        postproc = staticmethod(argmax_last_axis)

        def __init__(self) -> None:
            super().__init__()
            self.network, self.class_dict = torch.jit.load(path), None

        def forward(self, images: Tensor) -> Tensor:
            return self.network(images)

        @staticmethod
        @torch.inference_mode()
        def infer_batch(model: nn.Module, batch_data: Tensor, *, device: str) -> np.ndarray:
            images = batch_data.to(device).permute(0, 3, 1, 2).float()  # uint8 RGB of shape (N, H, W, 3)
            return model(images).permute(0, 2, 3, 1).contiguous().cpu().numpy()

    return Scripted()


def segment(slide: Path, model: Path, out: Path, batch: int) -> tuple[np.ndarray, tuple[float, float], int]:
    """Predict a slide; return its labels, the level-0 pixels (x, y) of one of theirs, and the number of windows."""
    import zarr
    from tiatoolbox import rcParam
    from tiatoolbox.models.engine.io_config import IOSegmentorConfig
    from tiatoolbox.models.engine.semantic_segmentor import SemanticSegmentor

    rcParam['torch_compile_mode'] = 'disable'  # the network is TorchScript
    shapes = dict(patch_input_shape=[WINDOW] * 2, patch_output_shape=[WINDOW] * 2, stride_shape=[STRIDE] * 2)
    levels = dict.fromkeys(('input_resolutions', 'output_resolutions'), [dict(units='mpp', resolution=UM_PER_PX)])
    config = IOSegmentorConfig(**levels, **shapes, ignore_index=0)
    engine = SemanticSegmentor(wrap(model), batch_size=batch, device='cpu', verbose=False)
    options = dict(patch_mode=False, ioconfig=config, save_dir=out / 'run', overwrite=True, output_type='zarr')
    found = engine.run([slide], **options)
    labels = np.asarray(zarr.open(str(found[slide]), mode='r')['predictions'])
    return labels, engine._calculate_scale_factor(engine.dataloader), len(engine.dataloader.dataset)


@torch.inference_mode()
def bare(model: Path, windows: int, batch: int) -> None:
    """Compute the probabilities of as many windows of noise."""
    network = torch.jit.load(model)
    for first in range(0, windows, batch):
        network(torch.rand(min(batch, windows - first), 3, WINDOW, WINDOW) * 255)


def polygon_writers(labels: np.ndarray, scale: tuple[float, float], out: Path) -> dict[str, Callable[[], object]]:
    """Return the calls that write tiatoolbox's polygons of labels as it does for output_type 'qupath' and the store."""
    from tiatoolbox.annotation import SQLiteStore
    from tiatoolbox.utils.misc import dict_to_store_semantic_segmentor

    options = dict(class_dict={number: f'Class {number}' for number in range(CLASSES)}, ignore_index=0, verbose=False)

    def write(kind: str, path: Path) -> None:
        dict_to_store_semantic_segmentor(dict(predictions=labels), scale, kind, save_path=path, **options)

    calls = {'qupath.json': lambda: write('qupath', out / 'qupath.json')}
    if hasattr(sqlite3.Connection, 'enable_load_extension'):  # its store needs it; the Pythons of pyenv lack it
        calls['store.db'] = lambda: write('annotationstore', out / 'store.db')
        calls['store.geojson'] = lambda: SQLiteStore(out / 'store.db').to_geojson(out / 'store.geojson')
    return calls


def faults(path: Path, labels: np.ndarray, scale: tuple[float, float]) -> dict:
    """Count what QuPath would reject or misread in a GeoJSON of labels (H, W); areas are in level-0 pixels."""
    import cv2
    import shapely
    from shapely.geometry import shape

    found, areas, ids, rows = Counter(), Counter(), [], {}
    for feature in json.loads(path.read_text())['features']:
        geometry, properties = shape(feature['geometry']), feature['properties']
        classification = properties.get('classification', {})
        found.update(['features', geometry.geom_type])
        found['invalid'] += not geometry.is_valid
        found['without area'] += geometry.area == 0
        found['without colour'] += len(classification.get('color', ())) != 3
        found['without objectType'] += 'objectType' not in properties
        found['without UUID'] += not re.fullmatch(r'[\da-f]{8}(-[\da-f]{4}){3}-[\da-f]{12}', str(feature.get('id')))
        found['holes'] += int(shapely.get_num_interior_rings(shapely.get_parts(geometry)).sum())
        areas[classification.get('name', properties.get('type'))] += geometry.area
        ids.append(feature.get('id'))
    found['repeated ids'] = len(ids) - ids.count(None) - len({*ids} - {None})
    for number in np.flatnonzero(np.bincount(labels.ravel())[1:]) + 1:
        _, hierarchy = cv2.findContours((labels == number).astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
        found['holes in the raster'] += int((hierarchy[0, :, 3] >= 0).sum())
        raster, name = (labels == number).sum() * scale[0] * scale[1], f'Class {number}'
        rows[name] = dict(raster=raster, polygons=areas[name], ratio=areas[name] / raster)
    return dict(found, areas=rows)


def timed(call: Callable[[], object]) -> tuple[object, dict[str, float]]:
    """Return the result of a call and its wall seconds and CPU seconds, and the peak memory of the process after it."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = call()
    figures = dict(seconds=time.perf_counter() - wall, cpu_seconds=time.process_time() - cpu)
    figures['peak_mb'] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return result, {name: round(value, 2) for name, value in figures.items()}


def measure(slide: Path, model: Path, out: Path, batch: int) -> dict:
    """Predict a slide, write all outputs and return the figures."""
    _, start = timed(lambda: __import__('tiatoolbox.models.engine.semantic_segmentor'))
    (labels, scale, windows), prediction = timed(lambda: segment(slide, model, out, batch))
    np.save(out / 'labels.npy', labels)
    steps = dict(imports=start, prediction=prediction)
    steps |= {name: timed(call)[1] for name, call in polygon_writers(labels, scale, out).items()}
    steps['network alone'] = timed(lambda: bare(model, windows, batch))[1]
    checks = {path.name: faults(path, labels, scale) for path in out.glob('*.*json')}
    versions = {name: version(name) for name in ('tiatoolbox', 'torch', 'numpy', 'shapely')}
    found = dict(labels=labels.shape, scale=scale, windows=windows, checks=checks, versions=versions)
    return dict(steps=steps, **found, outputs=[str(path) for path in out.iterdir()])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--export', type=Path, metavar='FILE.pt', help='write the network and stop (our Python)')
    needed = '--export' not in sys.argv
    parser.add_argument('--slide', type=Path, required=needed)
    parser.add_argument('--model', type=Path, metavar='FILE.pt', required=needed)
    parser.add_argument('--out', type=Path, help='folder for the outputs', required=needed)
    parser.add_argument('--batch', type=int, default=4, help='windows per forward pass')
    arguments = parser.parse_args()
    if arguments.export:
        return export(arguments.export)
    arguments.out.mkdir(parents=True, exist_ok=True)
    print(json.dumps(measure(arguments.slide, arguments.model, arguments.out, arguments.batch), default=float))


if __name__ == '__main__':
    main()
