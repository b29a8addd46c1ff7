"""A request for a segmentation: what it gets, from where, in whose way, and what is kept of it."""

import logging
import os
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FunctionType

import nibabel as nib
import numpy as np
import pytest
import torch

import labelrounds.host  # noqa: F401 - first, so that the host can be imported
from labelrounds import computing, devices, engine, inferer, memory_cache, runtime_measurement, served, sliding
from labelrounds.asking import STAGES
from labelrounds.checkpoints import Checkpoints
from labelrounds.engine import Engine
from labelrounds.errors import BadInput, Cancelled, Conflict, LabelRoundsError, NotFound, TooLarge
from labelrounds.inference import probabilities
from labelrounds.inferer import SegmentationInferer
from labelrounds.memory_cache import Memory, identity_of
from labelrounds.networks import build_network
from labelrounds.phantoms import make_phantom
from labelrounds.reading import read_image, read_label
from labelrounds.runtime_measurement import Figures, Measurement, settings_of
from labelrounds.runtimes import default_runtime, pytorch, runtimes
from labelrounds.runtimes.pytorch import Eager
from labelrounds.served import ServedNetworks
from labelrounds.transforms import prepare
from labelrounds.tuning import Tuning

CPU = torch.device("cpu")


@pytest.fixture
def config(make_config):
    return make_config()


@pytest.fixture
def image(tmp_path) -> Path:
    return save(np.random.default_rng(0).normal(size=(18, 20, 17)).astype(np.float32), tmp_path / "image.nii.gz")


def save(array: np.ndarray, file: Path, affine=None) -> Path:
    nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), file)
    return file


@pytest.fixture
def serve(config):
    """Publish a network whose answers follow from its seed."""

    def publish(seed: int = 0):
        torch.manual_seed(seed)
        return Checkpoints(config).publish(build_network(config).eval(), {})

    return publish


@pytest.fixture
def make_inferer():
    """Make inferers that share devices and memory, as the models of a server do."""
    shared = Engine(), Memory()
    yield lambda config: SegmentationInferer(config, *shared)
    shared[0].close()


@pytest.fixture
def inferer_of_tiny(make_inferer, config) -> SegmentationInferer:
    return make_inferer(config)


@pytest.fixture
def ask():
    """Ask an inferer for a segmentation; the files are removed afterwards."""
    files = []

    def infer(of: SegmentationInferer, image: Path, **request):
        file, params = of({"image": str(image), "device": "cpu", **request})
        files.append(Path(file))
        return Path(file), params

    yield infer
    for file in files:
        file.unlink(missing_ok=True)


@pytest.fixture
def made(ask, inferer_of_tiny):
    """Ask for a segmentation by the model ``tiny``."""
    return lambda image, **request: ask(inferer_of_tiny, image, **request)


def test_without_a_version_there_is_no_answer(inferer_of_tiny, made, image):
    assert not inferer_of_tiny.is_valid()
    with pytest.raises(Conflict, match="model tiny has no trained version yet: submit labels"):
        made(image)


def test_a_damaged_version_is_told_to_who_asks_and_not_hidden(inferer_of_tiny, made, image, serve, config):
    serve()
    (Checkpoints(config).folder / "current.json").write_text("{")
    assert inferer_of_tiny.is_valid()
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


def test_uncertainty_is_the_entropy_in_percent_on_the_images_own_grid(made, serve, config, tmp_path):
    version, voxels = serve(), np.random.default_rng(0).normal(size=(18, 20, 17)).astype(np.float32)
    turned = np.eye(4)[[1, 0, 2, 3]] * [[-1], [1], [1], [1]]  # the first axis runs from right to left, and second
    file, params = made(save(voxels, tmp_path / "turned.nii.gz", turned), uncertainty=True, result_extension=".nii.gz")
    network = build_network(config).eval()
    Checkpoints(config).load(version, network)
    upright = torch.from_numpy(np.ascontiguousarray(voxels.transpose(1, 0, 2)[::-1])).clamp(-1, 1)[None]
    chances = probabilities(network, upright, config).numpy()
    entropy = -(chances * np.log(chances)).sum(0) / np.log(3) * 100
    found = nib.load(file)
    assert np.array_equal(found.affine, turned) and params["label_names"] == {} and params["version"] == 1
    # Rounded, and in bfloat16 where the processor has it.
    assert np.abs(np.asanyarray(found.dataobj) - entropy[::-1].transpose(1, 0, 2)).max() < 1
    assert made(tmp_path / "turned.nii.gz")[1]["cached"] == "image"  # a label map is another answer
    for wrong, why in ({"uncertainty": "yes"}, "neither"), ({"result_extension": ".seg.nrrd"}, "no segments"):
        with pytest.raises(BadInput, match=why):
            made(tmp_path / "turned.nii.gz", **{"uncertainty": True, **wrong})


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
    assert set(params["latencies"]) == {*STAGES, "total"}
    assert sum(params["latencies"][stage] for stage in STAGES) <= params["latencies"]["total"] + 0.01


