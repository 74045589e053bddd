"""Scores of groups of classes, and the evaluation published with IGNITE (Spronck et al. 2025, arXiv 2507.16855)."""

import reprlib
from collections.abc import Mapping, Sequence

import numpy as np

from ..errors import IgniteError
from ..labels import CLASSES
from ..untrusted import MAX_NAME, Form, is_text
from .bootstrap import intervals
from .confusion import Marginals, number, score_arrays, scores

REST = 'rest'
"""Stands for all classes that are in no other group."""
MAX_GROUPINGS = 100
"""Most groupings of an evaluation; each is resampled for its intervals."""
REMEDY = 'write {"grouping": {"group": ["class name", ...], "other": "rest"}}'
FORM = {'*': {'*': Form(lambda value: value == REST or isinstance(value, list), "a list of class names or 'rest'")}}
"""Form of a JSON file of groupings; :func:`check_groupings` checks the names."""
IGNITE_6 = {
    'Background': ['Background'],
    'Tumor': ['Tumor epithelium'],
    'Stroma + Inflammation': ['Stroma', 'Inflammation'],
    'Necrotic': ['Necrotic tissue'],
    'Macrophages': ['Macrophages'],
    'Rest': REST,
}
GROUPINGS = {'ignite-6': IGNITE_6}
"""Groupings in every evaluation of the 16 classes."""
_GROUP_FIGURES = ('mIoU', 'mDice', 'mAcc', 'aAcc')


def group_members(grouping: Mapping, classes: Sequence[str], name: str = 'grouping') -> dict[str, list[int]]:
    """Check a grouping, {group: [class names]}, and return the class ids of each group; one group may be 'rest'.

    ``classes`` are the class names in the order of the matrices; ``name`` is the name of the grouping for error messages.

    Raises:
        IgniteError: It is not such a mapping, a group is empty, a class is unknown or in two groups, or two are 'rest'.

    Example:
        >>> group_members({'tumour': ['b'], 'other': 'rest'}, ['a', 'b', 'c'])
        {'tumour': [1], 'other': [0, 2]}
    """
    if not isinstance(grouping, Mapping) or not grouping:
        raise IgniteError(f'{name} is {_short(grouping)}; {{group: [class names]}} was expected: correct the grouping.')
    rests = [group for group, members in grouping.items() if members == REST]
    if len(rests) > 1:
        raise IgniteError(f'{name}: the groups {rests[0]!r} and {rests[1]!r} are both {REST!r}: only one can be.')
    group_of: dict[str, str] = {}
    for group, members in grouping.items():
        if (isinstance(members, str) and members != REST) or not isinstance(members, Sequence) or not members:
            raise IgniteError(
                f'{name}: {group!r} is {_short(members)}; a list of class names was expected: correct it.'
            )
        for member in members if members != REST else ():
            if member not in classes:
                raise IgniteError(f'{name}: {group!r} names {_short(member)}; the classes are {", ".join(classes)}.')
            if member in group_of:
                raise IgniteError(f'{name}: {member!r} is in {group_of[member]!r} and in {group!r}: name it once.')
            group_of[member] = group
    remaining = [c for c in classes if c not in group_of]
    if rests and not remaining:
        raise IgniteError(f'{name}: no class is left for the group {rests[0]!r}: omit it.')
    named = {str(group): remaining if members == REST else members for group, members in grouping.items()}
    return {group: [classes.index(member) for member in members] for group, members in named.items()}


def _short(value: object) -> str:
    """Return a value for a sentence; the text of a deep list may exceed the recursion limit."""
    return reprlib.repr(value)


def group_matrix(matrices: np.ndarray, members: Mapping[str, list[int]]) -> np.ndarray:
    """Sum confusion matrices of classes (..., C, C) or (..., C, C + 1) to matrices of groups (..., G, G + 1).

    Ground truth of a class that is in no group is ignored like unannotated pixels. Prediction of such a class on a pixel of a
    group is an error, as is no prediction; both are in the last column.
    """
    classes, columns = matrices.shape[-2:]
    group_of = np.full(columns, len(members))
    for group, ids in enumerate(members.values()):
        group_of[ids] = group
    one_hot = np.eye(len(members) + 1, dtype=matrices.dtype)[group_of]
    return one_hot[:classes, :-1].T @ matrices @ one_hot


