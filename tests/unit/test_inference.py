"""An image of any size and orientation comes back as a label map on its own voxels."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

import labelrounds.host  # noqa: F401 - first, so that the host can be imported
from labelrounds import inference
from labelrounds.checkpoints import Checkpoints
from labelrounds.errors import BadInput, Cancelled, Conflict, LabelRoundsError, TooLarge
from labelrounds.inference import SegmentationInferer, predict, probabilities, segment
from labelrounds.networks import build_network
from labelrounds.phantoms import make_phantom
from labelrounds.reading import Image, read_image, read_label

CPU = torch.device("cpu")


@pytest.fixture
def config(make_config):
    return make_config()


@pytest.fixture
def serve(config):
    """Publish a network whose answers follow from its seed."""

    def publish(seed: int = 0):
        torch.manual_seed(seed)
        return Checkpoints(config).publish(build_network(config).eval(), {})

    return publish


@pytest.fixture
def inferer(config) -> SegmentationInferer:
    return SegmentationInferer(config, threading.Lock())


@pytest.fixture
def made(inferer):
    """Ask for a segmentation; the files are removed afterwards."""
    files = []

    def ask(image: Path, **request):
        file, params = inferer({"image": str(image), "device": "cpu", **request})
        files.append(Path(file))
        return Path(file), params

    yield ask
    for file in files:
        file.unlink(missing_ok=True)


@pytest.fixture
def image(tmp_path) -> Path:
    return save(np.random.default_rng(0).normal(size=(18, 20, 17)).astype(np.float32), tmp_path / "image.nii.gz")


def save(array: np.ndarray, file: Path, affine=None) -> Path:
    nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), file)
    return file


class BySign(torch.nn.Module):
    """Says ``far`` where the image is positive, ``near`` where it is negative."""

    def forward(self, images):
        return torch.cat((-images.abs() - 1, -images, images), dim=1)


@pytest.mark.parametrize("shape", [(4, 5, 3), (1, 1, 1), (40, 3, 16), (16, 16, 16), (33, 17, 20)], ids=str)
@pytest.mark.parametrize("blend", ["gaussian", "owner"])
def test_an_image_of_any_size_gets_an_answer_for_each_voxel(make_config, shape, blend):
    config = make_config(inference={"blend": blend})
    image = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    label = predict(BySign(), image, config)
    assert label.dtype == torch.uint8 and label.shape == shape
    assert torch.equal(label, torch.where(image[0] > 0, 2, 1).to(torch.uint8))


def test_probabilities_are_what_the_label_map_is_the_largest_of(config):
    image = torch.randn(1, 33, 17, 20, generator=torch.Generator().manual_seed(0))
    chances = probabilities(BySign(), image, config)
    assert chances.shape == (3, 33, 17, 20)
    assert chances.sum(dim=0).allclose(torch.ones(33, 17, 20))
    assert chances.argmax(dim=0).equal(predict(BySign(), image, config).long())


def test_a_client_that_has_gone_is_computed_for_no_longer(config):
    with pytest.raises(Cancelled, match="stopped after 0 of 2 windows"):
        segment(BySign(), Image(np.zeros((1, 20, 8, 8), np.float32), np.eye(4), "nifti"), config, CPU, lambda: True)


@pytest.mark.parametrize("patch_size", [[16, 16, 16], [16, 16, 1]], ids=str)
def test_a_real_network_answers_for_an_image_smaller_than_its_patch(make_config, patch_size):
    config = make_config(patch_size=patch_size)
    label = predict(build_network(config).eval(), torch.randn(1, 5, 7, 3), config)
    assert label.shape == (5, 7, 3) and int(label.max()) <= 2


def test_the_answer_lies_on_the_images_own_voxels(make_config):
    config = make_config(intensity={"kind": "window", "low": -2, "high": 2}, spacing_mm=[1.0, 1.0, 1.0])
    array = np.full((10, 12, 14), -1.0, np.float32)
    array[:5] = 1.0
    affine = np.array([[0.0, 0, -1, 4], [-1, 0, 0, 5], [0, 1, 0, 6], [0, 0, 0, 1]])
    label = segment(BySign(), Image(array[None], affine, "nifti"), config, CPU)
    assert np.array_equal(label, np.where(array > 0, 2, 1))


def test_cleaning_is_applied(make_config):
    config = make_config(cleaning={"far": {"largest_component": True}})
    array = np.full((12, 12, 12), -1.0, np.float32)
    array[2:8, 2:8, 2:8], array[10, 10, 10] = 1.0, 1.0
    label = segment(BySign(), Image(array[None], np.eye(4), "nifti"), config, CPU)
    assert (label == 2).sum() == 216


def test_another_number_of_channels_is_refused(config):
    with pytest.raises(BadInput, match="has 2 channels, model tiny takes 1"):
        segment(BySign(), Image(np.zeros((2, 4, 4, 4), np.float32), np.eye(4), "nifti"), config, CPU)


def test_without_a_version_there_is_no_answer(inferer, made, image):
    assert not inferer.is_valid()
    with pytest.raises(Conflict, match="model tiny has no trained version yet: submit labels"):
        made(image)


def test_a_damaged_version_is_told_to_who_asks_and_not_hidden(inferer, made, image, serve, config):
    serve()
    (Checkpoints(config).folder / "current.json").write_text("{")
    assert inferer.is_valid()
    with pytest.raises(BadInput, match=r"current\.json is damaged"):
        made(image)


@pytest.mark.parametrize("device", ["cuda:99", "gpu", 7, {"a": 1}, [], "cpu:1", "cuda:-1"], ids=str)
def test_a_device_that_is_not_there_is_refused(made, image, serve, device):
    serve()
    with pytest.raises(BadInput, match=r"device .*cpu"):
        made(image, device=device)


def test_a_list_of_devices_means_its_first(made, image, serve):
    serve()
    assert made(image, device=["cpu", "cuda:99"])[1]["version"] == 1


@pytest.mark.parametrize("extension", [".exe", "nrrd", "../x.nrrd", 7, [".nrrd"]], ids=str)
def test_an_unknown_extension_is_refused(made, image, serve, extension):
    serve()
    with pytest.raises(BadInput, match=r"result_extension .* is not one of \.nrrd, \.nii\.gz"):
        made(image, result_extension=extension)


@pytest.mark.parametrize("extension", [None, "", ".nrrd", ".nii.gz", ".nii", ".seg.nrrd"], ids=str)
def test_a_result_is_a_label_map_that_is_read_again(made, image, serve, config, extension):
    serve()
    file, params = made(image, result_extension=extension)
    assert file.name.endswith(extension or ".nrrd")
    assert read_label(file).shape == (18, 20, 17)
    assert params["label_names"] == {"near": 1, "far": 2}
    assert list(params["label_names"].values()) == list(range(1, len(config.labels) + 1))
    assert set(params["latencies"]) == {"read", "wait", "segment", "write", "total"}


def test_an_empty_result_still_names_all_labels(made, serve, config, tmp_path):
    network = build_network(config)
    with torch.no_grad():
        network.net.output_block.conv.conv.bias.copy_(torch.tensor([1e6, 0.0, 0.0]))
    Checkpoints(config).publish(network, {})
    file, params = made(save(np.zeros((8, 8, 8), np.float32), tmp_path / "empty.nii.gz"), result_extension=".seg.nrrd")
    assert not read_label(file).array.any()
    assert params["label_names"] == {"near": 1, "far": 2}
    assert read_label(file).segments == {"near": 1, "far": 2}


def test_a_new_version_is_picked_up_without_a_restart_and_so_is_a_rollback(inferer, made, image, serve, config):
    answers = {}
    for seed in (1, 2):
        serve(seed)
        file, params = made(image)
        assert params["version"] == seed
        answers[seed] = read_label(file).array
    assert not np.array_equal(answers[1], answers[2])
    Checkpoints(config).serve(1)
    file, params = made(image)
    assert params["version"] == 1
    assert np.array_equal(read_label(file).array, answers[1])


def test_a_network_is_loaded_once(inferer, made, image, serve, monkeypatch):
    serve()
    loads = []
    load = Checkpoints.load
    monkeypatch.setattr(Checkpoints, "load", lambda self, *args: (loads.append(1), load(self, *args)))
    made(image)
    made(image)
    assert len(loads) == 1


def test_concurrent_requests_get_what_each_would_get_alone(made, serve, tmp_path):
    serve()
    images = [
        save(np.random.default_rng(seed).normal(size=(10 + seed, 16, 12)).astype(np.float32), tmp_path / f"{seed}.nii")
        for seed in range(4)
    ]
    alone = [read_label(made(image)[0]).array for image in images]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda image: read_label(made(image)[0]).array, images * 3))
    assert all(np.array_equal(label, alone[index % 4]) for index, label in enumerate(together))


def test_one_request_at_a_time_computes(config, serve, image, monkeypatch):
    serve()
    inside, most = [], []

    def counted(network, image, config, device):
        inside.append(1)
        most.append(len(inside))
        threading.Event().wait(0.02)
        inside.pop()
        return np.zeros(image.shape, np.uint8)

    monkeypatch.setattr("labelrounds.inference.segment", counted)
    turn = threading.Lock()
    inferers = [SegmentationInferer(config, turn) for _ in range(2)]
    with ThreadPoolExecutor(4) as pool:
        files = list(pool.map(lambda index: inferers[index % 2]({"image": str(image), "device": "cpu"})[0], range(6)))
    for file in files:
        Path(file).unlink()
    assert max(most) == 1 and len(most) == 6


def test_the_answer_for_an_oblique_study_lies_where_the_study_lies(made, serve, tmp_path):
    serve()
    phantom = make_phantom(1, "oblique")
    study = save(phantom.image[:24, :20, :18], tmp_path / "study.nii.gz", phantom.affine)
    for extension in (".nrrd", ".nii.gz"):
        label = read_label(made(study, result_extension=extension)[0])
        assert label.shape == (24, 20, 18)
        assert np.allclose(label.affine, read_image(study).affine, atol=1e-3)
        assert np.allclose(label.affine, phantom.affine, atol=1e-3)


def test_nothing_stays_behind_when_the_result_can_not_be_written(made, image, serve, monkeypatch, tmp_path):
    serve()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()

    def fails(*args):
        raise LabelRoundsError("no room")

    monkeypatch.setattr("labelrounds.inference.write_label", fails)
    with pytest.raises(LabelRoundsError, match="no room"):
        made(image)
    assert list((tmp_path / "temporary").iterdir()) == []


def test_an_image_of_several_channels_reaches_a_model_of_as_many(make_config, tmp_path):
    config = make_config(name="two", channels=2)
    Checkpoints(config).publish(build_network(config), {})
    image = save(np.random.default_rng(0).normal(size=(8, 8, 8, 2)).astype(np.float32), tmp_path / "two.nii.gz")
    file, _ = SegmentationInferer(config, threading.Lock())({"image": str(image), "device": "cpu"})
    assert read_label(Path(file)).shape == (8, 8, 8)
    Path(file).unlink()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_gives_nearly_the_same_answer(made, serve, image):
    serve()
    one, other = (read_label(made(image, device=device)[0]).array for device in ("cpu", "cuda"))
    assert (one == other).mean() > 0.97


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), TooLarge("needs 90 GB")])
@pytest.mark.parametrize("part", ["place", "segment"])
def test_what_a_gpu_has_not_the_memory_for_is_segmented_on_the_cpu_and_said_so(
    made, image, serve, monkeypatch, error, part
):
    serve()
    expected, params = made(image)
    assert params["device"] == "cpu" and "note" not in params
    gpu, whole, place = torch.device("cuda:0"), getattr(inference, part), inference.place
    # Without a GPU it is one by name alone.
    monkeypatch.setattr(inference, "choose_device", lambda wanted: gpu)
    monkeypatch.setattr(inference, "place", lambda network, device, dimensions: place(network, CPU, dimensions))

    def limited(*args):
        if gpu in args:
            raise error
        return whole(*args)

    monkeypatch.setattr(inference, part, limited)
    for _ in range(2):
        file, params = made(image, device="cuda:0")
        assert (params["device"], params["note"]) == ("cpu", "segmented on the CPU: out of memory on cuda:0")
        assert np.array_equal(read_label(file).array, read_label(expected).array)


def test_what_the_machine_has_not_the_memory_for_is_refused_and_the_next_is_served(made, image, serve, monkeypatch):
    serve()
    with monkeypatch.context() as patch:
        patch.setattr(inference, "predict", lambda *args: torch.empty(2**50, dtype=torch.uint8))
        with pytest.raises(
            TooLarge, match="an image of 18 x 20 x 17 voxels can't be segmented in the memory of the ma"
        ):
            made(image)
    assert made(image)[1]["version"] == 1


def test_an_error_of_another_kind_is_not_tried_again(made, image, serve, monkeypatch):
    serve()
    tried = []

    def fails(*args):
        tried.append(1)
        raise RuntimeError("shapes cannot be multiplied")

    monkeypatch.setattr(inference, "predict", fails)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        made(image)
    assert len(tried) == 1


def test_an_image_that_would_not_fit_into_memory_is_refused_before_it_is_tried(config, monkeypatch):
    monkeypatch.setattr(inference, "free_bytes", lambda device: 1_000_000_000)
    image = torch.zeros(1).expand(config.channels, 1000, 1000, 1000)
    told = r"1000 x 1000 x 1000 voxels, which needs {} GB for 2 labels; 1\.0 GB are free"
    with pytest.raises(TooLarge, match=told.format(r"1\.2")):
        predict(BySign(), image, config)
    with pytest.raises(TooLarge, match=told.format(r"12\.2")):
        probabilities(BySign(), image, config)
