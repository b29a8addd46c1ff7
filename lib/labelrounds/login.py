"""Who is calling: by a key of ``users.json``, by a login that lasts some hours, or by a token of OpenID Connect.

Slicer's extension asks for a name and a password and then shows a token. With a key as password it gets a token of our
own, signed with a secret that lives as long as this process: Slicer logs what it is answered, and what lies in its log
is then worth nothing the next day, or once the user is removed. Browsers and ``curl -u`` may show name and key with
each request (HTTP Basic).

Its download of the case that Next Sample has just handed out shows no token, at an address that nothing of an answer
can change. So that one image may be fetched once, within a minute, from the address to which it was handed out; it
counts as that user's. ``LABELROUNDS_DOWNLOAD_S=0`` turns it off.

The login stays on for the process's life once it was on, whatever becomes of the file. All state is in memory, kept by
the event loop's thread or under a lock.
"""

import base64
import binascii
import logging
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NoReturn

import labelrounds.host

# isort: split
import anyio
from anyio import CapacityLimiter, to_thread
from joserfc import jwt
from joserfc.errors import ExpiredTokenError, JoseError
from joserfc.jwk import OctKey
from monailabel.config import settings as host_settings

from labelrounds.access import EVERYBODY, User, user_with
from labelrounds.addresses import client_key
from labelrounds.allowance import Allowance
from labelrounds.errors import BadInput, Busy, NotLoggedIn, Overloaded
from labelrounds.oidc import Issuer, issuer_of
from labelrounds.settings import ServerSettings
from labelrounds.users import KEY_PREFIX, Account, UserFile

__all__ = ["REFUSED", "Login", "labelrounds", "login_is_set_up"]

logger = logging.getLogger(__name__)

SESSION_PREFIX = "lrs_"
REFUSED = "no such user and key, or the login is no longer valid"
MISSING = "log in first: in Slicer with your user name and your key as password, elsewhere with the key as bearer token"
SLOWED_S = 0.5
_FAILURES, _FAILURES_PER_S = 10, 1 / 6
_MOST_HANDED_OUT = 1000
_MOST_ASKING = 8  # threads that wait for the issuer


def login_is_set_up(settings: ServerSettings) -> bool:
    """Tell whether callers have to log in.

    Raises:
        BadInput: the login's settings, or the file of users, are not usable.
    """
    users = UserFile()
    users.accounts()
    return bool(users.exists() or issuer_of(settings) or host_settings.MONAI_LABEL_AUTH_ENABLE)


