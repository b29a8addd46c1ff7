"""A model's configuration from a fingerprint, each value with its reason.

Resolution and sizes are decided in `labelrounds.sizing`; the rest here, from what the labels are called, what the
voxels hold and how many cases there are.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from labelrounds.config import InferenceConfig, TrainingConfig
from labelrounds.fingerprint import Fingerprint
from labelrounds.networks import networks
from labelrounds.sizing import (
    ANISOTROPIC,
    LABEL_VOXELS,
    LOWEST_SIDE,
    Layout,
    network_options,
    plan_layout,
    target_spacing,
)

DEFAULT = "The default."
AXES = ("left-right", "posterior-anterior", "inferior-superior")

_ENOUGH_CASES, _ONE_PIECE = 10, 0.95
_ITERATIONS = ((10, 1500), (50, 3000), (math.inf, 6000))  # up to so many labelled cases: iterations on a CPU
_CUDA_LONGER = 4
_CPU_HOURS = 3.0
_WINDOWS = (
    ("lung", (-1000, 400), r"lung|airway|bronch|trachea|lobe|nodule"),
    ("bone", (-200, 1000), r"bone|spine|vertebra|rib|skull|femur|pelvis|hip|tooth|teeth|mandib|sacrum|scapula|clavic"),
    ("soft tissue", (-160, 240), r""),
)
_SIDES = {"left", "right", "lt", "rt", "l", "r", "sinister", "dexter", "sin", "dex"}
# Organs that a flip puts on the wrong side or turns into their mirror image, as only in situs inversus.
_ONE_SIDED = re.compile(
    r"liver|hepat|spleen|splenic|stomach|gastric|gall.?bladder|biliary|bile|pancrea|heart|cardi|aort|vena.?cava|portal"
    r"|duoden|jejun|ileum|colon|ca?ecum|appendi|bowel|intestin"
)
_NO_SIDES = ("bright", "fright", "upright")


@dataclass(frozen=True)
class Choice:
    """One value of the configuration and why it is that.

    Attributes:
        key: where it stands, sections separated by points.
        value: as JSON would hold it.
        reason: a sentence with the figures behind it.
    """

    key: str
    value: Any
    reason: str


@dataclass(frozen=True)
class Plan:
    """A planned model.

    Attributes:
        choices: every key of the configuration, in the order of the file.
        notes: what the user should know beside it.
    """

    choices: tuple[Choice, ...]
    notes: tuple[str, ...]


def make_plan(fingerprint: Fingerprint, network: str, device: torch.device) -> Plan:
    """Decide on every key of a model for the fingerprinted studies.

    Raises:
        BadInput: an unknown network, images too small to segment, or not enough memory for the smallest patch.
    """
    layout = plan_layout(fingerprint, network, device)
    choices = [
        *_described(fingerprint, network),
        *_resolution(fingerprint, layout),
        _intensity(fingerprint),
        _size(layout, device),
        _mirror(fingerprint),
        *_network(network, layout, device),
        *_training(fingerprint, layout, device),
        *_inference(layout),
        _cleaning(fingerprint),
    ]
    return Plan(tuple(choices), tuple(_notes(fingerprint)))


def lateral_labels(labels: Sequence[str]) -> list[str]:
    """Return the labels whose name says a side of the body, as ``left_kidney``, ``kidney (R)`` or ``KidneyLeft``."""
    return [label for label in labels if _is_lateral(label)]


def one_sided_labels(labels: Sequence[str]) -> list[str]:
    """Return the labels whose name is that of an organ of one side, or with a left and a right half that differ."""
    return [label for label in labels if _ONE_SIDED.search(label.lower())]


def _is_lateral(label: str) -> bool:
    words = [word.lower() for word in re.findall(r"[A-Z]?[a-z]+\d*|[A-Z]+(?![a-z])\d*|\d+", label)]
    if any(word in _SIDES for word in words):
        return True
    bare = [word.rstrip("0123456789") for word in words]
    return any(
        word.startswith(("left", "right")) or word.endswith(("left", "right")) for word in bare if word not in _NO_SIDES
    )


def _described(fingerprint: Fingerprint, network: str) -> list[Choice]:
    known = [modality for modality in fingerprint.modalities if modality]
    modality = known[0] if len(fingerprint.modalities) == 1 and known else "+".join(sorted(known)) or "other"
    source = "from the files, their names or, for CT, from air near -1000 HU" if known else "nothing tells it"
    shown = ", ".join(fingerprint.labels[:5]) + (", ..." if len(fingerprint.labels) > 5 else "")
    sizes = ", ".join(f"{label} {_figure(size)}" for label, size in fingerprint.label_sizes_mm3().items() if size)
    unit = "pixels" if fingerprint.is_flat else "mm3"
    channels = "colours in every picture" if fingerprint.is_flat and fingerprint.channels > 1 else "as in the images"
    return [
        Choice("description", f"{network} for {shown}" + (f" in {modality}" if known else ""), "What clients show."),
        Choice(
            "labels",
            list(fingerprint.labels),
            f"Voxel values 1, 2, 3, ... in this order. Median size in {unit}: {sizes}."
            if sizes
            else "Voxel values 1, 2, 3, ... in this order. No voxel has a label yet.",
        ),
        Choice("modality", modality, f"A name to show, no more; {source}."),
        Choice("channels", fingerprint.channels, f"Values a voxel, {channels}."),
    ]


def _resolution(fingerprint: Fingerprint, layout: Layout) -> list[Choice]:
    if fingerprint.is_flat:
        return [Choice("spacing_mm", None, "Pictures have no spacing; each is taken pixel by pixel.")]
    low, high = fingerprint.spacings_mm.min(axis=0), fingerprint.spacings_mm.max(axis=0)
    spread = ", ".join(f"{_figure(a)} to {_figure(b)}" for a, b in zip(low, high, strict=True))
    rule = "the median of the images"
    thick = layout.spacing_mm.index(max(layout.spacing_mm))
    if layout.spacing_mm[thick] > ANISOTROPIC * sorted(layout.spacing_mm)[1]:
        rule += f", of the thick slices ({AXES[thick]}) the tenth percentile"
    if layout.coarsened:
        full = target_spacing(fingerprint.spacings_mm, fingerprint.shapes)
        rule = (
            f"coarser than the images' {list(full)}, so that one is not cut into too many patches;"
            f" every label keeps {LABEL_VOXELS} voxels"
        )
    if layout.dimensions == 2:
        rule += "; the slices are kept as they are"
    return [Choice("spacing_mm", list(layout.spacing_mm), f"{AXES[0]}, {AXES[1]}, {AXES[2]}: {rule} ({spread}).")]


def _intensity(fingerprint: Fingerprint) -> Choice:
    percentiles = (0.5, 50, 99.5)
    (low, middle, high), labelled = fingerprint.intensity_percentiles(percentiles)
    if fingerprint.modalities == ["CT"] and fingerprint.channels == 1:
        if labelled:
            low, high = math.floor(low), max(math.ceil(high), math.floor(low) + 1)
            why = f"HU of the labelled voxels, 0.5 to 99.5 percent (median {middle:.0f})."
            return Choice("intensity", {"kind": "window", "low": low, "high": high}, why)
        kind, (low, high), _ = next(
            window for window in _WINDOWS if any(re.search(window[2], label.lower()) for label in fingerprint.labels)
        )
        why = f"The usual window for {kind}, in HU, as no voxel is labelled yet; plan again when some are."
        return Choice("intensity", {"kind": "window", "low": low, "high": high}, why)
    of = "labelled voxels" if labelled else "whole images, as nothing is labelled yet"
    return Choice(
        "intensity",
        {"kind": "zscore", "low_percentile": 0.5, "high_percentile": 99.5},
        f"Not CT alone, so that values have no fixed scale: each image by its own mean and deviation."
        f" Values of the {of}: {_figure(low)} to {_figure(high)}, median {_figure(middle)}.",
    )


def _size(layout: Layout, device: torch.device) -> Choice:
    median = " x ".join(map(str, layout.median))
    limit = f"about {_figure(layout.cost.bytes / 1e9)} GB of {layout.free_bytes / 1e9:.0f} GB free on {device}"
    if device.type == "cpu":
        limit += f", about {layout.cost.cpu_seconds:.1f} s a step on {torch.get_num_threads()} cores"
    flat = " One slice thick: the model is 2-D." if layout.dimensions == 2 else ""
    return Choice(
        "patch_size",
        list(layout.levels.patch),
        f"The median image has {median} voxels at this spacing; a step takes {limit}.{flat}",
    )


def _mirror(fingerprint: Fingerprint) -> Choice:
    lateral = lateral_labels(fingerprint.labels)
    if lateral:
        return Choice("mirror", [], f"None: a flip would make the other side of {', '.join(lateral)}.")
    if fingerprint.is_flat:
        why = "Pictures without sides. Take out what gives an impossible one, as upside-down X-rays are."
        return Choice("mirror", ["left_right", "posterior_anterior"], why)
    one_sided = one_sided_labels(fingerprint.labels)
    if one_sided:
        return Choice("mirror", [], f"None: a flip would put {', '.join(one_sided)} on the wrong side of the body.")
    why = (
        "No label names a side or an organ of one side. This flip helps where cases are few (hippocampus, 4 cases: Dice"
        " 0.799, with flips along all axes 0.490); flips along other axes give impossible patients."
    )
    return Choice("mirror", ["left_right"], why)


def _network(network: str, layout: Layout, device: torch.device) -> list[Choice]:
    options = network_options(network, layout.levels, layout.channels)
    lowest = [
        side // math.prod(stride[axis] for stride in layout.levels.strides)
        for axis, side in enumerate(layout.levels.patch)
    ]
    reasons = {
        "channels": f"{layout.cost.parameters / 1e6:.1f} million weights; each level doubles, "
        + ("narrow enough for a CPU." if device.type == "cpu" else "as nnU-Net's do."),
        "depths": "Convolutions of each level, as in the V-Net paper.",
        "strides": f"The lowest level is {lowest[0]} x {lowest[1]} x {lowest[2]}; an axis is halved while it keeps"
        f" {LOWEST_SIDE} voxels and is not twice as coarse as the finest.",
        "kernels": "One voxel long along an axis that is twice as coarse as the finest, or has no neighbours.",
    }
    return [
        Choice("network.name", network, f"One of {', '.join(networks.names())}."),
        *(Choice(f"network.{key}", value, reasons[key]) for key, value in options.items()),
    ]


def _training(fingerprint: Fingerprint, layout: Layout, device: torch.device) -> list[Choice]:
    chosen = {choice.key: choice for choice in _schedule(fingerprint, layout, device)}
    share = fingerprint.foreground_share()
    part = 0.5 if share is None or share < 0.1 else 0.33
    of = (
        f"{100 * share:.2g} % of the labelled images' voxels have a label"
        if share is not None
        else "nothing is labelled yet"
    )
    chosen["foreground_fraction"] = Choice("foreground_fraction", part, f"Patches aimed at a label: {of}.")
    chosen["batch_size"] = Choice(
        "batch_size",
        layout.batch,
        "As many as are affordable, of at most 5 % of all voxels."
        if device.type == "cuda" or layout.dimensions == 2
        else "On a CPU more steps of two teach more than fewer of many.",
    )
    if fingerprint.is_flat and not lateral_labels(fingerprint.labels):
        chosen["rotation_degrees"] = Choice("rotation_degrees", 180.0, "Pictures without an upright.")
    for name, field in TrainingConfig.model_fields.items():
        value = field.get_default()
        plain = list(value) if isinstance(value, tuple) else value
        chosen.setdefault(name, Choice(name, plain, DEFAULT))
    return [Choice(f"training.{name}", chosen[name].value, chosen[name].reason) for name in TrainingConfig.model_fields]


def _schedule(fingerprint: Fingerprint, layout: Layout, device: torch.device) -> list[Choice]:
    cases = len(fingerprint.labelled)
    iterations = next(number for most, number in _ITERATIONS if cases < most)
    known = f"{cases} labelled cases" if cases else "no labelled case yet"
    each, reason = 25, f"{iterations} iterations, by rule for {known}."
    if device.type == "cuda":
        iterations, each = iterations * _CUDA_LONGER, 100
        reason = f"{iterations} iterations, by rule for {known} on a GPU."
    else:
        affordable = int(_CPU_HOURS * 3600 / layout.cost.cpu_seconds)
        iterations = max(each, min(iterations, affordable))
        minutes = iterations * layout.cost.cpu_seconds / 60
        reason = f"{iterations} iterations for {known}: about {minutes:.0f} minutes on {torch.get_num_threads()} cores."
    return [
        Choice("epochs", max(1, iterations // each), reason),
        Choice("iterations_per_epoch", each, "An epoch is what is shown, saved and resumed from."),
    ]


def _inference(layout: Layout) -> list[Choice]:
    parts = math.prod(layout.median) / math.prod(layout.levels.patch)
    overlap = 0.5 if parts <= 8 else 0.25
    why = f"Of the windows in which an image is segmented; {_figure(max(1.0, parts))} patches an image."
    return [
        Choice("inference.blend", InferenceConfig.model_fields["blend"].get_default(), DEFAULT),
        Choice("inference.overlap", overlap, why + (" More overlap would take long." if overlap < 0.5 else "")),
        Choice("inference.restore", InferenceConfig.model_fields["restore"].get_default(), DEFAULT),
    ]


def _cleaning(fingerprint: Fingerprint) -> Choice:
    single = [label for label in fingerprint.labels if _is_in_one_piece(fingerprint, label)]
    if single:
        why = f"In one piece in at least {_ONE_PIECE:.0%} of the cases; what lies apart is taken off a prediction."
    else:
        why = f"Nothing: no label is known to be in one piece, from {_ENOUGH_CASES} cases or more."
    return Choice("cleaning", {label: {"largest_component": True} for label in single}, why)


def _is_in_one_piece(fingerprint: Fingerprint, label: str) -> bool:
    parts = [image.components[label] for image in fingerprint.labelled if label in image.components]
    return len(parts) >= _ENOUGH_CASES and sum(count == 1 for count in parts) >= _ONE_PIECE * len(parts)


def _notes(fingerprint: Fingerprint) -> list[str]:
    images, labelled = len(fingerprint.images), len(fingerprint.labelled)
    notes = [f"{images} image{'s' * (images != 1)} read, {labelled} with a label that can be used."]
    if not labelled:
        notes.append(
            "Nothing is labelled yet: intensities are those of whole images, the schedule that for few cases, and"
            " nothing is cleaned. Plan again, with --force, when about ten cases are labelled."
        )
    elif missing := [label for label, size in fingerprint.label_sizes_mm3().items() if not size]:
        notes.append(f"Without a single voxel in any label: {', '.join(missing)}.")
    if len(fingerprint.modalities) > 1:
        found = ", ".join(modality or "unknown" for modality in fingerprint.modalities)
        notes.append(f"Several modalities ({found}); a model for each is usually better.")
    notes += [f"{warning[:1].upper()}{warning[1:]}." for warning in fingerprint.warnings]
    notes += [f"Left out: image {image_id}: {reason}" for image_id, reason in fingerprint.skipped.items()]
    notes += [f"Left out: label of {image_id}: {reason}" for image_id, reason in fingerprint.unusable_labels.items()]
    return notes


def _figure(value: float) -> str:
    """Return a number with three digits that count, without an exponent."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
