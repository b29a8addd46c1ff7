"""The case farthest from all labelled ones: k-center."""

import numpy as np

from labelrounds.strategies.base import CaseStrategy, Choice, Pool, strategies
from labelrounds.strategies.clusters import Space
from labelrounds.strategies.ordering import shuffled
from labelrounds.strategies.random import completed
from labelrounds.strategies.reasons import Unusual, joined
from labelrounds.strategies.typiclust import NO_EMBEDDING, embedded


@strategies.register("coreset")
class Coreset(CaseStrategy):
    """The greedy k-center of Sener and Savarese 2018 (DOI 10.48550/arXiv.1708.00489)."""

    description = "Core-set: the case that is least like any labelled one"
    cold = True

    def order(self, pool: Pool, count: int) -> list[Choice]:
        """Return the farthest cases first, each seen from those before it as well."""
        return completed(pool, count, _farthest(pool, embedded(pool), count), NO_EMBEDDING)


def _farthest(pool: Pool, space: Space, count: int) -> list[Choice]:
    rows = np.sort(space.rows(pool.candidates))
    if not len(rows):
        return []
    far = space.distance(rows, space.rows([*pool.labelled, *pool.taken]))
    unusual = Unusual(pool)
    chosen: list[Choice] = []
    if np.isinf(far).all():
        first = shuffled([space.ids[row] for row in rows], pool.seed)[0]
        chosen.append(Choice(first, "chosen at random: the first to be labelled"))
        far = space.distance(rows, space.rows([first]))
        far[rows == space.rows([first])[0]] = -1
    while len(chosen) < min(count, len(rows)):
        place = int(far.argmax())
        name = space.ids[rows[place]]
        chosen.append(Choice(name, joined("unlike any labelled case", unusual(name)), float(far[place])))
        np.minimum(far, space.distance(rows, rows[place : place + 1]), out=far)
        far[place] = -1
    return chosen
