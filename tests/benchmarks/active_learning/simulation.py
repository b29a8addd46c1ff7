"""A simulated annotator: labels what a strategy hands out, retrains after every batch, notes how good the model is.

What all tiers share. A tier writes a `Source` (images, their true labels, how a model is trained and tested) and calls
`play` for one strategy and seed, or `tournament` for many. The annotator asks as a client of the server does: one case
at a time, each in hand (`Pool.taken`) until the batch is full; then all are labelled and a new model learns.

    source = MedNIST(seed=1000)
    curve = play(source, strategies.get("margin")(), seed=1000, start=0, batch=6, rounds=10)
    curve.area("accuracy")
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np

import labelrounds.host  # noqa: F401 - first, so that the host can be imported
from labelrounds.scores import CaseScores
from labelrounds.strategies.base import CaseStrategy, Embedding, Pool

DRAWS = 3
"""Of the random strategies a seed, whose luck is averaged."""


class Model(Protocol):
    """What was learnt from some labels."""

    def scores(self, images: Sequence[str], costly: Sequence[str]) -> Mapping[str, CaseScores]:
        """Return what the model says of images; ``costly`` names the scores beyond one pass that are wanted."""

    def figures(self) -> Mapping[str, Any]:
        """Return how good it is on the source's test cases: a number by the name of the figure."""


class Source(Protocol):
    """A pool of images whose labels are known, but hidden until they are asked for.

    Attributes:
        images: ids of the pool; test cases are not among them.
        classes: the labels that a model tells apart.
    """

    images: Sequence[str]
    classes: Sequence[str]

    def cold(self) -> Mapping[str, Embedding]:
        """Return an embedding of each image that needs no model."""

    def present(self, image: str) -> Sequence[str]:
        """Return the classes that the label of an image has."""

    def train(self, labelled: Sequence[str], seed: int, before: Model | None) -> Model:
        """Return a model of these labels; ``before`` is the last round's, which it may start from."""


@dataclass
class Curve:
    """How good the models of one run were.

    Attributes:
        strategy: its name.
        seed: of the first labels and of the training: runs of the same seed are compared in pairs.
        draw: number of the repetition with another luck of the strategy, from 0.
        labels: number of labels that each model has learnt from.
        figures: of each model.
        picked: ids in the order in which they were labelled, the first labels included.
        query_s: the median time of one choice.
        train_s: of all trainings and scorings together.
    """

    strategy: str
    seed: int
    draw: int = 0
    labels: list[int] = field(default_factory=list)
    figures: list[dict[str, Any]] = field(default_factory=list)
    picked: list[str] = field(default_factory=list)
    query_s: float = 0.0
    train_s: float = 0.0

    def area(self, figure: str) -> float:
        """Return the area under the budget curve of a figure, divided by the range of labels: its mean height."""
        heights = np.array([one[figure] for one in self.figures], dtype=float)
        if len(heights) == 1:
            return float(heights[0])
        widths = np.diff(self.labels)
        return float((widths * (heights[1:] + heights[:-1]) / 2).sum() / widths.sum())

    def plain(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return asdict(self)


def first_labels(source: Source, start: int, seed: int) -> list[str]:
    """Return the cases that are labelled before anything is chosen: the same of one seed for all strategies."""
    images = sorted(source.images)
    return [images[index] for index in np.random.default_rng(seed).permutation(len(images))[:start]]


def play(
    source: Source,
    strategy: CaseStrategy,
    *,
    seed: int,
    start: int,
    batch: int,
    rounds: int,
    name: str = "",
    draw: int = 0,
) -> Curve:
    """Label and learn for some rounds.

    Args:
        source: what there is to label.
        strategy: that chooses.
        seed: of the first labels and of every training.
        start: labels before the first choice; with 0 the first batch is chosen without a model.
        batch: cases that are chosen between two trainings.
        rounds: batches.
        name: of the strategy, for the result.
        draw: changes the luck of the strategy only.
    """
    curve = Curve(name or type(strategy).__name__, seed, draw, picked=first_labels(source, start, seed))
    cold = source.cold() if strategy.cold else {}
    model: Model | None = None
    seconds: list[float] = []
    for number in range(rounds + 1):
        started = time.perf_counter()
        scores: Mapping[str, CaseScores] = {}
        if curve.picked:
            model = source.train(list(curve.picked), seed, model)
            curve.labels.append(len(curve.picked))
            curve.figures.append(dict(model.figures()))
            if number < rounds:
                scores = model.scores(sorted(source.images), strategy.costly)
        curve.train_s += time.perf_counter() - started
        if number < rounds:
            curve.picked += chosen(source, strategy, curve.picked, scores, cold, batch, seed + 10_000 * draw, seconds)
    curve.query_s = float(np.median(seconds)) if seconds else 0.0
    return curve


def chosen(
    source: Source,
    strategy: CaseStrategy,
    labelled: Sequence[str],
    scores: Mapping[str, CaseScores],
    cold: Mapping[str, Embedding],
    batch: int,
    seed: int,
    seconds: list[float],
) -> list[str]:
    """Return one batch, asked for case by case; the time of each choice is added to ``seconds``."""
    taken: list[str] = []
    for _ in range(batch):
        busy = {*labelled, *taken}
        pool = Pool(
            candidates=[image for image in sorted(source.images) if image not in busy],
            labelled=list(labelled),
            taken=list(taken),
            scores=scores,
            cold=cold,
            classes=source.classes,
            present={image: source.present(image) for image in labelled},
            trained=bool(scores),
            learnt_from=len(labelled) if scores else 0,
            batch=batch,
            seed=seed,
        )
        started = time.perf_counter()
        choices = strategy.order(pool, 1)
        seconds.append(time.perf_counter() - started)
        if not choices:
            break
        taken.append(choices[0].image_id)
    return taken


def tournament(
    sources: Callable[[int], Source],
    contenders: Mapping[str, Callable[[Source], CaseStrategy]],
    *,
    seeds: Sequence[int],
    start: int,
    batch: int,
    rounds: int,
    draws: Mapping[str, int] | None = None,
) -> Iterator[Curve]:
    """Yield the curve of every contender on every seed, seed by seed, so that a run cut short is still one of pairs.

    Args:
        sources: makes the source of a seed.
        contenders: by name, makes a strategy for a source: an oracle knows the source's truth.
        seeds: fixed before the first run.
        start: as in `play`.
        batch: as in `play`.
        rounds: as in `play`.
        draws: by name, how many times a contender plays a seed; once where not named, ``random`` `DRAWS` times.
    """
    times = {"random": DRAWS} | dict(draws or {})
    for seed in seeds:
        source = sources(seed)
        for name, make in contenders.items():
            for draw in range(times.get(name, 1)):
                yield play(
                    source, make(source), seed=seed, start=start, batch=batch, rounds=rounds, name=name, draw=draw
                )
