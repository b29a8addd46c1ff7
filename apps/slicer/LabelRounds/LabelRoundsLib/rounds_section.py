"""The panel's sections on the rounds: the cases that come next, who has labelled what, and what the labels brought."""

from __future__ import annotations

import base64
import binascii
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import qt

from . import curve, wording
from .lights import GREEN
from .section import Section, chosen_in, fill
from .translation import _

_EVERY_S = 60.0
_QUEUED = 6


class RoundsSection(Section):
    """Shows how the rounds stand, while it is open, and takes a reviewer's word on a label."""

    def __init__(self, panel: Any) -> None:
        super().__init__(panel)
        self._state: dict[str, Any] = {}
        self._seen: dict[str, str] = {}
        for section in (self.ui.queueSection, self.ui.reviewSection):
            section.connect("contentsCollapsed(bool)", lambda collapsed: self.look())
        self.ui.strategyBox.connect("activated(int)", lambda place: self.look())
        self.ui.labelTable.connect("itemSelectionChanged()", self._label_is_chosen)

    def slots(self) -> dict[str, Any]:
        """Return what each button does."""
        return {
            "curveButton": self.on_curve,
            "approveButton": lambda: self.panel.connected(lambda: self.review("approved")),
            "sendBackButton": lambda: self.panel.connected(lambda: self.review("sent_back")),
        }

    def connected(self) -> None:
        """Show how the rounds stand."""
        self.look()

    def model_chosen(self) -> None:
        """Show how the rounds of the model stand that is chosen now."""
        self.look()

    def tick(self) -> None:
        """Look again once in a while."""
        if self.panel.lookout.is_due("rounds", _EVERY_S):
            self.look()

    def refresh(self, busy: bool) -> None:
        """Enable what can be clicked now."""
        reviews = self.panel.role in ("reviewer", "admin")
        for button in (self.ui.approveButton, self.ui.sendBackButton, self.ui.reviewEdit):
            button.setVisible(reviews)
            button.setEnabled(not busy and bool(chosen_in(self.ui.labelTable)))
        self.ui.curveButton.setEnabled(bool(self._points()))

    def look(self) -> None:
        """Ask how the rounds stand, where somebody sees it."""
        logic = self.panel.logic
        if not logic.info or (self.ui.queueSection.collapsed and self.ui.reviewSection.collapsed):
            return
        strategy, model = wanted = self._wanted()
        client = logic.client

        def show(state: dict[str, Any]) -> None:
            self._show(state)
            if wanted != self._wanted():  # another model or strategy was chosen meanwhile
                self.look()

        self.panel.lookout.ask("rounds", lambda call: client.rounds(strategy, model, _QUEUED, call), show)

    def opened(self, image: str, sha256: str) -> None:
        """Note which label of an image this user has seen; none any more where it is empty."""
        self._seen[image] = sha256

    def on_curve(self) -> None:
        """Plot the score of each version against its labels."""
        curve.show(self._points(), self._state["curve"].get("measure", "Dice"))

    def review(self, verdict: str) -> None:
        """Approve the label that is chosen, or send it back."""
        image, reason, client = chosen_in(self.ui.labelTable), self.ui.reviewEdit.text.strip(), self.panel.logic.client
        if verdict == "sent_back" and not reason:
            return self.panel.warn(_("Say what is to be corrected, then send it back."))

        listed = {each["image"]: each.get("sha256", "") for each in self._state.get("labels") or []}
        sha256 = self._seen.get(image) or listed.get(image, "")

        def done(_answer: Any) -> None:
            self.ui.reviewEdit.setText("")
            said = _("The label of {image} is approved.") if verdict == "approved" else _("{image} is sent back.")
            self.panel.say(GREEN, said.format(image=image))
            self.look()

        self.panel.request(_("Reviewing"), lambda call: client.review(image, verdict, reason, sha256, call), done)

    def _wanted(self) -> tuple[str, str]:
        return self.ui.strategyBox.currentText or "auto", self.panel.model_of_rounds()

    def _points(self) -> list[dict[str, Any]]:
        return list((self._state.get("curve") or {}).get("points") or [])

    def _show(self, state: dict[str, Any]) -> None:
        self._state = state
        self._show_queue(state.get("queue") or [])
        suspects = {each["image"]: each["reason"] for each in reversed(state.get("suspects") or [])}
        labels = sorted(state.get("labels") or [], key=lambda each: each["image"] not in suspects)
        rows = [
            [
                each["image"],
                " ".join(filter(None, (each["user"], each["client"] and f"({each['client']})"))),
                _review(each.get("review") or {}, suspects.get(each["image"], "")),
                wording.moment(each["time"]),
            ]
            for each in labels
        ]
        fill(self.ui.labelTable, [_("Case"), _("Labelled by"), _("Review"), _("When")], rows)
        self.ui.adviceLabel.setText(str((state.get("stop") or {}).get("sentence", "")))
        self.panel.refresh()

    def _show_queue(self, queue: list[dict[str, Any]]) -> None:
        shown = self.ui.queueList
        shown.clear()
        for each in queue:
            item = qt.QListWidgetItem(f"{each['rank']}. {each['id']}\n{each['reason']}")
            item.setToolTip(each["reason"])
            picture = _picture(each.get("thumbnail") or "")
            if picture is not None:
                item.setIcon(qt.QIcon(picture))
            shown.addItem(item)

    def _label_is_chosen(self) -> None:
        image = chosen_in(self.ui.labelTable)
        if image:
            self.ui.labelledBox.setCurrentText(image)
        self.refresh(self.panel.state()["busy"])


def _review(review: Mapping[str, Any], suspect: str) -> str:
    if suspect:
        return _("Look again: {reason}").format(reason=suspect)
    if review.get("verdict") == "approved":
        return _("Approved by {name}").format(name=review.get("by"))
    if review:
        return _("Sent back by {name}: {reason}").format(name=review.get("by"), reason=review.get("reason"))
    return ""


def _picture(address: str) -> Any:
    """Return the picture in a ``data:`` address; None where there is none."""
    head, _comma, content = address.partition(",")
    if head != "data:image/png;base64":
        return None
    try:
        png = base64.b64decode(content, validate=True)
    except binascii.Error:
        return None
    with tempfile.TemporaryDirectory() as folder:  # Qt reads bytes from Python up to the first zero alone
        file = Path(folder) / "picture.png"
        file.write_bytes(png)
        picture = qt.QPixmap(str(file))
    return None if picture.isNull() else picture
