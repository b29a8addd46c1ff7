"""A case is in one pair of hands at a time, whoever asks, from wherever, whatever the clocks do."""

import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import labelrounds.host  # noqa: F401 - first, or each process that is spawned here imports all of MONAI

# isort: split
from labelrounds.database import Database
from labelrounds.errors import Conflict, NotFound, OutOfSpace
from labelrounds.lease_clock import machine_clock
from labelrounds.leases import DEFER, LEASE_S, SCHEMA, SKIP, Asking, Leases
from labelrounds.strategies.base import Choice

NAMES = [f"case_{number:02d}" for number in range(20)]


class Clocks:
    """The machine's clock and the wall's, both moved by hand."""

    def __init__(self) -> None:
        self.boot, self.seconds, self.wall = "first", 1000.0, 1_700_000_000.0

    def machine(self) -> tuple[str, float]:
        return self.boot, self.seconds

    def pass_by(self, seconds: float) -> None:
        self.seconds += seconds
        self.wall += seconds


@pytest.fixture
def clocks() -> Clocks:
    return Clocks()


@pytest.fixture
def leases(tmp_path, clocks) -> Leases:
    return Leases(Database(tmp_path / "rounds.sqlite", SCHEMA), clock=clocks.machine, wall=lambda: clocks.wall)


def ask(leases: Leases, client: str, names=NAMES, **asking) -> str | None:
    """Take the first free case, by an order made at this moment."""
    standing = leases.standing()
    for rank, name in enumerate(names, start=1):
        choice = Choice(name, "because", 0.5)
        if leases.take(choice, rank, Asking(client, "random", "tiny", 2, **asking), standing):
            return name
    return None


def events(leases: Leases) -> list[tuple[str, str, str | None]]:
    return [(row["event"], row["image"], row["client"]) for row in leases.ledger.entries()]


def test_what_one_client_has_in_hand_no_other_is_given(leases):
    assert [ask(leases, client) for client in ("ann", "bob", "ann")] == NAMES[:3]
    assert {name: lease.client for name, lease in leases.standing().leases.items()} == {
        NAMES[0]: "ann",
        NAMES[1]: "bob",
        NAMES[2]: "ann",
    }


def test_20_clients_that_ask_at_once_get_20_cases(leases):
    start = threading.Barrier(20)

    def race(number: int) -> str | None:
        start.wait()
        return ask(leases, f"client {number}")

    with ThreadPoolExecutor(20) as clients:
        assert sorted(clients.map(race, range(20))) == NAMES


def _race(path: Path, start, found) -> None:
    leases = Leases(Database(path, SCHEMA))
    start.wait()
    found.put([ask(leases, f"{os.getpid()}") for _ in range(10)])


def test_two_processes_that_ask_at_once_never_get_the_same_case(tmp_path):
    context = multiprocessing.get_context("spawn")
    start, found = context.Barrier(2), context.Queue()
    Database(tmp_path / "rounds.sqlite", SCHEMA)
    processes = [context.Process(target=_race, args=(tmp_path / "rounds.sqlite", start, found)) for _ in range(2)]
    for process in processes:
        process.start()
    taken = [name for _ in processes for name in found.get(timeout=120)]
    for process in processes:
        process.join(60)
    assert sorted(taken) == NAMES


def test_a_client_that_vanishes_frees_its_case_after_an_hour(leases, clocks):
    ask(leases, "ann")
    clocks.pass_by(LEASE_S - 1)
    assert ask(leases, "bob", NAMES[:1]) is None
    clocks.pass_by(2)
    assert ask(leases, "bob", NAMES[:1]) == NAMES[0]
    assert [event for event, *_ in events(leases)] == ["handed_out", "expired", "handed_out"]


def test_a_sign_of_life_keeps_a_case(leases, clocks):
    ask(leases, "ann")
    for _ in range(3):
        clocks.pass_by(LEASE_S - 60)
        assert leases.renew(NAMES[0], "ann") == LEASE_S
    assert ask(leases, "bob", NAMES[:1]) is None


def test_a_sign_of_life_that_comes_late_keeps_a_case_that_nobody_else_was_given(leases, clocks):
    ask(leases, "ann")
    clocks.pass_by(LEASE_S + 60)
    leases.renew(NAMES[0], "ann")
    assert ask(leases, "bob", NAMES[:1]) is None


