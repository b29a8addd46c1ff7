"""Cases are worked off once each, whatever becomes of the workers; those of Ray are in tests/api."""

import os
import re
import signal
import sys
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from training_runs import labelled

from labelrounds.checkpoints import Checkpoints
from labelrounds.database import Database, rounds_file
from labelrounds.errors import BadInput, Conflict, OutOfSpace
from labelrounds.fleet import (
    MOST_ATTEMPTS,
    LocalCrew,
    Lost,
    Progress,
    Tally,
    crew_of,
    duration,
    stopped_by_signals,
    work_off,
)
from labelrounds.fleet_scoring import score_studies
from labelrounds.fleet_work import Case, Order, Outcome, Work, attempt
from labelrounds.networks import build_network
from labelrounds.ray_cluster import _LOCK, Share, _own_folder, cluster, share_out
from labelrounds.scores import SCHEMA, ScoreStore


def case(name: str) -> Case:
    return Case(name, Path(name))


class PretendedCrew:
    """Two workers of two places; a case in ``kills`` takes its worker, and what that has in hand, along."""

    def __init__(self, kills=(), answers=None):
        self.kills, self.answers = Counter(kills), answers or {}
        self.workers, self.alone, self.closed, self.done = [[], []], [False, False], False, []
        self.together = []  # what a killed worker had in hand, of each

    def has_room(self, alone=False):
        return any(not self.alone[at] and len(held) < (1 if alone else 2) for at, held in enumerate(self.workers))

    def give(self, given, alone=False):
        at = min((at for at in (0, 1) if not self.alone[at]), key=lambda at: len(self.workers[at]))
        self.workers[at].append(given)
        self.alone[at] = alone

    def ended(self, timeout_s):
        for at, held in enumerate(self.workers):
            if held:
                self.alone[at] = False
                killer = next((each for each in held if self.kills[each.key]), None)
                if killer is not None:
                    self.kills[killer.key] -= 1
                    self.workers[at] = []
                    self.together.append([each.key for each in held])
                    return [Lost(each, "out of memory") for each in held]
                first = held.pop(0)
                self.done.append(first.key)
                return [self.answers.get(first.key, Outcome(first, {"by": at}))]
        return []

    def close(self):
        self.closed = True


def run(crew, names, stop=None, **more):
    taken, said = [], []
    cases = [case(name) for name in names]
    tally = work_off(crew, cases, len(cases), taken.append, stop or threading.Event(), said.append, **more)
    return tally, taken, said


def test_every_case_is_done_once_also_those_that_a_killed_worker_had_in_hand():
    crew = PretendedCrew(kills=["c"])
    tally, taken, _ = run(crew, "abcdefgh")
    assert sorted(outcome.case.key for outcome in taken) == list("abcdefgh")
    assert (tally.done, tally.failed, tally.lost) == (8, 0, len(crew.together[0])) and crew.closed
    assert "2 time(s)" in tally.losses()


def test_a_case_that_kills_each_worker_is_reported_and_costs_no_other_its_result():
    crew = PretendedCrew(kills=["c"] * 9)
    tally, taken, _ = run(crew, "abcdefgh")
    failed = [outcome for outcome in taken if outcome.reason]
    assert [outcome.case.key for outcome in failed] == ["c"] and failed[0].unusable
    assert re.search(f"ended {MOST_ATTEMPTS} times.*out of memory", failed[0].reason)
    assert sorted(outcome.case.key for outcome in taken) == list("abcdefgh") and tally.failed == 1
    # The second time it was alone, so that nobody else came under suspicion.
    assert len(crew.together) == MOST_ATTEMPTS and crew.together[1:] == [["c"]] * (MOST_ATTEMPTS - 1)


def test_no_case_is_taken_up_before_a_worker_has_room_for_it():
    crew, ahead = PretendedCrew(), []

    def cases():
        for number in range(50):
            ahead.append(number - len(crew.done))
            yield case(str(number))

    work_off(crew, cases(), 50, lambda outcome: None, threading.Event(), lambda line: None)
    assert max(ahead) <= 5  # in two hands of two each, and the next one


