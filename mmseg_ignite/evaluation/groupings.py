"""Groupings of classes, and the evaluation published with the data (Spronck et al. 2025, arXiv 2507.16855)."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from ..errors import IgniteError
from ..labels import CLASSES
from .bootstrap import intervals
from .confusion import Marginals, figures, number, scores

REST = 'rest'
"""In place of a list of classes: all classes that no other group names."""
IGNITE_6 = {
    'Background': ['Background'],
    'Tumor': ['Tumor epithelium'],
    'Stroma + Inflammation': ['Stroma', 'Inflammation'],
    'Necrotic': ['Necrotic tissue'],
    'Macrophages': ['Macrophages'],
    'Rest': REST,
}
GROUPINGS = {'ignite-6': IGNITE_6}
"""Groupings that every evaluation of the 16 classes holds."""
_GROUP_FIGURES = ('mIoU', 'mDice', 'mAcc', 'aAcc')


def group_members(grouping: Mapping, classes: Sequence[str], name: str = 'grouping') -> dict[str, list[int]]:
    """Check a grouping and give the class numbers of each group.

    Args:
        grouping: {group: [class names]}, or 'rest' in place of one list.
        classes: all class names, in the order of the matrices.
        name: of the grouping, for messages.

    Raises:
        IgniteError: no such mapping, a group without a class, an unknown class, a class in two groups, or two 'rest'.
    """
    if not isinstance(grouping, Mapping) or not grouping:
        raise IgniteError(f'{name} is {grouping!r}; {{group: [class names]}} was expected: mend the grouping.')
    seen: dict[str, str] = {}
    for group, members in grouping.items():
        if members == REST:
            continue
        if isinstance(members, str) or not isinstance(members, Sequence) or not members:
            raise IgniteError(
                f'{name}: the group {group!r} holds {members!r}; a list of class names was expected: mend it.'
            )
        for member in members:
            if member not in classes:
                raise IgniteError(
                    f'{name}: the group {group!r} names {member!r}; the classes are {", ".join(classes)}.'
                )
            if member in seen:
                raise IgniteError(f'{name}: {member!r} stands in {seen[member]!r} and in {group!r}: name it once.')
            seen[member] = group
    rests = [group for group, members in grouping.items() if members == REST]
    if len(rests) > 1:
        raise IgniteError(f'{name}: the groups {rests[0]!r} and {rests[1]!r} are both {REST!r}: only one can be.')
    left = [c for c in classes if c not in seen]
    if rests and not left:
        raise IgniteError(f'{name}: no class is left for the group {rests[0]!r}: leave it away.')
    return {
        str(group): [classes.index(m) for m in (left if members == REST else members)]
        for group, members in grouping.items()
    }


def group_matrix(matrices: np.ndarray, members: Mapping[str, list[int]]) -> np.ndarray:
    """Matrices (..., C, C) or (..., C, C + 1) of classes to (..., G, G + 1) of groups.

    A class in no group is left out as if it were unannotated. Where it was predicted on a pixel of a group it is an error,
    as no prediction is: the last column.
    """
    classes, columns = matrices.shape[-2:]
    group_of = np.full(columns, len(members))
    for group, ids in enumerate(members.values()):
        group_of[ids] = group
    belongs = np.eye(len(members) + 1, dtype=matrices.dtype)[group_of]
    return belongs[:classes, :-1].T @ matrices @ belongs


def check_groupings(groupings: Mapping | None, classes: Sequence[str]) -> dict[str, dict[str, list[int]]]:
    """The built-in groupings that fit the classes and those given, checked; a given one replaces a built-in of its name.

    Raises:
        IgniteError: see :func:`group_members`.
    """
    if groupings is not None and not isinstance(groupings, Mapping):
        raise IgniteError(f'groupings is {groupings!r}; {{name: {{group: [class names]}}}} was expected: mend it.')
    built_in = GROUPINGS if tuple(classes) == CLASSES else {}
    return {name: group_members(g, list(classes), name) for name, g in {**built_in, **(groupings or {})}.items()}


def group_scores(pooled: np.ndarray, members: Mapping[str, list[int]]) -> dict:
    """The scores of a grouping from a pooled matrix: those of the classes, named ``groups``."""
    found = scores(group_matrix(pooled, members), tuple(members))
    return {'groups': found['classes'], **{k: found[k] for k in (*_GROUP_FIGURES, 'classes_present')}}


def group_intervals(
    matrices: np.ndarray, metadata: Sequence[dict], members: Mapping[str, list[int]], samples: int, seed: int
) -> dict:
    """Intervals of :func:`group_scores`: {figures: {mIoU, ...: [low, high]}, groups: {name: {IoU, Dice, patients}}}.

    Args:
        matrices: (R, C, C) or (R, C, C + 1) int64, of each ROI.
        metadata, samples, seed: see :func:`.bootstrap.intervals`.
    """
    found = intervals(group_matrix(matrices, members), metadata, tuple(members), samples, seed, _GROUP_FIGURES)
    return dict(figures=found['figures'], groups=found['classes'])


def _published(matrices: np.ndarray) -> Iterator[tuple[str, str, np.ndarray, tuple[str, ...]]]:
    """What the published evaluation counts, of classes and of groups: key, prefix of its figures, matrices, names.

    Column Unannotated is not there (so a pixel without prediction is left out), and the Background row is zeroed.
    """
    kept = matrices[..., : len(CLASSES)].copy()
    kept[..., CLASSES.index('Background'), :] = 0
    members = group_members(IGNITE_6, CLASSES)
    yield 'classes', '', kept, CLASSES
    yield 'groups', 'groups_', group_matrix(kept, members), tuple(members)


def published_intervals(matrices: np.ndarray, metadata: Sequence[dict], samples: int, seed: int) -> dict:
    """Intervals of :func:`published_scores`, [low, high] by the same keys; ``patients`` of those that hold each class.

    Args:
        matrices: (R, 16, 16) or (R, 16, 17) int64, of each ROI.
        metadata, samples, seed: see :func:`.bootstrap.intervals`.
    """
    result: dict = {'patients': {}}
    for key, prefix, counts, names in _published(matrices):
        found = intervals(counts, metadata, names, samples, seed, ('micro_dice', 'mDice'))
        result[key] = {name: row['Dice'] for name, row in found['classes'].items()}
        result['patients'][key] = {name: row['patients'] for name, row in found['classes'].items()}
        result[f'{prefix}micro_dice'] = found['figures']['micro_dice']
        result[f'{prefix}mean_dice'] = found['figures']['mDice']
    return result


def published_scores(pooled: np.ndarray) -> dict:
    """The scores of the published evaluation, percent, from the matrix (16, 16) pooled over all test pixels.

    Row and column Unannotated are not there (so a pixel without prediction is left out). The Background row is zeroed, its
    column kept: glass called tissue costs nothing, tissue called glass does. Dice of a class is 2 hit / (truth + predicted)
    of what is left. ``mean_dice`` is over the classes with truth left, so without Background; ``micro_dice`` is
    2 sum(hit) / (sum(truth) + sum(predicted)), here the share of right pixels outside Background.
    """
    result: dict = {}
    for key, prefix, matrix, names in _published(pooled):
        marginals = Marginals.of(matrix)
        found = figures(marginals)
        result[key] = {n: number(d) if t else None for n, d, t in zip(names, found['Dice'], marginals.truth)}
        result[f'{prefix}micro_dice'] = number(found['micro_dice'])
        result[f'{prefix}mean_dice'] = number(found['mDice'])
    return result
