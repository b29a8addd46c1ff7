"""Transactions whole or not at all, whoever else writes, whatever becomes of the process, the disk or the file."""

import multiprocessing
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from labelrounds import database
from labelrounds.database import Database, rounds_file
from labelrounds.errors import LabelRoundsError, OutOfSpace, Overloaded, Unwritable

SCHEMA = "CREATE TABLE IF NOT EXISTS notes (id INTEGER PRIMARY KEY, text TEXT UNIQUE)"


@pytest.fixture
def made(tmp_path):
    return Database(tmp_path / "rounds" / "one.sqlite", SCHEMA)


def note(base: Database, text: str) -> None:
    with base.writing() as connection:
        connection.execute("INSERT INTO notes (text) VALUES (?)", (text,))


def notes(base: Database) -> list[str]:
    with base.reading() as connection:
        return [row["text"] for row in connection.execute("SELECT text FROM notes ORDER BY id")]


def in_another_process(path: Path, body: str) -> subprocess.Popen:
    script = f"""
        from pathlib import Path
        from labelrounds.database import Database
        base = Database(Path({str(path)!r}), {SCHEMA!r})
    """
    code = textwrap.dedent(script) + textwrap.dedent(body)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def test_what_is_written_is_there_and_what_raises_is_not(made):
    note(made, "first")
    with pytest.raises(KeyError), made.writing() as connection:
        connection.execute("INSERT INTO notes (text) VALUES ('second')")
        raise KeyError("second")
    assert notes(made) == ["first"] and notes(Database(made.path, SCHEMA)) == ["first"]
    note(made, "third")
    assert notes(made) == ["first", "third"]


def test_a_reader_sees_one_moment(made):
    note(made, "first")
    other = Database(made.path, SCHEMA)
    with made.reading() as connection:
        before = connection.execute("SELECT COUNT(*) FROM notes").fetchone()[0]
        note(other, "second")
        assert connection.execute("SELECT COUNT(*) FROM notes").fetchone()[0] == before == 1
    assert notes(made) == ["first", "second"]


