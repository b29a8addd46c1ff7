"""Ray, the extra ``labelrounds[ray]``: a local one that nobody else can reach, or a cluster that is there already.

A local Ray listens on 127.0.0.1 alone, asks whoever comes for a secret of this process, has no dashboard, and keeps its
files in a folder of this user's that is removed at the end. Usage statistics are off in either case.
"""

import functools
import os
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from stat import S_ISDIR
from typing import Any

from filelock import FileLock, Timeout

from labelrounds.errors import BadInput, Conflict

LOCAL = "local"
_PREFIX, _LOCK, _YOUNG_S = "lr-", "labelrounds.lock", 60.0
_OBJECTS_BYTES = 200_000_000  # a model's weights; images never go through Ray
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_enable_metrics_collection": "0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
# On Linux Ray takes the address of the network card unless it is told that it is not to be part of a cluster.
_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_OBJECT_STORE_ALLOW_SLOW_STORAGE": "1"}


@dataclass(frozen=True)
class Share:
    """What each worker gets of a cluster.

    Attributes:
        workers: how many there are.
        cores: of the CPU, for each.
        gpus: for each; a fraction where several share one.
    """

    workers: int
    cores: int
    gpus: float


def share_out(cores: int, gpus: int, workers: int | None, device: str) -> Share:
    """Return how a cluster is shared out: a worker for each GPU, or where there is none, for each four cores.

    Args:
        cores: of the cluster.
        gpus: likewise.
        workers: how many are wanted.
        device: cpu or cuda; what there is where it is "".

    Raises:
        BadInput: more workers than cores, another device, or ``cuda`` where the cluster has no GPU.
    """
    if device not in ("", "cpu", "cuda"):
        raise BadInput(f"device {device!r}: Ray hands out the GPUs; allowed are cpu, cuda or nothing")
    if device == "cuda" and not gpus:
        raise BadInput("device 'cuda': Ray knows of no GPU")
    used = 0 if device == "cpu" else gpus
    count = workers or used or max(min(cores, 2), cores // 4)
    if not 1 <= count <= cores:
        raise BadInput(f"workers {count}: Ray has {cores} core(s), and each worker needs one")
    each = 0.0 if not used else 1.0 if count <= used else 1 / ceil(count / used)
    return Share(count, cores // count, each)


@contextmanager
def cluster(address: str) -> Iterator[Any]:
    """Start a local Ray, or join a cluster; give the module, and leave or stop it at the end.

    Args:
        address: ``local``, or a cluster's ``HOST:PORT``, or ``auto`` for the one that this machine is part of.

    Raises:
        BadInput: the extra is missing, or no such address.
        Conflict: the cluster can't be joined.
    """
    if address.startswith("ray://"):
        raise BadInput(f"ray {address!r}: run this on a machine of the cluster, and give auto or HOST:PORT")
    with ExitStack() as stack:
        options: dict[str, Any] = {"address": address}
        settings = dict(_QUIET)
        if address == LOCAL:
            place = tempfile.gettempdir() if len(tempfile.gettempdir()) < 20 else "/tmp"  # sockets have short names
            # Ray opens its own folder to all; nobody else comes through the one around it.
            folder = stack.enter_context(_own_folder(Path(place)))
            settings |= _LOOPBACK | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": _secret()}
            options |= {"num_cpus": len(os.sched_getaffinity(0)), "include_dashboard": False}
            options |= {"object_store_memory": _OBJECTS_BYTES, "_temp_dir": str(folder / "r")}
        stack.enter_context(_environment(settings))
        ray = _ray()
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        stack.callback(ray.shutdown)
        try:
            ray.init(**options, log_to_driver=False, configure_logging=False)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise Conflict(f"ray {address!r} can't be reached or started: {' '.join(str(error).split())}") from error
        for number, handler in handlers.items():  # Ray puts its own in their place
            signal.signal(number, handler)
        if address == LOCAL and ray.util.get_node_ip_address() not in ("127.0.0.1", "::1"):
            raise Conflict("Ray was loaded before, and would listen on the network: run this in a process of its own")
        yield ray


@contextmanager
def _own_folder(place: Path) -> Iterator[Path]:
    """Give a folder in another one for the length of a block, and remove those that killed processes have left there.

    Who works in a folder holds a lock in it, which ends with the process however that ends.
    """
    for left in place.glob(_PREFIX + "*"):
        try:
            stat = left.lstat()
            mine = S_ISDIR(stat.st_mode) and stat.st_uid == os.getuid()
            made_here = mine and (left / _LOCK).is_file()  # other programs may name their folders alike
            if made_here and time.time() - stat.st_mtime > _YOUNG_S:  # a young one may not be locked yet
                with FileLock(left / _LOCK, timeout=0):
                    shutil.rmtree(left, ignore_errors=True)
        except (Timeout, OSError):  # in use, or being removed by another
            continue
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=place))
    try:
        with FileLock(folder / _LOCK):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        raise BadInput(
            f"Ray is not installed in this Python {version}: pip install 'labelrounds[ray]', or leave out --ray to work"
            " in this process"
        ) from error
    return ray


@functools.cache  # a process of Ray's library reads it once
def _secret() -> str:
    return secrets.token_hex(32)


@contextmanager
def _environment(settings: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables, which Ray's processes inherit, for the length of a block."""
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
