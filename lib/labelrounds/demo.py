"""A whole labelling round on invented patients, through the HTTP API as a clinician's client goes through it.

The shipped starting version was trained on few patients. Eight more are asked for, segmented, corrected (by the
phantoms' known truth) and submitted; a training on the server then gives a second version, and both are compared
on patients that neither has seen.
"""

import itertools
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from labelrounds.client import Client, free_port, running_server
from labelrounds.errors import BadInput
from labelrounds.metrics import dice_per_label
from labelrounds.phantoms import LABELS, make_phantom, write_studies, write_truth
from labelrounds.reading import read_label
from labelrounds.report import Case, LearningCurve, dice_table, draw_report

MODEL = "unet_phantom"
ROUND_CASES, HELD_OUT_CASES, UNLABELLED_CASES, EPOCHS = 8, 6, 4, 20
FIRST_HELD_OUT = 900
_PLAYED = ".round-played"
_console = Console()


def play(output: Path, keep_serving: bool, port: int) -> None:
    """Play the round into a folder and, if asked, keep the server running.

    Nothing is ever deleted: a folder that is not empty is left alone and another one taken, unless it holds a round
    that was played to its end and is only to be served.

    Raises:
        BadInput: the port is in use.
        LabelRoundsError: the server could not be started, or answered with an error.
    """
    free_port(port)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that the server ends too
    played = output.expanduser().resolve()
    folder = played if keep_serving and (played / _PLAYED).is_file() else _free_folder(played)
    started, is_played = time.monotonic(), (folder / _PLAYED).is_file()
    if not is_played:
        _say("1  Making invented patients", f"{ROUND_CASES} to label, {HELD_OUT_CASES} held out, in {folder}")
        write_studies(folder / "studies", ROUND_CASES)
    with running_server(folder / "studies", folder / "home", port, [MODEL]) as client:
        _say("2  Server", f"running at {client.address}")
        if not is_played:
            _play_round(client, folder)
            _say("Done", f"in {time.monotonic() - started:.0f} s. Nothing left this machine.")
        _explain_slicer(client.address, keep_serving, folder, port)
        if keep_serving:
            _wait_for_interrupt()


def _play_round(client: Client, folder: Path) -> None:
    truths = {path.name.split(".")[0]: path for path in write_truth(folder / "truth", ROUND_CASES)}
    before = _segment_held_out(client, folder)
    _label_round(client, truths)
    curve = _train(client)
    after = _segment_held_out(client, folder)
    _show(before, after, curve, folder)
    write_studies(folder / "studies", UNLABELLED_CASES, ROUND_CASES)  # what Next Sample hands out in Slicer
    (folder / _PLAYED).touch()


def _label_round(client: Client, truths: dict[str, Path]) -> None:
    """Ask for cases until there are none left; segment, correct and submit each."""
    _say("3  Label", "next case, segment, correct, submit - until no case is left")
    while case := client.next_case("auto"):
        image = case["id"]
        prediction = client.segment(MODEL, image=image)
        truth = read_label(truths[image]).array[0]
        corrected = 100 * float(np.mean(prediction[truth > 0] != truth[truth > 0]))
        client.submit(image, truths[image], LABELS)
        _console.print(f"   {image}: {case['reason']}")
        _console.print(f"      segmented, {corrected:.0f} % of the organs' voxels corrected, submitted")


def _train(client: Client) -> LearningCurve:
    """Start a training, follow it to its end and return its curve."""
    _say("4  Train", "on the server, from the shipped version, with the submitted labels")
    client.call("POST", f"/train/{MODEL}", json={"policy": "quick", "epochs": EPOCHS})
    curve = LearningCurve()
    with Progress(TextColumn("   {task.description}"), BarColumn(), TimeElapsedColumn(), console=_console) as bar:
        shown = bar.add_task("starting", total=1)
        for stats in client.follow_training(MODEL):
            bar.update(shown, total=stats.get("total_epochs", 1), completed=stats.get("epoch", 0))
            bar.update(shown, description=_status_line(stats))
            epoch = stats.get("epoch", 0)
            if not _console.is_terminal and epoch and epoch % 5 == 0 and epoch not in curve.epochs:
                _console.print(f"   {_status_line(stats)}")
            _record(curve, stats)
    _console.print(f"   {stats.get('message', '')}")
    return curve


