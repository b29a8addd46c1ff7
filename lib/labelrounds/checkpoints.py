"""Trained versions of a model: published whole or not at all, numbered, loaded without unpickling.

Layout below ``home()/models/<model>``::

    versions/0001/weights.safetensors   the network's tensors
    versions/0001/version.json          labels, scores, cases and their hashes, parent, seed, package versions
    versions/0001/runtime.json          which runtime answers fastest on which machine (runtime_choice.py)
    shipped/<hash>/runtime.json         the same of the shipped weights, by the hash of their record
    current.json                        {"version": 1}: what is served
    served.jsonl                        a line for each change of what is served: when, what, instead of what, why

Beside them lies what the training keeps there: ``split.json`` (splits.py), ``progress.json`` and ``tensorboard/``
(progress.py), ``state.safetensors`` (learning_state.py), ``folds.json`` (cross_validation.py), ``begun.json`` and
``training.lock`` (training.py).

Crash rule: a version is written into a folder with a temporary name and flushed, the folder is renamed, and
only then the pointer is replaced; a crash at any moment leaves the old version served and at most one folder
named ``.new-*`` behind, which the next publication removes. Concurrency: one publishes or removes at a time, a
training or an upload (``publish.lock`` sees to it), any number of processes read; readers see the old or the new
pointer. A server looks at the pointer with each request, so a rollback needs no restart.
"""

import hashlib
import json
import logging
import re
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

from labelrounds import folders
from labelrounds.atomic import flush, replacing
from labelrounds.errors import BadInput, Busy, Conflict, LabelRoundsError, NotFound, OutOfSpace
from labelrounds.networks import build_network
from labelrounds.registry import Registry
from labelrounds.sections import CommonConfig

