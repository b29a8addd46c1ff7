"""The benchmark's own figures are right, and its annotator plays as a client of the server does."""

import numpy as np
import pytest

import labelrounds.host  # noqa: F401 - first, so that the host can be imported
from labelrounds.scores import CaseScores
from labelrounds.strategies import CaseStrategy, Choice, Pool, strategies
from tests.benchmarks.active_learning.simulation import Curve, first_labels, play, tournament
from tests.benchmarks.active_learning.statistics import against_others, areas, holm, interval, labels_to_reach, summary


def curve(strategy: str, seed: int, *heights: float, draw: int = 0) -> Curve:
    labels = [6 * (number + 1) for number in range(len(heights))]
    return Curve(strategy, seed, draw, labels, [{"accuracy": height} for height in heights])


def test_the_area_is_the_mean_height_over_the_labels():
    assert curve("auto", 0, 0.0, 1.0).area("accuracy") == 0.5
    assert Curve("auto", 0, labels=[2, 4, 10], figures=[{"a": 0}, {"a": 1}, {"a": 1}]).area("a") == pytest.approx(7 / 8)
    assert curve("auto", 0, 0.7).area("accuracy") == 0.7


def test_several_draws_of_a_seed_count_as_one_run():
    found = areas([curve("random", 1, 0.2, draw=0), curve("random", 1, 0.4, draw=1), curve("auto", 1, 0.5)], "accuracy")
    assert found == {"random": {1: pytest.approx(0.3)}, "auto": {1: 0.5}}


def test_holm_corrects_step_by_step():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_an_interval_holds_the_mean_and_shrinks_with_more_values():
    values = np.random.default_rng(0).normal(0.9, 0.02, 200).tolist()
    low, high = interval(values)
    assert low < np.mean(values) < high
    assert high - low < interval(values[:10])[1] - interval(values[:10])[0]


def test_runs_are_compared_seed_by_seed():
    curves = [curve("auto", seed, 0.9 + seed / 1000) for seed in range(20)]
    curves += [curve("random", seed, 0.8 + seed / 1000) for seed in range(20)]
    curves += [curve("margin", seed, 0.9 + seed / 1000) for seed in range(10)]
    margin, random = against_others(areas(curves, "accuracy"))
    assert (random.other, random.better, random.seeds) == ("random", 20, 20)
    assert random.difference == pytest.approx(0.1) and random.p < 1e-4 and random.p_holm == 2 * random.p
    assert (margin.other, margin.better, margin.seeds, margin.p) == ("margin", 0, 10, 1.0)


def test_the_labels_to_a_target_are_the_first_that_reach_it():
    assert labels_to_reach(curve("auto", 0, 0.5, 0.96, 0.9), "accuracy", 0.95) == 12
    assert labels_to_reach(curve("auto", 0, 0.5, 0.6), "accuracy", 0.95) is None
    told = summary(
        [curve("auto", 0, 0.5, 0.96), curve("auto", 1, 0.5, 0.6), curve("auto", 2, 0.5, 0.6)], "accuracy", 0.95
    )
    assert told["strategies"]["auto"]["labels_to_target"] is None, "most runs never get there"


class Numbers:
    """A pool of numbers; a model knows how many labels it has learnt from."""

    classes = ("even", "odd")

    def __init__(self) -> None:
        self.images = [f"{number:02d}" for number in range(20)]
        self.trained: list[list[str]] = []

    def cold(self):
        return {}

    def present(self, image: str):
        return (self.classes[int(image) % 2],)

    def train(self, labelled, seed, before):
        self.trained.append(list(labelled))
        return Known(len(labelled))


class Known:
    def __init__(self, labels: int) -> None:
        self._labels = labels

    def scores(self, images, costly):
        return {name: CaseScores({"margin": int(name) / 20}, {}, np.zeros(0, np.float32)) for name in images}

    def figures(self):
        return {"accuracy": self._labels / 20}


class Watched(CaseStrategy):
    """Notes what it is shown."""

    description = "Watched: by name"

    def __init__(self) -> None:
        self.pools: list[Pool] = []

    def order(self, pool: Pool, count: int) -> list[Choice]:
        self.pools.append(pool)
        return [Choice(name, "the next") for name in pool.candidates[:count]]


def test_a_batch_is_asked_for_case_by_case_before_a_model_learns_from_it():
    source, strategy = Numbers(), Watched()
    played = play(source, strategy, seed=3, start=4, batch=3, rounds=2)
    assert played.labels == [4, 7, 10] and [one["accuracy"] for one in played.figures] == [0.2, 0.35, 0.5]
    assert len(set(played.picked)) == 10 and [len(labels) for labels in source.trained] == [4, 7, 10]
    assert [len(pool.taken) for pool in strategy.pools] == [0, 1, 2] * 2
    for pool in strategy.pools:
        assert not {*pool.candidates} & {*pool.labelled, *pool.taken}
        assert set(pool.present) == set(pool.labelled)


def test_all_strategies_begin_with_the_same_labels():
    assert first_labels(Numbers(), 4, 1) == first_labels(Numbers(), 4, 1) != first_labels(Numbers(), 4, 2)


def test_without_first_labels_the_first_batch_is_chosen_without_a_model():
    strategy = Watched()
    assert play(Numbers(), strategy, seed=0, start=0, batch=5, rounds=2).labels == [5, 10]
    assert [pool.trained for pool in strategy.pools] == [False] * 5 + [True] * 5


def test_a_pool_that_runs_out_ends_the_run_with_all_labels():
    assert play(Numbers(), Watched(), seed=0, start=0, batch=15, rounds=3).labels == [15, 20, 20]


def test_random_plays_every_seed_three_times():
    made = {name: (lambda source, name=name: strategies.get(name)()) for name in ("margin", "random")}
    curves = list(tournament(lambda seed: Numbers(), made, seeds=[1, 2], start=2, batch=2, rounds=1))
    assert [(one.strategy, one.seed, one.draw) for one in curves] == [
        (name, seed, draw)
        for seed in (1, 2)
        for name, draw in (("margin", 0), ("random", 0), ("random", 1), ("random", 2))
    ]
    assert curves[0].picked[2:] == sorted(set(Numbers().images) - set(curves[0].picked[:2]))[:-3:-1]
