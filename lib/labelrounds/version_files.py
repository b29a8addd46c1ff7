"""Where the versions of a model lie (the layout is in `labelrounds.checkpoints`), whatever its configuration.

For `labelrounds.checkpoints`, and for a training that starts from another model's weights.
"""

import logging
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from labelrounds import folders
from labelrounds.errors import BadInput, NotFound
from labelrounds.json_files import read_json

WEIGHTS, RECORD = "weights.safetensors", "version.json"

logger = logging.getLogger(__name__)


class VersionFiles:
    """The files of one model's versions; nothing is kept in memory.

    Attributes:
        folder: of the model; it need not be there yet.
        pointer: the file that says what is served.
    """

    def __init__(self, model: str) -> None:
        self._model = model
        self.folder = folders.home() / "models" / model
        self.pointer = self.folder / "current.json"

    @property
    def shipped(self) -> tuple[Path, Path]:
        """Where the weights and the record are that the package may have of the model."""
        weights = folders.shipped_weights() / f"{self._model}.safetensors"
        return weights, weights.with_suffix(".json")

    def folder_of(self, number: int) -> Path:
        """Return where a version lies, or would."""
        return self.folder / "versions" / f"{number:04d}"

    def numbers(self) -> list[int]:
        """Return the numbers of the version folders, sorted; whatever else lies beside them is left alone."""
        names = [path.name for path in (self.folder / "versions").glob("[0-9]*")]
        return sorted(int(name) for name in names if re.fullmatch("[0-9]{4,9}", name))

    def record(self, number: int) -> dict[str, Any] | None:
        """Return a version's record, None where there is none.

        Raises:
            BadInput: it is damaged.
        """
        return read_json(self.folder_of(number) / RECORD)

    def whole_record(self, number: int) -> dict[str, Any] | None:
        """Return a version's record; None, with a warning, where it is damaged."""
        try:
            return self.record(number)
        except BadInput as error:
            logger.warning("Version %d of %s is left out: %s", number, self._model, error)
            return None

    def served(self) -> tuple[Path, Path]:
        """Return where the weights and the record are of what is served, if anything is."""
        number = (read_json(self.pointer) or {}).get("version")
        folder = self.folder_of(int(number or 0))
        return (folder / WEIGHTS, folder / RECORD) if number else self.shipped


def tensors_of_served(model: str) -> dict[str, torch.Tensor]:
    """Return the tensors of what is served of a model, whatever its configuration: for another one to start from.

    Raises:
        NotFound: nothing of that name is served.
        BadInput: the weights are damaged.
    """
    weights, _ = VersionFiles(model).served()
    if not weights.is_file():
        raise _nothing_served(model)
    try:
        return load_file(weights)
    except (OSError, SafetensorError) as error:
        raise BadInput(f"the weights of {model} cannot be read: {error}") from error


def task_of_served(model: str) -> str:
    """Return what is served of a model was trained for: ``segmentation`` or ``classification``.

    Raises:
        BadInput: its record is damaged.
        NotFound: nothing of that name is served.
    """
    _, card = VersionFiles(model).served()
    record = read_json(card)
    if record is None:
        raise _nothing_served(model)
    return str((record.get("configuration") or {}).get("task", "segmentation"))


def _nothing_served(model: str) -> NotFound:
    return NotFound(f"no version of a model {model!r} is served, so nothing can start from it: train it first")
