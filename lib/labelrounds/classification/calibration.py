"""From a classifier's logits to probabilities that mean what they say: temperature scaling (arXiv 1706.04599).

One number is fitted, on cases that the network has not learnt from. It changes no decision, only how sure it sounds.
"""

import math

import torch
from scipy.optimize import minimize_scalar
from torch.nn import functional

from labelrounds.errors import BadInput

FEWEST_CASES = 10
LOWEST, HIGHEST = 0.05, 20.0


def probabilities_of(logits: torch.Tensor, multilabel: bool, temperature: float = 1.0) -> torch.Tensor:
    """Return float32 probabilities ``(N, K)``: the sigmoid of each logit, or the softmax over the K labels.

    Args:
        logits: ``(N, K)``.
        multilabel: whether a case may have any number of labels.
        temperature: what the logits are divided by; above 1 makes the probabilities less sure.

    Raises:
        BadInput: a temperature that is not positive and finite.
    """
    if not 0 < temperature < math.inf:
        raise BadInput(f"temperature {temperature}; it must be positive and finite")
    scaled = logits.float() / temperature
    return scaled.sigmoid() if multilabel else scaled.softmax(dim=1)


def temperature_of(logits: torch.Tensor, truth: torch.Tensor, multilabel: bool) -> float:
    """Return the temperature that minimises the negative log-likelihood (Guo et al. 2017, arXiv 1706.04599).

    The likelihood is log-concave in 1/T, so the one minimum in log T is found by Brent's method.

    Args:
        logits: ``(N, K)``, as the network gives them.
        truth: ``(N, K)``, 0 or 1.
        multilabel: whether a case may have any number of labels.

    Returns:
        0.05 to 20. 1.0 where it can't be estimated: under 10 cases, a single class, logits that are not finite, or
        every case right, which would call for a temperature of 0.

    Raises:
        BadInput: the shapes differ.
    """
    if logits.ndim != 2 or logits.shape != truth.shape:
        raise BadInput(
            f"logits have shape {tuple(logits.shape)}, truth {tuple(truth.shape)}; they must be the same, (N, K)"
        )
    logits, truth = logits.detach().double().cpu(), truth.detach().double().cpu()
    if not _can_be_estimated(logits, truth, multilabel):
        return 1.0

    def loss(log_temperature: float) -> float:
        scaled = logits / math.exp(log_temperature)
        if multilabel:
            return float(functional.binary_cross_entropy_with_logits(scaled, truth))
        return float(functional.cross_entropy(scaled, truth))

    found = minimize_scalar(loss, bounds=(math.log(LOWEST), math.log(HIGHEST)), method="bounded")
    return math.exp(float(found.x))


def _can_be_estimated(logits: torch.Tensor, truth: torch.Tensor, multilabel: bool) -> bool:
    if len(logits) < FEWEST_CASES or not torch.isfinite(logits).all():
        return False
    if multilabel:
        classes, margins = truth.unique(), (2 * truth - 1) * logits
    else:
        classes = truth.argmax(dim=1).unique()
        rivals = logits.masked_fill(truth.bool(), -math.inf)
        margins = (logits * truth).sum(dim=1) - rivals.amax(dim=1)
    return len(classes) > 1 and bool(margins.min() < 0)