def test_an_empty_result_still_names_all_labels(made, serve, config, tmp_path):
    network = build_network(config)
    with torch.no_grad():
        network.net.output_block.conv.conv.bias.copy_(torch.tensor([1e6, 0.0, 0.0]))
    Checkpoints(config).publish(network, {})
    file, params = made(save(np.zeros((8, 8, 8), np.float32), tmp_path / "empty.nii.gz"), result_extension=".seg.nrrd")
    assert not read_label(file).array.any()
    assert params["label_names"] == {"near": 1, "far": 2}
    assert read_label(file).segments == {"near": 1, "far": 2}


def test_a_new_version_is_picked_up_without_a_restart_and_so_is_a_rollback(inferer_of_tiny, made, image, serve, config):
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


def test_a_network_is_loaded_once(inferer_of_tiny, made, image, serve, monkeypatch):
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

    monkeypatch.setattr(inferer, "write_label", fails)
    with pytest.raises(LabelRoundsError, match="no room"):
        made(image)
    assert list((tmp_path / "temporary").iterdir()) == []


def test_an_image_of_too_few_channels_is_refused_in_words(make_config, make_inferer, ask, tmp_path):
    config = make_config(name="two", channels=2)
    Checkpoints(config).publish(build_network(config), {})
    image = save(np.zeros((8, 8, 8), np.float32), tmp_path / "one.nii.gz")
    with pytest.raises(BadInput, match=r"one\.nii\.gz: 1 channels .* allowed: 2"):
        ask(make_inferer(config), image)


def test_an_image_of_several_channels_reaches_a_model_of_as_many(make_config, make_inferer, ask, tmp_path):
    config = make_config(name="two", channels=2)
    Checkpoints(config).publish(build_network(config), {})
    image = save(np.random.default_rng(0).normal(size=(8, 8, 8, 2)).astype(np.float32), tmp_path / "two.nii.gz")
    assert read_label(ask(make_inferer(config), image)[0]).shape == (8, 8, 8)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_gives_nearly_the_same_answer(made, serve, image):
    serve()
    one, other = (read_label(made(image, device=device)[0]).array for device in ("cpu", "cuda"))
    assert (one == other).mean() > 0.97


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("cleaning", [{}, {"far": {"largest_component": True}}], ids=["as it is", "cleaned"])
@pytest.mark.parametrize("way", range(3))
def test_a_gpu_gives_nearly_the_same_answer_in_any_way(
    make_config, make_inferer, ask, serve, tmp_path, monkeypatch, cleaning, way
):
    image = save(np.random.default_rng(0).normal(size=(30, 20, 17)).astype(np.float32), tmp_path / "image.nii")
    serve()
    of = make_inferer(make_config(cleaning=cleaning))
    ways = list(of._computing._ways(torch.device("cuda:0"), None))
    assert len(ways) == 3
    monkeypatch.setattr(of._computing, "_ways", lambda device, key: [ways[way]])
    usual, other = (read_label(ask(of, image, device=device)[0]).array for device in ("cpu", "cuda:0"))
    assert (usual == other).mean() > 0.97


