"""A de-identified file says nothing of its patient, belongs with the others of that patient, and is the same image."""

import csv
import gzip
import os
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from tests.identified import CANARY, DATE, UID, write_identified

from labelrounds.errors import BadInput, Conflict, NotFound
from labelrounds.phantoms import write_studies
from labelrounds.privacy import run as runs
from labelrounds.privacy.profile import EMPTY, MAP, REMOVE, REPLACE, table
from labelrounds.privacy.pseudonyms import Pseudonyms, key_of
from labelrounds.privacy.run import DONE, FAILED, LEFT_OUT, THERE, Wishes, run
from labelrounds.reading import read_image
from labelrounds.writing import write_label

KEY = b"k" * 32
REPORT = pydicom.uid.BasicTextSRStorage


def wishes(**options) -> Wishes:
    return Wishes(Pseudonyms(KEY), **options)


def clean(source: Path, output: Path, **options) -> pydicom.Dataset:
    """De-identify one image and return it, read back."""
    rows = done(source, output, **options)
    assert [row["status"] for row in rows] == [DONE], rows
    return pydicom.dcmread(output / rows[0]["output"])


def done(source: Path, output: Path, **options) -> list[dict[str, str]]:
    report = output.with_name(f"{output.name}-{len(list(output.parent.glob('*.csv')))}.csv")
    run(source, output, report, wishes(**options))
    with report.open(newline="") as file:
        return list(csv.DictReader(file))


def everything_below(folder: Path) -> bytes:
    return b"".join(str(path).encode() + (path.read_bytes() if path.is_file() else b"") for path in folder.rglob("*"))


# The profile


def test_the_table_is_the_standards():
    known = {"PatientName": EMPTY, "PatientID": REPLACE, "StudyInstanceUID": MAP, "PatientComments": REMOVE}
    known |= {"InstitutionName": REPLACE, "StudyDate": EMPTY, "OperatorsName": REPLACE, "PatientBirthDate": EMPTY}
    known |= {"SeriesDescription": REMOVE, "ReferencedImageSequence": MAP, "DeviceSerialNumber": REPLACE}
    tags = {key: pydicom.tag.Tag(key) for key in known}
    assert {key: table()[tag.group, tag.element] for key, tag in tags.items()} == known
    assert len(table()) > 600


@pytest.mark.parametrize("shift_dates", [False, True], ids=["removed", "shifted"])
def test_nothing_of_any_attribute_of_the_table_is_left(tmp_path, shift_dates):
    source = write_identified(tmp_path / "in.dcm", list(table()))
    before = source.read_bytes()
    assert before.count(CANARY.encode()) > 400
    clean(source, tmp_path / "out", shift_dates=shift_dates)
    after = everything_below(tmp_path / "out")
    for word in (CANARY, DATE, UID, "ACME", "077Y"):
        assert word.encode() in before and word.encode() not in after, word
    assert source.read_bytes() == before


def test_the_image_is_the_same_and_its_geometry_too(tmp_path):
    source = tmp_path / "series"
    for index in range(3):
        write_identified(source / f"{CANARY}{index}.dcm", index=index)
    rows = done(source, tmp_path / "out")
    assert [row["status"] for row in rows] == [DONE] * 3
    folder = {(tmp_path / "out" / row["output"]).parent for row in rows}
    assert len(folder) == 1
    before, after = read_image(source), read_image(folder.pop())
    assert np.array_equal(before.array, after.array) and np.array_equal(before.affine, after.affine)


def test_the_dataset_says_that_and_how_it_was_deidentified(tmp_path):
    data = clean(write_identified(tmp_path / "in.dcm"), tmp_path / "out")
    assert data.PatientIdentityRemoved == "YES" and "2026c" in data.DeidentificationMethod[1]
    assert [item.CodeValue for item in data.DeidentificationMethodCodeSequence] == ["113100"]
    assert data.LongitudinalTemporalInformationModified == "REMOVED"
    assert data.preamble == bytes(128) and "SourceApplicationEntityTitle" not in data.file_meta
    assert data.file_meta.MediaStorageSOPInstanceUID == data.SOPInstanceUID
    assert data.PixelData == (np.arange(256, dtype="<i2")).tobytes()


