"""The networks that answer: of each model the version that is served, in memory, one a device.

At first the runtime runs them that was measured to be the quickest on this machine, or the default one where nothing
is known yet or the quickest takes long to build; `settle` then measures and builds in the background, and what it chose
takes over. A runtime that fails is replaced by the default one, which the log tells.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from labelrounds.checkpoints import Version
from labelrounds.config import AUTO, ModelConfig
from labelrounds.devices import is_out_of_memory
from labelrounds.loaded import LoadedNetworks
from labelrounds.runtime_choice import Do, at_once, measure
from labelrounds.runtime_measurement import Measurement, read_measurement, write_measurement
from labelrounds.runtimes import Runtime, Subject, default_runtime, runtimes

logger = logging.getLogger(__name__)


class ServedNetwork:
    """A version's network on a device: logits ``(B, K, *patch)`` for windows ``(B, C, *patch)`` float32.

    Attributes:
        version: whose weights it has.
        runtime: the name of what runs it.
    """

    def __init__(self, version: Version, subject: Subject, runtime: str, run: Runtime | None = None) -> None:
        self.version = version
        self.runtime, self._run = (runtime, run) if run is not None else _built(subject, runtime)
        # The network itself is kept in memory only where another runtime may have to be built.
        self._subject = subject if self.runtime != default_runtime(subject.device) else None

    def __call__(self, windows: torch.Tensor) -> torch.Tensor:
        """Return the logits; by the default runtime from the moment that another one fails."""
        try:
            return self._run(windows)
        except Exception as error:
            if self._subject is None or is_out_of_memory(error):
                raise
            default = default_runtime(self._subject.device)
            logger.warning("%s runs by %s from now on, as %s fails: %s", self.version, default, self.runtime, error)
        self.runtime, self._run = _built(self._subject, default)
        self._subject = None
        return self._run(windows)


def _built(subject: Subject, wanted: str) -> tuple[str, Runtime]:
    """Return a runtime and its name; the default one where the wanted one can't be built."""
    default = default_runtime(subject.device)
    try:
        obstacle = runtimes.get(wanted).obstacle(subject.device)
        if obstacle is None:
            return wanted, runtimes.get(wanted)(subject)
    except Exception as error:
        if wanted == default or is_out_of_memory(error):
            raise
        obstacle = str(error) or type(error).__name__
    logger.warning("%s runs by %s, as %s can't be used: %s", subject.config.name, default, wanted, obstacle)
    return default, runtimes.get(default)(subject)


class ServedNetworks(LoadedNetworks[ServedNetwork]):
    """The networks of one segmentation model in memory."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.config = config

    def load(self, version: Version, device: torch.device) -> ServedNetwork:
        """Return a version's network, loaded anew, for who keeps to it whatever is served later.

        Raises:
            Conflict, BadInput: its weights are not this model's.
        """
        return ServedNetwork(version, self._subject(version, device), self._wanted(version, device))

    def runtime(self, version: Version, device: torch.device) -> str:
        """Return the name of what runs a version, or will when it is loaded."""
        known = self._known(version, device)
        if known is not None:
            return known.runtime
        wanted = self._wanted(version, device)
        return wanted if runtimes.get(wanted).obstacle(device) is None else default_runtime(device)

    def summary(self, device: torch.device) -> dict[str, Any]:
        """Return what runs the served version, how much faster than float32 it is, and how alike, as far as known."""
        version = self.checkpoints.current()
        if version is None:
            return {}
        measured, runtime = self._measured(version, device), self.runtime(version, device)
        return {"runtime": runtime, **(measured.summary(runtime) if measured is not None else {})}

    def settle(self, version: Version, device: torch.device, images: Sequence[torch.Tensor], do: Do = at_once) -> None:
        """Run a version as fast as can be from now on: measure what is not known yet, build what takes long.

        Args:
            version: a loaded one.
            device: where it is loaded.
            images: prepared, to compare label maps of; see `runtime_choice.excerpt`.
            do: runs whatever computes on the device.

        Raises:
            Conflict: the images show too little of any label to choose by.
            Cancelled, Overloaded: ``do`` said so.
        """
        if self.config.inference.runtime != AUTO:
            return
        subject = self._subject(version, device)
        running: Mapping[str, Runtime] = {}
        measured = self._measured(version, device)
        if measured is None:
            measured, running = measure(subject, images, do)
            write_measurement(subject.folder, device, measured)
        logger.info("%s runs on %s by %s", version, device, measured)
        if measured.chosen == self.runtime(version, device):
            return
        served = ServedNetwork(version, subject, measured.chosen, running.get(measured.chosen))
        with self._loading:
            if self._known(version, device) is not None:  # else another version is served by now
                self._loaded[str(device)] = served

    def _wanted(self, version: Version, device: torch.device) -> str:
        """Return what runs a version when it is loaded; what takes long to build is left to `settle`."""
        if self.config.inference.runtime != AUTO:
            return self.config.inference.runtime
        measured = self._measured(version, device)
        if measured is not None and runtimes.get(measured.chosen).instant:
            return measured.chosen
        return default_runtime(device)

    def _measured(self, version: Version, device: torch.device) -> Measurement | None:
        return read_measurement(self.checkpoints.runtimes_folder(version), self.config, device)

    def _subject(self, version: Version, device: torch.device) -> Subject:
        network = self.checkpoints.network(version)
        return Subject(network, self.config, device, self.checkpoints.runtimes_folder(version))
