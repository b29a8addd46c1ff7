"""What a press on Segment costs: our server beside the bare network and MONAI Label's own inference task.

The image is an abdominal CT (`ct_abdomen`, 3 mm), its slices mirrored to a height of 336 mm and resampled to each
--spacing, and to 512x512x300 voxels. All contenders get the identical network, weights, target spacing and window, and
all cores; the U-Net is MONAI's, with batch normalisation, which ours sees the image with as a whole, as one may then;
`inference_contenders.py` says what the others do. Ours and the bare network run by PyTorch's default way for the
device, not by the one that a server would find to be the quickest. The weights are drawn by the seed, not trained: the
time does not depend on them, but the label maps are noise, for which finding components and compressing take longest.

Ours is asked over HTTP: the first request for an image, the second for the same image, and one for an image that
`next_sample` had handed out before. While it computes, `GET /info/` is asked every 20 ms. Then four clients ask at once
for four images, and one client for four in turn.

    python -m tests.benchmarks.inference [--networks unet,segresnet] [--spacings 3,1.5,1] [--device cuda]
    python -m tests.benchmarks.inference --requests 1000    whether memory and temporary files grow with the requests
    python -m tests.benchmarks.inference --starts 5         from the command to the first answer, and the idle memory
"""

import argparse
import json
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel
import nrrd
import numpy as np
import psutil
import torch
from rich.console import Console
from rich.table import Table
from torch.nn import functional

from labelrounds.checkpoints import Checkpoints
from labelrounds.client import Client, running_server
from labelrounds.config import load_config
from labelrounds.networks import build_network
from labelrounds.phantoms import write_studies
from labelrounds.reading import read_image
from labelrounds.runtimes import default_runtime
from tests.benchmarks import machine, peers
from tests.benchmarks.hippocampus import DATA, RESULTS

CT = DATA.parent / "ct_abdomen" / "ct_thin.nii.gz"
HEIGHT_MM = 336
NETWORKS = {
    "unet": """
description: MONAI's U-Net of five levels, weights drawn by the seed
labels: [liver, spleen, stomach, left_kidney, right_kidney]
spacing_mm: [1.0, 1.0, 1.0]
intensity: {kind: window, low: -160, high: 240}
patch_size: [160, 160, 160]
inference: {overlap: 0.4, blend: whole, runtime: RUNTIME}
network: {name: residual_unet, channels: [16, 32, 64, 128, 256]}
""",
    "segresnet": f"""
description: SegResNet for 26 classes, weights drawn by the seed
labels: [{", ".join(f"structure_{number}" for number in range(1, 26))}]
spacing_mm: [1.5, 1.5, 1.5]
intensity: {{kind: window, low: -160, high: 240}}
patch_size: [96, 96, 96]
inference: {{overlap: 0.4, runtime: RUNTIME}}
network: {{name: segresnet, filters: 32}}
""",
}
LARGE = (512, 512, 300)
GOALS = {
    "large_peak_mb": 4000,
    "first_to_bare": 1.35,
    "second_to_bare": 1.10,
    "ahead_s": 0.150,
    "info_p95_ms": 50.0,
    "together_to_serial": 1.1,
}
# What a server serves that is started for its time: nothing trained, or the two shipped models for patients.
STARTS = {"untrained": ["unet_timed"], "two models": ["unet_hippocampus", "vnet_hippocampus"]}
READY_GOALS_S = {"untrained": 4.0, "two models": 8.0}
TIMES_FASTER = {"unet": 10.0, "segresnet": 4.0}
console = Console()


