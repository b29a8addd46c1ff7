"""What the DICOMweb server does wrong is one sentence for the user, without its login; a stand-in on loopback errs."""

import io
import logging
import threading
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pydicom
import pytest
from dicom_series import slices
from monailabel.config import settings as host_settings
from tests.pacs_stand_in import StandIn, reply, stand_in

from labelrounds.errors import BadInput, Conflict, NotFound, TooLarge, Unreachable
from labelrounds.pacs import Pacs, Series, check_address
from labelrounds.settings import ServerSettings

SERIES = Series("1.2.3.20", "1.2.3", instances=6)
PASSWORD = "a-secret-of-the-pacs"


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(host_settings, "MONAI_LABEL_DICOMWEB_USERNAME", "reader")
    monkeypatch.setattr(host_settings, "MONAI_LABEL_DICOMWEB_PASSWORD", PASSWORD)
    with stand_in() as found:
        yield found


def pacs_of(server: StandIn, **limits) -> Pacs:
    return Pacs(server.address, ServerSettings(**{"pacs_timeout_s": 5, **limits}))


def multipart(count: int = 6, cut: int = 0) -> bytes:
    parts = []
    for data in slices("1.2.3.20")[:count]:
        with io.BytesIO() as file:
            pydicom.dcmwrite(file, data, enforce_file_format=True)
            parts.append(b"--cut\r\nContent-Type: application/dicom\r\n\r\n" + file.getvalue() + b"\r\n")
    whole = b"".join(parts) + b"--cut--\r\n"
    return whole[: len(whole) - cut]


def sends_files(count: int = 6, cut: int = 0, **headers: str):
    return reply(200, multipart(count, cut), 'multipart/related; type="application/dicom"; boundary=cut', **headers)


def test_an_address_is_taken_without_its_last_slash_and_never_with_a_login():
    assert check_address(" https://pacs.example:8443/dicom-web/ ") == "https://pacs.example:8443/dicom-web"
    for wrong in ("ftp://pacs", "http://", "http://pacs:port/", "http://pacs/?a=b", "http://[::1"):
        with pytest.raises(BadInput):
            check_address(wrong)
    with pytest.raises(BadInput, match="MONAI_LABEL_DICOMWEB_PASSWORD") as error:
        check_address(f"http://reader:{PASSWORD}@pacs/dicom-web")
    assert PASSWORD not in str(error.value)


def test_a_series_is_fetched_whole(server: StandIn, tmp_path: Path):
    server.answer = sends_files()
    assert pacs_of(server).fetch(SERIES, tmp_path) == 6
    assert sorted(pydicom.dcmread(path).SOPInstanceUID for path in tmp_path.iterdir()) == [
        f"1.2.3.20.{number}" for number in range(6)
    ]


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (reply(401), Conflict),
        (reply(403), Conflict),
        (reply(404), NotFound),
        (reply(400), Conflict),
        (reply(429), Unreachable),
        (reply(500), Unreachable),
        (reply(302, Location="http://127.0.0.1:9/elsewhere"), Conflict),
        (reply(200, b"<html>a portal</html>", "text/html"), BadInput),
        (sends_files(count=4), Unreachable),
        (sends_files(cut=2000), Unreachable),
        (sends_files(cut=2000, Content_Length="99999"), Unreachable),
        (reply(200, b"--cut\r\n\r\nnothing of DICOM\r\n--cut--\r\n", "multipart/related; boundary=cut"), BadInput),
        (reply(200, b"", "multipart/related; boundary=cut"), Unreachable),
    ],
    ids=[
        *("401", "403", "404", "400", "429", "500", "elsewhere", "a page", "too few files", "cut", "broken off"),
        *("no DICOM", "empty"),
    ],
)
def test_a_failed_fetch_is_a_sentence_without_the_login(server: StandIn, tmp_path: Path, answer, kind, caplog):
    server.answer = answer
    caplog.set_level(logging.DEBUG)
    with pytest.raises(kind, match=r"series 1\.2\.3\.20") as error:
        pacs_of(server).fetch(SERIES, tmp_path)
    told = str(error.value) + caplog.text
    assert PASSWORD not in told and "cmVhZGVy" not in told  # nor as Basic sends it
    assert len(server.asked) == 1 and server.asked[0][1]["Authorization"].startswith("Basic ")


