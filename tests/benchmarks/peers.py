"""What the comparisons with other trainers share: the cases, our preparation of them, and child processes."""

import importlib
import os
import random
import signal
import subprocess
import sys
import time
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from labelrounds.cases import PreparedCase, prepare_case
from labelrounds.config import ModelConfig, load_configs
from labelrounds.folders import shipped_configs
from labelrounds.store import LabelledCase
from tests.benchmarks.hippocampus import DATA

ROOT = Path(__file__).parents[2]
PEERS = Path(os.environ.get("LABELROUNDS_PEERS", Path.home() / ".cache" / "labelrounds-peers"))
CORES = len(os.sched_getaffinity(0))


def draw(names: Sequence[str], count: int, seed: int) -> list[str]:
    """Return so many of the names, drawn by the seed alone, sorted.

    Raises:
        SystemExit: more are wanted than there are.
    """
    if not 1 <= count <= len(names):
        raise SystemExit(f"{count} cases are wanted, 1 to {len(names)} can be drawn")
    return sorted(random.Random(seed).sample(sorted(names), count))


def load_model(name: str) -> ModelConfig:
    """Return a shipped model's configuration."""
    return load_configs([shipped_configs()], [name])[name]


def prepare(names: Sequence[str], config: ModelConfig) -> list[PreparedCase]:
    """Read and prepare the named cases, image and annotators' label, as training does."""
    return [
        prepare_case(LabelledCase(name, DATA / "images" / name, DATA / "labels" / name, None, name), config)
        for name in names
    ]


def run(command: Sequence[str | Path], log: Path, environment: dict[str, str], shown: str | None = None) -> None:
    """Run a child process to its end, its output into a log; lines that begin with ``shown`` also to the terminal.

    Raises:
        SystemExit: it failed; with the end of its output.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with (
        log.open("w") as file,
        subprocess.Popen(
            [str(part) for part in command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            cwd=ROOT,
            env={**os.environ, **environment},
        ) as child,
    ):
        assert child.stdout is not None
        try:
            for line in child.stdout:
                file.write(line)
                file.flush()
                if shown is not None and line.startswith(shown):
                    print(line, end="", flush=True)
        except BaseException:
            child.terminate()
            raise
    if child.returncode:
        end = "".join(log.read_text(errors="replace").splitlines(keepends=True)[-15:])
        raise SystemExit(f"{command[0]} ended with status {child.returncode}; all of its output: {log}\n{end}")


def end_children_too() -> None:
    """Let a request to end this process (SIGTERM) end the child that it runs, as Ctrl-C does."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))


def python(module: str, *arguments: object) -> list[str]:
    """Return the command that runs a module of the benchmarks in a process of its own."""
    return [sys.executable, "-m", f"tests.benchmarks.{module}", *(str(argument) for argument in arguments)]


def threads(count: int) -> dict[str, str]:
    """Return the environment that a child computes with so many threads in, waiting as our server's children do."""
    return {"OMP_NUM_THREADS": str(count), "MKL_NUM_THREADS": str(count), "OMP_WAIT_POLICY": "PASSIVE"}


def sample_app(module: str) -> Any:
    """Return a module of the radiology sample app that monailabel installs, without its package's other modules.

    Those import torchvision, as does one that they share; it need not fit the torch that is installed.

    Args:
        module: its name in the app, such as ``infers.segmentation``.
    """
    import labelrounds.host  # noqa: F401 - first, so that the host can be imported

    absent: Any = types.ModuleType("torchvision.utils")
    absent.make_grid = absent.save_image = None
    sys.modules |= {"torchvision": types.ModuleType("torchvision"), "torchvision.utils": absent}
    app = Path(sys.prefix) / "monailabel" / "sample-apps" / "radiology"
    for name in ("lib", f"lib.{module.split('.')[0]}", "lib.transforms"):
        package = types.ModuleType(name)
        package.__path__ = [str(app / name.replace(".", "/"))]
        sys.modules[name] = package
    return importlib.import_module(f"lib.{module}")


class Clock:
    """Seconds of work; it can stand still, and go on from what an earlier process had reached."""

    def __init__(self, seconds: float = 0.0) -> None:
        self._before, self._started = seconds, time.perf_counter()

    @property
    def seconds(self) -> float:
        """What has passed while it ran."""
        return self._before + time.perf_counter() - self._started

    def set(self, seconds: float) -> None:
        """Go on from a time, as after something that is not to be counted."""
        self._before, self._started = seconds, time.perf_counter()
