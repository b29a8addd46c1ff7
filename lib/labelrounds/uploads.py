"""Weights that an administrator brings: checked before anything of them is used, then published like a training's.

Safetensors alone, which hold tensors and no code. The first bytes are looked at before any library opens the file;
names, shapes and types of all tensors are compared with the configured network before one is loaded; a value that is
not finite is refused. How large it may be is the doors' to say, as of every file that is sent. Crash rule: what was
received lies in a hidden folder beside the versions until it is published, which is atomic
(`labelrounds.checkpoints`); after a kill an upload an hour or more later clears it.
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn

from labelrounds.atomic import PREFIX, disk_errors, remove_leftovers
from labelrounds.checkpoints import Checkpoints, Version
from labelrounds.compatibility import differences
from labelrounds.errors import BadInput, UnsupportedMedia
from labelrounds.history import checksum
from labelrounds.networks import build_network

_LONGEST_HEADER = 2**24
_PATIENCE_S = 20.0
_TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_TYPES |= {"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8}
_TYPES |= {"BOOL": torch.bool}


def publish_upload(
    checkpoints: Checkpoints, upload: IO[bytes], name: str, by: str, serve: bool = True
) -> tuple[Version, str]:
    """Publish uploaded weights as a new version.

    Args:
        checkpoints: of the model.
        upload: the file, at its beginning.
        name: what the client calls it, for messages.
        by: who uploads it, for the record.
        serve: whether it is served from now on.

    Returns:
        the version, and the SHA-256 of what was uploaded.

    Raises:
        UnsupportedMedia: not safetensors.
        BadInput: a cut or damaged file, or tensors that do not fit the network; the message names the first.
        Busy: another version was being published all the time.
        OutOfSpace: the disk is full; the version served before stays.
    """
    _check_beginning(upload.read(9), name)
    upload.seek(0)
    with _received(checkpoints, upload) as file:
        network = build_network(checkpoints.config)
        _check_tensors(file, network, name)
        tensors = load_file(file)
        if strange := sorted(key for key, value in tensors.items() if not bool(torch.isfinite(value).all())):
            raise BadInput(f"{name}: {strange[0]} holds values that are not finite")
        network.load_state_dict(tensors)
        del tensors
        digest = checksum(file)
        record = {"uploaded_by": by, "uploaded_sha256": digest, "policy": "upload"}
        return checkpoints.publish(network, record, lambda: serve, patience_s=_PATIENCE_S), digest


def _check_beginning(head: bytes, name: str) -> None:
    """Look at the first bytes: the length of a header in JSON, and its brace."""
    if head[:4] == b"PK\x03\x04" or head[:1] == b"\x80":
        raise UnsupportedMedia(f"{name}: a pickle or an archive, which can hold code; only safetensors are taken")
    if len(head) < 9 or head[8:9] != b"{" or not 2 <= int.from_bytes(head[:8], "little") <= _LONGEST_HEADER:
        raise UnsupportedMedia(f"{name}: the content is not safetensors")


@contextmanager
def _received(checkpoints: Checkpoints, upload: IO[bytes]) -> Iterator[Path]:
    with disk_errors(checkpoints.folder):
        checkpoints.folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(checkpoints.folder)
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=checkpoints.folder))
    try:
        file = folder / "upload.safetensors"
        with disk_errors(file), file.open("wb") as target:
            shutil.copyfileobj(upload, target)
        yield file
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _check_tensors(file: Path, network: nn.Module, name: str) -> None:
    """Compare what a file's header claims with a network, before any tensor is loaded."""
    found: dict[str, Any] = {}
    try:
        with safe_open(file, "pt") as opened:
            for key in opened.keys():  # noqa: SIM118 - no mapping
                part = opened.get_slice(key)
                found[key] = torch.empty(part.get_shape(), dtype=_TYPES[part.get_dtype()], device="meta")
    except (SafetensorError, OSError, ValueError, TypeError, RuntimeError, KeyError) as error:
        raise BadInput(f"{name}: cut or damaged, not readable as safetensors: {error}") from error
    differing = differences(network, found) or _other_types(network, found)
    if differing:
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise BadInput(f"{name} does not fit the configured network: {'; '.join(differing[:3])}{more}")


def _other_types(network: nn.Module, found: dict[str, torch.Tensor]) -> list[str]:
    """Return which tensors would be converted in silence to other values; half precision, as is shipped, is exact."""
    expected = network.state_dict()
    return [
        f"{key} has type {_type(value)}, expected {_type(expected[key])}"
        for key, value in sorted(found.items())
        if value.dtype != expected[key].dtype and (value.dtype, expected[key].dtype) != (torch.float16, torch.float32)
    ]


def _type(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
