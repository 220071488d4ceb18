"""A request as the engine sees it: values that never change once the gateway has admitted it."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn and when a choice ends. Defaults are OpenAI's.

    `seed` is always set: the gateway derives an absent one from the request id, so that a
    retried or moved request draws the same tokens. `logprobs` is the number of alternatives
    to report beside each drawn token (0: the drawn one alone; None: no log-probabilities).
    `grammar` is what the whole output must be a sentence of, "" for anything; see model/grammar.py.
    """

    max_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    n: int = 1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    logprobs: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop: bool = False
    ignore_eos: bool = False
    min_tokens: int = 0
    grammar: str = ""

    @property
    def has_penalties(self) -> bool:
        """Whether the drawn token depends on the tokens before it beyond the logits."""
        return self.presence_penalty != 0.0 or self.frequency_penalty != 0.0 or self.repetition_penalty != 1.0

    @property
    def looks_back(self) -> bool:
        """Whether a draw has to know what was drawn before it."""
        return self.has_penalties or bool(self.grammar)


@dataclass(frozen=True, slots=True)
class SLO:
    """Latency objectives in seconds: time to first token, time per output token."""

    ttft: float | None = None
    tpot: float | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """One admitted request. `arrival` is in seconds on the clock of the gateway that admitted it.

    `trace` is its W3C `traceparent`, which decides nothing: logs name it.
    """

    id: str
    prompt: tuple[int, ...]
    sampling: Sampling
    arrival: float = 0.0
    tenant: str = ""
    priority: int = 0
    adapter: str = ""
    effort: float = 1.0
    salt: str = ""
    trace: str = ""
    slo: SLO = field(default_factory=SLO)

    @property
    def longest(self) -> int:
        """The most tokens one choice may come to hold, prompt included."""
        return len(self.prompt) + self.sampling.max_tokens
