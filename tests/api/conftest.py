"""Real servers on loopback; the tests talk HTTP to them as any client does."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from labelrounds.client import Client
from labelrounds.phantoms import LABELS, write_studies, write_truth
from tests.conftest import MEASURE
from tests.forked import running_server

MODEL = "unet_phantom"
QUICK_MODEL = "quick_phantom"
QUICK_CONFIG = f"""
description: U-Net for five organs of the invented CT patients, too coarse to be of use
labels: [{", ".join(LABELS)}]
modality: CT
spacing_mm: [10.0, 10.0, 10.0]
intensity: {{kind: window, low: -160, high: 240}}
patch_size: [16, 16, 16]
network: {{name: unet, channels: [4, 8, 8]}}
training: {{iterations_per_epoch: 4, batch_size: 2}}
inference: {{runtime: eager}}
"""


@pytest.fixture(scope="session")
def truths(tmp_path_factory) -> dict[str, Path]:
    """The phantoms' labels, by image id."""
    return {path.name.removesuffix(".nii.gz"): path for path in write_truth(tmp_path_factory.mktemp("truth"), 4)}


@pytest.fixture(scope="session")
def server(tmp_path_factory) -> Iterator[Client]:
    """A server on four phantoms whose routes are tested one by one, and runtimes chosen; nothing is trained on it."""
    folder = tmp_path_factory.mktemp("routes")
    write_studies(folder / "studies", 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(MEASURE, "true")
        with running_server(folder / "studies", folder / "home", 0, [MODEL]) as client:
            yield client


@pytest.fixture(scope="session")
def quick_configs(tmp_path_factory) -> Path:
    """A folder with a model that is trained in seconds, and of which nothing is trained yet."""
    folder = tmp_path_factory.mktemp("configs")
    (folder / f"{QUICK_MODEL}.yaml").write_text(QUICK_CONFIG)
    return folder


@pytest.fixture
def submit_all(truths):
    """Submit the label of every phantom."""

    def submit(client: Client) -> None:
        for image, label in truths.items():
            client.submit(image, label, LABELS)

    return submit