def test_many_threads_and_processes_write_and_nothing_is_lost(made):
    body = """
        import sys
        for number in range(25):
            with base.writing() as connection:
                count = connection.execute("SELECT COUNT(*) FROM notes").fetchone()[0]
                connection.execute("INSERT INTO notes (id, text) VALUES (?, ?)", (count, f"{NAME} {number}"))
    """
    others = [in_another_process(made.path, body.replace("NAME", f"'process {number}'")) for number in range(2)]

    def write(name):
        for number in range(25):
            with made.writing() as connection:
                # Each decides by what the one before it has written: two by the same state would take the same id.
                count = connection.execute("SELECT COUNT(*) FROM notes").fetchone()[0]
                connection.execute("INSERT INTO notes (id, text) VALUES (?, ?)", (count, f"{name} {number}"))

    threads = [threading.Thread(target=write, args=(f"thread {number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [other.wait(timeout=100) for other in others] == [0, 0]
    assert len(notes(made)) == 150


def test_processes_that_open_a_new_file_at_once_all_get_it(tmp_path):
    others = [
        in_another_process(
            tmp_path / "new.sqlite",
            f"""
            with base.writing() as connection:
                connection.execute("INSERT INTO notes (text) VALUES ('{number}')")
            """,
        )
        for number in range(4)
    ]
    assert [other.wait(timeout=100) for other in others] == [0] * 4
    assert sorted(notes(Database(tmp_path / "new.sqlite", SCHEMA))) == ["0", "1", "2", "3"]


def test_a_process_killed_in_a_transaction_leaves_nothing_of_it_and_the_file_free(made):
    note(made, "first")
    other = in_another_process(
        made.path,
        """
        import time
        with base.writing() as connection:
            connection.execute("INSERT INTO notes (text) VALUES ('second')")
            print("begun", flush=True)
            time.sleep(100)
        """,
    )
    assert other.stdout.readline() == "begun\n"
    other.send_signal(signal.SIGKILL)
    other.wait()
    since = time.monotonic()
    note(made, "third")
    assert time.monotonic() - since < 10
    assert notes(made) == ["first", "third"]


def test_a_child_process_has_a_connection_of_its_own(made):
    note(made, "first")
    child = multiprocessing.get_context("fork").Process(target=note, args=(made, "second"))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    note(made, "third")
    assert notes(made) == ["first", "second", "third"]


def test_a_file_that_is_no_database_is_kept_aside_and_another_begun(tmp_path, caplog):
    path = tmp_path / "one.sqlite"
    path.write_bytes(b"this is not a database" * 300)
    base = Database(path, SCHEMA)
    note(base, "first")
    (aside,) = tmp_path.glob("one.sqlite.broken-*")
    assert aside.read_bytes() == b"this is not a database" * 300
    assert base.warnings == [f"one.sqlite was damaged; it is kept as {aside.name}, and another was begun"]
    assert base.warnings[0] in caplog.text
    assert Database(path, SCHEMA).warnings == [] and notes(base) == ["first"]


def damage(base: Database) -> None:
    """Overwrite all but the first page, which only reading the rows finds out."""
    with base.reading() as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with sqlite3.connect(base.path) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    with base.path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * (base.path.stat().st_size - 4096))


def test_what_is_found_damaged_while_it_is_used_is_kept_aside_and_others_go_on_with_the_new_one(made):
    for number in range(500):
        note(made, f"{number} " + "x" * 50)
    damage(made)
    other = Database(made.path, SCHEMA)  # it opens, as the first page is whole
    with pytest.raises(Overloaded, match=r"one\.sqlite: .*malformed; it is kept aside, and another begun"):
        notes(made)
    note(made, "anew")
    assert notes(made) == ["anew"] and notes(other) == ["anew"]
    note(other, "more")
    assert notes(made) == ["anew", "more"]
    assert len(made.warnings) == 1 and other.warnings == []
    assert len(list(made.path.parent.glob("*.broken-*"))) >= 1


def test_a_full_disk_is_told_and_nothing_is_changed(made):
    note(made, "first")
    with made.reading() as connection:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(OutOfSpace, match=r"one\.sqlite: not written, the disk is full; free some space first") as error:
        note(made, "x" * 100_000)
    assert not isinstance(error.value, Unwritable)
    assert notes(made) == ["first"]
    with made.reading() as connection:
        connection.execute("PRAGMA max_page_count = 1000000")
    note(made, "second")
    assert notes(made) == ["first", "second"]


def test_a_path_that_can_not_be_one_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Unwritable, match=r"one\.sqlite: .*; its folder must be writable for the server"):
        Database(tmp_path / "file" / "one.sqlite", SCHEMA)
    (tmp_path / "folder.sqlite").mkdir()
    with pytest.raises(Unwritable, match=r"folder\.sqlite: unable to open"):
        Database(tmp_path / "folder.sqlite", SCHEMA)


def test_a_file_that_another_holds_for_too_long_is_told_as_a_passing_fault(tmp_path, monkeypatch):
    monkeypatch.setattr(database, "_WAIT_S", 0.1)
    base = Database(tmp_path / "one.sqlite", SCHEMA)
    holder = sqlite3.connect(base.path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(Overloaded, match="another process has had it for 0 seconds; try again in a moment"):
        note(base, "first")
    holder.execute("ROLLBACK")
    note(base, "second")
    assert notes(base) == ["second"]


@pytest.mark.parametrize(
    ("statement", "told"),
    [("SELECT * FROM nowhere", "no such table: nowhere"), ("INSERT INTO notes (text) VALUES ('first')", "UNIQUE")],
)
def test_another_error_of_sqlite_is_a_sentence_and_undoes_the_block(made, statement, told):
    note(made, "first")
    with pytest.raises(LabelRoundsError, match=f"one.sqlite: .*{told}"), made.writing() as connection:
        connection.execute("INSERT INTO notes (text) VALUES ('second')")
        connection.execute(statement)
    assert notes(made) == ["first"]


def test_an_error_of_the_disk_that_the_block_meets_elsewhere_is_left_as_it_is(made, tmp_path):
    with pytest.raises(FileNotFoundError), made.writing():
        (tmp_path / "none").read_bytes()


def test_a_file_that_was_removed_is_begun_anew(made):
    note(made, "first")
    for file in made.path.parent.iterdir():
        file.unlink()
    note(made, "second")
    assert notes(made) == ["second"]


def test_a_file_that_was_removed_alone_while_somebody_writes_is_begun_anew_by_all(made):
    note(made, "first")
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        writing = made.writing()
        other.submit(lambda: writing.__enter__().execute("INSERT INTO notes (text) VALUES ('gone with it')")).result(60)
        made.path.unlink()
        one.submit(note, made, "second").result(60)
        other.submit(writing.__exit__, None, None, None).result(60)
        for number in range(20):
            one.submit(note, made, f"one {number}").result(60)
            other.submit(note, made, f"other {number}").result(60)
    written = ["second", *(f"{name} {number}" for number in range(20) for name in ("one", "other"))]
    assert notes(made) == notes(Database(made.path, SCHEMA)) == written
    assert made.warnings == []


def test_who_begins_another_file_while_the_damaged_one_is_kept_aside_keeps_what_belongs_to_it(made, monkeypatch):
    for number in range(500):
        note(made, f"{number} " + "x" * 50)
    damage(made)
    replace, begun = Path.replace, []

    def replaced(path: Path, target) -> Path:
        moved = replace(path, target)
        if path == made.path and not begun:
            begun.append(Database(made.path, SCHEMA))
            note(begun[0], "at once")
        return moved

    monkeypatch.setattr(Path, "replace", replaced)
    with pytest.raises(LabelRoundsError, match="kept aside"):
        notes(made)
    note(made, "anew")
    note(begun[0], "and again")
    assert notes(made) == notes(Database(made.path, SCHEMA)) == ["at once", "anew", "and again"]


@pytest.mark.parametrize(
    ("text", "code"), [("database or disk is full", 13), ("database is locked", 5), ("something", 1)]
)
def test_python_3_10_has_only_the_message_to_tell_errors_by(text, code):
    assert database._code(sqlite3.OperationalError(text)) == code


def test_the_file_is_that_of_the_studies_whatever_way_they_are_named(tmp_path, monkeypatch, home):
    monkeypatch.chdir(tmp_path)
    assert rounds_file(str(tmp_path / "studies")) == rounds_file("studies")
    assert rounds_file("studies").parent == home / "rounds"
    assert rounds_file("http://one/dicom") != rounds_file("http://two/dicom")
