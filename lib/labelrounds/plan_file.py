"""`labelrounds plan`: studies in, a commented YAML file out, and on the terminal what was chosen and why."""

import json
import math
import textwrap
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console, Group
from rich.progress import track
from rich.table import Table
from rich.text import Text

import labelrounds
from labelrounds import folders
from labelrounds.atomic import replacing
from labelrounds.config import load_config
from labelrounds.devices import choose_device
from labelrounds.errors import BadInput, Conflict, NotFound
from labelrounds.fingerprint import take_fingerprint
from labelrounds.networks import build_network, networks
from labelrounds.planning import DEFAULT, Plan, make_plan
from labelrounds.sections import NAME
from labelrounds.store import StudyStore

_WIDTH = 110


def plan_model(
    studies: str, labels: str, name: str, configs: Path, network: str, device: str, force: bool
) -> tuple[Path, Plan]:
    """Plan a model for a studies folder and write its file.

    Args:
        studies: the folder with the images; labels lie in its ``labels/final``.
        labels: names separated by commas, in the order of their values.
        name: the model's name.
        configs: the folder for the file; made if need be.
        network: a registered network.
        device: the device to plan for; empty takes the best there is.
        force: replace a model of that name.

    Returns:
        the file and what stands in it.

    Raises:
        LabelRoundsError: a wrong option, a name that is taken, nothing to read, a folder that can't be written to.
    """
    where = choose_device(device)
    networks.get(network)
    file = _new_file(name, configs, force)
    names = [label.strip() for label in labels.split(",")]
    fingerprint = take_fingerprint(_store(studies, names), names, _shown)
    plan = make_plan(fingerprint, network, where)
    count = f"{len(fingerprint.images)} images, {len(fingerprint.labelled)} of them labelled"
    title = f"Planned for {count}, on {where}, by labelrounds {labelrounds.__version__}, {time.strftime('%Y-%m-%d')}."
    with replacing(file) as new:
        new.write_text(yaml_of(plan, title), encoding="utf-8")
        build_network(load_config(new))  # nothing is left behind that could not be served
    return file, plan


def yaml_of(plan: Plan, title: str) -> str:
    """Return the file's content: each key below a comment with its reason."""
    lines = [f"# {title}", "# Each value stands below its reason. Change what you know better.", ""]
    section = ""
    for choice in plan.choices:
        parent, _, key = choice.key.rpartition(".")
        if parent != section:
            lines += [f"{parent}:"] if parent else []
            section = parent
        indent = "  " if parent else ""
        lines += textwrap.wrap(choice.reason, _WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")
        lines.append(f"{indent}{key}: {_flow(choice.value)}")
    return "\n".join(lines) + "\n"


def report(studies: str, file: Path, plan: Plan) -> Group:
    """Return what to show of a plan: its values with their reasons, the notes and the next command."""
    table = Table("key", "value", "why", title=file.stem, title_justify="left")
    table.columns[0].no_wrap = True
    table.columns[1].max_width = 36
    kept = [choice.key for choice in plan.choices if choice.reason == DEFAULT]
    for choice in plan.choices:
        if choice.reason != DEFAULT:
            table.add_row(choice.key, Text(_flow(choice.value)), Text(choice.reason))
    notes = [f"- {note}" for note in (*plan.notes, f"Left at its default: {', '.join(kept)}.")]
    command = f"labelrounds start --studies {studies} --configs {file.parent} --models {file.stem}"
    return Group(table, *map(Text, notes), Text(f"Written to {file}. Serve it with:\n{command}"))


def show(studies: str, file: Path, plan: Plan) -> None:
    """Print a plan on the terminal."""
    Console().print(report(studies, file, plan))


def _flow(value: Any) -> str:
    """Return a value as YAML on one line, quoted where YAML would take a text for something else."""
    fresh = json.loads(json.dumps(value))  # of one object in two places YAML would make an alias
    text = yaml.safe_dump(fresh, default_flow_style=True, allow_unicode=True, sort_keys=False, width=math.inf)
    return text.removesuffix("\n").removesuffix("\n...")


def _new_file(name: str, configs: Path, force: bool) -> Path:
    """Return where the model's file will be, before anything is read for it.

    Raises:
        BadInput: a name that no model may have, or a folder that can't be written to.
        Conflict: the name is taken.
    """
    if not NAME.fullmatch(name):
        raise BadInput(f"name {name[:200]!r} must match {NAME.pattern}: small letters, digits and _")
    folder = configs.expanduser().resolve()
    file = folder / f"{name}.yaml"
    shipped = folders.shipped_configs() / file.name
    if not force and (file.exists() or shipped.exists()):
        taken = file if file.exists() else shipped
        raise Conflict(f"name {name!r} is taken by {taken}; choose another, or replace that model with --force")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        folders.check_writable(folder)
    except OSError as error:
        raise BadInput(f"configs folder {str(configs)!r} can't be written to: {error.strerror}") from error
    return file


def _store(studies: str, labels: Sequence[str]) -> StudyStore:
    """Open the studies as a training would.

    Raises:
        BadInput: an address, or a folder that can't be written to, where labels could not be saved either.
        NotFound: no such folder.
    """
    if studies.startswith(("http://", "https://")):
        raise BadInput(f"studies {studies!r}: only a folder can be planned from, not a DICOMweb server")
    folder = Path(studies).expanduser().resolve()
    if not studies or not folder.is_dir():
        raise NotFound(f"studies {studies!r} is not a folder")
    try:
        folders.check_writable(folder)
    except OSError as error:
        raise BadInput(
            f"studies {studies!r} can't be written to ({error.strerror}), but the list of its images is kept there"
        ) from error
    return StudyStore(folder, known_labels=labels)


def _shown(ids: Sequence[str]) -> Iterable[str]:
    return track(ids, description="Reading images", console=Console(stderr=True), transient=True)
