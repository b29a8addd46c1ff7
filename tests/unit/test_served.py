"""The served version runs by the runtime that was chosen, and by the default one where that one fails."""

import threading

import pytest
import torch

from labelrounds import checkpoints, folders, runtime_measurement, served
from labelrounds.checkpoints import Checkpoints
from labelrounds.networks import build_network
from labelrounds.runtime_measurement import Figures, Measurement, machine, settings_of, write_measurement
from labelrounds.runtimes import Subject, runtimes
from labelrounds.runtimes.pytorch import Eager
from labelrounds.served import ServedNetworks

CPU = torch.device("cpu")
WINDOWS = torch.randn(2, 1, 8, 8, 8, generator=torch.Generator().manual_seed(0))


class Quick(Eager):
    pass


class Slow(Eager):
    """Takes long to build."""

    instant = False


class Broken(Eager):
    def __init__(self, subject: Subject) -> None:
        raise RuntimeError("no kernel")


class Failing(Eager):
    """Fails from its second call on."""

    def __call__(self, windows: torch.Tensor) -> torch.Tensor:
        if hasattr(self, "called"):
            raise RuntimeError("illegal instruction")
        self.called = True
        return super().__call__(windows)


@pytest.fixture(autouse=True)
def _members(monkeypatch) -> None:
    """The reference and four others, of which two fail; the default is the reference."""
    runtimes.names()
    members = {"eager": Eager, "quick": Quick, "slow": Slow, "broken": Broken, "failing": Failing}
    monkeypatch.setattr(runtimes, "_members", members)
    monkeypatch.setattr(served, "default_runtime", lambda device: "eager")
    monkeypatch.setattr(runtime_measurement, "available", lambda config, device: sorted(members))


@pytest.fixture
def version(config):
    torch.manual_seed(0)
    return Checkpoints(config).publish(build_network(config).eval(), {})


@pytest.fixture
def measured(config, version):
    """Let a runtime be the one that was measured to be the quickest here."""

    def keep(chosen: str) -> None:
        found = Figures(milliseconds=1, speedup=2.5, dice={"near": 0.9991, "far": None})
        measurement = Measurement(
            chosen=chosen,
            measured="",
            settings=settings_of(config),
            runtimes=dict.fromkeys(runtimes._members, found),
            failed={},
        )
        write_measurement(Checkpoints(config).runtimes_folder(version), CPU, measurement)

    return keep


@torch.inference_mode()
def answers(network) -> torch.Tensor:
    return network(WINDOWS)


def test_what_was_measured_serves_from_the_first_request_on(config, version, measured):
    measured("quick")
    networks = ServedNetworks(config)
    assert networks.runtime(version, CPU) == networks.get(CPU).runtime == "quick"
    assert networks.summary(CPU) == {"runtime": "quick", "speedup": 2.5, "lowest_dice": 0.9991}


def test_what_takes_long_to_build_takes_over_later(config, version, measured):
    measured("slow")
    networks = ServedNetworks(config)
    assert networks.get(CPU).runtime == networks.runtime(version, CPU) == "eager"
    networks.settle(version, CPU, [], pytest.fail)  # measured already
    assert networks.get(CPU).runtime == networks.runtime(version, CPU) == "slow"


def test_without_a_measurement_the_default_serves_until_one_is_made(config, version, monkeypatch):
    made = []

    def measure(subject, images, do):
        made.append(images)
        found = Figures(milliseconds=1, speedup=3.0, dice={"near": 1.0})
        both = {name: found for name in runtimes._members}
        measurement = Measurement(chosen="quick", measured="", settings=settings_of(config), runtimes=both, failed={})
        return measurement, {"quick": Quick(subject)}

    monkeypatch.setattr(served, "measure", measure)
    networks = ServedNetworks(config)
    assert networks.get(CPU).runtime == "eager" and networks.summary(CPU) == {"runtime": "eager"}
    networks.settle(version, CPU, [WINDOWS[0]])
    assert networks.get(CPU).runtime == "quick"
    assert (Checkpoints(config).runtimes_folder(version) / "runtime.json").is_file()
    for again in (networks, ServedNetworks(config)):
        again.get(CPU)
        again.settle(version, CPU, [WINDOWS[0]])
    assert len(made) == 1


