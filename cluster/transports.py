"""The transports that an instance has: shared memory, TCP, and what `transfer.transport` asks for beside."""

from __future__ import annotations

from cluster.config import TransferConfig
from engine.errors import SetupError
from migration.nccl import nccl_transport
from migration.nccl_device import NcclDevice
from migration.nixl import nixl_transport
from migration.shm import ShmTransport
from migration.tcp import Secure, TcpTransport
from migration.transport import Transport


def transports(config: TransferConfig, device: str, secure: Secure | None) -> dict[str, Transport]:
    """By name. `device` is where the KV cache is: cpu or cuda:n. Raises SetupError for what cannot be had."""
    timeout = config.chunk_timeout
    tcp = TcpTransport(timeout, secure)
    found: dict[str, Transport] = {"shm": ShmTransport(timeout), "tcp": tcp}
    if config.transport == "nccl":
        found["nccl"] = nccl_transport(NcclDevice(_index(device)), tcp, timeout)
    if config.transport == "nixl":
        found["nixl"] = nixl_transport(tcp, timeout)
    return found


def listening(config: TransferConfig) -> dict[str, str]:
    """Where each transport listens. Those that have a way to fall back on leave it open."""
    where = f"[{config.host}]:0" if ":" in config.host else f"{config.host}:0"
    known = {"shm": "", "tcp": where}
    match config.transport:
        case "auto":
            return known
        case "shm" | "tcp" as only:
            return {only: known[only]}
        case preferred:
            return known | {preferred: where}


def _index(device: str) -> int:
    kind, _, index = device.partition(":")
    if kind != "cuda":
        raise SetupError(
            f"transfer.transport nccl: the KV cache is on the {kind}: set model.device to cuda, or auto here",
            param="transfer.transport",
        )
    return int(index or 0)
