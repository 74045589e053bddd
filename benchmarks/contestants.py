"""Contestants that run in processes of their own, as their users run them, and are called in turn.

A script that is asked to compare starts one process a contestant (itself with ``--contestant NAME ...``), which builds its
model once and then times one call for each line that it is sent. While one is called the others wait, so all see the same
machine.
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
        arguments: of the running script, by which it becomes that contestant.
    """

    def __init__(self, *arguments: object) -> None:
        command = [sys.executable, '-W', 'ignore', sys.argv[0], *map(str, arguments)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def call(self, name: str) -> float:
        """What the contestant's call of that name gives: the seconds that it took, or another figure."""
        self.process.stdin.write(name + '\n')
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith('figure '):
                return float(line.split()[1])
        sys.exit(f'{" ".join(map(str, self.process.args))} ended: see above.')

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()

    def __enter__(self) -> Contestant:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def serve(calls: dict[str, Callable[[], object]], device: str) -> None:
    """Time the call that each line of the standard input names; a call that returns a number gives that instead."""
    for line in sys.stdin:
        begin = time.perf_counter()
        found = calls[line.strip()]()
        if device.startswith('cuda'):
            torch.cuda.synchronize()
        print('figure', found if isinstance(found, (int, float)) else time.perf_counter() - begin, flush=True)


def alternately(calls: dict[str, tuple[Contestant, str]], rounds: int) -> dict[str, float]:
    """Median of each call over the rounds; one uncounted round first."""
    figures: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, (contestant, call) in calls.items():
            figure = contestant.call(call)
            if number:
                figures[name].append(figure)
    return {name: statistics.median(values) for name, values in figures.items()}