def test_a_version_that_is_published_meanwhile_is_not_replaced(config, version, measured):
    measured("slow")
    networks = ServedNetworks(config)
    networks.get(CPU)
    newer = Checkpoints(config).publish(build_network(config).eval(), {})
    assert networks.get(CPU).version == newer
    networks.settle(version, CPU, [])
    assert networks.get(CPU).version == newer


@pytest.mark.parametrize("chosen, why", [("broken", "no kernel"), ("failing", "illegal instruction")])
def test_a_runtime_that_fails_is_replaced_by_the_default_which_the_log_tells(
    config, version, measured, caplog, chosen, why
):
    expected = answers(ServedNetworks(config).get(CPU))
    measured(chosen)
    networks = ServedNetworks(config)
    network = networks.get(CPU)
    for _ in range(3):
        assert answers(network).equal(expected)
    assert networks.runtime(version, CPU) == network.runtime == "eager"
    assert f"{chosen} " in caplog.text and why in caplog.text


def test_too_little_memory_is_no_fault_of_the_runtime(config, version, measured, monkeypatch):
    measured("quick")
    network = ServedNetworks(config).get(CPU)

    def lacking(self, windows):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(Quick, "__call__", lacking)
    with pytest.raises(torch.OutOfMemoryError):
        answers(network)
    assert network.runtime == "quick"


def test_the_defaults_own_failure_is_told(config, version, monkeypatch):
    network = ServedNetworks(config).get(CPU)

    def failing(self, windows):
        raise RuntimeError("illegal instruction")

    monkeypatch.setattr(Eager, "__call__", failing)
    with pytest.raises(RuntimeError, match="illegal instruction"):
        answers(network)


def test_a_forced_runtime_serves_whatever_was_measured(make_small, version, measured):
    measured("quick")
    networks = ServedNetworks(make_small(inference={"runtime": "slow"}))
    assert networks.get(CPU).runtime == networks.runtime(version, CPU) == "slow"
    networks.settle(version, CPU, [], pytest.fail)
    assert networks.get(CPU).runtime == "slow"


def test_a_forced_runtime_that_the_device_has_not_is_replaced_by_the_default(make_small, version, monkeypatch, caplog):
    monkeypatch.setattr(Quick, "obstacle", classmethod(lambda cls, device: "it is not installed"))
    networks = ServedNetworks(make_small(inference={"runtime": "quick"}))
    assert networks.get(CPU).runtime == "eager"
    assert "tiny runs by eager, as quick can't be used: it is not installed" in caplog.text


def test_two_requests_at_once_load_a_version_once(config, version, monkeypatch):
    built = []
    monkeypatch.setattr(checkpoints, "build_network", lambda config: built.append(config) or build_network(config))
    networks, found = ServedNetworks(config), []
    threads = [threading.Thread(target=lambda: found.append(networks.get(CPU))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0] is found[1] and len(built) == 1


def test_a_shipped_versions_measurement_is_kept_in_the_home_and_is_of_these_weights(config, ship, home):
    ship(["one case"])
    checkpoints = Checkpoints(config)
    folder = checkpoints.runtimes_folder(checkpoints.current())
    assert folder.is_relative_to(home / "models" / "tiny" / "shipped")
    card = folders.shipped_weights() / "tiny.json"
    card.write_text(card.read_text().replace("one case", "another case"))
    assert checkpoints.runtimes_folder(checkpoints.current()) != folder


def test_a_machine_is_a_processor_a_pytorch_and_a_number_of_threads():
    assert machine(CPU).endswith(f", torch {torch.__version__}, {torch.get_num_threads()} threads")
    assert len(machine(CPU).split(", torch")[0]) > 2
