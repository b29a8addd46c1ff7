"""``labelrounds predict --images`` with a segmentation model: an archive's images into a folder that mirrors it.

Each image's label map lies in the output folder where the image lies in the archive. What was done is in the manifest
(`archive_manifest.py`), by which a further run does only what is new, has changed, or would be done otherwise: by
another version, configuration or ending. An image that can't be used is a row with its reason, and the run goes on.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labelrounds.archive_files import find_images, identity
from labelrounds.archive_manifest import DONE, FAILED, TABLE, UNUSABLE, Manifest
from labelrounds.atomic import remove_leftovers
from labelrounds.checkpoints import Checkpoints
from labelrounds.config import ModelConfig
from labelrounds.errors import BadInput, Cancelled, NotFound
from labelrounds.fleet import MakeCrew, Tally, duration, stopped_by_signals, work_off
from labelrounds.fleet_work import Case, Order, Outcome
from labelrounds.formats import ending_of
from labelrounds.writing import LABEL_ENDINGS

_LEFT_BEHIND_S = 60.0  # after which what a killed worker left half written is nobody's any more


@dataclass(frozen=True)
class Planned:
    """An image of the archive, and where its label map goes.

    Attributes:
        case: known by the image's place in the archive.
        reason: why it is not done.
    """

    case: Case
    reason: str = ""


def segment_archive(
    config: ModelConfig,
    source: Path,
    output: Path,
    ending: str,
    device: str,
    make_crew: MakeCrew,
    again: bool = False,
    say: Callable[[str], None] | None = None,
) -> str:
    """Segment the images of a folder and of those in it; return a sentence about it.

    Args:
        config: the model.
        source: the archive.
        output: a new or an empty folder, or an earlier run's.
        ending: of the label maps.
        device: cpu, cuda or cuda:N; the best there is where it is "".
        make_crew: makes the workers.
        again: try those again, too, that an earlier run found unusable.
        say: gets a line on the progress now and then; on the terminal when None.

    Raises:
        BadInput: a wrong ending, an output that is, or is around, the archive, or holds something else.
        Conflict: no trained version, another run at work.
        Cancelled: stopped; a further run goes on.
        OutOfSpace: the output can't be written to.
    """
    source, output = _checked(source, output, ending)
    order = _order(config, device, (source, output))
    stamp = _stamp(order, ending)
    with Manifest(output) as manifest, stopped_by_signals() as stop:
        planned = plan(source, output, ending)
        if not planned:
            raise NotFound(f"{source}: no image in it")
        _clear(planned, _LEFT_BEHIND_S)
        identities: dict[str, str] = {}
        waiting = _waiting(planned, manifest, stamp, again, identities)

        def take(outcome: Outcome) -> None:
            manifest.add(_row(outcome, output, stamp, identities[outcome.case.key], str(order.version)))

        tally = Tally(0)
        if waiting:
            tally = work_off(make_crew(order, stop), waiting, len(waiting), take, stop, say)
            _clear(planned, 0.0)  # a worker that was killed has left what it was writing
        manifest.write_table(config.labels, {each.case.key for each in planned})
        states = Counter((manifest.get(each.case.key) or {}).get("status", "") for each in planned)
    done = tally.done + tally.failed
    said = f"{order.version}: {states[DONE]:,} of {len(planned):,} image(s) segmented into {output}"
    if failed := states[FAILED] + states[UNUSABLE]:
        said += f"; {failed:,} could not be, see the column error of {TABLE}"
    said += f"; {done:,} done now in {duration(tally.seconds)}{tally.losses()}"
    if known := len(planned) - len(waiting):
        said += f"; {known:,} were known from an earlier run or not tried"
    if done < len(waiting):
        raise Cancelled(f"stopped; {said}. Run the same again to go on with the other {len(waiting) - done:,}")
    return said


def plan(source: Path, output: Path, ending: str) -> list[Planned]:
    """Return the images of an archive, each with its own place in the output folder; those that share one are refused.

    Names that differ by capitals alone count as the same, as they are on many file systems.
    """
    planned = [
        Planned(Case(_name(found.path, source), found.path, _place(found.path, source, output, ending)), found.reason)
        for found in find_images(source, leave_out=output)
    ]
    places = Counter(str(each.case.output) for each in planned if not each.reason)
    alike = Counter(str(each.case.output).casefold() for each in planned if not each.reason)

    def reason(each: Planned) -> str:
        place = str(each.case.output)
        if each.reason or alike[place.casefold()] == 1:
            return each.reason
        if places[place] > 1:
            return f"another image would be written to {place} too: rename one of them"
        return f"another image would be written to {place} too where capitals do not count: rename one of them"

    return [Planned(each.case, reason(each)) for each in planned]


def _checked(source: Path, output: Path, ending: str) -> tuple[Path, Path]:
    source, output = source.expanduser().resolve(), output.expanduser().resolve()
    if not source.exists():
        raise NotFound(f"{source}: there is no such file or folder")
    if ending not in LABEL_ENDINGS:
        raise BadInput(f"ending {ending!r} is not one of {', '.join(LABEL_ENDINGS)}")
    if output == source or output in source.parents:
        raise BadInput(f"output {str(output)!r} is, or is around, the images' folder: label maps could replace images")
    if output.exists() and not output.is_dir():
        raise BadInput(f"output {str(output)!r} is a file; a folder of label maps is written")
    return source, output


def _order(config: ModelConfig, device: str, folders: tuple[Path, Path]) -> Order:
    version = Checkpoints(config).served()
    source, output = folders
    seen = (source if source.is_dir() else source.parent, output)
    return Order("segment", config, version, version.weights.read_bytes(), device, folders=seen)


def _stamp(order: Order, ending: str) -> str:
    """Return what changes when the same image would be segmented otherwise."""
    decisive: list[Any] = [order.weights_hash, order.config.model_dump(mode="json"), ending]
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]


def _name(path: Path, source: Path) -> str:
    return path.name if path == source else path.relative_to(source).as_posix()


def _place(path: Path, source: Path, output: Path, ending: str) -> Path:
    known = "" if path.is_dir() else ending_of(path.name)
    stem = path.name[: len(path.name) - len(known)]
    folder = output if path == source else output / path.parent.relative_to(source)
    return folder / f"{stem}{ending}"


def _clear(planned: list[Planned], older_than_s: float) -> None:
    """Remove what killed workers have left half written."""
    for folder in {each.case.output.parent for each in planned if each.case.output is not None}:
        if folder.is_dir():
            remove_leftovers(folder, older_than_s=older_than_s)


def _waiting(
    planned: list[Planned], manifest: Manifest, stamp: str, again: bool, identities: dict[str, str]
) -> list[Case]:
    """Return what is to be done; note the images' identities, and those that can't be tried in the manifest."""
    waiting = []
    for each in planned:
        row = _row_of_plan(each, stamp, identities)
        if row is None and not _is_known(each.case, manifest, stamp, identities[each.case.key], again):
            waiting.append(each.case)
        elif row is not None and manifest.get(each.case.key) != row:
            manifest.add(row)
    return waiting


def _row_of_plan(each: Planned, stamp: str, identities: dict[str, str]) -> dict[str, Any] | None:
    """Note an image's identity, and return its row where it can't be tried."""
    reason = each.reason
    try:
        identities[each.case.key] = identity(each.case.image)
    except OSError as error:
        reason = reason or error.strerror or str(error)
    if not reason:
        return None
    return {"image": each.case.key, "status": FAILED, "reason": reason, "stamp": stamp}


def _is_known(case: Case, manifest: Manifest, stamp: str, seen: str, again: bool) -> bool:
    row = manifest.get(case.key)
    if row is None or row.get("stamp") != stamp or row.get("identity") != seen:
        return False
    if row["status"] == DONE:
        return case.output is not None and case.output.is_file()
    return row["status"] == UNUSABLE and not again


def _row(outcome: Outcome, output: Path, stamp: str, seen: str, version: str) -> dict[str, Any]:
    about: dict[str, Any] = {"image": outcome.case.key, "stamp": stamp, "identity": seen, "version": version}
    about["seconds"] = outcome.seconds
    if outcome.reason:
        return {**about, "status": UNUSABLE if outcome.unusable else FAILED, "reason": outcome.reason}
    place = outcome.case.output
    written = place.relative_to(output).as_posix() if place is not None else ""
    return {**about, "status": DONE, "output": written, **outcome.found}
