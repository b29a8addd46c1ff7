"""The images that clients have sent for a session."""

import errno
import io
import json
import os
import threading
import time
import uuid
from pathlib import Path

import pytest

import labelrounds.host  # noqa: F401 - first, so that the host can be imported
from labelrounds.errors import OutOfSpace
from labelrounds.sessions import Session, SessionStore

HOUR = 3600
SERIES = {"1.dcm": b"one", "2.dcm": b"two"}


@pytest.fixture
def kept(tmp_path) -> SessionStore:
    return SessionStore(tmp_path / "sessions", HOUR)


def added(kept: SessionStore, expiry_s: int = 0, **files: bytes) -> Session:
    return kept.add({name: io.BytesIO(content) for name, content in (files or {"a.nii": b"a"}).items()}, expiry_s)


def about(session: Session) -> Path:
    return session.image.parent / "meta.info"


def age(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_an_image_and_a_series_are_kept_as_they_were_sent(kept):
    image, series = added(kept, **{"a.nii.gz": b"voxels"}), added(kept, **SERIES)
    assert image.image.name == "a.nii.gz" and image.image.read_bytes() == b"voxels"
    assert {file.name: file.read_bytes() for file in series.image.iterdir()} == SERIES
    for session in (image, series):
        found = SessionStore(kept.folder, HOUR).get(session.id)  # as after a restart
        assert found is not None and (found.image, found.created) == (session.image, session.created)
    kept.remove(series.id)
    kept.remove(series.id)
    assert kept.get(series.id) is None and [path.name for path in kept.folder.iterdir()] == [image.id]


def test_an_id_says_nothing_of_the_machine_or_the_time(kept):
    first, second = (uuid.UUID(added(kept).id) for _ in range(2))
    assert first.version == second.version == 4 and first.node != second.node


@pytest.mark.parametrize("wanted", [-1, 0, 5, HOUR, 10**30])
def test_a_client_may_shorten_the_time_alone(kept, wanted):
    assert added(kept, wanted).expiry_s == (5 if wanted == 5 else HOUR)


def test_what_has_expired_goes_and_what_is_asked_for_stays(kept):
    old, used, looked_at, fresh = (added(kept) for _ in range(4))
    for session in (used, looked_at):
        age(about(session), HOUR - 60)
        assert kept.get(session.id, use=session is used) is not None
    age(about(old), HOUR + 60)
    assert kept.get(old.id) is None, "its time is up, whether it is cleared away or not"
    age(about(looked_at), HOUR + 60)
    assert kept.remove_expired() == 2
    assert [session.image.is_file() for session in (old, used, looked_at, fresh)] == [False, True, False, True]


DAMAGED = [None, "", '{"image": "a.n', "[1]", "5", '{"image": null}', '{"image": "other.nii", "expiry": 5}']
DAMAGED += [
    '{"image": "a.nii", "create_ts": 1, "expiry": "soon"}',
    '{"image": "meta.info", "create_ts": 1, "expiry": 5}',
]


@pytest.mark.parametrize("description", DAMAGED)
def test_an_image_without_a_description_goes_as_an_expired_one_does(kept, description):
    damaged, other = added(kept), added(kept)
    about(damaged).unlink()
    if description is not None:
        about(damaged).write_text(description)
    assert kept.get(damaged.id) is None
    assert kept.remove_expired() == 0 and damaged.image.is_file()
    age(damaged.image.parent, 2 * HOUR)
    assert kept.remove_expired() == 1
    assert not damaged.image.exists() and other.image.is_file()


def test_a_description_leads_to_no_file_outside(kept, tmp_path):
    (tmp_path / "secret.nii").write_bytes(b"secret")
    session = added(kept)
    content = {**json.loads(about(session).read_text()), "image": "../../secret.nii"}
    about(session).write_text(json.dumps(content))
    assert kept.get(session.id) is None
    for other in ("", ".", "..", "../sessions", "meta.info", session.id.upper()):
        assert kept.get(other) is None


def test_what_a_killed_server_was_receiving_goes(kept):
    session = added(kept)
    half = kept.folder / ".labelrounds-half"
    half.mkdir()
    (half / "a.nii").write_bytes(b"half")
    assert kept.remove_expired() == 0 and half.is_dir()
    age(half, 2 * HOUR)
    kept.remove_expired()
    assert not half.exists() and session.image.is_file()


def test_a_full_disk_leaves_nothing_of_what_was_sent(kept):
    class Full(io.BytesIO):
        def read(self, *_):
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OutOfSpace):
        kept.add({"1.dcm": io.BytesIO(b"one"), "2.dcm": Full()})
    assert list(kept.folder.iterdir()) == []


def test_a_disk_without_room_for_the_first_folder_is_reported(kept, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(OutOfSpace):
        added(kept)


def test_a_session_in_use_outlives_any_clearing_up(kept):
    session, over = added(kept), threading.Event()
    age(session.image.parent, 2 * HOUR)

    def use() -> None:
        while not over.is_set():
            kept.get(session.id)

    user = threading.Thread(target=use)
    user.start()
    removed = sum(kept.remove_expired() for _ in range(300))
    over.set()
    user.join()
    assert removed == 0 and session.image.is_file()
