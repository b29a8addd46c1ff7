"""The state of the rounds (`labelrounds.round_state`) as files: two pictures, and one page that holds everything.

The page is one file without a script, a font or an address, so that it can be sent and opened anywhere, also where a
browser may fetch nothing; its own policy forbids it to. Ids, labels and reasons come from users and files; they are
shown as text, whatever they hold.
"""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from labelrounds.atomic import write_bytes
from labelrounds.rounds_figures import DARK, draw_curve, draw_map, png
from labelrounds.rounds_tables import clock, holds, notes, number, printable, summary, tables

_MOST_ROWS = 100
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """
:root { color-scheme: light dark; --ink: #2b2b2b; --paper: #ffffff; --line: #dddddd; --soft: #f4f5f7; --note: #5f6368;
  --good: #00694d; --warn: #8a4b00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e4e4; --paper: #1b1d21; --line: #3a3d44; --soft: #25282e;
  --note: #a8adb5; --good: #4cc9a0; --warn: #f0b060; } }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 1000px;
  margin: 0 auto; padding: 1em; overflow-wrap: anywhere; }
h1 { font-size: 1.4em; line-height: 1.25; } h2 { font-size: 1.1em; margin: 2em 0 0.5em; }
.scroll img { display: block; width: 100%; min-width: 26em; max-width: 46em; height: auto; }
a { color: inherit; } .skip { position: absolute; left: -999em; } .skip:focus { position: static; }
.note { color: var(--note); } .warn { border-left: 4px solid var(--warn); padding-left: 0.8em; margin: 0.6em 0; }
.advice { background: var(--soft); border-radius: 8px; padding: 0.8em 1em; } .advice strong { font-size: 1.05em; }
.advice dt { font-weight: 600; margin-top: 0.6em; } .advice dd { margin: 0; }
.queue { list-style: none; padding: 0; display: grid; gap: 0.8em;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 19em), 1fr)); }
.queue li { display: flex; gap: 0.8em; background: var(--soft); border-radius: 8px; padding: 0.7em; }
.queue img, .blank { width: 96px; height: 96px; object-fit: contain; flex: none; background: #000; border-radius: 4px; }
.blank { color: #bbb; font-size: 0.8em; display: flex; align-items: center; text-align: center; padding: 0.5em; }
.queue p { margin: 0.15em 0; } .queue .id { font-weight: 600; }
.scroll { overflow-x: auto; } .scroll:focus { outline: 2px solid var(--note); }
table { border-collapse: collapse; min-width: 30em; width: 100%; overflow-wrap: normal; }
th, td { padding: 0.3em 0.8em 0.3em 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
td { max-width: 26em; overflow-wrap: break-word; font-variant-numeric: tabular-nums; }
"""


def write_rounds(folder: Path, state: Mapping[str, Any]) -> list[Path]:
    """Write ``curve.png``, ``map.png`` and ``rounds.html``, each whole or not at all.

    Args:
        folder: where they are written; it is made.
        state: of `labelrounds.round_state.state_of`.

    Returns:
        The files, the page last.

    Raises:
        OutOfSpace: the disk is full.
        Unwritable: the folder can't be written to.
    """
    pictures = {"curve": png(draw_curve(state)), "map": png(draw_map(state))}
    files = {folder / f"{name}.png": content for name, content in pictures.items()}
    files[folder / "rounds.html"] = page(state, pictures).encode("utf-8", "replace")
    folder.mkdir(parents=True, exist_ok=True)
    for path, content in files.items():
        write_bytes(path, content, durable=False)
    return list(files)


def page(state: Mapping[str, Any], pictures: Mapping[str, bytes] | None = None) -> str:
    """Return the page; ``pictures`` are the light ``curve`` and ``map`` where they are drawn already."""
    light = pictures or {"curve": png(draw_curve(state)), "map": png(draw_map(state))}
    dark = {"curve": png(draw_curve(state, DARK)), "map": png(draw_map(state, DARK))}
    title = f"Rounds of labelling: {_text(state['model'])}"
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{title}</title><style>{_STYLE}</style></head><body>",
        '<a class="skip" href="#queue">To the queue</a>',
        f"<header><h1>{title}</h1><p>{_text(summary(state))}</p>",
        f'<p class="note">As of {clock(state["time"])}.</p></header><main>',
        *(f'<p class="warn" role="note">{_text(warning)}</p>' for warning in state["warnings"]),
        _advice(state),
        _heading("curve", "What the labels have brought"),
        _picture("curve", _curve_in_words(state), light, dark),
        f'<p class="note">{_text(state["curve"]["band"])}.</p>',
        _heading("queue", "Next cases"),
        _queue(state),
        _heading("map", "The cases by what the model sees in them"),
        _picture("map", _map_in_words(state), light, dark),
        f'<p class="note">{_text(_map_note(state))}</p>',
        *_tables(state),
        "</main></body></html>",
        "",
    ]
    return "\n".join(parts)


