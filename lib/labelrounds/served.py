"""The networks that answer: of each model the version that is served, in memory, one a device.

The weights are loaded by the first request and again when another version has been published in between.
"""

import threading

import torch

from labelrounds.checkpoints import Checkpoints, Version
from labelrounds.config import ModelConfig
from labelrounds.errors import Conflict
from labelrounds.networks import SegmentationNetwork, build_network
from labelrounds.networks.serving import for_inference


class ServedNetworks:
    """The networks of one model in memory, one a device, always of the version that is served."""

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self.checkpoints = Checkpoints(config)
        self._loading = threading.Lock()
        self._loaded: dict[str, tuple[Version, SegmentationNetwork]] = {}

    def get(self, device: torch.device) -> tuple[Version, SegmentationNetwork]:
        """Return the served version and its network, loading it where it is not in memory yet.

        Raises:
            Conflict: there is no trained version yet.
        """
        with self._loading:
            version = self.checkpoints.current()
            if version is None:
                raise Conflict(
                    f"model {self.config.name} has no trained version yet: submit labels, then start a training"
                )
            known = self._loaded.get(str(device))
            if known is not None and known[0].weights == version.weights:
                return known
            network = build_network(self.config)
            self.checkpoints.load(version, network)
            served = for_inference(network, device, self.config.dimensions)
            self._loaded[str(device)] = (version, served)
            return version, served
