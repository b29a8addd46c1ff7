"""What a client may ask of a training, checked before any process is started for it."""

from dataclasses import dataclass
from typing import Any

import torch

from labelrounds.devices import choose_device
from labelrounds.errors import BadInput
from labelrounds.policies import AUTO, POLICIES, QUICK
from labelrounds.sections import MOST_EPOCHS, CommonConfig

_REQUEST_KEYS = {"model", "device", "epochs", "policy", "processes", "resumed", "client_id"}


@dataclass(frozen=True)
class TrainingRequest:
    """What a client may say of a training.

    Attributes:
        policy: ``auto``, ``quick`` or ``full``; see ``policies.py``.
        epochs: how many; None for the policy's own number.
        device: where to compute.
        processes: how many train together on a server's machine; each has a GPU of its own.
        resumed: whether a server that was killed had begun it; it then goes on with the cases that it had begun with.
    """

    policy: str
    epochs: int | None
    device: str
    processes: int = 1
    resumed: bool = False

    @classmethod
    def parse(cls, request: dict[str, Any], config: CommonConfig) -> "TrainingRequest":
        """Check a request before any process is started for it; 0 epochs, as clients show it, are the policy's own.

        Raises:
            BadInput: an unknown key or a value that is not allowed.
        """
        unknown = sorted(set(request) - _REQUEST_KEYS)
        if unknown:
            raise BadInput(f"training option {unknown[0]!r} is not one of {', '.join(sorted(_REQUEST_KEYS))}")
        epochs = request.get("epochs", 0)
        if not isinstance(epochs, int) or isinstance(epochs, bool) or not 0 <= epochs <= MOST_EPOCHS:
            raise BadInput(
                f"epochs {epochs!r} is not a whole number from 1 to {MOST_EPOCHS}, nor 0 for the policy's own number"
            )
        policy = request.get("policy") or AUTO
        if policy not in POLICIES:
            raise BadInput(f"policy {policy!r} is not one of {', '.join(POLICIES)}")
        device = choose_device(request.get("device"))
        processes = _processes(request.get("processes", 0), request.get("device"), device, config)
        resumed = request.get("resumed", False)
        if not isinstance(resumed, bool):
            raise BadInput(f"resumed {resumed!r} is not true or false")
        return cls(str(policy), epochs or None, str(device), processes, resumed)

    def epochs_of(self, policy: str, config: CommonConfig) -> int:
        """Return how many epochs a policy trains."""
        own = config.training.quick_epochs if policy == QUICK else config.training.epochs
        return self.epochs or own


def _processes(wanted: object, asked_device: object, device: torch.device, config: CommonConfig) -> int:
    """Return how many processes train together: as many as asked for, or one for each GPU unless one was chosen.

    Raises:
        BadInput: not a number, more than there are GPUs or patches in a batch.
    """
    most, limit = config.training.batch_size, f"training.batch_size of {config.name}"
    if device.type == "cuda" and torch.cuda.device_count() < most:
        most, limit = torch.cuda.device_count(), "GPUs of this machine"
    if not isinstance(wanted, int) or isinstance(wanted, bool) or not 0 <= wanted <= most:
        raise BadInput(f"processes {wanted!r} is not a whole number from 1 to {most} ({limit}), nor 0 for the usual")
    usual = most if device.type == "cuda" and asked_device in (None, "", "cuda") else 1
    return wanted or usual
