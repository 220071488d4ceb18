"""What the local cluster left for later commands to find it: one file in the user's state folder."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from engine.errors import RefusedError


@dataclass(frozen=True)
class LocalState:
    """`cluster` marks every process of one `up`; `control` and `gateways` are filled once it is ready.

    `tls` is security.cluster_tls where the control port asks for a certificate, `certificate` what the
    gateway shows over HTTPS.
    """

    pid: int
    cluster: str
    scratch: str
    log: str | None = None
    control: str | None = None
    token: str | None = field(default=None, repr=False)
    tls: dict[str, str] | None = None
    certificate: str | None = None
    gateways: list[str] = field(default_factory=list)
    model: str | None = None
    admin: str | None = None
    admin_token: str | None = field(default=None, repr=False)
    ready: bool = False


def state_directory() -> Path:
    return Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser() / "tandem"


def _file() -> Path:
    return state_directory() / "local.json"


def read_state() -> LocalState | None:
    """The recorded cluster, which may be gone by now; None if nothing is recorded."""
    try:
        return LocalState(**json.loads(_file().read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def write_state(state: LocalState) -> None:
    """Replace the record at once; only its owner may read it, for it holds the token."""
    _make_directory()
    draft = _file().with_suffix(".new")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(asdict(state), file)
    draft.replace(_file())


def remove_state() -> None:
    with suppress(FileNotFoundError):
        _file().unlink()


@contextmanager
def only_one() -> Iterator[None]:
    """Held by a running `up`; the kernel lets go of it however the process ends.

    Raises RefusedError naming the process that holds it.
    """
    _make_directory()
    descriptor = os.open(state_directory() / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            state = read_state()
            holder = f"process {state.pid}" if state else "another process"
            raise RefusedError(
                f"tandem is already running here ({holder}); stop it with `tandem down`"
            ) from None
        yield
    finally:
        os.close(descriptor)


def is_held() -> bool:
    """Whether an `up` is running now."""
    try:
        with only_one():
            return False
    except RefusedError:
        return True


def _make_directory() -> None:
    try:
        state_directory().mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise RefusedError(
            f"cannot write to {state_directory()}: {error.strerror}; set XDG_STATE_HOME to a folder of yours"
        ) from error
