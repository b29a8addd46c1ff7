"""What is to be done in the background is done once, in its turn, again where it asks for that, and comes to an end."""

import pytest
from held import PATIENCE_S, Held

from labelrounds.backlog import Backlog


@pytest.fixture
def doing():
    return Held()


@pytest.fixture
def begun(doing):
    """Return a function that makes a backlog of which the first item is under way."""
    made = []

    def begin(**options) -> Backlog:
        made.append(Backlog("test", doing, **options))
        made[-1].add({"first": "first"})
        assert doing.begun.acquire(timeout=PATIENCE_S)
        return made[-1]

    yield begin
    doing.go.release(100)
    for backlog in made:
        backlog.close()


def test_each_comes_once_in_the_order_in_which_it_was_added(doing, begun):
    backlog = begun()
    for name in ("second", "third", "second", "first"):
        backlog.add({name: name})
    assert doing.finish(2) == ["first", "second", "third"]


def test_what_is_to_be_tried_again_comes_before_all_others(doing, begun):
    backlog = begun()
    backlog.add({"second": "second"})
    doing.answers["first"] = [0.01]
    assert doing.finish(2) == ["first", "first", "second"]


def test_a_fault_in_one_does_not_keep_the_others_from_being_done(doing, begun, caplog):
    backlog = begun()
    backlog.add({"second": "second"})
    doing.answers["first"] = [RuntimeError("a fault")]
    assert doing.finish(1) == ["first", "second"]
    assert "a fault" in caplog.text


def test_closing_does_not_wait_for_what_is_to_be_tried_again_later(doing, begun):
    backlog = begun()
    doing.answers["first"] = [3600.0]
    doing.go.release()
    backlog.close()
    assert not any(thread.is_alive() for thread in backlog.threads)
    backlog.add({"second": "second"})
    assert doing.seen == ["first"]


def test_of_too_many_those_that_were_added_first_are_dropped(doing, begun):
    backlog = begun(most=2)
    backlog.add({name: name for name in "abc"})
    assert doing.finish(2) == ["first", "b", "c"]
