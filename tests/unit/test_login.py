"""Who is calling: keys, logins that last some hours, OpenID Connect, and what is never written down."""

import asyncio
import base64
import hmac
import json
import logging
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from joserfc import jwt
from joserfc.jwk import ECKey, RSAKey

from labelrounds import login as login_module
from labelrounds.access import HOST_ROLES, user_with
from labelrounds.addresses import client_key, listens_on_loopback
from labelrounds.errors import BadInput, Busy, Conflict, NotFound, NotLoggedIn, Overloaded
from labelrounds.listening import Listening
from labelrounds.login import Login
from labelrounds.oidc import Issuer, issuer_of
from labelrounds.redaction import hide_secrets, without_secrets
from labelrounds.settings import ServerSettings, server_settings
from labelrounds.users import UserFile

ISSUER, AUDIENCE = "https://login.example/realms/radiology", "labelrounds"
SIGNING, OTHER = (RSAKey.generate_key(2048, {"kid": kid, "use": "sig"}) for kid in ("one", "two"))


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(login_module, "SLOWED_S", 0)


@pytest.fixture
def users(tmp_path) -> UserFile:
    return UserFile(tmp_path / "users.json")


def whose(login, shown, address="127.0.0.1"):
    return asyncio.run(login.identify(shown, address))


def basic(name, key):
    return "Basic " + base64.b64encode(f"{name}:{key}".encode()).decode()


# Keys


def test_the_file_holds_no_key_and_is_its_owners_alone(users):
    key = users.add("ann", "annotator")
    assert len(key) > 43 and key not in users.path.read_text()
    assert users.path.stat().st_mode & 0o777 == 0o600
    assert {path.name for path in users.path.parent.iterdir()} == {"users.json", "users.lock"}


@pytest.mark.parametrize("name", ["", "../x", "a b", "a/b", "a\0", "-a", "x" * 65, "ä"])
def test_a_name_that_no_log_should_hold_is_refused(users, name):
    with pytest.raises(BadInput, match="user name"):
        users.add(name, "user")
    assert not users.exists()


def test_a_user_has_one_key_and_one_role_of_four(users):
    users.add("ann", "user")
    with pytest.raises(Conflict, match="ann"):
        users.add("ann", "admin")
    with pytest.raises(BadInput, match="boss"):
        users.add("bob", "boss")
    with pytest.raises(NotFound, match="bob"):
        users.remove("bob")