def test_a_stop_hands_out_nothing_more_and_keeps_what_is_done():
    crew, stop, taken = PretendedCrew(), threading.Event(), []

    def take(outcome):
        taken.append(outcome.case.key)
        if len(taken) == 3:
            stop.set()

    tally = work_off(crew, map(case, "abcdefghijkl"), 12, take, stop, lambda line: None)
    assert tally.done == len(taken) == len(set(taken)) and 3 <= tally.done <= 6 and crew.closed


def test_a_full_disk_ends_the_run_with_its_reason():
    full = Outcome(case("b"), reason="b: not written, no space left", halts=True)
    crew, taken = PretendedCrew(answers={"b": full}), []
    with pytest.raises(OutOfSpace, match="no space left"):
        work_off(crew, map(case, "abcdef"), 6, taken.append, threading.Event(), lambda line: None)
    assert "b" not in [outcome.case.key for outcome in taken] and crew.closed


def test_an_outcome_of_a_case_that_nobody_has_in_hand_is_dropped():
    crew = PretendedCrew()
    crew.workers = [[case("ended before")], []]
    tally, taken, _ = run(crew, "cd")
    assert sorted(outcome.case.key for outcome in taken) == ["c", "d"] and tally.done == 2


def test_the_progress_names_how_many_are_left_and_for_how_long():
    _, _, said = run(PretendedCrew(answers={"a": Outcome(case("a"), reason="cut")}), "abc")
    assert said[0] == "1 of 3, 1 without a result"
    assert [duration(seconds) for seconds in (5, 150, 9000, 400000)] == ["5 s", "2.5 min", "2.5 h", "4.63 days"]


def test_what_is_left_is_told_by_those_with_a_result_and_not_from_the_first_moments(monkeypatch):
    now = 100.0
    monkeypatch.setattr("labelrounds.fleet.time.monotonic", lambda: now)
    progress = Progress(Tally(of=31), say=lambda line: None)
    progress.begin()
    for number, (passed, failed) in enumerate([(0.1, True), (1.0, False), (4.0, False)]):
        now = 100.0 + passed
        progress.tally.done, progress.tally.failed = number, 1
        progress.ended(not failed)
        assert ("left" in progress.line()) == (passed > 2)
    assert progress.line() == "3 of 31, 1 without a result, 30 a minute, 56 s left"
    progress.tally.of = 10**6
    for _ in range(300):  # of the last 200 it is told, which may be over in less
        now += 0.001
        progress.ended()
    assert ", 60,000 a minute, " in progress.line()


class Failing(Work):
    def __init__(self, error):
        self.error = error

    def do(self, case, stopped):
        raise self.error


@pytest.mark.parametrize(
    ("error", "unusable", "halts"),
    [
        (BadInput("cut"), True, False),
        (OSError("the share is gone"), False, False),
        (OutOfSpace("full"), False, True),
        (ZeroDivisionError("a fault of the program"), False, False),
        (MemoryError("cannot allocate memory"), False, False),
    ],
)
def test_whatever_happens_to_a_case_is_its_outcome(error, unusable, halts):
    outcome = attempt(Failing(error), case("a"), lambda: False)
    assert str(error) in outcome.reason and (outcome.unusable, outcome.halts) == (unusable, halts)


def test_one_image_is_read_while_another_computes_in_this_process():
    both = threading.Barrier(2, timeout=20)

    class Meeting(Work):
        def do(self, case, stopped):
            both.wait()  # broken, and so no result, unless two are in hand at once
            return {"seen": True}

    _, taken, _ = run(LocalCrew(Meeting(), threading.Event()), "abcd")
    assert [outcome.reason for outcome in taken] == [""] * 4


def test_sigterm_asks_the_run_to_stop_and_the_handlers_are_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with stopped_by_signals() as stop:
        signal.raise_signal(signal.SIGTERM)
        assert stop.is_set()
        for again in (signal.SIGTERM, signal.SIGINT):  # at the same moment, as a supervisor may send it twice
            signal.raise_signal(again)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_second_ctrl_c_ends_at_once_and_says_so_a_second_sigterm_does_not(monkeypatch, capsys):
    now = 100.0
    monkeypatch.setattr("labelrounds.fleet.time.monotonic", lambda: now)
    with stopped_by_signals() as stop:
        signal.raise_signal(signal.SIGTERM)
        now += 1.0
        signal.raise_signal(signal.SIGTERM)
        assert stop.is_set()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert capsys.readouterr().err.splitlines()[-1].startswith("ended at once; what is done is kept")


