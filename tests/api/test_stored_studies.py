"""A server on a studies folder with DICOM series: listed, downloaded, segmented, labelled, turned back; no archives."""

import io
import json
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from labelrounds.client import Client
from labelrounds.phantoms import LABELS, write_studies
from labelrounds.reading import read_image, read_label
from labelrounds.writing import write_label
from tests.dicom_files import write_slice
from tests.forked import running_server

MODEL, SERIES = "unet_phantom", "1.2.3.77"
ENTRIES = 100_000


def write_phantom_as_dicom(image: Path, folder: Path) -> None:
    """Write an image as a series of a PACS export, slice by slice."""
    read = read_image(image)
    lps = np.diag([-1, -1, 1, 1]) @ read.affine
    across, down, step = (lps[:3, axis] for axis in range(3))
    directions = np.concatenate([across / np.linalg.norm(across), down / np.linalg.norm(down)])
    for number in range(read.shape[2]):
        write_slice(
            folder / f"IM{number:04d}",
            SERIES,
            number,
            PatientID="P7",
            Columns=read.shape[0],
            Rows=read.shape[1],
            PixelSpacing=[float(np.linalg.norm(down)), float(np.linalg.norm(across))],
            ImageOrientationPatient=[f"{value:.10g}" for value in directions],
            ImagePositionPatient=[f"{value:.10g}" for value in lps[:3, 3] + number * step],
            PixelData=np.ascontiguousarray(read.array[0, :, :, number].T.round()).astype("<i2").tobytes(),
        )


@pytest.fixture(scope="module")
def studies(tmp_path_factory) -> Path:
    """One phantom as NIfTI, and one as a DICOM series in nested folders."""
    folder = tmp_path_factory.mktemp("stored") / "studies"
    write_studies(folder, 2)
    last = sorted(folder.glob("*.nii.gz"))[-1]
    write_phantom_as_dicom(last, folder / "DOE_JANE" / "STUDY" / "SERIES")
    last.unlink()
    return folder


@pytest.fixture(scope="module")
def served(studies: Path, tmp_path_factory) -> Iterator[Client]:
    """A server on them that takes a series for whole at once."""
    patch = pytest.MonkeyPatch()
    patch.setenv("LABELROUNDS_SERIES_REST_S", "0")
    with running_server(studies, tmp_path_factory.mktemp("stored-home"), 0, [MODEL]) as client:
        for _ in range(200):
            if SERIES in client.call("GET", "/datastore/?output=all").json()["objects"]:
                break
            time.sleep(0.2)
        else:
            pytest.fail("the series was not taken up")
        yield client
    patch.undo()


def test_a_series_is_listed_downloaded_segmented_labelled_and_turned_back(served, studies, tmp_path):
    assert served.call("GET", "/datastore/").json()["total"] == 2
    answer = served.call("GET", f"/datastore/image?image={SERIES}")
    assert f"{SERIES}.nrrd" in answer.headers["content-disposition"]
    (tmp_path / "image.nrrd").write_bytes(answer.content)
    image, source = read_image(tmp_path / "image.nrrd"), read_image(studies / "DOE_JANE" / "STUDY" / "SERIES")
    assert np.array_equal(image.array, source.array) and np.abs(image.affine - source.affine).max() < 1e-9
    prediction = served.segment(MODEL, image=SERIES)
    assert prediction.shape == image.shape and prediction.any()
    first = write_label(prediction, image.affine, tmp_path / "label.nii.gz")
    for label in (first, write_label(prediction * 0, image.affine, tmp_path / "empty.nii.gz")):
        served.submit(SERIES, label, LABELS)
    route = f"/datastore/label/history?image={SERIES}"
    told = served.call("GET", route).json()
    assert [(one["action"], one["user"], one["current"]) for one in told] == [
        ("saved", "admin", False),
        ("saved", "admin", True),
    ]
    restore = f"/datastore/label/restore?image={SERIES}&tag=final&sha256={told[0]['sha256'][:20]}"
    served.call("POST", restore)
    current = served.call("GET", f"/datastore/label?label={SERIES}&tag=final")
    (tmp_path / "current.nii.gz").write_bytes(current.content)
    assert np.array_equal(read_label(tmp_path / "current.nii.gz").array[0], prediction)
    assert served.call("GET", route).json()[-1]["restored_by"] == "admin"


