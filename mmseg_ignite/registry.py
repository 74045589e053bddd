"""mmengine registries with the scope ``mmseg_ignite``, which parts of ``mmseg_ignite::`` base configs have.

Each is a child of the mmseg registry that the classes of this package are registered in, and finds whatever that finds.
mmengine imports this module by name when it meets the scope.
"""

from mmengine.registry import Registry
from mmseg import registry


class _Child(Registry):
    """A registry that imports the modules of its parents before it searches them, which mmengine does not do."""

    def import_from_location(self) -> None:
        super().import_from_location()
        parent = self
        while (parent := parent.parent) is not None:
            parent.import_from_location()


CHILDREN = [
    _Child(node.name, parent=node, scope='mmseg_ignite', locations=['mmseg_ignite'])
    for node in vars(registry).values()
    if isinstance(node, Registry)
]
