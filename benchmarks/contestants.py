"""Time implementations in separate processes that take turns.

A comparing script starts itself once per contestant with ``--contestant NAME ...``. Each process builds its model once and
then times one call for each line on its standard input. Only one process computes at a time, so all have the same machine.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch


class Contestant:
    """A process that times calls.

    Args:
        arguments: Command-line arguments that make the running script this contestant.
    """

    def __init__(self, *arguments: object) -> None:
        command = [sys.executable, '-W', 'ignore', sys.argv[0], *map(str, arguments)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def call(self, name: str) -> float:
        """Run the call of this name; return its seconds, or the number that it returned."""
        self.process.stdin.write(name + '\n')
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith('figure '):
                return float(line.split()[1])
        sys.exit(f'{" ".join(map(str, self.process.args))} failed: see above.')

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()

    def __enter__(self) -> Contestant:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def serve(calls: dict[str, Callable[[], object]], device: str) -> None:
    """Time the call named by each line of standard input; if a call returns a number, report that instead."""
    for line in sys.stdin:
        begin = time.perf_counter()
        found = calls[line.strip()]()
        if device.startswith('cuda'):
            torch.cuda.synchronize()
        print('figure', found if isinstance(found, (int, float)) else time.perf_counter() - begin, flush=True)


def alternately(calls: dict[str, tuple[Contestant, str]], rounds: int) -> dict[str, float]:
    """Return the median of each call over the rounds, after one warm-up round."""
    figures: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, (contestant, call) in calls.items():
            figure = contestant.call(call)
            if number:
                figures[name].append(figure)
    return {name: statistics.median(values) for name, values in figures.items()}
