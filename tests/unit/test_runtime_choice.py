"""The quickest runtime that labels as float32 does is chosen, and what fails is named."""

import time

import pytest
import torch

from labelrounds import runtime_choice
from labelrounds.errors import Cancelled, Conflict
from labelrounds.networks import build_network
from labelrounds.runtime_choice import (
    at_once,
    calibration_windows,
    choose,
    excerpt,
    measure,
    shows_enough,
)
from labelrounds.runtime_measurement import Figures
from labelrounds.runtimes import Subject, runtimes
from labelrounds.runtimes.pytorch import Eager
from labelrounds.sliding import Windows

CPU = torch.device("cpu")
IMAGE = torch.linspace(-1, 1, 20 * 18 * 16).reshape(1, 20, 18, 16)


class Bands(Eager):
    """Three classes by brightness, slower than the network; derived ones are quicker, or wrong."""

    wait_s = 0.004
    shift = 0.0

    def __init__(self, subject: Subject) -> None: ...

    def __call__(self, windows: torch.Tensor) -> torch.Tensor:
        time.sleep(self.wait_s)
        return torch.cat((-windows.abs() + 0.3, windows + self.shift, -windows), dim=1)


class Quick(Bands):
    wait_s = 0.0


class QuickButWrong(Bands):
    wait_s = 0.0
    shift = 0.02


class Unbuilt(Bands):
    def __init__(self, subject: Subject) -> None:
        raise RuntimeError("no kernel\nfor this shape")


