"""An interpreter of the few pickle instructions that checkpoints consist of, in place of pickle.

Pickle and torch's restricted form of it call what a file names, set attributes, hash any key, and trust the sizes of
storages. Here the names come from a fixed table, keys are text and numbers, every size is compared with the file before
anything is allocated, and the work is limited, so that a hostile file can neither run code, crash nor fill the memory.
"""

import pickle
import struct
from collections.abc import Callable
from typing import BinaryIO

from .mmengine_objects import Array, DType, ForeignContent, History
from .torch_objects import CALLABLE, NAMES, StorageType, checked_key, encode

_MAX_COST, _CALL_COST = 3_000_000, 16
"""An instruction costs 1 and at most about 130 bytes of memory; a call, which may make a tensor, costs more."""


class Stream:
    """A file of known size that is read in order, where no read is longer than the rest."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.size = file, size
        self.read = file.read

    def take(self, length: int) -> bytes:
        if not 0 <= length <= self.size:  # before bytes of this length are allocated
            raise EOFError('it ends within its content')
        found = self.read(length)
        if len(found) != length:
            raise EOFError('it ends within its content')
        return found

    def line(self) -> str:
        return self.file.readline(200).decode('ascii').removesuffix('\n')


class Interpreter:
    """Carries out one pickle, see the module :mod:`pickletools` for the instructions.

    Args:
        load_storage: called with (type, key, number of values); None if there are no storages.
    """

    def __init__(self, stream: Stream, load_storage: Callable | None = None) -> None:
        self.stream, self.load_storage = stream, load_storage
        self.stack, self.marks, self.memo = [], [], {}
        self.cost, self.room = 0, 2 * stream.size

    def load(self) -> object:
        take, known = self.stream.take, _INSTRUCTIONS
        while (code := take(1)) != pickle.STOP:
            if (instruction := known.get(code)) is None:
                raise ForeignContent(f'the pickle instruction {code!r}')
            self.spend(1)
            instruction(self)
        return self.stack.pop()

    def spend(self, cost: int) -> None:
        self.cost += cost
        if self.cost > _MAX_COST:
            raise ForeignContent('more content than a checkpoint')

    def copy(self, data: object) -> None:
        """Note that text or bytes are copied, which may be the same ones again and again."""
        self.room -= len(data) if isinstance(data, (str, bytes)) else 0
        if self.room < 0:
            raise ForeignContent('data that are used more than once')

    def items(self) -> list:
        """Return what was pushed since the last mark."""
        found, self.stack = self.stack, self.marks.pop()
        return found

    def fill(self, kind: type, items: list) -> None:
        """Add items to the list, set or dictionary on the stack."""
        target = self.stack[-1]
        if type(target) is not kind:
            raise ForeignContent(f'items of a {type(target).__name__}')
        if kind is list:
            target.extend(items)
        elif kind is set:
            target.update(map(checked_key, items))
        else:
            if len(items) % 2:
                raise ValueError('a key without a value')
            target.update(zip(map(checked_key, items[::2]), items[1::2]))

    def name(self, module: object, name: object) -> None:
        if type(module) is not str or type(name) is not str:
            raise ForeignContent('a name that is not text')
        full = f'{"builtins" if module == "__builtin__" else module}.{name}'
        if full not in NAMES:
            raise ForeignContent(f'the name {full[:80]!r}')
        self.stack.append(NAMES[full])

    def call(self, new: bool = False) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        made = function is History  # without arguments, and by no other instruction
        if id(function) not in CALLABLE or type(arguments) is not tuple or new != made or made and arguments:
            raise ForeignContent('a call of an object')
        self.spend(_CALL_COST)
        if function is encode and arguments:
            self.copy(arguments[0])
        self.stack.append(function(*arguments))

    def build(self) -> None:
        """Give a stand-in its state; the attributes of a dictionary (``_metadata``) are ignored."""
        state, target = self.stack.pop(), self.stack[-1]
        if type(target) in (Array, DType, History):
            if type(target) is Array and type(state) is tuple and state:
                self.copy(state[-1])
            target.__setstate__(state)
        elif type(target) is not dict:
            raise ForeignContent(f'a state of a {type(target).__name__}')

    def storage(self) -> None:
        found = self.stack.pop()
        if self.load_storage is None or type(found) is not tuple or not 5 <= len(found) <= 6:
            raise ForeignContent('a reference to something else than a storage')
        tag, kind, key, _, numel = found[:5]
        valid = type(kind) is StorageType and type(key) is str and type(numel) is int and 0 <= numel < 1 << 60
        if tag != 'storage' or not valid or found[5:] not in ((), (None,)):
            raise ForeignContent('a reference to something else than a storage')
        self.spend(_CALL_COST)
        self.stack.append(self.load_storage(kind, key, numel))

    def mark(self) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def pack(self, items: list) -> None:
        self.stack.append(tuple(items))


def _number(form: str) -> Callable:
    unpack, length = struct.Struct(form).unpack, struct.calcsize(form)
    return lambda self: unpack(self.stream.take(length))[0]


def _push(value: Callable) -> Callable:
    return lambda self: self.stack.append(value(self))


def _sized(form: str, convert: Callable) -> Callable:
    length = _number(form)
    return lambda self: self.stack.append(convert(self.stream.take(length(self))))


def _text(content: bytes) -> str:
    return content.decode('utf-8', 'surrogatepass')


def _integer(content: bytes) -> int:
    return int.from_bytes(content, 'little', signed=True)


def _remember(number: Callable) -> Callable:
    return lambda self: self.memo.__setitem__(number(self), self.stack[-1])


def _recall(number: Callable) -> Callable:
    return lambda self: self.stack.append(self.memo[number(self)])


_INSTRUCTIONS: dict[bytes, Callable] = {
    pickle.PROTO: _number('<B'), pickle.FRAME: _number('<Q'),
    pickle.NONE: _push(lambda self: None), pickle.NEWTRUE: _push(lambda self: True),
    pickle.NEWFALSE: _push(lambda self: False), pickle.EMPTY_TUPLE: _push(lambda self: ()),
    pickle.EMPTY_LIST: _push(lambda self: []), pickle.EMPTY_DICT: _push(lambda self: {}),
    pickle.EMPTY_SET: _push(lambda self: self.spend(_CALL_COST) or set()),
    pickle.BININT: _push(_number('<i')), pickle.BININT1: _push(_number('<B')), pickle.BININT2: _push(_number('<H')),
    pickle.BINFLOAT: _push(_number('>d')), pickle.LONG1: _sized('<B', _integer),
    pickle.SHORT_BINUNICODE: _sized('<B', _text), pickle.BINUNICODE: _sized('<I', _text),
    pickle.BINUNICODE8: _sized('<Q', _text), pickle.SHORT_BINSTRING: _sized('<B', _text),
    pickle.BINSTRING: _sized('<i', _text), pickle.SHORT_BINBYTES: _sized('<B', bytes),
    pickle.BINBYTES: _sized('<I', bytes), pickle.BINBYTES8: _sized('<Q', bytes),
    pickle.BINPUT: _remember(_number('<B')), pickle.LONG_BINPUT: _remember(_number('<I')),
    pickle.MEMOIZE: _remember(lambda self: len(self.memo)),
    pickle.BINGET: _recall(_number('<B')), pickle.LONG_BINGET: _recall(_number('<I')),
    pickle.MARK: Interpreter.mark, pickle.TUPLE: lambda self: self.pack(self.items()),
    pickle.TUPLE1: lambda self: self.pack([self.stack.pop()]),
    pickle.TUPLE2: lambda self: self.pack([self.stack.pop(-2), self.stack.pop()]),
    pickle.TUPLE3: lambda self: self.pack([self.stack.pop(-3), self.stack.pop(-2), self.stack.pop()]),
    pickle.APPEND: lambda self: self.fill(list, [self.stack.pop()]),
    pickle.APPENDS: lambda self: self.fill(list, self.items()),
    pickle.SETITEM: lambda self: self.fill(dict, [self.stack.pop(-2), self.stack.pop()]),
    pickle.SETITEMS: lambda self: self.fill(dict, self.items()),
    pickle.ADDITEMS: lambda self: self.fill(set, self.items()),
    pickle.GLOBAL: lambda self: self.name(self.stream.line(), self.stream.line()),
    pickle.STACK_GLOBAL: lambda self: self.name(self.stack.pop(-2), self.stack.pop()),
    pickle.REDUCE: Interpreter.call, pickle.NEWOBJ: lambda self: self.call(new=True),
    pickle.BUILD: Interpreter.build, pickle.BINPERSID: Interpreter.storage,
}  # fmt: skip
