"""Unsure and unlike each other at once: BADGE."""

import numpy as np
from numpy.typing import NDArray

from labelrounds.scores import CaseScores
from labelrounds.strategies.base import CaseStrategy, Choice, Pool, strategies
from labelrounds.strategies.by_score import NOT_SCORED
from labelrounds.strategies.clusters import space_of
from labelrounds.strategies.ordering import Values
from labelrounds.strategies.random import completed
from labelrounds.strategies.reasons import Unusual, by_label, joined, of_whole_images, unsure


@strategies.register("badge")
class Badge(CaseStrategy):
    """Draws by k-means++ among the gradients that the likeliest labels would give the last layer.

    Ash et al. 2020 (DOI 10.48550/arXiv.1906.03671). Of a segmentation, the entropy of each label stands for how far
    its probabilities are from certain.
    """

    description = "BADGE: cases that the model is unsure of and that are unlike each other"

    def order(self, pool: Pool, count: int) -> list[Choice]:
        """Return cases drawn with the squared distance from those in hand and those before."""
        space = space_of({name: scores.embedding for name, scores in pool.scores.items()})
        asked = {*pool.candidates, *pool.taken}
        far = {name: _errors(pool, pool.scores[name]) for name in space.ids if name in asked}
        ids = [name for name, errors in far.items() if any(errors)]
        errors = np.array([far[name] for name in ids]).reshape(len(ids), len(pool.classes))
        points = np.hstack([space.points[space.rows(ids)].astype(np.float64), np.ones((len(ids), 1))])
        return completed(pool, count, _drawn(pool, ids, errors, points, count), NOT_SCORED)


def _errors(pool: Pool, scores: CaseScores) -> list[float]:
    """Return how far the probabilities of each class are from those of the likeliest label."""
    if not of_whole_images(scores):
        entropy = by_label(scores, "entropy")
        return [entropy.get(label, 0.0) for label in pool.classes]
    presence = by_label(scores, "presence")
    likeliest = max(sorted(presence), key=lambda label: presence[label], default=None)
    return [presence.get(label, 0.0) - (label == likeliest) for label in pool.classes]


def _drawn(pool: Pool, ids: list[str], errors: Values, points: Values, count: int) -> list[Choice]:
    """Draw by k-means++; a gradient is the outer product of a row of ``errors`` and one of ``points``, never formed."""
    lengths = (errors**2).sum(axis=1) * (points**2).sum(axis=1)

    def distances(row: int) -> NDArray[np.float64]:
        products = (errors @ errors[row]) * (points @ points[row])
        return np.maximum(lengths + lengths[row] - 2 * products, 0)

    free, hand = set(pool.candidates), set(pool.taken)
    open_rows = np.array([name in free for name in ids], dtype=bool)
    nearest = np.full(len(ids), np.inf)
    for row in (row for row, name in enumerate(ids) if name in hand):
        nearest = np.minimum(nearest, distances(row))
    unusual = Unusual(pool)
    chosen: list[Choice] = []
    while open_rows.any() and len(chosen) < count:
        if np.isinf(nearest).all():
            row = int(np.where(open_rows, lengths, -1).argmax())
        else:
            noise = np.random.default_rng([pool.seed % 2**32, pool.drawn + len(chosen)]).gumbel(size=len(ids))
            chance = np.where(open_rows, np.log(nearest + 1e-12) + noise, -np.inf)
            row = int(chance.argmax())
        reason = joined(unsure(pool.scores[ids[row]]), "unlike those in hand" if hand or chosen else None)
        chosen.append(Choice(ids[row], joined(reason, unusual(ids[row])), float(np.sqrt(lengths[row]))))
        nearest, open_rows[row] = np.minimum(nearest, distances(row)), False
    return chosen
