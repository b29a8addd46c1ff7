"""What a request has to pass before anything of it is read, without a server round it."""

import asyncio
import json

import pytest
from starlette.responses import JSONResponse

from labelrounds.access import EVERYBODY, user_with
from labelrounds.doors import Doors
from labelrounds.errors import NotLoggedIn
from labelrounds.settings import ServerSettings

HOST = "127.0.0.1:8000"


class OneLogin:
    """A login, or none, where one key lets one user in."""

    def __init__(self, required: bool) -> None:
        self.required = required

    async def identify(self, authorization, address):
        if not self.required:
            return EVERYBODY
        if authorization != "Bearer right":
            raise NotLoggedIn("log in first")
        return user_with("ann", "user")

    def fetches(self, address, image):
        return user_with("slicer", "user") if image == "handed out" else None


async def echo(scope, receive, send):
    """Answer with who calls and how much was sent."""
    length, more = 0, True
    while more:
        message = await receive()
        length, more = length + len(message.get("body", b"")), message.get("more_body", False)
    name = scope["state"]["user"].username if "user" in scope.get("state", {}) else None
    await JSONResponse({"user": name, "length": length})(scope, receive, send)


def answer(error):
    return JSONResponse({"detail": str(error)}, error.status)


def doors(login=False, origins=(), app=echo, **settings):
    return Doors(app, OneLogin(login), ServerSettings(**settings), origins, answer)


def call(
    doors,
    path="/info/",
    method="GET",
    server="127.0.0.1",
    chunks=(b"",),
    query=b"",
    pause_s=0.0,
    root_path="",
    **headers,
):
    """Send a request through; return the status, the answer and its headers."""
    named = {"host": HOST} | {name.replace("_", "-"): value for name, value in headers.items() if value is not None}
    scope = {"type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": query}
    scope |= {"server": (server, 8000) if server else None, "client": ("127.0.0.1", 5), "http_version": "1.1"}
    scope["root_path"] = root_path
    scope["headers"] = [(name.encode(), value.encode()) for name, value in named.items()]
    left, sent = list(chunks), []

    async def receive():
        await asyncio.sleep(pause_s)
        return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

    async def send(message):
        sent.append(message)

    asyncio.run(doors(scope, receive, send))
    return sent[0]["status"], json.loads(sent[1]["body"]), dict(sent[0]["headers"])


def test_without_a_login_this_machine_may_do_all():
    assert call(doors())[:2] == (200, {"user": EVERYBODY.username, "length": 0})


@pytest.mark.parametrize("server", ["10.1.2.3", "192.168.0.5", "fe80::1", "2001:db8::1", "0.0.0.0", ""])
def test_without_a_login_no_other_machine_may_anything(server):
    """Reliability 27."""
    status, told, _ = call(doors(), server=server)
    assert status == 403
    assert "labelrounds users add" in told["detail"] and "LABELROUNDS_INSECURE" in told["detail"]
    assert call(doors(), "/", server=server)[0] == 403


@pytest.mark.parametrize("server", ["127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1"])
def test_an_address_of_this_machine_alone_is_none_of_the_network(server):
    assert call(doors(), server=server)[0] == 200


def test_insecure_lets_other_machines_in_and_a_login_those_who_log_in():
    assert call(doors(insecure=True), server="10.1.2.3", host="labels.example.org")[0] == 200
    assert call(doors(login=True), server="10.1.2.3", host="labels.example.org")[0] == 401
    status, told, _ = call(doors(login=True), server="10.1.2.3", authorization="Bearer right")
    assert (status, told["user"]) == (200, "ann")


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:8000", "", "[::1", "a@b"]
)
def test_a_name_that_was_made_to_point_here_is_refused(host):
    assert call(doors(), host=host)[0] == 403


@pytest.mark.parametrize("host", ["localhost:8000", "LOCALHOST", "127.0.0.1", "[::1]:8000", "labels.example.org:80"])
def test_names_of_this_machine_are_not(host):
    assert call(doors(hosts=["labels.example.org"]), host=host)[0] == 200