def test_users_added_at_once_are_all_there(users):
    threads = [threading.Thread(target=UserFile(users.path).add, args=(f"u{i}", "user")) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(users.accounts()) == [f"u{i}" for i in range(8)]


BROKEN = ["{", "[]", '{"users": {"a": {}}}', '{"users": {"../a": {"role": "user", "sha256": "", "created": ""}}}']
BROKEN += ['{"users": {"a": {"role": "user", "sha256": "%s", "created": ""}}}' % ("\\u00e4" * 64)]
BROKEN += ['{"users": {"a": {"role": "root", "sha256": "%s", "created": ""}}}' % ("0" * 64)]


@pytest.mark.parametrize("content", BROKEN)
def test_a_broken_file_lets_nobody_in_and_is_said_at_the_start(users, content):
    login = Login(ServerSettings(), users)
    users.path.write_text(content)
    users.path.chmod(0o600)
    with pytest.raises(BadInput, match=r"users\.json"):
        users.accounts()
    with pytest.raises(Overloaded):
        whose(login, "Bearer lrk_x")


def test_a_file_that_others_may_write_to_lets_nobody_in(users):
    key = users.add("ann", "user")
    users.path.chmod(0o660)
    users.path.touch()
    with pytest.raises(Overloaded):
        whose(Login(ServerSettings(), users), f"Bearer {key}")


def test_roles_include_those_below(users):
    key = users.add("ann", "reviewer")
    who = whose(Login(ServerSettings(), users), f"Bearer {key}")
    assert who.roles == [HOST_ROLES[role] for role in ("user", "annotator", "reviewer")]


def test_the_last_user_to_go_leaves_the_door_closed(users):
    key = users.add("ann", "user")
    login = Login(ServerSettings(), users)
    users.remove("ann")
    for shown in (f"Bearer {key}", ""):
        with pytest.raises(NotLoggedIn):
            whose(login, shown)
    assert Login(ServerSettings(), users).required
    users.path.unlink()
    assert login.required  # until it is started anew


def test_a_first_user_closes_a_server_that_runs(users):
    login = Login(ServerSettings(), users)
    assert whose(login, "").roles
    users.add("ann", "user")
    with pytest.raises(NotLoggedIn):
        whose(login, "")


WRONG = [
    "Bearer lrk_nope",
    "Bearer lrs_nope",
    "Bearer nope",
    "Basic nope",
    basic("bob", "{}"),
    basic("ann", "x"),
    "Digest {}",
]


@pytest.mark.parametrize("shown", WRONG)
def test_what_is_wrong_is_refused_in_the_same_words(users, shown):
    key = users.add("ann", "user")
    users.add("bob", "user")
    shown = basic("bob", key) if shown == basic("bob", "{}") else shown.format(key)
    with pytest.raises(NotLoggedIn, match=login_module.REFUSED):
        whose(Login(ServerSettings(), users), shown)


def test_ten_wrong_ones_of_an_address_in_a_row_make_it_wait_but_not_who_is_right(users, monkeypatch):
    key = users.add("ann", "user")
    login = Login(ServerSettings(), users)
    for _ in range(10):
        with pytest.raises(NotLoggedIn):
            whose(login, "Bearer lrk_guess")
    with pytest.raises(Busy, match="try again in"):
        whose(login, "Bearer lrk_guess")
    with pytest.raises(Busy):
        asyncio.run(login.token("ann", "lrk_guess", "127.0.0.1"))
    assert asyncio.run(login.token("ann", key, "127.0.0.1"))
    with pytest.raises(NotLoggedIn):
        whose(login, "Bearer lrk_guess", "10.0.0.1")
    assert whose(login, f"Bearer {key}").username == "ann"


@pytest.mark.parametrize(
    ("address", "key"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::/64"),
        ("testclient", "testclient"),
    ],
)
def test_clients_are_counted_by_address_and_of_ipv6_by_network(address, key):
    assert client_key(address) == key


def test_logins_of_before_a_restart_make_nobody_wait(users):
    key = users.add("ann", "user")
    token = asyncio.run(Login(ServerSettings(), users).token("ann", key, ""))["access_token"]
    login = Login(ServerSettings(), users)
    for _ in range(20):
        with pytest.raises(NotLoggedIn):
            whose(login, f"Bearer {token}")


def test_the_hosts_own_switch_alone_lets_nobody_in(users, monkeypatch):
    monkeypatch.setattr(login_module.host_settings, "MONAI_LABEL_AUTH_ENABLE", True)
    for shown in ("", "Bearer x", basic("a", "b")):
        with pytest.raises(NotLoggedIn):
            whose(Login(ServerSettings(), users), shown)


def test_a_login_ends_after_its_hours_and_with_the_process(users):
    key = users.add("ann", "user")
    login = Login(ServerSettings(), users)
    token = asyncio.run(login.token("ann", key, ""))["access_token"]
    assert whose(login, f"Bearer {token}").username == "ann"
    with pytest.raises(NotLoggedIn):
        whose(Login(ServerSettings(), users), f"Bearer {token}")
    ended = Login(ServerSettings(session_hours=1e-9), users)
    token = asyncio.run(ended.token("ann", key, ""))["access_token"]
    with pytest.raises(NotLoggedIn, match="expired"):
        whose(ended, f"Bearer {token}")


def test_a_case_that_was_handed_out_may_be_fetched_once_from_there_and_as_a_user_alone(users):
    users.add("ann", "admin")
    login, who = Login(ServerSettings(), users), user_with("ann", "admin")
    login.hand_out(who, "10.0.0.1", "case")
    assert login.fetches("10.0.0.2", "case") is None
    assert login.fetches("10.0.0.1", "other") is None
    fetched = login.fetches("10.0.0.1", "case")
    assert (fetched.username, fetched.roles) == ("ann", [HOST_ROLES["user"]])
    assert login.fetches("10.0.0.1", "case") is None
    off = Login(ServerSettings(download_s=0), users)
    off.hand_out(who, "10.0.0.1", "case")
    assert off.fetches("10.0.0.1", "case") is None


# OpenID Connect


class LoginServer(HTTPServer):
    """An issuer on loopback: publishes keys, and gives a token for one name and password."""

    def __init__(self):
        self.keys, self.asked, self.token, self.status = [SIGNING], [], "", 200
        super().__init__(("127.0.0.1", 0), LoginPage)
        self.url = f"http://127.0.0.1:{self.server_port}"


class LoginPage(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        self.reply(self.server.status, {"keys": [key.as_dict(private=False) for key in self.server.keys]})

    def do_POST(self):
        form = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.server.asked.append(form)
        right = "username=ann" in form and "password=secret" in form
        self.reply(200, {"access_token": self.server.token}) if right else self.reply(401, {"error": "no"})

    def reply(self, status, content):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Location", "/elsewhere")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def login_server():
    server = LoginServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def settings(login_server) -> ServerSettings:
    return ServerSettings(
        oidc_issuer=ISSUER,
        oidc_audience=AUDIENCE,
        oidc_jwks_url=login_server.url + "/certs",
        oidc_token_url=login_server.url + "/token",
        oidc_client_id="labelrounds",
        oidc_timeout_s=2,
    )


def claims(**changed):
    known = {
        "iss": ISSUER,
        "aud": [AUDIENCE, "account"],
        "exp": time.time() + 300,
        "sub": "1",
        "preferred_username": "ann",
    }
    known |= {"realm_access": {"roles": ["offline", "labelrounds-user", "labelrounds-annotator"]}} | changed
    return {name: value for name, value in known.items() if value is not None}


def signed(key=SIGNING, algorithm="RS256", header=None, **changed):
    kid = {"kid": key.kid} if key.kid else {}
    return jwt.encode({"alg": algorithm, **kid, **(header or {})}, claims(**changed), key, [algorithm])


def test_a_token_of_the_issuer_is_its_users_with_the_roles_that_it_names(settings, login_server):
    issuer = Issuer(settings)
    for _ in range(3):
        who = issuer.user(signed())
    assert (who.username, who.roles) == ("ann", [HOST_ROLES["user"], HOST_ROLES["annotator"]])
    assert login_server.asked == ["/certs"]
    assert issuer.user(signed(realm_access={"roles": ["other"]})).roles == []
    assert issuer.user(signed(realm_access="x", preferred_username="a\nb")).username == "1"


CHANGED = [
    {"iss": "https://evil.example"},
    {"iss": None},
    {"aud": "account"},
    {"aud": None},
    {"exp": None},
    {"exp": "never"},
    {"nbf": 4_000_000_000},  # of the year 2096
]


@pytest.mark.parametrize("changed", CHANGED, ids=[f"{next(iter(one))}-{number}" for number, one in enumerate(CHANGED)])
def test_a_token_for_somebody_else_or_another_time_is_refused(settings, changed):
    assert Issuer(settings).user(signed(**changed)) is None


def test_an_expired_token_says_so(settings):
    with pytest.raises(NotLoggedIn, match="expired"):
        Issuer(settings).user(signed(exp=time.time() - 120))


def test_a_token_that_the_issuer_did_not_sign_is_refused(settings):
    issuer = Issuer(settings)
    head, body, signature = signed().split(".")
    none = base64.urlsafe_b64encode(b'{"alg":"none","kid":"one"}').rstrip(b"=").decode()
    shared = base64.urlsafe_b64encode(b'{"alg":"HS256","kid":"one"}').rstrip(b"=").decode()
    mac = hmac.digest(SIGNING.as_pem(private=False), f"{shared}.{body}".encode(), "sha256")
    forged = f"{shared}.{body}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"
    tried = [f"{none}.{body}.", f"{head}.{body}.", f"{head}.{body[:-4]}.{signature}", "a.b.c", "", "x" * 9000]
    tried += [forged, signed(ECKey.generate_key("P-256", {"kid": "one"}), "ES256")]
    tried += [signed(OTHER), signed(RSAKey.import_key(OTHER.as_dict(private=True) | {"kid": "one"}))]
    assert [issuer.user(token) for token in tried] == [None] * len(tried)


def test_a_new_key_is_fetched_but_not_at_every_guess(settings, login_server):
    issuer = Issuer(settings)
    assert issuer.user(signed())
    login_server.keys = [OTHER]
    assert issuer.user(signed(OTHER)) is None  # within a minute of the last time
    issuer._tried -= 61
    assert issuer.user(signed(OTHER))
    assert issuer.user(signed()) is None
    assert len(login_server.asked) == 2


def test_an_issuer_that_fails_is_asked_again_in_a_minute_and_known_keys_go_on(settings, login_server):
    login_server.status = 302
    issuer = Issuer(settings)
    for _ in range(2):
        with pytest.raises(Overloaded, match="keys can't be fetched"):
            issuer.user(signed())
    assert login_server.asked == ["/certs"]  # nor followed to another address
    login_server.status = 200
    issuer._tried -= 61
    assert issuer.user(signed())
    issuer._fetched, issuer._tried, login_server.status = issuer._fetched - 7200, issuer._tried - 61, 500
    assert issuer.user(signed())


def test_name_and_password_go_to_the_issuer_alone(settings, login_server, users):
    login, login_server.token = Login(settings, users), signed()
    told = asyncio.run(login.token("ann", "secret", ""))
    assert told == {"access_token": login_server.token, "token_type": "Bearer"}
    assert whose(login, f"Bearer {told['access_token']}").username == "ann"
    with pytest.raises(NotLoggedIn, match=login_module.REFUSED):
        asyncio.run(login.token("ann", "wrong", ""))
    login_server.token = signed(aud="other")
    with pytest.raises(NotLoggedIn):
        asyncio.run(login.token("ann", "secret", ""))


HALF = [
    ({"oidc_issuer": "x"}, "LABELROUNDS_OIDC_AUDIENCE"),
    ({"oidc_issuer": "x", "oidc_audience": "y"}, "LABELROUNDS_OIDC_JWKS_URL"),
    ({"oidc_issuer": "x", "oidc_audience": "y", "oidc_jwks_url": "http://login.example"}, "https"),
    ({"oidc_issuer": "x", "oidc_audience": "y", "oidc_jwks_url": "file:///etc/passwd"}, "https"),
    ({"oidc_issuer": "x", "oidc_audience": "y", "oidc_jwks_url": "http://localhost@evil.example/"}, "https"),
]


@pytest.mark.parametrize(("given", "words"), HALF, ids=[words + str(len(given)) for given, words in HALF])
def test_half_an_issuer_is_said_at_the_start(given, words):
    with pytest.raises(BadInput, match=words):
        issuer_of(ServerSettings(**given))


# The start


def test_an_address_of_the_network_needs_a_login_or_a_word():
    """Reliability 27."""
    for host in ("0.0.0.0", "::", "192.0.2.1", ""):
        with pytest.raises(BadInput, match="labelrounds users add NAME"):
            Listening(host).check(login=False)
        Listening(host).check(login=True)
        Listening(host, insecure=True).check(login=False)
        assert not listens_on_loopback(host)
    for host in ("127.0.0.1", "localhost", "::1"):
        Listening(host).check(login=False)


@pytest.mark.parametrize("proxy", ["*", "proxy.example", "10.0.0.1,x"])
def test_a_proxy_is_named_by_its_address(proxy):
    with pytest.raises(BadInput, match="--behind-proxy"):
        Listening(proxy=proxy).check(login=True)
    Listening(proxy="10.0.0.1, 10.1.0.0/16").check(login=True)
    assert not Listening().options()["proxy_headers"]


def test_a_certificate_that_can_not_be_used_is_said_at_the_start(tmp_path):
    (tmp_path / "cert.pem").write_text("no certificate")
    with pytest.raises(BadInput, match="go together"):
        Listening(certificate=tmp_path / "cert.pem").check(login=True)
    for key in ("cert.pem", "nowhere.pem"):
        with pytest.raises(BadInput, match=r"cert\.pem"):
            Listening(certificate=tmp_path / "cert.pem", key=tmp_path / key).check(login=True)


@pytest.mark.parametrize(("name", "value"), [("SESSION_HOURS", "0"), ("HOSTS", "x"), ("OIDC_ROLES", '{"a": "root"}')])
def test_a_setting_that_is_not_allowed_is_named(monkeypatch, name, value):
    monkeypatch.setenv(f"LABELROUNDS_{name}", value)
    with pytest.raises(BadInput, match=f"LABELROUNDS_{name}"):
        server_settings.__wrapped__()


# Logs

SECRETS = [
    "lrk_" + "aB3-_x" * 7,
    "lrs_" + signed(),
    signed(),
    "Bearer abcdefgh.ijkl",
    "Basic YW5uOnNlY3JldA==",
    "http://orthanc:hunter2@pacs/dicom-web",
    "username=ann&password=hunter2",
    "{'username': 'ann', 'password': 'hunter2'}",
]


@pytest.mark.parametrize("text", SECRETS, ids=[text[:12] for text in SECRETS])
def test_no_secret_is_in_a_log(text, caplog):
    before = logging.getLogRecordFactory()
    hide_secrets(["the-pacs-password"])
    try:
        logger = logging.getLogger("a library's")
        logger.warning("got %s of %d", {"header": text}, 5)
        logger.warning(f"PASSWORD = the-pacs-password {text}")
        try:
            raise ValueError(text)
        except ValueError:
            logger.exception("failed")
    finally:
        logging.setLogRecordFactory(before)
    secret = without_secrets(text)
    assert secret != text and "***" in caplog.text
    assert text not in caplog.text and "hunter2" not in caplog.text and "the-pacs-password" not in caplog.text


def test_the_access_log_names_routes_and_no_images(caplog):
    before = logging.getLogRecordFactory()
    hide_secrets()
    try:
        with caplog.at_level("INFO", "uvicorn.access"):
            line = ("127.0.0.1:5", "GET", "/datastore/image?image=case", "1.1", 200)
            logging.getLogger("uvicorn.access").info('%s - "%s %s HTTP/%s" %d', *line)
    finally:
        logging.setLogRecordFactory(before)
    assert "/datastore/image HTTP" in caplog.text and "case" not in caplog.text
