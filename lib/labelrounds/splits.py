"""Which patients a model learns from, is validated on and is tested on: decided once, kept for good.

A patient's part follows from a salted hash of the patient's name, 6:2:2, so that neither the order of labelling
nor growing data moves anyone; the decision is written down when the patient is first seen and read back from then
on. The first two patients always train, since a model that has none to learn from can't be trained at all.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from labelrounds.checkpoints import read_json, write_json

TRAIN, VALIDATION, TEST = "train", "validation", "test"
_SALT = "labelrounds-split-1"
_ALWAYS_TRAINED = 2


def assign_parts(patients: Iterable[str], file: Path) -> dict[str, str]:
    """Return each patient's part, adding those not seen before to the file.

    Args:
        patients: names or ids, in any order; repeated ones count once.
        file: the split as JSON; made where it does not exist.
    """
    known: dict[str, str] = dict(read_json(file) or {})
    wanted = sorted(set(patients), key=_position)
    new = [patient for patient in wanted if patient not in known]
    for patient in new:
        trained = sum(part == TRAIN for part in known.values())
        known[patient] = TRAIN if trained < _ALWAYS_TRAINED else _part(patient)
    if new:
        write_json(file, known)
    return {patient: known[patient] for patient in wanted}


def _position(patient: str) -> float:
    """Return a number in 0..1 that depends on nothing but the name."""
    digest = hashlib.sha256(f"{_SALT}:{patient}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _part(patient: str) -> str:
    position = _position(patient)
    return TRAIN if position < 0.6 else VALIDATION if position < 0.8 else TEST
