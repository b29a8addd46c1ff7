"""A client may name a device of this machine, and arithmetic is fast only where it is right."""

import pytest
import torch

from labelrounds import devices
from labelrounds.devices import (
    autocast,
    available_devices,
    choose_device,
    choose_devices,
    complete,
    free_bytes,
    is_out_of_memory,
    offered_devices,
    place,
    settle,
    sound_gradients,
    to_host,
)
from labelrounds.errors import BadInput


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)


def test_the_best_device_comes_first(two_gpus):
    assert available_devices() == ["cuda:0", "cuda:1", "cpu"]
    assert choose_device() == choose_device("") == choose_device("cuda") == torch.device("cuda:0")
    assert choose_device("cuda:1") == torch.device("cuda:1")
    assert choose_device("cpu") == torch.device("cpu")


def test_who_names_no_gpu_may_be_served_by_any(two_gpus):
    both = [torch.device("cuda:0"), torch.device("cuda:1")]
    assert choose_devices() == choose_devices("") == choose_devices("cuda") == both
    assert choose_devices("cuda:1") == both[1:]
    assert choose_devices("cpu") == [torch.device("cpu")]


def test_a_client_is_offered_any_gpu_first_where_there_are_several(two_gpus, monkeypatch):
    assert offered_devices() == ["cuda", "cuda:0", "cuda:1", "cpu"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert offered_devices() == ["cuda:0", "cpu"]


def test_without_a_gpu_the_cpu_is_chosen(no_gpu):
    assert choose_devices() == [choose_device()] == [torch.device("cpu")]
    with pytest.raises(BadInput, match="device 'cuda' is not on this machine; available: cpu"):
        choose_device("cuda")


@pytest.mark.parametrize(
    "wanted",
    ["gpu", "cuda:", "cuda:x", "cuda:2", "cuda:00", "CPU", "cpu ", "cpu\n", "cuda:1e9", "meta", "cuda:٣", 0, [], ()],
)
def test_what_is_no_device_of_this_machine_is_refused(two_gpus, wanted):
    with pytest.raises(BadInput, match=r"available: cuda:0, cuda:1, cpu|is not one of cuda:0, cuda:1, cpu"):
        choose_device(wanted)


def test_mixed_precision_is_off_where_it_does_not_pay_or_is_not_sound(monkeypatch):
    for pays in (True, False):
        monkeypatch.setattr(devices, "low_precision", lambda kind, pays=pays: pays)
        for sound in (True, False):
            with autocast(torch.device("cpu"), sound):
                assert torch.is_autocast_enabled("cpu") == (pays and sound)


@pytest.mark.parametrize(("kernel", "shortest", "sound"), [(3, 3, True), (3, 2, False), (5, 4, False), (5, 5, True)])
def test_a_kernel_longer_than_the_lowest_level_is_trained_in_full_precision(kernel, shortest, sound):
    network = torch.nn.Sequential(torch.nn.Conv3d(1, 2, 1), torch.nn.Conv3d(2, 2, (kernel, 1, 1)))
    assert sound_gradients(network, shortest, torch.device("cpu")) == sound
    assert sound_gradients(network, shortest, torch.device("cuda:0"))
    assert sound_gradients(torch.nn.Conv2d(1, 1, 9), 1, torch.device("cpu"))


@pytest.mark.parametrize(("dimensions", "shape"), [(3, (1, 2, 4, 4, 4)), (2, (1, 2, 4, 4))])
def test_the_memory_layout_changes_no_answer(dimensions, shape):
    convolution = (torch.nn.Conv3d if dimensions == 3 else torch.nn.Conv2d)(2, 3, 3)
    images = torch.randn(shape)
    before = convolution(images)
    assert torch.allclose(place(convolution, torch.device("cpu"), dimensions)(images), before, atol=1e-5)


def test_what_pytorch_keeps_in_reserve_on_a_gpu_counts_as_free(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 9000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 700)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 200)
    assert free_bytes(torch.device("cuda:0")) == 1500


def test_a_gpu_is_waited_for_and_a_cpu_never_has_to_be(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    complete(torch.device("cpu"))
    complete(torch.device("cuda:1"))
    assert waited == [torch.device("cuda:1")]


def test_what_is_in_the_machines_memory_is_not_copied_there():
    tensor = torch.arange(3)
    assert to_host(tensor) is tensor


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_copy_from_a_gpu_is_pinned_and_complete():
    settle(torch.device("cuda:0"))
    tensor = torch.randn(2, 2000, 2000, device="cuda:0").transpose(1, 2)
    expected = (tensor @ tensor).cpu()
    copy = to_host(tensor @ tensor)
    assert copy.is_pinned() and copy.equal(expected)
    assert torch.backends.cudnn.benchmark and torch.cuda.current_device() == 0


def test_a_thread_is_settled_on_the_gpu_that_it_computes_on_and_for_a_cpu_nothing_is_set(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    with torch.backends.cudnn.flags(benchmark=False):
        settle(torch.device("cpu"))
        assert not torch.backends.cudnn.benchmark and chosen == []
        settle(torch.device("cuda:1"))
        assert torch.backends.cudnn.benchmark and chosen == [torch.device("cuda:1")]


def test_the_cpus_own_error_is_one_of_memory():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"), True),
        (MemoryError("Unable to allocate 3.1 GiB for an array"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (torch.AcceleratorError("CUDA error: out of memory"), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), False),
        (ValueError("out of memory"), False),
    ],
    ids=repr,
)
def test_errors_of_memory_are_told_from_others(error, expected):
    assert is_out_of_memory(error) == expected
