"""What the module does, without its panel: between the scene and the client, never waiting for the server.

Each method that asks the server returns at once, and later calls ``done`` or ``failed`` in the main thread. Nothing of
the scene is changed but in ``done``'s turn, so that a request that fails or is cancelled leaves all as it was.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Callable

import slicer
from slicer.ScriptedLoadableModule import ScriptedLoadableModuleLogic

from . import VERSION, layers, looks, overlays, segments, sending
from .background import Background
from .client import Case, Client, Prediction
from .failures import Failed
from .http import Call
from .translation import _

IMAGE, SERVER = "LabelRounds.image", "LabelRounds.server"

Done = Callable[[Any], None]
OnFailed = Callable[[Failed], None]
Progress = Callable[["float | None"], None]


class LabelRoundsLogic(ScriptedLoadableModuleLogic):
    """The module's logic; see above."""

    def __init__(self) -> None:
        super().__init__()
        self.background = Background()
        self.client: Client | None = None
        self.info: dict[str, Any] = {}
        self._before: tuple[str, Any, str] | None = None
        self._temporary = Path(tempfile.mkdtemp(prefix="labelrounds-", dir=slicer.app.temporaryPath))

    def use_server(self, address: str, client_id: str) -> bool:
        """Ask this server from now on, and tell whether it is another one; a login at it is kept."""
        if self.client is not None and self.client.address == address.strip().rstrip("/"):
            return False
        self.client, self.info = Client(address, client_id), {}
        return True

    def connect_server(self, done: Done, failed: OnFailed, progress: Progress) -> Call:
        """Learn what the server has."""

        def connected(info: dict[str, Any]) -> None:
            self.info = info
            done(info)

        return self.background.start(self.client.info, connected, failed, progress)

    def version_warning(self) -> str:
        """Say that server and module do not belong together; empty where they do."""
        theirs = str(self.info.get("version", ""))
        if theirs.split(".")[:2] == VERSION.split(".")[:2]:
            return ""
        told = _("The server is version {theirs}, this module {ours}: update the older one if something goes wrong.")
        return told.format(theirs=theirs or "?", ours=VERSION)

    def classifies(self, model: str) -> bool:
        """Tell whether a model classifies images instead of segmenting them."""
        return self._card(model).get("task") == "classification"

    def classes(self, model: str) -> list[str]:
        """Return the classes of a model that classifies; none of another."""
        return list(self._card(model).get("labels") or []) if self.classifies(model) else []

    def ends_case(self, answer: Mapping[str, Any]) -> bool:
        """Tell from the answer to a submission whether its case is done.

        A server of both kinds of models hands out cases to segment, which a class alone doesn't end.
        """
        return "classes" not in answer or all(map(self.classifies, self.models()))

    def models(self) -> list[str]:
        """Return the server's models, those last that nobody has trained yet."""
        trained = self.info.get("models", {})
        return [*trained, *(model for model in self.info.get("trainers", {}) if model not in trained)]

    def image_of(self, volume) -> str:
        """Return an image's id on this server; empty where the server doesn't have it."""
        if volume.GetAttribute(SERVER) != self.client.address:
            return ""
        return volume.GetAttribute(IMAGE) or ""

    def predict(self, volume, model: str, done: Done, failed: OnFailed, progress: Progress) -> Call:
        """Ask for a prediction, sending the image if the server doesn't have it; ``done`` gets a `Prediction`."""
        client, image = self.client, self.image_of(volume)
        folder, classify = self._folder(), self.classifies(model)
        file = None if image else sending.written(volume, folder)

        def work(call: Call) -> Prediction:
            sent = None if file is None else sending.compressed(file)
            return client.predict(model, folder, image, sent, classify, call)

        return self._start(work, done, failed, progress, folder)

    def overlay(
        self,
        volume,
        model: str,
        options: dict[str, Any],
        name: str,
        opacity: float,
        done: Done,
        failed: OnFailed,
        progress: Progress,
    ) -> Call:
        """Show a map over an image, sending the image if the server doesn't have it.

        ``done`` gets the map, or None where the image was closed meanwhile. The options are `Client.overlay`'s.
        """
        client, image, folder = self.client, self.image_of(volume), self._folder()
        file = None if image else sending.written(volume, folder)

        def work(call: Call) -> Path:
            sent = None if file is None else sending.compressed(file)
            return client.overlay(model, folder, options, image, sent, call)

        def fetched(found: Path) -> None:
            is_there = slicer.mrmlScene.GetNodeByID(volume.GetID() or "") is volume
            done(overlays.show(volume, found, name, opacity) if is_there else None)

        return self._start(work, fetched, failed, progress, folder)

    def put_prediction(self, volume, node, prediction: Prediction, keep: list[str]):
        """Put a prediction's labels into a segmentation, or into a new one for None; one step of `undo`."""
        new = node is None
        node = segments.new_segmentation(volume) if new else node
        self._before = None if new else self._state(node)
        put = segments.put_labels(node, volume, prediction.file, prediction.names, keep, self._looks(prediction.model))
        segments.note_predicted(node, put)
        if new:
            self._before = node.GetID(), None, ""
        segments.show(node)
        return node

    def prediction_node(self):
        """Return the segmentation that the last prediction was put into, None if it is gone."""
        return None if self._before is None else slicer.mrmlScene.GetNodeByID(self._before[0])

    def can_undo(self) -> bool:
        """Tell whether there is a prediction that can be taken back."""
        return self.prediction_node() is not None

    def undo(self):
        """Put the segmentation of the last prediction back as it was before; returns it, None where there was none."""
        node, (_key, segmentation, predicted) = self.prediction_node(), self._before
        self._before = None
        if segmentation is None:
            slicer.mrmlScene.RemoveNode(node)
            return None
        node.GetSegmentation().DeepCopy(segmentation)
        node.SetAttribute(segments.PREDICTED, predicted)
        segments.show(node)
        return node

    def next_case(self, strategy: str, model: str, done: Done, failed: OnFailed, progress: Progress) -> Call:
        """Ask for the next case; ``done`` gets what it is, and the volume, or a sentence and None."""
        client, folder = self.client, self._folder()

        def loaded(case: Case | str) -> None:
            if isinstance(case, str):
                return done(case, None)
            self.remove_submitted()
            volume = self._load(case)
            if case.label is not None:
                self._put_label(case, volume)
            done(case, volume)

        return self._start(
            lambda call: client.next_case(strategy, model, folder, call), loaded, failed, progress, folder
        )

    def open(self, image: str, done: Done, failed: OnFailed, progress: Progress) -> Call:
        """Open any image of the server's; ``done`` gets the same as of `reopen`, but None where there is no label."""
        return self._open(image, self.client.open, done, failed, progress)

    def reopen(self, image: str, done: Done, failed: OnFailed, progress: Progress) -> Call:
        """Open a submitted case again, with its label; ``done`` gets it, its volume and its segmentation."""
        return self._open(image, self.client.reopen, done, failed, progress)

    def _open(self, image: str, fetch, done: Done, failed: OnFailed, progress: Progress) -> Call:
        folder = self._folder()

        def loaded(case: Case) -> None:
            volume = self._load(case)
            done(case, volume, None if case.label is None else self._put_label(case, volume))

        return self._start(lambda call: fetch(image, folder, call), loaded, failed, progress, folder)

    def submit(self, volume, node, own_name: str, done: Done, failed: OnFailed, progress: Progress) -> Call:
        """Submit a segmentation; an image that the server doesn't have is uploaded first, under ``own_name``.

        ``done`` gets the image's id and the server's answer, with ``overlap`` where segments that overlap were sent as
        the layers that they are.
        """
        client, folder = self.client, self._folder()
        layered = layers.of(node, volume)
        label = folder / "label.nii"
        names = segments.write_labels(node, volume, label) if layered is None else layered.names
        sent = segments.checksums(node)

        def submitted(image: str, answer: dict[str, Any]) -> None:
            segments.note_submitted(node, sent)
            done(image, answer if layered is None else {**answer, "overlap": True})

        def send(image: str, call: Call) -> dict[str, Any]:
            file = sending.compressed(label) if layered is None else layered.write(folder / "label.seg.nrrd")
            return client.submit(image, file, names, call)

        return self._submit(volume, own_name, send, submitted, failed, progress, folder)

    def submit_class(self, volume, name: str, own_name: str, done: Done, failed: OnFailed, progress: Progress) -> Call:
        """Submit what an image is, as a whole; otherwise as `submit`."""
        client, folder = self.client, self._folder()

        def send(image: str, call: Call) -> dict[str, Any]:
            return client.submit_class(image, name, folder, call)

        return self._submit(volume, own_name, send, done, failed, progress, folder)

    def _submit(self, volume, own_name: str, send, done, failed, progress, folder: Path) -> Call:
        client, image = self.client, self.image_of(volume)
        file = None if image else sending.written(volume, folder)

        def work(call: Call) -> tuple[str, dict[str, Any]]:
            known = image or client.add_image(own_name, sending.compressed(file), call)
            return known, send(known, call)

        def submitted(outcome: tuple[str, dict[str, Any]]) -> None:
            self._note_image(volume, outcome[0])
            done(*outcome)

        return self._start(work, submitted, failed, progress, folder)

    def is_open(self, image: str) -> bool:
        """Tell whether an image of the server's is in the scene."""
        volumes = slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")
        return any(self.image_of(volume) == image for volume in volumes)

    def remove_submitted(self) -> None:
        """Remove from the scene the cases of which nothing would be lost, as their labels are on the server."""
        for volume in slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode"):
            nodes = segments.segmentations_of(volume) if volume.GetAttribute(IMAGE) else []
            if nodes and all(map(segments.is_submitted, nodes)):
                overlays.remove(volume)
                for node in [*nodes, volume]:
                    slicer.mrmlScene.RemoveNode(node)

    def close(self) -> None:
        """End all requests, and remove their files."""
        self.background.cancel_all()
        shutil.rmtree(self._temporary, ignore_errors=True)

    def _load(self, case: Case):
        """Show a case's image."""
        volume = slicer.util.loadVolume(str(case.file))
        volume.SetName(case.image)
        self._note_image(volume, case.image)
        if volume.GetStorageNode() is not None:  # of a temporary file, which will be gone
            slicer.mrmlScene.RemoveNode(volume.GetStorageNode())
        slicer.util.setSliceViewerLayers(background=volume, foreground=None, label=None, fit=True)
        return volume

    def _put_label(self, case: Case, volume):
        """Put a case's submitted label into a segmentation of its own."""
        node = segments.new_segmentation(volume)
        if layers.must_read(case.label, bool(case.names)):
            layers.put(node, volume, case.label, self._looks())
        else:
            # Where nobody has named them, they are the server's labels in their order.
            values = case.names or {name: value for value, name in enumerate(self.info.get("labels") or [], 1)}
            segments.put_labels(node, volume, case.label, values, known=self._looks())
        segments.show(node)
        return node

    def _card(self, model: str) -> dict[str, Any]:
        card = self.info.get("models", {}).get(model, {})
        trainer = self.info.get("trainers", {}).get(model, {})
        return {**card, "task": card.get("task") or trainer.get("task"), "labels": trainer.get("labels")}

    def _looks(self, model: str = "") -> dict[str, dict[str, Any]]:
        return looks.of(self.info.get("models", {}), model)

    def _note_image(self, volume, image: str) -> None:
        volume.SetAttribute(IMAGE, image)
        volume.SetAttribute(SERVER, self.client.address)

    def _state(self, node) -> tuple[str, Any, str]:
        kept = slicer.vtkSegmentation()
        kept.DeepCopy(node.GetSegmentation())
        return node.GetID(), kept, node.GetAttribute(segments.PREDICTED) or "{}"

    def _start(self, work, done, failed, progress, folder: Path) -> Call:
        """Start some work whose files are removed when it is over."""

        def over(then: Callable[[Any], None]) -> Callable[[Any], None]:
            def ended(result: Any) -> None:
                try:
                    then(result)
                finally:
                    shutil.rmtree(folder, ignore_errors=True)

            return ended

        return self.background.start(work, over(done), over(failed), progress)

    def _folder(self) -> Path:
        self._temporary.mkdir(exist_ok=True)
        return Path(tempfile.mkdtemp(dir=self._temporary))
