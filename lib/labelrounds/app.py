"""From configurations to the host's tasks: the only MONAILabelApp of the package.

Built by the server and again by each child process, so its constructor reads configuration, opens the studies and
does nothing else. What the server alone does (resuming an interrupted training) waits for ``on_init_complete``.
"""

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import labelrounds.host

# isort: split
from monailabel.config import settings
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.infer_v2 import InferTask
from monailabel.interfaces.tasks.strategy import Strategy
from monailabel.interfaces.tasks.train import TrainTask

import labelrounds
from labelrounds import folders
from labelrounds.ahead import Ahead
from labelrounds.classification.config import ClassifierConfig
from labelrounds.classification.inferer import ClassificationInferer
from labelrounds.config import AnyConfig, ModelConfig, load_configs
from labelrounds.devices import choose_devices
from labelrounds.engine import Engine
from labelrounds.errors import BadInput, Conflict, NotFound
from labelrounds.inferer import SegmentationInferer
from labelrounds.jobs import job_queue
from labelrounds.memory_cache import Memory
from labelrounds.notes import check_plain
from labelrounds.progress import clock
from labelrounds.rounds import DEFAULT, Listed, Rounds
from labelrounds.sessions import SessionStore
from labelrounds.settings import server_settings
from labelrounds.store import CLASSES, FINAL, StudyStore
from labelrounds.strategies import strategies
from labelrounds.tasks import label_tag_of
from labelrounds.telemetry import inference_done
from labelrounds.training import Trainer
from labelrounds.training_request import TrainingRequest
from labelrounds.tuning import Tuning
from labelrounds.warming import WarmUp

logger = logging.getLogger(__name__)


def configured_models(conf: dict[str, str]) -> dict[str, AnyConfig]:
    """Return the models that a server's settings name.

    Args:
        conf: ``models``, names separated by commas (all when missing); ``configs``, a folder of the user's own
            beside the shipped one.

    Raises:
        BadInput: a faulty file, an unknown model.
    """
    names = [name.strip() for name in conf.get("models", "").split(",") if name.strip()]
    own = [Path(conf["configs"]).expanduser()] if conf.get("configs") else []
    return load_configs([folders.shipped_configs(), *own], names or None)


