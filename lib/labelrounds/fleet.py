"""Cases worked off by a crew of workers, each once, whatever becomes of a worker.

The driver hands a case to a worker that has room, and no further one until it has: so a case is read when it is
computed soon, and a million of them take no memory (back-pressure). A worker that is lost is replaced by its crew; the
cases that it had in hand are done again when all others are, each alone on a worker, so that the one that kills its
worker shows. After `MOST_ATTEMPTS` it counts as failed, and the run goes on.

Concurrency
    The driver is one thread, and the only one that keeps results; of a case the first outcome counts.

Crash
    An outcome is kept by whom it is handed to (`archive_manifest.py`, the store of scores). A stop, by Ctrl-C or
    SIGTERM, hands out nothing more, lets the running cases end for a while, and keeps them.
"""

import signal
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field

from labelrounds.errors import BadInput, OutOfSpace
from labelrounds.fleet_work import Case, Order, Outcome, Work, attempt

MOST_ATTEMPTS = 3
AT_ONCE = 2  # cases in a worker's hands: one is read or written while another computes
_POLL_S, _GRACE_S, _SHOWN_EVERY_S = 0.5, 20.0, 5.0
_SURE_S = 2.0  # of a run, before it is said how long the rest will take
_TWICE_S = 0.5  # within which a second signal is the same one: `timeout` sends it to the process and to its group


@dataclass(frozen=True)
class Lost:
    """A case whose worker was lost while it had it in hand.

    Attributes:
        reason: what is known of the worker's end.
    """

    case: Case
    reason: str = ""


class Crew(ABC):
    """Workers that have a model in memory."""

    @abstractmethod
    def has_room(self, alone: bool = False) -> bool:
        """Tell whether a worker takes another case; one that has none in hand, where ``alone``."""

    @abstractmethod
    def give(self, case: Case, alone: bool = False) -> None:
        """Hand a case to a worker that has room; where ``alone``, it gets no other until it has ended."""

    @abstractmethod
    def ended(self, timeout_s: float) -> list[Outcome | Lost]:
        """Wait until a case has ended, no longer than so, and return all that have.

        Raises:
            LabelRoundsError: no worker can begin.
        """

    @abstractmethod
    def close(self) -> None:
        """End the workers at once."""


class LocalCrew(Crew):
    """This process as the only worker."""

    def __init__(self, work: Work, stop: threading.Event) -> None:
        self._work, self._stop = work, stop
        self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="case")
        self._running: set[Future[Outcome]] = set()

    def has_room(self, alone: bool = False) -> bool:
        """See `Crew`."""
        return len(self._running) < (1 if alone else AT_ONCE)

    def give(self, case: Case, alone: bool = False) -> None:
        """See `Crew`."""
        self._running.add(self._threads.submit(attempt, self._work, case, self._stop.is_set))

    def ended(self, timeout_s: float) -> list[Outcome | Lost]:
        """See `Crew`."""
        done, self._running = wait(self._running, timeout_s, FIRST_COMPLETED)
        return [future.result() for future in done]

    def close(self) -> None:
        """See `Crew`."""
        self._threads.shutdown(wait=True, cancel_futures=True)


MakeCrew = Callable[[Order, threading.Event], Crew]


def crew_of(ray: str, workers: int | None) -> MakeCrew:
    """Return what makes a crew: on Ray, or where no address is given, in this process.

    Raises:
        BadInput: workers, and no Ray.
    """
    if workers is not None and not ray:
        raise BadInput("--workers goes with --ray: without it all is done in this process")

    def make(order: Order, stop: threading.Event) -> Crew:
        if not ray:
            return LocalCrew(order.begin(), stop)
        from labelrounds.fleet_ray import RayCrew

        return RayCrew(order, ray, workers)

    return make


@dataclass
class Tally:
    """How a run has gone.

    Attributes:
        of: how many cases there are.
        done: how many have a result.
        failed: how many have none, with a reason.
        lost: how many times a case was lost with its worker.
        seconds: how long it took.
    """

    of: int
    done: int = 0
    failed: int = 0
    lost: int = 0
    seconds: float = 0.0

    def losses(self) -> str:
        """Return a clause on the workers that were lost; "" where there was none."""
        return f", {self.lost:,} time(s) a case was lost with its worker" if self.lost else ""