def test_a_case_in_other_hands_or_in_none_can_not_be_kept(leases):
    ask(leases, "ann")
    with pytest.raises(Conflict, match="another client has it"):
        leases.renew(NAMES[0], "bob")
    with pytest.raises(Conflict, match="nobody has it in hand"):
        leases.renew(NAMES[1], "bob")


@pytest.mark.parametrize("jump_s", [-10 * 365 * 86400, 10 * 365 * 86400])
def test_a_wall_clock_that_jumps_neither_frees_nor_holds_a_case(leases, clocks, jump_s):
    ask(leases, "ann")
    clocks.wall += jump_s
    assert ask(leases, "bob", NAMES[:1]) is None
    clocks.pass_by(LEASE_S + 1)
    assert ask(leases, "bob", NAMES[:1]) == NAMES[0]


def test_a_machine_clock_that_goes_back_frees_nothing_early_and_holds_nothing_for_ever(leases, clocks):
    ask(leases, "ann")
    clocks.seconds -= 500
    assert ask(leases, "bob", NAMES[:1]) is None
    for _ in range(4):
        clocks.pass_by(LEASE_S / 3)
        leases.put_aside(NAMES[5], "bob", SKIP, "")  # any change keeps the time
    assert ask(leases, "bob", NAMES[:1]) == NAMES[0]


def test_after_a_restart_of_the_machine_a_lease_goes_on_where_it_was(leases, clocks):
    ask(leases, "ann")
    clocks.pass_by(LEASE_S - 100)
    ask(leases, "ann")
    clocks.boot, clocks.seconds = "second", 5.0
    assert ask(leases, "bob", NAMES[:1]) is None
    clocks.pass_by(101)
    assert ask(leases, "bob", NAMES[:1]) == NAMES[0]


def test_the_machines_clock_goes_on_and_is_of_one_run():
    first, second = machine_clock(), machine_clock()
    assert first[0] == second[0] and 0 <= second[1] - first[1] < 10


def test_a_case_in_hand_is_given_again_only_to_who_has_it(leases):
    ask(leases, "ann", NAMES[:1])
    assert ask(leases, "ann", NAMES[:1]) is None
    assert ask(leases, "bob", NAMES[:1], again=True) is None
    assert ask(leases, "ann", NAMES[:1], again=True) == NAMES[0]


def test_what_was_labelled_since_an_order_was_made_is_not_handed_out_by_it(leases):
    standing = leases.standing()
    ask(leases, "ann", NAMES[:1])
    leases.submitted(NAMES[0], "ann", "sha", "tiny", 2)
    asking = Asking("bob", "random")
    assert not leases.take(Choice(NAMES[0], "late"), 1, asking, standing)
    assert leases.take(Choice(NAMES[1], "free"), 2, asking, standing)


def test_a_submission_notes_who_why_and_how_long_it_took(leases, clocks):
    ask(leases, "ann")
    clocks.pass_by(90)
    number = leases.submitted(NAMES[0], "ann", "sha", "tiny", 2)
    entry = leases.ledger.entries()[-1]
    assert (entry["id"], entry["event"], entry["seconds"]) == (number, "submitted", pytest.approx(90))
    assert (entry["strategy"], entry["reason"], entry["score"], entry["label"]) == ("random", "because", 0.5, "sha")
    assert entry["time"] == clocks.wall and not leases.standing().leases


def test_the_time_spent_is_right_when_the_wall_clock_was_set_back_meanwhile(leases, clocks):
    ask(leases, "ann")
    clocks.pass_by(90)
    clocks.wall -= 86400
    leases.submitted(NAMES[0], "ann", "sha", "tiny", 2)
    assert leases.ledger.entries()[-1]["seconds"] == pytest.approx(90)


def test_a_label_that_comes_after_its_lease_has_ended_still_tells_how_long_it_took(leases, clocks):
    ask(leases, "ann")
    clocks.pass_by(LEASE_S + 100)
    ask(leases, "bob", NAMES[1:])
    leases.submitted(NAMES[0], "ann", "sha", "tiny", 2)
    assert leases.ledger.entries()[-1]["seconds"] == pytest.approx(LEASE_S + 100)


def test_a_label_by_somebody_who_was_not_handed_the_case_counts_and_ends_the_lease(leases):
    ask(leases, "ann")
    leases.submitted(NAMES[0], "bob", "sha", "tiny", None)
    assert leases.ledger.entries()[-1]["client"] == "bob" and leases.ledger.entries()[-1]["seconds"] is None
    assert not leases.standing().leases