def _text(value: object) -> str:
    return escape(printable(value))


def _heading(anchor: str, text: str) -> str:
    return f'<h2 id="{anchor}">{text}</h2>'


def _advice(state: Mapping[str, Any]) -> str:
    reasons = "".join(
        f"<dt>{_text(reason['name'])}: {holds(reason)}</dt><dd>{_text(reason['sentence'])}</dd>"
        for reason in state["stop"]["reasons"]
    )
    agreement = f'<p class="note">{_text(state["agreement"]["sentence"])}</p>'
    sentence = f"<strong>{_text(state['stop']['sentence'])}</strong>"
    return f'{_heading("advice", "Go on or stop?")}<div class="advice">{sentence}<dl>{reasons}</dl>{agreement}</div>'


def _picture(name: str, words: str, light: Mapping[str, bytes], dark: Mapping[str, bytes]) -> str:
    by_night = f'<source media="(prefers-color-scheme: dark)" srcset="{_address(dark[name])}">'
    picture = f'<picture>{by_night}<img alt="{_text(words)}" src="{_address(light[name])}"></picture>'
    return f'<div class="scroll" role="region" aria-label="{name}" tabindex="0">{picture}</div>'


def _address(content: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def _curve_in_words(state: Mapping[str, Any]) -> str:
    points = state["curve"]["points"]
    if not points:
        return "Budget curve: no version was trained and judged yet."
    said = ", ".join(
        f"version {each['version']} {number(each['score'])} with {each['labels']} labels" for each in points
    )
    return f"Budget curve, {state['curve']['measure']}: {said}."


def _map_in_words(state: Mapping[str, Any]) -> str:
    found = state["map"]["points"]
    counts = {
        kind: sum(point["kind"] == kind for point in found) for kind in ("labelled", "queued", "suspect", "taken")
    }
    return f"Map of {len(found)} cases: " + ", ".join(f"{count} {kind}" for kind, count in counts.items()) + "."


def _map_note(state: Mapping[str, Any]) -> str:
    found = state["map"]
    shown = "" if found["shown"] == found["of"] else f"; {found['shown']} of {found['of']} cases are shown"
    return (
        f"Principal components of the embeddings by {found['by']}: near each other lies what it takes for alike{shown}."
    )


def _queue(state: Mapping[str, Any]) -> str:
    if not state["queue"]:
        return "<p>No case is left to hand out.</p>"
    return f'<ol class="queue">{"".join(_card(each) for each in state["queue"])}</ol>'


def _card(queued: Mapping[str, Any]) -> str:
    picture = '<div class="blank" aria-hidden="true">no picture</div>'
    if str(queued.get("thumbnail") or "").startswith("data:image/png;base64,"):
        picture = f'<img alt="Middle slice of {_text(queued["id"])}" src="{escape(queued["thumbnail"])}">'
    score = [] if queued["score"] is None else [f"score {number(queued['score'])}"]
    more = _text(", ".join(text for text in (*score, notes(queued)) if text))
    return (
        f'<li>{picture}<div><p class="id">{queued["rank"]}. {_text(queued["id"])}</p><p>{_text(queued["reason"])}</p>'
        f'<p class="note">{more}</p></div></li>'
    )


def _tables(state: Mapping[str, Any]) -> list[str]:
    """Return a heading and a table of each kind that has rows."""
    parts = []
    for at, (title, columns, rows) in enumerate(tables(state)):
        if rows:
            parts += [_heading(f"table-{at}", _text(title)), _table(title, columns, rows)]
    return parts


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{_text(name)}</th>' for name in columns)
    body = "".join(f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in row)}</tr>" for row in rows[:_MOST_ROWS])
    left = len(rows) - _MOST_ROWS
    more = f'<p class="note">and {left} more</p>' if left > 0 else ""
    # A wide table is moved in a frame of its own, which the keyboard reaches.
    frame = f'<div class="scroll" role="region" aria-label="{_text(title)}" tabindex="0">'
    return f"{frame}<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>{more}"
