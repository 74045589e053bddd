"""The two palettes of the report: the official one, and one for readers who see colours otherwise."""

from typing import NamedTuple

from ..labels import CLASSES, PALETTE

# Okabe and Ito's colours: their black lightened to a dark gray, blue and purple darkened so that people without S cones
# tell them from green and orange, and a near-white added for glass. Nine can be told apart in each of the three
# dichromacies, sixteen cannot: the rarer seven classes repeat a colour with dark stripes. Classes that are easily taken for
# each other (tumor and reactive epithelium, stroma and muscle) have colours far apart, for dark nuclei darken both.
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


class ClassColours(NamedTuple):
    """How a class is drawn.

    Attributes:
        official: '#rrggbb' of the release.
        safe: '#rrggbb' of the colour-blind-safe palette.
        hatched: whether dark stripes lie over ``safe``.
    """

    official: str
    safe: str
    hatched: bool


def class_colours(name: str, number: int) -> ClassColours:
    """The colours of a class of the release; another's (a group's) are those of the class at its place."""
    known = CLASSES[number % len(CLASSES)] if name not in CLASSES else name
    official = '#{:02x}{:02x}{:02x}'.format(*PALETTE[CLASSES.index(known)])
    return ClassColours(official, *_SAFE[known])
