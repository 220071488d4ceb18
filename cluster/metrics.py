"""The gateway's metrics: vllm:* under the names that dashboards read, and tandem_* of our own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)

from cluster import control_pb2 as pb
from cluster.config_observe import ObserveConfig
from cluster.job import Job
from cluster.metrics_control import ControlCollector
from cluster.metrics_status import StatusCollector
from cluster.objectives import Objectives
from cluster.run_progress import RunProgress
from engine.errors import CapacityError, TandemError

TTFT = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1,
    2.5,
    5,
    7.5,
    10,
    20,
    40,
    80,
    160,
    640,
    2560,
)
LATENCY = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
GAP = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.075,
    0.1,
    0.15,
    0.2,
    0.3,
    0.4,
    0.5,
    0.75,
    1,
    2.5,
    5,
    7.5,
    10,
    20,
    40,
    80,
)
TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)

CLIENT_CLOSED = "499"
DEFAULT_TENANT = "default"


M = TypeVar("M", Counter, Gauge, Histogram)


class Metrics:
    """One registry per gateway. Where vLLM has a label `engine`, what the gateway measures has engine 0."""

    def __init__(
        self, model: str, status: Callable[[], pb.ClusterStatus], config: ObserveConfig = ObserveConfig()
    ) -> None:
        # The time at which a counter began is of no use to anybody here and doubles the series.
        disable_created_metrics()
        self.registry = CollectorRegistry()
        self._model = model
        self._tenants: set[str] = set()
        self._most_tenants = config.tenants
        self.objectives = Objectives(config)
        self.registry.register(StatusCollector(model, status, config.instances))
        self.registry.register(ControlCollector(status, config.instances, self.objectives))
        self._labels = (model, "0")
        self._make_vllm()
        self._make_own()

    def _make_vllm(self) -> None:
        make = self._make
        by = ("model_name", "engine")
        self._prompt_tokens = make(Counter, "vllm:prompt_tokens", "Prompt tokens of answered requests.", by)
        self._prompt_source = make(
            Counter,
            "vllm:prompt_tokens_by_source",
            "Prompt tokens by where their KV came from.",
            (*by, "source"),
        )
        self._generation_tokens = make(Counter, "vllm:generation_tokens", "Tokens drawn.", by)
        self._success = make(Counter, "vllm:request_success", "Choices finished.", (*by, "finished_reason"))
        self._admission = make(
            Counter, "vllm:admission_rejections", "Requests turned away for want of room.", by
        )
        self._vllm_ttft = make(
            Histogram, "vllm:time_to_first_token_seconds", "Seconds to first token.", by, TTFT
        )
        self._vllm_itl = make(
            Histogram, "vllm:inter_token_latency_seconds", "Seconds between tokens.", by, GAP
        )
        self._vllm_old_tpot = make(
            Histogram, "vllm:time_per_output_token_seconds", "The same under its older name.", by, GAP
        )
        self._vllm_tpot = make(
            Histogram,
            "vllm:request_time_per_output_token_seconds",
            "Seconds per token after the first.",
            by,
            GAP,
        )
        self._vllm_e2e = make(Histogram, "vllm:e2e_request_latency_seconds", "Seconds in all.", by, LATENCY)
        self._vllm_queue = make(Histogram, "vllm:request_queue_time_seconds", "Seconds waiting.", by, LATENCY)
        self._vllm_prefill = make(
            Histogram, "vllm:request_prefill_time_seconds", "Seconds in prefill.", by, LATENCY
        )
        self._vllm_decode = make(
            Histogram, "vllm:request_decode_time_seconds", "Seconds in decode.", by, LATENCY
        )
        self._vllm_prompt = make(
            Histogram, "vllm:request_prompt_tokens", "Prompt tokens of a request.", by, TOKENS
        )
        self._vllm_generation = make(
            Histogram, "vllm:request_generation_tokens", "Tokens drawn for a request.", by, TOKENS
        )

    def _make_own(self) -> None:
        make = self._make
        self._requests = make(Counter, "tandem_requests", "Requests by outcome.", ("model", "tenant", "code"))
        self._requests.labels(self._model, DEFAULT_TENANT, "500")
        self._rejections = make(Counter, "tandem_rejections", "Requests turned away.", ("reason",))
        for error in CapacityError.__subclasses__():
            self._rejections.labels(error.code)
        self._resumes = make(Counter, "tandem_resumes", "Requests resumed elsewhere.", ("cause",))
        self._resumes.labels("instance_lost")
        self._disagg = make(
            Counter, "tandem_disagg_decisions", "Requests by where their prefill ran.", ("type",)
        )
        self._ttft = make(Histogram, "tandem_ttft_seconds", "Time to first token.", (), TTFT)
        self._itl = make(Histogram, "tandem_itl_seconds", "Time between tokens.", (), GAP)
        self._tpot = make(Histogram, "tandem_tpot_seconds", "Time per output token after the first.", (), GAP)
        self._e2e = make(Histogram, "tandem_e2e_seconds", "Time from arrival to the last token.", (), LATENCY)
        self._service = make(
            Gauge,
            "tandem_fairness_service_tokens",
            "Service that a tenant has had: prompt tokens, and output tokens twice.",
            ("tenant",),
        )
        self._queue = make(
            Histogram, "tandem_queue_seconds", "Time waiting at an instance.", ("phase",), TTFT
        )

    def _make(
        self,
        kind: type[M],
        name: str,
        text: str,
        labels: tuple[str, ...],
        buckets: tuple[float, ...] | None = None,
    ) -> M:
        extra: dict[str, Any] = {} if buckets is None else {"buckets": buckets}
        return kind(name, text, labels, registry=self.registry, **extra)

    def text(self) -> bytes:
        """The exposition of everything."""
        return generate_latest(self.registry)

    def refused(self, error: TandemError, tenant: str = "") -> None:
        """A request was answered with an error before it ran."""
        self._requests.labels(self._model, self._tenant(tenant), str(error.status)).inc()
        if isinstance(error, CapacityError):
            self._rejections.labels(error.code).inc()
            self._admission.labels(*self._labels).inc()

    def finished(self, job: Job, error: BaseException | None) -> None:
        """A request that ran has ended."""
        tenant = self._tenant(job.runs[0].request.tenant)
        whole = all(choice.finish for choice in job.choices)
        if isinstance(error, TandemError):
            self._requests.labels(self._model, tenant, str(error.status)).inc()
            if isinstance(error, CapacityError):
                self._rejections.labels(error.code).inc()
                self._admission.labels(*self._labels).inc()
        else:
            self._requests.labels(self._model, tenant, "200" if whole else CLIENT_CLOSED).inc()
        for run in job.runs:
            progress, prompt = run.progress, len(run.request.prompt)
            self._observe(progress, prompt, whole=whole and error is None)
            if progress.first is not None:
                self._service.labels(tenant).inc(prompt + 2 * progress.output_tokens)
            # A client that leaves says nothing about how it was served, nor does one half of an answer.
            if (whole or error is not None) and not run.resumed:
                self.objectives.add(progress.ttft, progress.tpot, progress.started)

    def _observe(self, progress: RunProgress, prompt: int, *, whole: bool) -> None:
        if progress.recoveries:
            self._resumes.labels("instance_lost").inc(progress.recoveries)
        if progress.first is None or progress.last is None:
            return
        labels = self._labels
        self._prompt_tokens.labels(*labels).inc(prompt)
        self._prompt_source.labels(*labels, "local_cache_hit").inc(progress.cached)
        self._prompt_source.labels(*labels, "local_compute").inc(max(0, prompt - progress.cached))
        self._generation_tokens.labels(*labels).inc(progress.output_tokens)
        self._disagg.labels("local" if progress.prefill == progress.decode else "disaggregated").inc()
        ttft = progress.first - progress.started
        self._vllm_ttft.labels(*labels).observe(ttft)
        self._ttft.observe(ttft)
        for gap in progress.gaps:
            self._vllm_itl.labels(*labels).observe(gap)
            self._vllm_old_tpot.labels(*labels).observe(gap)
            self._itl.observe(gap)
        self._vllm_queue.labels(*labels).observe(progress.queue_seconds)
        self._queue.labels("prefill").observe(progress.queue_seconds)
        self._vllm_prefill.labels(*labels).observe(progress.prefill_seconds)
        if not whole:
            return
        for finish in progress.finishes:
            self._success.labels(*labels, finish).inc()
        end_to_end = progress.last - progress.started
        self._vllm_e2e.labels(*labels).observe(end_to_end)
        self._e2e.observe(end_to_end)
        self._vllm_decode.labels(*labels).observe(progress.last - progress.first)
        self._vllm_prompt.labels(*labels).observe(prompt)
        self._vllm_generation.labels(*labels).observe(progress.output_tokens)
        if progress.tpot is not None:
            self._vllm_tpot.labels(*labels).observe(progress.tpot)
            self._tpot.observe(progress.tpot)

    def _tenant(self, tenant: str) -> str:
        if tenant not in self._tenants:
            if len(self._tenants) >= self._most_tenants:
                return "other"
            self._tenants.add(tenant)
        return tenant or DEFAULT_TENANT
