"""A small learner on three cases, and what may happen to it."""

import torch

from labelrounds.evaluation import evaluate, mean_dice
from labelrounds.learning import Learner, Schedule
from labelrounds.networks import build_network

CPU = torch.device("cpu")


def never() -> bool:
    return False


class StopAfter:
    """Says stop from the given call on."""

    def __init__(self, calls: float) -> None:
        self.left = calls

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


def learner(config, cases, epochs=3, device=CPU, state=None, fingerprint="one", seed=0, change=None, patience=None):
    torch.manual_seed(seed)
    network = build_network(config)
    if change is not None:
        change(network)
    training = config.training
    return Learner(
        config,
        network,
        cases[:2],
        cases[2:],
        device,
        Schedule(epochs, training.iterations_per_epoch, training.learning_rate, patience),
        state=state,
        fingerprint=fingerprint,
    )


def weights(outcome) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in outcome.network.state_dict().items()}


def same(one, other) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def epochs_of(run, stopped=never) -> tuple:
    reported = []
    return run.run(reported.append, stopped), reported


class Interrupted(Exception):
    """Stands in for the end of the process just after an epoch was saved."""


def out_of_memory(*args):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")


def out_of_the_cpus_memory(*args):
    torch.empty(2**50, dtype=torch.uint8)


def scripted(monkeypatch, dice) -> list[dict[str, torch.Tensor]]:
    """Let each validation, of one case, find the next of these Dice; return the weights that were validated."""
    values, seen = iter(dice), []

    def observed(network, image, config):
        seen.append({name: value.clone() for name, value in network.state_dict().items()})
        return torch.zeros(image.shape[1:], dtype=torch.uint8)

    def next_of(prediction, label, labels):
        return dict.fromkeys(labels, next(values))

    monkeypatch.setattr("labelrounds.evaluation.predict", observed)
    monkeypatch.setattr("labelrounds.evaluation.dice_per_label", next_of)
    return seen


def dice_of(network, cases, config) -> dict[str, float]:
    """Return each label's mean Dice over cases."""
    return mean_dice(list(evaluate(network, cases, config, print).values()))
