"""tandem bench serve and replay: load against servers, one beside the other."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Annotated

import typer

from cluster.bench import serve as serving
from cluster.bench.load import Loaded
from cluster.bench.machine import Machine
from cluster.bench.report import ServeReport
from cluster.bench.result import Result
from cluster.bench.serve import Plan
from cluster.bench.serve_sections import result_line, sections
from cluster.bench.target import Target, connect
from cluster.bench.workload import Objectives, variation
from cluster.cli.bench_options import (
    ApiKey,
    Html,
    LongestAnswer,
    LongestPrompt,
    ModelName,
    Pids,
    Plain,
    Repeat,
    RequestTimeout,
    Rest,
    Shrink,
    SloTPOT,
    SloTTFT,
    Speed,
    TraceFile,
    Url,
    Versus,
    workload_of,
)
from cluster.cli.bench_output import Watch, present
from cluster.cli.connect import certificates, gateway, local, reaching, trust
from cluster.cli.failures import Exit, Failure
from cluster.cli.options import Format, Output, root
from cluster.cli.output import messages
from cluster.tls import Tls

STANDARD = ["single", "prefill=512", "batch=32"]


def serve(
    context: typer.Context,
    tests: Annotated[
        list[str] | None,
        typer.Argument(metavar="TEST…", help="single, prefill=512,2048, batch=8,32, rate=1,2,4"),
    ] = None,
    url: Url = None,
    versus: Versus = None,
    api_key: ApiKey = None,
    model: ModelName = None,
    pid: Pids = None,
    prompt: Annotated[
        str | None,
        typer.Option("--prompt", metavar="LENGTH", help="128, uniform:64:256 or lognormal:192:0.7:1024."),
    ] = None,
    output_length: Annotated[
        str | None, typer.Option("--answer", metavar="LENGTH", help="Likewise, of the answers.")
    ] = None,
    arrivals: Annotated[
        str, typer.Option("--arrivals", help="poisson, or gamma:CV for bursts (CV 1 is Poisson).")
    ] = "poisson",
    requests: Annotated[
        int | None, typer.Option("--requests", min=1, help="At each rate; default 20 s of them, at least 30.")
    ] = None,
    ttft: SloTTFT = "500ms",  # type: ignore[assignment]
    tpot: SloTPOT = "50ms",  # type: ignore[assignment]
    repeat: Repeat = 3,
    rest: Rest = "2s",  # type: ignore[assignment]
    seed: Annotated[int, typer.Option("--seed", help="Of lengths and arrivals; texts are always new.")] = 0,
    within: RequestTimeout = "600s",  # type: ignore[assignment]
    plain: Plain = False,
    html: Html = None,
    output: Output = Format.TABLE,
) -> None:
    """Load an OpenAI-compatible server, by default the local cluster, beside others named with --vs."""
    shape = serving.Shape(prompt, output_length, variation(arrivals), requests, seed)
    plans = serving.plans_of(tests or STANDARD, shape)
    settings = {
        "tests": " ".join(tests or STANDARD),
        "prompt": prompt or "standard",
        "answer": output_length or "standard",
        "arrivals": arrivals,
        "seed": str(seed),
    }
    shown = certificates(root(context).tls)
    servers = _Servers(url, versus, pid, api_key, model, shown=shown, extras=not plain)
    watch = Watch(messages(quiet=root(context).quiet))
    report = _measure("serve", servers, plans, repeat, rest, Objectives(ttft, tpot), within, settings, watch)
    present(report, sections(report), "tandem bench serve", html, output)
    _require_answers(report.results)


def replay(
    context: typer.Context,
    trace: TraceFile,
    speed: Speed = 1.0,
    shrink: Shrink = 1.0,
    longest_prompt: LongestPrompt = None,
    longest_answer: LongestAnswer = None,
    requests: Annotated[int | None, typer.Option("--requests", min=1, help="Only the first so many.")] = None,
    url: Url = None,
    versus: Versus = None,
    api_key: ApiKey = None,
    model: ModelName = None,
    pid: Pids = None,
    ttft: SloTTFT = "500ms",  # type: ignore[assignment]
    tpot: SloTPOT = "50ms",  # type: ignore[assignment]
    repeat: Repeat = 1,
    rest: Rest = "2s",  # type: ignore[assignment]
    within: RequestTimeout = "600s",  # type: ignore[assignment]
    plain: Plain = False,
    html: Html = None,
    output: Output = Format.TABLE,
) -> None:
    """Replay a trace of requests against a server, by default the local cluster."""
    workload = workload_of(
        trace,
        speed=speed,
        shrink=shrink,
        longest_prompt=longest_prompt,
        longest_answer=longest_answer,
        requests=requests,
    )
    settings = {"trace": trace.name, "speed": f"{speed:g}", "shrink": f"{shrink:g}"}
    shown = certificates(root(context).tls)
    servers = _Servers(url, versus, pid, api_key, model, shown=shown, extras=not plain)
    watch = Watch(messages(quiet=root(context).quiet))
    plans: list[Plan] = [lambda repetition: workload]
    report = _measure("replay", servers, plans, repeat, rest, Objectives(ttft, tpot), within, settings, watch)
    present(report, sections(report), f"tandem bench replay: {trace.name}", html, output)
    _require_answers(report.results)


class _Servers:
    """What the flags say about the servers: the first is ours, or the one of --url."""

    def __init__(
        self,
        url: str | None,
        versus: Sequence[str] | None,
        pids: Sequence[str] | None,
        api_key: str | None,
        model: str | None,
        *,
        shown: Tls | None,
        extras: bool,
    ) -> None:
        """Raises Failure without a server, for two of one name, and for a pid of none of them."""
        self._given = dict(_parse_pid(pid) for pid in pids or ())
        self._api_key, self._model, self._extras = api_key, model, extras
        self._shown = shown
        self.urls: dict[str, str] = {}
        self._ours = gateway() if url is None else None
        if self._ours is not None:
            self._add("tandem", self._ours)
            self._given.setdefault("tandem", local().pid)
        elif url is not None:
            self._add(*_named(url))
        for other in versus or ():
            self._add(*_named(other))
        if "" in self._given:
            self._given.setdefault(next(iter(self.urls)), self._given.pop(""))
        unknown = self._given.keys() - self.urls.keys()
        if unknown:
            raise Failure(Exit.USAGE, "usage", f"--pid {unknown.pop()}=…: there is no server of that name")

    async def connect(self, watch: Watch) -> list[Target]:
        """Ask each for its model and a first answer. Raises TandemErrors."""
        targets = []
        for name, url in self.urls.items():
            watch.begin(f"asking {name} at {url}")
            pids = (self._given[name],) if name in self._given else ()
            with reaching("gateway", url) if url == self._ours else nullcontext():
                targets.append(await self._connect(name, url, pids))
        return targets

    async def _connect(self, name: str, url: str, pids: tuple[int, ...]) -> Target:
        return await connect(
            name,
            url,
            api_key=self._api_key,
            model=self._model,
            extras=self._extras,
            pids=pids,
            verify=trust(url, self._shown if name == next(iter(self.urls)) else None),
        )

    def _add(self, name: str, url: str) -> None:
        if name in self.urls:
            raise Failure(Exit.USAGE, "usage", f"two servers are called {name}", "name them: --vs NAME=URL")
        self.urls[name] = url


def _named(text: str) -> tuple[str, str]:
    """NAME=URL, or a URL that is called by its host and port."""
    name, equals, url = text.partition("=")
    if equals and "/" not in name:
        return name, url
    return text.rstrip("/").rpartition("//")[2].removesuffix("/v1"), text


def _parse_pid(text: str) -> tuple[str, int]:
    """PID of the first server, or NAME=PID."""
    name, _, number = text.rpartition("=")
    if not number.isdigit():
        raise Failure(Exit.USAGE, "usage", f"--pid expects a number or NAME=PID, got {text!r}")
    return name, int(number)


def _measure(
    command: str,
    servers: _Servers,
    plans: Sequence[Plan],
    repeat: int,
    rest: float,
    objectives: Objectives,
    within: float,
    settings: dict[str, str],
    watch: Watch,
) -> ServeReport:
    machine = Machine.here()

    def took(result: Result) -> None:
        watch.say(result_line(result))

    async def main() -> tuple[list[Target], list[Result]]:
        targets = await servers.connect(watch)
        watch.expect(len(targets) * len(plans) * repeat)
        loaded = [Loaded(target, within) for target in targets]
        results = await serving.measure(
            loaded, plans, repeat, objectives, begin=watch.begin, took=took, rest=rest
        )
        return targets, results

    with watch:
        targets, results = asyncio.run(main())
    return serving.report(command, machine, targets, results, {**settings, "repeat": str(repeat)})


def _require_answers(results: Sequence[Result]) -> None:
    """A server that answered nothing in some test has not been measured there."""
    for result in results:
        if result.failed == result.requests:
            reason = result.errors[0] if result.errors else "no answers"
            message = f"{result.server} failed all of {result.test}: {reason}"
            raise Failure(Exit.FAILED, "failed", message, after_data=True)
