"""A submission that the ledger can't take is noted, and written when it can."""

from pathlib import Path
from typing import Any

import pytest

from labelrounds.errors import OutOfSpace
from labelrounds.history import History
from labelrounds.owing import Owing


class Book:
    """A ledger on a disk that may be full."""

    def __init__(self) -> None:
        self.full, self.lines = False, list[dict[str, Any]]()

    def write(self, entry: dict[str, Any]) -> None:
        if self.full:
            raise OutOfSpace("no space left")
        self.lines.append(entry)


@pytest.fixture
def history(tmp_path: Path) -> History:
    return History(tmp_path / "history")


def test_what_could_not_be_written_is_written_by_the_next_process(history: History):
    book = Book()
    owing = Owing(lambda: history)
    book.full = True
    for image in ("a", "b"):
        owing.add({"image": image})
        assert owing.settle(book.write) == 0
    book.full = False
    assert Owing(lambda: history).settle(book.write) == 2
    assert book.lines == [{"image": "a"}, {"image": "b"}]
    assert Owing(lambda: history).settle(book.write) == 0 and history.owed() == []


def test_where_the_note_has_no_room_either_it_is_kept_in_memory(history: History, monkeypatch: pytest.MonkeyPatch):
    book = Book()
    owing = Owing(lambda: history)
    book.full = True
    with monkeypatch.context() as patch:

        def full(*_: Any) -> None:
            raise OutOfSpace("no space left")

        patch.setattr(history, "owe", full)
        owing.add({"image": "a"})
        assert owing.settle(book.write) == 0
    assert history.owed() == []
    assert owing.settle(book.write) == 0 and history.owed() == [{"image": "a"}]
    book.full = False
    assert owing.settle(book.write) == 1 and history.owed() == []


def test_a_torn_note_is_no_obstacle(history: History):
    book = Book()
    history.owe([{"image": "a"}])
    (history.folder / "owed.json").write_text("{torn")
    owing = Owing(lambda: history)
    owing.add({"image": "b"})
    assert owing.settle(book.write) == 1 and book.lines == [{"image": "b"}]
