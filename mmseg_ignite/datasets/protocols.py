"""The split protocols: which patients train, validate and test.

    patient-8-1-1    patients 8:1:1 (the default)
    roi-8-1-1        ROIs 8:1:1, whoever's they are: it leaks patients, and its scores are too good
    official         the release's own test ROIs, the other patients 8:1
    fold0 .. fold4   cross-validation: fold K validates, the other four train, a held-out test part is the same in all

All but ``roi-8-1-1`` keep a patient on one side: a network that has seen a patient recognises stain and tissue.
"""

from itertools import combinations

from ..errors import IgniteError

PARTS = ('train', 'val', 'test')
FOLDS = tuple(f'fold{number}' for number in range(5))
PROTOCOLS = ('patient-8-1-1', 'roi-8-1-1', 'official', *FOLDS)

Parts = dict[str, list[str]]
"""Names of ROIs by part."""


def is_grouped(protocol: str) -> bool:
    """Whether a protocol divides by patient, so that none may stand in two parts."""
    return protocol != 'roi-8-1-1'


def leaking_patients(rois: list[dict], parts: Parts) -> list[str]:
    """The patients that stand in more than one part, sorted."""
    patient = {r['name']: r['patient'] for r in rois}
    stands_in = [{patient[name] for name in names} for names in parts.values()]
    return sorted(set().union(*(a & b for a, b in combinations(stands_in, 2))))


def assert_no_leak(rois: list[dict], parts: Parts, where: str) -> None:
    """Raise IgniteError if a patient stands in two parts; for protocols that divide by patient."""
    patient = {r['name']: r['patient'] for r in rois}
    seen: dict[str, str] = {}
    for part, names in parts.items():
        for name in names:
            if seen.setdefault(patient[name], part) != part:
                raise IgniteError(
                    f'{where}: patient {patient[name]} stands in {seen[patient[name]]} and in {part}: '
                    'the split leaks; prepare the data again.'
                )
