"""Trained versions of a model: published whole or not at all, numbered, loaded without unpickling.

Layout below ``home()/models/<model>``::

    versions/0001/weights.safetensors   the network's tensors
    versions/0001/version.json          labels, scores, cases and their hashes, parent, seed, package versions
    versions/0001/runtime.json          which runtime answers fastest on which machine (runtime_measurement.py)
    shipped/<hash>/runtime.json         the same of the shipped weights, by the hash of their record
    current.json                        {"version": 1}: what is served
    served.jsonl                        a line for each change of what is served: when, what, instead of what, why

Beside them lies what the training keeps there: ``split.json`` (splits.py), ``progress.json`` and ``tensorboard/``
(progress.py), ``state.safetensors`` (learning_state.py), ``folds.json`` (cross_validation.py), ``begun.json`` and
``training.lock`` (training_lock.py).

Crash rule: a version is written into a folder with a temporary name and flushed, the folder is renamed, and
only then the pointer is replaced; a crash at any moment leaves the old version served and at most one folder
named ``.new-*`` behind, which the next publication removes. Concurrency: one publishes or removes at a time, a
training or an upload (``publish.lock`` sees to it), any number of processes read; readers see the old or the new
pointer. A server looks at the pointer with each request, so a rollback needs no restart.
"""

import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from labelrounds.atomic import flush
from labelrounds.compatibility import check_meaning, configuration_of, differences
from labelrounds.errors import BadInput, Busy, Conflict, NotFound, OutOfSpace
from labelrounds.json_files import read_json, write_json
from labelrounds.networks import build_network
from labelrounds.sections import CommonConfig
from labelrounds.version_files import RECORD, WEIGHTS, VersionFiles

_REMOVED = "removed.json"
_PACKAGES = ("labelrounds", "monai", "monailabel", "numpy", "torch")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Version:
    """One trained version; number 0 is the one that ships with the package."""

    model: str
    number: int
    weights: Path
    record: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.model} version {self.number}" + (" (shipped)" if self.number == 0 else "")


