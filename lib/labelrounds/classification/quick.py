"""Quick classifiers for few labels: logistic regression and a linear SVM on the embeddings of weights as they are.

Both are linear in the embedding, as a network's last layer is. So what is fitted becomes that layer, its
standardisation included: of the same checkpoint, for which serving, maps, calibration, versions and rollback are one
way, and without a pickle anywhere.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from labelrounds.cases import PreparedCase
from labelrounds.classification.calibration import HIGHEST, LOWEST
from labelrounds.classification.cases import truth_of
from labelrounds.classification.config import LOGISTIC, ClassifierConfig
from labelrounds.classification.outputs import embeddings_of
from labelrounds.devices import place
from labelrounds.errors import BadInput, Cancelled, Conflict

_STRENGTHS, _USUAL = (0.001, 0.01, 0.1, 1.0), 0.1  # sklearn's C, from the strongest regularisation to the weakest
_MOST_FOLDS = 5

Array = NDArray[np.float64]
Stopped = Callable[[], bool]


class Embeddings:
    """The embeddings of one network's weights, each computed once.

    Args:
        network: a `ClassificationNetwork` with the weights that a training starts from; it is placed on the device.
        device: where to compute.
        stopped: asked before cases are embedded and before each fit whether to give up.
    """

    def __init__(self, network: Any, device: torch.device, stopped: Stopped) -> None:
        self.network, self.stopped = place(network, device, network.dimensions), stopped
        self._device = device
        self._known: dict[str, torch.Tensor] = {}

    def of(self, cases: Sequence[PreparedCase]) -> Array:
        """Return the embeddings of cases ``(N, D)``.

        Raises:
            BadInput: the weights make numbers of a case that are not finite.
            Cancelled: ``stopped`` said so.
            TooLarge: not even one image fits into the device's memory.
        """
        new = [case for case in cases if case.image_id not in self._known]
        for case, found in zip(new, embeddings_of(self.network, new, self._device), strict=True):
            check_going(self.stopped)
            if not found.isfinite().all():
                raise BadInput(f"the embedding of {case.image_id} is not finite: the weights it comes from are damaged")
            self._known[case.image_id] = found
        return np.stack([self._known[case.image_id].numpy() for case in cases]).astype(np.float64)


def check_going(stopped: Stopped) -> None:
    """Go on.

    Raises:
        Cancelled: ``stopped`` said so.
    """
    if stopped():
        raise Cancelled("stopped while a quick classifier was fitted")


def obstacle_to_fit(cases: Sequence[PreparedCase], config: ClassifierConfig) -> str | None:
    """Return why no linear classifier of the model's classes can be fitted to cases, or None."""
    truth, labels = truth_of(cases).numpy(), np.array(config.labels)
    counts = truth.sum(0)
    every, none = labels[counts == len(cases)], labels[counts == 0]
    if config.multilabel:
        one_sided = [
            *(f"none is of class {name!r}" for name in none),
            *(f"all are of class {name!r}" for name in every),
        ]
        wanted = "each class takes images of it and images without"
        return f"of {len(cases)} training case(s) {one_sided[0]}; {wanted}" if one_sided else None
    wanted = f"it takes at least one of each of {', '.join(labels)}"
    if len(every):
        return f"all of the {len(cases)} training case(s) are of class {every[0]!r}; {wanted}"
    if len(cases) < len(labels):
        return f"{len(cases)} training cases are fewer than the {len(labels)} classes; {wanted}"
    return f"none of the {len(cases)} training cases is of class {', '.join(none)}; {wanted}" if len(none) else None