def test_a_patients_images_stay_together_and_two_patients_apart(tmp_path):
    for index, patient in enumerate(("a", "a", "b")):
        write_identified(tmp_path / "in" / f"{index}.dcm", index=index, PatientID=patient)
    rows = done(tmp_path / "in", tmp_path / "out")
    one, same, other = (pydicom.dcmread(tmp_path / "out" / row["output"]) for row in rows)
    assert one.PatientID == same.PatientID == str(one.PatientName) != other.PatientID
    assert one.StudyInstanceUID == same.StudyInstanceUID and one.SOPInstanceUID != same.SOPInstanceUID
    assert one.StudyInstanceUID.is_valid and one.StudyInstanceUID.startswith("2.25.")


def test_a_patient_without_an_id_is_known_by_the_name_and_one_without_either_stays_nobody(tmp_path):
    named = clean(write_identified(tmp_path / "a.dcm", PatientID=""), tmp_path / "out")
    nobody = clean(write_identified(tmp_path / "b.dcm", index=1, PatientID="", PatientName=""), tmp_path / "out")
    assert named.PatientID.startswith("P") and nobody.PatientID == ""


def test_dates_move_by_a_patients_own_days_and_keep_their_distance(tmp_path):
    first = write_identified(tmp_path / "in" / "a.dcm", StudyDate="20200228", AcquisitionDateTime="20200228101112.5")
    write_identified(tmp_path / "in" / "b.dcm", index=1, StudyDate="20200301")
    rows = done(tmp_path / "in", tmp_path / "out", shift_dates=True)
    one, two = (pydicom.dcmread(tmp_path / "out" / row["output"]) for row in rows)
    dates = [np.datetime64(f"{d[:4]}-{d[4:6]}-{d[6:]}") for d in (one.StudyDate, two.StudyDate)]
    assert (dates[1] - dates[0]).astype(int) == 2 and one.StudyDate != "20200228"
    assert one.AcquisitionDateTime == one.StudyDate + "101112.5"
    assert one.PatientBirthDate == "" and one.LongitudinalTemporalInformationModified == "MODIFIED"
    assert [item.CodeValue for item in one.DeidentificationMethodCodeSequence] == ["113100", "113107"]
    assert first.exists()


def test_a_date_that_can_not_be_moved_is_emptied(tmp_path):
    data = clean(write_identified(tmp_path / "a.dcm", StudyDate="202002"), tmp_path / "out", shift_dates=True)
    assert data.StudyDate == ""


# What is not an image, or may have text in its pixels


def test_an_object_without_pixels_is_left_out(tmp_path):
    rows = done(write_identified(tmp_path / "sr.dcm", PixelData=None, SOPClassUID=REPORT), tmp_path / "out")
    assert rows[0]["status"] == LEFT_OUT and "no image" in rows[0]["reason"]


def test_an_image_that_says_it_has_text_in_its_pixels_is_left_out_unless_asked_for(tmp_path):
    source = write_identified(tmp_path / "a.dcm", BurnedInAnnotation="YES")
    assert done(source, tmp_path / "out")[0]["status"] == LEFT_OUT
    row = done(source, tmp_path / "out", with_burned_in=True)[0]
    assert row["status"] == DONE and "BurnedInAnnotation" in row["look_at"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"SOPClassUID": pydicom.uid.SecondaryCaptureImageStorage}, "secondary capture"),
        ({"Modality": "US"}, "modality US"),
        ({"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}, "a screen save"),
        ({"Modality": "US", "BurnedInAnnotation": "NO"}, ""),
        ({}, ""),
    ],
)
def test_where_text_may_stand_in_the_pixels_a_person_is_told_to_look(tmp_path, changes, reason):
    row = done(write_identified(tmp_path / "a.dcm", **changes), tmp_path / "out")[0]
    assert row["status"] == DONE and reason in row["look_at"] and bool(reason) == bool(row["look_at"])


# The run


