"""A server that is told to refuses DICOM that still says whose it is, by the attribute's name and never its value."""

import io
import json
from pathlib import Path

import pydicom
import pytest
from dicom_series import MemoryPacs
from fastapi import UploadFile
from tests.identified import CANARY, DATE, write_identified

from labelrounds.dicomweb import DicomwebStore
from labelrounds.errors import BadInput
from labelrounds.privacy.identity import IDENTIFYING, Identified, attribute_in_file, check_folder_or_file, check_upload
from labelrounds.privacy.pseudonyms import Pseudonyms
from labelrounds.privacy.run import Wishes, run
from labelrounds.sent_files import received
from labelrounds.server import parse_notes
from labelrounds.settings import server_settings
from labelrounds.store import StudyStore

NAMELESS = {"PatientName": None, "PatientBirthDate": None, "OtherPatientNames": None}


@pytest.fixture(autouse=True)
def refuse(monkeypatch):
    """Let the server refuse, or not."""

    def told(value: bool) -> None:
        monkeypatch.setenv("LABELROUNDS_REFUSE_IDENTIFIED", str(value).lower())
        server_settings.cache_clear()

    told(True)
    yield told
    monkeypatch.undo()
    server_settings.cache_clear()


def refused(path: Path) -> str:
    with pytest.raises(Identified) as caught:
        check_folder_or_file(path)
    assert CANARY not in str(caught.value) and DATE not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("key", IDENTIFYING)
def test_each_attribute_that_says_whose_it_is_is_named(tmp_path, key):
    value = [pydicom.Dataset()] if key.endswith("Sequence") else DATE if key.endswith("Date") else CANARY
    path = write_identified(tmp_path / "a.dcm", **{**NAMELESS, key: value})
    assert refused(path).startswith(f"a.dcm: {key} is filled")


def test_an_image_that_was_deidentified_or_has_no_name_passes(tmp_path):
    passing = [
        write_identified(tmp_path / "nameless.dcm", **NAMELESS),
        write_identified(tmp_path / "empty.dcm", **{**NAMELESS, "PatientName": "^^"}),
        write_identified(tmp_path / "told.dcm", PatientIdentityRemoved="YES"),
        tmp_path / "volume.nii.gz",
    ]
    passing[-1].write_bytes(b"not DICOM")
    run(write_identified(tmp_path / "in.dcm"), tmp_path / "out", tmp_path / "report.csv", Wishes(Pseudonyms()))
    passing += (tmp_path / "out").iterdir()
    assert len(passing) == 5
    for file in passing:
        check_folder_or_file(file)
        assert attribute_in_file(file) is None


def test_one_slice_that_says_it_is_enough_for_a_series(tmp_path):
    for index in range(3):
        write_identified(tmp_path / "series" / f"{index}.dcm", index=index, **(NAMELESS if index < 2 else {}))
    assert refused(tmp_path / "series").startswith("series: PatientName")


def test_a_header_of_which_nothing_can_be_said_is_refused_without_pydicoms_words(tmp_path, monkeypatch):
    path = write_identified(tmp_path / "a.dcm")

    def damaged(*of, **options):
        raise ValueError(f"no value: {CANARY}")

    monkeypatch.setattr(pydicom, "dcmread", damaged)
    with pytest.raises(
        BadInput, match=r"a.dcm: a damaged DICOM header \(ValueError\), which may say whose image it is$"
    ):
        check_folder_or_file(path)


def test_a_server_that_is_not_told_to_takes_all(tmp_path, refuse):
    refuse(False)
    check_folder_or_file(write_identified(tmp_path / "a.dcm"))
    assert parse_notes("params", json.dumps({"PatientName": CANARY})) == {"PatientName": CANARY}


def test_what_is_sent_is_refused_before_anything_is_kept(tmp_path):
    content = write_identified(tmp_path / "a.dcm").read_bytes()
    with pytest.raises(Identified), received(UploadFile(io.BytesIO(content), filename="a.dcm")):
        pass
    with pytest.raises(Identified):
        check_upload(io.BytesIO(content), "a.dcm")
    stream = io.BytesIO(write_identified(tmp_path / "b.dcm", **NAMELESS).read_bytes())
    check_upload(stream, "b.dcm")
    assert stream.tell() == 0
    with pytest.raises(Identified, match="PatientBirthDate is not kept"):
        parse_notes("params", json.dumps({"PatientBirthDate": DATE}))


def test_images_in_the_folder_are_left_out_reported_and_come_back(tmp_path, refuse):
    write_identified(tmp_path / "named.dcm")
    write_identified(tmp_path / "nameless.dcm", index=1, SeriesInstanceUID="1.2.3.4", **NAMELESS)
    refuse(False)
    assert StudyStore(tmp_path).list_images() == ["named", "nameless"]
    refuse(True)
    store = StudyStore(tmp_path)
    assert store.list_images() == ["nameless"]
    assert [warning for warning in store.warnings if warning.startswith("left out: named.dcm: PatientName is filled")]
    assert CANARY not in (tmp_path / "datastore_v2.json").read_text() + "".join(store.warnings)
    refuse(False)
    assert StudyStore(tmp_path).list_images() == ["named", "nameless"]


def test_of_a_folder_that_is_only_read_no_such_image_is_served(tmp_path, refuse):
    write_identified(tmp_path / "named.dcm")
    refuse(False)
    StudyStore(tmp_path)
    refuse(True)
    with pytest.raises(Identified):
        StudyStore(tmp_path, read_only=True).get_image_uri("named")


def test_a_series_of_a_dicomweb_server_is_refused_before_it_is_fetched(tmp_path):
    pacs = MemoryPacs("http://pacs", ["1.2.3.20"])
    store = DicomwebStore(pacs, {"Modality": "CT"}, tmp_path / "cache")
    with pytest.raises(Identified, match=r"series 1\.2\.3\.20: PatientName is filled"):
        store.get_image_uri("1.2.3.20")
    assert pacs.fetched == []
    for header in pacs.kept["1.2.3.20"]:
        header.PatientIdentityRemoved = "YES"
    assert Path(store.get_image_uri("1.2.3.20")).is_file()
    store.close()


def test_a_series_whose_list_leaves_the_name_out_is_refused_by_its_files(tmp_path, monkeypatch):
    pacs = MemoryPacs("http://pacs", ["1.2.3.20"])
    monkeypatch.setattr("labelrounds.dicomweb.check_dataset", lambda *_: None)  # as if the headers had no name
    store = DicomwebStore(pacs, {"Modality": "CT"}, tmp_path / "cache")
    with pytest.raises(Identified, match="PatientName is filled"):
        store.get_image_uri("1.2.3.20")
    assert "1.2.3.20" not in store.entries
    store.close()
