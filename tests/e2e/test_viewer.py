"""The rounds in a browser against the real server: what an annotator clicks and draws, and what the server then has."""

import re

import numpy as np
import pytest
import requests
from label_server import MODEL, QUICK_MODEL, LabelServer
from playwright.sync_api import expect
from relay import Relay
from viewer_user import Viewer, ViewerUser, open_browser

from labelrounds import phantoms

NAMES = list(phantoms.LABELS)
PAINTED, WITH = "spleen", NAMES.index("spleen") + 1


@pytest.fixture(scope="module")
def browser():
    with open_browser() as found:
        yield found


@pytest.fixture(scope="module")
def relay(session_server):
    """A network between the viewer and the server."""
    relay = Relay(session_server.url)
    yield relay
    relay.close()


@pytest.fixture(scope="module")
def viewer(relay, tmp_path_factory):
    viewer = Viewer(relay.url, tmp_path_factory.mktemp("viewer") / "viewer.log")
    yield viewer
    viewer.close()
    assert "Traceback" not in viewer.printed(), viewer.printed()


@pytest.fixture(scope="module")
def window(browser, viewer):
    """The annotator's browser window, which is a small one, as each of its pixels is drawn by the processor."""
    page = browser.new_page(viewport={"width": 1100, "height": 680})
    yield ViewerUser(page, viewer)
    page.close()


@pytest.fixture
def user(window, viewer, server, relay):
    """An annotator whose page asks nothing but the viewer, and says no error to the browser's console."""
    window.click("connect")
    window.says("Connected")
    window.use(MODEL)
    yield window
    relay.restore()
    own = (viewer.url, viewer.url.replace("http", "ws", 1), "data:", "blob:")
    assert [url for url in window.asked if not url.startswith(own)] == []
    assert window.errors == []


def label_of(server, image, grid):
    """Return an image's saved label in the values of the server's models, and the names in the order that was sent."""
    label, info = server.saved_label(image)
    names = [entry["name"] for entry in info["label_info"]]
    values = np.array([0, *(1 + NAMES.index(name) for name in names)])
    return values[label.on_grid_of(grid)], names


def test_round_in_the_browser_brings_the_server_the_voxels_that_were_drawn(user, server, studies, tmp_path):
    image = user.next_case()
    study = next(study for study in studies.values() if study.name == image)
    assert re.search(r"\w.{15,}\d more wait\.", user.shown("reason")) and "60 min" in user.shown("lease")
    assert user.labels() == NAMES
    bare = {view: user.coloured(view) for view in ("Red", "ThreeD")}
    user.segment()
    user.wait_until(lambda: all(user.coloured(view) > many + 2000 for view, many in bare.items()))
    names, prediction = server.predict(MODEL, image, tmp_path)
    predicted = prediction.on_grid_of(study.image)

    user.choose(PAINTED)
    user.tool("brush")
    user.make_brush_smaller()
    user.dab(right=60)
    user.tool("undo")
    user.wait_until(lambda: user.can("redo"))
    user.dab()
    user.wait_until(lambda: not user.can("redo"))
    user.submit()

    label, given = label_of(server, image, study.image)
    assert given == names == NAMES
    drawn = (label == WITH) & (predicted != WITH)
    assert np.array_equal(label[~drawn], predicted[~drawn])
    corners = np.argwhere(drawn)
    middle_mm = study.image.ijk_to_ras[:3, :3] @ (corners.min(0) + corners.max(0) - np.subtract(label.shape, 1)) / 2
    size_mm = np.ptp(corners, axis=0) * np.linalg.norm(study.image.ijk_to_ras[:3, :3], axis=0)
    assert np.abs(middle_mm).max() < 5  # it lies where it was drawn, and what was undone is gone
    assert size_mm.min() > 8 and np.ptp(size_mm) < 10  # and is a ball

    user.tool("eraser")  # as large as the brush
    user.dab()
    user.submit()
    user.wait_until(lambda: not np.array_equal(label_of(server, image, study.image)[0], label))
    erased = label_of(server, image, study.image)[0]
    assert np.array_equal(erased, np.where(drawn, 0, label))
    assert user.next_case() != image

    word = {"image": image, "verdict": "sent_back", "reason": "too small"}
    requests.post(f"{server.url}/rounds/review", json=word, timeout=60).raise_for_status()
    user.click("next")
    user.says(f"{image} is yours, with the label that was sent back")
    assert user.labels() == NAMES and "too small" in user.shown("reason")
    user.submit()
    assert np.array_equal(label_of(server, image, study.image)[0], erased)
    labels = {each["image"]: each for each in requests.get(f"{server.url}/rounds/", timeout=60).json()["labels"]}
    assert labels[image]["review"] == {}


