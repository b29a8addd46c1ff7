"""An app with a few small images, and its rounds, by which a test asks for cases and labels them."""

from collections.abc import Mapping
from pathlib import Path

import nibabel
import numpy as np

from labelrounds.checkpoints import Checkpoints
from labelrounds.engine import Engine
from labelrounds.networks import build_network
from labelrounds.pool import PoolSource
from labelrounds.rounds import Rounds
from labelrounds.scores import SCORES, CaseScores, weights_of
from labelrounds.store import StudyStore


def write_image(path: Path, seed: int = 0) -> Path:
    voxels = np.random.default_rng(seed).normal(0, 1, (8, 8, 8)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), path)
    return path


def write_label(path: Path) -> Path:
    voxels = np.zeros((8, 8, 8), np.uint8)
    voxels[2:4, 2:4, 2:4], voxels[5:7, 5:7, 5:7] = 1, 2
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), path)
    return path


class App:
    """As much of the app as the rounds ask for."""

    def __init__(self, config, studies: Path) -> None:
        self.configs: Mapping = {config.name: config}
        self.store = StudyStore(studies, known_labels=config.labels)
        self.ahead: list[str] = []
        self.engine = Engine()
        self.ready: set[str] = set()

    def datastore(self) -> StudyStore:
        return self.store

    def usual_model(self, task: str) -> str | None:
        return next((name for name, config in self.configs.items() if config.task == task), None)

    def image_path(self, image_id: str) -> Path:
        return Path(self.store.get_image_uri(image_id))

    def segment_ahead(self, *images: Path) -> None:
        self.ahead += [image.name.split(".")[0] for image in images]

    def is_ready(self, image: Path) -> bool:
        return image.name.split(".")[0] in self.ready

    def infer(self, request):
        raise AssertionError("nothing is trained")


class Playground:
    """An app with images, and its rounds."""

    def __init__(self, config, folder: Path) -> None:
        self.config, self.folder = config, folder
        self.studies = folder / "studies"
        self.studies.mkdir()
        self.apps: list[Rounds] = []

    def open(self, *names: str) -> Rounds:
        for seed, name in enumerate(names):
            write_image(self.studies / f"{name}.nii.gz", seed)
        self.app = App(self.config, self.studies)
        self.rounds = Rounds(self.app, str(self.studies))
        self.apps.append(self.rounds)
        return self.rounds

    @property
    def source(self) -> PoolSource:
        return self.rounds._of(self.config.name).source

    def ask(self, client: str = "ann", strategy: str = "random", **more) -> str | None:
        return self.rounds.choose({"client_id": client, "strategy": strategy, **more})[0].get("id")

    def why(self, client: str = "ann", **more) -> str:
        chosen, message = self.rounds.choose({"client_id": client, "strategy": "random"} | more)
        assert chosen == {}
        return message

    def label(self, name: str, client: str = "ann") -> None:
        label = write_label(self.folder / f"{client}.nii.gz")  # clients label at the same time
        info = {"label_info": [{"name": label} for label in self.config.labels]}
        self.app.store.save_label(name, str(label), "final", info)
        self.rounds.submitted(name, "final", client)

    def score(self, names, margins, version: int = 1):
        """Publish a version, and note what it has said of images."""
        checkpoints = Checkpoints(self.config)
        published = checkpoints.publish(build_network(self.config), {})
        assert published.number == version
        for name, margin in zip(names, margins, strict=True):
            self.source.scores.put(
                self.app.image_path(name), scores_of(margin, self.config.labels, version), weights_of(published)
            )
        return published

    def events(self) -> list[tuple[str, str]]:
        return [(row["event"], row["image"]) for row in self.rounds.opened().leases.ledger.entries()]

    def close(self) -> None:
        for rounds in self.apps:
            rounds.close()
            rounds._app.engine.close()


def scores_of(margin: float, labels, version: int) -> CaseScores:
    embedding = np.random.default_rng(int(margin * 1e6)).normal(size=32).astype(np.float32)
    by_label = {name: dict.fromkeys(labels, margin) for name in ("entropy", "presence", "volume_ml", "components")}
    return CaseScores(dict.fromkeys(SCORES, margin), by_label, embedding, version)
