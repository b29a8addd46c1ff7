"""The images that clients have sent for a session."""

import os
import time
import uuid
from pathlib import Path

import pytest

from labelrounds.sessions import SessionStore

HOUR = 3600


@pytest.fixture
def kept(tmp_path) -> SessionStore:
    return SessionStore(str(tmp_path / "sessions"), HOUR)


def added(kept: SessionStore, folder: Path) -> tuple[str, Path]:
    """Return a session's id and its image."""
    sent = folder / "sent.nii"
    sent.write_bytes(b"an image")
    session_id, about = kept.add_session(str(sent))
    return session_id, Path(about.image)


def aged(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_an_id_says_nothing_of_the_machine_or_the_time(kept, tmp_path):
    first, second = (uuid.UUID(added(kept, tmp_path)[0]) for _ in range(2))
    assert first.version == second.version == 4 and first.node != second.node


def test_what_has_expired_goes_and_what_is_asked_for_stays(kept, tmp_path):
    old, asked_for, fresh = (added(kept, tmp_path) for _ in range(3))
    for session_id, _ in (old, asked_for):
        about = kept[session_id]
        about.last_access_ts -= 2 * HOUR
        kept._write_meta_info(session_id, about)
    kept.get_session(asked_for[0])
    assert kept.remove_expired() == 1
    assert not old[1].parent.exists() and asked_for[1].is_file() and fresh[1].is_file()


@pytest.mark.parametrize("description", [None, "", '{"name": "ab'], ids=["none", "empty", "torn"])
def test_an_image_without_a_description_goes_as_an_expired_one_does(kept, tmp_path, description):
    session_id, image = added(kept, tmp_path)
    other = added(kept, tmp_path)[1]
    about = image.parent / "meta.info"
    about.unlink()
    if description is not None:
        about.write_text(description)
    started_anew = SessionStore(kept.store_path, HOUR)
    assert started_anew.get_session(session_id) is None
    assert started_anew.remove_expired() == 0 and image.is_file()  # perhaps it is just being added
    aged(image.parent, 2 * HOUR)
    assert started_anew.remove_expired() == 1
    assert not image.exists() and other.is_file()
