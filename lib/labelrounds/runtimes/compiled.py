"""torch.compile's kernels, recorded as one CUDA graph: a GPU is told once what to do, not kernel by kernel.

One window at a time, as a graph is of a fixed shape.
"""

import os
from importlib import util

import torch

from labelrounds import folders
from labelrounds.devices import autocast
from labelrounds.networks.serving import for_inference
from labelrounds.runtimes.base import Runtime, Subject, runtimes

# CUDA's guide asks for a few calls before a recording: they compile, and choose cuDNN's algorithms.
_WARM_UPS = 3


@runtimes.register("compiled")
class Compiled(Runtime):
    """Mixed precision, compiled and recorded for one window."""

    instant = False
    any_size = False

    @classmethod
    def obstacle(cls, device: torch.device) -> str | None:
        """Return why not: another device than a GPU, or no Triton."""
        if device.type != "cuda":
            return "it is for CUDA devices alone"
        return None if util.find_spec("triton") else "triton, which torch.compile needs, is not installed"

    def __init__(self, subject: Subject) -> None:
        config, device = subject.config, subject.device
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folders.home() / "inductor"))
        # Kept, as the recording reads the weights where they lie.
        self._network = for_inference(subject.network, device, config.dimensions)
        forward = torch.compile(self._network, dynamic=False)
        self._window = torch.zeros(1, config.channels, *config.patch_size, device=device)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(device), torch.inference_mode(), autocast(device):
            stream = torch.cuda.Stream(device)
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UPS):
                    forward(self._window)
            torch.cuda.current_stream().wait_stream(stream)
            # Another thread may compute on the device meanwhile.
            with torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local"):
                self._logits = forward(self._window)

    def __call__(self, windows: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        logits = []
        for window in windows.split(1):
            self._window.copy_(window)
            self._graph.replay()
            logits.append(self._logits.clone())  # the next replay writes there again
        return torch.cat(logits)