@pytest.fixture
def gpus(monkeypatch) -> list[torch.device]:
    """Two GPUs by name alone, for machines that have none: what is theirs is computed on the CPU, in their threads."""
    named = [torch.device("cuda:0"), torch.device("cuda:1")]
    subject, on = ServedNetworks._subject, computing._on
    monkeypatch.setattr(devices, "available_devices", lambda: [*map(str, named), "cpu"])
    monkeypatch.setattr(memory_cache, "free_bytes", lambda device: 10**9)
    monkeypatch.setattr(computing, "settle", lambda device: None)
    monkeypatch.setattr(computing, "complete", lambda device: None)
    monkeypatch.setattr(computing, "prepare", lambda image, config, grid, device: prepare(image, config, grid))
    monkeypatch.setattr(computing, "_on", lambda device, network: on(CPU, network))
    monkeypatch.setattr(runtime_measurement, "machine", str)
    monkeypatch.setattr(ServedNetworks, "_wanted", lambda networks, version, device: default_runtime(CPU))
    monkeypatch.setattr(ServedNetworks, "_subject", lambda networks, version, device: subject(networks, version, CPU))
    return named


def computing_on() -> str:
    """Return the device whose thread this is."""
    return threading.current_thread().name.removeprefix("engine-")


ONE = "out of memory on cuda:0: segmented one window at a time"
WAYS = {
    "two windows and what is summed": ("cuda:0", ""),
    "a window and what is summed": ("cuda:0", ONE),
    "a window": ("cuda:0", f"{ONE}, the image in the machine's memory"),
    "nothing": ("cpu", "out of memory on cuda:0: segmented on the CPU"),
}


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), TooLarge("needs 90 GB")], ids=repr)
@pytest.mark.parametrize("cleaning", [{}, {"far": {"largest_component": True}}], ids=["as it is", "cleaned"])
@pytest.mark.parametrize("room", WAYS)
def test_a_gpu_short_of_memory_gives_the_same_answer_another_way_and_says_so(
    make_config, make_inferer, ask, serve, gpus, tmp_path, monkeypatch, caplog, error, cleaning, room
):
    """Reliability 24. The CPU stands in for the GPU, whose memory is as small as ``room`` says."""
    image = save(np.random.default_rng(0).normal(size=(30, 20, 17)).astype(np.float32), tmp_path / "image.nii")
    serve()
    of = make_inferer(make_config(cleaning=cleaning))
    expected = read_label(ask(of, image, result_extension=".nii")[0]).array
    whole, tried = computing.predict, []

    def limited(run, voxels, config, stopped, most_at_once):
        if computing_on() == "cuda:0":
            takes = (most_at_once or 2) + (0 if isinstance(run, FunctionType) else 10)
            tried.append(takes)
            if takes > [12, 11, 1, 0][list(WAYS).index(room)]:
                raise error
        return whole(run, voxels, config, stopped, most_at_once)

    monkeypatch.setattr(computing, "predict", limited)
    if room == "nothing":  # a GPU is not run by the CPU's runtime
        monkeypatch.setattr(ServedNetworks, "runtime", lambda networks, version, device: f"of {device}")
    device, note = WAYS[room]
    file, params = ask(of, image, device="cuda:0")
    assert (params["device"], params.get("note", "")) == (device, note)
    assert np.array_equal(read_label(file).array, expected)
    assert tried == [12, 11, 1][: list(WAYS).index(room) + 1]
    assert caplog.text.count(f"out of memory on cuda:0: {error}") == len(tried) - (device == "cuda:0")
    assert note in caplog.text
    _, again = ask(of, image, device="cuda:0")
    assert (again["cached"], again["device"], again.get("note", "")) == ("result", device, note)
    assert tried == [12, 11, 1][: list(WAYS).index(room) + 1]


