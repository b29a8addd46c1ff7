"""The state of the rounds (`labelrounds.round_state`) on a terminal: advice, queue, suspects, who agrees with whom.

Names and reasons come from users and files: they are shown as text, without markup and without control characters.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

_MOST_ROWS = 20
_HOLDS = {True: "holds", False: "does not hold", None: "too early"}


def round_tables(state: Mapping[str, Any]) -> RenderableType:
    """Return all that a terminal shows; parts without content are left out."""
    parts: list[RenderableType] = [Text(summary(state)), *_warnings(state), Text(""), *_advice(state)]
    for title, columns, rows in tables(state):
        if rows:
            parts += [Text(""), _table(title, columns, rows)]
    return Group(*parts)


def summary(state: Mapping[str, Any]) -> str:
    """Return in a sentence what the state is of."""
    cases, version = state["cases"], state["version"]
    served = "no version yet" if version is None else f"version {version}" if version else "the shipped version"
    scoring = state["scoring"]
    return printable(
        f"{state['model']}, {served}: {cases['labelled']} of {cases['images']} cases have a label,"
        f" {cases['candidates']} may be handed out by {state['strategy']!r}, {cases['in_hand']} in somebody's hands,"
        f" {cases['put_aside']} put aside; {scoring['scored']} of {scoring['of']} images scored."
    )


def tables(state: Mapping[str, Any]) -> list[tuple[str, Sequence[str], list[list[str]]]]:
    """Return title, column names and rows of each table that terminal and page have in common."""
    return [
        ("Versions", ("version", "labels", "score", "95 % interval", "cases", "judged by"), _points(state)),
        (
            "Random cases: prediction against correction",
            ("version", "Dice", "95 % interval", "cases"),
            [
                [str(each["version"]), number(each["dice"]), interval(each), str(each["cases"])]
                for each in state["curve"]["monitor"]
            ],
        ),
        (
            "Labels to look at again",
            ("image", "label", "score", "why"),
            [[each["image"], each["label"], number(each["score"]), each["reason"]] for each in state["suspects"]],
        ),
        (
            "Images that are there twice",
            ("image", "and", "cosine", "intensities", "patients"),
            [
                [*each["images"], number(each["cosine"]), number(each["correlation"]), _patients(each)]
                for each in state["duplicates"]
            ],
        ),
        (
            "Two annotators on one case",
            ("image", "annotators", "agreement", "second reading"),
            [
                [
                    each["image"],
                    " and ".join(each["annotators"]),
                    number(each["agreement"]),
                    "yes" if each["second"] else "no",
                ]
                for each in state["agreement"]["pairs"]
            ],
        ),
        (
            "In somebody's hands",
            ("image", "by", "since", "free in", "why"),
            [
                [each["image"], each["client"], clock(each["since"]), minutes(each["left_s"]), each["reason"]]
                for each in state["leases"]
            ],
        ),
        (
            "Put aside",
            ("image", "how", "by", "since", "why"),
            [
                [each["image"], each["kind"], each["client"], clock(each["time"]), each["reason"]]
                for each in state["aside"]
            ],
        ),
        (
            "Images that can't be read",
            ("image", "why"),
            [[each["image"], each["reason"]] for each in state["unreadable"]],
        ),
        (
            "The last of the ledger",
            ("when", "what", "image", "by", "Dice"),
            [
                [
                    clock(each["time"]),
                    str(each["event"]).replace("_", " "),
                    each["image"],
                    each["client"] or "",
                    number(each["dice"]),
                ]
                for each in reversed(state["ledger"])
            ],
        ),
    ]


def queue_rows(state: Mapping[str, Any]) -> list[list[str]]:
    """Return rank, image, score, why and what else there is to say of each case that comes next."""
    return [
        [str(each["rank"]), each["id"], number(each["score"]), each["reason"], notes(each)] for each in state["queue"]
    ]


def notes(queued: Mapping[str, Any]) -> str:
    """Return what there is to say of a queued case beside its reason."""
    return ", ".join(
        text for text, holds in (("drawn at random", queued["monitor"]), ("prediction ready", queued["ready"])) if holds
    )


def _points(state: Mapping[str, Any]) -> list[list[str]]:
    return [
        [
            str(each["version"]),
            str(each["labels"]),
            number(each["score"]),
            interval(each),
            str(each["cases"]),
            each["judged_by"],
        ]
        for each in state["curve"]["points"]
    ]


def _patients(pair: Mapping[str, Any]) -> str:
    named = [patient or "unknown" for patient in pair["patients"]]
    if pair["across_patients"]:
        return f"two: {named[0]} and {named[1]}"
    return named[0] if named[0] == named[1] else " and ".join(named)


def _warnings(state: Mapping[str, Any]) -> list[Text]:
    return [Text(f"! {printable(text)}", style="yellow") for text in state["warnings"]]


def _advice(state: Mapping[str, Any]) -> Iterable[RenderableType]:
    yield Text(printable(state["stop"]["sentence"]), style="bold")
    for reason in state["stop"]["reasons"]:
        yield Text(f"  {reason['name']}: {_HOLDS[reason['holds']]}. {printable(reason['sentence'])}")
    yield Text(printable(state["agreement"]["sentence"]))
    rows = queue_rows(state)
    if rows:
        yield Text("")
        yield _table("Next cases", ("", "image", "score", "why", ""), rows)


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    left = len(rows) - _MOST_ROWS
    table = Table(title=title, title_justify="left", caption=f"and {left} more" if left > 0 else None)
    for name in columns:
        table.add_column(name, overflow="fold")
    for row in rows[:_MOST_ROWS]:
        table.add_row(*(Text(printable(cell)) for cell in row))
    return table


def holds(reason: Mapping[str, Any]) -> str:
    """Return in words whether a reason to stop holds."""
    return _HOLDS[reason["holds"]]


def printable(text: object) -> str:
    """Return a text on one line, without what moves a cursor or turns a line round."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in str(text)).split())


def number(value: float | None) -> str:
    """Return a score with three digits."""
    return "-" if value is None else f"{value:.3f}"


def interval(of: Mapping[str, Any]) -> str:
    """Return both ends of an interval."""
    return "-" if of["low"] is None else f"{of['low']:.3f} to {of['high']:.3f}"


def clock(seconds: float | None) -> str:
    """Return a moment as this machine's clocks show it."""
    return "-" if seconds is None else datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")


def minutes(seconds: float | None) -> str:
    """Return a time in minutes."""
    return "-" if seconds is None else f"{max(0.0, seconds) / 60:.0f} min"