class Failing(Bands):
    def __call__(self, windows: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("illegal instruction")


class Lacking(Bands):
    def __call__(self, windows: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("out of memory")


class Elsewhere(Bands):
    @classmethod
    def obstacle(cls, device):
        return "another device"


@pytest.fixture
def offer(monkeypatch):
    """Put other runtimes into the registry than the package's; the reference serves where nothing is measured."""

    def put(**members) -> None:
        runtimes.names()
        monkeypatch.setattr(runtimes, "_members", {"eager": Bands, **members})
        monkeypatch.setattr(runtime_choice, "default_runtime", lambda device: "eager")

    return put


@pytest.fixture
def subject(config, tmp_path) -> Subject:
    return Subject(build_network(config).eval(), config, CPU, tmp_path)


def figures(milliseconds: float, *dice: float | None) -> Figures:
    return Figures(milliseconds=milliseconds, speedup=1.0, dice=dict(zip("abc", dice, strict=False)))


@pytest.mark.parametrize(
    "found, expected",
    [
        ({"eager": figures(9, 1), "usual": figures(3, 0.999), "other": figures(1, 0.996)}, "other"),
        ({"eager": figures(9, 1), "usual": figures(3, 0.999), "other": figures(1, 1, 0.99)}, "usual"),
        ({"eager": figures(9, 1), "usual": figures(3, 0.999), "other": figures(2.9, 0.999)}, "usual"),
        ({"eager": figures(9, 1), "usual": figures(3, 0.9), "other": figures(4, 0.995)}, "other"),
        ({"eager": figures(9, 1), "usual": figures(3, 0.9), "other": figures(1, 0.9)}, "eager"),
        ({"eager": figures(9, 1), "usual": figures(3, 1, None), "other": figures(1, 1, None)}, "usual"),
        ({"eager": figures(1, 1, None), "usual": figures(3, 1, None)}, "eager"),
    ],
    ids=[
        "quickest",
        "a label unlike",
        "hardly quicker",
        "default unlike",
        "all unlike",
        "not all compared",
        "float32",
    ],
)
def test_the_quickest_that_labels_alike_is_chosen_and_the_default_where_none_is_much_quicker(found, expected):
    assert choose(found, "usual") == expected


def test_a_runtime_that_is_quick_but_wrong_is_never_chosen(subject, offer):
    offer(wrong=QuickButWrong)
    measured, _ = measure(subject, [IMAGE])
    assert measured.runtimes["wrong"].speedup > 2 and measured.runtimes["wrong"].lowest_dice < 0.995
    assert measured.chosen == "eager" and measured.runtimes["eager"].lowest_dice == 1


def test_one_that_is_quick_and_right_is_chosen_and_comes_built(subject, offer):
    offer(quick=Quick, elsewhere=Elsewhere)
    measured, running = measure(subject, [IMAGE])
    assert measured.chosen == "quick" and isinstance(running["quick"], Quick)
    assert set(measured.runtimes) == {"eager", "quick"}
    assert measured.summary("quick")["speedup"] > 2 and measured.summary("quick")["lowest_dice"] == 1
    assert str(measured).startswith("quick, ") and str(measured).endswith(" lowest Dice to it 1.0000")


def test_one_that_fails_is_skipped_and_named(subject, offer, caplog):
    offer(unbuilt=Unbuilt, failing=Failing)
    measured, _ = measure(subject, [IMAGE])
    assert measured.chosen == "eager" and set(measured.runtimes) == {"eager"}
    assert measured.failed == {"unbuilt": "no kernel for this shape", "failing": "illegal instruction"}
    assert "tiny does not run by failing: illegal instruction" in caplog.text


def test_what_says_nothing_of_a_runtime_ends_the_measurement(subject, offer):
    offer(lacking=Lacking)
    with pytest.raises(torch.OutOfMemoryError):
        measure(subject, [IMAGE])

    def cancelled(task):
        raise Cancelled("a user waits")

    with pytest.raises(Cancelled):
        measure(subject, [IMAGE], cancelled)


def test_images_without_anything_to_find_decide_nothing(subject, offer):
    offer(quick=Quick)
    with pytest.raises(Conflict, match="no label has 200 voxels in the images"):
        measure(subject, [torch.zeros(1, 20, 18, 16)])


def test_a_label_that_a_runtime_loses_counts_and_one_that_both_lack_does_not(subject, offer):
    class Losing(Quick):
        def __call__(self, windows):
            return super().__call__(windows) - torch.tensor([0.0, 9.0, 0.0]).reshape(1, 3, 1, 1, 1)

    offer(losing=Losing)
    assert measure(subject, [IMAGE])[0].runtimes["losing"].dice["near"] == 0
    assert measure(subject, [-IMAGE.abs()])[0].runtimes["losing"].dice["near"] is None


@pytest.fixture
def calls(monkeypatch) -> list[tuple[str, int]]:
    """Who was called, and with how many windows."""
    found: list[tuple[str, int]] = []
    run = Bands.__call__

    def noted(self: Bands, windows: torch.Tensor) -> torch.Tensor:
        found.append((type(self).__name__, len(windows)))
        return run(self, windows)

    monkeypatch.setattr(Bands, "__call__", noted)
    return found


def test_each_call_waits_for_a_turn_of_its_own_and_the_runtimes_take_turns(subject, offer, calls):
    offer(quick=Quick)
    rounds = []

    def do(task):
        before = len(calls)
        found = at_once(task)
        rounds.append([name for name, _ in calls[before:]])
        return found

    measure(subject, [IMAGE], do)
    assert rounds[:2] == [[], []]  # a turn before each is built
    assert set(rounds[2]) == {"Bands"} and set(rounds[3]) == {"Quick"}  # a label map of each
    assert rounds[4:] == [["Bands"], ["Quick"]] * runtime_choice._MOST_ROUNDS


def test_slow_networks_are_measured_on_what_the_time_allows(subject, offer, calls, monkeypatch):
    offer(quick=Quick)
    monkeypatch.setattr(runtime_choice, "_BUDGET_S", 0.0)
    assert measure(subject, [IMAGE] * 5)[0].chosen == "quick"
    windows = Windows.over(IMAGE.shape[1:], subject.config.patch_size, subject.config.inference.overlap)
    of_quick = [number for name, number in calls if name == "Quick"]
    assert sum(of_quick) == windows.count + of_quick[-1]  # one image and one round


def test_an_excerpt_lies_round_the_labels_and_takes_few_windows(config):
    image, label = torch.arange(30.0**3).reshape(1, 30, 30, 30), torch.zeros(30, 30, 30, dtype=torch.uint8)
    assert excerpt(image, label, config)[0].equal(image[:, 9:21, 9:21, 9:21])
    label[20:29, 0:2, 14:17] = 1
    shown, labelled = excerpt(image, label, config)
    assert shown.equal(image[:, 18:30, 0:12, 9:21]) and labelled.equal(label[18:30, 0:12, 9:21])
    assert excerpt(image[:, :5], label[:5], config)[0].shape == (1, 5, 12, 12)


@pytest.mark.parametrize(("voxels", "expected"), [([0, 0], False), ([199, 199], False), ([10, 200], True)], ids=str)
def test_a_label_map_shows_enough_with_two_hundred_voxels_of_a_label(voxels, expected):
    label = torch.zeros(10, 10, 10, dtype=torch.uint8)
    label.view(-1)[: voxels[0]] = 1
    label.view(-1)[500 : 500 + voxels[1]] = 2
    assert shows_enough(label) is expected


def test_calibration_windows_are_of_the_models_patch(config, cases):
    windows = calibration_windows(cases, config)
    assert {window.shape for window in windows} == {(1, 1, 8, 8, 8)} and 3 <= len(windows) <= 64
