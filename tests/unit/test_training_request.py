"""A request says what it may, or is refused before any process is started for it."""

import pytest
import torch
from training_runs import wanted

import labelrounds.host  # noqa: F401 - first, so that the host can be imported
from labelrounds.errors import BadInput
from labelrounds.training_request import TrainingRequest


def test_a_request_without_options_takes_the_configurations(config):
    request = TrainingRequest.parse({"model": "tiny"}, config)
    assert (request.epochs, request.policy) == (None, "auto")
    assert (request.epochs_of("full", config), request.epochs_of("quick", config)) == (3, 8)
    assert request.device == ("cuda:0" if torch.cuda.is_available() else "cpu")
    assert TrainingRequest.parse({"epochs": 7, "policy": "full", "device": "cpu"}, config) == wanted(7, "full")
    assert wanted(7).epochs_of("quick", config) == 7


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        ({"epoch": 3}, "'epoch' is not one of client_id, device, epochs"),
        ({"epochs": -1}, "epochs -1 is not a whole number from 1 to 100000, nor 0 for the policy's own"),
        ({"epochs": 10**6}, "epochs 1000000"),
        ({"epochs": "5"}, "epochs '5'"),
        ({"epochs": True}, "epochs True"),
        ({"epochs": 2.5}, r"epochs 2\.5"),
        ({"epochs": None}, "epochs None"),
        ({"policy": "yesterday"}, "policy 'yesterday' is not one of auto, quick, full"),
        ({"policy": ["quick"]}, r"policy \['quick'\]"),
        ({"start": "scratch"}, "'start' is not one of client_id, device, epochs, model, policy"),
        ({"device": "cuda:99"}, "device 'cuda:99' is not on this machine; available: .*cpu"),
        ({"device": "tpu"}, "device 'tpu' is not one of .*cpu"),
        ({"device": ["cpu"]}, r"device \['cpu'\]"),
    ],
    ids=str,
)
def test_a_wrong_request_is_refused_with_what_is_allowed(config, request_, expected):
    with pytest.raises(BadInput, match=expected):
        TrainingRequest.parse(request_, config)


@pytest.fixture
def processes(monkeypatch, make_config):
    """Return how many processes a training with batches of four takes on a machine of so many GPUs."""

    def ask(gpus: int, **request) -> int:
        names = [*(f"cuda:{index}" for index in range(gpus)), "cpu"]
        monkeypatch.setattr("labelrounds.devices.available_devices", lambda: names)
        monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
        return TrainingRequest.parse({"model": "tiny", **request}, make_config(training={"batch_size": 4})).processes

    return ask


def test_a_server_trains_on_all_its_gpus_unless_one_is_chosen(processes):
    assert processes(gpus=2) == processes(gpus=2, device="cuda") == 2
    assert processes(gpus=8) == 4, "a process for each patch at most"
    assert processes(gpus=2, device="cuda:1") == processes(gpus=2, device="cpu") == 1
    assert processes(gpus=1) == processes(gpus=0) == 1
    assert processes(gpus=8, processes=3) == processes(gpus=0, processes=3) == 3


@pytest.mark.parametrize(("gpus", "wanted", "limit"), [(2, 3, "2 .GPUs of this"), (0, 5, "4 .training.batch_size")])
def test_more_processes_than_there_is_work_for_are_refused(processes, gpus, wanted, limit):
    with pytest.raises(BadInput, match=f"processes {wanted} is not a whole number from 1 to {limit}"):
        processes(gpus=gpus, processes=wanted)