def main() -> None:
    """Run what is asked for, print its tables and write its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--spacings", default="3,1.5,1", help="of the images, in mm")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=peers.CORES)
    parser.add_argument("--repetitions", type=int, default=2, help="of each contender")
    parser.add_argument("--clients", type=int, default=4, help="that ask at once")
    parser.add_argument("--requests", type=int, help="segment so many small images instead, and watch the memory")
    parser.add_argument("--starts", type=int, help="start a server so many times instead")
    peers.end_children_too()
    wanted = parser.parse_args()
    if wanted.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device: 'cuda' is not on this machine; available: cpu")
    unknown = sorted(set(wanted.networks.split(",")) - set(NETWORKS))
    if unknown:
        parser.error(f"--networks: {unknown[0]!r} is not one of {', '.join(NETWORKS)}")
    RESULTS.mkdir(exist_ok=True)
    report: dict[str, Any] = {"machine": machine.describe(), "device": wanted.device, "threads": wanted.threads}
    with tempfile.TemporaryDirectory() as folder:
        if wanted.requests:
            report |= many_requests(Path(folder), wanted)
            result = RESULTS / "inference_many_requests.json"
        elif wanted.starts:
            report |= starts(Path(folder), wanted.starts)
            result = RESULTS / "inference_start.json"
        else:
            part = "" if wanted.networks == ",".join(NETWORKS) else f"_{wanted.networks.replace(',', '_')}"
            result = RESULTS / f"inference_{wanted.device}{part}.json"
            report["networks"] = {}
            for name in wanted.networks.split(","):
                report["networks"][name] = compare(name, Path(folder) / name, wanted)
                result.write_text(json.dumps(report, indent=1) + "\n")
            console.print(table(report["networks"]))
    result.write_text(json.dumps(report, indent=1) + "\n")
    console.print(f"Figures: {result}")


def compare(name: str, folder: Path, wanted: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of all contenders with one network."""
    studies, configs, home = (folder / part for part in ("studies", "configs", "home"))
    for part in (studies, configs, home):
        part.mkdir(parents=True)
    model = f"{name}_timed"
    (configs / f"{model}.yaml").write_text(described(name, wanted.device))
    weights = publish(configs / f"{model}.yaml", home)
    spacings = [float(spacing) for spacing in wanted.spacings.split(",")]
    sources = [write_ct(folder, spacing) for spacing in spacings]
    figures: dict[str, Any] = {"images": {source.name: list(read_image(source).shape) for source in sources}}
    for contender in ("bare", "monailabel"):
        figures[contender] = measure(contender, configs / f"{model}.yaml", weights, sources, folder, wanted)
        console.print(f"{name}: {contender} {figures[contender]}")
    figures["ours"] = serve(model, studies, configs, home, spacings, wanted)
    console.print(f"{name}: ours {figures['ours']}")
    large = write_ct(folder, shape=LARGE)
    figures["large"] = {"image": list(read_image(large).shape)}
    with tempfile.TemporaryDirectory() as alone:
        hardlink = Path(alone) / large.name
        hardlink.hardlink_to(large)
        with running_server(Path(alone), home, 0, [model], configs) as client:
            seconds, _ = ask(client, model, hardlink, wanted.device)
            figures["large"]["ours"] = {"seconds": [[seconds]], "peak_mb": round(peak_mb(server_of(client)))}
    try:
        theirs = measure("monailabel", configs / f"{model}.yaml", weights, [large], folder, wanted, 1)
    except SystemExit as error:  # killed where the machine's memory does not suffice
        theirs = {"seconds": None, "peak_mb": None, "ended": str(error).partition(";")[0].partition(" ")[2]}
    figures["large"]["monailabel"] = theirs
    console.print(f"{name}: {figures['large']}")
    return figures | {"ratios": ratios(name, figures)}


def described(name: str, device: str) -> str:
    """Return a network's model as YAML, run in the default way for the device."""
    return NETWORKS[name].lstrip().replace("RUNTIME", default_runtime(torch.device(device)))


def publish(config_file: Path, home: Path) -> Path:
    """Serve a network whose weights are drawn by the seed, and return their file."""
    config = load_config(config_file)
    torch.manual_seed(config.training.seed)
    os.environ["LABELROUNDS_HOME"] = str(home)
    checkpoints = Checkpoints(config)
    record = {"judged_on": "nothing: the weights are drawn by the seed, to measure time", **checkpoints.describe()}
    return checkpoints.publish(build_network(config), record).weights


