"""Whether a checkpoint has seen the patients that are to be scored."""

import warnings
from collections.abc import Sequence
from pathlib import Path

from ..datasets.prepared import INDEX
from ..engine.checkpoints import open_checkpoint
from ..engine.ensembles import ensemble_patients, is_ensemble, read_ensemble
from ..engine.training_record import TrainingRecord, check_unseen, seen_patients
from ..engine.work_dirs import find_checkpoint
from ..provenance import file_sha256


def seen_by(
    checkpoint: str | Path,
    data: str | Path,
    entries: Sequence[dict],
    allowed: bool = False,
    count_validation: bool = True,
    metas: Sequence[dict] | None = None,
) -> list[str]:
    """The patients of ROIs whom a checkpoint, or a member of an ensemble, was trained or chosen on.

    A checkpoint without a training record, as other tools write them, gives a warning.

    Args:
        data: the prepared data set of the ROIs.
        entries: index entries of the ROIs.
        allowed: do not refuse them.
        count_validation: a patient by whom a checkpoint was chosen counts too.
        metas: ``meta`` of the checkpoints. Defaults to None: they are read.

    Raises:
        IgniteError: there are such patients, and they are not allowed; a checkpoint cannot be read.
    """
    ensemble = is_ensemble(checkpoint)
    if metas is None:
        members = read_ensemble(checkpoint) if ensemble else [find_checkpoint(checkpoint)]
        metas = [open_checkpoint(member).get('meta') for member in members]
    records = [TrainingRecord.of_meta(meta) for meta in metas]
    patients = {str(entry['patient']) for entry in entries}
    stated = ensemble_patients(checkpoint) if ensemble else set()
    seen = sorted(patients & stated | set(seen_patients(records, patients, count_validation)))
    if not stated and (silent := records.count(None)):
        who = f'{silent} of the {len(records)} members of {checkpoint}' if ensemble else checkpoint
        warnings.warn(f'{who} does not state its training patients, so whether it has seen those scored is unknown.')
    if not allowed:
        checksum = file_sha256(Path(data) / INDEX)
        same = not any(record and record.data_sha256 not in (None, checksum) for record in records)
        advice = ' (protocol=fold0 for the ensemble of a cross-validation)' if ensemble else ''
        check_unseen(checkpoint, seen, len(patients), same, advice)
    return seen
