"""The networks of one served model in memory, whatever its task: one a device, always of the version that is served.

Behind ``served.py`` and ``classification/served.py``, which say how one is loaded. The weights are loaded by the first
request and again when another version has been published in between; any thread may call.
"""

import threading
from abc import ABC, abstractmethod
from typing import Generic, Protocol, TypeVar

import torch

from labelrounds.checkpoints import Checkpoints, Version
from labelrounds.sections import CommonConfig


class OfVersion(Protocol):
    """Something with a version's weights."""

    @property
    def version(self) -> Version:
        """Whose weights it has."""


Network = TypeVar("Network", bound=OfVersion)


class LoadedNetworks(ABC, Generic[Network]):
    """The networks of one model in memory."""

    def __init__(self, config: CommonConfig) -> None:
        self.checkpoints = Checkpoints(config)
        self._loading = threading.Lock()
        self._loaded: dict[str, Network] = {}

    def get(self, device: torch.device) -> Network:
        """Return the served version's network, loading it where it is not in memory yet.

        Raises:
            Conflict: there is no trained version yet.
        """
        with self._loading:
            version = self.checkpoints.served()
            known = self._known(version, device)
            if known is None:
                known = self._loaded[str(device)] = self.load(version, device)
            return known

    @abstractmethod
    def load(self, version: Version, device: torch.device) -> Network:
        """Return a version's network, loaded anew, for who keeps to it whatever is served later.

        Raises:
            Conflict, BadInput: its weights are not this model's.
        """

    def _known(self, version: Version, device: torch.device) -> Network | None:
        known = self._loaded.get(str(device))
        return known if known is not None and known.version.weights == version.weights else None
