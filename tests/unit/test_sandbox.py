"""A reader that dies, hangs or wants too much is one request's loss; real processes, killed for real."""

import fcntl
import json
import mmap
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import termios
import textwrap
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image as Picture
from tests import waiting
from tests.fuzz import files

from labelrounds import parsing, reading, shared_images
from labelrounds.errors import BadInput, LabelRoundsError, NotFound, Overloaded, TooLarge, UnsupportedMedia
from labelrounds.images import Geometry, Image
from labelrounds.sandbox import Sandbox, sandbox_of
from labelrounds.settings import ServerSettings

PATIENCE_S = 60
wait_for = partial(waiting.wait_until, timeout_s=PATIENCE_S, pause_s=0.02)


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    """Two readers with little memory."""
    sandbox = Sandbox(ServerSettings(readers=2, reader_memory_gb=1.0, reader_seconds=60.0))
    yield sandbox
    sandbox.close()


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    path = tmp_path / "scan.nii"
    path.write_bytes(files.nifti())
    return path


def reader_of(sandbox: Sandbox) -> psutil.Process:
    """Return the reader that takes the next file."""
    sandbox.make_ready()
    return psutil.Process(sandbox._idle[-1].process)


def unread(end: socket.socket) -> int:
    """Return how many bytes of what was sent the other end has not taken yet."""
    return struct.unpack("i", fcntl.ioctl(end, termios.TIOCOUTQ, b"\0" * 4))[0]


@pytest.mark.parametrize("ending", files.ENDINGS)
def test_what_a_reader_reads_is_what_this_process_reads(sandbox: Sandbox, tmp_path: Path, ending: str):
    path = next(files.mutated_files(ending, 1, tmp_path))
    path.write_bytes(files.valid(ending, tmp_path)[0])
    path = path.rename(tmp_path / "scan.nii") if ending == ".nii.gz" else path
    here, there = parsing.read_image(path), sandbox.read("read_image", path)
    assert np.array_equal(here.array, there.array) and here.array.dtype == there.array.dtype
    assert np.array_equal(here.affine, there.affine)
    assert (here.source, here.segments) == (there.source, there.segments)
    geometry = sandbox.read("read_geometry", path)
    assert (geometry.shape, geometry.is_flat) == (here.shape, here.is_flat)
    assert sandbox.read("patient_of", path) == ("P7" if ending == ".dcm" else None)


def test_errors_are_those_that_this_process_raises(sandbox: Sandbox, tmp_path: Path, scan: Path):
    cases: list[tuple[Path, type[LabelRoundsError], dict[str, int]]] = [
        (tmp_path / "none.nii", NotFound, {}),
        (scan.rename(tmp_path / "scan.mha"), UnsupportedMedia, {}),
        (scan.with_suffix(".nrrd"), UnsupportedMedia, {}),
    ]
    scan.write_bytes(files.nifti())
    cases[2][0].write_bytes(files.nifti())
    cases += [(scan, TooLarge, {"max_voxels": 10}), (scan, BadInput, {"channels": 7})]
    for path, kind, options in cases:
        with pytest.raises(kind) as there:
            sandbox.read("read_image", path, **options)
        with pytest.raises(kind) as here:
            parsing.read_image(path, **options)
        assert str(there.value) == str(here.value)


def test_an_array_may_be_kept_and_written_to(sandbox: Sandbox, scan: Path):
    first = sandbox.read("read_image", scan).array
    first += 1
    assert np.array_equal(first, parsing.read_image(scan).array + 1)
    assert np.array_equal(sandbox.read("read_image", scan).array, first - 1)


@pytest.mark.parametrize("ending", [signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS])
def test_a_reader_that_dies_is_the_files_fault_and_is_replaced(sandbox: Sandbox, scan: Path, ending: signal.Signals):
    reader, end = reader_of(sandbox), sandbox._idle[-1].socket
    reader.send_signal(signal.SIGSTOP)  # it can't have answered when it dies
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(sandbox.read, "read_image", scan)
        wait_for(lambda: unread(end))  # one that dies before is replaced before it is asked
        reader.send_signal(ending)
        reader.send_signal(signal.SIGCONT)
        with pytest.raises(BadInput, match=rf"scan.nii: the process that read it died \({ending.name}"):
            asked.result(PATIENCE_S)
    assert sandbox.read("read_image", scan).shape == files.SHAPE
    assert not psutil.pid_exists(reader.pid)