def test_once_a_gpu_has_memory_again_the_next_request_is_computed_on_it(made, serve, gpus, tmp_path, monkeypatch):
    """Reliability 24: the next request is fine. The CPU stands in for the GPU."""
    serve()
    images = [save(np.full((9, 9, 9), seed, np.float32), tmp_path / f"{seed}.nii") for seed in range(2)]
    whole = computing.predict

    def lacks(*args):
        if computing_on() == "cuda:0":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(*args)

    with monkeypatch.context() as patch:
        patch.setattr(computing, "predict", lacks)
        moved = made(images[0], device="cuda:0")[1]
    assert (moved["device"], moved["note"]) == ("cpu", WAYS["nothing"][1])
    following = made(images[1], device="cuda:0")[1]
    assert following["device"] == "cuda:0" and "note" not in following


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_real_gpu_without_memory_hands_over_to_the_cpu_and_serves_the_next(made, serve, tmp_path):
    """Reliability 24 on a real GPU, whose allocator is told to give nothing."""
    serve()
    images = [save(np.full((40, 40, 40), seed, np.float32), tmp_path / f"{seed}.nii") for seed in range(3)]
    assert made(images[0], device="cuda:0")[1]["device"] == "cuda:0"
    torch.cuda.set_per_process_memory_fraction(1e-7, 0)
    try:
        torch.cuda.empty_cache()
        moved = made(images[1], device="cuda:0")[1]
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, 0)
    assert (moved["device"], moved["note"]) == ("cpu", WAYS["nothing"][1])
    following = made(images[2], device="cuda:0")[1]
    assert following["device"] == "cuda:0" and "note" not in following


@pytest.mark.parametrize(("part", "device"), [("for_inference", "cpu"), ("prepare", "cuda:0")])
def test_what_a_gpu_has_no_room_for_is_on_the_cpu_be_it_the_weights_or_the_image(
    made, image, serve, gpus, monkeypatch, part, device
):
    """The CPU stands in for the GPU; the image is prepared there already."""
    serve()
    expected = read_label(made(image, result_extension=".nii")[0]).array
    module = pytorch if part == "for_inference" else computing
    whole = getattr(module, part)

    def fails(*args):
        if computing_on() == "cuda:0":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(*args)

    monkeypatch.setattr(module, part, fails)
    file, params = made(image, device="cuda:0")
    assert params["device"] == device
    assert params["note"] == (WAYS["nothing"] if device == "cpu" else WAYS["a window"])[1]
    assert np.array_equal(read_label(file).array, expected)


def test_what_the_machine_has_not_the_memory_for_is_refused_and_the_next_is_served(made, image, serve, monkeypatch):
    serve()
    for part in ("predict", "restore"):
        with monkeypatch.context() as patch:
            patch.setattr(computing, part, lambda *args: torch.empty(2**50, dtype=torch.uint8))
            with pytest.raises(
                TooLarge, match="an image of 18 x 20 x 17 voxels can't be segmented in the memory of cpu"
            ):
                made(image)
    assert made(image)[1]["version"] == 1


# Several devices


