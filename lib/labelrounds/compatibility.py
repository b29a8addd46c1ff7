"""Whether weights are right for a model: what its configuration gives them to see, and the tensors of its network.

Behind `labelrounds.checkpoints`, before any weights are loaded.
"""

from typing import Any

import torch
from torch import nn

from labelrounds.errors import Conflict, LabelRoundsError
from labelrounds.registry import Registry
from labelrounds.sections import CommonConfig

# With the task, the dimensions and the network; see _decisive.
_DECISIVE = ("labels", "channels", "spacing_mm", "intensity", "multilabel", "input_size", "slices_of_volume")


def configuration_of(config: CommonConfig) -> dict[str, Any]:
    """Return a model's configuration and its task as a version's record keeps them."""
    return {"task": config.task, **config.model_dump(mode="json")}


def check_meaning(config: CommonConfig, record: dict[str, Any], name: str) -> None:
    """Refuse weights that were trained for another meaning of what goes in or comes out.

    Tensors of the same shapes would load, and segment wrongly without a word. Of a record by an older release
    only what it holds is compared.

    Args:
        config: the model.
        record: of the version.
        name: of the version, for the message.

    Raises:
        Conflict: the first key that differs, both values and what to do.
    """
    registry = config.network.registry
    before = _decisive({**record, **(record.get("configuration") or {})}, registry)
    now = _decisive(configuration_of(config), registry)
    for key, value in before.items():
        wanted = now.get(key)
        if _differ(value, wanted):
            raise Conflict(
                f"{name} was trained for {key} {value}, the configuration has {wanted}: train again, or put"
                f" the former {key} back into the model's YAML file"
            )


def differences(network: nn.Module, found: dict[str, torch.Tensor]) -> list[str]:
    """Return in what tensors differ from those of a network: names, then shapes."""
    expected = network.state_dict()
    lines = [f"{name} is missing" for name in sorted(set(expected) - set(found))]
    lines += [f"{name} is unknown" for name in sorted(set(found) - set(expected))]
    for name in sorted(set(expected) & set(found)):
        if expected[name].shape != found[name].shape:
            lines.append(f"{name} has shape {tuple(found[name].shape)}, expected {tuple(expected[name].shape)}")
    return lines


def _decisive(configuration: dict[str, Any], registry: Registry[Any]) -> dict[str, Any]:
    """Return what of a configuration weights are only right for; a key that it lacks is left out."""
    found = {key: configuration[key] for key in _DECISIVE if key in configuration}
    found = {"task": configuration.get("task", "segmentation"), **found}  # records have it since there are two
    if "patch_size" in configuration:
        found["dimensions"] = 2 if configuration["patch_size"][2] == 1 else 3
    if "network" in configuration:
        found["network"] = _with_defaults(configuration["network"], registry)
    return found


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