_WEIGHTS, _RECORD, _REMOVED = "weights.safetensors", "version.json", "removed.json"
# With the task, the dimensions and the network; see _decisive.
_DECISIVE = ("labels", "channels", "spacing_mm", "intensity", "multilabel", "input_size", "slices_of_volume")
_NOTHING_SERVED = "no version of a model {} is served, so nothing can start from it: train it first"
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
        self.folder = folders.home() / "models" / config.name

    def current(self) -> Version | None:
        """Return the served version: the pointer's, else the shipped one, else None."""
        pointer = self._pointer()
        if pointer is None:
            return self._shipped()
        number = pointer.get("version")
        if not isinstance(number, int):
            raise BadInput(f"{self.folder / 'current.json'} is damaged: version {number!r} is not a number")
        return self.version(number)

    def versions(self) -> list[Version]:
        """Return every version there is, the shipped one first, then by number; damaged ones are left out."""
        shipped = self._shipped()
        whole = [number for number in self._numbers() if self._whole_record(number) is not None]
        return ([shipped] if shipped else []) + [self.version(number) for number in whole]

    def version(self, number: int) -> Version:
        """Return a version by number.

        Raises:
            NotFound: no such version.
        """
        shipped = self._shipped()
        if number == 0 and shipped is not None:
            return shipped
        record = self._record(number)
        if record is None:
            raise NotFound(f"model {self.config.name} has no version {number}")
        return Version(self.config.name, number, self._folder_of(number) / _WEIGHTS, record)

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
        number = max(self._numbers(), default=0) + 1
        written: Path | None = None
        try:
            versions.mkdir(parents=True, exist_ok=True)
            for leftover in versions.glob(".new-*"):
                shutil.rmtree(leftover, ignore_errors=True)
            written = Path(tempfile.mkdtemp(prefix=".new-", dir=versions))
            self._write(written, network, record, complete)
            written = written.rename(self._folder_of(number))
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
            number = max(self._numbers(), default=0) + 1
            raise OutOfSpace(f"version {number} of {self.config.name} could not be written: {error}") from error
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
            if self._whole_record(number) is None:
                raise NotFound(f"model {self.config.name} has no version {number}")
            if number == self.served_number():
                raise Conflict(f"version {number} of {self.config.name} is served: serve another one, then remove it")
            folder = self._folder_of(number)
            write_json(folder / _REMOVED, {"at": _now(), "by": by})
            (folder / _RECORD).unlink()  # from here on there is no such version
            for path in folder.iterdir():
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                elif path.name != _REMOVED:
                    path.unlink(missing_ok=True)

    def _write(
        self, folder: Path, network: nn.Module, record: dict[str, Any], complete: Callable[[Path], dict[str, Any]]
    ) -> None:
        save_file({name: value.cpu().contiguous() for name, value in network.state_dict().items()}, folder / _WEIGHTS)
        found = complete(folder)  # takes a while, in which another version may be chosen
        before = {"served_before": self.served_number()}
        write_json(folder / _RECORD, {**self.describe(), **before, **record, **found})
        flush(folder / _WEIGHTS)
        folder.chmod(0o755)

    def serve(self, number: int, reason: str = "chosen") -> None:
        """Point to the version that is served from now on, by running servers too, and note why.

        Raises:
            NotFound: no such version.
            OutOfSpace: the pointer could not be written; the version served before stays.
        """
        self.version(number)
        change = {"at": _now(), "version": number, "instead_of": self.served_number(), "reason": reason}
        write_json(self.folder / "current.json", {"version": number})
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
        self.load(version, build_network(self.config))  # what can't be loaded must not replace what can
        self.serve(number, "rollback")
        return served, version

    def served_number(self) -> int | None:
        """Return the number that is pointed to, whole or not: 0 for the shipped version, None when there is none."""
        try:
            number = (self._pointer() or {}).get("version")
        except BadInput:
            return None
        return number if isinstance(number, int) else 0 if self._shipped() else None

    def _before(self, served: int | None) -> int:
        there = [version.number for version in self.versions() if version.number != served]
        record = self._whole_record(served) if served else None
        before = (record or {}).get("served_before")
        if before in there:
            return int(before)
        older = [number for number in there if served is None or number < served]
        if not older:
            what = "nothing" if served is None else f"version {served}"
            raise Conflict(f"{what} of {self.config.name} is served, and there is no version before it")
        return max(older)

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

        Tensors of the same shapes would load, and segment wrongly without a word. Of a record by an older release
        only what it holds is compared.

        Raises:
            Conflict: the first key that differs, both values and what to do.
        """
        record = version.record
        before = self._decisive({**record, **(record.get("configuration") or {})})
        now = self._decisive(self._configuration())
        for key, value in before.items():
            wanted = now.get(key)
            if _differ(value, wanted):
                raise Conflict(
                    f"{version} was trained for {key} {value}, the configuration has {wanted}: train again, or put"
                    f" the former {key} back into the model's YAML file"
                )

    def describe(self) -> dict[str, Any]:
        """Return what every record says: the labels, the configuration, the package versions, the time."""
        return {
            "model": self.config.name,
            "labels": list(self.config.labels),
            "configuration": self._configuration(),
            "packages": {name: metadata.version(name) for name in _PACKAGES},
            "created": _now(),
        }

    def _configuration(self) -> dict[str, Any]:
        return {"task": self.config.task, **self.config.model_dump(mode="json")}

    def _decisive(self, configuration: dict[str, Any]) -> dict[str, Any]:
        """Return what of a configuration weights are only right for; a key that it lacks is left out."""
        found = {key: configuration[key] for key in _DECISIVE if key in configuration}
        found = {"task": configuration.get("task", "segmentation"), **found}  # records have it since there are two
        if "patch_size" in configuration:
            found["dimensions"] = 2 if configuration["patch_size"][2] == 1 else 3
        if "network" in configuration:
            found["network"] = _with_defaults(configuration["network"], self.config.network.registry)
        return found

    def _pointer(self) -> dict[str, Any] | None:
        return read_json(self.folder / "current.json")

    def _folder_of(self, number: int) -> Path:
        return self.folder / "versions" / f"{number:04d}"

    def _record(self, number: int) -> dict[str, Any] | None:
        return read_json(self._folder_of(number) / _RECORD)

    def _whole_record(self, number: int) -> dict[str, Any] | None:
        """Return a version's record; None, with a warning, where it is damaged."""
        try:
            return self._record(number)
        except BadInput as error:
            logger.warning("Version %d of %s is left out: %s", number, self.config.name, error)
            return None

    def _numbers(self) -> list[int]:
        """Return the numbers of the version folders, sorted; whatever else lies beside them is left alone."""
        names = [path.name for path in (self.folder / "versions").glob("[0-9]*")]
        return sorted(int(name) for name in names if re.fullmatch("[0-9]{4,9}", name))

    def _shipped(self) -> Version | None:
        weights = folders.shipped_weights() / f"{self.config.name}.safetensors"
        record = read_json(weights.with_suffix(".json"))
        if record is None or list(record.get("labels", [])) != list(self.config.labels):
            return None  # a user's model of the same name, for other labels, is another model
        return Version(self.config.name, 0, weights, record)