def test_a_server_that_is_down_or_silent_is_given_up_in_time(server: StandIn, tmp_path: Path):
    with pytest.raises(Unreachable, match="can't be reached"):
        Pacs("http://127.0.0.1:9/pacs").search({"Modality": "CT"})
    given_up = threading.Event()
    server.answer = lambda handler: given_up.wait(60)
    with pytest.raises(Unreachable, match="in time"):
        pacs_of(server, pacs_timeout_s=0.3).search({"Modality": "CT"})
    given_up.set()


def test_a_server_whose_certificate_nobody_vouches_for_is_not_talked_to(server: StandIn):
    with pytest.raises(Unreachable):  # plain HTTP where TLS was meant
        Pacs(server.address.replace("http://", "https://")).search({"Modality": "CT"})
    assert pacs_of(server)._session.verify is True
    assert pacs_of(server, pacs_ca="/etc/hospital.pem")._session.verify == "/etc/hospital.pem"


def test_a_series_over_the_limit_is_not_fetched(server: StandIn, tmp_path: Path):
    server.answer = sends_files()
    with pytest.raises(TooLarge, match="LABELROUNDS_PACS_MAX_GB"):
        pacs_of(server, pacs_max_gb=2e-6).fetch(SERIES, tmp_path)


def test_the_list_is_read_page_by_page_and_once_from_a_server_that_knows_no_pages(server: StandIn, monkeypatch):
    monkeypatch.setattr("labelrounds.pacs._PAGE", 2)
    entry = '{"0020000E": {"vr": "UI", "Value": ["1.2.%d"]}, "0020000D": {"vr": "UI", "Value": ["1.2.3"]}}'
    pages = [[9, 8], [7]]

    def answer(handler) -> None:
        page = pages[len(server.asked) - 1] if "offset" in handler.path else []
        reply(200, f"[{','.join(entry % number for number in page)}]".encode())(handler)

    server.answer = answer
    assert [one.uid for one in pacs_of(server).search({"Modality": "CT"})] == ["1.2.7", "1.2.8", "1.2.9"]
    server.asked.clear()
    pages[1] = [9, 8]
    assert [one.uid for one in pacs_of(server).search({"Modality": "CT"})] == ["1.2.8", "1.2.9"]
    assert len(server.asked) == 2


def test_a_series_whose_uid_is_none_is_left_out(server: StandIn):
    listed = b'[{"0020000E": {"vr": "UI", "Value": ["../../etc"]}, "0020000D": {"vr": "UI", "Value": ["1.2.3"]}}]'
    server.answer = reply(200, listed)
    assert pacs_of(server).search({"Modality": "CT"}) == []


@pytest.mark.parametrize("breaks", [1, 2])
def test_a_request_whose_connection_breaks_is_sent_once_more(server: StandIn, breaks: int):
    def answer(handler: BaseHTTPRequestHandler) -> None:
        if len(server.asked) > breaks:
            reply(200, b"[]")(handler)
        handler.close_connection = True

    server.answer = answer
    if breaks == 1:
        assert pacs_of(server).search({"Modality": "CT"}) == []
    else:
        with pytest.raises(Unreachable, match="broke off"):
            pacs_of(server).search({"Modality": "CT"})
    assert len(server.asked) == 2


def test_a_label_that_the_server_does_not_take_is_an_error(server: StandIn):
    failed = (
        b'{"00081198": {"vr": "SQ", "Value": [{"00081150": {"vr": "UI", "Value": ["1.2"]},'
        b' "00081155": {"vr": "UI", "Value": ["1.2.3"]}, "00081197": {"vr": "US", "Value": [42752]}}]}}'
    )
    for content, reason in ((failed, "0xa700"), (b"{}", "names no stored object")):
        server.answer = reply(200, content)
        with pytest.raises(Conflict, match=reason):
            pacs_of(server).store(slices("1.2.3.20")[0])
