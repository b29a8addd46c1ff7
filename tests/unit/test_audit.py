"""The audit log: every line is there, in its order, and whoever takes one out or changes it is noticed."""

import errno
import json
import os
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from typer.testing import CliRunner

from labelrounds import audit
from labelrounds.audit import AuditLog, audit_log, event_of, listing, record_command, verification
from labelrounds.cli import app
from labelrounds.errors import OutOfSpace


@pytest.fixture
def folder(home):
    return home / "audit"


@pytest.fixture
def log(folder) -> AuditLog:
    return AuditLog(folder)


def event(image: str, user: str = "ann", status: int = 200) -> dict:
    return event_of("r-1", user, "10.0.0.7", "GET", "/datastore/image", {"image": image}, status)


def fill(log: AuditLog, count: int, first: int = 0) -> None:
    for number in range(first, first + count):
        log.append(event(f"scan_{number}"))


def images(log: AuditLog) -> list[str]:
    return [line["ids"]["image"] for line in log.lines()]


def test_a_line_says_who_saw_what_and_when(log):
    log.append(event("scan_1"))
    (line,) = log.lines()
    assert line.pop("time").endswith("Z")
    assert line == {
        "number": 1,
        "request": "r-1",
        "user": "ann",
        "address": "10.0.0.7",
        "method": "GET",
        "route": "/datastore/image",
        "ids": {"image": "scan_1"},
        "status": 200,
        "previous": "0" * 64,
    }


def test_nobody_but_the_servers_user_may_read_it(log, folder):
    umask = os.umask(0)
    try:
        fill(log, 1)
    finally:
        os.umask(umask)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {0o600}


def test_a_whole_log_is_whole_also_over_several_files_and_starts(folder):
    for start in range(4):
        fill(AuditLog(folder, most_bytes=900), 5, 5 * start)
    assert len(list(folder.glob("audit-*.jsonl"))) > 2
    found = AuditLog(folder).verify()
    assert (found.first, found.last, found.faults) == (1, 20, [])
    assert images(AuditLog(folder)) == [f"scan_{number}" for number in range(20)]


def test_each_month_has_a_file_and_a_clock_set_back_opens_no_older_one(log, folder, monkeypatch):
    for month in ("2026-11", "2026-12", "2026-11"):
        monkeypatch.setattr(audit.time, "strftime", lambda form, when, month=month: month)
        fill(log, 2)
    assert [file.name for file in sorted(folder.glob("*.jsonl"))] == [
        "audit-2026-11-001.jsonl",
        "audit-2026-12-001.jsonl",
    ]
    assert log.verify().faults == []


def _altered(lines: list[bytes]) -> list[bytes]:
    return [*lines[:3], lines[3].replace(b"scan_3", b"scan_9"), *lines[4:]]


TAMPERED = {
    "a line is altered": (_altered, "line 5: the line before it is not the one that was written"),
    "a line is taken out": (lambda lines: lines[:3] + lines[4:], "line 4: number 5 follows 3"),
    "two change places": (lambda lines: [*lines[:3], lines[4], lines[3], *lines[5:]], "line 4: number 5 follows 3"),
    "a line is put in twice": (lambda lines: [*lines[:3], lines[2], *lines[3:]], "line 4: number 3 follows 3"),
    "the last is altered": (lambda lines: [*lines[:-1], lines[-1].replace(b"ann", b"bob")], "head: line 8 is not"),
    "the last are cut off": (lambda lines: lines[:-2], "head: 2 lines are missing at the end"),
    "all are cut off": (lambda lines: [], "head: 8 lines are missing at the end"),
    "a line is no JSON": (lambda lines: [*lines[:3], b"\xff{\n", *lines[4:]], "line 4: is no line of the audit log"),
    "a line's number is none": (
        lambda lines: [*lines[:-1], lines[-1].replace(b'"number":8', b'"number":Infinity')],
        "line 8: is no line of the audit log",
    ),
    "the first is another": (
        lambda lines: [lines[0].replace(b"0" * 64, b"1" * 64), *lines[1:]],
        "line 1: the first line",
    ),
}


@pytest.mark.parametrize("how", TAMPERED)
def test_tampering_is_noticed(log, folder, how):
    fill(log, 8)
    (file,) = folder.glob("audit-*.jsonl")
    change, words = TAMPERED[how]
    file.write_bytes(b"".join(change(file.read_bytes().splitlines(keepends=True))))
    faults = AuditLog(folder).verify().faults
    assert any(words in fault for fault in faults), faults
    told, whole = verification()
    assert not whole and words in told


def test_a_file_that_is_removed_is_noticed_and_the_oldest_ones_are_said_to_be_gone(folder):
    fill(AuditLog(folder, most_bytes=500), 12)
    files = sorted(folder.glob("audit-*.jsonl"))
    files[0].unlink()
    told, whole = verification()
    assert whole and "are not in this folder" in told  # an archive may hold them
    files[2].unlink()
    told, whole = verification()
    assert not whole and "lines are missing or were moved" in told


def test_a_missing_head_is_said(log, folder):
    fill(log, 2)
    (folder / "head").unlink()
    assert ["head: is missing" in fault for fault in log.verify().faults] == [True]


def test_threads_and_processes_that_write_at_once_lose_nothing(folder):
    logs = [AuditLog(folder, most_bytes=4000), AuditLog(folder, most_bytes=4000)]  # as two processes have
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: logs[number % 2].append(event(f"scan_{number}")), range(200)))
    assert AuditLog(folder).verify().faults == []
    assert sorted(images(logs[0])) == sorted(f"scan_{number}" for number in range(200))


