"""Processes forked from the one of the tests: importing torch, mmseg and the package takes a new process seconds."""

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import torch


def start_fork(work: Callable[[], object], output: Path) -> multiprocessing.Process:
    """Fork a process that does ``work`` with one thread and writes its messages to a file; return it, started."""

    def main() -> None:
        stream = open(output, 'w', buffering=1)
        for number in (1, 2):
            os.dup2(stream.fileno(), number)
        sys.stdout = sys.stderr = stream
        torch.set_num_threads(1)
        work()

    process = multiprocessing.get_context('fork').Process(target=main)
    process.start()
    return process


def forked(work: Callable[[], object], output: Path, seconds: float = 600) -> int:
    """Do ``work`` in a forked process (see :func:`start_fork`); return its exit status, as that of subprocess."""
    process = start_fork(work, output)
    process.join(seconds)
    if process.is_alive():
        process.kill()
        process.join()
    return process.exitcode


def free_port() -> int:
    """Return a free port of this machine."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        return free.getsockname()[1]


def torchrun(rank: int, port: int) -> dict:
    """Return the variables that torchrun sets."""
    return dict(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=2, MASTER_ADDR='127.0.0.1', MASTER_PORT=port)


def in_two(work: Callable[[], object], variables: Callable[[int, int], dict] = torchrun) -> list[int]:
    """Fork two processes that work together; return their exit statuses, as those of subprocess.

    Args:
        work: what each does.
        variables: from a rank and a free port, the environment variables of a launcher.
    """
    port, children = free_port(), []
    for rank in range(2):
        if child := os.fork():
            children.append(child)
            continue
        status = 1
        os.environ.update({name: str(value) for name, value in variables(rank, port).items()})
        try:
            work()
            status = 0
        except SystemExit as end:
            status = end.code
        except BaseException as error:
            print(f'{type(error).__name__}: {error}', file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