def test_nobody_without_the_key_gets_in_nor_another_page_of_this_machine(viewer, user):
    cookie = {"Cookie": "; ".join(f"{one['name']}={one['value']}" for one in user.page.context.cookies())}
    assert viewer.key in cookie["Cookie"] and viewer.key not in user.page.url
    (kept,) = user.page.context.cookies()
    assert kept["httpOnly"] and kept["sameSite"] == "Strict"
    ask = lambda path, headers: requests.get(viewer.url + path, headers=headers, timeout=30)  # noqa: E731
    assert ask("/index.html", cookie).status_code == 200
    assert "default-src 'self'" in ask("/index.html", cookie).headers["Content-Security-Policy"]
    shake = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    shake |= {"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="}
    for path in ("/", "/index.html", "/ws", "/?key=wrong"):
        assert ask(path, shake if path == "/ws" else {}).status_code == 401
    for odd in ({"Host": "here:99999"}, {"Host": "[here"}, {"Cookie": kept["name"] + "=\xff"}):
        assert ask("/", odd).status_code in (400, 401)
    assert "default-src 'self'" in ask("/nothing", cookie).headers["Content-Security-Policy"]
    for origin in ("http://evil.example", viewer.url.rpartition(":")[0] + ":1", "null"):
        assert ask("/ws", {**shake, **cookie, "Origin": origin}).status_code == 403


REFUSALS = {
    "413 Content Too Large": ("", "This is larger than the server takes: so it is."),
    "503 Service Unavailable": ("Retry-After: 7\r\n", "can't do this now: so it is. Try again in 7 s."),
    "500 Internal Server Error": ("", "The server failed at this (status 500): so it is."),
}


def test_each_failure_is_a_sentence_and_leaves_a_usable_page(user, relay):
    for status, (header, sentence) in REFUSALS.items():
        relay.answer_with(f"HTTP/1.1 {status}\r\n{header}", b'{"detail": "so it is"}')
        user.click("next")
        user.warns(sentence)
    relay.restore()
    user.next_case()
    relay.hold()
    user.click("segment")
    user.says("Segmenting")
    user.click("cancel")
    user.says("Cancelled")
    user.click("segment")
    user.says("Segmenting")
    relay.cut()
    user.warns("was lost before it had answered")
    with relay.down():
        user.click("next")
        user.warns(f"No server answers at {relay.url}")
    relay.restore()
    user.segment()


@pytest.mark.slow
def test_what_was_drawn_is_neither_replaced_nor_thrown_away_without_asking(user, server, studies, tmp_path):
    image = user.next_case()
    study = next(study for study in studies.values() if study.name == image)
    user.choose(PAINTED)
    user.tool("brush")
    user.dab()
    user.wait_until(lambda: user.can("undo"))
    user.click("next")
    expect(user.page.locator(".question")).to_contain_text(f"What you have drawn on {image} is not submitted")
    user.answer("Cancel")
    user.click("segment")
    expect(user.page.locator(".question")).to_contain_text(PAINTED)
    user.answer("Keep them")
    user.says("has segmented")
    user.submit()
    kept = label_of(server, image, study.image)[0]
    user.tool("undo")
    user.wait_until(lambda: user.can("redo"))
    user.click("segment")
    user.answer("Replace them")
    user.says("has segmented")
    user.submit()
    user.wait_until(lambda: not np.array_equal(label_of(server, image, study.image)[0], kept))
    predicted = server.predict(MODEL, image, tmp_path)[1].on_grid_of(study.image)
    drawn = kept == WITH
    assert np.array_equal(label_of(server, image, study.image)[0], predicted)
    assert drawn.sum() > 20 and not np.array_equal(drawn, predicted == WITH)
    assert np.array_equal(kept[~drawn], np.where(predicted == WITH, 0, predicted)[~drawn])