def test_the_same_label_sent_twice_is_one_submission(leases):
    ask(leases, "ann")
    assert leases.submitted(NAMES[0], "ann", "sha", "tiny", 2) is not None
    assert leases.submitted(NAMES[0], "ann", "sha", "tiny", 2) is None
    assert leases.submitted(NAMES[0], "bob", "sha", "tiny", 2) is not None
    assert leases.submitted(NAMES[0], "ann", "other", "tiny", 2) is not None


def test_a_skipped_case_is_out_for_good_until_it_is_put_back(leases, clocks):
    ask(leases, "ann")
    leases.put_aside(NAMES[0], "ann", SKIP, "motion")
    clocks.pass_by(365 * 86400)
    (aside,) = leases.standing().aside.values()
    assert (aside.kind, aside.reason, aside.client, aside.left_s) == (SKIP, "motion", "ann", None)
    assert not leases.standing().leases, "who skips a case has it in hand no more"
    leases.put_back(NAMES[0], "bob")
    assert not leases.standing().aside
    assert events(leases)[1:] == [("skipped", NAMES[0], "ann"), ("returned", NAMES[0], "bob")]
    with pytest.raises(NotFound, match="not put aside"):
        leases.put_back(NAMES[0], "bob")


def test_a_deferred_case_comes_back_after_its_hours(leases, clocks):
    leases.put_aside(NAMES[0], "ann", DEFER, "ask a colleague", 2.0)
    assert leases.standing().aside[NAMES[0]].left_s == pytest.approx(7200)
    clocks.pass_by(7201)
    assert not leases.standing().aside
    assert leases.ledger.entries()[-1]["details"] == {"hours": 2.0}


def test_skipping_a_case_that_another_has_in_hand_leaves_it_there(leases):
    ask(leases, "ann")
    leases.put_aside(NAMES[0], "bob", SKIP, "")
    assert leases.standing().leases[NAMES[0]].client == "ann"


def test_an_unreadable_image_is_noted_once_for_each_file(leases):
    ask(leases, "ann")
    for identity in ("a", "a", "b"):
        leases.note_unreadable(NAMES[0], identity, "cut")
    assert [event for event, *_ in events(leases)] == ["handed_out", "unreadable", "unreadable"]
    assert leases.standing().unreadable == {NAMES[0]: ("b", "cut")} and not leases.standing().leases


def test_an_agreement_names_its_submission(leases):
    ask(leases, "ann")
    number = leases.submitted(NAMES[0], "ann", "sha", "tiny", 2)
    assert [row["id"] for row in leases.ledger.without_agreement()] == [number]
    leases.ledger.note_agreement(number, "sha", 0.8, {"present": ["near"]})
    (entry,) = leases.ledger.entries(event="agreement")
    assert (entry["dice"], entry["image"], entry["label"], entry["strategy"]) == (0.8, NAMES[0], "sha", "random")
    assert entry["details"] == {"submission": number, "present": ["near"]} and not leases.ledger.without_agreement()


_KILLED = textwrap.dedent("""
    import sys
    import labelrounds.host
    from labelrounds.database import Database
    from labelrounds.leases import SCHEMA, Asking, Leases
    from labelrounds.strategies.base import Choice
    from pathlib import Path
    leases = Leases(Database(Path(sys.argv[1]), SCHEMA))
    for number in range(100_000):
        assert leases.take(Choice(f"case_{number}", ""), 1, Asking("ann", "random"), leases.standing())
        print(number, flush=True)
""")


def test_what_was_answered_before_a_kill_is_in_the_ledger(tmp_path):
    path = tmp_path / "rounds.sqlite"
    process = subprocess.Popen([sys.executable, "-c", _KILLED, str(path)], stdout=subprocess.PIPE, text=True)
    answered = [int(process.stdout.readline()) for _ in range(20)]
    process.send_signal(signal.SIGKILL)
    answered += [int(line) for line in process.stdout]
    process.wait()
    leases = Leases(Database(path, SCHEMA))
    noted = Counter(row["image"] for row in leases.ledger.entries(event="handed_out"))
    assert {f"case_{number}" for number in answered} <= set(noted) and set(noted.values()) == {1}
    assert set(leases.standing().leases) == set(noted), "lease and ledger are one step"


def test_where_nothing_can_be_written_the_error_says_so(tmp_path):
    (tmp_path / "rounds").write_text("a file where a folder should be")
    with pytest.raises(OutOfSpace, match="must be writable"):
        Leases(Database(tmp_path / "rounds" / "rounds.sqlite", SCHEMA))