def write_ct(
    folder: Path, spacing: float = 1.0, change: float = 0.0, shape: tuple[int, int, int] | None = None
) -> Path:
    """Write the CT at a spacing in mm, or of a shape; ``change`` is added to its intensities: it is another image then.

    As NRRD: of NIfTI files MONAI Label 0.8.5 can't preprocess any with MONAI 1.6.
    """
    source = nibabel.load(CT)
    voxels = np.asarray(source.dataobj, dtype=np.float32)
    slices = round(HEIGHT_MM / source.header.get_zooms()[2])
    while voxels.shape[2] < slices:
        voxels = np.concatenate((voxels, voxels[:, :, ::-1]), axis=2)
    tensor = torch.from_numpy(voxels[:, :, :slices].copy())[None, None]
    extent = [side * step for side, step in zip(tensor.shape[2:], source.header.get_zooms(), strict=True)]
    size = shape or [round(side / spacing) for side in extent]
    resampled = functional.interpolate(tensor, size=size, mode="trilinear")[0, 0].numpy() + change
    x, y, z = (side / count for side, count in zip(extent, size, strict=True))
    header = {
        "space": "left-posterior-superior",
        "space directions": np.diag([-x, -y, z]),
        "space origin": np.zeros(3),
        "encoding": "gzip",
    }
    path = folder / f"ct_{'x'.join(map(str, size))}_{change:g}.nrrd"
    nrrd.write(str(path), resampled.round().astype(np.int16), header, compression_level=1)
    return path


def measure(
    contender: str,
    config: Path,
    weights: Path,
    images: Sequence[Path],
    folder: Path,
    wanted: argparse.Namespace,
    repetitions: int | None = None,
) -> dict[str, Any]:
    """Run one of the other contenders in its own process."""
    output = folder / f"{contender}.json"
    settings = (
        "--device",
        wanted.device,
        "--threads",
        wanted.threads,
        "--repetitions",
        repetitions or wanted.repetitions,
    )
    files = ("--config", config, "--weights", weights, "--output", output, "--images", *images)
    environment = peers.threads(wanted.threads)
    if contender == "monailabel":  # as it comes
        environment = {key: value for key, value in environment.items() if "WAIT" not in key}
    command = peers.python("inference_contenders", contender, *settings, *files)
    peers.run(command, folder / f"{contender}.log", environment)
    return dict(json.loads(output.read_text()))


def serve(
    model: str, studies: Path, configs: Path, home: Path, spacings: list[float], wanted: argparse.Namespace
) -> dict[str, Any]:
    """Return the seconds of our server's answers, and what else it did meanwhile."""
    figures: dict[str, Any] = {"seconds": [], "second": [], "ahead": [], "latencies": []}
    # Each repetition has images of its own, so that none is known from the one before; a last one warms up.
    fresh = [[write_ct(studies, spacing, float(n)) for n in range(wanted.repetitions)] for spacing in spacings]
    more = [write_ct(studies, spacings[0], 100.0 + n) for n in range(2 * wanted.clients)]
    warm = write_ct(studies, spacings[0], 200.0)
    started = time.perf_counter()
    with running_server(studies, home, 0, [model], configs) as client:
        figures["ready_s"] = round(time.perf_counter() - started, 2)
        server = server_of(client)
        figures["idle_mb"] = round(server.memory_info().rss / 2**20)
        ask(client, model, warm, wanted.device)
        with polled(client) as delays:
            for images in fresh:
                first, second = [], []
                for image in images:
                    seconds, latencies = ask(client, model, image, wanted.device)
                    first.append(seconds)
                    figures["latencies"].append({"image": image.name, **latencies})
                    second.append(ask(client, model, image, wanted.device)[0])
                figures["seconds"].append(first)
                figures["second"].append(second)
        figures["info_p95_ms"] = round(float(np.percentile(delays, 95)) * 1000, 1)
        if wanted.clients:
            figures["clients"] = several(client, model, more, wanted)
        figures["peak_mb"] = round(peak_mb(server))
    for number, spacing in enumerate(spacings):
        figures["ahead"].append(ahead(model, write_ct(home, spacing, 300.0 + number), configs, home, wanted))
    return figures


