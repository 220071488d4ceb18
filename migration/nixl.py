"""KV through NIXL: the sender writes into the receiver's memory, over whatever UCX finds between the two.

    listener   registers a piece of memory per slot; OFFER says where it is and how its agent is reached
    caller     registers one of its own, gathers into it, and has NIXL write it over there

Host memory only. An optional extra: where it is not installed it is refused by name. NIXL's own way to send
descriptors pickles them, so two numbers go instead; the agent's metadata are NIXL's own format, and are read
only from a peer that has proved who it is.
"""

from __future__ import annotations

import ctypes
import importlib
import secrets
import struct
import time
import zlib
from functools import partial
from typing import Any

from engine.errors import SetupError, TransferFailed
from migration.paired import PairedTransport
from migration.tcp import TcpTransport
from migration.transport import Buffer, Fill

WHERE = struct.Struct("!QQ")
"""Address and size of a piece of memory over there."""

DEVICE = 0
DONE, FAILED = "DONE", "ERR"
PAUSE = 2e-5
"""Seconds between two looks at a write."""


def bindings() -> Any:
    """NIXL's Python module. Raises SetupError where it is not installed, or does not load."""
    reasons = []
    for name in ("nixl_cu13._api", "nixl_cu12._api"):
        try:
            return importlib.import_module(name)
        except ImportError as error:
            reasons.append(str(error))
    raise SetupError(
        f"transfer.transport nixl: {'; '.join(reasons)}; pip install 'tandem-serving[nixl]', or set auto",
        param="transfer.transport",
    )


class _Memory:
    """Registered for as long as the road is."""

    def __init__(self, agent: Any, nbytes: int) -> None:
        self.bytes = bytearray(nbytes)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.bytes))
        self.registered = agent.register_memory([(self.address, nbytes, DEVICE, "")], mem_type="DRAM")


class NixlRoad:
    """See `paired.Road`."""

    def __init__(self, api: Any) -> None:
        self._api = api
        self._agent: Any = None
        self._memory: dict[int, _Memory] = {}
        self._there: dict[int, int] = {}
        self._peer = ""

    def greeting(self) -> bytes:
        return b""

    def join(self, greeting: bytes, *, calls: bool) -> None:
        """Each end has an agent of its own; the caller learns of the listener's with the first offer."""
        name = f"tandem-{secrets.token_hex(8)}"
        self._agent = self._api.nixl_agent(name, self._api.nixl_agent_config(backends=["UCX"]))

    def room(self, slot: int, nbytes: int) -> bytes:
        memory = self._take(slot, nbytes)
        metadata: bytes = self._agent.get_agent_metadata()
        return WHERE.pack(memory.address, nbytes) + metadata

    def offered(self, slot: int, nbytes: int, description: bytes) -> None:
        if len(description) <= WHERE.size:
            raise TransferFailed("an offer that does not say where the memory is")
        address, size = WHERE.unpack_from(description)
        if size != nbytes:
            raise TransferFailed(f"{size} bytes offered where {nbytes} were asked for")
        self._take(slot, nbytes)
        self._there[slot] = address
        self._peer = self._asked(lambda: self._agent.add_remote_agent(description[WHERE.size :]))

    def fill(self, slot: int, nbytes: int, fill: Fill | None, tamper: Fill | None) -> int:
        with memoryview(self._memory[slot].bytes)[:nbytes] as payload:
            if fill is not None:
                fill(payload)
            checksum = zlib.crc32(payload)
            if tamper is not None:
                tamper(payload)
        return checksum

    def send(self, slot: int, nbytes: int, timeout: float) -> None:
        agent, deadline = self._agent, time.monotonic() + timeout
        here = agent.get_xfer_descs([(self._memory[slot].address, nbytes, DEVICE)], mem_type="DRAM")
        there = agent.get_xfer_descs([(self._there[slot], nbytes, DEVICE)], mem_type="DRAM")
        handle = self._asked(lambda: agent.initialize_xfer("WRITE", here, there, self._peer))
        state = self._asked(lambda: agent.transfer(handle))
        while state != DONE:
            if state == FAILED or time.monotonic() >= deadline:
                raise TransferFailed(f"NIXL has not written {nbytes} bytes within {timeout:g} s: {state}")
            time.sleep(PAUSE)
            state = self._asked(lambda: agent.check_xfer_state(handle))
        self._asked(lambda: agent.release_xfer_handle(handle))

    def receive(self, slot: int, nbytes: int, timeout: float) -> tuple[Buffer, int]:
        payload = memoryview(self._memory[slot].bytes)[:nbytes]
        return payload, zlib.crc32(payload)

    def read(self, slot: int) -> None:
        """Scatter has copied it: nothing to wait for."""

    def abort(self) -> None:
        """The agent ends with its last reference, and with it what is registered."""
        self._agent = None
        self._memory.clear()

    def _take(self, slot: int, nbytes: int) -> _Memory:
        old = self._memory.pop(slot, None)
        if old is not None:
            self._asked(lambda: self._agent.deregister_memory(old.registered))
        memory: _Memory = self._asked(lambda: _Memory(self._agent, nbytes))
        self._memory[slot] = memory
        return memory

    def _asked(self, question: Any) -> Any:
        """NIXL's errors have no common base but Exception."""
        if self._agent is None:
            raise TransferFailed("the NIXL agent is gone")
        try:
            return question()
        except Exception as error:
            raise TransferFailed(f"NIXL: {type(error).__name__}: {error}") from error


def nixl_transport(control: TcpTransport, timeout: float) -> PairedTransport:
    """`timeout` in seconds bounds a frame. Raises SetupError where NIXL is not installed."""
    return PairedTransport(control, partial(NixlRoad, bindings()), timeout)
