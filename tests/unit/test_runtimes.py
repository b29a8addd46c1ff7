"""Each way to run a network gives its logits, and says itself where it can't be used."""

import gc
import logging
import subprocess
import sys

import pytest
import torch

from labelrounds.devices import low_precision
from labelrounds.errors import BadInput, Conflict
from labelrounds.networks import build_network
from labelrounds.runtimes import REFERENCE, Subject, default_runtime, pytorch, runtimes

CPU = torch.device("cpu")


@pytest.fixture
def subject(make_config, tmp_path):
    """Make a network with a folder of its own."""

    def make(device: torch.device = CPU, windows=(), **changes) -> Subject:
        config = make_config(**changes)
        torch.manual_seed(0)
        return Subject(build_network(config).eval(), config, device, tmp_path, windows)

    return make


def images(of: Subject, number: int = 3) -> torch.Tensor:
    return torch.randn(number, 1, *of.config.patch_size, generator=torch.Generator().manual_seed(1))


def available_or_skip(name: str, device: torch.device = CPU) -> None:
    obstacle = runtimes.get(name).obstacle(device)
    if obstacle:
        pytest.skip(f"{name}: {obstacle}")


def test_the_names_are_known_and_an_unknown_one_is_refused_with_them():
    assert runtimes.names() == ["bfloat16", "bfloat16_weights", "compiled", "eager", "openvino", "openvino_int8"]
    with pytest.raises(BadInput, match="runtime 'tensorrt' is not one of bfloat16, bfloat16_weights, compiled, eager"):
        runtimes.get("tensorrt")


def test_what_a_cpu_has_depends_on_its_hardware_and_each_says_why_not(monkeypatch):
    monkeypatch.setattr(pytorch, "low_precision", lambda kind: False)
    assert runtimes.get("bfloat16").obstacle(CPU) == "cpu has no bfloat16 in hardware"
    assert default_runtime(CPU) == REFERENCE
    monkeypatch.setattr(pytorch, "low_precision", lambda kind: True)
    assert runtimes.get("bfloat16_weights").obstacle(CPU) is None
    assert default_runtime(CPU) == "bfloat16_weights"
    assert runtimes.get("compiled").obstacle(CPU) == "it is for CUDA devices alone"


def test_what_is_for_cpus_is_not_offered_on_a_gpu(monkeypatch):
    monkeypatch.setattr(pytorch, "low_precision", lambda kind: True)
    gpu = torch.device("cuda:0")
    for name in ("bfloat16_weights", "openvino", "openvino_int8"):
        assert runtimes.get(name).obstacle(gpu) == "it is for CPUs alone"
    assert default_runtime(gpu) == "bfloat16"


@pytest.mark.parametrize("name, lacking", [("openvino", "openvino"), ("openvino_int8", "nncf")])
def test_an_extra_that_is_not_installed_is_named_with_how_to_get_it(monkeypatch, name, lacking):
    monkeypatch.setattr("importlib.util.find_spec", lambda module: None if module == lacking else object())
    assert runtimes.get(name).obstacle(CPU) == f"{lacking} is not installed: pip install 'labelrounds[openvino]'"


@pytest.mark.parametrize("patch_size", [[16, 16, 16], [16, 16, 1]], ids=["3-D", "2-D"])
@pytest.mark.parametrize("name", ["eager", "bfloat16", "bfloat16_weights", "openvino"])
def test_it_gives_the_networks_logits_under_whatever_mixed_precision(subject, name, patch_size):
    available_or_skip(name)
    of = subject(patch_size=patch_size)
    with torch.inference_mode():
        exact = of.network(images(of))
        run = runtimes.get(name)(of)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = run(images(of))
        found = run(images(of))
    assert mixed.equal(found) and found.shape == exact.shape
    if name == REFERENCE:
        assert found.dtype is torch.float32 and found.allclose(exact, rtol=1e-4, atol=1e-5)
    assert (found - exact).abs().mean() < 0.05 * exact.std()


def test_mixed_precision_is_that_of_bfloat16(subject):
    if not low_precision("cpu"):
        pytest.skip("this CPU computes in float32 anyway")
    of = subject()
    with torch.inference_mode():
        assert {runtimes.get(name)(of)(images(of)).dtype for name in ("bfloat16", "bfloat16_weights")} == {
            torch.bfloat16
        }


def test_integers_are_calibrated_on_windows_and_kept_beside_the_version(subject, tmp_path, capsys):
    available_or_skip("openvino_int8")
    with pytest.raises(Conflict, match="no training case to calibrate it with"):
        runtimes.get("openvino_int8")(subject())
    of = subject(windows=images(subject()).split(1))
    run = runtimes.get("openvino_int8")(of)
    again = runtimes.get("openvino_int8")(subject())  # from the files, without a window
    with torch.inference_mode():
        exact, found = of.network(images(of)), run(images(of))
        assert again(images(of)).equal(found)
    assert 0 < (found - exact).abs().mean() < 0.2 * exact.std()
    assert sorted(file.name for file in tmp_path.glob("openvino_int8.*")) == ["openvino_int8.bin", "openvino_int8.xml"]
    assert capsys.readouterr().out == ""


def test_a_damaged_file_of_integers_is_an_error_and_not_a_crash(subject, tmp_path):
    available_or_skip("openvino_int8")
    runtimes.get("openvino_int8")(subject(windows=images(subject()).split(1)))
    (tmp_path / "openvino_int8.bin").write_bytes(b"")
    with pytest.raises(RuntimeError):
        runtimes.get("openvino_int8")(subject())


def test_openvino_leaves_the_logs_as_they_are_and_reports_to_nobody(subject):
    available_or_skip("openvino")
    root = logging.getLogger()
    before = root.level, list(root.handlers), list(root.filters)
    runtimes.get("openvino")(subject())
    assert (root.level, root.handlers, root.filters) == before
    program = "from labelrounds.runtimes.openvino import _imported as i; i('openvino'); import sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "openvino.tools.ovc" in done.stdout.split()
    assert not [name for name in done.stdout.split() if name.startswith("openvino_telemetry.")]


def test_reading_the_registry_imports_no_extra():
    program = "from labelrounds.runtimes import runtimes as r; r.names(); import sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not {"openvino", "nncf", "triton"} & set(done.stdout.split())


@pytest.mark.gpu
def test_compiled_it_is_the_same_function_window_by_window_and_in_any_thread(subject):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    gpu = torch.device("cuda:0")
    available_or_skip("compiled", gpu)
    of = subject(gpu, patch_size=[32, 32, 32])
    windows = images(of, 5).to(gpu)
    with torch.inference_mode():
        exact = runtimes.get("eager")(of)(windows)
        compiled = runtimes.get("compiled")(of)
        gc.collect()
        filled = [torch.full((2**count,), 9e9, device=gpu) for count in range(2, 20) for _ in range(20)]
        found = compiled(windows)  # of weights whose memory nothing else has taken
        turned = compiled(windows.flip(0)).flip(0)
        del filled
    assert found.shape == exact.shape and turned.equal(found)
    assert (found - exact).abs().mean() < 0.05 * exact.std()
