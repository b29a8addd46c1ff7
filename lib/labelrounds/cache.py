"""Prepared cases on disk, by the content that they were made from.

A case's key is a hash of its image, its label and everything of the configuration that its preparation depends on.
Another label is another key, so a changed label makes that one case be prepared anew and no other. The files lie in
``home()/cache`` and are mapped into memory, so that the operating system keeps in memory what it has room for.
What was not used for longest is removed first when the files outgrow their budget, ``LABELROUNDS_CACHE_GB``. What no
training has used for 90 days is removed when one begins: they are images of patients, whose studies may be gone.
"""

import hashlib
import json
import logging
import os
import time
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from labelrounds import folders
from labelrounds.budgets import budget_bytes
from labelrounds.history import checksum
from labelrounds.scanned import SEGMENTATION
from labelrounds.sections import CommonConfig
from labelrounds.store import LabelledCase

logger = logging.getLogger(__name__)

BUDGET = "LABELROUNDS_CACHE_GB"
DEFAULT_BUDGET_GB = 20.0
_KEPT_UNUSED_S = 90 * 24 * 3600
_PREPARATION = 2  # to be raised whenever transforms.py or cases.py prepare a case otherwise


def key_of(case: LabelledCase, config: CommonConfig) -> str:
    """Return the hash of a case's content and preparation.

    Raises:
        OSError: a file can't be read.
    """
    content = [_content(Path(case.image)), _content(Path(case.label))]
    # A segmentation file that nobody has named may name itself.
    unnamed = SEGMENTATION if case.label.name.endswith(SEGMENTATION) else None
    values = dict(sorted(case.values.items())) if case.values is not None else unnamed
    about = json.dumps([_PREPARATION, config.preparation, content, values], sort_keys=True)
    return hashlib.sha256(about.encode()).hexdigest()


class PreparedCache:
    """The files; a disk that fails costs time, never a training."""

    def __init__(self) -> None:
        self._folder = folders.home() / "cache"
        self._budget = budget_bytes(BUDGET, DEFAULT_BUDGET_GB)
        self._room = 0  # what may be written before the folder is looked through again

    def read(self, key: str) -> dict[str, torch.Tensor] | None:
        """Return a case's tensors, or None where they are not kept or the file is damaged."""
        file = self._file(key)
        try:
            tensors = load_file(file)
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError) as error:
            logger.warning("Prepare a case anew, as %s is damaged: %s", file, error)
            return None
        with suppress(OSError):
            os.utime(file)  # one that was used is not the next to be removed
        return tensors

    def write(self, key: str, tensors: dict[str, torch.Tensor]) -> None:
        """Keep a case's tensors, at the expense of those that were not used for longest."""
        size = sum(tensor.nbytes for tensor in tensors.values())
        if size > self._budget:
            return
        staging = self._file(key).with_suffix(f".{os.getpid()}.new")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            if size > self._room:  # looking through thousands of files for each of thousands would take minutes
                self._room = self._make_room(size)
            save_file(tensors, staging)
            self._room -= staging.stat().st_size
            staging.replace(self._file(key))
        except (OSError, SafetensorError) as error:
            logger.warning("A prepared case is not kept for the next training: %s", error)
            with suppress(OSError):
                staging.unlink(missing_ok=True)

    def tidy(self) -> None:
        """Remove what was not used for 90 days, and what is over the budget."""
        try:
            for file in self._folder.iterdir():
                if time.time() - file.stat().st_mtime > _KEPT_UNUSED_S:
                    file.unlink(missing_ok=True)
            self._make_room(0)
        except FileNotFoundError:  # no cache yet, or another training tidies up as well
            return
        except OSError as error:
            logger.warning("The cache of prepared cases is not tidied up: %s", error)

    def _make_room(self, size: int) -> int:
        """Remove what was not used for longest until so many bytes fit in, and return how many do."""
        kept = [(file.stat(), file) for file in self._folder.iterdir()]  # also what a killed process left half written
        excess = sum(found.st_size for found, _ in kept) + size - self._budget
        for found, file in sorted(kept, key=lambda one: one[0].st_mtime_ns):
            if excess <= 0:
                break
            file.unlink(missing_ok=True)
            excess -= found.st_size
        return max(0, size - excess)

    def _file(self, key: str) -> Path:
        return self._folder / f"{key}.safetensors"


def _content(path: Path) -> str:
    """Return the hash of a file, or of all files of a folder (a DICOM series)."""
    if not path.is_dir():
        return checksum(path)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return hashlib.sha256("".join(checksum(file) for file in files).encode()).hexdigest()