def _status_line(stats: dict[str, Any]) -> str:
    if not stats.get("epoch") or stats.get("stage", "training") != "training":
        return str(stats.get("stage", "starting"))
    left = f", {stats['eta_s']:.0f} s left" if stats["epoch"] < stats["total_epochs"] else ""
    return f"epoch {stats['epoch']}/{stats['total_epochs']}, loss {stats['loss']:.2f}{left}"


def _record(curve: LearningCurve, stats: dict[str, Any]) -> None:
    """Add an epoch that is not on the curve yet; epochs shorter than the polling interval are left out."""
    epoch = stats.get("epoch", 0) if "fold" not in stats.get("stage", "") else 0
    if epoch and (not curve.epochs or curve.epochs[-1] != epoch):
        curve.epochs.append(epoch)
        curve.loss.append(stats["loss"])
        curve.dice.append(dict(stats.get("history", [])).get(epoch, float("nan")))


def _segment_held_out(client: Client, folder: Path) -> dict[str, np.ndarray]:
    """Return the served version's label maps of the held-out patients, by name."""
    files = write_studies(folder / "held-out", HELD_OUT_CASES, FIRST_HELD_OUT)
    return {path.name.split(".")[0]: client.segment(MODEL, file=path) for path in files}


def _show(before: dict[str, np.ndarray], after: dict[str, np.ndarray], curve: LearningCurve, folder: Path) -> None:
    """Print the table of Dice on the held-out patients and draw the picture."""
    cases, scores = [], ([], [])  # type: ignore[var-annotated]
    for index, name in enumerate(sorted(after)):
        phantom = make_phantom(FIRST_HELD_OUT + index)
        for column, prediction in zip(scores, (before[name], after[name]), strict=True):
            column.append(dice_per_label(prediction, phantom.label, LABELS))
        cases.append(Case.oriented(name, phantom.image, phantom.label, before[name], after[name], phantom.affine))
    first, second = ({label: [score[label] for score in column] for label in LABELS} for column in scores)
    _say("5  Segment again", f"{len(cases)} held-out patients, the version before the round and the one after it")
    _console.print(dice_table(first, second))
    curve.points = [(0, _mean(first)), (ROUND_CASES, _mean(second))]
    picture = draw_report(cases, LABELS, curve, folder / "round.png")
    _console.print(f"   Picture: {picture}")


def _mean(scores: dict[str, list[float]]) -> float:
    return float(np.nanmean([np.nanmean(values) for values in scores.values()]))


def _explain_slicer(address: str, serving: bool, folder: Path, port: int) -> None:
    if serving:
        _console.print("\nThe server keeps running; press Ctrl-C to end it. To connect 3D Slicer:")
    else:
        program = sys.argv[0] if Path(sys.argv[0]).name == "labelrounds" else "labelrounds"
        again = f"{program} demo --serve --output {folder} --port {port}"
        _console.print("\nTo connect 3D Slicer, serve what was trained just now:")
        _console.print(f"   {again}", style="bold", soft_wrap=True)
    _console.print("   1. In Slicer, install the extension MONAILabel (View > Extensions Manager) and restart.")
    _console.print("   2. Choose the module Active Learning > MONAILabel.")
    _console.print(f"   3. Enter the server address {address} and press the round arrow beside it.")
    _console.print("   4. Press Next Sample, then Run; correct; press Submit Label; press Train.")


def _wait_for_interrupt() -> None:
    try:
        signal.pause()
    except KeyboardInterrupt:
        _console.print("\nEnding the server.")


def _free_folder(wanted: Path) -> Path:
    """Return the wanted folder if it is missing or empty, else one beside it with a number."""
    for number in itertools.count(1):
        folder = wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not any(folder.iterdir()):
                return folder
        except OSError as error:
            raise BadInput(f"output {str(folder)!r} can't be used as a folder: {error.strerror}") from error
    raise AssertionError("unreachable")


def _say(step: str, what: str) -> None:
    _console.print(f"[bold]{step}[/bold]: {what}")
