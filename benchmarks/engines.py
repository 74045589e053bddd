"""Engines that could run the network: time of a batch, labels that agree with ours in fp32, and what bf16 costs in mIoU.

    python benchmarks/engines.py [--sizes 0 2 5] [--engines eager onnxruntime] [--precisions fp32] [--device cuda]
    python benchmarks/engines.py --sizes --network CONFIG CHECKPOINT [--cfg-options data_root=... protocol=official]

Engines: our network as it is, compiled as by ``--compile``, exported to ONNX Runtime and to OpenVINO, the last two on a CPU.
Each is a process of its own; they take turns, and the median of a batch of 2 x 3 x 512 x 512 counts, up to logits of a
quarter of the size. Agreement is the share of pixels with the label of our network in fp32, on tissue of the folder --tissue.
An engine that is not installed is left out with the reason.

--sizes takes random weights, whose labels say little about agreement; --network also measures a trained network, and tests it
in fp32 and in half precision: the difference in mIoU has an interval over patients.
"""

import argparse
import copy
import importlib.util
import logging
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from contestants import Contestant, alternately, serve
from mmengine.config import ConfigDict
from model import build
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from mmseg_ignite.apis import Predictor, compare_runs, load_config, test, testing
from mmseg_ignite.apis.options import OptionText
from mmseg_ignite.engine.allocator import keep_freed_memory
from mmseg_ignite.engine.compiled_inference import Compilation
from mmseg_ignite.engine.optim_wrappers import half_dtype
from mmseg_ignite.errors import IgniteError
from mmseg_ignite.files import visible_files, write_json
from mmseg_ignite.images.reading import read_image

ENGINES = {
    'eager': (),
    'compiled': (),
    'onnxruntime': ('onnx', 'onnxscript', 'onnxruntime'),
    'openvino': ('onnx', 'onnxscript', 'openvino'),
}
"""Engines and the packages that they need."""
PRECISIONS = {
    'eager': ('fp32', 'half'),
    'compiled': ('fp32', 'half'),
    'onnxruntime': ('fp32',),
    'openvino': ('fp32', 'half'),
}
BATCH, SIDE = 2, 512
TISSUE = Path(__file__).parents[2] / 'shared/data/lung_he_release/images/he'
Run = Callable[[Tensor], Tensor]
"""Function from normalised images (2, 3, 512, 512) to logits (2, C, 128, 128), both float32 on the CPU or our device."""


class Logits(nn.Module):
    """Encoder and decoder of a segmentor."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model.decode_head(self.model.backbone(x))


def eager(model: nn.Module, half: bool, example: Tensor) -> Run:
    """Return our network."""
    network, dtype = Logits(model), half_dtype(example.device)

    def run(x: Tensor) -> Tensor:
        with torch.inference_mode(), torch.autocast(x.device.type, dtype, enabled=half):
            return network(x).float()

    return run


def compiled(model: nn.Module, half: bool, example: Tensor) -> Run:
    """Return our network as ``--compile`` compiles it."""
    model = copy.deepcopy(model)
    model.test_cfg = ConfigDict(mode='slide', crop_size=(SIDE, SIDE), stride=(SIDE, SIDE), window_batch=BATCH)
    with torch.inference_mode():
        Compilation(model, half_dtype(example.device) if half else torch.float32).compile()
    return eager(model, half, example)


def export(model: nn.Module, example: Tensor, path: Path) -> None:
    """Write an ONNX file of one size, with logits of a quarter like ours; that of tools/export.py also upsamples them."""
    logging.disable(logging.WARNING)  # of onnxscript, a line for each Split
    with torch.no_grad():
        torch.onnx.export(Logits(model).cpu(), (example.cpu(),), str(path), dynamo=True, verbose=False)


def onnxruntime(model: nn.Module, half: bool, example: Tensor) -> Run:
    """Return the network in ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        export(model, example, Path(folder) / 'model.onnx')
        session = onnxruntime.InferenceSession(Path(folder) / 'model.onnx', options, providers=['CPUExecutionProvider'])
    name = session.get_inputs()[0].name
    return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])


