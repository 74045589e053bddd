"""Refusing scores of patients that a checkpoint has seen in its training."""

import warnings
from collections.abc import Sequence
from pathlib import Path

from ..datasets.prepared import INDEX
from ..engine.ensembles import Ensemble
from ..engine.training_record import TrainingRecord
from ..errors import IgniteError
from ..provenance import file_sha256


def seen_patients(
    ensemble: Ensemble,
    metas: Sequence[dict | None],
    data: str | Path,
    entries: Sequence[dict],
    allowed: bool = False,
    count_validation: bool = True,
) -> list[str]:
    """Return the patients to be scored whom a network was trained on or selected by; warn if a checkpoint does not say.

    Args:
        metas: ``meta`` of the members' checkpoints.
        data: prepared data set of the ROIs.
        entries: index entries of the ROIs to be scored.
        allowed: return such patients instead of refusing them.
        count_validation: count patients whose validation selected a checkpoint.

    Raises:
        IgniteError: there are such patients and they are not allowed.
    """
    records = [TrainingRecord.of_meta(meta) for meta in metas]
    known = {*ensemble.patients}
    for record in filter(None, records):
        known.update(record.train_patients, record.val_patients if count_validation else ())
    patients = {str(entry['patient']) for entry in entries}
    seen = sorted(patients & known)
    if not ensemble.patients and (silent := records.count(None)):
        who = ensemble.path if ensemble.is_single else f'{silent} of the {len(records)} members of {ensemble.path}'
        warnings.warn(f'{who} does not state its training patients, so whether it has seen those scored is unknown.')
    if seen and not allowed:
        checksum = file_sha256(Path(data) / INDEX)
        other = any(record and record.data_sha256 not in (None, checksum) for record in records)
        doubt = ' The prepared data set is not the one of the training; names may mean other people in it.' * other
        fold = '' if ensemble.is_single else ' (protocol=fold0 for the ensemble of a cross-validation)'
        raise IgniteError(
            f'{ensemble.path} was trained or validated on {len(seen)} of the {len(patients)} patients to be scored, e.g. '
            f'{seen[0]}; its scores would be too high.{doubt} Test with the protocol of its training{fold}, or pass '
            '--allow-seen-patients.'
        )
    return seen
