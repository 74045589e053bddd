"""Builders of damaged and hostile checkpoint files, and a process in which a test may crash."""

import multiprocessing
import os
import resource
import signal
import struct
import time
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest

from mmseg_ignite.errors import IgniteError


class Hostile:
    """Makes a folder when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


# Pickles are put together from opcodes: bytes are opcodes already, everything else is converted by `code`.


def code(value):
    """Return the opcodes that make a value."""
    if isinstance(value, bytes):
        return value
    if value is None or isinstance(value, bool):
        return {None: b'N', False: b'\x89', True: b'\x88'}[value]
    if isinstance(value, int):
        digits = value.to_bytes(value.bit_length() // 8 + 1, 'little', signed=True)
        return b'\x8a' + bytes([len(digits)]) + digits
    if isinstance(value, float):
        return b'G' + struct.pack('>d', value)
    if isinstance(value, str):
        return b'X' + struct.pack('<I', len(value.encode())) + value.encode()
    if isinstance(value, dict):
        return b'}(' + b''.join(code(k) + code(v) for k, v in value.items()) + b'u'
    if isinstance(value, list):
        return b'](' + b''.join(map(code, value)) + b'e'
    return b'(' + b''.join(map(code, value)) + b't'


def name(full):
    module, _, last = full.rpartition('.')
    return f'c{module}\n{last}\n'.encode()


def call(function, *args):
    return name(function) + code(args) + b'R'


def build(instance, state):
    return code(instance) + code(state) + b'b'


def storage(numel=1, key='0', kind='FloatStorage', device='cpu'):
    return code(('storage', name(f'torch.{kind}'), key, device, numel)) + b'Q'


def tensor(size=(1,), stride=(1,), offset=0, numel=1, **more):
    hooks = call('collections.OrderedDict')
    return call('torch._utils._rebuild_tensor_v2', storage(numel, **more), offset, size, stride, False, hooks)


def pickled(value):
    return b'\x80\x02' + code(value) + b'.'


def archive(path, value, records=None, compression=zipfile.ZIP_STORED):
    """Write a checkpoint in torch's zip format from a value or from opcodes, and storages {key: bytes}."""
    with zipfile.ZipFile(path, 'w', compression, compresslevel=1) as file:
        file.writestr('archive/data.pkl', pickled(value))
        file.writestr('archive/byteorder', 'little')
        for key, content in ({'0': bytes(4)} if records is None else records).items():
            file.writestr(f'archive/data/{key}', content)
        file.writestr('archive/version', '3\n')
    return path


def entries(path, change):
    """Change every entry of an archive's directory: ``change`` gets and returns (header, name)."""
    content = Path(path).read_bytes()
    end = content.rfind(b'PK\x05\x06')
    start, found = struct.unpack('<I', content[end + 16 : end + 20])[0], []
    position = start
    while content[position : position + 4] == b'PK\x01\x02':
        length, extra, comment = struct.unpack('<HHH', content[position + 28 : position + 34])
        stop = position + 46 + length + extra + comment
        found.append((content[position : position + 46], content[position + 46 : stop]))
        position = stop
    found = change(found)
    directory = b''.join(header + rest for header, rest in found)
    tail = bytearray(content[end:])
    struct.pack_into('<HHI', tail, 8, len(found), len(found), len(directory))
    Path(path).write_bytes(content[:start] + directory + tail)


class Outcome(NamedTuple):
    """What a function did in another process: 'returned', 'refused', 'raised' or 'crashed'; growth of its memory in MB."""

    kind: str
    text: str
    grown: float
    seconds: float


def in_child(function, *args, seconds=20, memory=3 << 30):
    """Call a function in a forked process of limited time and memory, so that a crash ends only that process."""
    return outcomes([(function, *args)], seconds, memory)[0]


def outcomes(calls, seconds=20, memory=3 << 30):
    """Return the outcome of each call (function, *args), one after the other in a forked process.

    A crash is the outcome of its call, and the rest go on in another process.
    """
    if 'fork' not in multiprocessing.get_all_start_methods():
        pytest.skip('processes cannot be forked here')
    context, calls, found = multiprocessing.get_context('fork'), list(calls), []
    while len(found) < len(calls):
        receiver, sender = context.Pipe(duplex=False)
        child = context.Process(target=_run, args=(sender, calls[len(found) :], seconds, memory))
        child.start()
        sender.close()
        crashed = False
        while len(found) < len(calls) and not crashed:
            try:
                outcome = receiver.recv() if receiver.poll(seconds + 10) else None
            except EOFError:
                outcome = None
            crashed = outcome is None
            found += [] if crashed else [outcome]
        child.join(5)
        if child.is_alive():
            child.kill()
            child.join()
        if crashed:
            found.append(Outcome('crashed', f'exit code {child.exitcode}', 0.0, 0.0))
    return found


def _run(sender, calls, seconds, memory):
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    with open('/proc/self/statm') as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + memory, used + memory))
    for function, *args in calls:
        signal.alarm(seconds)
        sender.send(_outcome(function, args))


def _outcome(function, args):
    Path('/proc/self/clear_refs').write_text('5')  # the peak of the memory starts again
    before, start = _peak(), time.perf_counter()
    try:
        kind, text = 'returned', str(function(*args))[:500]
    except IgniteError as error:
        kind, text = 'refused', str(error)
    except BaseException as error:
        kind, text = 'raised', f'{type(error).__name__}: {error}'[:500]
    return Outcome(kind, text, _peak() - before, time.perf_counter() - start)


def _peak():
    """Return the most memory that this process has used, MB."""
    status = Path('/proc/self/status').read_text()
    return int(status.partition('VmHWM:')[2].split()[0]) / 1024
