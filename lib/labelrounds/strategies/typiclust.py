"""The typical case of each group of like ones: what to label first, when no model can be asked."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from labelrounds.strategies.base import CaseStrategy, Choice, Pool, strategies
from labelrounds.strategies.clusters import Space, space_of, typicality
from labelrounds.strategies.random import completed
from labelrounds.strategies.reasons import Unusual, joined

NO_EMBEDDING = "chosen at random: nothing is known yet of how it looks"


@strategies.register("typiclust")
class TypiClust(CaseStrategy):
    """TypiClust (Hacohen et al. 2022, DOI 10.48550/arXiv.2202.02794) on the model's embeddings, or without a model."""

    description = "TypiClust: the most typical case of each group of alike ones"
    cold = True

    def order(self, pool: Pool, count: int) -> list[Choice]:
        """Return the typical cases of the largest groups without a label; those without an embedding last."""
        space = embedded(pool)
        return completed(pool, count, typical_choices(pool, space, pool.candidates, count), NO_EMBEDDING)


@dataclass(frozen=True)
class Typical:
    """A case that is typical of a group of ``size`` cases, of which ``labelled`` have a label or are in hand."""

    image_id: str
    size: int
    labelled: int

    @property
    def reason(self) -> str:
        """Say so."""
        if self.size == 1:
            return "unlike all other cases"
        known = {0: "none of which is labelled", 1: "one of which is labelled or in hand"}
        labelled = known.get(self.labelled, f"{self.labelled} of which are labelled or in hand")
        return f"typical of {self.size} alike cases, {labelled}"


def embedded(pool: Pool) -> Space:
    """Return the model's space of the pool where a model is trained and has seen most of it, or the cold one."""
    own = space_of({name: scores.embedding for name, scores in pool.scores.items()}) if pool.trained else None
    if own is not None and 2 * len(own.rows(pool.candidates)) >= len(pool.candidates):
        return own
    cold = space_of(pool.cold)
    return own if own is not None and len(own.ids) >= len(cold.ids) else cold


def typical_choices(pool: Pool, space: Space, eligible: Collection[str], count: int) -> list[Choice]:
    """Return the typical of the eligible cases: as many groups as there will be labels after this round."""
    groups = (pool.round + 1) * max(1, pool.batch)
    found = typical(space, eligible, [*pool.labelled, *pool.taken], groups, pool.seed, count)
    unusual = Unusual(pool)
    return [Choice(one.image_id, joined(one.reason, unusual(one.image_id))) for one in found]


def typical(
    space: Space, eligible: Collection[str], covered: Sequence[str], groups: int, seed: int, count: int
) -> list[Typical]:
    """Return eligible cases, first of the groups with the fewest covered cases, of these the largest.

    Args:
        space: of all cases.
        eligible: ids that may be chosen.
        covered: ids of the cases that are labelled or in hand.
        groups: number of clusters.
        seed: of the clusters.
        count: cases wanted.
    """
    rows = np.sort(space.rows(eligible))
    if not len(rows):
        return []
    member = space.clusters(groups, seed)
    sizes = np.bincount(member).tolist()
    had = np.bincount(member[space.rows(covered)], minlength=len(sizes)).tolist()
    open_groups = dict.fromkeys(np.unique(member[rows]).tolist())
    waiting: dict[int, list[int]] = {}
    found: list[Typical] = []
    while open_groups and len(found) < count:
        group = min(open_groups, key=lambda one: (had[one], -sizes[one], one))
        if group not in waiting:
            waiting[group] = _by_typicality(space, np.flatnonzero(member == group), rows[member[rows] == group])
        found.append(Typical(space.ids[waiting[group].pop(0)], sizes[group], had[group]))
        had[group] += 1
        if not waiting[group]:
            del open_groups[group]
    return found


def _by_typicality(space: Space, group: np.ndarray, rows: np.ndarray) -> list[int]:
    """Return rows of a group by their typicality within it."""
    dense = typicality(space.points[rows], space.points[group])
    return rows[np.argsort(-dense, kind="stable")].tolist()
