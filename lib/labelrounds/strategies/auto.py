"""The default: what is typical while the model knows little, then what it is unsure of, and now and then chance.

On TypiClust first: a model that has seen nothing is sure of nothing, or of anything. Of whole images uncertainty is
worth less than chance below about ten labels; of a segmentation four are enough, as each has thousands of voxels. There
doubt is counted over the whole image: on development seeds of the benchmark's tiers C and D that found better cases
than doubt where there is foreground (``margin``).
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from labelrounds.scores import CaseScores
from labelrounds.strategies.base import CaseStrategy, Choice, Pool, strategies
from labelrounds.strategies.by_score import NOT_SCORED
from labelrounds.strategies.clusters import Space, k_means, space_of, squared_distances
from labelrounds.strategies.ordering import powered, sharpness, shuffled
from labelrounds.strategies.random import completed
from labelrounds.strategies.reasons import (
    Unusual,
    joined,
    of_whole_images,
    predicted,
    unlike_labelled,
    unsure,
    value_of,
)
from labelrounds.strategies.typiclust import NO_EMBEDDING, embedded, typical_choices

COLD_ROUNDS = 3
FEWEST, FEWEST_SEGMENTED = 10, 4  # labels, of whole images and of segmentations, before the model's doubt is asked for
FEWEST_OF_CLASS = 3
LONGEST = 8  # times as many labels as classes end the wait for a class that perhaps nobody has
MONITOR = 5  # one pick in five is drawn at random
SHORTLIST = 5  # times a batch: the most uncertain, from which unlike ones are picked
ATYPICAL = 0.2  # share of the pool, the least typical, that comes last
COPY = 0.25  # of the usual distance between like cases: below, one is nearly a copy of the other


@strategies.register("auto")
class Auto(CaseStrategy):
    """Chooses by phase: typical cases first, uncertain ones later."""

    description = "Automatic: typical cases first, then what the model is unsure of, one in five at random"
    cold = True

    def order(self, pool: Pool, count: int) -> list[Choice]:
        """Return the next cases by the phase that the labels are in."""
        count = max(0, min(count, len(pool.candidates)))
        if early(pool):
            # A model of six labels can't tell yet which case has a class that is scarce.
            choose = by_quota if pool.trained and len(pool.labelled) >= fewest(pool) else at_first
            return completed(pool, count, choose(pool, embedded(pool), count), NO_EMBEDDING)
        space = space_of({name: scores.embedding for name, scores in pool.scores.items()})
        return explained(pool, space, monitored(pool, informative(pool, space), count))


def early(pool: Pool) -> bool:
    """Tell whether there are too few labels, in all or of a class, to go by what the model is unsure of."""
    labels = len(pool.labelled)
    if not pool.trained or not pool.scores or labels < fewest(pool):
        return True
    return labels < LONGEST * len(pool.classes) and min(_labels_of(pool).values(), default=math.inf) < FEWEST_OF_CLASS


def fewest(pool: Pool) -> int:
    """Return how many labels a model must have before anything it says of other cases is gone by."""
    if of_whole_images(next(iter(pool.scores.values()), None)):
        return max(FEWEST, COLD_ROUNDS * pool.batch)
    return max(FEWEST_SEGMENTED, pool.batch)


def doubt(scores: CaseScores | None) -> float | None:
    """Return how unsure the model is of a case, by the score that finds the better cases of its kind."""
    return value_of(scores, "margin" if of_whole_images(scores) else "mean_entropy")


def at_first(pool: Pool, space: Space, count: int) -> list[Choice]:
    """Return typical cases of all."""
    return typical_choices(pool, space, pool.candidates, count)


def _labels_of(pool: Pool) -> dict[str, int]:
    """Return how many labelled cases have each class."""
    return {label: sum(label in pool.present.get(name, ()) for name in pool.labelled) for label in pool.classes}


def by_quota(pool: Pool, space: Space, count: int) -> list[Choice]:
    """Return typical cases, those first in which the model sees a class with too few labels."""
    seen = {name: predicted(pool.scores.get(name)) for name in (*pool.candidates, *pool.taken)}
    labels = Counter(_labels_of(pool))
    labels.update(label for name in pool.taken for label in seen.get(name, ()))
    chosen: list[Choice] = []
    while len(chosen) < count:
        now = replace(pool, taken=[*pool.taken, *(choice.image_id for choice in chosen)])
        left = [name for name in pool.candidates if name not in now.taken]
        wanted = _of_scarce_class(seen, left, labels)
        found = typical_choices(now, space, wanted, 1)
        if not found:
            return chosen + typical_choices(now, space, left, count - len(chosen))
        chosen += found
        labels.update(seen[found[0].image_id])
    return chosen


def _of_scarce_class(seen: Mapping[str, list[str]], left: list[str], labels: Mapping[str, int]) -> list[str]:
    """Return the cases in which the model sees the class with the fewest labels of those that have too few."""
    scarce = sorted((number, label) for label, number in labels.items() if number < FEWEST_OF_CLASS)
    for _, label in scarce:
        if having := [name for name in left if label in seen.get(name, ())]:
            return having
    return []


def informative(pool: Pool, space: Space) -> list[str]:
    """Return the candidates with a score: the unsure and unlike ones first, then the unsure, last the unsuited."""
    batch = max(1, pool.batch)
    recent = [*pool.labelled[pool.round * batch :], *pool.taken]  # this round's, whose likes can wait
    values = {name: doubt(pool.scores.get(name)) for name in (*pool.candidates, *recent)}
    ids = sorted(name for name, value in values.items() if value is not None)
    scores = [values[name] or 0.0 for name in ids]
    noisy = powered(ids, scores, pool.seed, str(pool.round), sharpness(pool.round))
    last = unsuited(pool, space)
    late = np.array([name in last for name in ids], dtype=bool)
    ordered = [ids[place] for place in np.lexsort((-noisy, late))]
    shortlist = [name for name in ordered[: SHORTLIST * batch] if name not in last]
    free = set(pool.candidates)
    best = unlike_each_other(space, shortlist, recent, batch, pool.seed)
    return [name for name in dict.fromkeys([*best, *ordered]) if name in free]


def unsuited(pool: Pool, space: Space) -> set[str]:
    """Return the least typical cases, and those that nearly are copies of labelled ones.

    A model is unsure of any fault of an image, and learns little from it: the information density of Settles and
    Craven 2008 (DOI 10.3115/1613715.1613855), as a threshold.
    """
    if not space.ids:
        return set()
    rows = space.rows(pool.candidates)
    atypical = space.typicality[rows] < np.quantile(space.typicality, ATYPICAL)
    copies = space.distance(rows, space.rows(pool.labelled)) < COPY * space.spacing
    return {space.ids[row] for row in rows[atypical | copies]}


def unlike_each_other(space: Space, shortlist: list[str], recent: list[str], batch: int, seed: int) -> list[str]:
    """Return the shortlist so that each cluster's first case comes before any cluster's second.

    Clusters that have a case of this round already come after the others.
    """
    shortlist = [name for name in shortlist if name in space]
    if not shortlist:
        return []
    groups = k_means(space.points[space.rows(sorted(shortlist))], batch, seed).tolist()
    member = dict(zip(sorted(shortlist), groups, strict=True))
    had: dict[int, int] = {}
    listed = space.rows(sorted(shortlist))
    for row in space.rows(recent):
        nearest = int(squared_distances(space.points[[row]], space.points[listed]).argmin())
        had[groups[nearest]] = had.get(groups[nearest], 0) + 1
    placed: list[tuple[int, int, str]] = []
    for place, name in enumerate(shortlist):
        if name not in recent:
            turn = had.get(member[name], 0)
            had[member[name]] = turn + 1
            placed.append((turn, place, name))
    return [name for _, _, name in sorted(placed)]


def monitored(pool: Pool, ordered: list[str], count: int) -> list[tuple[str, bool]]:
    """Return the order with every fifth case drawn at random from all candidates; what it lacks follows at random."""
    lots = dict.fromkeys(shuffled(pool.candidates, pool.seed))
    left = dict.fromkeys([*ordered, *lots])
    drawn: list[tuple[str, bool]] = []
    while left and len(drawn) < count:
        monitor = (pool.drawn + len(drawn)) % MONITOR == MONITOR - 1
        name = next(iter(lots if monitor else left))
        del left[name], lots[name]
        drawn.append((name, monitor))
    return drawn


def explained(pool: Pool, space: Space, drawn: list[tuple[str, bool]]) -> list[Choice]:
    """Return the cases, each with its reason and score."""
    unusual = Unusual(pool)
    novel = unlike_labelled(pool, space, [name for name, _ in drawn])
    chosen = []
    for name, monitor in drawn:
        value = doubt(pool.scores.get(name))
        if monitor:
            reason = "drawn at random, to see how good the model is on cases that nobody chose"
        elif value is None:
            reason = NOT_SCORED
        else:
            reason = joined(unsure(pool.scores[name]), novel.get(name), unusual(name))
        chosen.append(Choice(name, reason, value, monitor))
    return chosen