@pytest.mark.parametrize("device", [None, "", "cuda", ["cuda", "cuda:0", "cuda:1", "cpu"]], ids=str)
def test_requests_that_name_no_gpu_are_spread_over_all(make_inferer, config, ask, serve, gpus, slow, tmp_path, device):
    """The CPU stands in for both GPUs."""
    serve()
    tiny = make_inferer(config)
    images = [save(np.full((9, 9, 9), seed, np.float32), tmp_path / f"{seed}.nii") for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        first = [pool.submit(ask, tiny, image, device=device) for image in images[:2]]
        for _ in first:
            assert slow.windows.acquire(timeout=30)  # both compute at the same time
        rest = [pool.submit(ask, tiny, image, device=device) for image in images[2:]]
        while sum(tiny._engine.worker(gpu).waiting for gpu in gpus) < 2:
            assert not any(request.done() for request in rest)
        assert [tiny._engine.worker(gpu).waiting for gpu in gpus] == [1, 1]
        slow.go.release(1000)
        used = [request.result(30)[1]["device"] for request in (*first, *rest)]
    assert sorted(used[:2]) == sorted(used[2:]) == ["cuda:0", "cuda:1"]
    assert {ask(tiny, image, device=device)[1]["cached"] for image in images} == {"result"}


def test_a_gpu_that_is_named_is_the_one(make_inferer, config, ask, serve, gpus, image):
    """The CPU stands in for both GPUs."""
    serve()
    tiny = make_inferer(config)
    assert [ask(tiny, image, device=f"cuda:{number}")[1]["device"] for number in (1, 0)] == ["cuda:1", "cuda:0"]
    assert tiny.info()["config"]["device"] == ["cuda", "cuda:0", "cuda:1", "cpu"]


def test_another_answer_about_an_image_is_made_where_the_image_is(make_inferer, config, ask, serve, gpus, image):
    """The CPU stands in for both GPUs."""
    serve()
    tiny = make_inferer(config)
    ask(tiny, image, device="cuda:1")
    _, params = ask(tiny, image, device="cuda", result_extension=".nii")
    assert (params["device"], params["cached"]) == ("cuda:1", "image")


def test_an_error_of_another_kind_is_not_tried_again(made, image, serve, monkeypatch):
    serve()
    tried = []

    def fails(*args):
        tried.append(1)
        raise RuntimeError("shapes cannot be multiplied")

    monkeypatch.setattr(computing, "predict", fails)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        made(image)
    assert len(tried) == 1


# What the first request need not wait for


def test_a_model_that_was_made_ready_has_its_weights_in_memory_once(inferer_of_tiny, made, image, serve, monkeypatch):
    assert inferer_of_tiny.weights_bytes() == 0
    version = serve()
    assert inferer_of_tiny.weights_bytes() == version.weights.stat().st_size
    loads, load = [], Checkpoints.load
    monkeypatch.setattr(
        Checkpoints, "load", lambda self, *args: (loads.append(threading.current_thread().name), load(self, *args))
    )
    inferer_of_tiny.warm_up(CPU)
    made(image)
    assert loads == ["engine-cpu"]


def test_on_a_gpu_a_single_window_and_a_batch_of_them_are_made_ready(make_inferer, config, serve, gpus, monkeypatch):
    """The CPU stands in for the GPU."""
    serve()
    shapes, zeros = [], torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *shape, device=None: zeros(*shape))
    monkeypatch.setattr(computing, "predict", lambda run, image, *rest: shapes.append(tuple(image.shape)))
    make_inferer(config).warm_up(gpus[1])
    assert shapes == [(1, 16, 16, 16), (1, 17, 16, 16)]


def test_making_a_model_ready_gives_way_to_users(inferer_of_tiny, made, image, serve, slow):
    serve()
    with ThreadPoolExecutor(2) as pool:
        user = pool.submit(made, image)
        assert slow.windows.acquire(timeout=30)
        ready = pool.submit(inferer_of_tiny.warm_up, CPU)
        threading.Event().wait(0.1)
        assert slow.seen == 1 and not ready.done()
        slow.go.release(1000)
        assert user.result(30)[1]["cached"] == "nothing"
        ready.result(30)


def test_a_damaged_version_can_not_be_made_ready(inferer_of_tiny, serve, config):
    serve()
    (Checkpoints(config).folder / "current.json").write_text("{")
    assert inferer_of_tiny.weights_bytes() == 0
    with pytest.raises(BadInput, match=r"current\.json is damaged"):
        inferer_of_tiny.warm_up(CPU)


# What is kept


@pytest.fixture
def predictions(monkeypatch) -> list[str]:
    """The models that have computed, in that order."""
    seen, whole = [], computing.predict

    def counted(network, voxels, config, *rest):
        seen.append(config.name)
        return whole(network, voxels, config, *rest)

    monkeypatch.setattr(computing, "predict", counted)
    return seen


def test_the_same_again_is_answered_from_memory_in_a_file_of_its_own(made, image, serve, predictions):
    serve()
    first, params = made(image)
    content = first.read_bytes()
    first.unlink()  # as the host does with what it has sent
    again, params_again = made(image)
    assert (params["cached"], params_again["cached"]) == ("nothing", "result")
    assert again != first and again.read_bytes() == content
    assert predictions == ["tiny"]
    assert {key: params[key] for key in ("version", "device", "label_names")}.items() <= params_again.items()
    assert params["request_id"] != params_again["request_id"]
    assert not any(params_again["latencies"][stage] for stage in ("wait", "read", "load", "prepare", "segment"))


def test_another_kind_of_file_is_made_of_the_kept_image(made, image, serve):
    serve()
    file, _ = made(image)
    other, params = made(image, result_extension=".nii.gz")
    assert params["cached"] == "image" and params["latencies"]["read"] == 0
    assert np.array_equal(read_label(file).array, read_label(other).array)