def test_a_bad_file_is_passed_over_and_told_without_its_values(tmp_path):
    good = write_identified(tmp_path / "in" / "good.dcm")
    for length in (500, 900, good.stat().st_size - 300):
        (tmp_path / "in" / f"cut{length}.dcm").write_bytes(good.read_bytes()[:length])
    (tmp_path / "in" / "odd.dcm").write_bytes(bytes(128) + b"DICM" + CANARY.encode() * 9)
    (tmp_path / "in" / "notes.txt").write_text(CANARY)
    rows = {row["input"]: row for row in done(tmp_path / "in", tmp_path / "out")}
    assert rows.pop("good.dcm")["status"] == DONE and rows.pop("notes.txt")["status"] == LEFT_OUT
    assert len(rows) == 4 and {row["status"] for row in rows.values()} == {FAILED}
    assert CANARY not in "".join(value for row in rows.values() for value in row.values())


def test_the_report_says_what_was_removed_and_no_value(tmp_path):
    row = done(write_identified(tmp_path / "in.dcm"), tmp_path / "out")[0]
    assert "PatientComments" in row["removed"].split(";") and "StudyDate" in row["emptied"].split(";")
    assert "SeriesInstanceUID" in row["mapped"].split(";") and int(row["private"]) == 2
    assert "bytes behind PixelData" in row["removed"]
    assert CANARY not in "".join(row.values()) and UID not in "".join(row.values())


def test_the_same_key_gives_the_same_names_and_what_is_there_stays(tmp_path):
    source = write_identified(tmp_path / "in.dcm")
    first = done(source, tmp_path / "out")[0]
    file = tmp_path / "out" / first["output"]
    before = file.read_bytes()
    assert done(source, tmp_path / "out")[0]["status"] == THERE and file.read_bytes() == before
    assert done(source, tmp_path / "again")[0]["output"] == first["output"]
    run(source, tmp_path / "other", tmp_path / "other.csv", Wishes(Pseudonyms()))
    assert not (tmp_path / "other" / first["output"]).exists()


def test_a_secret_is_made_once_for_its_owner_and_read_again(tmp_path):
    file = tmp_path / "secret"
    assert key_of(file) == key_of(file) and len(key_of(file)) == 32
    assert file.stat().st_mode & 0o777 == 0o600
    for wrong in ("", "abcd", "z" * 64):
        file.write_text(wrong)
        with pytest.raises(BadInput, match="does not hold a key: 32 hexadecimal digits"):
            key_of(file)


def test_places_that_lie_in_each_other_are_refused_before_anything_is_written(tmp_path):
    source = write_identified(tmp_path / "in" / "a.dcm").parent
    for output in (source, source / "out", tmp_path):
        with pytest.raises(BadInput, match="lie in each other"):
            run(source, output, tmp_path / "report.csv", wishes())
    with pytest.raises(BadInput, match="names the inputs"):
        run(source, tmp_path / "out", tmp_path / "out" / "report.csv", wishes())
    with pytest.raises(NotFound):
        run(tmp_path / "none", tmp_path / "out", tmp_path / "report.csv", wishes())
    (tmp_path / "report.csv").write_text("mine")
    with pytest.raises(Conflict, match="is there already"):
        run(source, tmp_path / "out", tmp_path / "report.csv", wishes())
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.dcm", "in", "report.csv"]


def test_a_run_that_is_ended_leaves_whole_files_and_its_report(tmp_path, monkeypatch):
    for index in range(3):
        write_identified(tmp_path / "in" / f"{index}.dcm", index=index)

    def interrupt(done: int, of: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "in", tmp_path / "out", tmp_path / "report.csv", wishes(), interrupt)
    assert len((tmp_path / "report.csv").read_text().splitlines()) == 3
    assert [row["status"] for row in done(tmp_path / "in", tmp_path / "out")] == [THERE, THERE, DONE]


def test_the_command_says_by_its_exit_status_whether_a_file_could_not_be_read(tmp_path):
    write_identified(tmp_path / "in" / f"{CANARY}.dcm")
    command = [sys.executable, "-m", "labelrounds", "deidentify", str(tmp_path / "in")]
    first = subprocess.run([*command, str(tmp_path / "a")], capture_output=True, text=True, timeout=120)
    assert (first.returncode, first.stdout.split(";")[0]) == (0, "1 done"), first.stderr
    assert CANARY not in first.stdout + first.stderr
    (tmp_path / "in" / "bad.dcm").write_bytes(bytes(128) + b"DICM" + b"\1" * 99)
    second = subprocess.run([*command, str(tmp_path / "b")], capture_output=True, text=True, timeout=120)
    assert second.returncode == 1 and "1 failed" in second.stdout
    assert (tmp_path / "a-report.csv").stat().st_mode & 0o777 == 0o600