@dataclass
class Progress:
    """Says every few seconds how far a run is.

    Attributes:
        tally: how far it is.
        say: gets a line.
    """

    tally: Tally
    say: Callable[[str], None]
    _ends: deque[float] = field(default_factory=lambda: deque(maxlen=200))
    _shown: float = 0.0
    _began: float = 0.0

    def begin(self) -> None:
        """Count from now on."""
        self._began = time.monotonic()
        self._ends.append(self._began)

    def ended(self, done: bool = True) -> None:
        """Take in that a case has ended; those without a result are quick, and tell nothing of the others."""
        now = time.monotonic()
        if done:
            self._ends.append(now)
        if now - self._shown >= _SHOWN_EVERY_S:
            self._shown = now
            self.say(self.line())

    def line(self) -> str:
        """Return how many are done, how fast they are, and how long the others will take."""
        tally, ended = self.tally, self.tally.done + self.tally.failed
        failed = f", {tally.failed} without a result" if tally.failed else ""
        passed = max(self._ends[-1] - self._ends[0], 1e-9)
        if self._ends[-1] - self._began < _SURE_S:
            return f"{ended:,} of {tally.of:,}{failed}"
        rate = (len(self._ends) - 1) / passed
        pace = f"{rate * 60:,.0f}" if rate * 60 >= 100 else f"{rate * 60:.3g}"
        left = f", {pace} a minute, {duration((tally.of - ended) / rate)} left"
        return f"{ended:,} of {tally.of:,}{failed}{left}"


def work_off(
    crew: Crew,
    cases: Iterable[Case],
    of: int,
    take: Callable[[Outcome], None],
    stop: threading.Event,
    say: Callable[[str], None] | None = None,
) -> Tally:
    """Hand cases to a crew, and each one's outcome to ``take``, once; the crew is ended at the end.

    Args:
        crew: the workers.
        cases: what to do; taken one by one, as there is room.
        of: how many they are.
        take: keeps an outcome.
        stop: set to end early.
        say: gets a line on the progress now and then; on the terminal when None.

    Raises:
        OutOfSpace: the results can't be written.
        LabelRoundsError: no worker can begin.
    """
    run = _Run(crew, iter(cases), take, stop, Progress(Tally(of), say or _on_terminal))
    try:
        return run.to_end()
    finally:
        crew.close()


class _Run:
    """One run's state: what waits, what is in hand, what was tried how often."""

    def __init__(
        self,
        crew: Crew,
        cases: Iterator[Case],
        take: Callable[[Outcome], None],
        stop: threading.Event,
        progress: Progress,
    ) -> None:
        self._crew, self._cases, self._take, self._stop = crew, cases, take, stop
        self._progress, self._tally = progress, progress.tally
        self._next: Case | None = next(cases, None)
        self._suspects: deque[Case] = deque()
        self._attempts: dict[str, int] = {}
        self._in_hand: set[str] = set()
        self._halted = ""

    def to_end(self) -> Tally:
        started, stopped_at = time.monotonic(), 0.0
        self._progress.begin()
        while self._in_hand or (not self._stop.is_set() and (self._next or self._suspects)):
            if not self._stop.is_set():
                self._hand_out()
            else:
                stopped_at = stopped_at or time.monotonic()
                if time.monotonic() - stopped_at > _GRACE_S:
                    break
            for ended in self._crew.ended(_POLL_S):
                self._end(ended)
        self._tally.seconds = time.monotonic() - started
        if self._halted:
            raise OutOfSpace(self._halted)
        return self._tally

    def _hand_out(self) -> None:
        while self._next is not None and self._crew.has_room():
            self._give(self._next)
            self._next = next(self._cases, None)
        while self._next is None and self._suspects and self._crew.has_room(alone=True):
            self._give(self._suspects.popleft(), alone=True)

    def _give(self, case: Case, alone: bool = False) -> None:
        self._in_hand.add(case.key)
        self._crew.give(case, alone)

    def _end(self, ended: Outcome | Lost) -> None:
        key = ended.case.key
        if key not in self._in_hand:
            return
        self._in_hand.remove(key)
        if isinstance(ended, Lost):
            self._tally.lost += 1
            attempts = self._attempts[key] = self._attempts.get(key, 0) + 1
            if attempts < MOST_ATTEMPTS:
                self._suspects.append(ended.case)
                return
            reason = f"its worker ended {attempts} times while it had it in hand: {ended.reason or 'killed'}"
            ended = Outcome(ended.case, reason=reason, unusable=True)
        if ended.cancelled:
            return
        if ended.halts:
            self._halted = ended.reason
            self._stop.set()
            return
        self._take(ended)
        self._tally.done += not ended.reason
        self._tally.failed += bool(ended.reason)
        self._progress.ended(not ended.reason)


def duration(seconds: float) -> str:
    """Return a time as people say it: seconds, minutes, hours or days."""
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.0f} s"


@contextmanager
def stopped_by_signals() -> Iterator[threading.Event]:
    """Give an event that Ctrl-C and SIGTERM set; a second Ctrl-C ends at once."""
    stop, asked = threading.Event(), 0.0

    def ask(number: int, frame: object) -> None:
        nonlocal asked
        if stop.is_set():
            if number == signal.SIGINT and time.monotonic() - asked > _TWICE_S:
                print("ended at once; what is done is kept: run the same again to go on", file=sys.stderr, flush=True)
                raise KeyboardInterrupt
            return
        asked = time.monotonic()
        print("stopping: what runs is ended first; Ctrl-C once more to end at once", file=sys.stderr, flush=True)
        stop.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _on_terminal(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
