"""One real server for the whole run, on one phantom of each geometry; a Slicer of its own for each test."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from label_server import MODEL, MODEL_WITHOUT_SPLEEN, QUICK_MODEL, LabelServer
from observed import Volume, read_nifti
from slicer_process import OwnExtensionProcess, SlicerProcess

from labelrounds import folders, phantoms
from labelrounds.checkpoints import Checkpoints
from labelrounds.client import free_port
from labelrounds.config import load_config

SHIPPED = folders.shipped_configs() / f"{MODEL}.yaml"


@dataclass
class Study:
    """A phantom in the server's studies folder, and the truth about it, which the server doesn't have."""

    name: str
    image_path: Path
    truth_path: Path

    @property
    def image(self) -> Volume:
        return read_nifti(self.image_path)

    @property
    def truth(self) -> np.ndarray:
        return read_nifti(self.truth_path).voxels


@pytest.fixture(scope="session")
def studies(tmp_path_factory) -> dict[str, Study]:
    """Write a phantom of each geometry, by which they are keyed."""
    images, truths = tmp_path_factory.mktemp("studies"), tmp_path_factory.mktemp("truth")
    count = len(phantoms.GEOMETRIES)
    paths = zip(phantoms.write_studies(images, count), phantoms.write_truth(truths, count), strict=True)
    return {
        geometry: Study(image.name.removesuffix(".nii.gz"), image, truth)
        for geometry, (image, truth) in zip(phantoms.GEOMETRIES, paths, strict=True)
    }


@pytest.fixture(scope="session")
def session_server(studies, tmp_path_factory) -> Iterator[LabelServer]:
    home, configs = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("configs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LABELROUNDS_HOME", str(home))
        add_model_without_spleen(configs)
        add_quick_model(configs)
    models = (MODEL, MODEL_WITHOUT_SPLEEN, QUICK_MODEL)
    server = LabelServer(studies["axial"].image_path.parent, home, configs, *models)
    server.wait()
    yield server
    server.stop()


def add_model_without_spleen(configs: Path) -> None:
    """Add a model of the user's own that knows the spleen and never finds it; it is the shipped one otherwise."""
    config = load_config(shutil.copy(SHIPPED, configs / f"{MODEL_WITHOUT_SPLEEN}.yaml"))
    network = shipped_network()
    with torch.no_grad():
        network.get_parameter("net.output_block.conv.conv.bias")[config.label_values["spleen"]] = -1e4
    Checkpoints(config).publish(network, {})


def add_quick_model(configs: Path) -> None:
    """Add one whose epoch is a few steps on small patches; it is the shipped one otherwise."""
    content = yaml.safe_load(SHIPPED.read_text())
    content["training"] |= {"iterations_per_epoch": 6, "batch_size": 1}
    file = configs / f"{QUICK_MODEL}.yaml"
    file.write_text(yaml.safe_dump(content | {"patch_size": [32, 32, 32], "colours": {"liver": [255, 0, 51]}}))
    Checkpoints(load_config(file)).publish(shipped_network(), {})


def shipped_network() -> torch.nn.Module:
    checkpoints = Checkpoints(load_config(SHIPPED))
    return checkpoints.network(checkpoints.current())


@pytest.fixture
def server(session_server) -> Iterator[LabelServer]:
    """Lend the server; take away the trainings, labels and images that a test leaves on it."""
    images = session_server.images()
    yield session_server
    session_server.stop_training()
    for image in session_server.labelled():
        session_server.withdraw_label(image)
    for image in session_server.images() - images:
        session_server.remove_image(image)
    log = session_server.take_log()
    print(log)  # pytest shows it with a test that failed
    assert "Traceback" not in log, f"the server failed at a request:\n{log}"


@pytest.fixture
def label_all_but(server, studies) -> Callable[..., None]:
    """Have colleagues submit the labels of all studies but the given ones, so that Next Sample must hand out those."""

    def label(*unlabelled: Study) -> None:
        for study in studies.values():
            if study not in unlabelled:
                server.submit(study.name, study.truth_path, list(phantoms.LABELS))

    return label


@pytest.fixture
def open_slicer(tmp_path) -> Iterator[Callable[..., SlicerProcess]]:
    """Open Slicer with the extension's panel; the keywords are the extension's settings."""
    opened: list[SlicerProcess] = []

    def open_(server: str, **settings) -> SlicerProcess:
        folder = tmp_path / f"slicer_{len(opened)}"
        folder.mkdir()
        # The settings page's own default, which the module knows only once that page was opened.
        opened.append(SlicerProcess(folder, server, **{"autoRunSegmentationOnNextSample": False, **settings}))
        return opened[-1]

    yield open_
    for slicer in opened:
        slicer.close()


@pytest.fixture
def open_extension(tmp_path):
    """Open Slicer with the extension; what it remembers lies in ``folder``."""
    opened = []

    def open_(address, folder="slicer", **settings):
        (tmp_path / folder).mkdir(exist_ok=True)
        opened.append(
            OwnExtensionProcess(tmp_path / folder, address, **{"model": MODEL, "client": "slicer-test", **settings})
        )
        return opened[-1]

    yield open_
    for slicer in opened:
        slicer.close()


@pytest.fixture
def nobody_there() -> str:
    """Return an address at which no server answers."""
    return f"http://127.0.0.1:{free_port()}"


@pytest.fixture
def slicer(open_slicer, server) -> SlicerProcess:
    """Open Slicer and fetch the server's models."""
    slicer = open_slicer(server.url)
    assert slicer.fetch() == []
    return slicer
