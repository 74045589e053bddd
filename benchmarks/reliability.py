"""Kill trainings at random moments and between file operations, and check that nothing is lost.

Each run trains a tiny network on synthetic tissue and is killed by SIGKILL, resumed, killed again, and so on until it ends.
After each kill a valid checkpoint must be there, no older than the latest that was complete; the checkpoints of the finished
run must equal those of an uninterrupted run bit by bit.

With --fuzz, randomly damaged inputs of all kinds are read in place of killing trainings; each must be accepted, or refused
with one sentence.

    python benchmarks/reliability.py --random 100 --aimed 50
    python benchmarks/reliability.py --fuzz 2000
"""

import argparse
import functools
import gc
import logging
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')
os.environ['CUDA_VISIBLE_DEVICES'] = ''  # processes are forked, which CUDA does not survive

sys.path.insert(0, str(Path(__file__).parents[1] / 'tests'))  # for conftest
sys.path.insert(0, str(Path(__file__).parents[1] / 'tests' / 'reliability'))

import torch
from conftest import small_config
from mmengine.utils.dl_utils import collect_env
from runs import TINY, comparable, first_difference

from mmseg_ignite.apis import train
from mmseg_ignite.engine.work_dirs import checkpoints, resumable_checkpoint
from mmseg_ignite.errors import IgniteError
from mmseg_ignite.preparation import prepare, write_synthetic_release

FAILURES = Path(__file__).parents[1] / 'work_dirs' / 'fuzz_failures'
ITERATIONS = 6


def config(data: Path, work_dir: Path) -> object:
    """Return a config that saves every second iteration, validates every third, and keeps one checkpoint."""
    options = {
        'crops.crop_size': (32, 32), 'model.data_preprocessor.size': (32, 32), 'train_cfg.val_interval': 3,
        'default_hooks.checkpoint.interval': 2, 'default_hooks.checkpoint.max_keep_ckpts': 1,
    }  # fmt: skip
    return small_config(data, work_dir, ITERATIONS, **TINY, **options)


def start(data: Path, work_dir: Path, dies_at: int | None, log: Path) -> int:
    """Fork a process that trains, resuming if there is a checkpoint; return its number.

    Args:
        dies_at: number of the file operation in the work dir before which the process kills itself; None: never.
    """
    sys.stdout.flush()
    if process := os.fork():
        return process
    with open(log, 'a', encoding='utf-8') as stream, redirect_stdout(stream), redirect_stderr(stream):
        status = 1
        try:
            count_file_operations(work_dir, dies_at)
            train(config(data, work_dir), resume=True)
            status = 0
        except BaseException as error:
            print(f'{type(error).__name__}: {error}', flush=True)
        (work_dir.parent / 'operations').write_text(str(len(operations)))
        stream.flush()
        os._exit(status)


operations: list[str] = []


