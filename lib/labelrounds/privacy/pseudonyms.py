"""What takes the place of the names of patients, studies and files; nobody without the key can map back.

A pseudonym is the HMAC-SHA256 (RFC 2104) of what it replaces. The same key gives the same pseudonyms in every run; a
key that is made for one run is forgotten with it.
"""

import hmac
import os
import re
import secrets
import uuid
from pathlib import Path

from labelrounds.atomic import disk_errors
from labelrounds.errors import BadInput

_LEAST_BYTES = 16
_MOST_DAYS = 3650
_STANDARD = "1.2.840.10008."


class Pseudonyms:
    """The pseudonyms of one key."""

    def __init__(self, key: bytes | None = None) -> None:
        """Take a key, or make one that is forgotten with this object."""
        self._key = key or secrets.token_bytes(32)

    def uid(self, uid: str) -> str:
        """Return the UID that stands for another, ``2.25.`` and 128 bits (DICOM PS3.5, B.2); the standard's stay."""
        if not uid or uid.startswith(_STANDARD):
            return uid
        return f"2.25.{uuid.UUID(bytes=self._digest('uid', uid)[:16], version=5).int}"

    def patient(self, identity: str) -> str:
        """Return the id that stands for a patient; "" for ""."""
        return f"P{self._digest('patient', identity).hex()[:16].upper()}" if identity else ""

    def file(self, stem: str) -> str:
        """Return the name, without ending, that stands for a file's."""
        return f"image_{self._digest('file', stem).hex()[:16]}"

    def folder(self, name: str) -> str:
        """Return the name that stands for a folder's."""
        return f"folder_{self._digest('folder', name).hex()[:16]}"

    def days(self, identity: str) -> int:
        """Return by how many days a patient's dates move back, from 1 to 3650."""
        return 1 + int.from_bytes(self._digest("days", identity)[:8], "big") % _MOST_DAYS

    def _digest(self, kind: str, value: str) -> bytes:
        return hmac.digest(self._key, f"{kind}\0{value}".encode("utf-8", "surrogateescape"), "sha256")


def key_of(file: Path) -> bytes:
    """Return the key that a file holds in hexadecimal, making the file, for its owner alone, where there is none.

    Raises:
        BadInput: it holds something else, or fewer than 128 bits.
        OutOfSpace: it can't be written.
    """
    try:
        text = file.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        return _new_key(file)
    except (UnicodeDecodeError, OSError) as error:
        raise BadInput(f"secret {str(file)!r} can't be read: {type(error).__name__}") from error
    if not re.fullmatch(r"([0-9a-fA-F]{2})+", text) or len(text) < 2 * _LEAST_BYTES:
        raise BadInput(
            f"secret {str(file)!r} does not hold a key: {2 * _LEAST_BYTES} hexadecimal digits or more are one;"
            " name a file that is not there yet, and a key is made"
        )
    return bytes.fromhex(text)


def _new_key(file: Path) -> bytes:
    key = secrets.token_bytes(32)
    try:
        with disk_errors(file), os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as target:
            target.write(key.hex() + "\n")
    except FileNotFoundError as error:
        raise BadInput(f"secret {str(file)!r}: there is no folder {str(file.parent)!r}") from error
    return key
