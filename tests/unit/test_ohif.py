"""The viewer's page is ours, loads nothing from elsewhere, and no path leads out of its files."""

import re

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from labelrounds.access import EVERYBODY, Caller
from labelrounds.errors import LabelRoundsError
from labelrounds.ohif import viewer
from labelrounds.problem import answer


@pytest.fixture(scope="module")
def browser() -> TestClient:
    application = FastAPI()
    application.include_router(viewer)
    application.dependency_overrides[Caller.__metadata__[0].dependency] = lambda: EVERYBODY
    application.add_exception_handler(LabelRoundsError, lambda request, error: answer(error))
    return TestClient(application)


def test_the_page_and_each_of_the_viewers_own_addresses_load_the_bundle(browser: TestClient):
    for path in ("/ohif", "/ohif/", "/ohif/viewer?StudyInstanceUIDs=1.2", "/ohif/monai-label"):
        page = browser.get(path)
        assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
    bundle = re.search(r'data-viewer="(/ohif/app\.bundle\.[^"]+\.js)"', page.text)[1]
    assert browser.head(bundle).status_code in (200, 405)
    for file in re.findall(r'(?:href|src)="([^"]+)"', page.text):
        assert browser.get(file).status_code == 200, file
    assert "http" not in page.text


def test_every_file_tells_the_browser_to_load_and_send_nothing_elsewhere(browser: TestClient):
    for path in ("/ohif/", "/ohif/app-config.js", "/ohif/app.bundle.css", "/ohif/assets/favicon.ico"):
        headers = browser.get(path).headers
        policy = dict(rule.split(" ", 1) for rule in headers["content-security-policy"].split("; "))
        assert policy["default-src"] == policy["frame-ancestors"] == "'none'"
        assert not re.search(r"https?:|\*", " ".join(policy.values()))
        assert policy["script-src"] == "'self' 'unsafe-eval'" and policy["connect-src"] == "'self' blob: data:"
        assert (headers["x-content-type-options"], headers["referrer-policy"]) == ("nosniff", "no-referrer")


def test_style_sheets_load_no_fonts_from_elsewhere_and_the_configuration_names_no_other_server(browser: TestClient):
    assert "googleapis" not in browser.get("/ohif/app.bundle.css").text
    configuration = browser.get("/ohif/app-config.js")
    assert configuration.headers["content-type"].startswith("text/javascript") and "//" not in re.sub(
        r"^\s*//.*$", "", configuration.text, flags=re.M
    )


@pytest.mark.parametrize(
    "path",
    ["../../../main.py", "..%2f..%2f..%2fconfig.py", "%2fetc%2fpasswd", "assets/../../ohif.py", "google.js", "sw.js",
     "_headers", "nothing.js", "assets/nothing.png", "%00.js", "init-service-worker.js"],
)  # fmt: skip
def test_no_other_file_is_served(browser: TestClient, path):
    got = browser.get(f"/ohif/{path}")
    assert got.status_code == 404 or (got.headers["content-type"].startswith("text/html") and "data-viewer" in got.text)
    assert "Copyright" not in got.text and "root:" not in got.text
