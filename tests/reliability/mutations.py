"""Damage JSON, checkpoints and bytes at random, as a disk, an editor or an attacker would; the generator decides all."""

import copy
import json
import random

import torch

_DEEP = 'replaced by a deeply nested list'
DEEP_TEXT = '[' * 20_000 + ']' * 20_000
"""A list in a list in a list ..., deeper than any parser that recurses allows."""
VALUES = (
    None, True, -1, 0, 2**62, 10**400, 0.5, float('nan'), float('-inf'), '', '../evil', 'x' * 5000, '\ud800', 'a\0b',
    [], {}, [[]], {'a': 1}, _DEEP,
)  # fmt: skip
"""What replaces a value: wrong types, ranges, names and depths."""


def mutated_json(content: object, rng: random.Random) -> bytes:
    """Return the JSON text of ``content`` with one mutation; ``content`` is unchanged.

    A value is replaced by one of :data:`VALUES` (half of the calls), a key or list item is deleted, doubled, or swapped with
    another value of the same object or list.

    Args:
        content: what ``json.loads`` returned.
        rng: decides what is changed and how.

    Returns:
        UTF-8 JSON, possibly with NaN, infinities, a lone surrogate, a key twice or a list of 20,000 levels.

    Example:
        >>> mutated_json({'rois': [1, 2]}, random.Random(0))
        b'{"rois": [1]}'
    """
    holder = {'content': copy.deepcopy(content)}
    parent, key = rng.choice(_places(holder))
    kind = rng.choice(('replace', 'replace', 'replace', 'delete', 'double', 'swap'))
    twice = None
    if kind == 'replace' or parent is holder:
        parent[key] = rng.choice(VALUES)
    elif kind == 'delete':
        del parent[key]
    elif kind == 'swap':
        other = rng.choice(list(parent) if isinstance(parent, dict) else range(len(parent)))
        parent[key], parent[other] = parent[other], parent[key]
    elif isinstance(parent, list):
        parent.insert(key, parent[key])
    else:
        twice = key, rng.choice(VALUES[:-1])
        parent[f'{key} twice'] = twice[1]
    text = json.dumps(holder['content']).replace(json.dumps(_DEEP), DEEP_TEXT)
    if twice is not None:
        text = text.replace(json.dumps(f'{twice[0]} twice'), json.dumps(twice[0]))
    return text.encode()


CONTENTS = (
    *(value for value in VALUES if value is not _DEEP), b'bytes', (1, 2), {1, 2}, 1j, torch.float16, torch.Size([2]),
    torch.zeros(0), torch.tensor(2), torch.full((8, 4), float('nan')), torch.ones(3, dtype=torch.bool),
    torch.ones(8, 4, dtype=torch.complex64), torch.ones(1).expand(1000, 1000), torch.arange(32.0)[::2], torch.ones(8, 4).T,
)  # fmt: skip
"""What replaces a value in a checkpoint, besides containers in containers."""


def mutated_content(content: dict, rng: random.Random) -> dict:
    """Return the content of a checkpoint with one mutation; ``content`` is unchanged.

    A value is replaced by one of :data:`CONTENTS` or by lists in lists, a key or list item is deleted, gets another name, or
    is swapped with another value of the same dictionary or list.

    Args:
        content: nested dictionaries and lists with values of any kind, e.g. tensors.
        rng: decides what is changed and how.
    """
    content = copy.deepcopy(content)
    parent, key = rng.choice(_places(content))
    kind = rng.choice(('replace', 'replace', 'replace', 'nest', 'delete', 'rename', 'swap'))
    if kind == 'replace' or (kind == 'rename' and isinstance(parent, list)):
        parent[key] = rng.choice(CONTENTS)
    elif kind == 'nest':
        for _ in range(rng.choice((30, 200))):
            parent[key] = [parent[key]]
    elif kind == 'rename':
        parent[rng.choice((None, 7, 0.5, (1, 2), '', 'x' * 5000, '../evil', 'a\0b'))] = parent.pop(key)
    elif kind == 'delete':
        del parent[key]
    else:
        other = rng.choice(list(parent) if isinstance(parent, dict) else range(len(parent)))
        parent[key], parent[other] = parent[other], parent[key]
    return content


def _places(content: object) -> list[tuple[dict | list, object]]:
    """Return all values inside ``content`` as (dictionary or list, its key or position)."""
    places, open_ = [], [content]
    while open_:
        found = open_.pop()
        keys = list(found) if isinstance(found, dict) else range(len(found))
        places += [(found, key) for key in keys]
        open_ += [found[key] for key in keys if isinstance(found[key], (dict, list))]
    return places


def mutated_bytes(data: bytes, rng: random.Random) -> bytes:
    """Return ``data`` with one mutation, more often near its start, where headers are.

    One to eight bits are flipped, the end is cut off, a block of zeros is written, random bytes are inserted, a block is
    removed, or a block is moved to another place.

    Args:
        data: at least one byte.
        rng: decides what is changed and how.

    Returns:
        bytes that differ from ``data``.

    Example:
        >>> mutated_bytes(b'abcdef', random.Random(7))
        b'abc'
    """
    while True:
        result, kind = bytearray(data), rng.choice(('flip', 'flip', 'truncate', 'zero', 'insert', 'remove', 'move'))
        start = rng.randrange(min(len(data), rng.choice((64, 512, len(data)))))
        length = min(rng.choice((1, 2, 4, 16, 512)), len(data) - start)
        if kind == 'flip':
            for _ in range(rng.randint(1, 8)):
                result[rng.randrange(start, start + length)] ^= 1 << rng.randrange(8)
        elif kind == 'truncate':
            del result[start:]
        elif kind == 'zero':
            result[start : start + length] = bytes(length)
        elif kind == 'insert':
            result[start:start] = rng.randbytes(length)
        else:
            block = result[start : start + length]
            del result[start : start + length]
            if kind == 'move':
                to = rng.randint(0, len(result))
                result[to:to] = block
        if result != data:
            return bytes(result)
