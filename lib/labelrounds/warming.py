"""Make ready at a server's start what its first requests would else wait for.

That is ITK's import and, on each device that requests go to unasked, the weights of each served model and a first
computation with them, for which libraries choose what is fastest and lay out memory. One thread does this, in the
background of the users' requests (`engine.py`), which wait for no more than the window that is just computed.

Of the models, in their order, so many are made ready as have weights of a tenth of a device's free memory; those of the
others are loaded when they are first asked for.
"""

import logging
import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import Protocol

import torch

from labelrounds.devices import choose_devices, free_bytes
from labelrounds.errors import Cancelled, LabelRoundsError
from labelrounds.reading import make_ready

logger = logging.getLogger(__name__)

_SHARE_OF_FREE = 0.1
_AFTER_S = 1.0  # of the server's start, whose end would wait for ITK
_CLOSING_S = 5.0


class Served(Protocol):
    """What is asked of a model; `inferer.SegmentationInferer` has it."""

    def weights_bytes(self) -> int:
        """Return the size of the weights that are served, 0 where there are none."""

    def warm_up(self, device: torch.device) -> None:
        """Load the weights and compute with them; raises `Cancelled` where a user's request is in the way."""


class WarmUp:
    """The thread that makes a server's models ready.

    Args:
        models: by their names.
    """

    def __init__(self, models: Mapping[str, Served]) -> None:
        self._models = models
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, name="warm-up", daemon=True)

    def start(self) -> None:
        """Begin in a moment; returns at once."""
        self._thread.start()

    def close(self) -> None:
        """Begin nothing more; wait a few seconds for the end of what is under way."""
        self._closed.set()
        if self._thread.ident is not None:
            self._thread.join(_CLOSING_S)

    def _work(self) -> None:
        if self._closed.wait(_AFTER_S):
            return
        self._attempt("reading", make_ready)
        for device in choose_devices():
            room = free_bytes(device) * _SHARE_OF_FREE
            for name, model in self._models.items():
                size = model.weights_bytes()
                if not size:
                    continue
                room -= size
                if room < 0:
                    logger.info("Not made ready on %s: %s and what follows, for want of memory", device, name)
                    break
                self._attempt(f"{name} on {device}", partial(model.warm_up, device))

    def _attempt(self, what: str, step: Callable[[], object]) -> None:
        """Take a step, again whenever users' requests were in its way; what fails is the first request's to tell."""
        while not self._closed.is_set():
            try:
                step()
            except Cancelled:
                continue
            except LabelRoundsError as error:
                logger.info("Not made ready: %s: %s", what, error)
            except Exception:
                logger.exception("Not made ready: %s", what)
            else:
                logger.info("Made ready: %s", what)
            return
