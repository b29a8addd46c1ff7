"""A real Orthanc, a real server on it, and a real browser: from a series on the PACS to a label there, and back."""

import io
import json
import time
from collections.abc import Iterator
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
import requests
from monailabel.config import settings as host_settings
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

from labelrounds.client import Client, running_server
from labelrounds.dicomweb import DicomwebStore
from labelrounds.geometry import ras_to_lps
from labelrounds.pacs import Pacs
from labelrounds.reading import read_image, read_label
from labelrounds.settings import ServerSettings
from labelrounds.writing import write_label
from tests.real_images import DATA as REAL_IMAGES
from tests.real_images import real

from .orthanc import Orthanc, running_orthanc

DATA = REAL_IMAGES / "dicom_brain_mr"
MODEL, LABELS = "unet_hippocampus", ["anterior", "posterior"]
STUDY = "1.3.6.1.4.1.14519.5.2.1.4429.7055.812059520220877654137991744184"
CROP = "1.2.826.0.1.3680043.8.498.26269410813686558956046182253949569533"
T1_POST = "1.3.6.1.4.1.14519.5.2.1.4429.7055.250698293053013179878447218670"
FLAIR = "1.3.6.1.4.1.14519.5.2.1.4429.7055.105521800202421035670670758706"
GRAPHICS = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory) -> Iterator[Orthanc]:
    real("dicom_brain_mr")
    with running_orthanc(tmp_path_factory.mktemp("pacs") / "orthanc") as found:
        found.push(sorted(file for file in DATA.rglob("*") if file.is_file() and file.suffix != ".md"))
        yield found


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def server(orthanc: Orthanc, home: Path) -> Iterator[Client]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MONAI_LABEL_DICOMWEB_USERNAME", orthanc.user)
        patch.setenv("MONAI_LABEL_DICOMWEB_PASSWORD", orthanc.password)
        patch.setenv("MONAI_LABEL_DICOMWEB_SEARCH_FILTER", json.dumps({"Modality": "MR"}))
        with running_server(orthanc.address, home, 0, [MODEL]) as client:
            yield client


@pytest.fixture
def fresh(orthanc: Orthanc, tmp_path: Path, monkeypatch) -> Iterator[DicomwebStore]:
    """The store of another server on the same PACS, with nothing in its cache."""
    monkeypatch.setattr(host_settings, "MONAI_LABEL_DICOMWEB_USERNAME", orthanc.user)
    monkeypatch.setattr(host_settings, "MONAI_LABEL_DICOMWEB_PASSWORD", orthanc.password)
    pacs = Pacs(orthanc.address, ServerSettings())
    store = DicomwebStore(pacs, {"Modality": "MR"}, tmp_path / "cache", known_labels=LABELS)
    yield store
    store.close()


