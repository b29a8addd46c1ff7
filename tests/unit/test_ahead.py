"""The newest case first, a few at most, again if a user was in the way; and no error ends it."""

import threading
from pathlib import Path

import pytest
from held import PATIENCE_S, Held

from labelrounds.ahead import MOST_PENDING, Ahead
from labelrounds.errors import BadInput, Cancelled


@pytest.fixture
def segment():
    return Held()


def ahead_of_users(segment, **options) -> Ahead:
    return Ahead(lambda image: segment(image.name), **options)


@pytest.fixture
def ahead(segment):
    """With a first case under way."""
    made = ahead_of_users(segment)
    made.add(Path("first"))
    assert segment.begun.acquire(timeout=PATIENCE_S)
    yield made
    segment.go.release(100)
    made.close()


def test_the_newest_comes_first_each_once_and_the_oldest_of_too_many_never(ahead, segment):
    for number in range(MOST_PENDING + 2):
        ahead.add(Path(f"case_{number}"))
    ahead.add(Path("case_3"))
    assert segment.finish(MOST_PENDING) == ["first", "case_3", "case_5", "case_4", "case_2"]
    ahead.add(Path("last"))
    assert segment.finish(1)[-1] == "last"


def test_of_several_the_first_comes_first(ahead, segment):
    ahead.add(*(Path(f"case_{number}") for number in range(3)))
    assert segment.finish(3) == ["first", "case_0", "case_1", "case_2"]


def test_of_several_with_nothing_under_way_no_later_one_is_begun_before_the_first(segment):
    made = ahead_of_users(segment)
    made.add(*(Path(f"case_{number}") for number in range(3)))
    assert segment.begun.acquire(timeout=PATIENCE_S) and segment.seen == ["case_0"]
    segment.go.release(100)
    made.close()


def test_what_is_broken_off_for_a_user_is_taken_up_again(ahead, segment):
    segment.answers["first"] = [Cancelled("others wait"), Cancelled("others wait")]
    assert segment.finish(2) == ["first"] * 3


@pytest.mark.parametrize("error", [BadInput("a damaged image"), RuntimeError("a fault of ours")], ids=repr)
def test_an_image_that_can_not_be_segmented_is_left_and_the_next_one_is(ahead, segment, error, caplog):
    segment.answers["first"] = [error]
    ahead.add(Path("second"))
    with caplog.at_level("INFO", "labelrounds.ahead"):
        assert segment.finish(1) == ["first", "second"]
    assert "Not segmented ahead" in caplog.text and str(error) in caplog.text


def test_closing_waits_for_what_is_under_way_and_begins_nothing_more(ahead, segment):
    ahead.add(Path("second"))
    closing = threading.Thread(target=ahead.close)
    closing.start()
    while not ahead._backlog._closed:
        closing.join(0.01)
    segment.go.release()
    closing.join(PATIENCE_S)
    assert not any(thread.is_alive() for thread in ahead._backlog.threads)
    assert segment.seen == ["first"]


def test_closing_what_never_began_is_no_error(segment):
    ahead_of_users(segment).close()
    assert segment.seen == []


@pytest.mark.parametrize("together", [False, True])
def test_as_many_cases_are_segmented_at_once_as_there_are_devices(segment, together):
    two = ahead_of_users(segment, at_once=2)
    images = [Path(name) for name in ("first", "second", "third")]
    for added in [images] if together else [[image] for image in images]:
        two.add(*added)
    for _ in range(2):
        assert segment.begun.acquire(timeout=PATIENCE_S)
    assert not segment.begun.acquire(timeout=0.05)
    segment.finish(1)
    assert sorted(segment.seen) == ["first", "second", "third"]
    segment.go.release(100)
    two.close()
    assert not any(thread.is_alive() for thread in two._backlog.threads)
