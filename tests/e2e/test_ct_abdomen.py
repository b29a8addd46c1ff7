"""A group's own organs in a real CT: one YAML file, one submitted label, a training, and what Slicer then shows."""

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from label_server import LabelServer
from observed import read_nifti
from tests.real_images import DATA as REAL_IMAGES

from labelrounds.client import Client

DATA = REAL_IMAGES / "ct_abdomen"
# Voxel values in TotalSegmentator's label file (its class list, version 2).
ORGANS = {"liver": 5, "spleen": 1, "stomach": 6}
MODEL = "organs_5mm"
CONFIG = f"""
description: Three large organs at 5 mm
labels: [{", ".join(ORGANS)}]
modality: CT
spacing_mm: [5.0, 5.0, 5.0]
intensity: {{kind: window, low: -160, high: 240}}
patch_size: [48, 48, 16]
network: {{name: unet, channels: [8, 16, 32]}}
training: {{epochs: 6, iterations_per_epoch: 15, batch_size: 2, learning_rate: 0.005}}
inference: {{overlap: 0.25}}
"""

pytestmark = pytest.mark.skipif(
    not DATA.is_dir(), reason=f"needs TotalSegmentator's test CT: no folder {DATA}; set LABELROUNDS_DATA"
)


@pytest.fixture(scope="module")
def truth(tmp_path_factory) -> Path:
    """The organs' label, values 1, 2, 3."""
    given = nib.load(DATA / "ct_thin_organs.nii.gz")
    values = np.asarray(given.dataobj)
    label = sum((k * (values == value) for k, value in enumerate(ORGANS.values(), 1)), np.zeros(values.shape, np.int16))
    path = tmp_path_factory.mktemp("truth") / "label.nii.gz"
    nib.save(nib.Nifti1Image(label.astype(np.uint8), given.affine), path)
    return path


@pytest.fixture(scope="module")
def server(tmp_path_factory, truth):
    """A server with the CT twice: `labelled`, on which the model is trained, and `next`, which is handed out."""
    studies, configs = tmp_path_factory.mktemp("studies"), tmp_path_factory.mktemp("configs")
    (configs / f"{MODEL}.yaml").write_text(CONFIG)
    for name in ("labelled", "next"):
        shutil.copy(DATA / "ct_thin.nii.gz", studies / f"{name}.nii.gz")
    server = LabelServer(studies, tmp_path_factory.mktemp("home"), configs, MODEL)
    server.wait()
    server.submit("labelled", truth, list(ORGANS))
    client = Client(server.url)
    client.call("POST", f"/train/{MODEL}", json={})
    *_, stats = client.follow_training(MODEL)
    assert stats["published"] == 1, stats
    yield server
    server.stop()


@pytest.mark.timeout(600)
def test_organs_of_a_trained_ct_model_open_in_slicer_by_name_and_place(server, truth, open_slicer, tmp_path):
    slicer = open_slicer(server.url)
    assert slicer.fetch() == []
    assert slicer.next_sample() == []
    assert slicer.current_image() == "next"
    slicer.choose("segmentationModelSelector", MODEL)
    assert slicer.run() == []
    scene = slicer.scene()
    image, label = read_nifti(server.studies / "next.nii.gz"), read_nifti(truth).voxels
    names, prediction = server.predict(MODEL, "next", tmp_path)
    assert names == list(ORGANS)
    assert np.array_equal(scene.image.on_grid_of(image), image.voxels)
    for value, name in enumerate(ORGANS, 1):
        shown = scene.segments[name].on_grid_of(image) > 0
        assert np.array_equal(shown, prediction.on_grid_of(image) == value)
    liver = scene.segments["liver"].on_grid_of(image) > 0
    # It has seen this very CT: what is tested is that the right organ lies in the right place.
    assert 2 * np.count_nonzero(liver & (label == 1)) / (liver.sum() + (label == 1).sum()) > 0.7
