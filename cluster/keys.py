"""API keys: drawn at random, kept as hashes only, and each the key of a tenant.

    gateway.api_keys, or a line of gateway.key_file        what it is
    sha256:9f86d081…                                       a key of nobody in particular
    acme=sha256:60303ae2…                                  a key of the tenant acme
    tk-Zq3…                                                a key itself: in the config only

A key has 256 random bits, so a plain hash of it cannot be guessed back; what people think up is refused
where others can reach the port (cluster/exposure.py).
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from engine.errors import ConfigError

logger = logging.getLogger("tandem.gateway")

MOST_KEYS = 4096
"""Each is compared with every key that comes, so that the time tells nothing: 2 ms for so many."""

LARGEST_FILE = 2**20
LOOK = 1.0
"""Seconds between two looks at whether the key file has changed."""

_TENANT = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
_HASHED = re.compile(rf"(?:({_TENANT})=)?sha256:([0-9a-f]{{64}})")
_PLAIN = re.compile(r"[!-~]{1,512}")


@dataclass(frozen=True, slots=True)
class Entry:
    """A key that is accepted. `tenant` is "" for one of nobody in particular."""

    tenant: str
    digest: bytes


def draw() -> str:
    """A new key."""
    return f"tk-{secrets.token_urlsafe(32)}"


def hashed(key: str, tenant: str = "") -> str:
    """The line that stands for a key. Raises ConfigError for a tenant's name that cannot be one."""
    if tenant and not re.fullmatch(_TENANT, tenant):
        raise ConfigError(f"{tenant!r} is no name of a tenant: letters, digits and ._- only, 64 at most")
    digest = hashlib.sha256(key.encode()).hexdigest()
    return f"{tenant}=sha256:{digest}" if tenant else f"sha256:{digest}"


def is_hashed(text: str) -> bool:
    """Whether a line of the config or the file is a hash, and no key itself."""
    return _HASHED.fullmatch(text) is not None


def entry(text: str) -> Entry:
    """What a value of gateway.api_keys stands for. Raises ConfigError, without the value in it."""
    found = _HASHED.fullmatch(text)
    if found is not None:
        return Entry(found[1] or "", bytes.fromhex(found[2]))
    if "sha256:" in text:
        raise ConfigError(
            "a value of gateway.api_keys is neither [TENANT=]sha256:HEX nor a key: see `tandem key hash`",
            param="gateway.api_keys",
        )
    if not _PLAIN.fullmatch(text):
        raise ConfigError(
            "a value of gateway.api_keys is no bearer token: printable ASCII without spaces only",
            param="gateway.api_keys",
        )
    return Entry("", hashlib.sha256(text.encode()).digest())


def read_file(path: Path) -> tuple[Entry, ...]:
    """The entries of a key file: one a line, # begins a comment. Raises ConfigError that names the line."""
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_FILE + 1)
        lines = data.decode("ascii").splitlines()
    except OSError as error:
        raise ConfigError(
            f"gateway.key_file: {path} cannot be read: {error.strerror}", param="gateway.key_file"
        ) from error
    except UnicodeDecodeError:
        raise ConfigError(f"gateway.key_file: {path} is no text file", param="gateway.key_file") from None
    if len(data) > LARGEST_FILE:
        raise ConfigError(f"gateway.key_file: {path} is above 1 MiB", param="gateway.key_file")
    found = []
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if text and not is_hashed(text):
            raise ConfigError(
                f"{path}:{number}: expected [TENANT=]sha256:HEX; `tandem key new` writes such a line",
                param="gateway.key_file",
            )
        if text:
            found.append(entry(text))
    return tuple(found)


class Keys:
    """Which tenant a key belongs to. A key file is read again when it has changed.

    Raises ConfigError for entries that cannot be read, or too many.
    """

    def __init__(
        self,
        values: Iterable[str],
        file: str | os.PathLike[str] | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fixed = tuple(entry(value) for value in values)
        self._file = None if file is None else Path(file)
        self._clock = clock
        self._stamp = None if self._file is None else _stamp(self._file)
        self._entries = self._all()
        self._looked = clock()
        self._told: tuple[object, str] | None = None

    def __bool__(self) -> bool:
        """Whether a key is asked for at all: also while a key file holds none."""
        return bool(self._fixed) or self._file is not None

    def tenant(self, key: str) -> str | None:
        """Whose key it is; None for one that is not accepted. All are compared, each in constant time."""
        self._look()
        digest = hashlib.sha256(key.encode("utf-8", "replace")).digest()
        tenant = None
        for one in self._entries:
            if hmac.compare_digest(digest, one.digest):
                tenant = one.tenant
        return tenant

    def _look(self) -> None:
        if self._file is None or self._clock() - self._looked < LOOK:
            return
        self._looked = self._clock()
        stamp = _stamp(self._file)
        if stamp == self._stamp:
            return
        try:
            self._entries = self._all()
        except ConfigError as error:
            if self._told != (stamp, error.message):
                self._told = stamp, error.message
                logger.error("the keys of before stay in use: %s", error.message)
            return
        self._stamp, self._told = stamp, None
        logger.info("the key file was read again: %d keys are accepted", len(self._entries))

    def _all(self) -> tuple[Entry, ...]:
        entries = self._fixed + (() if self._file is None else read_file(self._file))
        if len(entries) > MOST_KEYS:
            raise ConfigError(f"{len(entries)} API keys are more than {MOST_KEYS}", param="gateway.key_file")
        return entries


def _stamp(file: Path) -> tuple[int, int, int] | None:
    """Another one when the file was replaced or rewritten; None while there is none."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
