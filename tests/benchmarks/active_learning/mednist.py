"""Tier A: MedNIST by a logistic regression on fixed features, a second a run, so that many seeds can be played.

Features: HOG and the intensities of the picture reduced to 8 x 8, 64 principal components of all pictures. They need
no labels, so they are the cold embedding and the model's own alike. A fifth of the pictures, drawn by the seed, is for
tests; the rest is the pool.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Picture
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression

from labelrounds.scores import CaseScores
from tests.benchmarks.active_learning.simulation import Model
from tests.real_images import DATA

COMPONENTS = 64
CELL, BINS = 8, 9
Features = NDArray[np.float32]


class Regression:
    """A logistic regression; with less than two classes it knows only one answer."""

    def __init__(self, source: "MedNIST", labelled: Sequence[str]) -> None:
        self._source = source
        rows = [source.row[name] for name in labelled]
        classes = [source.truth[name] for name in labelled]
        self._known = sorted(set(classes))
        self._model = None
        if len(self._known) > 1:
            self._model = LogisticRegression(max_iter=500).fit(source.features[rows], classes)

    def probabilities(self, images: Sequence[str]) -> NDArray[np.float64]:
        """Return the probability of each class of the source, ``(N, C)``."""
        places = [self._source.classes.index(name) for name in self._known]
        found = np.zeros((len(images), len(self._source.classes)))
        rows = [self._source.row[name] for name in images]
        found[:, places] = 1.0 if self._model is None else self._model.predict_proba(self._source.features[rows])
        return found

    def scores(self, images: Sequence[str], costly: Sequence[str]) -> Mapping[str, CaseScores]:
        """Return what a classification's pass gives of each image."""
        probabilities = self.probabilities(images)
        ordered = np.sort(probabilities, axis=1)
        margin = 1 - (ordered[:, -1] - ordered[:, -2])
        entropy = -(probabilities * np.log(probabilities + 1e-12)).sum(axis=1)
        return {
            name: CaseScores(
                values={"margin": float(margin[row]), "entropy": float(entropy[row])},
                by_label={
                    "presence": dict(zip(self._source.classes, probabilities[row].tolist(), strict=True)),
                    "entropy": {
                        label: float(entropy[row] * share)
                        for label, share in zip(self._source.classes, probabilities[row], strict=True)
                    },
                },
                embedding=self._source.features[self._source.row[name]],
            )
            for row, name in enumerate(images)
        }

    def figures(self) -> Mapping[str, float]:
        """Return the accuracy on the test pictures."""
        answers = self.probabilities(self._source.tests).argmax(axis=1)
        truth = [self._source.classes.index(self._source.truth[name]) for name in self._source.tests]
        return {"accuracy": float((answers == truth).mean())}


class MedNIST:
    """The pool of a seed.

    Attributes:
        images: ids of the pool.
        tests: ids of the test pictures.
        classes: names of the six classes.
        truth: by id, the class.
        row: by id, the row in ``features``.
        features: ``(N, 64)``.
    """

    def __init__(self, seed: int, spoilt: bool = False) -> None:
        names, self.truth, self.features = pictures(spoilt)
        self.row = {name: row for row, name in enumerate(names)}
        self.classes = sorted(set(self.truth.values()))
        plain = [name for name in names if "#" not in name]
        mixed = [plain[index] for index in np.random.default_rng([seed, 1]).permutation(len(plain))]
        self.tests = sorted(mixed[: len(mixed) // 5])
        kept = set(self.tests)
        self.images = [name for name in names if name.split("#")[0] not in kept]
        self._spread = float(self.features.std())

    def cold(self) -> Mapping[str, Features]:
        """Return the features."""
        return {name: self.features[self.row[name]] for name in self.images}

    def present(self, image: str) -> Sequence[str]:
        """Return the class."""
        return (self.truth[image],)

    def train(self, labelled: Sequence[str], seed: int, before: Model | None) -> Regression:
        """Return a regression on the labels."""
        return Regression(self, labelled)


@lru_cache(maxsize=2)
def pictures(spoilt: bool) -> tuple[list[str], dict[str, str], Features]:
    """Return ids, classes and features ``(N, 64)`` of all pictures.

    Args:
        spoilt: adds near-copies of 30 % of the pictures (``#copy``: a shift by one pixel and noise) and intensity-
            shifted versions of 15 % (``#shifted``: another brightness, contrast and gamma).
    """
    random = np.random.default_rng(0)
    names, truth, rows = [], {}, []
    for path in sorted((DATA / "mednist").glob("*/*.jpeg")):
        pixels = np.asarray(Picture.open(path).convert("L"), dtype=np.float32) / 255
        versions = {"": pixels}
        chance = random.random()
        if spoilt and chance < 0.3:
            versions["#copy"] = np.clip(np.roll(pixels, 1, axis=1) + 0.01 * random.normal(size=pixels.shape), 0, 1)
        elif spoilt and chance < 0.45:
            gamma, contrast, brightness = random.uniform(0.3, 3), random.uniform(0.3, 1.5), random.uniform(-0.3, 0.3)
            versions = {"#shifted": np.clip(pixels**gamma * contrast + brightness, 0, 1)}
        for kind, shown in versions.items():
            name = f"{path.parent.name}_{path.stem}{kind}"
            names.append(name)
            truth[name] = path.parent.name
            rows.append(described(shown))
    features = np.array(rows)
    features = (features - features.mean(axis=0)) / (features.std(axis=0) + 1e-6)
    return names, truth, PCA(COMPONENTS, random_state=0).fit_transform(features).astype(np.float32)


def described(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a picture's histograms of oriented gradients (9 bins in 8 x 8 cells of a side of 8) and 8 x 8 means."""
    down, right = np.gradient(pixels)
    strength = np.hypot(down, right)
    angle = np.minimum((np.arctan2(down, right) % np.pi / np.pi * BINS).astype(int), BINS - 1)
    layers = np.stack([np.where(angle == number, strength, 0) for number in range(BINS)])
    cells = averaged(layers)
    cells = cells / (np.sqrt((cells**2).sum(axis=0, keepdims=True)) + 1e-3)
    return np.concatenate([cells.reshape(-1), averaged(pixels[None]).reshape(-1)]).astype(np.float32)


def averaged(layers: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the means ``(N, 8, 8)`` of square cells of layers ``(N, H, W)``."""
    number, height, width = layers.shape
    high, wide = height // CELL, width // CELL
    cut = layers[:, : high * CELL, : wide * CELL]
    return cut.reshape(number, CELL, high, CELL, wide).mean(axis=(2, 4))
