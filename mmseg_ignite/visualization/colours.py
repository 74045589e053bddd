"""Class colours of all pictures: the official palette of the release and a colour-blind-safe one."""

from typing import NamedTuple

import numpy as np

from ..labels import CLASSES, PALETTE, UNANNOTATED

EDGE = '#333333'
"""Outline of bars, dots and swatches, so that light colours stand out on white."""

# Okabe and Ito's colours, adapted: black is lightened to dark gray, blue and purple are darkened so that people without
# S cones can distinguish them from green and orange, and a near-white is added for glass. These nine colours are distinct
# in all three dichromacies; sixteen are not. The seven rarer classes therefore reuse a colour with dark stripes. Classes
# that are often confused (tumor and reactive epithelium, stroma and muscle) have very different colours, because dark
# nuclei darken both.
_WHITE, _GRAY, _ORANGE, _SKY, _GREEN = '#f4f4f4', '#333333', '#e69f00', '#56b4e9', '#009e73'
_YELLOW, _BLUE, _VERMILION, _PURPLE = '#f0e442', '#0065a8', '#d55e00', '#b55d9a'
_SAFE = {
    'Background': (_WHITE, False),
    'Tumor epithelium': (_BLUE, False),
    'Reactive epithelium': (_GREEN, False),
    'Stroma': (_YELLOW, False),
    'Inflammation': (_VERMILION, False),
    'Alveolar tissue': (_PURPLE, False),
    'Fatty tissue': (_ORANGE, True),
    'Necrotic tissue': (_GRAY, False),
    'Erythrocytes': (_ORANGE, False),
    'Bronchial epithelium': (_GREEN, True),
    'Mucus/Plasma/Fluids': (_SKY, True),
    'Cartilage/Bone': (_WHITE, True),
    'Macrophages': (_SKY, False),
    'Muscle': (_PURPLE, True),
    'Liver': (_VERMILION, True),
    'Keratinization': (_YELLOW, True),
}


class Colours(NamedTuple):
    """Lookup tables of a palette.

    Attributes:
        rgb: (256, 3) uint8, RGB colour of each train id; black for ids that are not a class.
        hatched: (256,) bool, whether dark stripes are painted over the colour.
    """

    rgb: np.ndarray
    hatched: np.ndarray


class ClassColours(NamedTuple):
    """Colours of one class.

    Attributes:
        official: '#rrggbb' of the release.
        safe: '#rrggbb' of the colour-blind-safe palette.
        hatched: whether dark stripes are painted over ``safe``.
    """

    official: str
    safe: str
    hatched: bool


def class_colours(name: str, number: int) -> ClassColours:
    """Return the colours of a class; a name that is not in the release (a group) takes those of class ``number``.

    Example:
        >>> class_colours('Stroma', 0)
        ClassColours(official='#fffb00', safe='#f0e442', hatched=False)
    """
    known = name if name in CLASSES else CLASSES[number % len(CLASSES)]
    return ClassColours('#{:02x}{:02x}{:02x}'.format(*PALETTE[CLASSES.index(known)]), *_SAFE[known])


def _tables(rgb: list[tuple[int, ...]], hatched: list[bool]) -> Colours:
    fill = 256 - len(CLASSES)
    return Colours(np.array([*rgb, *[UNANNOTATED] * fill], np.uint8), np.array([*hatched, *[False] * fill]))


OFFICIAL = _tables(list(PALETTE), [False] * len(CLASSES))
PALETTES = {
    'official': OFFICIAL,
    'colour-blind': _tables(
        [tuple(bytes.fromhex(_SAFE[name][0][1:])) for name in CLASSES], [_SAFE[name][1] for name in CLASSES]
    ),
}
"""Palettes by name."""
