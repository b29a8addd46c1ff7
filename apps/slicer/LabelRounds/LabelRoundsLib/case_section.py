"""The panel's section on a round: handing out the next case, keeping it or putting it aside, opening it again."""

from __future__ import annotations

from typing import Any

from .case_in_hand import CaseInHand
from .client import Case
from .lights import GREEN
from .section import Section
from .translation import _

_DEFER_H, _LEASE_EVERY_S = 24.0, 30.0


class CaseSection(Section):
    """Opens cases, and keeps the one in hand for as long as it is open."""

    def __init__(self, panel: Any) -> None:
        super().__init__(panel)
        self._hand: CaseInHand | None = None

    def slots(self) -> dict[str, Any]:
        """Return what each button does."""
        return {
            "nextButton": self.on_next,
            "reopenButton": self.on_reopen,
            "deferButton": lambda: self._put_aside(_DEFER_H),
            "skipButton": lambda: self._put_aside(None),
        }

    def on_next(self) -> None:
        """Open the next case."""
        self.panel.connected(self._next)

    def on_reopen(self) -> None:
        """Open a submitted case again."""
        self.panel.connected(self._reopen)

    def connected(self) -> None:
        """Look which cases can be opened again; a case in hand whose lease is due is renewed at once."""
        self.panel.lookout.hasten("lease")

        def found(images: list[str]) -> None:
            self.ui.labelledBox.clear()
            self.ui.labelledBox.addItems(images)
            self.panel.refresh()

        self.panel.lookout.ask("labelled", self.panel.logic.client.labelled, found)

    def tick(self) -> None:
        """Keep the case in hand while it is open."""
        hand, lookout, client = self._hand, self.panel.lookout, self.panel.logic.client
        if hand is not None:
            if not self.panel.logic.is_open(hand.case.image):
                self._hand = None
            elif hand.should_be_kept() and lookout.is_due("lease", _LEASE_EVERY_S):
                lookout.ask("lease", lambda call: hand.keep(client, call), lambda outcome: self._kept(hand, outcome))
        self._show()

    def _kept(self, hand: CaseInHand, outcome: float | str) -> None:
        """Note for how long a case is the user's again, or say that others have it, as after a lost connection."""
        if isinstance(outcome, float):
            hand.kept(outcome)
        elif hand is self._hand:
            self._hand = None
            self.panel.warn(outcome)

    def refresh(self, busy: bool) -> None:
        """Enable what can be clicked now."""
        self.ui.reopenButton.setEnabled(not busy and self.ui.labelledBox.count > 0)
        for button in (self.ui.skipButton, self.ui.deferButton):
            button.setEnabled(not busy and self._hand is not None)
        self._show()

    def submitted(self, image: str, ends_case: bool) -> None:
        """Note that something was submitted, which may leave a case in hand."""
        if ends_case and self._hand is not None and self._hand.case.image == image:
            self._hand = None
        self.panel.rounds.opened(image, "")
        self.connected()

    def _show(self) -> None:
        hand = self._hand
        self.ui.caseLabel.setText("" if hand is None else hand.reason())
        self.ui.leaseLabel.setText("" if hand is None else hand.lease())

    def _next(self) -> None:
        strategy, model = self.ui.strategyBox.currentText or "auto", self.panel.model_of_rounds()
        logic = self.panel.logic
        self.panel.start(
            _("Fetching the next case"), lambda *ends: logic.next_case(strategy, model, *ends), self._opened
        )

    def _opened(self, case: Case | str, volume: Any) -> None:
        if volume is None:
            self._hand = None
            return self.panel.say(GREEN, case or _("There is no case left to label."))
        self._hand = CaseInHand(case)
        self.panel.rounds.look()
        reason = case.told.get("reason", "")
        self.panel.say(GREEN, _("{image}: {reason}.").format(image=case.image, reason=reason))
        if case.label is not None:
            self.panel.editor.open(self.panel.editor.segmentation_of(volume))
        elif self.ui.segmentNextBox.checked:
            self.panel.on_segment()

    def _reopen(self) -> None:
        image, logic = self.ui.labelledBox.currentText, self.panel.logic
        self.panel.start(_("Opening"), lambda *ends: logic.reopen(image, *ends), self._reopened)

    def _reopened(self, case: Case, volume: Any, node: Any) -> None:
        self._hand = None
        self.panel.editor.open(node)
        self.panel.rounds.opened(case.image, case.told["sha256"])
        self.panel.say(GREEN, _("{image} is open with its submitted label.").format(image=case.image))

    def _put_aside(self, hours: float | None) -> None:
        if self._hand is None:
            return
        image, reason, client = self._hand.case.image, self.ui.reasonEdit.text, self.panel.logic.client

        def over(_none: Any) -> None:
            self._hand = None
            self.ui.reasonEdit.setText("")
            self.panel.say(GREEN, _("{image} is put aside.").format(image=image))
            self.panel.rounds.look()

        self.panel.request(_("Putting aside"), lambda call: client.put_aside(image, reason, hours, call), over)