FOREIGN = [
    {"origin": "https://evil.example"},
    {"origin": "null"},
    {"origin": f"http://{HOST}.evil.example"},
    {"origin": "http://127.0.0.1:9000"},
    {"sec_fetch_site": "cross-site"},
    {"sec_fetch_site": "same-site"},
    {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate"},
]


@pytest.mark.parametrize("headers", FOREIGN, ids=map(str, FOREIGN))
@pytest.mark.parametrize("kind", ["application/json", "text/plain", "multipart/form-data; boundary=b"])
def test_a_page_of_another_site_changes_nothing(headers, kind):
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        status, told, _ = call(doors(), method=method, content_type=kind, **headers)
        assert status == 403 and "another site" in told["detail"]


def test_a_page_of_another_site_reads_nothing_but_may_link_here():
    assert call(doors(), sec_fetch_site="cross-site", sec_fetch_mode="no-cors")[0] == 403
    assert call(doors(), sec_fetch_site="cross-site", sec_fetch_mode="navigate")[0] == 200


def test_pages_of_this_server_and_of_named_sites_may_call_and_so_may_what_is_no_browser():
    assert call(doors(), method="POST", origin=f"http://{HOST}", sec_fetch_site="same-origin")[0] == 200
    named = doors(origins=["https://viewer.example"])
    assert call(named, method="POST", origin="https://viewer.example", sec_fetch_site="cross-site")[0] == 200
    assert call(doors(), method="POST")[0] == 200


def test_too_many_requests_of_a_client_have_to_wait():
    busy = doors(requests_per_second=2)
    statuses = [call(busy)[0] for _ in range(6)]
    assert statuses == [200] * 4 + [429] * 2


def test_strangers_have_to_wait_too():
    busy = doors(login=True, requests_per_second=2)
    assert [call(busy)[0] for _ in range(5)] == [401] * 4 + [429]
    assert call(busy, authorization="Bearer right")[0] == 200


def test_below_a_prefix_of_a_proxy_the_same_routes_are_open():
    assert call(doors(login=True), "/labels/auth/", root_path="/labels")[0] == 200
    assert call(doors(login=True), "/labels/info/", root_path="/labels")[0] == 401


@pytest.mark.parametrize("query", [b"image=handed+out&image=other", b"image=&image=handed+out", b"image=other", b""])
def test_one_image_that_was_handed_out_opens_the_door_to_no_other(query):
    closed = doors(login=True)
    assert call(closed, "/datastore/image", query=b"image=handed%20out")[1]["user"] == "slicer"
    assert call(closed, "/datastore/image", query=query)[0] == 401


def test_headers_that_no_client_sends_are_refused():
    assert call(doors(largest_headers_kb=2), x_long="x" * 3000)[0] == 431
    assert call(doors(largest_headers_kb=2), query=b"x" * 3000)[0] == 431


def test_a_scan_of_a_thousand_slices_passes_and_what_is_over_the_limit_does_not():
    files = {"content_type": "multipart/form-data; boundary=b", "method": "PUT"}
    ct = str(512 * 512 * 1000 * 2 + 1000)
    assert call(doors(), "/session/", content_length=ct, **files)[0] == 200
    for route in ("/session/", "/model/unet_spleen"):
        assert call(doors(), route, content_length=str(3 * 10**9), **files)[0] == 413
    assert call(doors(), "/session/", content_length="9" * 5000, **files)[0] == 413
    assert call(doors(), "/train/", content_length=ct, **files)[0] == 413  # it takes no files


def fault_of(doors, **request):
    """Return the error that reading the body raised, as FastAPI sees it."""
    with pytest.raises(Exception) as caught:
        call(doors, **request)
    return caught.value.status_code, caught.value.detail


def test_a_body_whose_length_nobody_said_is_counted():
    status, told = fault_of(doors(largest_body_mb=1), method="POST", chunks=[b"x" * 400_000] * 5)
    assert (status, told) == (413, "the request has more than the 1 MB that are allowed")
    assert call(doors(largest_body_mb=1), method="POST", chunks=[b"x" * 400_000] * 2)[1]["length"] == 800_000
    weights = {"method": "PUT", "path": "/model/unet_spleen", "content_type": "multipart/form-data; boundary=b"}
    assert fault_of(doors(largest_upload_mb=1), chunks=[b"x" * 400_000] * 3, **weights)[0] == 413


def test_a_body_that_never_ends_is_given_up():
    assert fault_of(doors(upload_pause_s=0.05), method="POST", pause_s=5)[0] == 408


def test_pages_may_not_be_framed_and_nothing_is_guessed_or_kept():
    async def page(scope, receive, send):
        await JSONResponse({}, headers={"content-type": "text/html", "x-frame-options": "DENY"})(scope, receive, send)

    headers = call(doors(app=page))[2]
    assert headers[b"x-content-type-options"] == b"nosniff" and headers[b"cache-control"] == b"no-store"
    assert headers[b"x-frame-options"] == b"DENY"  # as the route said
    assert b"frame-ancestors" in headers[b"content-security-policy"]
    assert b"content-security-policy" not in call(doors())[2]