@pytest.mark.slow
def test_image_of_the_list_opens_with_its_label_and_a_case_is_put_aside(user, server, studies):
    study = studies["oblique"]
    server.submit(study.name, study.truth_path, NAMES)
    user.click("connect")
    user.wait_until(lambda: user.page.evaluate("trame.state.get('RoundsState__images').length") == len(studies))
    user.open(study.name)
    assert user.labels() == NAMES
    user.submit()
    assert np.array_equal(label_of(server, study.name, study.image)[0], study.truth)
    user.open(studies["axial"].name)
    first = user.next_case()
    user.page.get_by_label("Put it aside, because").fill("moved while scanned")
    user.click("skip")
    user.says(f"{first} is put aside")
    aside = requests.get(f"{server.url}/rounds/", timeout=60).json()["aside"]
    assert [(entry["image"], entry["reason"]) for entry in aside] == [(first, "moved while scanned")]
    assert user.next_case() != first
    requests.delete(f"{server.url}/rounds/aside", params={"image": first}, timeout=60).raise_for_status()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_training_shows_epoch_and_time_left_and_can_be_stopped(user, server, studies):
    for study in studies.values():
        server.submit(study.name, study.truth_path, NAMES)
    user.use(QUICK_MODEL)
    user.click("train")
    shown = user.page.locator(".training").last
    expect(shown).to_contain_text(re.compile(r"Epoch [1-9]\d* of \d+\..* left\."), timeout=300_000)
    assert user.page.locator(".v-progress-linear").count() >= 1
    user.click("train")
    user.answer("Stop")
    expect(shown).to_contain_text("The training has ended", timeout=300_000)


@pytest.mark.slow
def test_login_is_asked_for_until_it_is_right_and_no_key_is_kept(browser, server, studies, tmp_path, monkeypatch):
    monkeypatch.setenv("LABELROUNDS_HOME", str(tmp_path / "home"))
    (tmp_path / "configs").mkdir()
    strict = LabelServer(studies["axial"].image_path.parent, tmp_path / "home", tmp_path / "configs", MODEL)
    strict.wait()
    key = strict.demand_login()
    viewer = Viewer(strict.url, tmp_path / "viewer.log")
    user = ViewerUser(browser.new_page(), viewer)
    expect(user.page.locator(".login")).to_contain_text("Log in to")
    user.log_in("ann", "wrong")
    expect(user.page.get_by_label("Key or password")).to_have_value("")
    user.wait_until(lambda: user.page.locator(".login").is_visible())
    user.log_in("ann", key)
    user.says("Connected")
    user.next_case()
    user.segment()
    user.submit()
    shared = user.page.evaluate("JSON.stringify(trame.state.state)")
    assert key not in shared and key not in viewer.printed()
    viewer.close()
    strict.stop()
    assert "Traceback" not in strict.take_log() + viewer.printed()


@pytest.mark.slow
def test_server_that_is_not_there_yet_is_found_by_connect(browser, server, nobody_there, tmp_path):
    viewer = Viewer(nobody_there, tmp_path / "viewer.log")
    user = ViewerUser(browser.new_page(), viewer)
    user.warns(f"No server answers at {nobody_there}")
    relay = Relay(server.url, int(nobody_there.rpartition(":")[2]))
    user.click("connect")
    user.says("Connected")
    user.next_case()
    viewer.close()
    relay.close()


@pytest.mark.slow
def test_network_address_without_a_certificate_is_refused(tmp_path):
    with pytest.raises(RuntimeError, match=r"0\.0\.0\.0.*give --tls-certificate"):
        Viewer("http://127.0.0.1:8000", tmp_path / "viewer.log", "--host", "0.0.0.0")
