"""Names of spans, attributes, metrics: OpenTelemetry's GenAI conventions, still in development, and vLLM's.

They are renamed now and then; nothing else in tandem spells them.
"""

from __future__ import annotations

from cluster import timeline
from engine.request import Sampling

SERVICE = "tandem"
PROVIDER = "tandem"
OPERATIONS = {"/v1/chat/completions": "chat", "/v1/completions": "text_completion"}
"""By path: what is traced and measured."""

SPANS = {
    timeline.ADMIT: "admit",
    timeline.PLACE: "schedule",
    timeline.QUEUE: "queue",
    timeline.PREFILL: "prefill",
    timeline.HANDOFF: "kv_transfer",
    timeline.DECODE: "decode",
    timeline.MIGRATE: "migrate",
    timeline.RECOVER: "recover",
    timeline.RESPOND: "respond",
}
CHUNK = "prefill.chunk"
PROMPT = "prompt"

OPERATION = "gen_ai.operation.name"
PROVIDER_NAME = "gen_ai.provider.name"
REQUEST_MODEL = "gen_ai.request.model"
REQUEST_MAX_TOKENS = "gen_ai.request.max_tokens"
REQUEST_TEMPERATURE = "gen_ai.request.temperature"
REQUEST_TOP_P = "gen_ai.request.top_p"
REQUEST_TOP_K = "gen_ai.request.top_k"
REQUEST_SEED = "gen_ai.request.seed"
REQUEST_STOP = "gen_ai.request.stop_sequences"
REQUEST_STREAM = "gen_ai.request.stream"
REQUEST_CHOICES = "gen_ai.request.choice.count"
RESPONSE_MODEL = "gen_ai.response.model"
RESPONSE_ID = "gen_ai.response.id"
FINISH_REASONS = "gen_ai.response.finish_reasons"
INPUT_TOKENS = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
CACHED_TOKENS = "gen_ai.usage.cache_read.input_tokens"
TIME_TO_FIRST_TOKEN = "gen_ai.latency.time_to_first_token"
TIME_IN_QUEUE = "gen_ai.latency.time_in_queue"
TIME_IN_PREFILL = "gen_ai.latency.time_in_model_prefill"
TIME_IN_DECODE = "gen_ai.latency.time_in_model_decode"
ERROR = "error.type"
REQUEST_DURATION = "gen_ai.server.request.duration"
SERVER_TIME_TO_FIRST_TOKEN = "gen_ai.server.time_to_first_token"
SERVER_TIME_PER_OUTPUT_TOKEN = "gen_ai.server.time_per_output_token"
TENANT = "tandem.tenant"
INSTANCE = "tandem.instance"
REASON = "tandem.reason"
TOKENS = "tandem.tokens"
SOURCE = "tandem.source"
OUTCOME = "tandem.outcome"
COPIES = "tandem.copies"
BLOCKS = "tandem.blocks"
BYTES = "tandem.bytes"
RESERVE, COPY, FREEZE, COMMIT, ABORT = "RESERVE", "COPY", "FREEZE", "COMMIT", "ABORT"
"""Events of the span of a move."""


def asked(sampling: Sampling) -> dict[str, int | float | list[str]]:
    """What a request asked for, as attributes."""
    stop = {REQUEST_STOP: [*sampling.stop]} if sampling.stop else {}
    return stop | {
        REQUEST_MAX_TOKENS: sampling.max_tokens,
        REQUEST_TEMPERATURE: sampling.temperature,
        REQUEST_TOP_P: sampling.top_p,
        REQUEST_TOP_K: sampling.top_k,
        # A span's integers have 64 bits with a sign.
        REQUEST_SEED: sampling.seed & (2**63 - 1),
        REQUEST_CHOICES: sampling.n,
    }
