"""How many volumes an hour an archive takes in one process and on two workers of a local Ray, and what 100,000 cost.

    python -m tests.benchmarks.fleet [--output tests/benchmarks/results/fleet.json]

Two archives: copies of real hippocampus crops, segmented by the shipped model, and of a CT of the abdomen brought to
the size of a clinical one (0.75 mm in the plane, 120 slices), segmented on the grid of ``unet_abdomen_ct`` by its
network. That has the weights of ``unet_phantom``, so its labels mean little, but its time and the size of its results
are what they are.

The rates are those of the images after each worker's first; what is loaded once is ``start_s``. The core-hours are of
the processors' own time, so that they hold for a machine that does other things too, as ``load`` tells; of the
volumes an hour such a machine takes away.
"""

import argparse
import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from threading import Event
from typing import Any

import nibabel
import numpy as np
import psutil
import torch
from safetensors.torch import load_file
from scipy import ndimage

import labelrounds.host  # noqa: F401 - first, so that the host can be imported
from labelrounds import folders
from labelrounds.archive import segment_archive
from labelrounds.checkpoints import Checkpoints
from labelrounds.config import ModelConfig, load_configs
from labelrounds.fleet import Crew, Lost, crew_of
from labelrounds.fleet_work import Case, Order, Outcome
from labelrounds.networks import build_network
from tests.benchmarks import machine
from tests.real_images import DATA

VOLUMES = 100_000
HIPPOCAMPI, CTS = 60, 16
WORKERS = {"in this process": "", "2 workers on Ray": "local"}


def main() -> None:
    """Segment both archives both ways, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "fleet.json")
    output = parser.parse_args().output
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    load = round(os.getloadavg()[0], 1)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LABELROUNDS_HOME"] = str(Path(folder) / "home")
        archives = {"hippocampus": hippocampi(Path(folder) / "mr"), "CT of the abdomen": cts(Path(folder) / "ct")}
        figures: dict[str, Any] = {}
        for name, (config, source) in archives.items():
            figures[name] = {"images": len(list(source.iterdir())), **sizes(source)}
            for way, ray in WORKERS.items():
                figures[name][way] = measured(config, source, Path(folder) / "out", ray)
                print(name, way, json.dumps(figures[name][way]), flush=True)
    content = {"machine": machine.describe(), "volumes": VOLUMES, "load": load, **figures}
    output.write_text(json.dumps(content, indent=1) + "\n")


def hippocampi(folder: Path) -> tuple[ModelConfig, Path]:
    """Copy the crops; return the shipped model and the folder."""
    folder.mkdir()
    for path in sorted((DATA / "hippocampus" / "images").glob("*.nii.gz"))[:HIPPOCAMPI]:
        shutil.copy(path, folder / path.name)
    return load_configs([folders.shipped_configs()], ["unet_hippocampus"])["unet_hippocampus"], folder


def cts(folder: Path) -> tuple[ModelConfig, Path]:
    """Make CTs of clinical size of the slab, and publish a model for them; return both."""
    folder.mkdir()
    slab = nibabel.load(DATA / "ct_abdomen" / "ct_thin.nii.gz")
    voxels = ndimage.zoom(np.asarray(slab.dataobj, np.float32), (4, 4, 1), order=1)
    voxels = np.concatenate([voxels, voxels[..., ::-1]] * 2, axis=2)
    noise = np.random.default_rng(0)
    for number in range(CTS):
        noisy = (voxels + noise.normal(0, 8, voxels.shape)).round().astype(np.int16)  # as in a scanner's image
        image = nibabel.Nifti1Image(noisy, slab.affine @ np.diag([0.25, 0.25, 1, 1]))
        nibabel.save(image, folder / f"ct_{number}.nii.gz")
    phantom = load_configs([folders.shipped_configs()], ["unet_phantom"])["unet_phantom"]
    abdomen = load_configs([folders.shipped_configs()], ["unet_abdomen_ct"])["unet_abdomen_ct"]
    config: ModelConfig = abdomen.model_copy(update={"labels": phantom.labels, "cleaning": {}})
    network = build_network(config)
    network.load_state_dict(load_file(folders.shipped_weights() / "unet_phantom.safetensors"))
    Checkpoints(config).publish(network, {})
    return config, folder


def sizes(source: Path) -> dict[str, Any]:
    """Return the shape of the first image, and how large a file is in the mean."""
    files = sorted(source.iterdir())
    shape = [int(side) for side in nibabel.load(files[0]).shape]
    return {"shape": shape, "file_mb": round(sum(file.stat().st_size for file in files) / len(files) / 1e6, 3)}


class Watched(Crew):
    """A crew, and what had been spent when each case ended.

    Attributes:
        ends: seconds of the clock and of the processors.
    """

    def __init__(self, crew: Crew) -> None:
        self._crew = crew
        self.ends: list[tuple[float, float]] = []

    def has_room(self, alone: bool = False) -> bool:
        """See `Crew`."""
        return self._crew.has_room(alone)

    def give(self, case: Case, alone: bool = False) -> None:
        """See `Crew`."""
        self._crew.give(case, alone)

    def close(self) -> None:
        """See `Crew`."""
        self._crew.close()

    def ended(self, timeout_s: float) -> list[Outcome | Lost]:
        """See `Crew`."""
        found = self._crew.ended(timeout_s)
        if found:
            self.ends += [(time.monotonic(), processor_s())] * len(found)
        return found


def measured(config: ModelConfig, source: Path, output: Path, ray: str) -> dict[str, Any]:
    """Segment an archive; return its rate, and what `VOLUMES` such images would cost."""
    crews: list[Watched] = []
    workers = 2 if ray else None

    def make_crew(order: Order, stop: Event) -> Crew:
        crews.append(Watched(crew_of(ray, workers)(order, stop)))
        return crews[0]

    started = time.monotonic()
    segment_archive(config, source, output, ".nii.gz", "cpu", make_crew, say=lambda line: None)
    begun = workers or 1  # the first image of each worker, in which it begins
    first, last = crews[0].ends[begun - 1], crews[0].ends[-1]
    counted = len(crews[0].ends) - begun
    maps = list(output.rglob("*.nii.gz"))
    written = sum(path.stat().st_size for path in maps) / len(maps)
    lines = (output / "manifest.jsonl").stat().st_size / len(maps)
    shutil.rmtree(output)
    read = sum(file.stat().st_size for file in source.iterdir()) / len(maps)
    hourly, each = 3600 * counted / (last[0] - first[0]), (last[1] - first[1]) / counted
    return {
        "volumes_an_hour": round(hourly),
        "start_s": round(first[0] - started, 1),
        "hours": round(VOLUMES / hourly, 1),
        "core_s_a_volume": round(each, 3),
        "core_hours": round(VOLUMES * each / 3600, 1),
        "read_gb": round(VOLUMES * read / 1e9, 1),
        "read_mb_s": round(read * hourly / 3600 / 1e6, 3),
        "written_gb": round(VOLUMES * written / 1e9, 2),
        "manifest_mb": round(VOLUMES * lines / 1e6, 1),
    }


def processor_s() -> float:
    """Return the processors' time that this process and all it has started have taken."""
    me = psutil.Process()
    times = [process.cpu_times() for process in (me, *me.children(recursive=True))]
    return sum(time.user + time.system for time in times)


if __name__ == "__main__":
    main()
