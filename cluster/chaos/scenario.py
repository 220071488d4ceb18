"""What a chaos run is to do: load, faults on a schedule, and what must hold at the end."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from cluster.config_layers import file_layer, resolve
from cluster.config_section import Count, Section, contradiction
from cluster.units import Duration, Quantity
from engine.errors import ConfigError


def _upwards(ends: tuple[int, int]) -> tuple[int, int]:
    if ends[0] > ends[1]:
        raise contradiction(f"expected the smaller number first, got {list(ends)}")
    return ends


Share = Annotated[float, Field(ge=0, le=1)]
Range = Annotated[tuple[Count, Count], Field(strict=False), AfterValidator(_upwards)]


class Load(Section):
    """Requests that stream through the gateways. Each is asked once undisturbed and once with faults."""

    requests: Count = Field(
        24, description="How many different requests there are; they come again and again."
    )
    duration: Duration = Field(
        0.0, ge=0, description="How long the load goes on; 0: until all faults are done."
    )
    concurrency: Count = Field(8, description="How many run at a time.")
    prompt_words: Range = Field((8, 60), description="Words of a prompt, from and to.")
    max_tokens: Range = Field((60, 200), description="Tokens of an answer, from and to.")
    sampled: Share = Field(
        0.5, description="The share that is sampled at temperature 1; the others are greedy."
    )
    stops: Share = Field(
        0.25, description="The share with stop strings, which count from the middle of an answer on."
    )
    logprobs: Share = Field(0.25, description="The share with log-probabilities, which are compared too.")
    penalties: Share = Field(0.25, description="The share with presence and frequency penalties.")
    choices: Range = Field((1, 2), description="Choices of a request, from and to.")
    seed: int = Field(1, description="Draws prompts, lengths and victims.")


class Fault(Section):
    """One thing that is done to the cluster, or that is done again and again."""

    kind: Literal[
        "kill", "kill_node", "stop", "terminate", "hang", "link", "clock", "disk", "memory",
        "migrate", "drain", "role", "rolling_restart", "restart", "scale", "apply",
    ]  # fmt: skip
    target: str = Field(
        "decode",
        description="`prefill`, `decode`, `instance`, `gateway`, `controller`, or the name of one; "
        "`all` of a restart.",
    )
    at: Duration = Field(1.0, ge=0, description="When, after the load began.")
    every: Duration = Field(0.0, ge=0, description="How long until it is done again; 0: once.")
    count: Count = Field(1, description="How often it is done, if `every` is given.")
    spread: Duration = Field(0.0, ge=0, description="Each time up to so much later, drawn by lot.")
    settled: bool = Field(
        False, description="Wait each time until both pools are whole and all gateways are there."
    )
    lasting: Duration = Field(
        2.0, ge=0, description="When a stop, a hung step, a bad link, a wrong clock or a full disk ends."
    )
    jump: Duration = Field(
        3600.0, ge=0, description="How far a wall clock jumps: ahead, and back at the end."
    )
    link: str = Field(
        "", description='What a link suffers, such as "delay=20ms rate=10Mi damage=0.05 cut=0.01".'
    )
    size: int = Field(2**28, ge=1, description="Bytes of memory that are taken.")
    settings: dict[str, Any] = Field({}, description="What is applied, by dotted path.")

    @model_validator(mode="after")
    def _says_what(self) -> Self:
        for kind in ("link", "apply"):
            key = "settings" if kind == "apply" else kind
            if self.kind == kind and not getattr(self, key):
                raise contradiction(f"a fault of kind {kind} needs {key}")
        return self


class Expect(Section):
    """What makes the verdict a pass."""

    hit: int | None = Field(
        None,
        ge=0,
        description="The least number of streams that what ends processes must have hit; left out: 1 where "
        "a fault is of that kind.",
    )
    lost: int = Field(0, ge=0, description="Requests without a whole answer.")
    duplicated: int = Field(0, ge=0, description="Requests that were sent tokens twice.")
    changed: int = Field(0, ge=0, description="Requests with other tokens than undisturbed.")
    resume: Duration = Field(
        0.0,
        ge=0,
        description="The longest that a stream which a fault hit may stand still; 0: not looked at.",
    )
    pause: Duration = Field(
        0.0, ge=0, description="The longest that any stream may stand still; 0: not looked at."
    )
    growth: Quantity = Field(
        0,
        ge=0,
        description="Bytes an hour by which the memory of processes of one kind may grow; 0: not looked at.",
    )
    handles: int = Field(
        4,
        ge=0,
        description="By how many more open files, pipes and the like a process may end than one began with.",
    )
    sockets: int = Field(
        12, ge=0, description="By how many more open sockets a process may end than one began with."
    )


class Scenario(Section):
    """A whole scenario."""

    name: str
    about: str = Field("", description="What it shows, for people.")
    load: Load = Load()
    faults: Annotated[tuple[Fault, ...], Field(strict=False, min_length=1)]
    expect: Expect = Expect()


SHIPPED = files("cluster.chaos") / "scenarios"


def shipped() -> list[str]:
    """The names of the scenarios that come with tandem."""
    return sorted(
        entry.name.removesuffix(".yaml") for entry in SHIPPED.iterdir() if entry.name.endswith(".yaml")
    )


def load(name: str) -> Scenario:
    """A scenario from a file, or one that comes with tandem. Raises ConfigError with every mistake."""
    path = Path(name)
    if path.is_file():
        text = _text(path)
    elif name in shipped():
        text = (SHIPPED / f"{name}.yaml").read_text(encoding="utf-8")
    else:
        raise ConfigError(f"{name}: no such file, and none of the scenarios {', '.join(shipped())}")
    resolved = resolve(Scenario, [file_layer(text, name)])
    if resolved.config is None:
        raise ConfigError("\n".join(map(str, resolved.problems)))
    return resolved.config


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as UTF-8 text: {error}") from error
