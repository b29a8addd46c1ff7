"""The hippocampus tiers test on what no strategy could label, and a run is played once."""

import inspect

import numpy as np
import pytest
import torch

from labelrounds.cases import PreparedCase
from tests.benchmarks.active_learning import hippocampus, volume_tiers
from tests.benchmarks.active_learning.disturbed import AGAIN, OTHER, disturbed
from tests.benchmarks.active_learning.simulation import Curve

PARTS = {"training": [f"train_{i:03d}" for i in range(160)], "test": [f"test_{i}" for i in range(40)]}
TIER = volume_tiers.TIERS["C"]


def case(name: str) -> PreparedCase:
    label = torch.zeros(12, 16, 12, dtype=torch.uint8)
    label[3:6, 4:12, 3:9], label[6:9, 4:12, 3:9] = 1, 2
    image = label[None].float() + torch.rand(1, *label.shape, generator=torch.Generator().manual_seed(len(name)))
    voxels = tuple(torch.nonzero(label == value) for value in (1, 2))
    return PreparedCase(name, name, image, label, (2.0, 2.0, 2.0), voxels)


@pytest.fixture
def cases(monkeypatch):
    monkeypatch.setattr(hippocampus, "split", lambda: PARTS)
    monkeypatch.setattr(hippocampus, "prepared", case)


@pytest.mark.parametrize("shifted", [False, True])
def test_a_published_seed_is_tested_on_the_test_cases_alone(cases, shifted):
    source = hippocampus.Hippocampus(2000, shifted)
    assert sorted(one.image_id for one in source.tests) == sorted(PARTS["test"])
    assert {image.removesuffix(OTHER).partition(AGAIN)[0] for image in source.images} <= set(PARTS["training"])


def test_a_development_seed_reads_no_test_case_and_tests_on_none_of_its_pool(cases):
    source = hippocampus.Hippocampus(1)
    tests = {one.image_id for one in source.tests}
    assert len(tests) == 40
    assert tests.isdisjoint(source.images)
    assert tests | set(source.images) == set(PARTS["training"])


def test_the_disturbed_pool_is_as_large_and_has_the_shares_that_it_says():
    pool = [case(f"case_{number:03d}") for number in range(100)]
    found = list(disturbed(pool, 2, np.random.default_rng(0)))
    names = [one.image_id for one in found]
    assert len(set(names)) == len(names) == 100
    assert sum(AGAIN in name for name in names) == 30
    assert sum(OTHER in name for name in names) == 15
    originals = {name for name in names if AGAIN not in name and OTHER not in name}
    assert {name.partition(AGAIN)[0].removesuffix(OTHER) for name in names} == originals


def test_near_duplicates_are_near_and_shifted_images_are_not():
    pool = {f"case_{number:03d}": case(f"case_{number:03d}") for number in range(100)}
    found = list(disturbed(list(pool.values()), 2, np.random.default_rng(0)))

    def likeness(kind: str) -> list[float]:
        pairs = [(one, pool[one.image_id.partition(kind)[0]]) for one in found if kind in one.image_id]
        return [float(np.corrcoef(one.image.flatten(), other.image.flatten())[0, 1]) for one, other in pairs]

    assert min(likeness(AGAIN)) > 0.8
    assert np.mean(likeness(OTHER)) < 0.5
    assert all(set(one.label.unique().tolist()) <= {0, 1, 2} for one in found)


def test_a_strategy_that_has_changed_is_played_again_and_the_others_are_not(tmp_path, monkeypatch):
    def files() -> dict[str, str]:
        return {name: volume_tiers.file_of(tmp_path, TIER, name, 2000, 0).name for name in TIER.contenders}

    before, source = files(), inspect.getsource
    monkeypatch.setattr(
        volume_tiers.inspect,
        "getsource",
        lambda module: source(module) + ("#" if module.__name__ == "labelrounds.strategies.auto" else ""),
    )
    assert {name for name, file in files().items() if file != before[name]} == {"auto"}


def test_what_was_played_is_read_and_not_played_again(tmp_path, monkeypatch):
    played = []

    def play(source, name, draw):
        played.append((source, name, draw))
        return Curve(name, source, draw, [4], [{"dice": 0.5}], [], 0.0, 0.0)

    monkeypatch.setattr(volume_tiers, "_played", play)
    monkeypatch.setattr(volume_tiers, "Hippocampus", lambda seed, shifted: type("Seed", (int,), {"seed": seed})(seed))
    first = volume_tiers.run(TIER, [2000], ["random", "auto"], tmp_path)
    assert [(name, draw) for _, name, draw in played] == [("random", 0), ("random", 1), ("random", 2), ("auto", 0)]
    assert volume_tiers.run(TIER, [2000], ["random", "auto"], tmp_path) == first
    assert len(played) == 4
