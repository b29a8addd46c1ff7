"""A training's state on disk, from which it goes on after a kill: one safetensors file, replaced after each epoch.

The file holds the tensors ``network/NAME``, ``average/NAME``, ``best/NAME`` and ``optimizer/PARAMETER/NAME``, and as
metadata ``fingerprint`` (what the run is about) and ``standing`` (JSON: how far it has come, with which batch).
"""

import json
import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

logger = logging.getLogger(__name__)

_MOVING_SHARE = 0.3

Tensors = dict[str, torch.Tensor]


@dataclass
class Standing:
    """How far a run has come: epochs that are done, and what their validations have found."""

    done: int = 0
    best_dice: float = -1.0
    moving: float = -1.0
    best_moving: float = -1.0
    best_moving_epoch: int = 0

    def follow(self, dice: float) -> None:
        """Take a validation's Dice into the moving average."""
        self.moving = dice if self.moving < 0 else self.moving + _MOVING_SHARE * (dice - self.moving)
        if self.moving > self.best_moving:
            self.best_moving, self.best_moving_epoch = self.moving, self.done


@dataclass
class LearningState:
    """A run as it is at the end of an epoch.

    Attributes:
        standing: how far it has come.
        batch_size: patches of a step.
        network: the network's weights, by name.
        average: the averaged weights.
        best: the averaged weights of the best epoch so far.
        optimizer: the optimiser's tensors of each parameter, by the parameter's number.
    """

    standing: Standing
    batch_size: int
    network: Tensors
    average: Tensors
    best: Tensors
    optimizer: dict[int, Tensors]


def save_state(file: Path, fingerprint: str, state: LearningState) -> None:
    """Write a run's state, whole or not at all; that it can't be written is logged, and ends no training."""
    parts = {"network": state.network, "average": state.average, "best": state.best}
    parts |= {f"optimizer/{index}": tensors for index, tensors in state.optimizer.items()}
    content = {f"{part}/{name}": value for part, tensors in parts.items() for name, value in tensors.items()}
    note = {
        "fingerprint": fingerprint,
        "standing": json.dumps({"batch_size": state.batch_size, **vars(state.standing)}),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    staging = file.with_suffix(".new")
    try:
        save_file({k: v.detach().cpu().contiguous().clone() for k, v in content.items()}, staging, metadata=note)
        staging.replace(file)
    except (OSError, SafetensorError) as error:
        staging.unlink(missing_ok=True)
        logger.warning("Epoch %d is not saved, and can't be resumed: %s", state.standing.done, error)


def read_state(file: Path, fingerprint: str) -> LearningState | None:
    """Return a run's state; None where there is none, of another run, or a damaged one, which is logged."""
    if not file.is_file():
        return None
    try:
        note, parts = _read(file)
        if note.get("fingerprint") != fingerprint:
            return None
        optimizer: dict[int, Tensors] = {}
        for key, value in parts.pop("optimizer").items():
            index, name = key.split("/", 1)
            optimizer.setdefault(int(index), {})[name] = value
        standing = dict(json.loads(note["standing"]))
        batch_size = standing.pop("batch_size")
        return LearningState(Standing(**standing), batch_size, **parts, optimizer=optimizer)
    except (OSError, SafetensorError, LookupError, ValueError, TypeError) as error:
        logger.warning("Start over, as %s is damaged: %s", file, error)
        return None


def _read(file: Path) -> tuple[dict[str, str], dict[str, Tensors]]:
    """Return a file's metadata, and its tensors by part and name."""
    parts: dict[str, Tensors] = {"network": {}, "average": {}, "best": {}, "optimizer": {}}
    with safe_open(file, framework="pt") as opened:
        for key in opened.keys():  # noqa: SIM118 - not a dict
            part, name = key.split("/", 1)
            parts[part][name] = opened.get_tensor(key)
        return opened.metadata() or {}, parts
