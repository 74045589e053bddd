"""Read randomly damaged inputs of all kinds in forked processes of limited memory; used by ``reliability.py --fuzz``.

The kinds are those of ``tests/reliability/fuzz_data.py`` and ``fuzz_runs.py``.
"""

import contextlib
import json
import os
import random
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import fuzz_data  # of the tests, whose folders reliability.py adds to the path
import fuzz_runs
from fuzz_cases import Kind, Sources, accepted

KINDS: dict[str, Kind] = {**fuzz_data.KINDS, **fuzz_runs.KINDS}
MEMORY = 2 << 30
"""Bytes of address space that a process may take in addition to those at its start."""
SECONDS = 30
"""Limit for one input."""
BATCH = 100
"""Inputs that one process reads."""
OUTCOMES = ('accepted', 'refused', 'other', 'crashed')


@dataclass
class Tally:
    """What became of the inputs of a kind; memory in MB, time in seconds."""

    outcomes: Counter = field(default_factory=Counter)
    memory: float = 0.0
    slowest: float = 0.0
    faults: list[str] = field(default_factory=list)

    def line(self, name: str) -> str:
        """Return a line of the table whose head is :data:`HEAD`."""
        counts = ''.join(f'{self.outcomes[key]:>10}' for key in OUTCOMES)
        return f'{name:32}{self.outcomes.total():>8}{counts}{self.memory:>8.0f} MB{self.slowest:>8.2f} s'


HEAD = f'{"kind":32}{"inputs":>8}' + ''.join(f'{key:>10}' for key in OUTCOMES) + f'{"memory":>11}{"slowest":>10}'


def fuzz(number: int, seed: int, root: Path, failures: Path) -> bool:
    """Read about ``number`` damaged inputs, and print a line for each kind; return whether all were accepted or refused.

    Args:
        seed: inputs of different seeds differ.
        root: folder for everything that is written.
        failures: folder for the inputs that were neither accepted nor refused.
    """
    sources = Sources(root)
    with silent():  # made once, before the processes are forked
        _ = sources.prepared, sources.small_prepared
    print(HEAD, flush=True)
    quick, total = sum(kind.quick for kind in KINDS.values()), Tally()
    for name in KINDS:
        tally, done = Tally(), 0
        count = max(1, round(number * KINDS[name].quick / quick))
        while done < count:
            done = _batch(name, range(done, min(count, done + BATCH)), seed, sources, failures, tally)
        print('\n    '.join([tally.line(name), *tally.faults]), flush=True)
        total.outcomes += tally.outcomes
        total.memory, total.slowest = max(total.memory, tally.memory), max(total.slowest, tally.slowest)
    print(total.line('all'), flush=True)
    return not total.outcomes['other'] + total.outcomes['crashed']


@contextlib.contextmanager
def silent():
    """Drop what is printed, also by libraries in C."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    with open(os.devnull, 'w') as null:
        os.dup2(null.fileno(), 1), os.dup2(null.fileno(), 2)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for handle, number in zip(saved, (1, 2)):
            os.dup2(handle, number)
            os.close(handle)


def _batch(name: str, numbers: range, seed: int, sources: Sources, failures: Path, tally: Tally) -> int:
    """Read inputs in one process; return the number of the next input: a crash ends the batch."""
    reader, writer = os.pipe()
    with tempfile.TemporaryDirectory(dir=sources.folder) as folder:
        if (child := os.fork()) == 0:
            try:
                os.close(reader)
                with silent():
                    _read_all(name, numbers, seed, sources, Path(folder), writer)
            finally:
                os._exit(0)
        os.close(writer)
        current, path = numbers.start, None
        with os.fdopen(reader, 'rb', buffering=0) as stream:
            while message := _next_message(stream):
                current, path = message['number'], message.get('path') or path
                if 'outcome' in message:
                    _count(tally, message, name, seed, path, failures)
                    current, path = current + 1, None
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        if current < numbers.stop:
            ended = f'no answer in {SECONDS} s' if message is None else f'status {os.waitstatus_to_exitcode(status)}'
            message = dict(number=current, outcome='crashed', text=ended, memory=0.0, seconds=0.0)
            _count(tally, message, name, seed, path, failures)
            return current + 1
    return numbers.stop


def _next_message(stream) -> dict | None:
    """Return what the process says next: empty when it has ended, None if it says nothing for too long."""
    line, end = b'', time.monotonic() + SECONDS
    while not line.endswith(b'\n'):
        if not select.select([stream], [], [], max(0.0, end - time.monotonic()))[0]:
            return None
        if not (read := stream.read(1)):
            return {}
        line += read
    return json.loads(line)


def _count(tally: Tally, message: dict, name: str, seed: int, path: str | None, failures: Path) -> None:
    tally.outcomes[message['outcome']] += 1
    tally.memory, tally.slowest = max(tally.memory, message['memory']), max(tally.slowest, message['seconds'])
    if message['outcome'] in ('accepted', 'refused'):
        return
    kept = ''
    if path is not None and Path(path).is_file():
        failures.mkdir(parents=True, exist_ok=True)
        kept = shutil.copyfile(
            path, failures / f'{name} {seed} {message["number"]} {Path(path).name}'.replace(' ', '-')
        )
    tally.faults.append(f'input {message["number"]}: {message["text"]} {kept}'.rstrip())


def _read_all(name: str, numbers: range, seed: int, sources: Sources, folder: Path, writer: int) -> None:
    """Damage and read inputs, and say before and after each one what happens."""

    def say(**message) -> None:
        os.write(writer, json.dumps(message).encode() + b'\n')

    damage, use = KINDS[name].make(sources, folder)
    limit = _status('VmSize') + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for number in numbers:
        say(number=number)
        _forget_peak()
        before, start, text = _status('VmRSS'), time.perf_counter(), ''
        try:
            path = damage(random.Random(f'{name} {seed} {number}'))
            say(number=number, path=str(path))
            _forget_peak()
            before, start = _status('VmRSS'), time.perf_counter()
            outcome = 'accepted' if accepted(use) else 'refused'
        except BaseException as error:
            outcome, text = 'other', f'{type(error).__name__}: {error}'[:300]
        seconds, memory = time.perf_counter() - start, max(0.0, (_status('VmHWM') - before) / 1e6)
        say(number=number, outcome=outcome, text=text, memory=memory, seconds=seconds)


def _status(key: str) -> int:
    """Return a size of this process in bytes."""
    with open('/proc/self/status') as stream:
        return next(int(line.split()[1]) * 1024 for line in stream if line.startswith(f'{key}:'))


def _forget_peak() -> None:
    """Let VmHWM, the highest memory of this process, start again."""
    with open('/proc/self/clear_refs', 'w') as stream:
        stream.write('5')
