"""What the page's buttons do: the round of next case, segment, correct, submit and train."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trame_server import Server
from trame_slicer.core import SlicerApp

from LabelRoundsLib import looks, segments
from LabelRoundsLib.case_in_hand import CaseInHand
from LabelRoundsLib.client import Case, Prediction, is_running

from .asking import Asking
from .desk import Desk
from .state import GREEN, RED, YELLOW
from .telling import best_dice, how_far

_TRAINING_EVERY_S, _SERVER_EVERY_S, _DEFER_H = 2.0, 30.0, 24.0


class Rounds(Asking):
    """The page's answers to clicks."""

    def __init__(self, server: Server, core: SlicerApp, address: str) -> None:
        super().__init__(server, core, address)
        self.desk = Desk(core)
        self._hand: CaseInHand | None = None
        self._training: dict[str, Any] | None = None
        self.bind_changes({self.name.model: self._model_chosen, self.name.brightness: self._brightness_chosen})

    # What the user clicks.

    def connect(self) -> None:
        """Ask the server for what it has."""
        self.start("Connecting", self.logic.connect_server, self._show_server)

    def next(self) -> None:
        """Open the case that is most worth labelling."""
        model = "" if self.logic.classifies(self.data.model) else self.data.model
        self._leave(lambda: self._next(model))

    def open(self) -> None:
        """Open the image that is chosen in the list, with its label if it has one."""
        image = self.data.chosen_image
        if image:
            self._leave(lambda: self.start("Opening", lambda *ends: self.logic.open(image, *ends), self._opened))

    def segment(self) -> None:
        """Segment or classify the image; what was drawn by hand is not replaced without asking."""
        volume, model = self.desk.volume, self.data.model
        if volume is None or not model:
            return self.warn("Open a case first." if volume is None else "The server has no model.")
        drawn = [] if self.data.classifies else segments.drawn_by_hand(self.desk.node)
        if not drawn:
            return self._segment(volume, model, [])
        self.ask(
            f"These segments were changed by hand: {', '.join(drawn)}. What shall become of them?",
            ["Keep them, put the rest", "Replace them"],
            lambda choice: self._segment(volume, model, drawn if choice else []),
        )

    def submit(self) -> None:
        """Submit the segmentation."""
        if self.desk.volume is None:
            return self.warn("Open a case first.")
        twice = segments.named_twice(self.desk.node)
        if twice:
            return self.warn(f"Several segments are named {', '.join(twice)}; give each its own name.")
        doubts = ["Nothing is drawn: the label says that the patient has none of this.", "Submit it so?"]
        self._sure(doubts if segments.is_empty(self.desk.node) else [], "Submit", self._submit)

    def submit_class(self) -> None:
        """Submit what the image is as a whole."""
        volume, name = self.desk.volume, self.data.chosen_class
        if volume is not None and name:
            image = self.logic.image_of(volume)
            self.start("Submitting", lambda *ends: self.logic.submit_class(volume, name, image, *ends), self._submitted)

    def defer(self) -> None:
        """Hand the case out to nobody for a day."""
        self._put_aside(_DEFER_H)

    def skip(self) -> None:
        """Hand the case out no more."""
        self._put_aside(None)

    def train(self) -> None:
        """Start a training, or stop the one that runs."""
        client, model = self.logic.client, self.data.model
        if not is_running(self._training):
            return self.run("Starting a training", lambda call: client.train(model, call), self._note_training)
        told = "The training is told to stop."
        stop = lambda: self.run("Stopping the training", client.stop_training, lambda _none: self.say(told))  # noqa: E731
        self._sure(["Stop the training with the best so far?"], "Stop", stop)

    # What follows from it.

    def tick(self) -> None:
        """Look for what has to be asked again, and how long the case is still the user's."""
        client = self.logic.client
        if self.logic.info:
            if is_running(self._training) and self.lookout.is_due("training", _TRAINING_EVERY_S):
                self.lookout.ask("training", client.training, self._note_training)
            hand = self._hand
            if hand is not None and hand.should_be_kept() and self.lookout.is_due("lease", _SERVER_EVERY_S):
                self._keep(hand)
        if not self.data.busy and self.lookout.is_due("server", _SERVER_EVERY_S):
            self.lookout.ask("server", client.info, self._found_server)
        self._show_hand()

    def _keep(self, hand: CaseInHand) -> None:
        """Keep a case in hand; say so where it is in other hands by now, as after a while without the server."""
        client = self.logic.client

        def kept(outcome: float | str) -> None:
            if isinstance(outcome, float):
                hand.kept(outcome)
            elif hand is self._hand:
                self._hand = None
                self.say(outcome, YELLOW)
                self.warn(outcome)

        self.lookout.ask("lease", lambda call: hand.keep(client, call), kept)

    def _show_server(self, info: dict[str, Any]) -> None:
        data = self.data
        self.logic.info = info
        trainable = info.get("trainers", {})  # also those that are not served yet, as nobody has trained them
        data.models = list({**info["models"], **trainable})
        data.strategies = [
            {"title": about["description"], "value": name} for name, about in info.get("strategies", {}).items()
        ]
        if data.model not in data.models:  # one that segments, if there is one, as cases are handed out for those
            data.model = min(data.models, key=self.logic.classifies, default="")
            self._model_chosen()
        warning = self.logic.version_warning()
        if not info["models"]:
            warning = "The server has no trained model yet: submit labels, then train."
        self.say(warning or f"Connected to {info.get('name', '?')}.", YELLOW if warning else GREEN)
        self._ask_images()
        self.lookout.hasten("lease")
        self.lookout.ask("training", self.logic.client.training, self._note_training)

    def _found_server(self, info: dict[str, Any]) -> None:
        if self.data.light == RED or not self.logic.info:
            self._show_server(info)

    def _ask_images(self) -> None:
        def found(images: dict[str, bool]) -> None:
            self.data.images = [
                {"title": f"{image} (labelled)" if done else image, "value": image} for image, done in images.items()
            ]

        self.lookout.ask("images", self.logic.client.images, found)

    def _model_chosen(self, *_: Any) -> None:
        self.data.classifies = self.logic.classifies(self.data.model)
        self.data.classes, self.data.chosen_class = [], ""
        self.desk.offer(self._labels())

    def _brightness_chosen(self, shown: list[float]) -> None:
        if self.desk.volume is not None:
            self.desk.set_brightness(*shown)

    def _sure(self, doubts: list[str], yes: str, then: Callable[[], None]) -> None:
        """Do something at once where there is no doubt, else once the user has said so."""
        if not doubts:
            return then()
        self.ask(" ".join(doubts), [yes], lambda _choice: then())

    def _leave(self, then: Callable[[], None]) -> None:
        """Open something else, which takes what is on the screen away."""
        doubts = [f"What you have drawn on {self.data.image} is not submitted. Throw it away?"]
        self._sure(doubts if self.desk.is_unsaved() else [], "Throw away", then)

    def _next(self, model: str) -> None:
        strategy = self.data.strategy or "auto"
        self.start(
            "Fetching the next case", lambda *ends: self.logic.next_case(strategy, model, *ends), self._handed_out
        )

    def _handed_out(self, case: Case | str, volume: Any) -> None:
        if volume is None:
            return self.say(case or "There is no case left to label.")
        node = None if case.label is None else segments.segmentations_of(volume)[-1]  # what a reviewer has sent back
        self._show(case, volume, node)
        self._hand = CaseInHand(case)
        self._show_hand()
        self.say(f"{case.image} is yours{'' if node is None else ', with the label that was sent back'}.")
        if self.data.segment_next and node is None:
            self.segment()

    def _opened(self, case: Case, volume: Any, node: Any) -> None:
        self._show(case, volume, node)
        self.say(f"{case.image} is open{'' if node is None else ' with its submitted label'}.")

    def _show(self, case: Case, volume: Any, node: Any) -> None:
        """Show a case, and its label where it has one, which the server has as it is."""
        data = self.data
        if node is not None:
            segments.note_submitted(node, segments.checksums(node))
        self.answer(-1)  # a question that is still open was about the case before
        self._hand, data.image, data.chosen_image = None, case.image, None
        data.classes, data.chosen_class = [], ""
        self.desk.show(volume, node, self._labels())
        limits, shown = self.desk.brightness()
        data.brightness_limits, data.brightness = list(limits), list(shown)
        self._show_hand()

    def _labels(self) -> dict[str, dict[str, Any]]:
        """Return the chosen model's labels with their looks, which one may draw without a prediction too."""
        info, model = self.logic.info, self.data.model
        models = info.get("models", {})
        known = looks.of(models, model)
        names = [] if self.data.classifies else models.get(model, info).get("labels", [])
        return {name: known.get(name, {}) for name in names}

    def _show_hand(self) -> None:
        hand = self._hand
        self.data.in_hand = hand is not None
        self.data.reason = "" if hand is None else hand.reason()
        self.data.lease = "" if hand is None else hand.lease()

    def _segment(self, volume: Any, model: str, replaced: list[str]) -> None:
        def predicted(prediction: Prediction) -> None:
            if volume is not self.desk.volume:
                return self.say("Another case was opened in the meantime; the prediction is dropped.")
            if prediction.file is None:
                return self._show_classes(prediction.classes)
            node = self.desk.node  # also what was drawn while the server computed is kept
            keep = [name for name in segments.drawn_by_hand(node) if name not in replaced]
            self.desk.put(lambda: self.logic.put_prediction(volume, node, prediction, keep))
            self.say(f"{model}, version {prediction.version}, has segmented {self.data.image}.")

        self.start("Segmenting", lambda *ends: self.logic.predict(volume, model, *ends), predicted)

    def _show_classes(self, classes: dict[str, float]) -> None:
        self.data.classes = [{"name": name, "percent": f"{100 * part:.1f} %"} for name, part in classes.items()]
        self.data.chosen_class = next(iter(classes), "")
        self.say(f"{self.data.chosen_class}, {self.data.classes[0]['percent']}" if classes else "No class was told.")

    def _submit(self) -> None:
        volume, node = self.desk.volume, self.desk.node
        image = self.logic.image_of(volume)
        self.start("Submitting", lambda *ends: self.logic.submit(volume, node, image, *ends), self._submitted)

    def _submitted(self, image: str, answer: dict[str, Any]) -> None:
        if self.logic.ends_case(answer) and self._hand is not None and self._hand.case.image == image:
            self._hand = None
        self._show_hand()
        ignored = ", ".join(answer.get("unknown_labels") or [])
        more = f" No model knows {ignored}, which will not be learnt." if ignored else ""
        if answer.get("overlap"):
            more += " Segments that overlap are kept so; a training takes the later one of the list there."
        self.say(f"{image} is submitted.{more}")
        self._ask_images()

    def _put_aside(self, hours: float | None) -> None:
        if self._hand is None:
            return
        image, reason, client = self._hand.case.image, self.data.aside_reason, self.logic.client

        def over(_none: Any) -> None:
            self._hand, self.data.aside_reason = None, ""
            self._show_hand()
            self.say(f"{image} is put aside.")

        self.run("Putting aside", lambda call: client.put_aside(image, reason, hours, call), over)

    def _note_training(self, training: dict[str, Any] | None) -> None:
        ran, self._training = is_running(self._training), training
        progress = (training or {}).get("progress") or {}
        self.data.trains = is_running(training)
        if self.data.trains:
            self.data.training, self.data.training_part = how_far(progress)
        elif ran:
            failed = training is not None and training.get("status") == "ERROR"
            why = " / ".join((training or {}).get("details", [])[-1:])
            self.data.training = (
                f"The training failed: {why}" if failed else f"The training has ended.{best_dice(progress)}"
            )
            self.lookout.ask("server", self.logic.client.info, self._show_models)

    def _show_models(self, info: dict[str, Any]) -> None:
        """Take in the server's models, of which a training may have added one."""
        self.logic.info = info
