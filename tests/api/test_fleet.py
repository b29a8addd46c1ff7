"""Two workers on a local Ray, of which one is killed in the middle: every image is in the result, once."""

import csv
import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from labelrounds.phantoms import write_studies

IMAGES = 14
# Both commands' work in one process, each on a Ray of its own or both on one; the killed worker is the first one's.
PROGRAM = """
import sys
from contextlib import nullcontext
from pathlib import Path
import labelrounds.host
from labelrounds import fleet_ray, folders
from labelrounds.archive import segment_archive
from labelrounds.config import load_configs
from labelrounds.fleet import crew_of
from labelrounds.fleet_scoring import score_studies
from labelrounds.ray_cluster import LOCAL, cluster

configs = load_configs([folders.shipped_configs()], ["unet_phantom"])
config, source, starts = configs["unet_phantom"], Path(sys.argv[1]), int(sys.argv[3])
with cluster(LOCAL) if starts == 1 else nullcontext() as ray:
    if ray is not None:
        fleet_ray.cluster = lambda address: nullcontext(ray)
    print(segment_archive(config, source, Path(sys.argv[2]), ".nii.gz", "cpu", crew_of(LOCAL, 2)), flush=True)
    for path in sorted(source.glob("*.nii.gz"))[4:]:
        path.unlink()
    print(score_studies(configs, "unet_phantom", source, (), "cpu", crew_of(LOCAL, 1)), flush=True)
"""


def lines(output: Path) -> list[dict]:
    path = output / "manifest.jsonl"
    written = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in written[1:] if line.endswith("\n")]


def title(process: psutil.Process) -> str:
    """Return what a process calls itself; "" of one that has ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def workers_of(program: psutil.Process) -> list[psutil.Process]:
    """Return Ray's processes that hold a model."""
    return [child for child in program.children(recursive=True) if "RayWorker" in title(child)]


def at_work(program: psutil.Process) -> psutil.Process | None:
    """Return a worker that has its model and was given a case, by the title that Ray gives the process then."""
    return next((worker for worker in workers_of(program) if "RayWorker.do" in title(worker)), None)


def wait_for(found, program: subprocess.Popen, seconds: float = 180):
    """Wait until something is found, and return it."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and program.poll() is None:
        if result := found():
            return result
        time.sleep(0.05)
    raise AssertionError(f"not found in time; the program ended with {program.poll()}")


@pytest.mark.timeout(600)  # under a minute on two cores of its own
@pytest.mark.parametrize("starts", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_worker_that_is_killed_in_the_middle_loses_no_image_and_repeats_none(tmp_path, starts):
    source, output = tmp_path / "studies", tmp_path / "out"
    write_studies(source, IMAGES)
    environment = {**os.environ, "LABELROUNDS_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(source), str(output), str(starts)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process, family = psutil.Process(program.pid), []
    try:
        worker = wait_for(lambda: at_work(process), program)
        worker.suspend()
        at_stop = len(lines(output))
        wait_for(lambda: len(workers_of(process)) == 2, program)
        family = process.children(recursive=True)
        listening = {
            connection.laddr.ip
            for member in family
            for connection in member.net_connections("tcp")
            if connection.status == psutil.CONN_LISTEN
        }
        # Stopped, it answers no more; by the time that five more images are there, at most two of them its own, the
        # driver has given it another one, if it had none. Only a worker with a case in hand loses one.
        wait_for(lambda: len(lines(output)) >= at_stop + 5, program)
        worker.kill()
        at_kill = len(lines(output))
        said, complaints = program.communicate(timeout=400)
    finally:
        program.kill()
    assert program.returncode == 0, complaints
    assert at_kill < IMAGES - 2
    assert {address.removeprefix("::ffff:") for address in listening} == {"127.0.0.1"}

    print(said)
    first, second = [line for line in said.splitlines() if line.startswith("unet_phantom")]
    assert f"{IMAGES} of {IMAGES} image(s) segmented" in first and "lost with its worker" in first
    counted = Counter((line["image"], line["status"]) for line in lines(output))
    names = [path.name for path in output.glob("*.nii.gz")]
    assert counted == Counter((name, "done") for name in names) and len(names) == IMAGES
    with (output / "manifest.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert sorted(row["image"] for row in table) == sorted(names) and all(float(row["liver_ml"]) > 0 for row in table)
    assert "4 image(s) scored" in second and "could not be" not in second

    _, alive = psutil.wait_procs(family, timeout=20)
    assert not [member for member in alive if member.is_running()]
    assert not list(output.glob(".labelrounds-*"))
