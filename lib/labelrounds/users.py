"""The users who come in by a key of their own: ``users.json`` in the home folder, kept by ``labelrounds users``.

The file's existence turns the login on, also when nobody stands in it, so that removing the last user opens nothing.
It holds a SHA-256 of each key: a key is 256 random bits, which no list of likely passwords finds, so that a slow
password hash would only slow down each request.

Written whole or not at all and for its owner alone, under a lock, so that two commands lose neither's change; a
running server reads it again when it has changed.
"""

import hashlib
import hmac
import json
import os
import re
import secrets
import stat
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

from filelock import FileLock

from labelrounds import folders
from labelrounds.atomic import disk_errors, replacing
from labelrounds.errors import BadInput, Conflict, NotFound
from labelrounds.names import check_user

Role = Literal["user", "annotator", "reviewer", "admin"]
ROLES: tuple[Role, ...] = get_args(Role)  # each may do what those before it may
KEY_PREFIX = "lrk_"
_KEY_BYTES = 32
_HASH = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class Account:
    """A user: what may be done, the key's hash in hexadecimal, the day of the key."""

    role: str
    sha256: str
    created: str


def hash_of(key: str) -> str:
    """Return what is kept of a key."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


class UserFile:
    """The file of users, read again whenever it has changed."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or folders.home() / "users.json"
        self._seen: tuple[int, int, int] | None = None
        self._accounts: dict[str, Account] = {}

    def exists(self) -> bool:
        """Tell whether a login by keys was set up."""
        return self.path.exists()

    def accounts(self) -> dict[str, Account]:
        """Return the users by name; none where there is no file.

        Raises:
            BadInput: the file can't be read, is no list of users, or may be written by others than its owner.
        """
        try:
            now = self.path.stat()
            seen = (now.st_mtime_ns, now.st_size, now.st_ino)
            if seen != self._seen:
                if now.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                    raise BadInput(f"{self.path}: others than its owner may write to it; chmod 600 it")
                self._accounts, self._seen = _parse(self.path), seen
        except (FileNotFoundError, NotADirectoryError):
            self._accounts, self._seen = {}, None
        except OSError as error:
            raise BadInput(f"{self.path}: can't be read: {error.strerror}") from error
        return self._accounts

    def find(self, key: str, name: str | None = None) -> tuple[str, Account] | None:
        """Return whose key this is; of that name alone, where one is given."""
        digest, found = hash_of(key), None
        for known, account in self.accounts().items():  # all of them: the time must not say which was right
            if hmac.compare_digest(account.sha256, digest) and name in (None, known):
                found = known, account
        return found

    def add(self, name: str, role: str) -> str:
        """Add a user; return the key, which is kept nowhere.

        Raises:
            BadInput: a name or role that is not allowed, or an unusable file.
            Conflict: there is a user of that name.
        """
        check_user(name)
        if role not in ROLES:
            raise BadInput(f"role {role!r} is not one of {', '.join(ROLES)}")
        key = KEY_PREFIX + secrets.token_urlsafe(_KEY_BYTES)
        with self._changing() as accounts:
            if name in accounts:
                raise Conflict(f"user {name!r} has a key already; for another one, remove that user first")
            accounts[name] = Account(role, hash_of(key), time.strftime("%Y-%m-%d"))
            self._write(accounts)
        return key

    def remove(self, name: str) -> None:
        """Remove a user, whose key and logins are worth nothing from the next request on.

        Raises:
            NotFound: no such user.
        """
        with self._changing() as accounts:
            if accounts.pop(name, None) is None:
                raise NotFound(f"user {name[:200]!r} is not one of {', '.join(sorted(accounts)) or 'the users: none'}")
            self._write(accounts)

    def _changing(self) -> "_Changing":
        return _Changing(self)

    def _write(self, accounts: dict[str, Account]) -> None:
        content = {"users": {name: asdict(account) for name, account in sorted(accounts.items())}}
        with replacing(self.path, durable=True) as target:
            handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "w") as file:
                file.write(json.dumps(content, indent=1) + "\n")


class _Changing:
    """Holds the file's lock and gives the users as they stand."""

    def __init__(self, users: UserFile) -> None:
        self._users = users
        self._lock = FileLock(users.path.with_suffix(".lock"), mode=0o600)

    def __enter__(self) -> dict[str, Account]:
        with disk_errors(self._users.path):
            self._lock.acquire()
        try:
            return dict(self._users.accounts())
        except BaseException:
            self._lock.release()
            raise

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def _parse(path: Path) -> dict[str, Account]:
    try:
        users = json.loads(path.read_text())["users"]
        accounts = {check_user(name): Account(**entry) for name, entry in users.items()}
        faulty = [name for name, one in accounts.items() if one.role not in ROLES or not _HASH.fullmatch(one.sha256)]
    except (ValueError, TypeError, KeyError, AttributeError, BadInput) as error:
        raise BadInput(
            f"{path}: is no list of users; put it back from a copy, or remove it and add them again"
        ) from error
    if faulty:
        raise BadInput(f"{path}: user {faulty[0]!r} has no role of {', '.join(ROLES)}, or no hash of a key")
    return accounts
