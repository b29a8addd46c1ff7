"""What a disk says that can't be written to reaches the user in words."""

import errno
import os

import pytest

from labelrounds.atomic import disk_errors
from labelrounds.errors import OutOfSpace, Unwritable


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EIO], ids=errno.errorcode.get)
def test_a_disk_that_takes_nothing_is_an_error_for_the_user(tmp_path, number):
    expected = r"label\.nrrd: not written, .*; its folder must be writable"
    with pytest.raises(Unwritable, match=expected), disk_errors(tmp_path / "label.nrrd"):
        raise OSError(number, os.strerror(number))


def test_a_full_disk_asks_for_space(tmp_path):
    with pytest.raises(OutOfSpace, match="free some space first"), disk_errors(tmp_path / "label.nrrd"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_any_other_error_stays_what_it_is(tmp_path):
    with pytest.raises(FileNotFoundError), disk_errors(tmp_path / "label.nrrd"):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
