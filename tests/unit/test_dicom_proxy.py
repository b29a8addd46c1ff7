"""Only reading DICOMweb goes through, and nothing of the caller but what is asked."""

import json
from urllib.parse import quote

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from monailabel.interfaces.utils import app as host_app
from tests.pacs_stand_in import StandIn, reply, stand_in

from labelrounds import dicom_proxy
from labelrounds.access import EVERYBODY, Caller
from labelrounds.audit import audit_log, listing
from labelrounds.dicom_proxy import checked_path, checked_query, proxy
from labelrounds.errors import BadInput, LabelRoundsError
from labelrounds.pacs import Pacs
from labelrounds.problem import answer
from labelrounds.settings import ServerSettings
from labelrounds.tracing import TracingMiddleware

STUDY, SERIES, INSTANCE = "1.2.840.1", "1.2.840.1.2", "1.2.840.1.2.3"
PART = f"studies/{STUDY}/series/{SERIES}/instances/{INSTANCE}"


@pytest.fixture
def server():
    with stand_in() as found:
        yield found


@pytest.fixture
def viewer(server: StandIn, monkeypatch) -> TestClient:
    """A browser before our routes, and the stand-in behind them."""

    class App:
        pacs = Pacs(server.address, ServerSettings(pacs_timeout_s=2, pacs_max_gb=0.02))

        def datastore(self):
            return self

    monkeypatch.setattr(host_app, "app_instance", App)
    application = FastAPI()
    application.include_router(proxy)
    application.dependency_overrides[Caller.__metadata__[0].dependency] = lambda: EVERYBODY
    application.add_exception_handler(LabelRoundsError, lambda request, error: answer(error))
    return TestClient(application)


@pytest.mark.parametrize(
    "path",
    [
        "qido/studies",
        f"qido/studies/{STUDY}/series",
        f"wado/studies/{STUDY}/series/{SERIES}/metadata",
        f"wado/{PART}",
        f"wado/{PART}/frames/1",
        f"wado/{PART}/frames/1,2,30/rendered",
        f"wado/{PART}/bulk/7fe00010",
        f"{PART}/bulkdata/00091002/1/00091003",
        f"studies/{STUDY}/series/{SERIES}/thumbnail",
    ],
)
def test_what_a_viewer_reads_goes_through(path):
    assert checked_path(path) == path.removeprefix("qido/").removeprefix("wado/")


@pytest.mark.parametrize(
    "path",
    [
        "",
        "..",
        "../../system",
        "wado/../../../instances",
        "wado//studies",
        "stow/studies",
        "qido/studies/../series",
        f"wado/studies/{STUDY}/../../patients",
        "studies/1.2.x/metadata",
        "studies/" + "1" * 65 + "/series",
        "studies/1..2/series",
        f"wado/{PART}/frames/all",
        f"wado/{PART}/bulk/../../..",
        f"wado/{PART}/file",
        f"{PART}?x=1",
        f"{PART}#",
        "http://elsewhere/studies",
        "@elsewhere/studies",
        "patients",
        "tools/execute-script",
    ],
)
def test_no_other_path_goes_through(path, viewer: TestClient, server: StandIn):
    for one in (path, path + "\n"):
        with pytest.raises(BadInput, match="not passed on"):
            checked_path(one)
    assert viewer.get(f"/proxy/dicom/{quote(path).replace('.', '%2E')}").status_code in (400, 404)
    assert server.asked == []


def test_the_audit_log_says_which_study_was_looked_at(viewer: TestClient):
    viewer.app.add_middleware(TracingMiddleware)
    viewer.get(f"/proxy/dicom/wado/{PART}/metadata")
    viewer.get("/proxy/dicom/qido/studies")
    found = [line["ids"] for line in audit_log().lines()]
    assert found == [{"study": STUDY, "series": SERIES, "instance": INSTANCE}, {}]
    assert len(listing(10, image=SERIES)) == 1


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_nothing_but_reading_goes_through(method, viewer: TestClient, server: StandIn):
    assert viewer.request(method, "/proxy/dicom/studies", content=b"x").status_code == 405
    assert server.asked == []


def test_query_parameters_are_dicoms(viewer: TestClient, server: StandIn):
    good = [("limit", "5"), ("00100020", "P7"), ("includefield", "00081030,00080060"), ("ModalitiesInStudy", "CT")]
    assert checked_query(good) == good
    for wrong in ([("url", "http://x")], [("limit", "5\n")], [("limit", "1" * 301)], [("limit", "1")] * 41):
        with pytest.raises(BadInput):
            checked_query(wrong)
    assert viewer.get("/proxy/dicom/qido/studies?limit=5&PatientName=Doe*").status_code == 200
    assert server.asked[0][0] == "/pacs/studies?limit=5&PatientName=Doe%2A"