def several(client: Client, model: str, images: Sequence[Path], wanted: argparse.Namespace) -> dict[str, Any]:
    """Return the seconds of a client's requests for half of the images in turn, and of as many clients' at once."""
    started = time.perf_counter()
    alone = [ask(client, model, image, wanted.device)[0] for image in images[: wanted.clients]]
    serial = time.perf_counter() - started
    started = time.perf_counter()
    with ThreadPoolExecutor(wanted.clients) as clients:
        answers = list(clients.map(lambda image: ask(client, model, image, wanted.device)[0], images[wanted.clients :]))
    return {
        "count": wanted.clients,
        "serial_s": round(serial, 3),
        "together_s": round(time.perf_counter() - started, 3),
        "alone_s": round(statistics.median(alone), 3),
        "first_s": round(min(answers), 3),
    }


def ahead(model: str, image: Path, configs: Path, home: Path, wanted: argparse.Namespace) -> float:
    """Return the seconds of a request for an image that was handed out, and predicted, before."""
    with tempfile.TemporaryDirectory() as folder:
        path = image.rename(Path(folder) / image.name)
        with running_server(Path(folder), home, 0, [model], configs) as client:
            client.call("POST", "/activelearning/random", json={})
            busy, deadline = server_of(client), time.monotonic() + 600
            while time.monotonic() < deadline and busy.cpu_percent(interval=2.0) > 5.0:
                pass
            return ask(client, model, path, wanted.device)[0]


def ask(client: Client, model: str, image: Path, device: str) -> tuple[float, dict[str, Any]]:
    """Segment an image of the datastore as a client of its own; return the seconds and the server's own figures."""
    own = Client(client.address)
    image_id = image.stem
    started = time.perf_counter()
    answer = own.call(
        "POST", f"/infer/{model}?image={image_id}&output=all", data={"params": json.dumps({"device": device})}
    )
    seconds = round(time.perf_counter() - started, 4)
    text = answer.content[: answer.content.index(b"\r\n--", 10)].decode(errors="replace")
    return seconds, dict(json.loads(text[text.index("{") : text.rindex("}") + 1])["latencies"])


@contextmanager
def polled(client: Client) -> Iterator[list[float]]:
    """Ask for `GET /info/` every 20 ms while the block runs; give the seconds of each answer."""
    delays: list[float] = []
    over = threading.Event()

    def poll() -> None:
        own = Client(client.address)
        while not over.wait(0.02):
            started = time.perf_counter()
            own.call("GET", "/info/")
            delays.append(time.perf_counter() - started)

    thread = threading.Thread(target=poll)
    thread.start()
    try:
        yield delays
    finally:
        over.set()
        thread.join()


def server_of(client: Client) -> psutil.Process:
    """Return the process that listens on the client's port."""
    port = int(client.address.rsplit(":", 1)[1])
    for child in psutil.Process().children(recursive=True):
        if any(found.laddr.port == port for found in child.net_connections() if found.status == "LISTEN"):
            return child
    raise SystemExit(f"no child of this process listens on port {port}")


