"""Where training on 1 to 64 GPUs is limited: by network, exchange of gradients, or loader. Computed, not measured.

    python benchmarks/scaling.py [--sizes 0 1 2 3 4 5] [--batch 8] [--rate 312] [--share 0.3] [--loader 138]

- Network: three times the operations of a forward pass of a 512 px crop, at a share of the GPU's dense bfloat16 rate.
- Exchange: a ring all-reduce of W processes sends 2 (W - 1) / W times the gradients, 4 bytes for each parameter, through the
  slowest link. The backward pass, two thirds of a step, hides it; what is longer is waited for.
- Loader: crops per second of a worker; a worker for each process is needed for every so many crops of the network.

With `training_cost.py --device cuda` the time of a step is measured: choose --share so that "ms per step" agrees.
"""

import argparse
from collections.abc import Sequence

from model import build
from rich.console import Console
from training_cost import forward_operations

LINKS = {'NVLink': 200, 'PCIe 4.0': 12, '100 Gb Ethernet': 10, '25 Gb Ethernet': 2.5}
"""GB per second that reach a ring: of a GPU in a machine, or of a machine in a cluster."""
GPUS_PER_MACHINE = 8
GPUS = (1, 2, 4, 8, 16, 32, 64)
BACKWARD = 2 / 3


def exchange_seconds(parameters: int, processes: int, gigabytes: float) -> float:
    """Return how long a ring all-reduce of float32 gradients takes over a link of so many GB per second."""
    return 2 * (processes - 1) / processes * 4 * parameters / (gigabytes * 1e9)


def step_seconds(network: float, exchange: float) -> float:
    """Return the duration of a step whose exchange of gradients runs beside the backward pass."""
    return network + max(0.0, exchange - BACKWARD * network)


def schedule(crops: int) -> tuple[float, int, int]:
    """Return the learning rate, the iterations and the warm-up of a run with so many crops per step.

    The learning rate of the configs, 6e-5 for eight crops, grows with the root of the crops, the usual rule for Adam. Up to
    32 crops per step the iterations stay, so that more crops are seen; beyond, the crops seen stay those of 32.
    """
    iterations = min(20_000, 32 * 20_000 // crops)
    return 6e-5 * (crops / 8) ** 0.5, iterations, round(0.075 * iterations)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--sizes', nargs='+', type=int, default=list(range(6)), choices=range(6))
    parser.add_argument('--batch', type=int, default=8, help='crops of each process')
    parser.add_argument(
        '--rate', type=float, default=312, help='dense bfloat16 rate of the GPU in 10^12 / s (A100: 312)'
    )
    parser.add_argument('--share', type=float, default=0.3, help='share of the rate that a step reaches')
    parser.add_argument('--loader', type=float, default=138, help='crops per second of a loader worker')
    args = parser.parse_args()
    rows: list[Sequence[object]] = [
        ['size', 'MB of gradients', 'ms per step', 'crops/s', 'workers']
        + [f'{link}, {GPUS_PER_MACHINE} GPUs' for link in list(LINKS)[:2]]
        + [f'{link}, {GPUS[-1]} GPUs' for link in list(LINKS)[2:]]
    ]
    for size in args.sizes:
        parameters = sum(p.numel() for p in build(size, False, 'cpu').parameters())
        operations = forward_operations(size, 512)
        network = 3 * args.batch * operations / (args.share * args.rate * 1e12)
        crops = args.batch / network
        cells = [
            f'B{size}',
            f'{4e-6 * parameters:.0f}',
            f'{1e3 * network:.1f}',
            f'{crops:.0f}',
            f'{crops / args.loader:.0f}',
        ]
        for number, speed in enumerate(LINKS.values()):
            exchange = exchange_seconds(parameters, GPUS_PER_MACHINE if number < 2 else GPUS[-1], speed)
            share = network / step_seconds(network, exchange)
            cells.append(f'{1e3 * exchange:.1f} ms, {100 * share:.0f} %')
        rows.append(cells)
    show(rows)
    rows = [['GPUs', 'crops per step', 'learning rate', 'iterations', 'warm-up', 'crops seen']]
    for processes in GPUS:
        rate, iterations, warm_up = schedule(crops := processes * args.batch)
        rows.append([processes, crops, f'{rate:.1e}', iterations, warm_up, f'{crops * iterations:,}'])
    show(rows)


def show(rows: list[Sequence[object]]) -> None:
    """Print a table in Markdown."""
    for row in [rows[0], ['---'] * len(rows[0]), *rows[1:]]:
        Console().print('| ' + ' | '.join(map(str, row)) + ' |', soft_wrap=True, highlight=False)
    print()


if __name__ == '__main__':
    main()
