"""Two instances make sure that they may and can exchange KV, before anything else is said.

    caller                                        listener
      HELLO  who, versions, layout, digest, nonce ─▶
                               ◀─ HELLO             the same, another nonce
      PROOF  HMAC("caller", both hellos) ──────────▶
                    ◀─ WELCOME version, HMAC("listener", both hellos)   or   REFUSED code, reason

The secret never travels. A refusal names what does not fit: secret, instance, version, layout, weights.
What fits is an `Agreement`: the newest version that both speak, and the size of the listener's blocks. Since
version 2 that need not be the caller's, who then cuts its blocks to it (see cut.py); how KV heads are split
over ranks does not matter, for blocks travel with all heads.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from dataclasses import dataclass
from typing import TypeVar

from engine.errors import HandshakeRefused, TransferFailed
from migration.envelope import Envelope, decode, encode
from migration.messages import Contents, Hello, Proof, Refused, Welcome
from migration.state import OLDEST, VERSION
from migration.transport import BlockStore, Channel, describe

T = TypeVar("T", Hello, Proof, Welcome)

MAX_BLOCK = 1 << 16
"""Tokens of a block."""

RESHAPED = 2
"""The version since which blocks of different sizes are exchanged."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """What two ends have found out of each other: `instance` is the other one, `version` is spoken with it,
    `block_size` in tokens is that of the blocks that travel."""

    instance: str
    version: int
    block_size: int


@dataclass(frozen=True, slots=True)
class Identity:
    """What an instance says of itself, and the secret that all of a cluster share (bytes, not empty)."""

    instance: str
    layout: str
    block_size: int
    block_nbytes: int
    weights_digest: str
    secret: bytes
    contents: Contents | None = None
    oldest: int = OLDEST
    newest: int = VERSION

    @classmethod
    def of(cls, instance: str, store: BlockStore, weights_digest: str, secret: bytes) -> Identity:
        """Raises ValueError for an empty secret: everybody knows that one."""
        if not secret:
            raise ValueError("the transfer secret is empty")
        layout = store.layout
        contents = Contents(layout.layers, layout.kv_heads, layout.head_dim, layout.dtype)
        size, nbytes = layout.block_size, store.block_nbytes
        return cls(instance, describe(layout), size, nbytes, weights_digest, secret, contents)

    def hello(self) -> Hello:
        return Hello(
            oldest=self.oldest,
            newest=self.newest,
            instance=self.instance,
            layout=self.layout,
            block_size=self.block_size,
            block_nbytes=self.block_nbytes,
            weights_digest=self.weights_digest,
            nonce=secrets.token_bytes(16),
            contents=self.contents,
        )


def call(channel: Channel, identity: Identity, instance: str, timeout: float) -> Agreement:
    """Open a connection to `instance`.

    Raises HandshakeRefused if either end refuses, TransferFailed if the connection breaks or an answer
    takes longer than `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    mine = encode(Envelope(identity.hello()))
    channel.send(mine)
    theirs, hello = _expect(channel, Hello, deadline)
    channel.send(encode(Envelope(Proof(_sign(identity.secret, b"caller", mine, theirs)))))
    _, welcome = _expect(channel, Welcome, deadline)
    if not hmac.compare_digest(welcome.mac, _sign(identity.secret, b"listener", mine, theirs)):
        raise HandshakeRefused("secret: the listener does not know this cluster's secret")
    if hello.instance != instance:
        raise HandshakeRefused(f"instance: {hello.instance} answers where {instance} was expected")
    if welcome.version != agree(identity, hello).version:
        raise HandshakeRefused(f"version: {welcome.version} is not what both ends speak")
    channel.trust()
    return Agreement(instance, welcome.version, hello.block_size)


def answer(channel: Channel, identity: Identity, timeout: float) -> Agreement:
    """Take a connection in.

    Raises HandshakeRefused after telling the caller why, TransferFailed if the connection breaks.
    """
    deadline = time.monotonic() + timeout
    theirs, hello = _expect(channel, Hello, deadline)
    mine = encode(Envelope(identity.hello()))
    channel.send(mine)
    _, proof = _expect(channel, Proof, deadline)
    try:
        if not hmac.compare_digest(proof.mac, _sign(identity.secret, b"caller", theirs, mine)):
            raise HandshakeRefused("secret: the caller does not know this cluster's secret")
        agreed = agree(identity, hello)
    except HandshakeRefused as error:
        code, _, reason = error.message.partition(": ")
        channel.send(encode(Envelope(Refused(code, reason))))
        raise
    channel.send(encode(Envelope(Welcome(agreed.version, _sign(identity.secret, b"listener", theirs, mine)))))
    channel.trust()
    return agreed


def agree(mine: Identity, theirs: Hello) -> Agreement:
    """What a listener has in common with a caller, or raises HandshakeRefused if they cannot exchange KV."""
    version = min(mine.newest, theirs.newest)
    if version < max(mine.oldest, theirs.oldest):
        raise HandshakeRefused(
            f"version: {theirs.instance} speaks {theirs.oldest} to {theirs.newest}, {mine.instance} "
            f"{mine.oldest} to {mine.newest}: upgrade the older"
        )
    if not _alike(mine, theirs, version):
        raise HandshakeRefused(
            f"layout: KV of {theirs.instance} is {theirs.layout}, of {mine.instance} {mine.layout}: "
            "give both the same model.dtype" + (" and engine.block_size" if version < RESHAPED else "")
        )
    if theirs.weights_digest != mine.weights_digest:
        raise HandshakeRefused(
            f"weights: {theirs.instance} runs {theirs.weights_digest[:16]}, {mine.instance} "
            f"{mine.weights_digest[:16]}: give both the same model and model.activations"
        )
    return Agreement(theirs.instance, version, mine.block_size)


def _alike(mine: Identity, theirs: Hello, version: int) -> bool:
    """Whether KV can go from one to the other: slots of equal bytes, before version 2 in equal blocks."""
    if version < RESHAPED:
        block = mine.layout, mine.block_size, mine.block_nbytes
        return block == (theirs.layout, theirs.block_size, theirs.block_nbytes)
    slots = theirs.block_nbytes * mine.block_size == mine.block_nbytes * theirs.block_size
    return slots and 0 < theirs.block_size <= MAX_BLOCK and theirs.contents == mine.contents


def _sign(secret: bytes, role: bytes, caller: bytes, listener: bytes) -> bytes:
    digests = hashlib.sha256(caller).digest() + hashlib.sha256(listener).digest()
    return hmac.digest(secret, b"tandem transfer " + role + digests, "sha256")


def _expect(channel: Channel, kind: type[T], deadline: float) -> tuple[bytes, T]:
    frame = channel.receive(max(0.0, deadline - time.monotonic()))
    if frame is None:
        raise TransferFailed(f"no {kind.__name__} in time: the peer hangs, or speaks another protocol")
    message = decode(frame.header).message
    if isinstance(message, Refused):
        raise HandshakeRefused(f"{message.code}: {message.reason}")
    if not isinstance(message, kind):
        raise TransferFailed(f"{type(message).__name__} where {kind.__name__} was expected")
    return frame.header, message