class Checkpoints:
    """The versions of one model."""

    def __init__(self, config: CommonConfig) -> None:
        self.config = config
        self._files = VersionFiles(config.name)
        self.folder = self._files.folder

    def current(self) -> Version | None:
        """Return the served version: the pointer's, else the shipped one, else None."""
        pointer = read_json(self._files.pointer)
        if pointer is None:
            return self._shipped()
        number = pointer.get("version")
        if not isinstance(number, int):
            raise BadInput(f"{self.folder / 'current.json'} is damaged: version {number!r} is not a number")
        return self.version(number)

    def served(self) -> Version:
        """Return the served version, for who can't do without one.

        Raises:
            Conflict: there is none yet.
        """
        version = self.current()
        if version is None:
            raise Conflict(f"model {self.config.name} has no trained version yet: submit labels, then start a training")
        return version

    def versions(self) -> list[Version]:
        """Return every version there is, the shipped one first, then by number; damaged ones are left out."""
        shipped = self._shipped()
        whole = [number for number in self._files.numbers() if self._files.whole_record(number) is not None]
        return ([shipped] if shipped else []) + [self.version(number) for number in whole]

    def version(self, number: int) -> Version:
        """Return a version by number.

        Raises:
            NotFound: no such version.
        """
        shipped = self._shipped()
        if number == 0 and shipped is not None:
            return shipped
        record = self._files.record(number)
        if record is None:
            raise NotFound(f"model {self.config.name} has no version {number}")
        return Version(self.config.name, number, self._files.folder_of(number) / WEIGHTS, record)

    def runtimes_folder(self, version: Version) -> Path:
        """Return where is kept what this home's machines know of a version's runtimes; it need not be there yet."""
        if version.number:
            return version.weights.parent
        card = json.dumps(version.record, sort_keys=True).encode()
        return self.folder / "shipped" / hashlib.sha256(card).hexdigest()[:16]

    def publish(
        self,
        network: nn.Module,
        record: dict[str, Any],
        serve: Callable[[], bool] = lambda: True,
        complete: Callable[[Path], dict[str, Any]] = lambda folder: {},
        patience_s: float = -1,
    ) -> Version:
        """Write the network as the next version and, unless told otherwise, serve it.

        Args:
            network: with the version's weights.
            record: what is to be known of it.
            serve: tells, once all is written, whether it is served from now on; what is served may change meanwhile.
            complete: adds files to the version's folder, and returns what the record is to say of them.
            patience_s: how long to wait for another publication; for ever when negative.

        Raises:
            Busy: another publication took all that time.
            OutOfSpace: the disk could not take it; the version served before stays.
        """
        with self._changing(patience_s):
            return self._publish(network, record, serve, complete)

    def _publish(
        self,
        network: nn.Module,
        record: dict[str, Any],
        serve: Callable[[], bool],
        complete: Callable[[Path], dict[str, Any]],
    ) -> Version:
        versions = self.folder / "versions"
        number = max(self._files.numbers(), default=0) + 1
        written: Path | None = None
        try:
            versions.mkdir(parents=True, exist_ok=True)
            for leftover in versions.glob(".new-*"):
                shutil.rmtree(leftover, ignore_errors=True)
            written = Path(tempfile.mkdtemp(prefix=".new-", dir=versions))
            self._write(written, network, record, complete)
            written = written.rename(self._files.folder_of(number))
            flush(versions)
            if serve():
                self.serve(number, "published")
        except BaseException as error:
            if written is not None and self.served_number() != number:
                shutil.rmtree(written, ignore_errors=True)
            if isinstance(error, OSError | SafetensorError | OutOfSpace):
                raise OutOfSpace(f"version {number} of {self.config.name} could not be written: {error}") from error
            raise
        return self.version(number)

    @contextmanager
    def _changing(self, patience_s: float) -> Iterator[None]:
        """Keep others, in this process or another, from publishing or removing versions meanwhile.

        Raises:
            Busy: another was at it all the time.
            OutOfSpace: the model's folder can't be made or written to.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.folder / "publish.lock")
            lock.acquire(timeout=patience_s)
        except Timeout as error:
            raise Busy(f"a version of {self.config.name} is being published; try again in a while") from error
        except OSError as error:
            raise OutOfSpace(f"the versions of {self.config.name} can't be changed: {error}") from error
        try:
            yield
        finally:
            lock.release()

    def remove(self, number: int, by: str, patience_s: float = -1) -> None:
        """Delete a version that is not served, for good; its number is never given again.

        Raises:
            NotFound: no such version.
            Conflict: it is served, or ships with the package.
            Busy: another version was being published all the time.
        """
        if number == 0 and self._shipped() is not None:
            raise Conflict(f"version 0 of {self.config.name} ships with the package, and can't be removed")
        with self._changing(patience_s):
            if self._files.whole_record(number) is None:
                raise NotFound(f"model {self.config.name} has no version {number}")
            if number == self.served_number():
                raise Conflict(f"version {number} of {self.config.name} is served: serve another one, then remove it")
            folder = self._files.folder_of(number)
            write_json(folder / _REMOVED, {"at": _now(), "by": by})
            (folder / RECORD).unlink()  # from here on there is no such version
            for path in folder.iterdir():
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                elif path.name != _REMOVED:
                    path.unlink(missing_ok=True)

    def _write(
        self, folder: Path, network: nn.Module, record: dict[str, Any], complete: Callable[[Path], dict[str, Any]]
    ) -> None:
        save_file({name: value.cpu().contiguous() for name, value in network.state_dict().items()}, folder / WEIGHTS)
        found = complete(folder)  # takes a while, in which another version may be chosen
        before = {"served_before": self.served_number()}
        write_json(folder / RECORD, {**self.describe(), **before, **record, **found})
        flush(folder / WEIGHTS)
        folder.chmod(0o755)

    def serve(self, number: int, reason: str = "chosen") -> None:
        """Point to the version that is served from now on, by running servers too, and note why.

        Raises:
            NotFound: no such version.
            OutOfSpace: the pointer could not be written; the version served before stays.
        """
        self.version(number)
        change = {"at": _now(), "version": number, "instead_of": self.served_number(), "reason": reason}
        write_json(self._files.pointer, {"version": number})
        try:
            with (self.folder / "served.jsonl").open("a", encoding="utf-8") as log:
                log.write(json.dumps(change) + "\n")
        except OSError as error:  # what is served counts, the note about it less
            logger.warning("Not noted in served.jsonl: %s: %s", change, error)

    def rollback(self, to: int | None = None) -> tuple[int | None, Version]:
        """Serve an older version again.

        Each version knows what was served when it was published, so that rollbacks in a row go further and further
        back; the next training starts from the version rolled back to.

        Args:
            to: its number; 0 is the shipped one. The one that was served before the present one when None.

        Returns:
            the number of what was served until now, and the version that is from now on.

        Raises:
            NotFound: no such version.
            Conflict: it is served already, or there is none before; it is of another configuration.
            BadInput: its weights are damaged, or of another release.
        """
        served = self.served_number()
        number = self._before(served) if to is None else to
        if number == served:
            raise Conflict(f"version {number} of {self.config.name} is served already")
        version = self.version(number)
        self.network(version)  # what can't be loaded must not replace what can
        self.serve(number, "rollback")
        return served, version

    def served_number(self) -> int | None:
        """Return the number that is pointed to, whole or not: 0 for the shipped version, None when there is none."""
        try:
            number = (read_json(self._files.pointer) or {}).get("version")
        except BadInput:
            return None
        return number if isinstance(number, int) else 0 if self._shipped() else None

    def _before(self, served: int | None) -> int:
        there = [version.number for version in self.versions() if version.number != served]
        record = self._files.whole_record(served) if served else None
        before = (record or {}).get("served_before")
        if before in there:
            return int(before)
        older = [number for number in there if served is None or number < served]
        if not older:
            what = "nothing" if served is None else f"version {served}"
            raise Conflict(f"{what} of {self.config.name} is served, and there is no version before it")
        return max(older)

    def network(self, version: Version) -> Any:
        """Return a version's network; raises as `load` does."""
        network = build_network(self.config)
        self.load(version, network)
        return network

    def load(self, version: Version, network: nn.Module, device: torch.device | str = "cpu") -> None:
        """Fill a network with a version's weights.

        Raises:
            Conflict: the version was trained for other labels, on images prepared otherwise, or is another network.
            BadInput: the file is damaged or its tensors do not fit; the message names the first that differ.
        """
        self.check_configuration(version)
        try:
            tensors = load_file(version.weights, device=str(device))
        except (OSError, SafetensorError) as error:
            raise BadInput(f"the weights of {version} cannot be read: {error}") from error
        differing = differences(network, tensors)
        if differing:
            raise BadInput(
                f"the weights of {version} do not fit the configured network ({'; '.join(differing[:3])}); they were"
                " trained by another release or for another network: train again"
            )
        network.load_state_dict(tensors)

    def check_configuration(self, version: Version) -> None:
        """Refuse weights that were trained for another meaning of what goes in or comes out.

        Raises:
            Conflict: the first key that differs, both values and what to do.
        """
        check_meaning(self.config, version.record, str(version))

    def describe(self) -> dict[str, Any]:
        """Return what every record says: the labels, the configuration, the package versions, the time."""
        return {
            "model": self.config.name,
            "labels": list(self.config.labels),
            "configuration": configuration_of(self.config),
            "packages": {name: metadata.version(name) for name in _PACKAGES},
            "created": _now(),
        }

    def _shipped(self) -> Version | None:
        weights, card = self._files.shipped
        record = read_json(card)
        if record is None or list(record.get("labels", [])) != list(self.config.labels):
            return None  # a user's model of the same name, for other labels, is another model
        return Version(self.config.name, 0, weights, record)


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