@pytest.mark.parametrize("times_are_kept", [False, True])
def test_a_changed_file_is_read_anew(made, serve, tmp_path, times_are_kept):
    serve()
    rng = np.random.default_rng(1)
    image = save(rng.normal(size=(18, 20, 17)).astype(np.float32), tmp_path / "image.nii")
    before, other = image.stat(), save(rng.normal(size=(18, 20, 17)).astype(np.float32), tmp_path / "other.nii")
    first, _ = made(image)
    image.write_bytes(other.read_bytes())  # of the same size, and in the same place on the disk
    if times_are_kept:
        os.utime(image, ns=(before.st_atime_ns, before.st_mtime_ns))
    second, params = made(image)
    assert params["cached"] == "nothing"
    assert second.read_bytes() == made(other)[0].read_bytes() != first.read_bytes()


def test_a_changed_file_of_a_folder_is_noticed(tmp_path):
    series = tmp_path / "series"
    (series / "part").mkdir(parents=True)
    (series / "part" / "1.dcm").write_bytes(b"a")
    seen = {identity_of(series)}
    (series / "2.dcm").write_bytes(b"b")
    seen.add(identity_of(series))
    (series / "part" / "1.dcm").write_bytes(b"c")
    seen.add(identity_of(series))
    (series / "2.dcm").rename(series / "3.dcm")
    seen.add(identity_of(series))
    assert len(seen) == 4 and identity_of(series) in seen


def test_a_file_that_is_not_there_is_not_found(made, serve, tmp_path):
    serve()
    with pytest.raises(NotFound, match=r"gone\.nii: no such file"):
        made(tmp_path / "gone.nii")


def test_an_upload_is_known_by_its_content(made, image, serve, tmp_path):
    serve()
    expected, _ = made(image, uploaded=True)
    copy = tmp_path / "copy.nii.gz"
    copy.write_bytes(image.read_bytes())
    file, params = made(copy, uploaded=True)
    assert params["cached"] == "result" and file.read_bytes() == expected.read_bytes()


def test_a_new_version_answers_anew_and_a_rollback_as_before(made, image, serve, config, predictions):
    serve(1)
    first, _ = made(image)
    serve(2)
    second, params = made(image)
    assert (params["version"], params["cached"]) == (2, "image")
    Checkpoints(config).serve(1)
    back, params = made(image)
    assert (params["version"], params["cached"]) == (1, "result")
    assert back.read_bytes() == first.read_bytes() != second.read_bytes()
    assert len(predictions) == 2


class OtherEager(Eager):
    """Registered for the test below, the same function under another name."""


def test_another_runtime_answers_anew_and_is_told(
    inferer_of_tiny, made, image, serve, config, monkeypatch, predictions
):
    runtimes.names()
    monkeypatch.setattr(runtimes, "_members", {**runtimes._members, "other": OtherEager})
    serve()
    first = made(image)[1]
    assert (first["runtime"], first["cached"]) == (default_runtime(CPU), "nothing")
    assert inferer_of_tiny.info()["runtime"] == {"runtime": default_runtime(CPU)}
    found = Figures(milliseconds=1, speedup=2.0, dice={"near": 1.0})
    names = {default_runtime(CPU), "eager", "other"}
    measurement = Measurement(
        chosen="other", measured="", settings=settings_of(config), runtimes=dict.fromkeys(names, found), failed={}
    )
    monkeypatch.setattr(served, "measure", lambda *_: (measurement, {}))
    monkeypatch.setattr(runtime_measurement, "available", lambda config, device: names)
    inferer_of_tiny._networks.settle(Checkpoints(config).current(), CPU, [])
    second, third = made(image)[1], made(image)[1]
    assert (second["runtime"], second["cached"]) == ("other", "image")
    assert (third["runtime"], third["cached"]) == ("other", "result")
    assert inferer_of_tiny.info()["runtime"] == {"runtime": "other", "speedup": 2.0, "lowest_dice": 1.0}
    assert len(predictions) == 2