# Volumes


def test_a_nifti_keeps_its_voxels_and_grid_and_no_text(tmp_path):
    image = nibabel.Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4), np.diag([1.0, 2, 3, 1]))
    for key in ("descrip", "aux_file", "intent_name", "db_name"):
        image.header[key] = CANARY
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", f"{CANARY} was here".encode()))
    (tmp_path / "in").mkdir()
    for name in (f"{CANARY}.nii.gz", "plain.nii"):
        nibabel.save(image, tmp_path / "in" / name)
    rows = done(tmp_path / "in", tmp_path / "out")
    for row in rows:
        assert row["status"] == DONE and "descrip" in row["removed"] and "extensions" in row["removed"]
        file = tmp_path / "out" / row["output"]
        content = gzip.decompress(file.read_bytes()) if file.name.endswith(".gz") else file.read_bytes()
        assert CANARY.encode() not in content
        back = nibabel.load(file)
        assert np.array_equal(np.asarray(back.dataobj), np.asarray(image.dataobj))
        assert np.array_equal(back.affine, image.affine)
    assert CANARY.encode() not in everything_below(tmp_path / "out")


@pytest.mark.parametrize("encoding", ["raw", "gzip"])
def test_an_nrrd_keeps_its_grid_alone(tmp_path, encoding):
    voxels = np.arange(24, dtype="<i2").tobytes()
    text = f"NRRD0004\n# {CANARY}\ntype: short\ndimension: 3\nspace: left-posterior-superior\nsizes: 2 3 4\n"
    text += f"space directions: (1,0,0) (0,2,0) (0,0,3)\nendian: little\nencoding: {encoding}\ncontent: {CANARY}\n"
    text += f"space origin: (1,2,3)\nPatient:={CANARY}\nSegment0_Name:={CANARY}\nNote:=a\u2028kinds: {CANARY}\n\n"
    source = tmp_path / "a.nrrd"
    source.write_bytes(text.encode() + (gzip.compress(voxels) if encoding == "gzip" else voxels))
    row = done(source, tmp_path / "out")[0]
    assert row["removed"].split(";") == ["comment", "content", "Patient", "Segment0_Name", "Note"]
    file = tmp_path / "out" / row["output"]
    before, after = read_image(source), read_image(file)
    assert np.array_equal(before.array, after.array) and np.array_equal(before.affine, after.affine)
    assert CANARY.encode() not in file.read_bytes()


def test_of_a_segmentation_the_names_of_its_segments_stay_and_it_still_belongs_to_its_image(tmp_path):
    studies = tmp_path / "studies"
    write_studies(studies, 1)
    image = next(studies.glob("*.nii.gz"))
    label = np.zeros(read_image(image).shape, np.uint8)
    label[2, 2, 2] = 1
    (studies / "labels" / "final").mkdir(parents=True, exist_ok=True)
    name = image.name.removesuffix(".nii.gz")
    write_label(label, read_image(image).affine, studies / "labels" / "final" / f"{name}.seg.nrrd", ["liver"])
    rows = {row["input"]: row for row in done(studies, tmp_path / "out") if row["status"] == DONE}
    of_image, of_label = (Path(rows[key]["output"]) for key in (image.name, f"labels/final/{name}.seg.nrrd"))
    assert of_label.parent == Path("labels/final")
    assert of_label.name.removesuffix(".seg.nrrd") == of_image.name.removesuffix(".nii.gz")
    assert b"Segment0_Name:=liver" in (tmp_path / "out" / of_label).read_bytes()
    assert name.encode() not in everything_below(tmp_path / "out")


def test_a_disk_that_is_full_ends_the_run(tmp_path, monkeypatch):
    source = write_identified(tmp_path / "in" / "a.dcm").parent

    def full(*of, **options):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("pydicom.dataset.Dataset.save_as", full)
    with pytest.raises(runs.OutOfSpace, match="No space left"):
        run(source, tmp_path / "out", tmp_path / "report.csv", wishes())
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