def check_groupings(groupings: Mapping | None, classes: Sequence[str]) -> dict[str, dict[str, list[int]]]:
    """Check groupings and return {grouping: {group: [class ids]}}; raise the errors of :func:`group_members`.

    The built-in groupings are included if they fit the classes and no other has their name.
    """
    if groupings is not None and not isinstance(groupings, Mapping):
        raise IgniteError(
            f'groupings is {_short(groupings)}; {{name: {{group: [class names]}}}} was expected: correct it.'
        )
    if len(groupings or ()) > MAX_GROUPINGS:
        raise IgniteError(f'there are {len(groupings)} groupings; at most {MAX_GROUPINGS} were expected: remove some.')
    for name, grouping in (groupings or {}).items():
        groups = grouping if isinstance(grouping, Mapping) else ()
        if wrong := [n for n in (name, *groups) if not is_text(str(n), MAX_NAME)]:
            raise IgniteError(
                f'a grouping or group has the name {_short(wrong[0])}; text of at most {MAX_NAME} characters was expected: '
                'correct it.'
            )
    built_in = GROUPINGS if tuple(classes) == CLASSES else {}
    return {name: group_members(g, list(classes), name) for name, g in {**built_in, **(groupings or {})}.items()}


def group_scores(
    matrices: np.ndarray,
    members: Mapping[str, list[int]],
    metadata: Sequence[dict] = (),
    samples: int = 0,
    seed: int = 0,
) -> dict:
    """Compute the pooled scores of a grouping and, with ``samples``, their intervals.

    Args:
        members: {group: [class ids]}.
        matrices, metadata, samples, seed: See :func:`.bootstrap.intervals`; 0 samples omit the intervals.

    Returns:
        ``groups``: {group: scores as of a class}, mIoU, mDice, mAcc, aAcc, classes_present and perhaps ``intervals``:
        {figures: {mIoU, ...: [low, high]}, groups: {group: {IoU, Dice, patients}}}.
    """
    grouped, names = group_matrix(matrices, members), tuple(members)
    found = scores(grouped.sum(0), names)
    result = {'groups': found['classes'], **{k: found[k] for k in (*_GROUP_FIGURES, 'classes_present')}}
    if samples:
        resampled = intervals(grouped, metadata, names, samples, seed, _GROUP_FIGURES)
        result['intervals'] = dict(figures=resampled['figures'], groups=resampled['classes'])
    return result


def published_scores(matrices: np.ndarray, metadata: Sequence[dict] = (), samples: int = 0, seed: int = 0) -> dict:
    """Compute the scores of the published evaluation in percent and, with ``samples``, their intervals.

    Unannotated pixels and pixels without a prediction are ignored. The Background row is set to 0 and its column kept: glass
    predicted as tissue costs nothing, tissue predicted as glass does. The Dice of a class is 2 hit / (truth + predicted) of
    the remaining counts, ``mean_dice`` averages the classes with remaining ground truth (not Background), and ``micro_dice``
    is 2 sum(hit) / (sum(truth) + sum(predicted)), here the fraction of correct pixels outside Background.

    Args:
        matrices: (R, 16, 16) or (R, 16, 17) int64, pixel counts per ROI.
        metadata, samples, seed: See :func:`.bootstrap.intervals`; 0 samples omit the intervals.

    Returns:
        ``classes``: {class: Dice}, ``micro_dice``, ``mean_dice``, and the same of the six groups: ``groups``,
        ``groups_micro_dice``, ``groups_mean_dice``. ``intervals`` has [low, high] under the same keys and ``patients``:
        {classes, groups: {name: number of patients that have it}}.
    """
    kept = matrices[..., : len(CLASSES)].copy()
    kept[..., CLASSES.index('Background'), :] = 0
    members = group_members(IGNITE_6, CLASSES)
    result, spread = {}, {'patients': {}}
    for key, prefix, counts, names in (
        ('classes', '', kept, CLASSES),
        ('groups', 'groups_', group_matrix(kept, members), tuple(members)),
    ):
        found = score_arrays(pooled := Marginals.of(counts.sum(0)))
        means = {f'{prefix}micro_dice': 'micro_dice', f'{prefix}mean_dice': 'mDice'}
        result[key] = {n: number(dice) if t else None for n, dice, t in zip(names, found['Dice'], pooled.truth)}
        result |= {name: number(found[mean]) for name, mean in means.items()}
        if samples:
            resampled = intervals(counts, metadata, names, samples, seed, tuple(means.values()))
            spread[key] = {name: row['Dice'] for name, row in resampled['classes'].items()}
            spread['patients'][key] = {name: row['patients'] for name, row in resampled['classes'].items()}
            spread |= {name: resampled['figures'][mean] for name, mean in means.items()}
    return {**result, 'intervals': spread} if samples else result
