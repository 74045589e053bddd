"""The split protocols: which ROIs train, validate and test.

    patient-8-1-1    random split by patient, 8:1:1 (the default)
    roi-8-1-1        random split by ROI, 8:1:1; patients overlap, so scores are optimistic
    official         the release's own test ROIs; the other patients are split 8:1
    fold0 .. fold4   cross-validation: fold K validates, the other four train; all share one held-out test part

Except for ``roi-8-1-1``, all ROIs of a patient are in one part: a network recognises the stain and tissue of a patient
that it was trained on.
"""

from collections import defaultdict

from ..errors import IgniteError

PARTS = ('train', 'val', 'test')
FOLDS = tuple(f'fold{number}' for number in range(5))
PROTOCOLS = ('patient-8-1-1', 'roi-8-1-1', 'official', *FOLDS)

Parts = dict[str, list[str]]
"""Names of ROIs by part."""


def is_grouped(protocol: str) -> bool:
    """Return whether a protocol splits by patient, so that no patient may be in two parts."""
    return protocol != 'roi-8-1-1'


def leaking_patients(rois: list[dict], parts: Parts) -> dict[str, list[str]]:
    """Return the patients that are in more than one part, sorted, and the parts of each."""
    patients, found = {r['name']: r['patient'] for r in rois}, defaultdict(list)
    for part, names in parts.items():
        for patient in {patients[name] for name in names}:
            found[patient].append(part)
    return {patient: found[patient] for patient in sorted(found) if len(found[patient]) > 1}


def assert_no_leak(rois: list[dict], parts: Parts, where: str) -> None:
    """Raise IgniteError if a patient is in two parts; for protocols that split by patient."""
    for patient, found in leaking_patients(rois, parts).items():
        raise IgniteError(
            f'{where}: patient {patient} is in {" and in ".join(found)}, so the split leaks: prepare the data again.'
        )
