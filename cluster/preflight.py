"""What can be known to go wrong before anything is started: ports, memory, disk, the cache folder."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import tempfile
from contextlib import suppress
from pathlib import Path

import psutil

from cluster.config import Config
from cluster.units import format_quantity
from engine.errors import SetupError
from model.installation import kernels_obstacle
from model.memory import available_memory

MEBI = 2**20
# Resident memory of one process of ours: an instance that has imported torch, and Ray's own with the gateway.
INSTANCE_OVERHEAD = 300 * MEBI
CLUSTER_OVERHEAD = 700 * MEBI
# Ray writes logs and sockets there, and refuses to work on a full disk.
SCRATCH_NEED = 200 * MEBI
GPU = Path("/dev/nvidiactl")
DEVICES = Path("/dev")
GPU_DEVICES = ("nvidia*", "nvhost*", "dxg", "kfd")
"""A GPU of any kind has one of these there: a card's, a Jetson's, one of WSL, one of AMD."""
SHARED_MEMORY = Path("/dev/shm")
SHARED_MEMORY_NEED = 192 * MEBI


def check_ports(config: Config) -> None:
    """Raises SetupError naming the process that holds a port."""
    check_port(config.gateway.host, config.gateway.port, "gateway.port (--port)")
    check_port(config.control.host, config.control.port, "control.port")
    check_port(config.admin.host, config.admin.port, "admin.port")


def check_port(host: str, port: int, setting: str) -> None:
    """`setting` names the port; the host's has "host" for "port". Raises SetupError with what to change."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            holder = _holder(port) if error.errno == errno.EADDRINUSE else None
            reason = f"is taken by {holder}" if holder else f"cannot be listened on: {error.strerror}"
            if error.errno == errno.EADDRNOTAVAIL or isinstance(error, socket.gaierror):
                setting = setting.replace("port", "host")
            raise SetupError(f"{host}:{port} {reason}; set another {setting}", param=setting) from None


def _holder(port: int) -> str | None:
    with suppress(psutil.Error):
        for connection in psutil.net_connections("tcp"):
            listens = connection.status == psutil.CONN_LISTEN
            if listens and getattr(connection.laddr, "port", None) == port and connection.pid:
                return f"process {connection.pid} ({psutil.Process(connection.pid).name()})"
    return None


def check_memory(config: Config, weights: int, *, available: int | None = None) -> None:
    """`weights`: bytes that all instances of the machine share. Raises SetupError with the sum."""
    instances = config.pools.prefill.replicas + config.pools.decode.replicas
    kv_memory = 0 if uses_gpu(config) else config.engine.kv_memory
    host_memory = config.engine.host_memory
    needed = weights + instances * (kv_memory + host_memory + INSTANCE_OVERHEAD) + CLUSTER_OVERHEAD
    available = available_memory() if available is None else available
    if needed > available:
        swapped = f"{format_quantity(host_memory)} for swapped KV, " if host_memory else ""
        remedy = "engine.kv_memory, engine.host_memory" if host_memory else "engine.kv_memory"
        raise SetupError(
            f"not enough memory: {_rough(needed)} needed ({instances} instances with "
            f"{format_quantity(kv_memory)} of KV cache, {swapped}{_rough(INSTANCE_OVERHEAD)} besides each, "
            f"{_rough(weights)} of weights, {_rough(CLUSTER_OVERHEAD)} for Ray and the gateway), "
            f"{_rough(available)} available; lower {remedy} or the replicas of a pool",
            param="engine.kv_memory",
        )


def check_numbers(config: Config) -> None:
    """For instances of this machine alone. Raises SetupError for numbers that what computes does not know."""
    device = config.engine.device
    if device == "cuda" or (device == "auto" and any(any(DEVICES.glob(name)) for name in GPU_DEVICES)):
        if config.model.activations == "int8":
            raise SetupError(
                "model.activations: int8 is for CPUs: leave it auto, or set engine.device to cpu",
                param="model.activations",
            )
        return
    if config.model.activations == "int8" and (reason := kernels_obstacle()) is not None:
        raise SetupError(
            f"model.activations: int8 needs the compiled CPU kernels, which are {reason}; leave it auto",
            param="model.activations",
        )
    where = "engine.device is cpu" if device == "cpu" else "this machine has no GPU"
    if config.model.dtype == "float16":
        raise SetupError(
            f"model.dtype: float16 needs a GPU, and {where}; set it to auto, float32 or bfloat16",
            param="model.dtype",
        )
    if config.engine.kv_dtype != "auto":
        raise SetupError(
            f"engine.kv_dtype: {config.engine.kv_dtype} needs a GPU, and {where}; leave it auto",
            param="engine.kv_dtype",
        )


def uses_gpu(config: Config) -> bool:
    """Whether the KV cache will lie on a GPU, as far as can be told without asking its driver."""
    return config.engine.device == "cuda" or (config.engine.device == "auto" and GPU.exists())


def check_disk(cache: Path, weights: int) -> None:
    """Room and rights for the cache, temporary files and shared memory. Raises SetupError."""
    remedy = "set cache.directory (or XDG_CACHE_HOME) to another folder"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache):
            pass
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise SetupError(f"the cache folder {cache} cannot be written to ({reason}); {remedy}") from None
    _check_room(cache, weights, remedy)
    scratch = Path(tempfile.gettempdir())
    _check_room(scratch, SCRATCH_NEED, "free some of it, or set TMPDIR to another folder")
    if SHARED_MEMORY.is_dir():
        _check_room(SHARED_MEMORY, SHARED_MEMORY_NEED, "give it more (for Docker: --shm-size=1g)")


def _check_room(folder: Path, needed: int, remedy: str) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise SetupError(f"{folder} is full: {_rough(needed)} needed, {_rough(free)} free; {remedy}")


def _rough(value: int) -> str:
    return f"{value / 2**30:.1f} GiB" if value >= 2**30 else f"{value / MEBI:.0f} MiB"