def openvino(model: nn.Module, half: bool, example: Tensor) -> Run:
    """Return the network in OpenVINO."""
    import openvino

    hints = {'INFERENCE_PRECISION_HINT': 'bf16' if half else 'f32', 'INFERENCE_NUM_THREADS': torch.get_num_threads()}
    with tempfile.TemporaryDirectory() as folder:
        export(model, example, Path(folder) / 'model.onnx')
        core = openvino.Core()
        network = core.compile_model(core.read_model(Path(folder) / 'model.onnx'), 'CPU', hints)
    return lambda x: torch.from_numpy(network(x.numpy())[0])


def tissue(folder: Path, batches: int, model: nn.Module) -> list[Tensor]:
    """Return normalised windows (2, 3, 512, 512) from the middle of images; noise if there are none."""
    images = []
    for path in visible_files(folder, ('.png', '.jpg', '.tif')) if folder.is_dir() else ():
        pixels = read_image(path).pixels
        top, left = ((side - SIDE) // 2 for side in pixels.shape[:2])
        if min(top, left) >= 0:
            images.append(pixels[top : top + SIDE, left : left + SIDE])
        if len(images) == BATCH * batches:
            break
    if len(images) < BATCH * batches:
        print(f'{folder} has fewer than {BATCH * batches} images of {SIDE} px: noise is used.', file=sys.stderr)
        generator = np.random.default_rng(0)
        images = [generator.integers(0, 256, (SIDE, SIDE, 3), np.uint8) for _ in range(BATCH * batches)]
    preprocessor = model.data_preprocessor
    x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float().to(preprocessor.mean.device)
    return list(((x - preprocessor.mean) / preprocessor.std).split(BATCH))  # the mean is that of RGB


def options_of(args: argparse.Namespace) -> dict:
    """Return --cfg-options as :func:`load_config` takes them."""
    return {key: OptionText(text) for key, _, text in (item.partition('=') for item in args.cfg_options)}


def compete(args: argparse.Namespace) -> None:
    """Run as a contestant: one engine, one network."""
    keep_freed_memory()
    torch.set_num_threads(args.threads)
    if args.network:
        cfg = load_config(args.network[0], options_of(args))
        model = Predictor(cfg, args.network[1], args.device, compile=False).model
    else:
        model = build(args.size, False, args.device).eval()
    batches, engine = tissue(args.tissue, args.batches, model), globals()[args.contestant]
    runs, calls = {}, {}
    for precision in precisions(args.contestant, args):
        run = runs[precision] = engine(model, precision == 'half', batches[0])
        calls[precision] = lambda run=run: run(batches[0])

        def agreement(run: Run = run) -> float:
            labels = [[own(x).argmax(1) for x in batches] for own in (eager(model, False, batches[0]), run)]
            return float(torch.stack([a == b for a, b in zip(*labels)]).double().mean())

        calls[f'agreement {precision}'] = agreement
    serve(calls, args.device)


def missing(engine: str, device: str) -> str | None:
    """Return why an engine cannot take part, or None."""
    packages = [name for name in ENGINES[engine] if importlib.util.find_spec(name) is None]
    if packages:
        return f'{", ".join(packages)} not installed'
    return 'measured on a CPU only' if ENGINES[engine] and device != 'cpu' else None


def precisions(engine: str, args: argparse.Namespace) -> list[str]:
    """Return the precisions of an engine that are asked for."""
    return [precision for precision in PRECISIONS[engine] if precision in args.precisions]


def measure(name: str, arguments: list[object], args: argparse.Namespace) -> list[dict]:
    """Measure all engines for one network; one row for each engine and precision."""
    own = ['--device', args.device, '--threads', args.threads, '--tissue', args.tissue, '--batches', args.batches]
    own += ['--precisions', *args.precisions]
    processes, rows = {}, []
    for engine in args.engines:
        if reason := missing(engine, args.device):
            rows.append(dict(network=name, engine=engine, reason=reason))
        elif precisions(engine, args):
            processes[engine] = Contestant('--contestant', engine, *own, *arguments)
    calls = {
        (e, precision): (process, precision) for e, process in processes.items() for precision in precisions(e, args)
    }
    seconds = alternately(calls, args.rounds)
    for (engine, precision), value in seconds.items():
        agreement = processes[engine].call(f'agreement {precision}')
        ratio = seconds['eager', 'fp32'] / value if ('eager', 'fp32') in seconds else float('nan')
        rows.append(
            dict(network=name, engine=engine, precision=precision, seconds=value, ratio=ratio, agreement=agreement)
        )
    for process in processes.values():
        process.close()
    return rows


def cost_of_half(args: argparse.Namespace) -> dict:
    """Test a network in fp32 and in half precision; return the comparison of the runs.

    Half precision is forced: --amp computes in fp32 on a CPU that has no units for it.
    """
    folders = [args.work_dir / name for name in ('fp32', 'half')]
    for folder, dtype in zip(folders, (torch.float32, half_dtype(torch.device(args.device)))):
        cfg = load_config(args.network[0], options_of(args), str(folder))
        with mock.patch.object(testing, 'prediction_dtype', lambda *_, dtype=dtype: dtype):
            test(cfg, args.network[1], report=None)
    return compare_runs(*folders)


def to_table(rows: list[dict], where: str) -> Table:
    table = Table('', 'engine', 'precision', 'time', 'speed', 'labels as ours in fp32', title=f'Engines on {where}')
    for r in rows:
        if 'reason' in r:
            table.add_row(r['network'], r['engine'], '', r['reason'], '', '')
        else:
            cells = f'{r["seconds"]:.4f} s', f'{r["ratio"]:.2f}x', f'{100 * r["agreement"]:.3f} %'
            table.add_row(r['network'], r['engine'], r['precision'], *cells)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--rounds', type=int, default=7)
    parser.add_argument('--threads', type=int, default=torch.get_num_threads())
    parser.add_argument('--sizes', type=int, nargs='*', default=[0, 2, 5])
    parser.add_argument('--engines', nargs='+', choices=ENGINES, default=list(ENGINES), metavar='ENGINE')
    parser.add_argument('--precisions', nargs='+', choices=('fp32', 'half'), default=['fp32', 'half'])
    parser.add_argument('--network', nargs=2, metavar=('CONFIG', 'CHECKPOINT'), help='a trained network')
    parser.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help='of the config of --network')
    parser.add_argument('--no-test', action='store_true', help='do not test --network in both precisions')
    parser.add_argument('--tissue', type=Path, default=TISSUE, help='folder of H&E images')
    parser.add_argument('--batches', type=int, default=4, help='batches of tissue for the agreement')
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/benchmarks/engines'))
    parser.add_argument('--contestant', choices=ENGINES, help=argparse.SUPPRESS)
    parser.add_argument('--size', type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.contestant:
        compete(args)
        return
    console, rows, comparison = Console(), [], None
    where = torch.cuda.get_device_name() if args.device.startswith('cuda') else f'{args.threads} cores'
    for size in args.sizes:
        console.print(f'B{size} ...')
        rows += measure(f'B{size}', ['--size', size], args)
    if args.network:
        options = ['--cfg-options', *args.cfg_options] if args.cfg_options else []
        rows += measure(Path(args.network[1]).name, ['--network', *args.network, *options], args)
    console.print(to_table(rows, where))
    if args.network and not args.no_test:
        comparison = cost_of_half(args)
        found = comparison['figures']['mIoU']
        low, high = found['interval']
        console.print(
            f'mIoU: {found["a"]:.2f} in fp32, {found["b"]:.2f} in half precision: {found["difference"]:+.2f} points '
            f'(95 % interval {low:+.2f} .. {high:+.2f} over {comparison["patients"]} {comparison["unit"]}s).'
        )
    write_json(args.work_dir / 'engines.json', dict(device=where, rows=rows, half=comparison))


if __name__ == '__main__':
    try:
        main()
    except IgniteError as error:
        sys.exit(f'error: {error}')
