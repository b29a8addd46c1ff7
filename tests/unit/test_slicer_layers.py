"""Overlapping segments as the Slicer extension writes and opens them, in slicer-core: Slicer without a window."""

import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from labelrounds.reading import read_label
from labelrounds.writing import write_label

MODULE = Path(__file__).parents[2] / "apps" / "slicer" / "LabelRounds"
NAMES = ["C:\\new\\\\liver", 'a "tumour"']
START = f"""
    import sys
    sys.path.insert(0, {str(MODULE)!r})
    from pathlib import Path
    import numpy as np
    import slicer, vtk
    if not hasattr(slicer, "mrmlScene"):
        slicer.mrmlScene = slicer.vtkMRMLScene()
    from LabelRoundsLib import layers, segments
    scene = slicer.mrmlScene
    image = vtk.vtkImageData()
    image.SetDimensions(8, 7, 6)
    image.AllocateScalars(vtk.VTK_SHORT, 1)
    volume = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode")
    volume.SetAndObserveImageData(image)
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode")
"""


def in_slicer(script: str) -> None:
    pytest.importorskip("slicer", reason="slicer-core is not installed (the test extra brings it)")
    text = textwrap.dedent(START) + textwrap.dedent(script)
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("ending", [".seg.nrrd", ".nrrd"])
def test_layers_are_written_and_opened_again_under_any_name_and_ending(tmp_path: Path, ending: str):
    file = tmp_path / f"a{ending}"
    flat = np.zeros((8, 7, 6), np.uint8)
    flat[0], flat[1] = 1, 2
    write_label(flat, np.diag([-1.0, -1.0, 1.0, 1.0]), tmp_path / "flat.seg.nrrd", NAMES)
    in_slicer(f"""
        layers.put(node, volume, Path({str(tmp_path / "flat.seg.nrrd")!r}), {{}})
        drawn = np.zeros((2, 6, 7, 8), bool)
        drawn[0, :3] = drawn[1, 1:4] = True
        keys = [key for _, key in segments.named(node)]
        segments.voxels_on = lambda volume, node, key: drawn[keys.index(key)]
        file = layers.Layers(node, volume).write(Path({str(file)!r}))
        for is_named in (True, False):
            assert layers.must_read(file, is_named)
        again = scene.AddNewNodeByClass("vtkMRMLSegmentationNode")
        layers.put(again, volume, file, {{}})
        assert [name for name, _ in segments.named(again)] == {NAMES!r}
        assert again.GetSegmentation().GetNumberOfLayers() == 2
    """)
    label = read_label(file)
    assert label.segments == {name: value for value, name in enumerate(NAMES, 1)}
    assert [int((label.array == value).sum()) for value in (1, 2)] == [56, 168]


def test_a_label_map_is_none_that_must_be_read_as_a_segmentation_file(tmp_path: Path):
    text = "NRRD0004\ntype: uchar\ndimension: 3\nsizes: 8 7 6\nencoding: raw\n{}\n"
    (tmp_path / "plain.nrrd").write_bytes(text.format("").encode() + bytes(336))
    (tmp_path / "named.nrrd").write_bytes(text.format("Segment0_Name:=liver\n").replace("\n", "\r\n").encode())
    (tmp_path / "layers.nii.gz").write_bytes(b"dimension: 4\n\n")
    in_slicer(f"""
        folder = Path({str(tmp_path)!r})
        found = [layers.must_read(folder / name, False) for name in ("plain.nrrd", "named.nrrd", "layers.nii.gz")]
        assert found == [False, True, False]
        assert not layers.must_read(folder / "named.nrrd", True)
    """)
