"""tandem up: start everything on this machine, show that it works, and stay until Ctrl-C."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Annotated

import typer

from cluster.cli.detach import detach as start_detached
from cluster.cli.failures import Exit, Failure
from cluster.cli.greeting import ask_sample, print_addresses
from cluster.cli.options import ConfigFile, Settings, Wait, overrides, root, start_config
from cluster.cli.output import messages
from cluster.cli.progress import Steps
from cluster.config import Config
from cluster.config_origins import settled
from cluster.config_yaml import Path
from cluster.local import LocalCluster, settle, sweep
from cluster.local_state import only_one, read_state
from cluster.preflight import check_numbers

TICK = 1.0
FLAGS = {
    "model.path": "--model",
    "gateway.host": "--host",
    "gateway.port": "--port",
    "pools.prefill.replicas": "--prefill",
    "pools.decode.replicas": "--decode",
}
LOCAL = "--local"
BACKGROUND = "starting in the background"
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def command(
    context: typer.Context,
    file: ConfigFile = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="PATH", help="A Hugging Face folder or a GGUF file.")
    ] = None,
    host: Annotated[str | None, typer.Option("--host", help="The address of the gateway.")] = None,
    port: Annotated[
        int | None, typer.Option("--port", help="The port of the gateway; 0 takes a free one.")
    ] = None,
    local: Annotated[
        int | None,
        typer.Option(
            LOCAL,
            metavar="N",
            min=1,
            help="So many instances in all, whatever pools and nodes the file is for: one in three reads "
            "prompts; 1 does both.",
        ),
    ] = None,
    prefill: Annotated[int | None, typer.Option("--prefill", help="Instances of the prefill pool.")] = None,
    decode: Annotated[int | None, typer.Option("--decode", help="Instances of the decode pool.")] = None,
    settings: Settings = None,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Return when it is ready.")] = False,
    wait: Wait = "300s",  # type: ignore[assignment]
    address: Annotated[
        str | None,
        typer.Option("--address", metavar="RAY", help="Join this Ray cluster; default: start one."),
    ] = None,
    sample: Annotated[bool, typer.Option(help="Ask one question when it is ready.")] = True,
    log: Annotated[str | None, typer.Option("--log", hidden=True)] = None,
) -> None:
    """Start a cluster on this machine and serve a model; Ctrl-C ends it."""
    rivals = {"--prefill": prefill, "--decode": decode, "--address": address}
    if local is not None and (named := [flag for flag, value in rivals.items() if value is not None]):
        raise Failure(Exit.USAGE, "usage", f"{LOCAL} goes without {' and '.join(named)}")
    shares = {} if local is None else shared_out(local)
    given = _overrides(model, host, port, prefill, decode, settings) | shares
    config, origins = start_config(file, given, FLAGS | dict.fromkeys(shares, LOCAL))
    if detach and log is None:
        with Steps(messages(quiet=root(context).quiet)).step(BACKGROUND):
            state = start_detached(wait)
        print_addresses(state, config)
        return
    run(context, config, wait, address=address, sample=sample, log=log, origins=origins)


def run(
    context: typer.Context,
    config: Config,
    wait: float,
    *,
    address: str | None = None,
    sample: bool = False,
    log: str | None = None,
    origins: Mapping[Path, str],
) -> None:
    """Start, print the addresses, and stay until a signal comes. `origins` are those of the values."""
    if address is None:
        check_numbers(config)
    with only_one(), signals() as interrupt:
        steps = Steps(messages(quiet=root(context).quiet))
        left = read_state()
        if left is not None:
            with steps.step(f"ending what process {left.pid} left when it was killed"):
                sweep(left)
        made = settle(config, steps.step)
        told = settled(origins, config, made)
        interrupt.quietly()  # until there is somebody to remove the folder that a cluster makes
        cluster = LocalCluster(made, address=address, log=log, origins=told)
        _run(cluster, steps, interrupt, wait, sample=sample)


def shared_out(instances: int) -> dict[str, object]:
    """Settings by dotted path for so many instances on one machine, which share what it has.

    They ask Ray for none of the resources that nodes of a cluster offer; GPUs are shared out as ever.
    """
    prefill = 0 if instances == 1 else max(1, instances // 3)
    decode = instances - prefill
    return {
        "pools.prefill.replicas": prefill,
        "pools.prefill.min_replicas": min(1, prefill),
        "pools.decode.replicas": decode,
        "pools.decode.min_replicas": 1,
        **{f"{part}.resources": {} for part in ("pools.prefill", "pools.decode", "gateway", "control")},
    }


def _overrides(
    model: str | None,
    host: str | None,
    port: int | None,
    prefill: int | None,
    decode: int | None,
    settings: list[str] | None,
) -> dict[str, object]:
    named = {
        "model.path": model,
        "gateway.host": host,
        "gateway.port": port,
        "pools.prefill.replicas": prefill,
        "pools.decode.replicas": decode,
    }
    return overrides(settings) | {key: value for key, value in named.items() if value is not None}


class Interrupt:
    """SIGINT, SIGTERM, SIGHUP: an exception while starting, an event while serving, nothing in the end."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self.again = False
        self._event = threading.Event()
        self._raising = True

    def handle(self, number: int, frame: FrameType | None) -> None:
        self.again = self.signal is not None
        self.signal = self.signal or number
        self._event.set()
        if self._raising:
            self._raising = False
            raise KeyboardInterrupt

    def quietly(self) -> None:
        """From now on signals only set the event."""
        self._raising = False

    @contextmanager
    def raising(self) -> Iterator[None]:
        """Within, signals raise, at once if one has come; afterwards they only set the event."""
        try:
            self._raising = True
            if self.signal is not None:
                raise KeyboardInterrupt
            yield
        finally:
            self._raising = False

    def wait(self, seconds: float) -> bool:
        return self._event.wait(seconds)


@contextmanager
def signals() -> Iterator[Interrupt]:
    interrupt = Interrupt()
    before = {number: signal.signal(number, interrupt.handle) for number in SIGNALS}
    try:
        yield interrupt
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _run(cluster: LocalCluster, steps: Steps, interrupt: Interrupt, wait: float, *, sample: bool) -> None:
    """The cluster is stopped in any case: `interrupt` is quiet but for what may be cut short."""
    ready = lost = False
    try:
        with interrupt.raising():
            state = cluster.start(steps.step, wait)
            ready = True
            print_addresses(state, cluster.config)
            if sample:
                ask_sample(state, cluster.config)
            interrupt.quietly()
            lost = _stay(cluster, interrupt)
    except KeyboardInterrupt:
        pass
    finally:
        _say(steps, "stopping")
        cluster.stop(drain=ready and not lost, hurry=lambda: interrupt.again)
        _say(steps, "stopped; nothing is left running")
    if lost:
        raise Failure(Exit.FAILED, "lost", "Ray has ended on its own", "start again with `tandem up`")
    if interrupt.signal == signal.SIGINT:
        raise typer.Exit(int(Exit.INTERRUPTED))
    if not ready:
        raise typer.Exit(int(Exit.FAILED))


def _say(steps: Steps, text: str) -> None:
    """Whether or not anybody can hear it: a reader that has gone, as of `| tee`, must not keep a cluster."""
    with suppress(Exception, SystemExit):  # rich ends the process where a pipe is broken
        steps.say(text)


def _stay(cluster: LocalCluster, interrupt: Interrupt) -> bool:
    """Until a signal comes, or Ray is lost (True)."""
    while not interrupt.wait(TICK):
        if not cluster.alive():
            return True
    return False