def test_of_the_callers_headers_only_accept_goes_on_and_of_the_answers_only_its_type_comes_back(
    viewer: TestClient, server: StandIn
):
    server.answer = reply(200, b"pixels", "image/jpeg", Set_Cookie="pacs=1", Server="PACS 3.1", X_Own="1")
    sent = {"Accept": "image/jpeg", "Authorization": "Bearer of-us", "Cookie": "a=b", "X-Forwarded-For": "1.1.1.1"}
    got = viewer.get(f"/proxy/dicom/wado/{PART}/rendered", headers=sent)
    assert (got.status_code, got.content, got.headers["content-type"]) == (200, b"pixels", "image/jpeg")
    assert {name.title() for name in got.headers} == {
        "Content-Type",
        "Content-Length",
        "Cache-Control",
        "X-Content-Type-Options",
        "Content-Security-Policy",
    }
    ((_, headers),) = server.asked
    assert headers["Accept"] == "image/jpeg"
    assert not {"Authorization", "Cookie", "X-Forwarded-For"} & set(headers)


def test_an_answer_that_a_browser_might_run_is_not_passed_on(viewer: TestClient, server: StandIn):
    for kind in ("text/html", "image/svg+xml", "application/javascript"):
        server.answer = reply(200, b"<script>", kind)
        assert viewer.get(f"/proxy/dicom/wado/{PART}").status_code == 409


@pytest.mark.parametrize(("theirs", "ours"), [(401, 409), (404, 404), (500, 503), (302, 409)])
def test_the_servers_failures_are_told(viewer: TestClient, server: StandIn, theirs, ours):
    server.answer = reply(theirs, b"{}", Location="http://127.0.0.1:9/")
    got = viewer.get("/proxy/dicom/qido/studies")
    assert got.status_code == ours and "DICOMweb server" in got.json()["detail"]
    assert ("Retry-After" in got.headers) == (ours == 503)
    assert len(server.asked) == 1


def test_an_answer_that_breaks_off_or_is_no_json_is_told(viewer: TestClient, server: StandIn):
    server.answer = reply(200, b"[{}", "application/dicom+json")
    assert viewer.get("/proxy/dicom/qido/studies").status_code == 400
    server.answer = reply(200, b"pixels", "application/octet-stream", Content_Length="600")
    assert viewer.get(f"/proxy/dicom/wado/{PART}/frames/1").status_code == 503


def test_a_large_answer_is_streamed_and_one_over_the_limit_refused(viewer, server: StandIn, monkeypatch):
    monkeypatch.setattr(dicom_proxy, "_AT_ONCE", 2**20)
    server.answer = reply(200, bytes(5_000_000), "application/octet-stream")
    assert len(viewer.get(f"/proxy/dicom/wado/{PART}/frames/1").content) == 5_000_000
    monkeypatch.setattr(dicom_proxy, "_AT_ONCE", 2**25)
    server.answer = reply(200, bytes(25_000_000), "application/octet-stream")
    assert viewer.get(f"/proxy/dicom/wado/{PART}/frames/1").status_code == 413
    monkeypatch.setattr(dicom_proxy, "_MOST_JSON", 100)
    server.answer = reply(200, b"[" + b" " * 200 + b"]")
    assert viewer.get("/proxy/dicom/qido/studies").status_code == 413


def test_addresses_of_the_server_in_metadata_are_ours(viewer: TestClient, server: StandIn):
    listed = [
        {
            "00081190": {"vr": "UR", "Value": [f"http://pacs.internal:8042/dicom-web/studies/{STUDY}"]},
            "7FE00010": {"vr": "OW", "BulkDataURI": f"http://pacs.internal:8042/dicom-web/{PART}/bulk/7fe00010"},
            "00091002": {"vr": "SQ", "Value": [{"00091003": {"vr": "OB", "BulkDataURI": "http://elsewhere/x"}}]},
            "00100010": {"vr": "PN", "Value": [{"Alphabetic": "Doe^Jane"}]},
        }
    ]
    server.answer = reply(200, json.dumps(listed).encode())
    (got,) = viewer.get(f"/proxy/dicom/wado/studies/{STUDY}/series/{SERIES}/metadata").json()
    assert got["00081190"]["Value"] == [f"/proxy/dicom/wado/studies/{STUDY}"]
    assert got["7FE00010"]["BulkDataURI"] == f"/proxy/dicom/wado/{PART}/bulk/7fe00010"
    assert got["00091002"]["Value"] == [{"00091003": {"vr": "OB", "BulkDataURI": ""}}]
    assert got["00100010"] == listed[0]["00100010"]


def test_studies_in_a_folder_have_nothing_to_pass_on(viewer: TestClient, monkeypatch):
    monkeypatch.setattr(host_app, "app_instance", lambda: type("App", (), {"datastore": lambda self: object()})())
    assert viewer.get("/proxy/dicom/qido/studies").status_code == 404