@pytest.mark.parametrize("way", ["nothing", "a part"])
def test_what_a_full_disk_does_not_take_waits_and_comes_first_later(log, folder, monkeypatch, way):
    fill(log, 2)
    whole = os.write

    def full(handle, content):
        if way == "nothing":
            raise OSError(errno.ENOSPC, "No space left on device")
        return whole(handle, content[: len(content) // 2])

    with monkeypatch.context() as patch:
        patch.setattr(audit.os, "write", full)
        for number in (2, 3):
            with pytest.raises(OutOfSpace, match="the audit log can't be written") as refused:
                log.append(event(f"scan_{number}"))
            assert str(folder) not in str(refused.value)
        assert "No space left on device" in log.failing
        assert images(log) == ["scan_0", "scan_1"] and log.verify().faults == []
        with pytest.raises(OutOfSpace):
            log.check()
    log.check()
    fill(log, 1, 4)
    assert log.failing == "" and log.verify().faults == []
    written = [line["ids"]["image"] for line in log.lines() if "ids" in line]
    assert written == [f"scan_{number}" for number in range(5)]


def test_a_disk_that_is_as_good_as_full_is_found_before_anything_is_done(log, monkeypatch):
    log.check()
    monkeypatch.setattr(audit, "_LEAST_FREE", 2**62)
    with pytest.raises(OutOfSpace, match="nothing is done without it"):
        log.check()


def test_of_lines_that_wait_too_long_the_oldest_go_and_are_counted(log, monkeypatch):
    monkeypatch.setattr(audit, "_MOST_WAITING", 2)
    with monkeypatch.context() as patch:
        patch.setattr(audit.os, "write", lambda *of: 0)
        for number in range(5):
            with pytest.raises(OutOfSpace):
                log.append(event(f"scan_{number}"))
    fill(log, 1, 5)
    assert images(log) == ["scan_4", "scan_5"]
    assert [line.get("lost") for line in log.lines()] == [4, None]


def test_a_line_that_a_power_cut_tore_is_told_and_the_next_ones_are_whole(log, folder):
    fill(log, 3)
    (file,) = folder.glob("audit-*.jsonl")
    os.truncate(file, file.stat().st_size - 40)
    fill(AuditLog(folder), 2, 3)
    faults = AuditLog(folder).verify().faults
    assert len(faults) == 1 and "line 3: is no line of the audit log, or only a part of one" in faults[0]
    assert images(log) == ["scan_0", "scan_1", "scan_3", "scan_4"]


def test_no_line_can_be_forged_by_what_a_client_sends(log, folder):
    log.append(event('a"}\n{"number":2', user="bob\r\nmallory"))
    (file,) = folder.glob("audit-*.jsonl")
    assert file.read_bytes().count(b"\n") == 1 and log.verify().faults == []
    assert len(listing(10)) == 1 and "\n" not in listing(10)[0]


def test_lines_are_listed_by_user_and_by_image(log):
    for user, image in (("ann", "a"), ("bob", "a"), ("ann", "b")):
        log.append(event(image, user))
    assert ["image=a" in line for line in listing(10, user="ann")] == [True, False]
    assert ["ann" in line for line in listing(10, image="a")] == [True, False]
    assert len(listing(2)) == 2 and "image=b" in listing(2)[-1]


def test_what_a_command_has_changed_is_in_it(home):
    record_command("rollback", model="spleen", version="3")
    (line,) = audit_log().lines()
    assert (line["address"], line["route"], line["ids"]) == (
        "terminal",
        "rollback",
        {"model": "spleen", "version": "3"},
    )
    assert line["user"]


def test_who_may_come_in_is_in_it(home):
    runner = CliRunner()
    key = runner.invoke(app, ["users", "add", "ann", "--role", "admin"]).stdout.split()[0]
    runner.invoke(app, ["users", "remove", "ann"])
    told = [(line["route"], line["ids"]) for line in audit_log().lines()]
    assert told == [("users add", {"name": "ann", "role": "admin"}), ("users remove", {"name": "ann"})]
    assert key not in str(list(audit_log().lines()))


def test_a_last_line_that_is_none_stops_no_further_one(log, folder):
    fill(log, 2)
    (file,) = folder.glob("audit-*.jsonl")
    with file.open("ab") as opened:
        opened.write(b'{"number": Infinity}\n')
    fill(AuditLog(folder), 1, 2)
    assert len(AuditLog(folder).verify().faults) == 1


def test_the_command_lists_and_verifies(log, folder):
    def run(*options):
        command = [sys.executable, "-m", "labelrounds", "audit", *options]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    fill(log, 3)
    assert run("--last", "1").stdout.splitlines()[0].endswith("GET /datastore/image 200 image=scan_2")
    whole = run("--verify")
    assert whole.returncode == 0 and "is whole: lines 1 to 3" in whole.stdout
    (file,) = folder.glob("audit-*.jsonl")
    file.write_bytes(file.read_bytes().replace(b"scan_1", b"scan_7"))
    broken = run("--verify")
    assert broken.returncode == 1 and "line 3: the line before it is not" in broken.stdout


def test_a_line_costs_less_than_a_millisecond_of_the_processor(log):
    fill(log, 1)
    since = time.process_time()
    fill(log, 200)
    assert (time.process_time() - since) / 200 < 0.001
    assert json.loads((log._folder / "head").read_text())["number"] == 201