def test_a_reader_that_hangs_is_stopped_in_time(sandbox: Sandbox, scan: Path, monkeypatch):
    reader = reader_of(sandbox)
    reader.send_signal(signal.SIGSTOP)
    with monkeypatch.context() as shorter:
        shorter.setattr(sandbox, "_settings", ServerSettings(reader_seconds=1.0))
        with pytest.raises(BadInput, match=r"took over 1 s and was stopped.*LABELROUNDS_READER_SECONDS"):
            sandbox.read("read_image", scan)
    assert sandbox.read("read_image", scan).shape == files.SHAPE
    assert not psutil.pid_exists(reader.pid)


def test_a_reader_may_not_take_more_memory_than_it_is_given(sandbox: Sandbox, tmp_path: Path):
    path = tmp_path / "large.nii"
    header = bytearray(files.nifti()[:352])
    header[42:48] = np.array([900, 900, 900], "<i2").tobytes()
    path.write_bytes(header)
    os.truncate(path, 352 + 2 * 900**3)  # 1.5 GB that take no room on the disk
    with pytest.raises(TooLarge, match=r"large.nii: .*memory"):
        sandbox.read("read_image", path)
    assert sandbox.read("read_geometry", path).shape == (900, 900, 900)


def test_a_reader_loads_no_more_than_the_parsers(sandbox: Sandbox):
    loaded = {Path(one.path).name for one in reader_of(sandbox).memory_maps()}
    assert any("ITKIONRRD" in name for name in loaded)
    assert not any("torch" in name for name in loaded)


def test_a_reader_that_has_died_in_between_costs_no_request(sandbox: Sandbox, scan: Path):
    reader = reader_of(sandbox)
    reader.kill()
    wait_for(lambda: reader.status() == psutil.STATUS_ZOMBIE)
    assert sandbox.read("read_image", scan).shape == files.SHAPE


def test_a_server_with_a_thousand_open_connections_still_reads(sandbox: Sandbox, scan: Path):
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(2000, limits[1]), limits[1]))
    sandbox.make_ready()
    reader = sandbox._idle[-1]
    low, reader.socket = reader.socket, socket.socket(fileno=fcntl.fcntl(reader.socket, fcntl.F_DUPFD_CLOEXEC, 1100))
    low.close()
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert sandbox.read("read_image", scan).shape == files.SHAPE
    assert sandbox._idle[-1] is reader


def test_without_the_process_that_makes_readers_another_one_is_started(sandbox: Sandbox, scan: Path):
    maker = psutil.Process(reader_of(sandbox).ppid())
    maker.kill()
    wait_for(lambda: maker.status() == psutil.STATUS_ZOMBIE)
    assert sandbox.read("read_image", scan).shape == files.SHAPE
    reader = reader_of(sandbox)
    reader.kill()
    wait_for(lambda: not reader.is_running() or reader.status() == psutil.STATUS_ZOMBIE)
    assert sandbox.read("read_image", scan).shape == files.SHAPE


def test_each_of_many_threads_gets_its_own_image_though_readers_die(sandbox: Sandbox, tmp_path: Path):
    for number in range(8):
        Picture.fromarray(np.full((20, 30), number, np.uint8)).save(tmp_path / f"{number}.png")
    died = []

    def work(turn: int) -> None:
        try:
            found = sandbox.read("read_image", tmp_path / f"{turn % 8}.png").array
            assert (found == turn % 8).all()
        except TooLarge as error:  # "was killed"
            died.append(str(error))

    with ThreadPoolExecutor(8) as pool:
        turns = [pool.submit(work, turn) for turn in range(200)]
        for turn in turns[::20]:
            turn.result(PATIENCE_S)
            for idle in sandbox._idle[:1]:
                os.kill(idle.process, signal.SIGKILL)
        for turn in turns:
            turn.result(PATIENCE_S)
    assert len(died) <= 10


