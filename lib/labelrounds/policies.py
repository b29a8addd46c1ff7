"""How a training begins: as a quick update of what is served, or in full from nothing.

``quick``: from the weights of the served version, with all cases, those that are new to it drawn twice as often, half
the learning rate, ``training.quick_epochs``. ``full``: from weights drawn by the seed, ``training.epochs``. ``auto``
chooses ``full`` when nothing is served, and again when the labels have grown by half since the last full training.
"""

from collections.abc import Iterable
from typing import Any

from labelrounds.cases import PreparedCase
from labelrounds.checkpoints import Version
from labelrounds.splits import FEWEST_HELD_BACK, TRAIN

AUTO, QUICK, FULL = "auto", "quick", "full"
POLICIES = (AUTO, QUICK, FULL)
GROWTH_FOR_FULL = 1.5


def choose_policy(asked: str, served: Version | None, labels: int, patients: int) -> tuple[str, str]:
    """Return ``quick`` or ``full``, and why.

    Args:
        asked: one of ``POLICIES``.
        served: the version to start from; None where there is none that can be.
        labels: how many labelled cases can be used now.
        patients: how many patients they are of.
    """
    if served is None:
        return FULL, "there is no served version to start from"
    if asked != AUTO:
        return asked, "asked for"
    if patients < FEWEST_HELD_BACK:
        return QUICK, f"under {FEWEST_HELD_BACK} patients are too few to start anew"
    before = labels_at_full(served.record)
    grown = labels >= GROWTH_FOR_FULL * before
    return (FULL if grown else QUICK), (
        f"{labels} labels, {before} at the last full training: {'grown' if grown else 'not grown'} by half"
    )


def labels_at_full(record: dict[str, Any]) -> int:
    """Return how many labels the last full training in a version's line had; of the shipped ones, their card's."""
    known = record.get("labels_at_full")
    return int(known) if known is not None else sum(len(cases) for cases in record.get("cases", {}).values())


def learnt_from(version: Version | None) -> dict[str, str]:
    """Return the cases that a version's weights have learnt from, its ancestors' included.

    Returns:
        image id to the hash of the case's content; an empty hash where it was not recorded.
    """
    if version is None:
        return {}
    cases = version.record.get("cases", {}).get(TRAIN, {})
    own = dict(cases) if isinstance(cases, dict) else dict.fromkeys(cases, "")
    return {**version.record.get("learnt_before", {}), **own}


def is_new(case: PreparedCase, learnt: dict[str, str]) -> bool:
    """Tell whether weights have not learnt from a case as it is now: another image, or a label corrected since."""
    return case.image_id not in learnt or learnt[case.image_id] not in ("", case.key)


def unseen(cases: Iterable[PreparedCase], learnt: dict[str, str]) -> list[PreparedCase]:
    """Return the cases of patients of whom weights have seen nothing, as far as names and contents tell."""
    cases, contents = list(cases), set(learnt.values()) - {""}
    seen = {case.patient for case in cases if case.image_id in learnt or case.key in contents}
    return [case for case in cases if case.patient not in seen]
