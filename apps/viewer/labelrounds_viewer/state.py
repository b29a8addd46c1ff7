"""What the page shows: plain data that the process and the browser share."""

from __future__ import annotations

from dataclasses import dataclass, field

GREY, GREEN, YELLOW, RED = "grey", "#43a047", "#f9a825", "#e53935"


@dataclass
class RoundsState:
    """The page's state; a field is what one of its parts shows or takes.

    Attributes:
        light: the colour of the server's light.
        sentence: what was done last, or is being done.
        trouble: what went wrong, in a sentence; empty where nothing did.
        part: the part of the request that is done, 0 to 100; None while the server computes.
        images: of the server, each with its id and whether it is labelled.
        training: epoch, Dice and time left; empty where none was seen.
        classes: what a model that classifies says, each with its probability.
        question: what is asked before something is done, with one button for each of the choices.
        login_why: why a login is asked for; empty where it isn't.
    """

    address: str = ""
    light: str = GREY
    sentence: str = ""
    trouble: str = ""
    busy: bool = False
    part: float | None = None
    models: list[str] = field(default_factory=list)
    model: str = ""
    strategies: list[dict] = field(default_factory=list)
    strategy: str = "auto"
    segment_next: bool = False
    images: list[dict] = field(default_factory=list)
    chosen_image: str | None = None
    image: str = ""
    reason: str = ""
    lease: str = ""
    in_hand: bool = False
    aside_reason: str = ""
    brightness: list[float] = field(default_factory=lambda: [0.0, 1.0])
    brightness_limits: list[float] = field(default_factory=lambda: [0.0, 1.0])
    training: str = ""
    training_part: float = 0.0
    trains: bool = False
    classifies: bool = False
    classes: list[dict] = field(default_factory=list)
    chosen_class: str = ""
    question: str = ""
    choices: list[str] = field(default_factory=list)
    login_why: str = ""
