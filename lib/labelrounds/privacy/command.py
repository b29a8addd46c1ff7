"""``labelrounds deidentify`` on the terminal: its options checked, its progress shown, its end told."""

from pathlib import Path

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

from labelrounds.errors import BadInput
from labelrounds.privacy.pseudonyms import Pseudonyms, key_of
from labelrounds.privacy.run import FAILED, Wishes, run

_DATES = ("remove", "shift")
_INTERRUPTED = 130


def deidentify(
    source: Path, output: Path, report: Path | None, secret: Path | None, dates: str, with_burned_in: bool
) -> int:
    """De-identify and return the exit status: 0, 1 where a file could not be read, 130 after Ctrl-C.

    Raises:
        LabelRoundsError: what `labelrounds.privacy.run.run` raises; a wrong value of an option.
    """
    if dates not in _DATES:
        raise BadInput(f"dates {dates!r} is not one of {', '.join(_DATES)}")
    report = report or output.expanduser().resolve().with_name(f"{output.expanduser().resolve().name}-report.csv")
    pseudonyms = Pseudonyms(key_of(secret.expanduser()) if secret else None)
    wishes = Wishes(pseudonyms, dates == "shift", with_burned_in)
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    try:
        with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
            bar = shown.add_task("De-identifying", total=None)
            tally = run(source, output, report, wishes, lambda at, of: shown.update(bar, completed=at, total=of))
    except KeyboardInterrupt:
        again = "the same again goes on from here" if secret else "without --secret, a new run begins from nothing"
        print(f"Ended; what was written is whole, and in {report}; {again} (with another --report)")
        return _INTERRUPTED
    print(f"{tally}; what was done to each file, and why not: {report}")
    return 1 if tally.ends[FAILED] else 0