def count_file_operations(work_dir: Path, dies_at: int | None) -> None:
    """Count what this process opens for writing, renames and removes in a folder, and kill it before one of these."""
    folder = str(work_dir)

    def hook(event: str, arguments: tuple) -> None:
        if event not in ('open', 'os.rename', 'os.remove', 'os.chmod', 'os.mkdir'):
            return
        path = arguments[0]
        if not isinstance(path, (str, bytes, os.PathLike)) or not os.fsdecode(path).startswith(folder):
            return
        if event == 'open' and not (isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        operations.append(event)
        if len(operations) == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


@dataclass
class Outcome:
    """What happened to a series of killed runs."""

    kills: int = 0
    runs: int = 0
    lost: list[str] = field(default_factory=list)


def newest_complete(work_dir: Path) -> int:
    """Return the number of the newest checkpoint whose name is final; 0 if there is none."""
    return max((int(path.stem.split('_')[1]) for path in checkpoints(work_dir)), default=0)


def killed_run(data: Path, root: Path, expected: dict, outcome: Outcome, plan: list) -> None:
    """Train in a new work dir; kill the process by the plan, then let it end, and compare with the uninterrupted run.

    Args:
        plan: a number of seconds or, as an int, of file operations after which each process dies.
    """
    outcome.runs += 1
    folder = root / f'run{outcome.runs}'
    work_dir, log = folder / 'work', folder / 'log'
    folder.mkdir()
    highest = 0
    for moment in [*plan, None]:
        process = start(data, work_dir, moment if isinstance(moment, int) else None, log)
        if isinstance(moment, float):
            status, newest = watch(process, work_dir, moment)
            highest = max(highest, newest)
        else:
            status = os.waitpid(process, 0)[1]
        outcome.kills += os.WIFSIGNALED(status)
        if moment is None and status != 0:
            outcome.lost.append(f'run {outcome.runs} did not end: {log.read_text()[-300:]}')
            return
        try:
            path = resumable_checkpoint(work_dir) if work_dir.is_dir() else None
        except IgniteError as error:
            outcome.lost.append(f'run {outcome.runs}, {moment}: {error}')
            return
        found = int(path.stem.split('_')[1]) if path else 0
        if found < highest or list(work_dir.glob('*.damaged')):
            outcome.lost.append(f'run {outcome.runs}, {moment}: iteration {found} after {highest} was complete')
        highest = max(highest, found)
    if (difference := first_difference(comparable(work_dir), expected)) is not None:
        outcome.lost.append(f'run {outcome.runs} differs from an uninterrupted one: {difference}')
    shutil.rmtree(folder)


def watch(process: int, work_dir: Path, seconds: float) -> tuple[int, int]:
    """Kill a process after some time; return its status and the newest checkpoint that was complete before."""
    end, newest = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        newest = max(newest, newest_complete(work_dir))
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return status, newest
        time.sleep(0.002)
    os.kill(process, signal.SIGKILL)
    return os.waitpid(process, 0)[1], newest


def prepare_process() -> None:
    """Drop mmengine's slowest steps, and let forked processes compute with one thread."""
    torch.set_num_threads(1)
    import mmengine.runner.runner
    from yapf.yapflib import yapf_api

    yapf_api.FormatCode = lambda text, **_: (text, True)
    mmengine.runner.runner.collect_env = functools.cache(collect_env)
    logging.raiseExceptions = False
    gc.freeze()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--random', type=int, default=100, help='kills at random times')
    parser.add_argument('--aimed', type=int, default=50, help='kills before a file operation in the work dir')
    parser.add_argument('--per-run', type=int, default=5, help='kills of one run before it may end')
    parser.add_argument('--fuzz', type=int, metavar='N', help='read N damaged inputs of all kinds; kill no training')
    parser.add_argument(
        '--failures', type=Path, default=FAILURES, help='folder for inputs that are neither read nor refused'
    )
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    prepare_process()
    if args.fuzz is not None:
        from fuzzing import fuzz  # imports the tests

        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix='reliability') as name:
            fine = fuzz(args.fuzz, args.seed, Path(name), args.failures)
        print(f'{(time.monotonic() - began) / 60:.1f} min')
        return int(not fine)
    rng = random.Random(args.seed)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix='reliability') as name:
        root = Path(name)
        with open(os.devnull, 'w') as null, redirect_stdout(null), redirect_stderr(null):
            write_synthetic_release(root / 'release', rois=8, patients=4, size=(64, 72), seed=5)
            prepare(root / 'release', root / 'data')
            train(config(root / 'data', root / 'warm'))  # so that each forked process need not import and compile anew
        gc.freeze()
        (root / 'whole').mkdir()
        clock = time.monotonic()
        os.waitpid(start(root / 'data', root / 'whole' / 'work', None, root / 'whole' / 'log'), 0)
        seconds = time.monotonic() - clock
        count = int((root / 'whole' / 'operations').read_text())
        expected = comparable(root / 'whole' / 'work')
        print(f'an uninterrupted run: {seconds:.1f} s, {count} file operations in its work dir', flush=True)
        results = {}
        for kind, number in (('random', args.random), ('aimed', args.aimed)):
            results[kind] = outcome = Outcome()
            while outcome.kills < number and len(outcome.lost) < 10:
                moments = [
                    rng.uniform(0.05, seconds) if kind == 'random' else rng.randint(1, count)
                    for _ in range(min(args.per_run, number - outcome.kills))
                ]
                killed_run(root / 'data', root, expected, outcome, moments)
            print(f'{kind}: {outcome.kills} kills of {outcome.runs} runs, {len(outcome.lost)} losses', flush=True)
            for loss in outcome.lost:
                print(f'    {loss}')
    print(f'{(time.monotonic() - began) / 60:.1f} min')
    return int(any(outcome.lost for outcome in results.values()))


if __name__ == '__main__':
    sys.exit(main())
