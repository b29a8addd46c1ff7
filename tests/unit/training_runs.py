"""Trainings of a small model on small cases, watched, killed and looked at afterwards."""

import errno
import json
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from learners import never

import labelrounds.host  # noqa: F401 - first, so that the host can be imported
from labelrounds import progress, training
from labelrounds.checkpoints import Checkpoints
from labelrounds.store import LabelledCase
from labelrounds.training import train_model
from labelrounds.training_request import TrainingRequest

NAMES = [f"patient_{number:04d}" for number in range(10)]


def wanted(epochs=1, policy="auto", device="cpu") -> TrainingRequest:
    return TrainingRequest(policy, epochs, device)


class Recorder:
    """Stands before the learner: what each training was given, in their order."""

    def __init__(self, monkeypatch) -> None:
        self.trainings: list[dict] = []
        learner = training.Learner

        def made(config, network, train, validation, device, schedule, **options):
            start = {name: value.clone() for name, value in network.state_dict().items()}
            self.trainings.append(
                {"train": names(train), "validation": names(validation), "schedule": schedule, "start": start} | options
            )
            return learner(config, network, train, validation, device, schedule, **options)

        monkeypatch.setattr(training, "Learner", made)


def names(cases) -> list[str]:
    return sorted(case.image_id for case in cases)


def labelled(folder: Path, name: str, seed: int, **changes) -> LabelledCase:
    rng = np.random.default_rng(seed)
    label = np.zeros((14, 12, 12), np.uint8)
    for value in (1, 2):
        label[tuple(slice(at, at + 5) for at in rng.integers(0, 7, 3))] = value
    image = np.array([-0.6, 0.2, 0.8])[label] + rng.normal(0, 0.05, label.shape)
    paths = folder / f"{name}.nii.gz", folder / f"{name}_label.nii.gz"
    for path, array in zip(paths, (image.astype(np.float32), label), strict=True):
        nib.save(nib.Nifti1Image(array, np.eye(4)), path)
    values = {"near": 1, "far": 2}
    return LabelledCase(
        **{"image_id": name, "image": paths[0], "label": paths[1], "values": values, "patient": name} | changes
    )


def seen_progress(monkeypatch) -> list[dict]:
    """Return the list to which everything is added that is written for clients."""
    seen, write = [], progress.write_json
    monkeypatch.setattr(
        progress, "write_json", lambda file, content: (seen.append(dict(content)), write(file, content))
    )
    return seen


def stages_of(seen: list[dict]) -> list[str]:
    return list(dict.fromkeys(figures["stage"] for figures in seen))


def bytes_of(version) -> bytes:
    return version.weights.read_bytes()


def progress_of(config) -> dict:
    return json.loads((Checkpoints(config).folder / "progress.json").read_text())


class Killed(BaseException):
    """Stands in for the end of the process."""


def reported(monkeypatch) -> list[int]:
    """Return the list to which the number of each epoch of the training itself is added."""
    epochs, take = [], progress.Watch.epoch
    monkeypatch.setattr(progress.Watch, "epoch", lambda self, epoch: (epochs.append(epoch.number), take(self, epoch)))
    return epochs


def kill_in(monkeypatch, method: str, after: int, config, studies, epochs: int) -> None:
    """Train, and end at the given call of a method of the watch."""
    calls, take = [], getattr(progress.Watch, method)

    def killed(self, *arguments):
        take(self, *arguments)
        calls.append(1)
        if len(calls) == after:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(progress.Watch, method, killed)
        train_model(config, studies, wanted(epochs), never)


def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