def tensors_of_served(model: str) -> dict[str, torch.Tensor]:
    """Return the tensors of what is served of a model, whatever its configuration: for another one to start from.

    Raises:
        NotFound: nothing of that name is served.
        BadInput: the weights are damaged.
    """
    weights, _ = _served_files(model)
    if not weights.is_file():
        raise NotFound(_NOTHING_SERVED.format(repr(model)))
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
    _, card = _served_files(model)
    record = read_json(card)
    if record is None:
        raise NotFound(_NOTHING_SERVED.format(repr(model)))
    return str((record.get("configuration") or {}).get("task", "segmentation"))


def _served_files(model: str) -> tuple[Path, Path]:
    """Return where the weights and the record are of what is served of a model, if anything is."""
    number = (read_json(folders.home() / "models" / model / "current.json") or {}).get("version") or 0
    if number:
        folder = folders.home() / "models" / model / "versions" / f"{int(number):04d}"
        return folder / _WEIGHTS, folder / _RECORD
    weights = folders.shipped_weights() / f"{model}.safetensors"
    return weights, weights.with_suffix(".json")


def read_json(path: Path) -> dict[str, Any] | None:
    """Return a JSON file's object, or None where the file does not exist.

    Raises:
        BadInput: the file is not JSON.
    """
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (UnicodeDecodeError, ValueError, TypeError) as error:
        raise BadInput(f"{path} is damaged: {error}") from error


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file so that a reader sees the old content or the new one, whatever happens in between."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, durable=True) as staging:
        staging.write_text(json.dumps(content, indent=2), encoding="utf-8")


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _with_defaults(network: dict[str, Any], registry: Registry[Any]) -> dict[str, Any]:
    """Return a network's name and all of its options, those that are left out with their defaults."""
    try:
        options = registry.options(network["name"]).model_validate(
            {key: value for key, value in network.items() if key != "name"}, strict=False
        )
    except (LookupError, ValueError, LabelRoundsError):  # a network or an option that this release has no more
        return network
    return {"name": network["name"], **options.model_dump(mode="json")}


def _differ(before: Any, now: Any) -> bool:
    """Tell whether two values differ; of two sections, in a key that both have."""
    if isinstance(before, dict) and isinstance(now, dict):
        return any(_differ(before[key], now[key]) for key in before.keys() & now.keys())
    return bool(before != now)


def differences(network: nn.Module, found: dict[str, torch.Tensor]) -> list[str]:
    """Return in what tensors differ from those of a network: names, then shapes."""
    expected = network.state_dict()
    lines = [f"{name} is missing" for name in sorted(set(expected) - set(found))]
    lines += [f"{name} is unknown" for name in sorted(set(found) - set(expected))]
    for name in sorted(set(expected) & set(found)):
        if expected[name].shape != found[name].shape:
            lines.append(f"{name} has shape {tuple(found[name].shape)}, expected {tuple(expected[name].shape)}")
    return lines
