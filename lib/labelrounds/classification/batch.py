"""``labelrounds predict --images``: a folder of images classified, read by threads while the device computes.

A file that can't be used is a row with its reason, and the run goes on. The table takes its name when it is whole: of
a run that is ended the rows up to the last batch stay in a file with ``.part`` after its name.
"""

import csv
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import IO

import torch

from labelrounds.atomic import disk_errors
from labelrounds.classification.cases import prepared
from labelrounds.classification.config import ClassifierConfig
from labelrounds.classification.served import Ready, ReadyClassifiers, classify
from labelrounds.devices import is_out_of_memory
from labelrounds.errors import LabelRoundsError, TooLarge
from labelrounds.itk_loading import load_itk
from labelrounds.reading import read_image

_READERS, _AT_ONCE, _AHEAD = 4, 32, 96


def classify_all(
    config: ClassifierConfig, paths: Sequence[Path], root: Path, output: Path | None, device: torch.device
) -> str:
    """Classify images; write a row each to a CSV file, or to the terminal where none is named.

    The columns are ``image``, ``label`` (the likeliest class; with ``multilabel`` those of at least one half, parted by
    ``;``), the probability of each class, and ``error``.

    Returns:
        a sentence on how many were classified.

    Raises:
        Conflict: the model has no trained version.
    """
    ready = ReadyClassifiers(config).get(device)
    load_itk()  # changes the working folder for a moment, which the reading threads must not see
    started, done, failed = time.perf_counter(), 0, 0
    with ExitStack() as stack:
        file = stack.enter_context(_table(output))
        rows = csv.writer(file)
        rows.writerow(["image", "label", *config.labels, "error"])
        pool = stack.enter_context(ThreadPoolExecutor(_READERS))
        stack.callback(pool.shutdown, wait=False, cancel_futures=True)
        for batch in _batches(_read_ahead(pool, paths, config)):
            images = {path: found for path, found in batch if isinstance(found, torch.Tensor)}
            answers = dict(zip(images, _answers(ready, list(images.values()), config, device), strict=True))
            for path, found in batch:
                name = _printable(path.relative_to(root) if path != root else path.resolve().name)
                answer = answers.get(path)
                if not isinstance(answer, list):
                    failed += 1
                    rows.writerow([name, "", *[""] * len(config.labels), _printable(answer or found)])
                else:
                    shown = [f"{value:.4f}" for value in answer]
                    rows.writerow([name, ";".join(_named(answer, config)), *shown, ""])
            file.flush()
            done += len(batch)
            if output is not None:
                left = (time.perf_counter() - started) / done * (len(paths) - done)
                print(f"{done} of {len(paths)}, {left:.0f} s left", end="\r", file=sys.stderr, flush=True)
    where = f" into {output}" if output is not None else ""
    lost = f"; {failed} could not be used, see the column error" if failed else ""
    seconds = time.perf_counter() - started
    return f"{ready.version} classified {done - failed} of {done} image(s) in {seconds:.1f} s{where}{lost}"


@contextmanager
def _table(output: Path | None) -> Iterator[IO[str]]:
    """Give the file to write rows to, which becomes ``output`` at the end of the block.

    Raises:
        OutOfSpace: it can't be written; ``output`` is as it was.
    """
    if output is None:
        yield sys.stdout
        return
    part = output.with_name(f"{output.name}.part")
    with disk_errors(output):
        try:
            with part.open("w", newline="", encoding="utf-8") as file:
                yield file
        except BaseException:
            if part.exists():
                print(f"\nnot finished: {output} was not written, {part} has the rows so far", file=sys.stderr)
            raise
        part.replace(output)


def _printable(text: object) -> str:
    """Return a text also where a file's name in it is not of the system's encoding."""
    return str(text).encode("utf-8", "backslashreplace").decode()


def _read_ahead(
    pool: ThreadPoolExecutor, paths: Sequence[Path], config: ClassifierConfig
) -> Iterator[tuple[Path, "torch.Tensor | LabelRoundsError | OSError"]]:
    """Yield the images in their order, prepared, or why they can't be used; some are read ahead."""

    def read(path: Path) -> "torch.Tensor | LabelRoundsError | OSError":
        try:
            return prepared(read_image(path, channels=config.channels), config)
        except (LabelRoundsError, OSError) as error:
            return error

    waiting: list[tuple[Path, Future[torch.Tensor | LabelRoundsError | OSError]]] = []
    left = iter(paths)
    while True:
        waiting += [(path, pool.submit(read, path)) for path in islice(left, _AHEAD - len(waiting))]
        if not waiting:
            return
        path, found = waiting.pop(0)
        yield path, found.result()


def _batches(
    found: Iterator[tuple[Path, "torch.Tensor | LabelRoundsError | OSError"]],
) -> Iterator[list[tuple[Path, "torch.Tensor | LabelRoundsError | OSError"]]]:
    while batch := list(islice(found, _AT_ONCE)):
        yield batch


def _answers(
    ready: Ready, images: list[torch.Tensor], config: ClassifierConfig, device: torch.device
) -> list[list[float] | TooLarge]:
    """Return the probabilities of images, those of one shape together as far as the memory suffices, or why not."""
    answers: list[list[float] | TooLarge] = [[] for _ in images]
    for shape in {image.shape for image in images}:
        same = [index for index, image in enumerate(images) if image.shape == shape]
        for index, found in zip(same, _together(ready, [images[index] for index in same], config, device), strict=True):
            answers[index] = found
    return answers


def _together(
    ready: Ready, images: list[torch.Tensor], config: ClassifierConfig, device: torch.device
) -> list[list[float] | TooLarge]:
    try:
        return [list(map(float, one)) for one in classify(ready, torch.stack(images).to(device), config)]
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        reason = str(error)
    # Out here, where the error is gone and holds no tensor of the attempt any more.
    if len(images) == 1:
        return [TooLarge(f"the image does not fit into the memory of {device}: {reason}")]
    half = len(images) // 2
    return _together(ready, images[:half], config, device) + _together(ready, images[half:], config, device)


def _named(answer: Sequence[float], config: ClassifierConfig) -> list[str]:
    if config.multilabel:
        return [label for label, value in zip(config.labels, answer, strict=True) if value >= 0.5]
    return [config.labels[max(range(len(answer)), key=lambda index: answer[index])]]
