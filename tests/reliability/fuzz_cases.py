"""What the tests and the benchmark of random damage share: the kinds of inputs, their sources, and what counts as an answer.

The kinds themselves are in ``fuzz_data.py`` (data sets and images) and ``fuzz_runs.py`` (work dirs and checkpoints).
"""

import functools
import random
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from mmseg_ignite.errors import IgniteError
from mmseg_ignite.preparation import prepare, write_synthetic_release

Damage = Callable[[random.Random], Path]
"""Writes an input with one mutation in place of the one before; returns its path."""
Use = Callable[[], object]
"""Reads the input as a user would."""


class Sources:
    """What the inputs are made from; each part is made when it is first needed. The kinds must not change it."""

    def __init__(self, folder: Path, release: Path | None = None, prepared: Path | None = None) -> None:
        self.folder = folder
        if release is not None:
            self.release, self.prepared = release, prepared

    @functools.cached_property
    def release(self) -> Path:
        """A release with 12 ROIs from 6 patients."""
        write_synthetic_release(self.folder / 'release', rois=12, patients=6, size=(96, 112), seed=5)
        return self.folder / 'release'

    @functools.cached_property
    def prepared(self) -> Path:
        """The prepared form of :attr:`release`."""
        prepare(self.release, self.folder / 'ignite')
        return self.folder / 'ignite'

    @functools.cached_property
    def small_release(self) -> Path:
        """A release with 4 ROIs from 4 patients."""
        write_synthetic_release(self.folder / 'small_release', rois=4, patients=4, size=(72, 80), seed=6)
        return self.folder / 'small_release'

    @functools.cached_property
    def small_prepared(self) -> Path:
        """The prepared form of :attr:`small_release`."""
        prepare(self.small_release, self.folder / 'small_ignite')
        return self.folder / 'small_ignite'


class Kind(NamedTuple):
    """A kind of input: how it is damaged and read, in a folder of its own that is empty before.

    ``quick`` inputs are tried by the tests; of these at least the share ``refused`` must be refused, so that the mutations
    have an effect.
    """

    make: Callable[[Sources, Path], tuple[Damage, Use]]
    quick: int
    refused: float = 0.0


class Changing:
    """Changes files one at a time: the file that was changed before gets its content back."""

    def __init__(self) -> None:
        self._before: tuple[Path, bytes] | None = None

    def __call__(self, path: Path, mutation: Callable[[bytes], bytes]) -> Path:
        if self._before is not None:
            self._before[0].write_bytes(self._before[1])
        self._before = path, path.read_bytes()
        path.write_bytes(mutation(self._before[1]))
        return path


def accepted(use: Use) -> bool:
    """Read an input; return whether it was accepted, False if it was refused with one printable sentence.

    Raises:
        AssertionError: it was refused with something else than a sentence.
        Exception: whatever else reading it raises.
    """
    try:
        use()
        return True
    except IgniteError as error:
        text = str(error)
        assert text.endswith('.') and len(text) < 3000 and text.isprintable(), text
        text.encode()
        return False


def try_quickly(name: str, kind: Kind, sources: Sources, folder: Path) -> None:
    """Try the quick inputs of a kind in this process; raise AssertionError at the end if any is not accepted or refused."""
    damage, use = kind.make(sources, folder)
    outcomes, faults = [], []
    for number in range(kind.quick):
        damage(random.Random(f'{name} {number}'))
        try:
            outcomes.append(accepted(use))
        except Exception as error:
            faults.append((number, repr(error)[:300]))
    assert not faults
    assert outcomes.count(False) >= kind.refused * kind.quick
