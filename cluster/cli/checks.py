"""Why something does not work: looks at the usual causes, each with what to do about it.

Each check is a function that yields findings; other packages add theirs in the entry-point group GROUP.
"""

from __future__ import annotations

import os
import re
import resource
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from importlib.metadata import PackageNotFoundError, entry_points, requires, version
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from cluster import control_pb2 as pb
from cluster import installation, preflight
from cluster.cli.connect import HINT, listens, trust
from cluster.cli.failures import Exit, Failure, tls_hint
from cluster.config import Config
from cluster.local_ray import RAY
from cluster.local_state import is_held, read_state
from cluster.tls import Tls
from cluster.units import format_quantity
from engine.errors import SetupError
from model.installation import kernels_obstacle
from model.memory import available_memory

GROUP = "tandem.checks"
OK, WARN, FAIL = "ok", "warn", "fail"

SKEW = 2.0
"""Seconds by which the clocks of two machines may differ: beyond, times in logs and certificates mislead."""

FILES = 4096
PYTHON = (3, 11)


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: what was looked at, how it is, and the remedy where it is not ok."""

    subject: str
    state: str
    text: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What is looked at: the config, the running cluster if there is one, and the environment.

    `control` is the address at which the cluster answered, `failure` why none did.
    """

    config: Config
    status: pb.ClusterStatus | None
    environment: Mapping[str, str]
    shown: Tls | None = None
    control: str | None = None
    failure: Failure | None = None


Check = Callable[[Surroundings], Iterable[Finding]]


def examine(around: Surroundings) -> Iterator[Finding]:
    """All findings, in a fixed order. A check that fails itself is a finding too."""
    checks: list[Check] = [
        packages, versions, cluster, ray, authentication, ports, memory, clock, devices, limits
    ]  # fmt: skip
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        with suppress(ImportError, AttributeError):
            checks.append(point.load())
    for check in checks:
        try:
            yield from check(around)
        except Exception as error:
            yield Finding(check.__name__, WARN, f"could not be looked at: {type(error).__name__}: {error}")


def packages(around: Surroundings) -> Iterator[Finding]:
    """Whether another package shadows ours."""
    found = installation.faults()
    for fault in found:
        what, _, remedy = fault.partition(": ")
        yield Finding("packages", FAIL, what, remedy)
    if not found:
        yield Finding("packages", OK, f"tandem's own, in {installation.ROOT}")


def versions(around: Surroundings) -> Iterator[Finding]:
    """Whether what tandem stands on is installed in a version that it works with."""
    python = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] < PYTHON:
        yield Finding("python", FAIL, f"{python} is too old", "use Python 3.11 or newer")
    wrong = list(_unmet(requires("tandem-serving") or []))
    for name, wanted, present in wrong:
        text = f"{name} {present}, {wanted} is needed" if present else f"{name} is not installed"
        yield Finding("versions", FAIL, text, f'pip install "{name}{wanted}"')
    if not wrong:
        shown = [f"{name} {_version(name)}" for name in ("ray", "torch", "grpcio", "protobuf")]
        yield Finding("versions", OK, f"tandem {installation.installed_version()}, {', '.join(shown)}")


def cluster(around: Surroundings) -> Iterator[Finding]:
    """Whether a cluster answers, whole and of this version."""
    status = around.status
    if status is None:
        yield _unanswered(around.failure)
        return
    ours = installation.installed_version()
    if status.version != ours:
        text = f"the controller is of version {status.version}, this command of {ours}"
        yield Finding("cluster", WARN, text, "upgrade the older one: docs/upgrades.md")
    outdated = [one.name for one in status.instances if one.outdated]
    if outdated:
        text = f"{', '.join(outdated)} wait to be replaced"
        yield Finding("cluster", WARN, text, "see `tandem status` and `tandem events`")
    if status.ready:
        ready = ", ".join(f"{pool.ready} of {pool.target} in {pool.name}" for pool in status.pools)
        yield Finding("cluster", OK, f"ready: {ready}")
    else:
        yield Finding(
            "cluster",
            FAIL,
            "it is not ready: a pool has no instance",
            "see `tandem events` and `tandem logs`",
        )
    if not status.gateways:
        yield Finding("gateways", FAIL, "no gateway beats", "see `tandem logs gateway`")


def _unanswered(failed: Failure | None) -> Finding:
    """None answers; or one that is there does not tell its status, for what a hint says how to mend."""
    if failed is None:
        return Finding("cluster", WARN, "none answers", HINT)
    away = failed.exit_code in (Exit.NOT_FOUND, Exit.UNREACHABLE)
    if away and failed.hint in ("", HINT):
        return Finding("cluster", WARN, f"none answers: {failed.message}", HINT)
    return Finding("cluster", FAIL, failed.message, failed.hint or "see `tandem status` and `tandem logs`")


