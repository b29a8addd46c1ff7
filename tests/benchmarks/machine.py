"""What the figures of a benchmark were measured on, and of which code."""

import hashlib
import os
import platform
from importlib import metadata
from pathlib import Path

import torch

import labelrounds


def describe() -> dict[str, object]:
    """Return processor, cores, devices and package versions."""
    model = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "processor": model[0].split(":")[1].strip() if model else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("labelrounds", "monai", "monailabel", "torch", "numpy")},
    }


def code(package: Path = Path(labelrounds.__file__).parent) -> str:
    """Return a hash of all sources of the package, so that what another code has left is not taken for this one's."""
    sources = {path.relative_to(package).as_posix(): path.read_bytes() for path in sorted(package.rglob("*.py"))}
    return hashlib.sha256(repr(sources).encode()).hexdigest()
