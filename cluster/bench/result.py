"""The figures of one run of a workload against one server: what `-o json` prints and pages show."""

from __future__ import annotations

from collections.abc import Sequence

from cluster.bench.recording import Outcome
from cluster.bench.statistics import Distribution, Value
from cluster.bench.workload import Kind, Objectives, Workload


class Attainment(Value):
    """How many requests met both objectives (seconds); `share` is of all that were sent, failed ones too."""

    ttft: float
    tpot: float
    met: int
    share: float
    rate: float


class Client(Value):
    """What the load client cost, so that it can be seen not to be the bottleneck.

    `cores` is its processor time over the run's, `event_seconds` that time for each event that it received,
    `late` how many seconds after its time the most delayed request was sent.
    """

    cores: float
    event_seconds: float
    late: float


class Result(Value):
    """One repetition. Times in seconds, memory in bytes, rates a second.

    `duration` is from the first request to the last token. `events` counts what came one by one:
    fewer than `output_tokens` means that the server puts tokens together, and `itl` is then between
    events. `cut` counts answers that were shorter than asked. `other_cores` is processor time of
    neither client nor server, known only with the server's processes.
    """

    server: str
    kind: Kind
    test: str
    repetition: int
    rate: float | None
    requests: int
    failed: int
    cut: int
    errors: tuple[str, ...]
    duration: float
    prompt_tokens: int
    output_tokens: int
    events: int
    request_rate: float
    output_rate: float
    total_rate: float
    ttft: Distribution
    tpot: Distribution
    itl: Distribution
    latency: Distribution
    attainment: Attainment
    client: Client
    other_cores: float | None = None
    memory: int | None = None


def result(
    server: str,
    workload: Workload,
    repetition: int,
    outcomes: Sequence[Outcome],
    objectives: Objectives,
    *,
    processor: tuple[float, float, float],
    late: float,
    wall: float,
    known: bool,
    memory: int | None,
) -> Result:
    """Sums up; `processor` has the seconds of machine, client and server in `wall` seconds.

    The means over requests and the percentiles over tokens are those of `vllm bench serve`: TTFT to the
    first event with a choice, TPOT a request's time after it over its other tokens, ITL every gap.
    """
    done = [one for one in outcomes if one.ok]
    begun = min((one.begun for one in outcomes), default=0.0)
    duration = max((one.times[-1] for one in done), default=begun) - begun
    met = sum(one.meets(objectives.ttft, objectives.tpot) for one in done)
    prompt, output = sum(one.prompt_tokens for one in done), sum(one.output_tokens for one in done)
    events = sum(len(one.times) for one in done)
    everything, own, server_seconds = processor

    def per_second(amount: float) -> float:
        return amount / duration if duration > 0 else 0.0

    return Result(
        server=server,
        kind=workload.kind,
        test=workload.name,
        repetition=repetition,
        rate=workload.rate,
        requests=len(outcomes),
        failed=len(outcomes) - len(done),
        cut=sum(one.output_tokens < one.asked_tokens for one in done),
        errors=tuple(dict.fromkeys(one.failure for one in outcomes if one.failure is not None))[:3],
        duration=duration,
        prompt_tokens=prompt,
        output_tokens=output,
        events=events,
        request_rate=per_second(len(done)),
        output_rate=per_second(output),
        total_rate=per_second(prompt + output),
        ttft=Distribution.of([one.ttft for one in done]),
        tpot=Distribution.of([one.tpot for one in done if one.tpot is not None]),
        itl=Distribution.of([gap for one in done for gap in one.gaps]),
        latency=Distribution.of([one.latency for one in done]),
        attainment=Attainment(
            ttft=objectives.ttft,
            tpot=objectives.tpot,
            met=met,
            share=met / len(outcomes) if outcomes else 0.0,
            rate=per_second(met),
        ),
        client=Client(cores=own / wall, event_seconds=own / max(1, events), late=late),
        other_cores=max(0.0, everything - own - server_seconds) / wall if known else None,
        memory=memory,
    )