def peak_mb(process: psutil.Process) -> float:
    """Return the most memory that a process has held."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def ratios(name: str, figures: dict[str, Any]) -> dict[str, Any]:
    """Return how ours relates to the others, an entry for each image, and whether the goals are met."""
    rows = []
    for index in range(len(figures["ours"]["seconds"])):
        bare, stock = (min(figures[contender]["seconds"][index]) for contender in ("bare", "monailabel"))
        first, second = min(figures["ours"]["seconds"][index]), min(figures["ours"]["second"][index])
        rows.append(
            {
                "first_to_bare": round(first / bare, 3),
                "second_to_bare": round(second / bare, 3),
                "ahead_s": figures["ours"]["ahead"][index],
                "times_faster": round(stock / first, 2),
                "goal_times_faster": TIMES_FASTER[name],
            }
        )
    clients = figures["ours"].get("clients")
    together = {"together_to_serial": round(clients["together_s"] / clients["serial_s"], 3)} if clients else {}
    large = {f"large_{key}_mb": figures["large"][key]["peak_mb"] for key in ("ours", "monailabel")}
    return {"images": rows, **large, **together, "goals": GOALS}


def many_requests(folder: Path, wanted: argparse.Namespace) -> dict[str, Any]:
    """Segment small images over and over; return the memory after a tenth of the requests and at the end."""
    studies, home, temporary = (folder / part for part in ("studies", "home", "temporary"))
    for part in (studies, home, temporary):
        part.mkdir(parents=True)
    images = write_studies(studies, 6)
    os.environ["TMPDIR"] = str(temporary)
    with running_server(studies, home, 0, ["unet_phantom"]) as client:
        server, memory = server_of(client), {}
        for number in range(1, wanted.requests + 1):
            # Uploads: an image of the datastore would be answered from what is known of it.
            client.segment("unet_phantom", file=images[number % len(images)])
            if number in (wanted.requests // 10, wanted.requests):
                memory[number] = round(server.memory_info().rss / 2**20)
        left = sorted(path.name for path in temporary.rglob("*"))
    return {"requests": wanted.requests, "resident_mb": memory, "files_left": left}


def starts(folder: Path, repetitions: int) -> dict[str, Any]:
    """Return the seconds from `labelrounds start` to the first answer of `GET /info/`, and the idle memory."""
    studies, configs = folder / "studies", folder / "configs"
    studies.mkdir()
    configs.mkdir()
    write_studies(studies, 6)
    (configs / "unet_timed.yaml").write_text(described("unet", "cpu"))
    figures: dict[str, Any] = {"goals_s": READY_GOALS_S, "ready_s": {}, "idle_mb": {}}
    for _ in range(repetitions):
        for name, models in STARTS.items():
            started = time.perf_counter()
            with running_server(studies, folder / "home", 0, models, configs) as client:
                figures["ready_s"].setdefault(name, []).append(round(time.perf_counter() - started, 2))
                time.sleep(5.0)  # what it does by itself after its start is done by then
                figures["idle_mb"].setdefault(name, []).append(round(server_of(client).memory_info().rss / 2**20))
    for name in STARTS:
        ready, idle = (statistics.median(figures[figure][name]) for figure in ("ready_s", "idle_mb"))
        console.print(f"{name}: ready after {ready:.1f} s (goal {READY_GOALS_S[name]:g}), idle {idle:.0f} MB")
    return figures


def table(networks: dict[str, Any]) -> Table:
    """Return the figures as they are printed."""
    shown = Table("network, image", "bare s", "first", "second", "ahead s", "MONAI Label s", "times faster", "peak MB")
    for name, figures in networks.items():
        for index, (image, shape) in enumerate(figures["images"].items()):
            row = figures["ratios"]["images"][index]
            shown.add_row(
                f"{name}, {image} {shape}",
                f"{min(figures['bare']['seconds'][index]):.2f}",
                f"{row['first_to_bare']:.2f} times",
                f"{row['second_to_bare']:.2f} times",
                f"{row['ahead_s']:.3f}",
                f"{min(figures['monailabel']['seconds'][index]):.1f}",
                f"{row['times_faster']:.1f} (goal {row['goal_times_faster']:g})",
                f"{figures['ours']['peak_mb']}, theirs {figures['monailabel']['peak_mb']}",
            )
    return shown


if __name__ == "__main__":
    main()
