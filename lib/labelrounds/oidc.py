"""Users of the hospital's own login: tokens of an OpenID Connect issuer, checked here without asking it each time.

The issuer's public keys are fetched when they are first needed, when a token names one that isn't known, and after an
hour, but never twice within a minute; while the issuer can't be reached the last ones go on for a day. Signatures by a
shared secret, and unsigned tokens, are not among the algorithms. Called from threads, as a fetch may take its time; a
lock lets one of them fetch.
"""

import json
import logging
import threading
import time
from typing import Any

import labelrounds.host

# isort: split
import requests
from joserfc import jwt
from joserfc.errors import ExpiredTokenError, InvalidKeyIdError, JoseError
from joserfc.jwk import Key, KeySet

from labelrounds.access import User, user_with
from labelrounds.addresses import is_loopback, name_in
from labelrounds.errors import BadInput, NotLoggedIn, Overloaded
from labelrounds.settings import ServerSettings
from labelrounds.users import ROLES

__all__ = ["ALGORITHMS", "Issuer", "issuer_of", "labelrounds"]

logger = logging.getLogger(__name__)

ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
CLOCKS_APART_S = 60
_KEPT_S, _LONGEST_KEPT_S, _LEAST_PAUSE_S = 3600.0, 24 * 3600.0, 60.0
_LARGEST_ANSWER = 1 << 20
_LONGEST_NAME = 100


def issuer_of(settings: ServerSettings) -> "Issuer | None":
    """Return the issuer that the settings name, if any.

    Raises:
        BadInput: a part is missing, or an address is not one to send tokens or passwords to.
    """
    if not settings.oidc_issuer:
        return None
    for name in ("oidc_audience", "oidc_jwks_url"):
        if not getattr(settings, name):
            raise BadInput(f"LABELROUNDS_{name.upper()} is needed with LABELROUNDS_OIDC_ISSUER")
    for name in ("oidc_jwks_url", "oidc_token_url"):
        url = getattr(settings, name)
        local = url.startswith("http://") and _is_local(url)
        if url and not (url.startswith("https://") or local):
            raise BadInput(f"LABELROUNDS_{name.upper()} {url!r} must begin with https:// (http:// on this machine)")
    return Issuer(settings)


class Issuer:
    """Checks tokens of one issuer, and passes a name and password on to it."""

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self._claims = jwt.JWTClaimsRegistry(
            leeway=CLOCKS_APART_S,
            iss={"essential": True, "value": settings.oidc_issuer},
            aud={"essential": True, "value": settings.oidc_audience},
            exp={"essential": True},
        )
        self._keys: list[Key] = []
        self._fetched = self._tried = -_LONGEST_KEPT_S
        self._lock = threading.Lock()

    def user(self, token: str) -> User | None:
        """Return whose token this is, with the roles that it names; None where it isn't the issuer's or not for us.

        Raises:
            NotLoggedIn: it has expired.
            Overloaded: the issuer's keys are not known, and it doesn't answer.
        """
        try:
            decoded = jwt.decode(token, lambda found: self._key(found.headers().get("kid")), ALGORITHMS)
            self._claims.validate(decoded.claims)
        except ExpiredTokenError:
            raise NotLoggedIn("the login has expired; log in again") from None
        except (JoseError, ValueError) as error:
            logger.info("a token of OpenID Connect was refused: %s", type(error).__name__)
            return None
        return self._user(decoded.claims)

    def token(self, name: str, password: str) -> str | None:
        """Return a token for a name and password; None where the issuer refuses them, or isn't to be asked.

        Raises:
            Overloaded: it doesn't answer.
        """
        settings = self._settings
        if not settings.oidc_token_url:
            return None
        form = {"grant_type": "password", "client_id": settings.oidc_client_id, "username": name, "password": password}
        if secret := settings.oidc_client_secret.get_secret_value():
            form["client_secret"] = secret
        status, answer = self._ask("POST", settings.oidc_token_url, form | {"scope": "openid"})
        token = answer.get("access_token") if isinstance(answer, dict) else None
        if status in (400, 401, 403):
            return None
        if status != 200 or not isinstance(token, str):
            raise Overloaded(f"the login server answered {status}; try again, or tell its administrator")
        return token

    def _user(self, claims: dict[str, Any]) -> User:
        found: Any = claims
        for part in self._settings.oidc_roles_claim.split("."):
            found = found.get(part) if isinstance(found, dict) else None
        named = [found] if isinstance(found, str) else found if isinstance(found, list) else []
        roles = {
            self._settings.oidc_roles[one] for one in named if isinstance(one, str) and one in self._settings.oidc_roles
        }
        name, email = _text(claims.get(self._settings.oidc_name_claim)), _text(claims.get("email"))
        name = name or _text(claims.get("sub")) or "unnamed"
        if not roles:
            return User(username=name, email=email, roles=[])
        return user_with(name, max(roles, key=ROLES.index), email, _text(claims.get("name")))

    def _key(self, kid: str | None) -> Key:
        with self._lock:
            now = time.monotonic()
            found = self._find(kid)
            stale = now - self._fetched > _KEPT_S
            if (found is None or stale) and now - self._tried > _LEAST_PAUSE_S:
                self._fetch(now)
                found = self._find(kid)
            if now - self._fetched >= _LONGEST_KEPT_S:
                raise Overloaded("the login server's keys can't be fetched; try again, or tell its administrator")
        if found is None:
            raise InvalidKeyIdError("no such key")
        return found

    def _find(self, kid: str | None) -> Key | None:
        if kid is None:
            return self._keys[0] if len(self._keys) == 1 else None
        return next((key for key in self._keys if key.kid == kid), None)

    def _fetch(self, now: float) -> None:
        self._tried = now
        try:
            status, answer = self._ask("GET", self._settings.oidc_jwks_url)
            if status != 200 or not isinstance(answer, dict):
                raise ValueError(f"status {status}")
            signing = [key for key in answer["keys"] if key.get("kty") != "oct" and key.get("use", "sig") == "sig"]
            self._keys = [KeySet.import_key_set({"keys": [key]}).keys[0] for key in signing]
        except (Overloaded, JoseError, ValueError, KeyError, TypeError, AttributeError) as error:
            logger.warning("the keys of the OpenID Connect issuer were not fetched: %s", error)
            return
        self._fetched = now

    def _ask(self, method: str, url: str, form: dict[str, str] | None = None) -> tuple[int, Any]:
        """Return the status and what was answered as JSON; nothing is followed to another address."""
        try:
            with requests.request(
                method, url, data=form, timeout=self._settings.oidc_timeout_s, allow_redirects=False, stream=True
            ) as answer:
                content = answer.raw.read(_LARGEST_ANSWER + 1, decode_content=True)
                status = answer.status_code
        except (requests.RequestException, OSError) as error:
            raise Overloaded(f"the login server does not answer ({type(error).__name__}); try again") from None
        try:
            return status, json.loads(content) if len(content) <= _LARGEST_ANSWER else None
        except ValueError:
            return status, None


def _is_local(url: str) -> bool:
    name = name_in(url.removeprefix("http://").partition("/")[0])
    return name == "localhost" or is_loopback(name)


def _text(value: object) -> str | None:
    """Return a claim that may stand in a log: printable, and not long."""
    return value[:_LONGEST_NAME] if isinstance(value, str) and value and value.isprintable() else None
