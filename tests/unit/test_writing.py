"""A written label lies where its image lies, in every format, and is whole or not there."""

import resource
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import nibabel as nib
import nrrd
import numpy as np
import pytest

from labelrounds.errors import BadInput, OutOfSpace
from labelrounds.itk_loading import load_itk
from labelrounds.reading import read_label
from labelrounds.writing import write_label

NAMES = ["liver", "left kidney", "Übergang"]
ENDINGS = [".nii", ".nii.gz", ".nrrd", ".seg.nrrd"]


def rotated(*spacing: float, flip: tuple[int, int, int] = (1, 1, 1)) -> np.ndarray:
    rotation, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))
    affine = np.eye(4)
    affine[:3, :3] = rotation * spacing * np.array(flip)
    affine[:3, 3] = (-120.123, 80.5, -900.25)
    return affine


GEOMETRIES = {
    "axial": np.diag([1.0, 1.0, 1.0, 1.0]),
    "flipped": np.diag([-0.7, 0.7, -2.0, 1.0]),
    "anisotropic": np.diag([0.3, 0.3, 8.0, 1.0]),
    "axes exchanged": np.array([[0, 0, 2.0, 5], [-1.0, 0, 0, 6], [0, 1.5, 0, 7], [0, 0, 0, 1]]),
    "oblique": rotated(0.7, 0.8, 2.5),
    "oblique and left-handed": rotated(0.7, 0.8, 2.5, flip=(1, -1, 1)),
}


def blocks(shape: tuple[int, int, int] = (30, 20, 10)) -> np.ndarray:
    """Values 1 and 3; 2 is absent."""
    array = np.zeros(shape, np.uint8)
    array[3:9, 4:8, 2:5] = 1
    array[12:15, 4:8, 2:5] = 3
    return array


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("affine", GEOMETRIES.values(), ids=GEOMETRIES.keys())
def test_a_label_comes_back_with_the_same_voxels_at_the_same_place(tmp_path: Path, affine: np.ndarray, ending: str):
    label = read_label(write_label(blocks(), affine, tmp_path / f"label{ending}", NAMES))
    assert np.array_equal(label.array[0], blocks())
    assert np.abs(label.affine - affine).max() < (1e-9 if "nrrd" in ending else 1e-4)


@pytest.mark.parametrize("affine", GEOMETRIES.values(), ids=GEOMETRIES.keys())
def test_other_readers_find_the_label_at_the_same_place(tmp_path: Path, affine: np.ndarray):
    image = nib.load(write_label(blocks(), affine, tmp_path / "label.nii.gz", NAMES))
    assert np.array_equal(np.asarray(image.dataobj), blocks())
    assert np.abs(image.affine - affine).max() < 1e-4
    data, header = nrrd.read(str(write_label(blocks(), affine, tmp_path / "label.nrrd", NAMES)), index_order="F")
    assert np.array_equal(data, blocks())
    assert np.allclose(header["space directions"].T, (np.diag([-1, -1, 1, 1]) @ affine)[:3, :3], atol=1e-12)


def test_an_array_in_any_memory_order_is_written_the_same(tmp_path: Path):
    for name, array in {
        "c": np.ascontiguousarray(blocks()),
        "f": np.asfortranarray(blocks()),
        "view": blocks()[::-1][::-1],
    }.items():
        assert np.array_equal(read_label(write_label(array, np.eye(4), tmp_path / f"{name}.nrrd")).array[0], blocks())


def test_a_segmentation_file_lists_every_segment_also_an_empty_one(tmp_path: Path):
    path = write_label(blocks(), np.eye(4), tmp_path / "label.seg.nrrd", NAMES)
    assert read_label(path).segments == {"liver": 1, "left kidney": 2, "Übergang": 3}
    header = nrrd.read_header(str(path))
    assert header["Segmentation_MasterRepresentation"] == "Binary labelmap"
    assert header["Segment0_Extent"] == "3 8 4 7 2 4"
    assert {header[f"Segment{index}_Layer"] for index in range(3)} == {"0"}


def test_itk_reads_any_name_as_it_was(tmp_path: Path):
    names = ['a "b" \\c\\n', "b:=x", "# c", "two\nlines"]
    path = write_label(blocks(), np.eye(4), tmp_path / "label.seg.nrrd", names)
    found = dict(load_itk().imread(str(path)))
    assert [found[f"Segment{index}_Name"] for index in range(4)] == [*names[:3], "two lines"]


