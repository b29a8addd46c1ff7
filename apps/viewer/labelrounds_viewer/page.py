"""What the user sees: the round's buttons above, the case and the model on the left, four views, the segments right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trame.ui.vuetify3 import VAppLayout
from trame.widgets import client, html
from trame.widgets import vuetify3 as v3
from trame_server import Server
from trame_slicer.app.logic import LayoutButtonLogic, SegmentEditorLogic
from trame_slicer.app.ui import LayoutButton, SegmentEditorUI, SegmentEditorUndoRedoUI
from trame_slicer.core import SlicerApp

from .rounds import Rounds
from .state import GREEN

_FOUR_VIEWS = "Quad View"
_STYLE = """
html { overflow: hidden; }
.case { white-space: pre-line; }
.v-toolbar-title { flex: none; }
"""


class Page:
    """The page.

    Args:
        server: of the page.
        core: Slicer's core.
        rounds: what the buttons do.
    """

    def __init__(self, server: Server, core: SlicerApp, rounds: Rounds) -> None:
        self._server, self._state, self._rounds, self._name = server, server.state, rounds, rounds.name
        self._state.trame__title, self._state.trame__favicon = "LabelRounds", None
        self._layouts = LayoutButtonLogic(server, core)
        self._layouts.data.current_layout_id = _FOUR_VIEWS
        self._layouts.layout_manager.set_layout(_FOUR_VIEWS)
        editor = SegmentEditorLogic(server, core)
        editor.data.segment_display.show_3d = True
        name = rounds.name
        with VAppLayout(server, theme="dark") as self.layout:
            client.Style(_STYLE)
            self._bar()
            with v3.VNavigationDrawer(permanent=True, width=300, location="left"):
                self._case()
                self._model()
                self._training()
            with v3.VNavigationDrawer(permanent=True, width=350, location="right"):
                tools = html.Div(classes="tools d-flex px-3 pt-2")
                with html.Div(v_if=(name.image,), style="height: calc(100% - 45px);"):
                    editor_ui = SegmentEditorUI()
                with tools:
                    SegmentEditorUndoRedoUI(editor_ui, row=True)
                    LayoutButton()
            with v3.VMain(), html.Div(classes="d-flex flex-column", style="height: calc(100vh - 64px);"):
                v3.VAlert(
                    text=(name.trouble,),
                    v_if=(name.trouble,),
                    type="error",
                    density="compact",
                    classes="trouble flex-grow-0",
                    closable=True,
                    click_close=f"{name.trouble} = ''",
                )
                with html.Div(classes="flex-grow-1", style="min-height: 0;"):
                    self._layouts.layout_manager.initialize_layout_grid(self.layout)
            self._question()
            self._login()
        editor.set_ui(editor_ui)
        self._editor = editor

    def _bar(self) -> None:
        name, rounds = self._name, self._rounds
        with v3.VAppBar(density="comfortable") as bar:
            v3.VToolbarTitle("LabelRounds", classes="mr-2")
            self._button("Next case", "mdi-skip-next", rounds.next, "next")
            self._button("Segment", "mdi-auto-fix", rounds.segment, "segment", f"{name.busy} || !{name.image}")
            self._button(
                "Submit", "mdi-upload", rounds.submit, "submit", f"{name.busy} || !{name.image} || {name.classifies}"
            )
            self._button("Cancel", "mdi-close", rounds.cancel, "cancel", f"!{name.busy}")
            v3.VIcon("mdi-circle", color=(name.light,), size="small", classes="mx-3")
            html.Div(
                v_text=(name.sentence,),
                classes="sentence text-body-2 flex-grow-1",
                title=(name.sentence,),
                style="overflow: hidden; text-overflow: ellipsis; max-height: 3em;",
            )
            self._button("Connect", "mdi-refresh", rounds.connect, "connect")
            v3.VProgressLinear(
                v_if=(name.busy,),
                absolute=True,
                location="bottom",
                color=GREEN,
                indeterminate=(f"{name.part} === null",),
                model_value=(f"{name.part} || 0",),
            )
        self.bar = bar

    def _case(self) -> None:
        name, rounds = self._name, self._rounds
        with self._section("Case"):
            html.Div(v_text=(f"{name.image} || 'No case is open.'",), classes="image text-subtitle-1")
            html.Div(v_text=(name.reason,), classes="reason text-body-2")
            html.Div(v_text=(name.lease,), classes="lease text-caption")
            with html.Div(v_if=(name.in_hand,), classes="mt-2"):
                v3.VTextField(label="Put it aside, because", v_model=(name.aside_reason,), **_SMALL)
                self._button("For a day", "mdi-clock-outline", rounds.defer, "defer")
                self._button("For good", "mdi-cancel", rounds.skip, "skip")
            v3.VRangeSlider(
                v_if=(name.image,),
                label="Brightness",
                v_model=(name.brightness,),
                min=(f"{name.brightness_limits}[0]",),
                max=(f"{name.brightness_limits}[1]",),
                step=(f"({name.brightness_limits}[1] - {name.brightness_limits}[0]) / 500",),
                hide_details=True,
            )
        with self._section("Next cases"):
            v3.VSelect(label="Strategy", v_model=(name.strategy,), items=(name.strategies,), **_SMALL)
            v3.VCheckbox(label="Segment each at once", v_model=(name.segment_next,), **_SMALL)
            with html.Div(classes="d-flex align-center mt-2"):
                v3.VAutocomplete(label="Or one of these", v_model=(name.chosen_image,), items=(name.images,), **_SMALL)
                self._button("Open", "mdi-folder-open", rounds.open, "open", f"{name.busy} || !{name.chosen_image}")

    def _model(self) -> None:
        name, rounds = self._name, self._rounds
        with self._section("Model"):
            v3.VSelect(label="Model", v_model=(name.model,), items=(name.models,), **_SMALL)
            with html.Div(v_if=(f"{name.classes}.length",), classes="mt-2"):
                with v3.VRadioGroup(v_model=(name.chosen_class,), hide_details=True):
                    v3.VRadio(
                        v_for=f"one in {name.classes}",
                        key="one.name",
                        label=("one.name + ', ' + one.percent",),
                        value=("one.name",),
                    )
                self._button("Submit this class", "mdi-upload", rounds.submit_class, "submit-class")

    def _training(self) -> None:
        name = self._name
        with self._section("Training"):
            self._button(
                f"{{{{ {name.trains} ? 'Stop training' : 'Train' }}}}", "mdi-school", self._rounds.train, "train"
            )
            v3.VProgressLinear(
                v_if=(name.trains,), model_value=(name.training_part,), color=GREEN, height=6, classes="my-2"
            )
            html.Div(v_text=(name.training,), classes="training text-body-2")

    def _question(self) -> None:
        name, rounds = self._name, self._rounds
        with v3.VDialog(model_value=(f"!!{name.question}",), persistent=True, max_width=520), v3.VCard():
            v3.VCardText(v_text=(name.question,), classes="question")
            with v3.VCardActions(classes="justify-end"):
                v3.VBtn(
                    "{{ choice }}",
                    v_for=f"(choice, place) in {name.choices}",
                    key="place",
                    variant="tonal",
                    click=(rounds.answer, "[place]"),
                )
                v3.VBtn("Cancel", click=(rounds.answer, "[-1]"))

    def _login(self) -> None:
        name, rounds = self._name, self._rounds
        self._state.client_only("login_name", "login_key")
        self._state.login_name = self._state.login_key = ""
        log_in = self._server.trigger_name(rounds.log_in)
        send = f"trigger('{log_in}', [login_name, login_key]); login_key = ''"
        with v3.VDialog(model_value=(f"!!{name.login_why}",), persistent=True, max_width=420), v3.VCard(title="Log in"):
            with v3.VCardText(classes="login"):
                html.Div(v_text=(name.login_why,), classes="mb-3")
                v3.VTextField(label="User name", v_model=("login_name", ""), autocomplete="username", **_SMALL)
                v3.VTextField(
                    label="Key or password",
                    v_model=("login_key", ""),
                    type="password",
                    autocomplete="current-password",
                    keyup_enter=send,
                    **_SMALL,
                )
            with v3.VCardActions(classes="justify-end"):
                v3.VBtn("Log in", variant="tonal", click=send, disabled=("!login_name || !login_key",))
                v3.VBtn("Cancel", click=rounds.drop_login)

    def _section(self, title: str) -> Any:
        html.Div(title, classes="text-overline px-3 pt-2")
        return html.Div(classes="px-3 pb-2")

    def _button(self, text: str, icon: str, click: Callable[[], None], what: str, disabled: str | None = None) -> None:
        v3.VBtn(
            text,
            prepend_icon=icon,
            click=click,
            disabled=(self._name.busy if disabled is None else disabled,),
            variant="tonal",
            size="small",
            classes=f"{what} mx-1 my-1",
        )


_SMALL = {"density": "compact", "hide_details": True, "variant": "outlined", "classes": "mt-2"}