def ray(around: Surroundings) -> Iterator[Finding]:
    """Whether the Ray of RAY_ADDRESS accepts connections, and that of the local cluster."""
    known = list(_rays(around))
    for name, address, remedy in known:
        if listens(address):
            yield Finding("ray", OK, f"{name} accepts connections at {address}")
        else:
            yield Finding("ray", FAIL, f"{name} accepts no connection at {address}", remedy)
    if not known:
        yield Finding("ray", OK, "no address of one is set; `tandem up` starts its own")


def _rays(around: Surroundings) -> Iterator[tuple[str, str, str]]:
    """Name, address and remedy of each Ray whose address is known."""
    named = around.environment.get("RAY_ADDRESS", "")
    if named not in ("", "auto", "local"):
        yield "the Ray of RAY_ADDRESS", named, "start it (`ray start --head`), or set RAY_ADDRESS to another"
    state = read_state()
    if state is None or not is_held():
        return
    for file in Path(state.scratch).glob(f"{RAY}/session_latest/gcs_server_port_*"):
        address = f"127.0.0.1:{file.read_text().strip()}"
        yield "the local cluster's Ray", address, "start again: `tandem down`, then `tandem up`"


def authentication(around: Surroundings) -> Iterator[Finding]:
    """Whether this shell could join a Ray that asks for a token."""
    mode = around.environment.get("RAY_AUTH_MODE", "")
    if mode not in ("", "token", "disabled"):
        yield Finding(
            "ray auth", FAIL, f"RAY_AUTH_MODE is {mode!r}", "set it to token or disabled, everywhere alike"
        )
        return
    home = around.environment.get("HOME", "~")
    file = Path(around.environment.get("RAY_AUTH_TOKEN_PATH") or f"{home}/.ray/auth_token").expanduser()
    has = bool(around.environment.get("RAY_AUTH_TOKEN")) or file.is_file()
    if mode == "token" and not has:
        remedy = "set RAY_AUTH_TOKEN, or write it with `ray get-auth-token --generate`"
        yield Finding("ray auth", FAIL, "token authentication is on and there is no token", remedy)
    else:
        found = "a token is there" if has else "no token: `tandem up` draws one for a Ray of its own"
        yield Finding("ray auth", OK, f"mode {mode or 'of Ray (token)'}; {found}")


def ports(around: Surroundings) -> Iterator[Finding]:
    """Whether the ports are free, or held by the cluster itself."""
    ours = _own_ports(around)
    config = around.config
    wanted = (
        (config.gateway.host, config.gateway.port, "gateway.port"),
        (config.control.host, config.control.port, "control.port"),
        (config.admin.host, config.admin.port, "admin.port"),
    )
    for host, port, setting in wanted:
        if port in ours:
            yield Finding("ports", OK, f"{host}:{port} is this cluster's")
            continue
        try:
            preflight.check_port(host, port, setting)
        except SetupError as error:
            what, _, remedy = error.message.partition("; ")
            yield Finding("ports", FAIL, what, remedy)
        else:
            yield Finding("ports", OK, f"{setting}: {host}:{port or 'any free one'}")
    proxy = next(
        (name for name in ("http_proxy", "HTTP_PROXY", "all_proxy") if around.environment.get(name)), None
    )
    if proxy and "127.0.0.1" not in around.environment.get(
        "no_proxy", around.environment.get("NO_PROXY", "")
    ):
        text = f"{proxy} sends clients' calls to 127.0.0.1 to a proxy"
        yield Finding("ports", WARN, text, "set no_proxy=127.0.0.1,localhost")


def _own_ports(around: Surroundings) -> set[int]:
    """The ports of this machine that the cluster which answers has."""
    addresses = [gateway.url for gateway in _gateways(around)]
    if around.status is not None:
        addresses += [around.status.admin, around.control or ""]
    found = set()
    for address in addresses:
        with suppress(ValueError):
            parts = urlsplit(address if "//" in address else f"//{address}")
            if parts.port is not None and _is_here(parts.hostname or ""):
                found.add(parts.port)
    return found


def _is_here(host: str) -> bool:
    """Whether an address is this machine's: no other can be bound."""
    with suppress(OSError, UnicodeError):
        for family, kind, _, _, place in socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM):
            with suppress(OSError), socket.socket(family, kind) as probe:
                probe.bind(place)
                return True
    return False


