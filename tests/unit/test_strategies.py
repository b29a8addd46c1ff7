"""Nobody is handed what another annotator has in hand, and the order follows from the pool alone."""

import time

import pytest

import labelrounds.host  # noqa: F401 - first, so that the host can be imported
from labelrounds.errors import BadInput
from labelrounds.strategies import candidates, strategies
from labelrounds.strategies.base import LEASE_S


class Pool:
    """As much of a datastore as a strategy sees."""

    def __init__(self, *image_ids: str) -> None:
        self.info = {image_id: {} for image_id in image_ids}
        self.labelled: set[str] = set()

    def get_unlabeled_images(self):
        return [image_id for image_id in self.info if image_id not in self.labelled]

    def get_image_info(self, image_id: str):
        return self.info[image_id]

    def hand_out(self, image_id: str, client, seconds_ago: float = 0.0, strategy: str = "random") -> None:
        notes = self.info[image_id].setdefault("strategy", {})
        notes[strategy] = {"ts": int(time.time() - seconds_ago), "client_id": client}


def ask(pool: Pool, client="me", strategy="random"):
    return strategies.get(strategy)()({"strategy": strategy, "client_id": client}, pool)


def test_all_fresh_cases_are_candidates_in_the_order_of_their_names():
    assert candidates(Pool("c", "a", "b"), "me") == ["a", "b", "c"]


def test_a_labelled_case_is_never_handed_out():
    pool = Pool("a", "b")
    pool.labelled.add("a")
    assert candidates(pool, "me") == ["b"]


def test_a_fresh_case_comes_before_one_that_was_handed_out():
    pool = Pool("a", "b", "c")
    pool.hand_out("a", "other")
    pool.hand_out("b", "me", 2 * LEASE_S)
    assert candidates(pool, "me") == ["c"]


def test_then_comes_the_case_that_was_handed_out_longest_ago():
    pool = Pool("a", "b", "c")
    for image_id, hours in (("a", 3), ("b", 9), ("c", 5)):
        pool.hand_out(image_id, "other", hours * 3600)
    assert candidates(pool, "me") == ["b"]


def test_what_another_client_holds_comes_last_of_all():
    pool = Pool("a", "b")
    pool.hand_out("a", "other", LEASE_S - 60)
    pool.hand_out("b", "me", 10)
    assert candidates(pool, "me") == ["b"]
    pool.labelled.add("b")
    assert candidates(pool, "me") == ["a"], "better twice than no case at all"


def test_a_lease_ends_after_an_hour():
    pool = Pool("a", "b")
    pool.hand_out("a", "other", LEASE_S + 60)
    pool.hand_out("b", "me", 60)
    assert candidates(pool, "me") == ["a"]


def test_the_latest_of_several_strategies_counts():
    pool = Pool("a", "b")
    pool.hand_out("a", "me", 9000, "first")
    pool.hand_out("a", "other", 10, "second")
    pool.hand_out("b", "me", 100)
    assert candidates(pool, "me") == ["b"]


def test_two_clients_are_handed_different_cases():
    pool, handed = Pool("a", "b", "c", "d"), []
    for client in ("one", "two", "one", "two"):
        chosen = ask(pool, client)["id"]
        pool.hand_out(chosen, client)
        handed.append(chosen)
    assert sorted(handed) == ["a", "b", "c", "d"]


def test_clients_without_a_name_are_one_client():
    pool = Pool("a", "b")
    pool.hand_out("a", None, 100)
    pool.hand_out("b", "other", 10)
    assert candidates(pool, None) == ["a"]


def test_other_notes_about_an_image_do_no_harm():
    pool = Pool("a", "b")
    pool.info["a"] = {"strategy": {"random": "yesterday"}, "name": "a"}
    pool.info["b"] = {"strategy": None, "checksum": "x"}
    assert candidates(pool, "me") == ["a", "b"]


@pytest.mark.parametrize("note", [{}, {"ts": None}, {"ts": "soon", "client_id": "other"}, {"ts": [1]}], ids=str)
def test_a_note_without_a_time_counts_as_none(note):
    pool = Pool("a", "b")
    pool.info["a"] = {"strategy": {"random": note}}
    assert candidates(pool, "me") == ["a", "b"]


def test_when_every_case_has_a_label_there_is_none():
    pool = Pool("a")
    pool.labelled.add("a")
    assert ask(pool) is None and ask(Pool()) is None


def test_the_order_follows_from_the_pool_alone():
    names = [f"case_{number}" for number in range(50)]
    orders = []
    for pool in (Pool(*names), Pool(*reversed(names))):
        order = []
        while (chosen := ask(pool)) is not None:
            order.append(chosen["id"])
            pool.labelled.add(chosen["id"])
        orders.append(order)
    assert orders[0] == orders[1]
    assert sorted(orders[0]) == sorted(names)
    assert orders[0] != sorted(names), "random is not by name"


def test_the_reason_says_how_many_there_were_to_choose_from():
    assert ask(Pool("a", "b", "c"))["reason"] == "chosen at random from 3 cases without a label"


def test_every_registered_strategy_answers():
    for name in strategies.names():
        assert ask(Pool("a"), strategy=name)["id"] == "a"
        assert ask(Pool(), strategy=name) is None


def test_an_unknown_strategy_is_refused_with_the_known_ones():
    with pytest.raises(BadInput, match="strategy 'luck' is not one of random"):
        strategies.get("luck")
