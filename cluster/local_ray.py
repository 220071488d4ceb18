"""A Ray cluster of our own on this machine, and the certainty that nothing of it stays behind."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from cluster.lean_ray import lean
from engine.errors import SetupError

# Every process of one local cluster inherits it, so that the last of them can be found by it.
MARKER = "TANDEM_CLUSTER"
OBJECT_STORE = 96 * 2**20
# Longest path that Ray puts below its folder for a unix socket, whose name may have 107 bytes in all.
SOCKET_ROOM = 107 - len("/r/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store")
TOO_SLOW = "timed out during startup"
"""What Ray says then."""
GRACE = 5.0
RAY = "r"
"""Ray's part of the folder: Ray opens it to every user, sockets and logs too; what it is in stays closed."""


@dataclass(frozen=True)
class Scratch:
    """The identity of a local cluster and its folder for Ray's sockets and logs."""

    cluster: str
    folder: Path

    @classmethod
    def create(cls) -> Scratch:
        """A new folder whose path is short enough for unix sockets."""
        cluster = uuid.uuid4().hex[:12]
        for parent in (tempfile.gettempdir(), "/tmp"):
            folder = Path(parent) / folder_name(cluster)
            if len(str(folder)) <= SOCKET_ROOM:
                folder.mkdir(mode=0o700)
                return cls(cluster, folder)
        raise SetupError(
            f"the path {tempfile.gettempdir()} is too long for unix sockets; set TMPDIR to a short one"
        )

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def prepare_process(scratch: Scratch, threads: int | None, *, secure: bool) -> None:
    """Settle what Ray and its workers inherit. To be called before ray or torch is imported.

    Ray puts the driver's working folder first in the search path of every worker. Ours becomes an
    empty one, so that folders named model or engine beside the user shadow nothing. `secure` draws a
    token for a Ray of our own; one that is joined has its own rules.
    """
    os.chdir(scratch.folder)
    os.environ[MARKER] = scratch.cluster
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # Else whoever asks Ray for anything after its end starts another one.
    os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"
    # gRPC's fork handlers can hang the child in which Ray starts a process when other threads use gRPC.
    os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
    # Ray starts its workers at 15, where whatever else runs here takes the cores from under them.
    os.environ.setdefault("RAY_worker_niceness", "0")
    # At its 0.1 s Serve's controller takes 8 % of a core to find that nothing has changed.
    os.environ.setdefault("RAY_SERVE_CONTROL_LOOP_INTERVAL_S", "0.5")
    # Two OpenMP threads on a busy core are many times slower than one.
    os.environ.setdefault("OMP_NUM_THREADS", str(threads or 1))
    if secure:
        # Else Ray takes the machine's address for a loopback one, and listens on all interfaces.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    if secure and "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = uuid.uuid4().hex


def start_ray(scratch: Scratch, address: str | None) -> None:
    """Start Ray here, or join the cluster at `address`. Raises SetupError.

    Ray gives its daemon 30 s to come up; on a machine that is busy for a moment that may be too few, so that
    it is tried twice.
    """
    # ray.init replaces the handler of SIGTERM by one that exits.
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    others = {process.pid for process in psutil.Process().children(recursive=True)}
    try:
        if not _init(scratch, address):
            end_processes(_begun(scratch.cluster, others), grace=0.5)
            if not _init(scratch, address):
                load, cores = os.getloadavg()[0], os.cpu_count()
                raise SetupError(
                    f"Ray's daemon did not come up in 30 s, twice, at a load of {load:.1f} on {cores} cores: "
                    "try again when the machine is less busy"
                )
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        where = f"Ray at {address} cannot be joined" if address else "Ray cannot be started"
        raise SetupError(f"{where}: {error}") from error
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _init(scratch: Scratch, address: str | None) -> bool:
    """False if Ray's daemon was too slow."""
    import ray

    common: dict[str, Any] = {
        "namespace": "tandem", "log_to_driver": False, "logging_level": logging.ERROR
    }  # fmt: skip
    try:
        if address is None:
            with lean():
                ray.init(
                    address="local",
                    include_dashboard=False,
                    object_store_memory=OBJECT_STORE,
                    _node_ip_address="127.0.0.1",
                    _temp_dir=str(scratch.folder / RAY),
                    **common,
                )
        else:
            ray.init(address=address, **common)
    except Exception as error:  # Ray raises no class of its own for this
        if TOO_SLOW not in str(error):
            raise
        return False
    return True


def stop_ray() -> None:
    import ray

    ray.shutdown()


def processes(cluster: str) -> list[psutil.Process]:
    """Every other process of a local cluster: who carries its marker or is in its folder, and descendants."""
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if _belongs(process, cluster):
                found[process.pid] = process
                found |= {child.pid: child for child in process.children(recursive=True)}
    found.pop(os.getpid(), None)
    return list(found.values())


def _begun(cluster: str, others: set[int]) -> list[psutil.Process]:
    """The processes of a cluster, without the `others` below this one that do not belong to it themselves."""
    found = []
    for process in processes(cluster):
        with suppress(psutil.Error, OSError):
            if process.pid not in others or _belongs(process, cluster):
                found.append(process)
    return found


def _belongs(process: psutil.Process, cluster: str) -> bool:
    """Some of Ray's processes write their title over their environment, but stay in the folder."""
    if process.pid == os.getpid():
        return os.environ.get(MARKER) == cluster
    return process.environ().get(MARKER) == cluster or Path(process.cwd()).name == folder_name(cluster)


def folder_name(cluster: str) -> str:
    return f"tandem-{cluster}"


def end_processes(found: Iterable[psutil.Process], grace: float = GRACE) -> None:
    """Wait for processes to end, ask those that don't, and kill those that won't."""
    alive = _wait(found, grace)
    for end in (signal.SIGTERM, signal.SIGKILL):
        for process in alive:
            with suppress(psutil.Error):
                process.send_signal(end)
        alive = _wait(alive, grace)


def _wait(found: Iterable[psutil.Process], seconds: float) -> list[psutil.Process]:
    _, alive = psutil.wait_procs(list(found), timeout=seconds)
    return alive


def wait_until(condition: Callable[[], bool], seconds: float, *, pause: float = 0.1) -> bool:
    """Poll a condition of another process for at most so long."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(pause)
    return True
