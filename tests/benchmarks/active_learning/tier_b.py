"""Tier B: MedNIST by a small DenseNet that our own training loop trains, from the shipped weights for pneumonia.

The network is that of `densenet_pneumonia` at 28 x 28 pixels, since a DenseNet121 would take a day of two cores for
what is played here. The first model of a run starts from those weights, each later one from the one before, as a
quick update of the server does. The pool is 900 pictures drawn by the seed, 400 others are for tests.
"""

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from labelrounds.cases import PreparedCase
from labelrounds.classification.cases import prepared
from labelrounds.classification.config import ClassifierConfig
from labelrounds.config import load_config
from labelrounds.folders import shipped_configs
from labelrounds.learning import Learner, Schedule
from labelrounds.networks import build_network
from labelrounds.reading import read_image
from labelrounds.scores import CaseScores
from labelrounds.strategies import strategies
from labelrounds.strategies.base import Embedding
from labelrounds.tasks import task_of
from tests.benchmarks.active_learning.mednist import DATA, MedNIST, pictures
from tests.benchmarks.active_learning.simulation import Curve, Model, tournament

FIGURE, TARGET = "accuracy", 0.95
SEEDS = tuple(range(1100, 1105))
NAMES = ["auto", "margin", "random"]
DRAWS = {"random": 1}
POOL, TESTS = 900, 400
ITERATIONS, BATCH, RATE = 30, 16, 1e-3
AT_ONCE = 64


class Trained:
    """A network and what it says of the source's pictures."""

    def __init__(self, source: "Pictures", network: Any) -> None:
        self._source, self.network = source, network

    def _seen(self, images: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return probabilities ``(N, C)`` and embeddings ``(N, D)``."""
        self.network.eval()
        chances, embeddings = [], []
        with torch.inference_mode():
            for first in range(0, len(images), AT_ONCE):
                batch = torch.stack([tensor_of(name) for name in images[first : first + AT_ONCE]])
                embedding = self.network.embed(batch)
                embeddings.append(embedding)
                chances.append(functional.softmax(self.network.head(embedding), dim=1))
        return torch.cat(chances).numpy(), torch.cat(embeddings).numpy()

    def scores(self, images: Sequence[str], costly: Sequence[str]) -> Mapping[str, CaseScores]:
        """Return what a classification's pass gives of each picture."""
        chances, embeddings = self._seen(images)
        ordered = np.sort(chances, axis=1)
        entropy = -(chances * np.log(chances + 1e-12)).sum(axis=1)
        return {
            name: CaseScores(
                values={"margin": float(1 - ordered[row, -1] + ordered[row, -2]), "entropy": float(entropy[row])},
                by_label={"presence": dict(zip(self._source.classes, chances[row].tolist(), strict=True))},
                embedding=embeddings[row],
            )
            for row, name in enumerate(images)
        }

    def figures(self) -> Mapping[str, float]:
        """Return the accuracy on the test pictures."""
        answers = self._seen(self._source.tests)[0].argmax(axis=1)
        truth = [self._source.classes.index(self._source.present(name)[0]) for name in self._source.tests]
        return {"accuracy": float((answers == truth).mean())}


class Pictures:
    """The pool of a seed; see `labelrounds`' configuration for how a picture is prepared."""

    def __init__(self, seed: int) -> None:
        whole = MedNIST(seed)
        self._whole = whole
        self.classes = whole.classes
        self.tests = _some(whole.tests, TESTS, seed)
        self.images = _some(whole.images, POOL, seed)

    def cold(self) -> Mapping[str, Embedding]:
        """Return tier A's features."""
        cold = self._whole.cold()
        return {name: cold[name] for name in self.images}

    def present(self, image: str) -> Sequence[str]:
        """Return the class."""
        return self._whole.present(image)

    def train(self, labelled: Sequence[str], seed: int, before: Model | None) -> Trained:
        """Return a network trained for 30 steps from the one before, or for 60 from the shipped one."""
        config = configuration(seed)
        torch.manual_seed(seed)
        if isinstance(before, Trained):
            network = deepcopy(before.network)
        else:
            network = build_network(config)
            task_of(config).initialise(network, config)
        cases = [self._case(name) for name in labelled]
        schedule = Schedule(1 if before else 2, ITERATIONS, RATE)
        learner = Learner(config, network, cases, [], torch.device("cpu"), schedule)
        return Trained(self, learner.run(lambda epoch: None, lambda: False).network)

    def _case(self, name: str) -> PreparedCase:
        label = torch.tensor([one in self.present(name) for one in self.classes], dtype=torch.uint8)
        return PreparedCase(name, name, tensor_of(name), label, (1.0, 1.0, 1.0), (), name)


def _some(names: Sequence[str], count: int, seed: int) -> list[str]:
    return sorted(np.random.default_rng([seed, 2]).permutation(sorted(names))[:count].tolist())


@lru_cache(maxsize=1)
def shipped() -> ClassifierConfig:
    """Return the model for pneumonia with MedNIST's classes."""
    made = load_config(shipped_configs() / "densenet_pneumonia.yaml")
    classes = tuple(sorted(path.name for path in (DATA / "mednist").iterdir() if path.is_dir()))
    training = made.training.model_copy(update={"init_from": made.name, "batch_size": BATCH})
    return made.model_copy(update={"name": "mednist_rounds", "labels": classes, "training": training})


def configuration(seed: int) -> ClassifierConfig:
    """Return the model with a seed."""
    config = shipped()
    return config.model_copy(update={"training": config.training.model_copy(update={"seed": seed})})


@lru_cache(maxsize=4_000)
def tensor_of(name: str) -> torch.Tensor:
    """Return a picture as the network sees it, ``(1, 28, 28, 1)``."""
    folder, _, file = name.rpartition("_")
    return prepared(read_image(DATA / "mednist" / folder / f"{file}.jpeg", channels=1), shipped())


def read() -> None:
    """Read the pictures' features once, for all runs."""
    pictures(spoilt=False)


def run(seeds: Sequence[int], names: Sequence[str]) -> Iterator[Curve]:
    """Play 8 rounds of 6 labels."""
    torch.set_num_threads(1)
    made = {name: (lambda source, name=name: strategies.get(name)()) for name in names}
    yield from tournament(Pictures, made, seeds=seeds, start=0, batch=6, rounds=8, draws=DRAWS)
