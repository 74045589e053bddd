"""Time and memory on a GPU: networks, whole training steps, the way to the device, sliding windows; ours and mmseg's.

    python benchmarks/gpu.py [--sizes 0 1 2 3 4 5] [--only model training input sliding] [--work-dir work_dirs/benchmarks/gpu]

Everything runs in one process, and ours and mmseg's take turns; times are medians of rounds, measured with events of the
device. Settings are those of the configs: cuDNN's benchmark mode, TF32 in convolutions, images of 512 x 512, batches of 8.
"half" is autocast in the half precision of the card. Without a GPU the script stops.

- model: forward pass, and forward, loss and backward pass, without an optimizer; memory is the peak of the step.
- training: from uint8 images and labels in pinned memory to the step of the optimizer, in half precision.
- input: the data preprocessor, without and with deferred colour changes.
- sliding: labelling an image that is on the device, window 512, stride 384, SegFormer-B0.
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config, ConfigDict
from mmengine.dataset import Compose
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
from model import CONFIG, build, forward, peak_increase, samples, training_step
from rich.console import Console
from rich.table import Table
from torch import nn

from mmseg_ignite.datasets.deferred import deferred_transforms
from mmseg_ignite.datasets.samples import collate_crops
from mmseg_ignite.engine.devices import to_device
from mmseg_ignite.engine.optim_wrappers import half_dtype
from mmseg_ignite.files import write_json

BATCH, SIDE, ROUNDS = 8, 512, 3
SIZES = ((1962, 2405), (4096, 4096))
SECTIONS = ('model', 'training', 'input', 'sliding')
DEVICE = 'cuda'


def milliseconds(calls: dict[str, Callable[[], object]], repeats: int = 3, rounds: int = ROUNDS) -> dict[str, float]:
    """Return the median of each call over the rounds, which take turns, after a warm-up."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            if number == 0:
                call()
            start.record()
            for _ in range(repeats):
                call()
            end.record()
            end.synchronize()
            if number:
                found[name].append(start.elapsed_time(end) / repeats)
    return {name: statistics.median(values) for name, values in found.items()}


def segmentor(size: int, stock: bool, **changes: object) -> nn.Module:
    model = build(size, stock, DEVICE, **changes)
    return model if stock else to_device(model, DEVICE)  # our runner stores weights as cuDNN reads them


def measure_model(size: int) -> list[dict]:
    """Measure ours and mmseg's of one size."""
    images, truth = torch.randn(BATCH, 3, SIDE, SIDE, device=DEVICE), samples(BATCH, DEVICE, SIDE)
    models, rows = {'ours': segmentor(size, False), 'mmseg': segmentor(size, True)}, []
    for precision, dtype in (('float32', None), ('half', half_dtype(DEVICE))):
        steps = {name: training_step(model, images, truth, dtype) for name, model in models.items()}
        passes = {name: forward(model, images, dtype) for name, model in models.items()}
        spent = {'forward': milliseconds(passes), 'step': milliseconds(steps)}
        for what, times in spent.items():
            ratio = times['mmseg'] / times['ours']
            row = dict(what=f'B{size} {what}, {precision}', ours=f'{times["ours"]:.1f} ms')
            rows.append(row | dict(theirs=f'{times["mmseg"]:.1f} ms', ratio=f'{ratio:.2f}x'))
        memory = {name: peak_increase(step, DEVICE) / 1e9 for name, step in steps.items()}
        row = dict(what=f'B{size} step, {precision}, memory', ours=f'{memory["ours"]:.2f} GB')
        rows.append(row | dict(theirs=f'{memory["mmseg"]:.2f} GB', ratio=f'{memory["mmseg"] / memory["ours"]:.2f}x'))
    return rows


def batch_of_bytes(deferred: bool = False) -> dict:
    """Return a batch as the loader hands it over, of random crops, in pinned memory."""
    compose, rng = (
        Compose(Config.fromfile(CONFIG.format(0)).train_dataloader.dataset.pipeline),
        np.random.default_rng(0),
    )
    if deferred:
        compose.transforms = deferred_transforms(compose.transforms)
    crops = []
    for _ in range(BATCH):
        image, labels = rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8), rng.integers(0, 16, (SIDE, SIDE), np.uint8)
        crops.append(
            compose(dict(img=image, gt_seg_map=labels, seg_fields=['gt_seg_map'], img_path='', ori_shape=(1, 1)))
        )
    batch = collate_crops(crops)
    batch['inputs'] = batch['inputs'].pin_memory() if torch.is_tensor(batch['inputs']) else batch['inputs']
    batch['data_samples'] = [sample.pin_memory() for sample in batch['data_samples']]
    return batch