def where(array: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Return value and LPS position of each voxel that has a value, sorted."""
    index = np.argwhere(array)
    positions = index @ affine[:3, :3].T + affine[:3, 3]
    rows = np.column_stack([array[tuple(index.T)], positions.round(3)])
    return rows[np.lexsort(rows.T[::-1])]


def test_the_series_of_the_pacs_are_listed_and_one_is_segmented(server: Client, orthanc: Orthanc, tmp_path: Path):
    assert server.call("GET", "/info/").json()["datastore"]["total"] == 5
    answer = server.call("POST", f"/infer/{MODEL}?image={CROP}&output=image")
    (tmp_path / "prediction.nrrd").write_bytes(answer.content)
    image, prediction = read_image(DATA / "11_HCropVolume"), read_label(tmp_path / "prediction.nrrd")
    assert prediction.shape == image.shape
    assert np.abs(prediction.affine - image.affine).max() < 1e-3
    assert set(np.unique(prediction.array)) == {0, 1, 2}


def test_a_submitted_label_is_a_dicom_seg_on_the_pacs_with_names_places_and_its_model(
    server: Client, orthanc: Orthanc, tmp_path: Path
):
    answer = server.call("POST", f"/infer/{MODEL}?image={CROP}&output=image")
    (tmp_path / "label.nrrd").write_bytes(answer.content)
    server.submit(CROP, tmp_path / "label.nrrd", LABELS)
    (stored,) = orthanc.segmentations(CROP)
    source = pydicom.dcmread(next((DATA / "11_HCropVolume").iterdir()))
    for keyword in ("PatientID", "PatientName", "StudyInstanceUID", "FrameOfReferenceUID"):
        assert stored[keyword].value == source[keyword].value
    stored.save_as(tmp_path / "seg.dcm", enforce_file_format=True)
    seg = highdicom.seg.segread(tmp_path / "seg.dcm")
    described = [seg.get_segment_description(number) for number in seg.segment_numbers]
    assert [(one.segment_number, one.segment_label, one.algorithm_type.value) for one in described] == [
        (1, "anterior", "SEMIAUTOMATIC"),
        (2, "posterior", "SEMIAUTOMATIC"),
    ]
    by = described[0].SegmentationAlgorithmIdentificationSequence[0]
    assert (by.AlgorithmName, by.AlgorithmVersion) == (MODEL, "0")
    kinds = [one.SegmentedPropertyTypeCodeSequence[0] for one in described]
    assert [(kind.CodeMeaning, kind.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning) for kind in kinds] == [
        ("Hippocampus", "Anterior"),
        ("Hippocampus", "Posterior"),
    ]
    volume, label = seg.get_volume(combine_segments=True), read_label(tmp_path / "label.nrrd")
    ours, theirs = where(label.array[0], ras_to_lps(label.affine)), where(volume.array, volume.affine)
    assert ours.shape == theirs.shape and np.abs(ours - theirs).max() < 1e-3


def test_a_corrected_label_of_oblique_slices_is_a_second_series_and_the_newest_is_learnt_from(
    server: Client, orthanc: Orthanc, fresh: DicomwebStore, tmp_path: Path
):
    image = read_image(DATA / "11-T1post-18670")
    array = np.zeros(image.shape, np.uint8)
    for shift in (0, 7):
        array[100:120, 150 + shift : 180, 4:9], array[130:140, 100:110, 6] = 1, 2
        server.submit(T1_POST, write_label(array, image.affine, tmp_path / "label.nii.gz"), LABELS)
        array[:] = 0
    array[100:120, 157:180, 4:9], array[130:140, 100:110, 6] = 1, 2
    first, second = orthanc.segmentations(T1_POST)
    assert first.SeriesInstanceUID != second.SeriesInstanceUID
    assert {one.SegmentAlgorithmType for one in second.SegmentSequence} == {"MANUAL"}
    assert {T1_POST}.issubset(fresh.get_labeled_images())
    case = next(one for one in fresh.training_items() if one.image_id == T1_POST)
    read = read_label(case.label)
    assert np.array_equal(read.array[0], array) and np.abs(read.affine - image.affine).max() < 1e-3
    assert (case.values, case.patient) == ({"anterior": 1, "posterior": 2}, "PGBM-003")


def test_while_the_pacs_is_away_what_needs_it_is_told_to_come_back_and_its_case_is_free(
    server: Client, orthanc: Orthanc
):
    def ask(method: str, route: str, **options) -> requests.Response:
        return requests.request(method, server.address + route, timeout=60, **options)

    assert ask("POST", f"/infer/{MODEL}?image=1.2.3.4").status_code == 404
    assert ask("POST", f"/infer/{MODEL}?image={CROP}&output=json").ok
    with orthanc.gate.shut():
        for answer in (
            ask("POST", f"/infer/{MODEL}?image={FLAIR}"),
            ask("POST", "/activelearning/random", json={"client_id": "one"}),
            ask("GET", "/proxy/dicom/qido/studies"),
        ):
            assert (answer.status_code, "Retry-After" in answer.headers) == (503, True), answer.text
            assert "DICOMweb server" in answer.json()["detail"]
        assert ask("POST", f"/infer/{MODEL}?image={CROP}&output=json").ok  # it is in the cache
        assert ask("GET", "/info/").json()["datastore"]["total"] == 5
    assert server.call("GET", "/rounds/").json()["cases"]["in_hand"] == 0
    assert ask("POST", "/activelearning/random", json={"client_id": "two"}).json()["id"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=GRAPHICS)
        yield found
        found.close()


@pytest.fixture
def page(browser: Browser, server: Client) -> Iterator[Page]:
    """A tab that has asked nothing but the server when it is closed."""
    found = browser.new_page(viewport={"width": 1280, "height": 800})
    asked: list[str] = []
    found.on("request", lambda request: asked.append(request.url))
    yield found
    found.close()
    assert [url for url in asked if not url.startswith((server.address, "blob:", "data:"))] == []
    assert any("/proxy/dicom/" in url for url in asked)


def pixels(page: Page, number: int = 0) -> np.ndarray:
    """Return the colours of a viewport's canvas, ``(rows, columns, 3)``; one black pixel while there is none."""
    canvases = page.locator(".cornerstone-canvas")
    box = canvases.nth(number).bounding_box() if canvases.count() > number else None
    if box is None:
        return np.zeros((1, 1, 3), int)
    shown = page.screenshot(clip=box)
    return np.asarray(Image.open(io.BytesIO(shown)).convert("RGB")).astype(int)


def coloured(page: Page, number: int = 0) -> int:
    """Return how many pixels of the middle of a canvas are neither black nor grey, as those of a segment are."""
    shown = pixels(page, number)
    rows, columns = shown.shape[0] // 5, shown.shape[1] // 10
    middle = shown[rows:-rows, columns:-columns]
    return int((np.ptp(middle, axis=2) > 24).sum())


def wait_until(page: Page, condition, timeout_s: float = 90) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        page.wait_for_timeout(200)


def test_ohif_lists_the_studies(page: Page, server: Client):
    page.goto(f"{server.address}/ohif/")
    expect(page.get_by_text("PGBM-003").first).to_be_visible(timeout=90_000)
    expect(page.get_by_text("Albus").first).to_be_visible()


def test_ohif_asks_for_a_login_where_the_server_has_one_and_sends_the_token_with_each_request(
    page: Page, server: Client
):
    sent: list[tuple[str, str | None]] = []
    page.on("request", lambda request: sent.append((request.url, request.headers.get("authorization"))))
    page.route("**/auth/", lambda route: route.fulfill(json={"enabled": True}))
    page.route("**/auth/token", lambda route: route.fulfill(json={"access_token": "of-anna", "token_type": "bearer"}))
    page.goto(f"{server.address}/ohif/")
    page.locator("#login input[name=username]").fill("anna")
    page.locator("#login input[name=password]").fill("a key")
    assert not any("/proxy/" in url for url, _ in sent)
    page.locator("#login button").click()
    expect(page.get_by_text("PGBM-003").first).to_be_visible(timeout=90_000)
    assert {token for url, token in sent if "/proxy/" in url} == {"Bearer of-anna"}
    page.route("**/proxy/dicom/**", lambda route: route.fulfill(status=401))
    page.reload()
    expect(page.locator("#login")).to_be_visible(timeout=90_000)
    assert "of-anna" not in page.url and page.evaluate("sessionStorage.length") == 0


@pytest.mark.slow
def test_ohif_shows_and_segments_a_study(page: Page, server: Client, tmp_path: Path):
    page.set_default_timeout(90_000)
    expect.set_options(timeout=90_000)
    page.goto(f"{server.address}/ohif/monai-label?StudyInstanceUIDs={STUDY}")
    expect(page.locator("#monailabelServerURL")).to_have_value(f"{server.address}/")
    expect(page.get_by_text("HippoCrop").first).to_be_visible()
    wait_until(page, lambda: page.locator(".cornerstone-canvas").count() >= 3)
    wait_until(page, lambda: (pixels(page).max(axis=2) > 8).mean() > 0.1)
    assert coloured(page) < 50
    page.locator(".settingsTable button").click()
    page.get_by_text("Auto-Segmentation").wait_for()
    page.wait_for_timeout(1500)  # the panel colours its segments after a second
    with page.expect_response(lambda response: "/infer/" in response.url) as answered:
        page.locator(".modelSelector .actionButton").first.click()
    assert answered.value.status == 200 and CROP in answered.value.url
    wait_until(page, lambda: sum(coloured(page, number) for number in range(3)) > 1000)
    page.screenshot(path=tmp_path / "ohif.png")


@pytest.mark.slow
def test_ohif_opens_a_segmentation_that_was_stored(page: Page, server: Client, orthanc: Orthanc, tmp_path: Path):
    page.set_default_timeout(90_000)
    if not orthanc.segmentations(CROP):
        image = read_image(DATA / "11_HCropVolume")
        array = np.zeros(image.shape, np.uint8)
        array[8:20, 10:30, 10:20], array[8:20, 30:40, 10:20] = 1, 2
        server.submit(CROP, write_label(array, image.affine, tmp_path / "label.nii.gz"), LABELS)
    page.goto(f"{server.address}/ohif/viewer?StudyInstanceUIDs={STUDY}")
    page.get_by_text("LabelRounds: anterior, posterior").first.dblclick()
    page.get_by_text("LOAD", exact=True).click()
    page.locator("[data-cy=panelSegmentation-btn]").first.click()
    page.get_by_text("anterior", exact=True).first.click()
    page.locator("canvas").first.hover()

    def seen() -> bool:  # the click leads to its slice where the segmentation is drawn already; the wheel does anyway
        page.mouse.wheel(0, 100)
        page.wait_for_timeout(500)
        return coloured(page) > 500

    wait_until(page, seen)
    expect(page.get_by_text("posterior", exact=True).first).to_be_visible()
    page.screenshot(path=tmp_path / "ohif-seg.png")


def test_the_login_of_the_pacs_is_in_no_log_and_no_file(server: Client, orthanc: Orthanc, home: Path):
    written = [path for path in home.rglob("*") if path.is_file() and path.stat().st_size < 10_000_000]
    assert any(path.suffix == ".log" for path in written)
    assert [path for path in written if orthanc.password.encode() in path.read_bytes()] == []