def test_3d_slicer_shows_the_segments_with_names_at_their_place_and_saves_the_whole_grid(tmp_path: Path):
    pytest.importorskip("slicer", reason="slicer-core is not installed (the test extra brings it)")
    affine = GEOMETRIES["oblique and left-handed"]
    path = write_label(blocks(), affine, tmp_path / "label.seg.nrrd", NAMES)
    script = f"""
        import numpy, slicer, vtk
        scene = slicer.vtkMRMLScene()
        node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode")
        storage = scene.AddNewNodeByClass("vtkMRMLSegmentationStorageNode")
        storage.SetFileName({str(path)!r})
        assert storage.ReadData(node)
        segmentation = node.GetSegmentation()
        assert [segmentation.GetNthSegment(i).GetName() for i in range(3)] == {NAMES!r}
        for i in range(segmentation.GetNumberOfSegments()):
            labelmap, matrix = slicer.vtkOrientedImageData(), vtk.vtkMatrix4x4()
            node.GetBinaryLabelmapRepresentation(segmentation.GetNthSegmentID(i), labelmap)
            labelmap.GetImageToWorldMatrix(matrix)
            found = numpy.array([[matrix.GetElement(r, c) for c in range(4)] for r in range(4)])
            assert numpy.abs(found - numpy.array({affine.tolist()!r})).max() < 1e-9
        storage.SetFileName({str(tmp_path / "again.seg.nrrd")!r})
        assert storage.WriteData(node)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    again = read_label(tmp_path / "again.seg.nrrd")
    assert np.array_equal(again.array[0], blocks())
    assert np.abs(again.affine - affine).max() < 1e-9
    assert again.segments == {name: value for value, name in enumerate(NAMES, start=1)}


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_large_label_is_written_fast_and_small(tmp_path: Path, ending: str):
    array = np.zeros((512, 512, 300), np.uint8, order="F")
    array[100:300, 50:200, 30:140] = 1
    write_label(blocks(), np.eye(4), tmp_path / f"warm{ending}", NAMES)
    start = time.process_time()
    path = write_label(array, np.eye(4), tmp_path / f"label{ending}", NAMES)
    # Processor time: the machine may be busy with other things.
    assert time.process_time() - start < 1.5
    assert ending == ".nii" or path.stat().st_size < 2e6


@pytest.mark.parametrize(
    ("array", "name", "message"),
    [
        (blocks(), "label.mha", "ending"),
        (blocks().astype(np.int16), "label.nrrd", "int16"),
        (blocks()[0], "label.nrrd", r"\(20, 10\)"),
        (np.zeros((0, 3, 3), np.uint8), "label.nrrd", "0, 3, 3"),
        (blocks() * 2, "label.seg.nrrd", "value 6 has no name"),
        (np.zeros((2**15, 1, 1), np.uint8), "label.nii.gz", r"\[32768, 1, 1\] voxels; NIfTI holds at most 32767"),
    ],
)
def test_what_is_no_label_is_not_written(tmp_path: Path, array: np.ndarray, name: str, message: str):
    with pytest.raises(BadInput, match=message):
        write_label(array, np.eye(4), tmp_path / name, NAMES)
    assert list(tmp_path.iterdir()) == []


def test_a_geometry_that_cannot_be_is_not_written(tmp_path: Path):
    for wrong in (np.zeros((4, 4)), np.full((4, 4), np.nan), np.eye(4) + np.eye(4, k=1)):
        with pytest.raises(BadInput, match="affine"):
            write_label(blocks(), wrong, tmp_path / "label.nrrd")


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_full_disk_leaves_the_old_label_and_nothing_else(tmp_path: Path, ending: str):
    path = write_label(blocks(), np.eye(4), tmp_path / f"label{ending}", NAMES)
    old = path.read_bytes()
    noise = np.random.default_rng(0).integers(0, 4, (120, 120, 120)).astype(np.uint8)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OutOfSpace):
            write_label(noise, np.eye(4), path, NAMES)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == old
    assert [found.name for found in tmp_path.iterdir()] == [path.name]