def memory(around: Surroundings) -> Iterator[Finding]:
    """Memory, disk and shared memory for the config; those of a running cluster are in use already."""
    free = format_quantity(available_memory() // 2**20 * 2**20)
    looks: list[Callable[[], None]] = [
        lambda: preflight.check_disk(around.config.cache_directory.absolute(), 0),
    ]
    if around.status is None:
        looks.append(lambda: preflight.check_memory(around.config, 0))
    bad = False
    for look in looks:
        try:
            look()
        except SetupError as error:
            bad = True
            what, _, remedy = error.message.rpartition("; ")
            yield Finding("memory", FAIL, what, remedy)
    if not bad:
        yield Finding("memory", OK, f"{free} available, {around.config.cache_directory} can be written to")


def clock(around: Surroundings) -> Iterator[Finding]:
    """Whether this machine's clock and a gateway's agree."""
    for gateway in _gateways(around)[:1]:
        verify = trust(gateway.url, around.shown)
        asked = time.time()
        try:
            with httpx.Client(trust_env=False, timeout=5.0, verify=verify) as client:
                answer = client.get(f"{gateway.url}/health")
        except httpx.HTTPError as error:
            remedy = tls_hint(f"{gateway.url}: {error}") or "see `tandem logs gateway`"
            yield Finding("clock", WARN, f"{gateway.name} does not answer: {error}", remedy)
            return
        told = parsedate_to_datetime(answer.headers["date"]).timestamp()
        # A date has whole seconds, and a server renews its own once a second: two go by before it is wrong.
        skew = max(asked - (told + 2.0), 0.0) or min(time.time() - told, 0.0)
        if abs(skew) > SKEW:
            text = f"this machine is {skew:+.0f} s from {gateway.name}"
            yield Finding(
                "clock", WARN, text, "have both follow the same time server (chrony, systemd-timesyncd)"
            )
            return
        yield Finding("clock", OK, f"within {SKEW:g} s of {gateway.name}")
        return
    yield Finding("clock", OK, "no gateway to compare with")


def devices(around: Surroundings) -> Iterator[Finding]:
    """GPUs and NCCL, or the compiled CPU kernels."""
    from model.accelerators import accelerators  # imports torch, for which no other verb should wait

    here = accelerators()
    if here.gpus:
        yield Finding("gpu", OK, f"{len(here.gpus)} × {here.gpus[0]}, CUDA {here.cuda}")
        if here.nccl:
            yield Finding("nccl", OK, here.nccl)
        else:
            yield Finding("nccl", WARN, "this torch has no NCCL", "install torch's CUDA build")
        return
    if preflight.GPU.exists():
        text = f"there is an NVIDIA driver, but torch {here.torch} cannot use it"
        yield Finding("gpu", FAIL, text, "install torch's CUDA build, of a CUDA that the driver knows")
    elif around.config.engine.device == "cuda":
        yield Finding("gpu", FAIL, "engine.device is cuda and there is no GPU", "set engine.device to auto")
    else:
        yield Finding("gpu", OK, "none; instances compute on the CPU")
    obstacle = kernels_obstacle()
    if obstacle is None:
        yield Finding("kernels", OK, "the compiled ones run here")
    else:
        yield Finding(
            "kernels",
            WARN,
            f"torch's slower ones are used: {obstacle}",
            "where the processor can: install g++ and tandem-serving again",
        )


def limits(around: Surroundings) -> Iterator[Finding]:
    """How many files a process may have open: connections of clients count."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < FILES:
        yield Finding("limits", WARN, f"{soft} open files a process", f"raise it: ulimit -n {FILES}")
    else:
        yield Finding("limits", OK, f"{soft} open files a process")


def _gateways(around: Surroundings) -> list[pb.Gateway]:
    return list(around.status.gateways) if around.status is not None else []


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _unmet(requirements: Iterable[str]) -> Iterator[tuple[str, str, str]]:
    """Of requirements as an installation writes them: name, bounds and version of those that are not met."""
    for requirement in requirements:
        text, _, marker = requirement.partition(";")
        match = re.match(r"\s*([A-Za-z0-9._-]+)(?:\[[^\]]*\])?\s*(.*)", text)
        if match is None or "extra" in marker or "platform" in marker or "python_version" in marker:
            continue
        name, wanted = match[1], match[2].strip(" ()")
        present = _version(name)
        if not present or not all(
            _fits(present, bound.strip()) for bound in wanted.split(",") if bound.strip()
        ):
            yield name, wanted, present


def _fits(present: str, bound: str) -> bool:
    """Whether a version keeps a bound such as >=2.1; bounds of other kinds count as kept."""
    match = re.match(r"(>=|<=|==|!=|<|>)\s*([0-9.]+)", bound)
    if match is None:
        return True
    mine, other = _numbers(present), _numbers(match[2])
    length = max(len(mine), len(other))
    a, b = mine + (0,) * (length - len(mine)), other + (0,) * (length - len(other))
    return {">=": a >= b, "<=": a <= b, "==": a == b, "!=": a != b, "<": a < b, ">": a > b}[match[1]]


def _numbers(text: str) -> tuple[int, ...]:
    found = re.match(r"[0-9]+(?:\.[0-9]+)*", text)
    return tuple(map(int, found[0].split("."))) if found else ()


def surroundings(config: Config, shown: Tls | None) -> Surroundings:
    """Those of this process, before a cluster is asked."""
    return Surroundings(config, None, os.environ, shown)