def measure_training(size: int) -> list[dict]:
    """Measure whole steps, ours with our loss, mmseg's with its own."""
    cfg = Config.fromfile(CONFIG.format(size)).model
    stock_settings = dict(cfg.data_preprocessor) | dict(type='SegDataPreProcessor')
    preprocessors = {
        'ours': MODELS.build(cfg.data_preprocessor).to(DEVICE),
        'mmseg': MODELS.build(stock_settings).to(DEVICE),
    }
    models = {'ours': segmentor(size, False, loss_decode=dict(type='TissueLoss')), 'mmseg': segmentor(size, True)}
    batch, calls = batch_of_bytes(), {}
    for name, model in models.items():
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)

        def step(name: str = name, model: nn.Module = model, optimizer: torch.optim.Optimizer = optimizer) -> None:
            data = preprocessors[name](dict(batch), True)
            with torch.autocast(DEVICE, half_dtype(DEVICE)):
                losses = model.loss(data['inputs'], data['data_samples'])
            model.parse_losses(losses)[0].backward()
            optimizer.step()
            optimizer.zero_grad()

        model.train()
        calls[name] = step
    times = milliseconds(calls)
    rates = {name: f'{1e3 * BATCH / time:.0f} crops/s' for name, time in times.items()}
    ratio = f'{times["mmseg"] / times["ours"]:.2f}x'
    return [dict(what=f'B{size} training', ours=rates['ours'], theirs=rates['mmseg'], ratio=ratio)]


def measure_input() -> list[dict]:
    settings = Config.fromfile(CONFIG.format(0)).model.data_preprocessor
    ours = MODELS.build(settings).to(DEVICE)
    stock = MODELS.build(dict(settings) | dict(type='SegDataPreProcessor')).to(DEVICE)
    plain, deferred = batch_of_bytes(), batch_of_bytes(deferred=True)
    calls = {'ours': lambda: ours(dict(plain), True), 'mmseg': lambda: stock(dict(plain), True)}
    calls['deferred'] = lambda: ours(dict(deferred), True)
    times = milliseconds(calls, 5)
    rows = [dict(what='prepare a batch', ours=f'{times["ours"]:.2f} ms', theirs=f'{times["mmseg"]:.2f} ms')]
    rows[0]['ratio'] = f'{times["mmseg"] / times["ours"]:.2f}x'
    return [*rows, dict(what='with deferred colours', ours=f'{times["deferred"]:.2f} ms', theirs='', ratio='')]


def measure_sliding() -> list[dict]:
    rows, models = [], {'ours': segmentor(0, False).eval(), 'mmseg': segmentor(0, True).eval()}
    for height, width in SIZES:
        image = torch.randn(1, 3, height, width, device=DEVICE)
        for precision, dtype in (('float32', None), ('half', half_dtype(DEVICE))):
            for windows in (4, 16):
                calls = {}
                for name, model in models.items():
                    test_cfg = dict(mode='slide', crop_size=(512, 512), stride=(384, 384), window_batch=windows)

                    def label(model: nn.Module = model, test_cfg: dict = test_cfg, dtype: torch.dtype = dtype) -> None:
                        model.test_cfg = ConfigDict(test_cfg)
                        with torch.inference_mode(), torch.autocast(DEVICE, dtype, enabled=dtype is not None):
                            model.predict(image)  # noqa: B023

                    if name == 'ours' or windows == 4:
                        calls[name] = label
                times = milliseconds(calls, 1, 2)
                row = dict(what=f'{height} x {width}, {precision}, {windows} windows', ours=f'{times["ours"]:.0f} ms')
                if 'mmseg' in times:
                    row |= dict(theirs=f'{times["mmseg"]:.0f} ms', ratio=f'{times["mmseg"] / times["ours"]:.2f}x')
                rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--sizes', type=int, nargs='+', default=list(range(6)), choices=range(6))
    parser.add_argument('--only', nargs='+', default=SECTIONS, choices=SECTIONS)
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/benchmarks/gpu'))
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit('error: benchmarks/gpu.py needs an NVIDIA GPU that torch can use; torch.cuda finds none.')
    torch.backends.cudnn.benchmark = True
    init_default_scope('mmseg')
    where, console, rows = torch.cuda.get_device_name(), Console(width=110), []
    calls = [
        (measure,) for name, measure in (('input', measure_input), ('sliding', measure_sliding)) if name in args.only
    ]
    of_size = [m for name, m in (('model', measure_model), ('training', measure_training)) if name in args.only]
    calls += [(measure, size) for size in args.sizes for measure in of_size]
    for measure, *size in calls:
        found = measure(*size)
        for row in found:
            console.print('  '.join(str(value) for value in row.values()), highlight=False)
        rows += found
        write_json(args.work_dir / 'gpu.json', dict(device=where, torch=torch.__version__, rows=rows))
        torch.cuda.empty_cache()
    table = Table('', 'ours', 'mmseg', 'ratio', title=f'{where}, torch {torch.__version__}, batches of {BATCH}')
    for row in rows:
        table.add_row(row['what'], row['ours'], row.get('theirs', ''), row.get('ratio', ''))
    console.print(table)


if __name__ == '__main__':
    main()