def test_what_was_segmented_is_handed_to_who_chooses_the_runtime(config, image, serve, ask):
    handed = []

    class Noted(Tuning):
        def add(self, networks, version, device, image, label) -> None:
            handed.append((version.number, str(device), image.shape[1:], label.shape))

    shared = Engine()
    tuned = SegmentationInferer(config, shared, Memory(), Noted(shared))
    serve()
    for _ in range(2):
        ask(tuned, image)
    shared.close()
    assert handed == [(1, "cpu", (18, 20, 17), (18, 20, 17))]  # the second was answered from memory


def test_a_damaged_version_is_in_a_clients_list_without_a_runtime(inferer_of_tiny, serve, config, caplog):
    serve()
    (Checkpoints(config).folder / "current.json").write_text("{")
    assert "runtime" not in inferer_of_tiny.info() and "current.json is damaged" in caplog.text


def test_a_version_published_while_a_request_waits_is_what_it_gets(config, make_inferer, image, serve, ask):
    serve(1)
    tiny = make_inferer(config)
    with ThreadPoolExecutor(2) as pool, tiny._engine.worker(CPU).place("other", "other") as place:
        go = threading.Event()
        running = pool.submit(place.compute, lambda stopped: go.wait(30))
        waiting = pool.submit(ask, tiny, image)
        while tiny._engine.worker(CPU).waiting < 1:
            assert not waiting.done()
        serve(2)
        go.set()
        assert running.result(30)
        assert waiting.result(30)[1]["version"] == 2
    assert ask(tiny, image)[1]["cached"] == "result"


@pytest.mark.parametrize(
    ("change", "cached"),
    [
        ({"cleaning": {"far": {"largest_component": True}}}, "image"),
        ({"inference": {"overlap": 0.25}}, "image"),
        ({"name": "other"}, "image"),
        ({"intensity": {"kind": "window", "low": -2, "high": 2}}, "nothing"),
        ({"spacing_mm": [2.0, 2.0, 2.0]}, "nothing"),
        ({"patch_size": [16, 16, 1]}, "nothing"),
    ],
    ids=str,
)
def test_another_configuration_is_another_answer_and_shares_the_image_where_it_may(
    make_config, make_inferer, ask, image, change, cached
):
    first, second = make_config(), make_config(**change)
    shared = [make_inferer(config) for config in (first, second)]
    for config in (first, second):
        Checkpoints(config).publish(build_network(config).eval(), {})
    Checkpoints(first).serve(1)
    ask(shared[0], image)
    if first.name == second.name:
        Checkpoints(second).serve(2)
    _, params = ask(shared[1], image)
    assert params["cached"] == cached


def test_two_who_ask_for_the_same_at_once_are_answered_by_one_computation(made, image, serve, predictions):
    serve()
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda number: made(image, client_id=str(number)), range(8)))
    assert predictions == ["tiny"]
    assert sorted(params["cached"] for _, params in answers) == ["nothing"] + ["result"] * 7
    assert len({file.read_bytes() for file, _ in answers}) == 1


def test_a_failed_request_leaves_the_next_one_who_asks_for_the_same_to_compute(made, image, serve, monkeypatch):
    serve()
    whole, fails = computing.predict, [True]

    def sometimes(*args):
        if fails.pop() if fails else False:
            raise ValueError("once")
        return whole(*args)

    monkeypatch.setattr(computing, "predict", sometimes)
    with pytest.raises(ValueError, match="once"):
        made(image)
    assert made(image)[1]["cached"] == "image"


def test_with_no_memory_to_keep_anything_in_everything_is_made_anew(config, image, serve, ask, monkeypatch):
    monkeypatch.setenv("LABELROUNDS_MEMORY_GB", "0")
    serve()
    memory, workers = Memory(), Engine()
    of = SegmentationInferer(config, workers, memory)
    assert [ask(of, image)[1]["cached"] for _ in range(2)] == ["nothing"] * 2
    assert memory.answers.used == memory.images(CPU).used == 0
    workers.close()