class LabelRoundsApp(MONAILabelApp):
    """Segmentation and classification models from YAML files, retrained on the labels that clinicians submit."""

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str]) -> None:
        self.configs = configured_models(conf or {})
        self.engine = Engine()
        self.memory = Memory()
        self.tuning = Tuning(self.engine)
        self.ahead = Ahead(self._segment_as_usual, at_once=len(choose_devices()))
        self._proposed: dict[str, tuple[str, str]] = {}  # by image, the model and version that a user has last seen
        self._habit: dict[str, Any] = {}  # how a user has last asked for a segmentation
        settings.MONAI_LABEL_SESSION_PATH = settings.MONAI_LABEL_SESSION_PATH or str(folders.home() / "sessions")
        super().__init__(
            app_dir=app_dir,
            studies=studies,
            conf=conf,
            name="LabelRounds",
            description="Segment, correct, submit and retrain, round after round",
            version=labelrounds.__version__,
            labels=self.known_labels(),
        )
        self.warm_up = WarmUp(self._infers)
        self.rounds = Rounds(self, self.studies)

    def known_labels(self) -> list[str]:
        """Return the labels of all segmentation models, each once, in the order of the models."""
        return self._labels_of(lambda config: config.task == "segmentation")

    def _classes(self, multilabel: bool = False) -> list[str]:
        """Return the classes of all classification models, or of those of which an image may have several."""
        return self._labels_of(
            lambda config: isinstance(config, ClassifierConfig) and (config.multilabel or not multilabel)
        )

    def _labels_of(self, chosen: Callable[[AnyConfig], bool]) -> list[str]:
        configs = [config for config in self.configs.values() if chosen(config)]
        return list(dict.fromkeys(label for config in configs for label in config.labels))

    def _known(self) -> dict[str, Any]:
        """Return what a datastore of either kind has to know of the models."""
        segments = any(config.task == "segmentation" for config in self.configs.values())
        return {
            "known_labels": self.known_labels(),
            "known_classes": self._classes(),
            "multilabel_classes": self._classes(multilabel=True),
            "rounds_tag": FINAL if segments else CLASSES,
        }

    def init_datastore(self) -> Datastore:
        """Open the studies: a folder, or a DICOMweb server by its address."""
        if self.studies.startswith(("http://", "https://")):
            return super().init_datastore()
        return StudyStore(
            self.studies,
            **self._known(),
            auto_reload=settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD,
            read_only=settings.MONAI_LABEL_DATASTORE_READ_ONLY,
        )

    def _load_sessions(self, load: bool = False) -> SessionStore | None:
        folder = Path(settings.MONAI_LABEL_SESSION_PATH)
        return SessionStore(folder, settings.MONAI_LABEL_SESSION_EXPIRY) if load else None

    def init_infers(self) -> dict[str, InferTask]:
        """Make an inferer for each configured model."""
        return {name: self._inferer_of(config) for name, config in self.configs.items()}

    def _inferer_of(self, config: AnyConfig) -> InferTask:
        if isinstance(config, ClassifierConfig):
            return ClassificationInferer(config, self.engine, self.memory)
        return SegmentationInferer(config, self.engine, self.memory, self.tuning)

    def init_trainers(self) -> dict[str, TrainTask]:
        """Make a trainer for each configured model."""
        return {name: Trainer(config) for name, config in self.configs.items()}

    def init_strategies(self) -> dict[str, Strategy]:
        """List the registered strategies, the default one first."""
        names = sorted(strategies.names(), key=lambda name: (name != DEFAULT, name))
        return {name: Listed(strategies.get(name).description, self.next_sample) for name in names}

    def on_init_complete(self) -> None:
        """Start the host's housekeeping, go on with a training that a killed server left, and make the models ready."""
        super().on_init_complete()
        job_queue("train").resume(settings.MONAI_LABEL_STUDIES, self._trainers)
        self.warm_up.start()
        self.rounds.start()
        store = self.datastore()
        if isinstance(store, StudyStore):
            store.watch_series(server_settings().series_rest_s)

    def info(self) -> dict[str, Any]:
        """Return what clients show; the trainer that runs comes first, as they read the first entry's figures."""
        described: dict[str, Any] = super().info()
        stats = described["train_stats"]
        latest = dict(sorted(stats.items(), key=lambda item: -item[1].get("started", 0)))
        for task in job_queue("train").tasks:
            model = task["request"]["model"]
            if _are_of(task, latest.get(model, {})):
                latest[model] = _ended_figures(task, latest[model])
        running = job_queue("train").seen_to_run()
        if running is not None:
            model = running["request"]["model"]
            latest = {model: self._running_figures(running, latest.pop(model, {})), **latest}
        return {**described, "train_stats": latest}

    def training_figures(self, task: dict[str, Any]) -> dict[str, Any]:
        """Return how far a training is, for ``GET /train/``: its figures, or how many are before it."""
        unfinished = job_queue("train").unfinished()
        if any(task is other for other in unfinished[1:]):
            return {"status": "waiting", "before_it": unfinished.index(task)}
        model = task["request"]["model"]
        written = self._trainers[model].stats() if model in self._trainers else {}
        if unfinished and task is unfinished[0]:
            return self._running_figures(task, written)
        return _ended_figures(task, written) if _are_of(task, written) else {}

    def _running_figures(self, task: dict[str, Any], written: dict[str, Any]) -> dict[str, Any]:
        """Return a running training's figures, from its first moment to its last.

        Until its process has written something, the file holds an earlier training's figures or nothing; once it has
        written its end, ``total_time`` would make Slicer show an empty bar until it learns that the process has ended.
        """
        epochs = task["request"].get("epochs") or self.configs[task["request"]["model"]].training.epochs
        figures = {"epoch": 0, "total_epochs": epochs, "best_metric": written.get("best_metric", 0.0)}
        if _are_of(task, written):
            figures |= written
        return {key: value for key, value in figures.items() if key != "total_time"}

    def infer(self, request: dict[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        """Segment one image.

        Args:
            request: ``model``; ``image``, an image id, or a ``Path`` to a file that the server itself has
                written (an upload, a session); optional ``device`` and ``result_extension``; see
                `SegmentationInferer` for what else the server adds.
            datastore: where an image id is looked up; the app's own when None.

        Returns:
            ``file``, a temporary file that the caller removes, and ``params``, what the client reads.

        Raises:
            NotFound: no such model or image.
            Conflict: the model has no trained version.
        """
        task = self.inferer(str(request.get("model")))
        image = request.get("image")
        path = image if isinstance(image, Path) else self.image_path(str(image), datastore)
        file, params = task({**request, "image": str(path)})
        if not request.get("background"):
            inference_done(str(request["model"]), params)
            if isinstance(image, str) and file is not None:
                self._proposed[image] = str(request.get("model")), str(params.get("version", ""))
            self._habit = {key: request[key] for key in ("model", "device", "result_extension") if key in request}
        return {"file": file, "params": params}

    def segment_ahead(self, *images: Path) -> None:
        """Segment images in the background, the first one first, unless nothing is kept between requests."""
        if self.memory.answers.budget:
            self.ahead.add(*images)

    def usual_model(self, task: str) -> str | None:
        """Return the model of a task that was last asked for, else the first that is served, else the first."""
        names = [name for name, config in self.configs.items() if config.task == task]
        if self._habit.get("model") in names:
            return str(self._habit["model"])
        return next((name for name in names if self._infers[name].is_valid()), next(iter(names), None))

    def is_ready(self, image: Path) -> bool:
        """Tell whether the answer that a user will most likely ask for is in memory."""
        request = self._usual_request(image)
        return request is not None and bool(self._infers[request["model"]].is_ready(request))

    def _usual_request(self, image: Path) -> dict[str, Any] | None:
        """Return how the next user will most likely ask: as the last one did, or for the first model that is served."""
        served = (name for name, task in self._infers.items() if task.is_valid())
        model = self._habit.get("model") or next(served, None)
        return {**self._habit, "model": model, "image": image} if model is not None else None

    def _segment_as_usual(self, image: Path) -> None:
        request = self._usual_request(image)
        if request is not None:
            found = self.infer({**request, "background": True})
            if found["file"] is not None:  # classes have none
                Path(found["file"]).unlink(missing_ok=True)

    def close(self) -> None:
        """End what computes in this process; what waits is refused."""
        store = self.datastore()
        if isinstance(store, StudyStore):
            store.close()
        self.rounds.close()
        self.engine.close()
        self.ahead.close()
        self.warm_up.close()
        self.tuning.close()

    def inferer(self, model: str) -> InferTask:
        """Return a model that can be served.

        Raises:
            NotFound: no such model.
            Conflict: it has no trained version yet.
        """
        task = self._infers.get(model)
        if task is None:
            raise NotFound(f"model {model!r} is not one of {', '.join(self._infers)}")
        if not task.is_valid():
            raise Conflict(f"model {model} has no trained version yet: submit labels, then start a training")
        return task

    def image_path(self, image_id: str, store: Datastore | None = None) -> Path:
        """Return where an image of the datastore lies.

        Raises:
            NotFound: no such image.
        """
        uri = (store or self.datastore()).get_image_uri(image_id)
        if not uri or not Path(uri).exists():
            raise NotFound(f"image {image_id!r} is not in the datastore")
        return Path(uri)

    def check_training(self, request: dict[str, Any]) -> None:
        """Check a training before a process is started for it.

        Raises:
            NotFound: no such model.
            BadInput: a wrong option; no model named.
            Conflict: no label was submitted yet.
        """
        check_plain(request, "training request")
        model = request.get("model")
        if not model or not isinstance(model, str):
            raise BadInput(f"a training needs a model, one of {', '.join(self._trainers)}")
        trainer = self._trainers.get(model)
        if trainer is None:
            raise NotFound(f"model {model!r} is not one of {', '.join(self._trainers)}")
        TrainingRequest.parse(request, trainer.model)
        if not self.datastore().get_labeled_images(label_tag_of(trainer.model)):
            raise Conflict("no label was submitted yet: submit at least one, then train")

    def training_processes(self, request: dict[str, Any]) -> int:
        """Return how many processes of this machine share a training; raises as ``check_training`` does."""
        self.check_training(request)
        return TrainingRequest.parse(request, self._trainers[request["model"]].model).processes

    def train(self, request: dict[str, Any], stopped: Callable[[], bool] = lambda: False) -> dict[str, Any]:
        """Train a model on the submitted labels; see ``training.Trainer``."""
        self.check_training(request)
        result: dict[str, Any] = self._trainers[request["model"]](request, self.datastore(), stopped)
        return result

    def next_sample(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return the next case to label; see `labelrounds.rounds.Rounds.choose`."""
        return self.rounds.choose(request)[0]

    def _init_dicomweb_datastore(self) -> Datastore:
        from labelrounds.dicomweb import DicomwebStore  # with highdicom, which a folder of images does not need
        from labelrounds.pacs import Pacs

        return DicomwebStore(
            Pacs(self.studies),
            settings.MONAI_LABEL_DICOMWEB_SEARCH_FILTER,
            settings.MONAI_LABEL_DICOMWEB_CACHE_PATH or str(folders.home() / "dicomweb"),
            coded={
                label: code
                for config in self.configs.values()
                if isinstance(config, ModelConfig)
                for label, code in config.codes.items()
            },
            proposal=self._proposed.get,
            sends_labels=not settings.MONAI_LABEL_DATASTORE_READ_ONLY,
            **self._known(),
        )


def _are_of(task: dict[str, Any], written: dict[str, Any]) -> bool:
    """Tell whether a training's figures are those of a task: its process has begun and not ended when they began."""
    return task.get("began", math.inf) <= written.get("started", 0) <= task.get("ended", math.inf)


def _ended_figures(task: dict[str, Any], written: dict[str, Any]) -> dict[str, Any]:
    """Return a task's own figures, with an end where its process had ended before it could write one."""
    if "ended" not in task or "total_time" in written:
        return dict(written)
    total_time = clock(task["ended"] - task["began"])
    status = "interrupted" if task.get("interrupted") else "failed"
    end = {"status": status, "stage": status, "eta_s": 0.0, "total_time": total_time}
    return {**written, **end, "message": task["details"][-1]}