def test_a_closed_sandbox_leaves_no_process_and_no_folder(tmp_path: Path, monkeypatch, scan: Path):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    sandbox = sandbox_of(ServerSettings(readers=1))
    assert sandbox is not None
    try:
        assert reading.read_image(scan).shape == files.SHAPE
        reader = reader_of(sandbox)
        assert list(tmp_path.glob("labelrounds-readers-*/*"))
    finally:
        reading.read_by(None)
        sandbox.close()
    wait_for(lambda: not psutil.pid_exists(reader.pid))
    assert not list(tmp_path.glob("labelrounds-readers-*"))
    with pytest.raises(Overloaded, match="about to end"):
        sandbox.read("read_image", scan)


def test_closing_waits_for_no_parsers_and_tells_who_waits_to_come_again(scan: Path):
    sandbox = Sandbox(ServerSettings(readers=1))
    sandbox.start()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(sandbox.read, "read_image", scan)
        wait_for(sandbox._lock.locked)
        os.kill(sandbox._nursery._process.pid, signal.SIGSTOP)  # as if they were loaded for long
        since = time.monotonic()
        sandbox.close()
        with pytest.raises(Overloaded, match="about to end"):
            waiting.result(PATIENCE_S)
    assert time.monotonic() - since < 20


def test_no_process_and_no_folder_outlives_a_server_that_is_killed(tmp_path: Path):
    script = """
        import os, time
        from labelrounds.sandbox import Sandbox
        from labelrounds.settings import ServerSettings
        sandbox = Sandbox(ServerSettings(readers=1))
        sandbox.make_ready()
        print(sandbox._idle[0].process, flush=True)
        time.sleep(100)
    """
    environment = {**os.environ, "TMPDIR": str(tmp_path), "SECRET_KEY": "of the server"}
    command = [sys.executable, "-c", textwrap.dedent(script)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as server:
        assert server.stdout is not None
        reader = psutil.Process(int(server.stdout.readline()))
        assert "SECRET_KEY" not in reader.environ()
        reader.send_signal(signal.SIGSTOP)  # as if it were busy
        server.kill()
    wait_for(lambda: not reader.is_running())
    wait_for(lambda: not list(tmp_path.glob("labelrounds-readers-*")))


def test_a_confined_process_writes_nowhere_starts_nothing_and_calls_nobody(tmp_path: Path):
    for name in ("own", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "other" / "file").write_text("whole")
    script = f"""
        import os, signal, socket, subprocess, sys
        from pathlib import Path
        from labelrounds.confinement import confine_to, limit_resources
        limit_resources(10**8)
        version = confine_to(Path({str(tmp_path / "own")!r}))
        Path({str(tmp_path / "own" / "new")!r}).write_text("unpacked")
        Path({str(tmp_path / "own" / "new")!r}).unlink()
        attempts = [
            lambda: Path({str(tmp_path / "other" / "new")!r}).write_text("x"),
            lambda: Path({str(tmp_path / "other" / "file")!r}).write_text("x"),
            lambda: Path({str(tmp_path / "other" / "file")!r}).unlink(),
            lambda: os.truncate({str(tmp_path / "other" / "file")!r}, 0),
            lambda: subprocess.run(["/bin/true"], check=True),
            lambda: socket.create_connection(("127.0.0.1", int(sys.argv[1])), 5),
            lambda: os.kill(os.getppid(), signal.SIGTERM),
        ]
        succeeded = []
        for number, attempt in enumerate(attempts):
            try:
                attempt()
                succeeded.append(number)
            except OSError as error:
                assert isinstance(error, PermissionError), error
        try:
            bytearray(2 * 10**8)
            succeeded.append("memory")
        except MemoryError:
            pass
        print(version, succeeded)
    """
    with socket.create_server(("127.0.0.1", 0)) as listening:
        command = [sys.executable, "-c", textwrap.dedent(script), str(listening.getsockname()[1])]
        kept = signal.signal(signal.SIGTERM, lambda number, frame: None)
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
        finally:
            signal.signal(signal.SIGTERM, kept)
    assert done.returncode == 0, done.stderr
    version, succeeded = done.stdout.split(maxsplit=1)
    # What an older kernel has no word for is allowed there.
    since = {0: 1, 1: 1, 2: 1, 3: 3, 4: 1, 5: 4, 6: 6}
    assert json.loads(succeeded.replace("'", '"')) == [n for n, first in since.items() if int(version) < first]
    if int(version) >= 3:
        assert (tmp_path / "other" / "file").read_text() == "whole"


# What comes from a reader that a file has taken over


def memory_of(header: object, voxels: bytes = b"") -> int:
    text = json.dumps(header).encode()
    memory = os.memfd_create("image", os.MFD_ALLOW_SEALING)
    os.write(memory, (len(text).to_bytes(8, "little") + text).ljust(mmap.ALLOCATIONGRANULARITY) + voxels)
    return memory


IMAGE = {
    "shape": [1, 2, 3, 4],
    "order": [0, 3, 2, 1],
    "type": "uint8",
    "affine": np.eye(4).tolist(),
    "source": "nifti",
    "segments": None,
    "layered": False,
}


@pytest.mark.parametrize(
    "header",
    [
        [],
        {},
        {"error": "SystemExit", "message": "x"},
        {"error": "LabelRoundsError"},
        {"image": {**IMAGE, "type": "object"}},
        {"image": {**IMAGE, "shape": [1, 2, 3, 400]}},
        {"image": {**IMAGE, "shape": [1, 2, 3, -4]}},
        {"image": {**IMAGE, "order": [0, 0, 1, 2]}},
        {"image": {**IMAGE, "affine": [[1]]}},
        {"image": {**IMAGE, "source": "/etc/passwd"}},
        {"image": {**IMAGE, "segments": 3}},
        {"image": {**IMAGE, "shape": [1, 2, 3, 10**40]}},
        {"image": {**IMAGE, "segments": {"liver": float("inf")}}},
        {"image": {**IMAGE, "affine": [[10**400] * 4] * 4}},
        {"geometry": {"shape": [1], "affine": np.eye(4).tolist(), "is_flat": False}},
    ],
)
def test_an_answer_that_no_reader_gives_is_none(header: object):
    memory = memory_of(header, bytes(24))
    with pytest.raises((ValueError, BadInput)):
        shared_images.unpack(memory)
    os.close(memory)


def test_a_reader_can_change_no_voxel_once_it_has_answered():
    memory = memory_of({"image": IMAGE}, bytes(range(24)))
    with mmap.mmap(memory, 0) as mine:  # which it could still write to
        with pytest.raises(ValueError, match="busy"):
            shared_images.unpack(memory)
        del mine
    assert shared_images.unpack(memory).array.tobytes("F") == bytes(range(24))
    with pytest.raises(PermissionError):
        os.ftruncate(memory, 0)
    with pytest.raises(PermissionError):
        os.write(memory, b"x")
    assert fcntl.fcntl(memory, fcntl.F_GET_SEALS)
    os.close(memory)


@pytest.mark.parametrize("axes", [(0, 1, 2, 3), (3, 2, 1, 0), (1, 0, 3, 2), (2, 3, 0, 1)])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
def test_voxels_keep_their_order_in_memory_on_the_way(axes: tuple[int, ...], dtype: str):
    array = np.arange(2 * 3 * 4 * 5).astype(dtype).reshape(2, 3, 4, 5).transpose(axes)
    memory = shared_images.pack(Image(array, np.eye(4), "nrrd", {"liver": 3}))
    image = shared_images.unpack(memory)
    os.close(memory)
    assert np.array_equal(image.array, array) and image.array.strides == array.strides
    assert image.segments == {"liver": 3}


def test_a_geometry_a_text_and_nothing_arrive_as_they_are():
    affine = np.diag([0.1, -1 / 3, 7.0, 1.0])
    for result in (Geometry((1, 2, 3), affine, True), "P7", None):
        memory = shared_images.pack(result)
        found = shared_images.unpack(memory)
        os.close(memory)
        if isinstance(result, Geometry):
            assert (found.shape, found.is_flat) == (result.shape, True) and np.array_equal(found.affine, affine)
        else:
            assert found == result


def test_with_no_readers_the_server_reads_itself(caplog, scan: Path):
    assert sandbox_of(ServerSettings(readers=0)) is None
    assert "LABELROUNDS_READERS is 0" in caplog.text
    assert reading.read_image(scan).shape == files.SHAPE


def test_a_turn_is_given_back_whatever_happens(sandbox: Sandbox, scan: Path):
    threads = [threading.Thread(target=lambda: sandbox.read("read_geometry", scan)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert not any(thread.is_alive() for thread in threads)
    assert len(sandbox._idle) <= 2