def test_what_other_images_take_is_given_up_for_one_that_lacks_memory(
    config, make_inferer, ask, image, serve, tmp_path, monkeypatch
):
    serve()
    tiny = make_inferer(config)
    other = save(np.zeros((9, 9, 9), np.float32), tmp_path / "other.nii")
    ask(tiny, other)
    kept, whole = tiny._memory.images(CPU), computing.predict

    def limited(network, voxels, config, *rest):
        if kept.used > voxels.nbytes + 2000:
            raise TooLarge("needs 90 GB")
        return whole(network, voxels, config, *rest)

    monkeypatch.setattr(computing, "predict", limited)
    assert ask(tiny, image)[1]["cached"] == "nothing"
    assert kept.used > 0
    assert ask(tiny, other, result_extension=".nii")[1]["cached"] == "nothing"


# In whose way


class Slow(torch.nn.Module):
    """Answers each batch of windows when it is let; counts them."""

    def __init__(self):
        super().__init__()
        self.windows, self.go = threading.Semaphore(0), threading.Semaphore(0)
        self.seen = 0

    def forward(self, images):
        self.seen += 1
        self.windows.release()
        assert self.go.acquire(timeout=30)
        return torch.cat((images, images, images), dim=1)


@pytest.fixture
def slow(monkeypatch) -> Slow:
    """The network of all models, which gets two windows at once."""
    monkeypatch.setattr(engine, "_POLL_S", 0.01)
    monkeypatch.setattr(sliding, "_VOXELS_AT_ONCE", 1)
    network = Slow()
    monkeypatch.setattr(Eager, "__call__", lambda runtime, windows: network(windows))  # and of those derived from it
    yield network
    network.go.release(1000)


@pytest.fixture
def large(tmp_path) -> Path:
    """An image of many windows."""
    return save(np.random.default_rng(0).normal(size=(40, 40, 40)).astype(np.float32), tmp_path / "large.nii")


def test_a_client_that_goes_stops_its_request_between_windows(made, large, serve, slow, tmp_path, monkeypatch):
    serve()
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    gone = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        request = pool.submit(made, large, gone=gone.is_set)
        assert slow.windows.acquire(timeout=30)
        gone.set()
        threading.Event().wait(0.1)  # several looks at the client
        slow.go.release()
        with pytest.raises(Cancelled):
            request.result(30)
    assert slow.seen == 1
    assert list(temporary.iterdir()) == []
    slow.go.release(1000)
    assert made(large)[1]["cached"] == "image"


def test_background_work_gives_way_to_another_image_and_its_image_is_kept(made, large, image, serve, slow):
    serve()
    with ThreadPoolExecutor(2) as pool:
        background = pool.submit(made, large, background=True)
        assert slow.windows.acquire(timeout=30)
        user = pool.submit(made, image)
        threading.Event().wait(0.1)
        slow.go.release(1000)
        with pytest.raises(Cancelled):
            background.result(30)
        assert user.result(30)[1]["cached"] == "nothing"
    assert made(large)[1]["cached"] == "image"


def test_background_work_is_finished_for_the_user_who_asks_for_it(made, large, serve, slow):
    serve()
    with ThreadPoolExecutor(2) as pool:
        background = pool.submit(made, large, background=True)
        assert slow.windows.acquire(timeout=30)
        user = pool.submit(made, large)
        threading.Event().wait(0.1)
        slow.go.release(1000)
        assert background.result(30)[1]["cached"] == "nothing"
        params = user.result(30)[1]
    assert params["cached"] == "result"
    assert params["latencies"]["wait"] > 0


def test_the_log_has_a_line_for_each_request_with_what_it_was_told(made, image, serve, caplog):
    serve()
    with caplog.at_level(logging.INFO, "labelrounds.inferer"):
        answers = [made(image)[1] for _ in range(2)]
    lines = [record.getMessage() for record in caplog.records if record.name == "labelrounds.inferer"]
    assert len(lines) == 2
    for line, params in zip(lines, answers, strict=True):
        assert params["request_id"] in line and f"cached: {params['cached']}" in line
        times = dict(re.findall(r"(\w+) (\d+\.\d+) s", line))
        assert {stage: float(value) for stage, value in times.items()} == {
            stage: pytest.approx(value, abs=1e-3) for stage, value in params["latencies"].items()
        }
        assert "image.nii" not in line  # names of images may be those of patients