@pytest.mark.parametrize(
    ("cores", "gpus", "workers", "device", "expected"),
    [
        (2, 0, None, "", Share(2, 1, 0.0)),
        (1, 0, None, "", Share(1, 1, 0.0)),
        (32, 0, None, "", Share(8, 4, 0.0)),
        (32, 0, 2, "cpu", Share(2, 16, 0.0)),
        (32, 4, None, "", Share(4, 8, 1.0)),
        (32, 4, 8, "cuda", Share(8, 4, 0.5)),
        (32, 4, None, "cpu", Share(8, 4, 0.0)),
    ],
)
def test_a_cluster_is_shared_out_by_its_gpus_else_by_its_cores(cores, gpus, workers, device, expected):
    assert share_out(cores, gpus, workers, device) == expected


@pytest.mark.parametrize(("workers", "device"), [(3, ""), (1, "cuda"), (1, "cuda:1")])
def test_more_workers_than_cores_or_a_gpu_that_is_not_there_are_refused(workers, device):
    with pytest.raises(BadInput):
        share_out(2, 0, workers, device)


def test_without_the_extra_a_sentence_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(BadInput, match=r"pip install 'labelrounds\[ray\]'"), cluster("local"):
        pass


def test_folders_of_killed_processes_are_removed_and_no_other_that_begins_so(tmp_path):
    for name, left in (("lr-killed", _LOCK), ("lr-somebody", "thesis.txt")):
        (tmp_path / name).mkdir()
        (tmp_path / name / left).touch()
        os.utime(tmp_path / name, (0, 0))
    with _own_folder(tmp_path) as own, _own_folder(tmp_path):
        assert own.is_dir()
    assert [left.name for left in tmp_path.iterdir()] == ["lr-somebody"]


def test_ways_to_ray_that_are_not_supported_are_refused():
    with pytest.raises(BadInput, match="on a machine of the cluster"), cluster("ray://head:10001"):
        pass
    with pytest.raises(BadInput, match="--workers goes with --ray"):
        crew_of("", 2)


def test_a_machine_without_the_weights_file_gets_it_and_one_without_the_images_is_named(config, tmp_path):
    version = Checkpoints(config).publish(build_network(config), {})
    content = version.weights.read_bytes()
    order = Order("score", config, version, content, "cpu", folders=(tmp_path,))
    kept = order._local_version()
    assert kept.weights == version.weights  # so that what was measured of its runtimes counts
    version.weights.unlink()
    assert order._local_version().weights.read_bytes() == content
    with pytest.raises(Conflict.__base__, match=r"has no folder /nowhere"):
        Order("score", config, version, content, folders=(Path("/nowhere"),)).begin()


def test_a_studies_folder_is_scored_once_and_what_can_not_be_read_is_named(config, tmp_path):
    (tmp_path / "studies").mkdir()
    for number in range(3):
        labelled(tmp_path, f"case_{number}", number).image.rename(tmp_path / "studies" / f"case_{number}.nii.gz")
    (tmp_path / "studies" / "broken.nii.gz").write_bytes(b"no gzip")
    Checkpoints(config).publish(build_network(config), {})
    models = {config.name: config}
    said = score_studies(models, config.name, tmp_path / "studies", (), "cpu", crew_of("", None))
    assert said.startswith("tiny version 1: 3 image(s) scored") and "broken" in said
    store = ScoreStore(Database(rounds_file(str(tmp_path / "studies")), SCHEMA), config)
    images = {path.name[:-7]: path for path in (tmp_path / "studies").glob("*.nii.gz")}
    known = store.known(images, Checkpoints(config))
    assert set(known.scores) == {"case_0", "case_1", "case_2"} and set(known.failed) == {"broken"}
    assert all(np.isfinite(list(scores.values.values())).all() for scores in known.scores.values())
    again = score_studies(models, config.name, tmp_path / "studies", (), "cpu", crew_of("", None))
    assert again.startswith("tiny version 1: 0 image(s) scored") and "4 of 4 were known" in again
    with pytest.raises(Conflict, match="there is none"):
        score_studies(models, config.name, tmp_path / "studies", ("committee",), "cpu", crew_of("", None))