def fit(kind: str, start: Embeddings, cases: Sequence[PreparedCase], config: ClassifierConfig) -> Any:
    """Return a copy of the start's network whose last layer is a classifier fitted to the embeddings of cases.

    With ``multilabel`` each class is told from all else by itself. How strongly it is regularised, and how sure its
    margins are, is what does best in a cross-validation among these cases, by patient.

    Args:
        kind: ``logistic`` or ``svm``.
        start: what is the embedding.
        cases: to learn from.
        config: the model.

    Raises:
        Conflict: a class has no case, or no other has one.
        BadInput: embeddings that are not finite.
        Cancelled: it was stopped.
    """
    if obstacle := obstacle_to_fit(cases, config):
        raise Conflict(f"no {kind} classifier for {config.name}: {obstacle}")
    embeddings, truth = start.of(cases), truth_of(cases).numpy()
    patients = np.array([case.patient for case in cases])
    tasks = list(truth.T) if config.multilabel else [truth.argmax(1)]
    fitted = [_linear(kind, embeddings, classes, patients, config, start.stopped) for classes in tasks]
    weight, bias = (np.concatenate(parts) for parts in zip(*fitted, strict=True))
    if not config.multilabel and len(bias) == 1:  # one margin tells two classes apart
        weight, bias = _both_sides(weight), _both_sides(bias)
    network = copy.deepcopy(start.network)
    with torch.no_grad():
        network.head.weight.copy_(torch.from_numpy(weight))
        network.head.bias.copy_(torch.from_numpy(bias))
    return network.eval()


def _linear(
    kind: str, embeddings: Array, classes: NDArray[Any], patients: NDArray[Any], config: ClassifierConfig, stop: Stopped
) -> tuple[Array, Array]:
    """Return weights ``(1 or K, D)`` and biases of the embeddings as they are; one row for two classes."""
    from sklearn.model_selection import cross_val_predict

    folds = _folds(classes, patients, config.training.seed)
    found = []
    for strength in _STRENGTHS if folds else ():
        check_going(stop)
        estimator = _estimator(kind, strength, config)
        margins = cross_val_predict(estimator, embeddings, classes, cv=folds, method="decision_function")
        found.append((*_surest(margins, classes), strength))
    check_going(stop)
    _, temperature, strength = min(found) if found else (0.0, 1.0, _USUAL)
    scaler, linear = (step for _, step in _estimator(kind, strength, config).fit(embeddings, classes).steps)
    weight = linear.coef_ / scaler.scale_
    return weight / temperature, (linear.intercept_ - weight @ scaler.mean_) / temperature


def _estimator(kind: str, strength: float, config: ClassifierConfig) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import LinearSVC

    weights = None if config.training.balance == "none" else "balanced"
    if kind == LOGISTIC:
        linear = LogisticRegression(C=strength, class_weight=weights, max_iter=5000)
    else:
        linear = LinearSVC(
            C=strength, class_weight=weights, max_iter=20000, dual="auto", random_state=config.training.seed
        )
    return make_pipeline(StandardScaler(), linear)


def _folds(classes: NDArray[Any], patients: NDArray[Any], seed: int) -> list[tuple[NDArray[Any], NDArray[Any]]]:
    """Return the parts of a cross-validation, no patient in two; none where a part would leave no case of a class."""
    from sklearn.model_selection import StratifiedGroupKFold

    kinds = np.unique(classes)
    count = min(_MOST_FOLDS, *(len(set(patients[classes == kind])) for kind in kinds))
    if count < 2:
        return []
    split = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
    folds = list(split.split(classes, classes, patients))
    complete = all(len(np.unique(classes[train])) == len(kinds) and len(test) for train, test in folds)
    return folds if complete else []


def _surest(margins: Array, classes: NDArray[Any]) -> tuple[float, float]:
    """Return the cross entropy of margins, and the temperature that it is lowest at.

    The truth counts as sure as so many cases allow, as if one more were right and one wrong, so that margins which are
    all right do not become certainty. (Platt 1999, Probabilistic Outputs for SVMs, does so by class, which for several
    classes of few cases each made the margins far less sure than they were right.)

    Args:
        margins: ``(N,)``, or ``(N, K)`` for more than two classes, of cases that were not learnt from.
        classes: ``(N,)``, 0 to K - 1.
    """
    logits = _both_sides(margins[None]).T if margins.ndim == 1 else margins
    count, kinds = logits.shape
    truth = np.eye(kinds)[classes]
    target = (truth * (count + 1) + (1 - truth) / (kinds - 1)) / (count + 2)

    def loss(log_temperature: float) -> float:
        return float(-(target * log_softmax(logits / np.exp(log_temperature), axis=1)).sum(1).mean())

    found = minimize_scalar(loss, bounds=(np.log(LOWEST), np.log(HIGHEST)), method="bounded")
    return float(found.fun), float(np.exp(found.x))


def _both_sides(one: Array) -> Array:
    """Return a margin's (1, ...) two logits (2, ...), of which the softmax is the margin's sigmoid."""
    return np.concatenate([-one / 2, one / 2])
