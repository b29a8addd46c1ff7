"""Which patients a model learns from, is validated on and is tested on: decided once, kept for good.

Whole patients are assigned, never single images, and the decision is written down when a patient is first seen and
read back from then on: nobody who was trained on is validated on later, and nobody held back is ever trained on. How
many are held back depends on how many patients there are, as few labels are needed more for learning:

==========  =======================================================  ==============================
patients    validation                                               test
==========  =======================================================  ==============================
under 8     none: all train, accuracy comes from cross-validation    none
8 to 24     a quarter, at most 5                                     none
25 to 39    a fifth (5 to 7)                                         1 at 26, one more for every two
from 40     a fifth, by the patient's hash alone                     a fifth, by the hash alone
==========  =======================================================  ==============================

Below 40 the places are given to the new patients with the lowest salted hash of their name, so that the order of
labelling decides no more than who came before a training and who after it. From 40 on a new patient's part depends
on nothing but the name. A new patient whom the served weights, as those that ship, have learnt from trains.
"""

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from labelrounds.json_files import read_json, write_json

TRAIN, VALIDATION, TEST = "train", "validation", "test"
RULE = "labelrounds-split-2"
FEWEST_HELD_BACK = 8
_BY_NAME_ALONE = 40


def assign_parts(patients: Iterable[str], file: Path, learnt: Collection[str] = ()) -> dict[str, str]:
    """Return each patient's part, adding those not seen before to the file.

    Args:
        patients: names or ids, in any order; repeated ones count once.
        file: the split as JSON; made where it does not exist.
        learnt: patients whom weights have learnt from before; those among them that are new train.

    Raises:
        BadInput: the file is damaged; nothing is drawn again.
        OutOfSpace: it could not be written; nobody is assigned.
    """
    known = read_parts(file)
    present = sorted(set(patients), key=position)
    new = [patient for patient in present if patient not in known]
    if new:
        known |= {patient: TRAIN for patient in new if patient in learnt}
        new = [patient for patient in new if patient not in known]
        if len(present) >= _BY_NAME_ALONE:
            known |= {patient: _part(patient) for patient in new}
        else:
            known |= _fill(new, Counter(known[patient] for patient in present if patient in known))
        write_json(file, known)
    return {patient: known[patient] for patient in present}


def part_to_be(patient: str, known: Mapping[str, str], by_name: bool) -> str | None:
    """Return the part that a patient has, or will have whenever a label of theirs is submitted.

    Args:
        patient: name or id.
        known: each patient's part, as far as it is decided.
        by_name: see `by_name_alone`.

    Returns:
        None where it depends on who else is labelled before the next training.
    """
    return known.get(patient) or (_part(patient) if by_name else None)


def by_name_alone(labelled: int) -> bool:
    """Tell whether there are so many patients with labels that a new one's part depends on nothing but the name."""
    return labelled + 1 >= _BY_NAME_ALONE


def read_parts(file: Path) -> dict[str, str]:
    """Return each patient's part, as far as it is decided; raises as `assign_parts` where the file is damaged."""
    return dict(read_json(file) or {})


def position(patient: str) -> float:
    """Return a number in 0..1 that depends on nothing but the name."""
    digest = hashlib.sha256(f"{RULE}:{patient}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _fill(new: list[str], taken: Counter[str]) -> dict[str, str]:
    """Give the places that are free in validation and test to the first of the new patients; the others train."""
    count = len(new) + sum(taken.values())
    validation = max(0, _validation_places(count) - taken[VALIDATION])
    test = max(0, _test_places(count) - taken[TEST])
    parts = [VALIDATION] * validation + [TEST] * test
    return {patient: parts[index] if index < len(parts) else TRAIN for index, patient in enumerate(new)}


def _validation_places(count: int) -> int:
    return 0 if count < FEWEST_HELD_BACK else min(count // 4, max(5, count // 5))


def _test_places(count: int) -> int:
    return max(0, (count - 24) // 2)


def _part(patient: str) -> str:
    where = position(patient)
    return TRAIN if where < 0.6 else VALIDATION if where < 0.8 else TEST