class Login:
    """Finds out who is calling."""

    def __init__(self, settings: ServerSettings, users: UserFile | None = None, issuer: Issuer | None = None) -> None:
        self._users, self._issuer = users or UserFile(), issuer or issuer_of(settings)
        self._session_s, self._download_s = settings.session_hours * 3600, settings.download_s
        self._secret = OctKey.import_key(secrets.token_bytes(32))
        self._failures = Allowance(_FAILURES_PER_S, _FAILURES)
        self._handed_out: OrderedDict[tuple[str, str], tuple[User, float]] = OrderedDict()
        self._lock = threading.Lock()
        self._threads: CapacityLimiter | None = None
        # The host's own switch lets nobody in unless there is a login of ours.
        self._required = bool(self._issuer or host_settings.MONAI_LABEL_AUTH_ENABLE)

    @property
    def required(self) -> bool:
        """Tell whether callers have to log in; from the first user on, for as long as the process lives."""
        self._required = self._required or self._users.exists()
        return self._required

    async def identify(self, authorization: str, address: str) -> User:
        """Return who shows this ``Authorization`` header.

        Raises:
            NotLoggedIn: it shows nothing, or nothing that is worth something.
            Busy: too many wrong ones came from that address.
            Overloaded: the issuer, or the file of users, can't be asked.
        """
        if not self.required:
            return EVERYBODY
        scheme, _, shown = authorization.partition(" ")
        if not shown.strip():
            raise NotLoggedIn(MISSING)
        user = await self._whose(scheme.lower(), shown.strip())
        if user is None:
            await self._refuse(address)
        return user

    async def token(self, name: str, password: str, address: str) -> dict[str, Any]:
        """Return a token for a user's name and key, or for a name and password that the issuer knows.

        Raises:
            NotLoggedIn: they are not right.
            Busy: too many wrong ones came from that address.
        """
        if account := self._account(password, name):  # a key can't be guessed, so nobody has to wait who has it
            return {"access_token": self._session(*account), "token_type": "Bearer", "expires_in": self._session_s}
        self._check_failures(address)
        if self._issuer is not None and not password.startswith(KEY_PREFIX):
            token = await self._in_thread(self._issuer.token, name, password)
            if token and await self._in_thread(self._issuer.user, token):
                return {"access_token": token, "token_type": "Bearer"}
        await self._refuse(address)

    def hand_out(self, who: User, address: str, image: str) -> None:
        """Let an image that was handed out be fetched once without a token; see above."""
        if not self.required or not self._download_s:
            return
        with self._lock:
            self._handed_out[address, image] = who, time.monotonic() + self._download_s
            self._handed_out.move_to_end((address, image))
            if len(self._handed_out) > _MOST_HANDED_OUT:
                self._handed_out.popitem(last=False)

    def fetches(self, address: str, image: str) -> User | None:
        """Return as whom an image may be fetched without a token; the next time it may not."""
        with self._lock:
            who, until = self._handed_out.pop((address, image), (None, 0.0))
        return None if who is None or time.monotonic() > until else user_with(who.username, "user", who.email, who.name)

    async def _whose(self, scheme: str, shown: str) -> User | None:
        if scheme == "basic":
            name, _, key = _decoded(shown).partition(":")
            return self._user(self._account(key, name))
        if scheme != "bearer":
            return None
        if shown.startswith(KEY_PREFIX):
            return self._user(self._account(shown))
        if shown.startswith(SESSION_PREFIX):
            return self._session_user(shown.removeprefix(SESSION_PREFIX))
        return None if self._issuer is None else await self._in_thread(self._issuer.user, shown)

    def _account(self, key: str, name: str | None = None) -> tuple[str, Account] | None:
        with _file_of_users():
            return self._users.find(key, name)

    @staticmethod
    def _user(found: tuple[str, Account] | None) -> User | None:
        return None if found is None else user_with(found[0], found[1].role)

    def _session(self, name: str, account: Account) -> str:
        claims = {"sub": name, "key": account.sha256[:16], "exp": int(time.time() + self._session_s)}
        return SESSION_PREFIX + jwt.encode({"alg": "HS256"}, claims, self._secret, ["HS256"])

    def _session_user(self, token: str) -> User | None:
        try:
            claims = jwt.decode(token, self._secret, ["HS256"]).claims
            jwt.JWTClaimsRegistry(exp={"essential": True}).validate(claims)
        except ExpiredTokenError:
            raise NotLoggedIn("the login has expired; log in again") from None
        except (JoseError, ValueError):  # after a restart, of everybody: it must make nobody wait
            raise NotLoggedIn(REFUSED) from None
        with _file_of_users():
            account = self._users.accounts().get(claims["sub"])
        if account is None or account.sha256[:16] != claims["key"]:
            return None
        return user_with(claims["sub"], account.role)

    async def _refuse(self, address: str) -> NoReturn:
        self._check_failures(address)
        self._failures.take(client_key(address))
        logger.warning("a login from %s was refused", address)
        await anyio.sleep(SLOWED_S)
        raise NotLoggedIn(REFUSED)

    def _check_failures(self, address: str) -> None:
        if (wait_s := self._failures.wait_s(client_key(address))) > 0:
            raise Busy(f"too many logins from here were wrong; try again in {int(wait_s) + 1} s")

    async def _in_thread(self, call: Any, *arguments: Any) -> Any:
        if self._threads is None:
            self._threads = CapacityLimiter(_MOST_ASKING)
        return await to_thread.run_sync(partial(call, *arguments), limiter=self._threads)


@contextmanager
def _file_of_users() -> Iterator[None]:
    try:
        yield
    except BadInput as error:
        logger.error("nobody can log in by a key: %s", error)
        raise Overloaded("the file of users can't be read; tell the administrator, whose log says why") from None


def _decoded(basic: str) -> str:
    try:
        return base64.b64decode(basic, validate=True).decode()
    except (binascii.Error, ValueError):
        return ""
