"""What a client sends is read by others than the server: nothing in a file is its error, and every answer is finite."""

import gzip
import io
import json
import struct
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import psutil
import pytest
import requests

from labelrounds.itk_loading import load_itk
from labelrounds.phantoms import make_phantom
from tests.api.conftest import MODEL
from tests.fuzz.files import mutated_files


def infer(server, name: str, content: bytes, **params: Any) -> requests.Response:
    route = f"{server.address}/infer/{MODEL}?output={params.pop('output', 'image')}"
    data = {"params": json.dumps(params)}
    return requests.post(route, files={"file": (name, content)}, data=data, timeout=120)


def nifti(array: np.ndarray, affine: np.ndarray | None = None) -> bytes:
    return nib.Nifti1Image(array, np.eye(4) if affine is None else affine).to_bytes()


def label_in(answer: requests.Response, folder: Path, extension: str = ".nrrd") -> Any:
    """Return the label as ITK reads it."""
    assert answer.status_code == 200, answer.text
    path = folder / f"label{extension}"
    path.write_bytes(answer.content)
    return load_itk().imread(str(path))


def test_no_header_is_an_error_of_the_servers(server, tmp_path):
    """Reliability 1."""
    seen = set()
    for ending in (".nii.gz", ".nrrd", ".dcm"):
        for path in mutated_files(ending, 40, tmp_path):
            answer = requests.put(
                f"{server.address}/datastore/label?image=phantom_000",
                files={"label": (path.name, path.read_bytes())},
                timeout=120,
            )
            seen.add(answer.status_code)
            assert answer.status_code in (400, 413, 415), answer.text
            assert path.name in answer.json()["detail"]
    assert {400, 415} <= seen


def test_a_server_reads_in_other_processes_and_replaces_those_that_die(server):
    readers = [
        process
        for process in psutil.Process().children(recursive=True)
        if any("labelrounds.reader_process" in word for word in process.cmdline())
        and process.parent().cmdline() == process.cmdline()
    ]
    assert readers
    for reader in readers:
        reader.kill()
    assert infer(server, "scan.nii", nifti(make_phantom(0).image), output="json").status_code == 200


@pytest.mark.parametrize(
    ("shape", "allowed"),
    [((8, 9), True), ((1, 1, 1), True), ((200, 5, 4), True), ((6, 5, 4, 3), False), ((6, 5, 4, 1), True)],
)
def test_an_odd_shape_is_refused_or_gets_a_label_of_its_own_shape(server, tmp_path, shape, allowed):
    """Reliability 7."""
    answer = infer(server, "scan.nii", nifti(np.random.default_rng(1).normal(size=shape).astype(np.float32)))
    if not allowed:
        assert answer.status_code == 400 and "3 channels" in answer.json()["detail"]
    else:
        found = load_itk().array_from_image(label_in(answer, tmp_path)).T
        assert found.shape == (*shape, 1, 1)[:3]


def test_voxels_that_are_not_finite_give_a_finite_answer(server, tmp_path):
    """Reliability 6."""
    image = make_phantom(0).image.astype(np.float32)
    image[:2], image[2], image[3] = np.nan, np.inf, -np.inf
    answer = infer(server, "scan.nii", nifti(image), output="json")
    assert answer.status_code == 200

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    json.loads(answer.text, parse_constant=refuse)
    found = load_itk().array_from_image(label_in(infer(server, "scan.nii", nifti(image)), tmp_path))
    assert set(np.unique(found)) <= set(range(256))


@pytest.mark.parametrize("extension", [".nii.gz", ".nrrd", ".seg.nrrd"])
@pytest.mark.parametrize("flip", [(1, 1, 1), (-1, 1, 1), (1, -1, -1)])
def test_a_label_lies_where_its_image_lies(server, tmp_path, extension, flip):
    """Reliability 8."""
    rotation, _ = np.linalg.qr(np.random.default_rng(5).normal(size=(3, 3)))
    affine = np.eye(4)
    affine[:3, :3] = rotation * (0.7, 0.9, 2.5) * np.array(flip)
    affine[:3, 3] = (-120.5, 80.25, -900.75)
    content = nifti(np.random.default_rng(1).normal(size=(20, 18, 7)).astype(np.float32), affine)
    (tmp_path / "scan.nii").write_bytes(content)
    image = load_itk().imread(str(tmp_path / "scan.nii"))
    label = label_in(infer(server, "scan.nii", content, result_extension=extension), tmp_path, extension)
    for corner in ([0, 0, 0], [19, 0, 0], [0, 17, 0], [0, 0, 6], [19, 17, 6]):
        there = image.TransformIndexToPhysicalPoint(corner)
        here = label.TransformIndexToPhysicalPoint(corner)
        assert np.linalg.norm(np.subtract(here, there)) < 1e-3


def test_bombs_and_claims_are_refused_before_they_are_unpacked(server):
    """Reliability 4."""
    small = bytearray(nifti(np.zeros((4, 4, 4), np.uint8)))
    bomb = gzip.compress(bytes(small)) + gzip.compress(bytes(100 * 2**20)) * 100
    struct.pack_into("<4h", small, 40, 3, 32767, 32767, 32767)
    for name, content in (("bomb.nii.gz", bomb), ("claim.nii", bytes(small)), ("claim.nii.gz", gzip.compress(small))):
        answer = infer(server, name, content)
        assert answer.status_code == 413 and name in answer.json()["detail"]


def test_an_image_without_sense_is_not_added(server):
    """Reliability 5."""
    content = bytearray(nifti(np.zeros((4, 4, 4), np.uint8)))
    struct.pack_into("<4f", content, 280, float("nan"), 0, 0, 0)
    answer = requests.put(
        f"{server.address}/datastore/image?image=senseless", files={"file": ("a.nii", io.BytesIO(content))}, timeout=60
    )
    assert answer.status_code == 400 and "srow_x" in answer.json()["detail"]
