"""Settings of a config by dotted key, e.g. ``model.decode_head.num_classes`` or ``custom_hooks.0.type``."""

from collections.abc import Iterator, Mapping

from mmengine.config import Config

MISSING = object()
"""Default of :func:`find` where None is a value."""


def children(node: object) -> dict[str, object]:
    """Return the items of a mapping or list by key or index, as text; {} for any other value."""
    if isinstance(node, (Config, Mapping)):
        return {str(key): value for key, value in node.items()}
    return {str(index): item for index, item in enumerate(node)} if isinstance(node, (list, tuple)) else {}


def find(node: object, key: str, default: object = None) -> object:
    """Return the setting at a dotted key, or the default if it is missing."""
    for part in key.split('.'):
        node = children(node).get(part, MISSING)
    return default if node is MISSING else node


def walk(node: object, prefix: str = '') -> Iterator[tuple[str, object]]:
    """Yield all settings inside a node with their dotted keys, parents before their children."""
    for key, value in children(node).items():
        yield f'{prefix}{key}', value
        yield from walk(value, f'{prefix}{key}.')


def each(node: object, key: str) -> Iterator[tuple[str, object]]:
    """Iterate over the items of a list with their dotted keys, or the setting itself if it is not a list."""
    value = find(node, key)
    if not isinstance(value, (list, tuple)):
        return iter([(key, value)])
    return ((f'{key}.{index}', item) for index, item in enumerate(value))