def test_the_author_of_a_label_is_the_login_never_what_the_client_says(served, tmp_path):
    image = read_image_of(served, tmp_path)
    label = write_label(np.ones(image.shape, np.uint8), image.affine, tmp_path / "label.nii.gz")
    sent = {"user": "somebody else", "restored_by": "nobody", "label_info": [{"name": LABELS[0]}]}
    upload = {"label": (label.name, label.read_bytes())}
    served.call("PUT", f"/datastore/label?image={SERIES}", files=upload, data={"params": json.dumps(sent)})
    note = {"info": json.dumps({"user": "somebody else", "quality": "good"})}
    served.call("PUT", f"/datastore/label/info?label={SERIES}&tag=final", data=note)
    info = served.call("GET", f"/datastore/label/info?label={SERIES}&tag=final").json()
    assert (info["user"], info["quality"]) == ("admin", "good") and "restored_by" not in info


def read_image_of(client: Client, folder: Path):
    (folder / "image.nrrd").write_bytes(client.call("GET", f"/datastore/image?image={SERIES}").content)
    return read_image(folder / "image.nrrd")


def slipping_zip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("../../canary-12.nii.gz", b"out")
        link = zipfile.ZipInfo("link.nii")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/hostname")
    return file.getvalue()


def slipping_tar() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, target in (("../../canary-12.nii.gz", ""), ("/tmp/canary-12.nii", ""), ("link.nii", "/etc/hostname")):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = (tarfile.SYMTYPE, target) if target else (tarfile.REGTYPE, "")
            archive.addfile(member)
    return file.getvalue()


def crowded_zip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for number in range(ENTRIES):
            archive.writestr(str(number), b"")
    return file.getvalue()


@pytest.mark.parametrize("archive", [slipping_zip, slipping_tar, crowded_zip])
def test_no_route_takes_an_archive(served, studies, tmp_path_factory, archive: Callable[[], bytes]):
    """Reliability 12: paths that lead out, links, 100,000 entries: refused, and nothing is unpacked."""
    content, before = archive(), files_of(studies.parent)
    kind = ".tar.gz" if archive is slipping_tar else ".zip"
    names = (f"study{kind}", "study.nii.gz", "study.dcm", "study")
    for name in names[:2] if archive is crowded_zip else names:
        for method, route, field in (
            ("PUT", "/datastore/image?image=archived", "file"),
            ("PUT", "/datastore/?image=archived", "file"),
            ("PUT", f"/datastore/label?image={SERIES}", "label"),
            ("PUT", "/session/?uncompress=true", "files"),
            ("POST", f"/infer/{MODEL}", "file"),
        ):
            answer = served._http.request(method, served.address + route, files={field: (name, content)}, timeout=60)
            assert answer.status_code in (400, 413, 415), (name, route, answer.text[:200])
            assert "Traceback" not in answer.text
    kept = served._http.put(f"{served.address}/session/", files=[("files", (f"a{kind}", content))] * 2, timeout=60)
    if kept.ok:  # the files of a series are kept as they are, and looked into when they are asked for
        session = kept.json()["session_id"]
        answer = served._http.post(f"{served.address}/infer/{MODEL}?session_id={session}", timeout=60)
        assert answer.status_code in (400, 415)
        served.call("DELETE", f"/session/{session}")
    assert files_of(studies.parent) == before
    assert not list(Path("/tmp").glob("canary-12*")) and not list(studies.parent.rglob("canary-12*"))


def files_of(folder: Path) -> set[str]:
    return {str(path) for path in folder.rglob("*") if not path.name.startswith(".")}
