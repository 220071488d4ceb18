"""What the two ends of a movement say to each other, apart from how it is encoded."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Contents:
    """What a slot of KV holds. `kv_heads` are those of all ranks; `dtype` is a name."""

    layers: int
    kv_heads: int
    head_dim: int
    dtype: str

    def __str__(self) -> str:
        return f"{self.layers} layers, {self.kv_heads} KV heads of {self.head_dim}, {self.dtype}"


@dataclass(frozen=True, slots=True)
class Hello:
    """Who speaks and what its KV looks like. `oldest` … `newest` are the protocol versions it knows.

    `layout` describes a block in words that only compare; `block_size` is in tokens, `block_nbytes`
    in bytes. `nonce` is what the other end signs. `contents`: since version 2.
    """

    oldest: int
    newest: int
    instance: str
    layout: str
    block_size: int
    block_nbytes: int
    weights_digest: str
    nonce: bytes
    contents: Contents | None = None


@dataclass(frozen=True, slots=True)
class Proof:
    """The caller knows the secret: its signature of both hellos."""

    mac: bytes


@dataclass(frozen=True, slots=True)
class Welcome:
    """The listener knows the secret too, and this version is spoken from here on."""

    version: int
    mac: bytes


@dataclass(frozen=True, slots=True)
class Refused:
    """No, and why. After a COMMIT, `settled` says that the destination never claimed and never will."""

    code: str
    reason: str
    settled: bool = True


@dataclass(frozen=True, slots=True)
class Reserve:
    """Keep `blocks` blocks for a request, those of its prompt that are cached at the destination included.

    Again in the same session: so many in all, because the request has grown. `live` tells a migration,
    which may be put off, from a handoff.
    """

    blocks: int
    live: bool = False


@dataclass(frozen=True, slots=True)
class Reserved:
    """`blocks` are kept in all. The first `cached` ones of the prompt are there already."""

    cached: int
    blocks: int


@dataclass(frozen=True, slots=True)
class Copy:
    """Blocks [first, first + count) of the session's list; their bytes go with the message."""

    first: int
    count: int


@dataclass(frozen=True, slots=True)
class Resend:
    """A chunk arrived damaged: send the session's blocks again from `first` on."""

    first: int


@dataclass(frozen=True, slots=True)
class Commit:
    """All `blocks` blocks have been sent and the sequences are frozen: take them over."""

    blocks: int


@dataclass(frozen=True, slots=True)
class Committed:
    """They run at the destination."""


@dataclass(frozen=True, slots=True)
class Abort:
    """The session is over and the source keeps the request."""

    reason: str


@dataclass(frozen=True, slots=True)
class Renew:
    """The source is alive but has nothing to send."""


FromSource = Reserve | Copy | Commit | Abort | Renew
FromDestination = Reserved | Resend | Refused | Committed | Abort
Message = (
    Hello
    | Proof
    | Welcome
    | Refused
    | Reserve
    | Reserved
    | Copy
    | Resend
    | Commit
    | Committed
    | Abort
    | Renew
)
