"""OpenVINO, an extra (``pip install 'labelrounds[openvino]'``): on CPUs, above all those without bfloat16.

One window at a time: a shape that is fixed is compiled once and best, and a window keeps all cores busy.
"""

import contextlib
import copy
import importlib
import io
import logging
import sys
from importlib import util
from typing import Any

import torch

from labelrounds.atomic import flush
from labelrounds.errors import Conflict
from labelrounds.runtimes.base import Runtime, Subject, runtimes

_EXTRA = "pip install 'labelrounds[openvino]'"
_QUANTISED = "openvino_int8.xml"


@runtimes.register("openvino")
class OpenVINO(Runtime):
    """Float32 or bfloat16, as OpenVINO chooses for the processor."""

    instant = False
    any_size = False

    @classmethod
    def obstacle(cls, device: torch.device) -> str | None:
        """Return why not: another device than a CPU, or not installed."""
        if device.type != "cpu":
            return "it is for CPUs alone"
        return None if util.find_spec("openvino") else f"openvino is not installed: {_EXTRA}"

    def __init__(self, subject: Subject) -> None:
        options = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "PERFORMANCE_HINT": "LATENCY"}
        compiled = _imported("openvino").Core().compile_model(self._model(subject), "CPU", options)
        self._request = compiled.create_infer_request()

    def __call__(self, windows: torch.Tensor) -> torch.Tensor:
        """Return the logits, float32."""
        return torch.cat([torch.from_numpy(self._infer(window)) for window in windows.split(1)])

    def _infer(self, window: torch.Tensor) -> Any:
        return self._request.infer([window.numpy()], share_inputs=True)[0]

    def _model(self, subject: Subject) -> Any:
        """Return the network as OpenVINO's model for one window."""
        window = torch.zeros(1, subject.config.channels, *subject.config.patch_size)
        with torch.inference_mode():
            traced = torch.jit.trace(copy.deepcopy(subject.network).eval(), window, check_trace=False)
        # What `openvino.convert_model` does, but for setting the level of all logs of the process meanwhile.
        frontend = _imported("openvino.frontend").FrontEndManager().load_by_framework("pytorch")
        decoding = _imported("openvino.frontend.pytorch.ts_decoder").TorchScriptPythonDecoder
        decoder = decoding(traced, example_input=window)  # of which OpenVINO counts no reference: it must outlive this
        model = frontend.convert(frontend.load(decoder))
        model.reshape([*window.shape])
        return model


@runtimes.register("openvino_int8")
class OpenVINOInt8(OpenVINO):
    """8-bit integers, calibrated on training windows when a version is published, and kept beside it."""

    @classmethod
    def obstacle(cls, device: torch.device) -> str | None:
        """Return why not: another device than a CPU, or not installed."""
        missing = None if util.find_spec("nncf") else f"nncf is not installed: {_EXTRA}"
        return super().obstacle(device) or missing

    def _model(self, subject: Subject) -> Any:
        file = subject.folder / _QUANTISED
        openvino = _imported("openvino")
        if not file.is_file():
            openvino.save_model(self._quantised(subject), file, compress_to_fp16=False)
            flush(file)
            flush(file.with_suffix(".bin"))
        return openvino.Core().read_model(file)

    def _quantised(self, subject: Subject) -> Any:
        if not subject.windows:
            raise Conflict("there is no training case to calibrate it with: it is made when a version is published")
        model = super()._model(subject)
        nncf = _imported("nncf")
        logging.getLogger("nncf").setLevel(logging.ERROR)
        calibration = nncf.Dataset(subject.windows, lambda window: [window.numpy()])
        # Mixed: activations are not symmetric about 0, be it only by a PReLU. Its progress bar is not for our users.
        with contextlib.redirect_stdout(io.StringIO()):
            return nncf.quantize(
                model, calibration, preset=nncf.QuantizationPreset.MIXED, subset_size=len(subject.windows)
            )


def _imported(name: str) -> Any:
    """Import a module of the extra, without the one by which both would report their use to their makers."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    return importlib.import_module(name)
