"""A crew whose workers are processes of Ray's, on this machine or on those of a cluster.

A worker's process loads the model once, then gets cases, `fleet.AT_ONCE` at a time. One that ends, or whose machine is
lost, is started anew, where Ray finds room; its cases come back as lost. Of a case only its paths and its figures go
through Ray, never voxels.
"""

import time
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

from labelrounds.errors import Conflict
from labelrounds.fleet import AT_ONCE, Crew, Lost
from labelrounds.fleet_work import Case, Order, Outcome, RayWorker
from labelrounds.ray_cluster import cluster, share_out

_STARTS = 3  # that may fail one after the other before the run is given up
_START_S, _LONGEST_S = 600.0, 3600.0


@dataclass(eq=False)
class _Worker:
    """A worker and what it has in hand, by Ray's reference, with when it was given; ``loading`` until it is ready."""

    handle: Any
    loading: Any
    in_hand: dict[Any, tuple[Case, float]] = field(default_factory=dict)
    alone: bool = False

    def has_room(self, alone: bool) -> bool:
        return self.loading is None and not self.alone and len(self.in_hand) < (1 if alone else AT_ONCE)


class RayCrew(Crew):
    """Workers on Ray.

    Args:
        order: what each does.
        address: of Ray; see `ray_cluster.cluster`.
        workers: how many; by the cluster's GPUs and cores where it is None.

    Raises:
        BadInput: no such address, more workers than cores, the extra is missing.
        Conflict: the cluster can't be joined.
    """

    def __init__(self, order: Order, address: str, workers: int | None) -> None:
        self._stack = ExitStack()
        try:
            self._ray = self._stack.enter_context(cluster(address))
            found = self._ray.cluster_resources()
            self.share = share_out(int(found.get("CPU", 0)), int(found.get("GPU", 0)), workers, order.device)
            device = "cuda" if self.share.gpus else "cpu"
            self._order = self._ray.put(replace(order, device=device, threads=self.share.cores))
            self._workers: list[_Worker] = []
            self._starts, self._idle_since = 0, time.monotonic()
            for _ in range(self.share.workers):
                self._start()
        except BaseException:
            self._stack.close()
            raise

    def has_room(self, alone: bool = False) -> bool:
        """See `Crew`."""
        return any(worker.has_room(alone) for worker in self._workers)

    def give(self, case: Case, alone: bool = False) -> None:
        """See `Crew`."""
        able = [worker for worker in self._workers if worker.has_room(alone)]
        worker = min(able, key=lambda worker: len(worker.in_hand))
        worker.alone = alone
        worker.in_hand[worker.handle.do.remote(case)] = (case, time.monotonic())

    def ended(self, timeout_s: float) -> list[Outcome | Lost]:
        """See `Crew`."""
        waiting = [ref for worker in self._workers for ref in (*worker.in_hand, worker.loading) if ref is not None]
        done, _ = self._ray.wait(waiting, num_returns=1, timeout=timeout_s)
        if done:  # and whatever else has ended by now
            done, _ = self._ray.wait(waiting, num_returns=len(waiting), timeout=0)
        found: list[Outcome | Lost] = []
        for worker in list(self._workers):
            found += self._looked_after(worker, set(done))
        self._check_somebody_works()
        return found

    def close(self) -> None:
        """See `Crew`."""
        for worker in self._workers:
            self._ray.kill(worker.handle)
        self._workers = []
        self._stack.close()

    def _start(self) -> None:
        options = {"num_cpus": self.share.cores, "num_gpus": self.share.gpus, "max_concurrency": AT_ONCE}
        handle = self._ray.remote(**options)(RayWorker).remote()
        self._workers.append(_Worker(handle, handle.load.remote(self._order)))

    def _looked_after(self, worker: _Worker, done: set[Any]) -> list[Outcome | Lost]:
        """Return what has ended of a worker's cases, and replace a worker that has."""
        found: list[Outcome | Lost] = []
        try:
            if worker.loading in done:
                self._begun(worker)
            for ref in [ref for ref in worker.in_hand if ref in done]:
                case = worker.in_hand[ref][0]
                try:
                    found.append(self._ray.get(ref))
                except self._ray.exceptions.RayTaskError as error:
                    found.append(Outcome(case, reason=_last_line(error)))
                del worker.in_hand[ref]
                worker.alone, self._starts = False, 0
        except self._ray.exceptions.RayError as error:
            found += self._replaced(worker, _last_line(error))
        oldest = min((since for _, since in worker.in_hand.values()), default=time.monotonic())
        if worker in self._workers and time.monotonic() - oldest > _LONGEST_S:
            found += self._replaced(worker, f"no answer within {_LONGEST_S:.0f} s")
        return found

    def _begun(self, worker: _Worker) -> None:
        obstacle = self._ray.get(worker.loading)
        if obstacle:
            raise Conflict(obstacle)
        worker.loading = None

    def _replaced(self, worker: _Worker, reason: str) -> list[Outcome | Lost]:
        """Start another worker, and return the cases that were lost with one."""
        if worker.loading is not None:
            self._starts += 1
            if self._starts >= _STARTS:
                raise Conflict(f"{self._starts} workers in a row ended while they loaded the model: {reason}")
        self._workers.remove(worker)
        self._ray.kill(worker.handle)
        self._start()
        return [Lost(case, reason) for case, _ in worker.in_hand.values()]

    def _check_somebody_works(self) -> None:
        now = time.monotonic()
        if any(worker.loading is None for worker in self._workers):
            self._idle_since = now
        if now - self._idle_since > _START_S:
            raise Conflict(
                f"no worker has started within {_START_S:.0f} s: Ray has no room for one of {self.share.cores} core(s)"
                f" and {self.share.gpus:g} GPU(s); ask for more --workers, which are smaller, or free the cluster"
            )


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__
