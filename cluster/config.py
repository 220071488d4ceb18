"""The one configuration: frozen values with defaults, read from layers of YAML, variables and flags."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from cluster.config_admin import AdminConfig
from cluster.config_engine import EngineConfig
from cluster.config_kubernetes import KubernetesConfig
from cluster.config_layers import Resolved, environment_layer, file_layer, flag_layer, resolve
from cluster.config_observe import ObserveConfig
from cluster.config_scheduler import AutoscaleConfig, SchedulerConfig
from cluster.config_section import Count, Names, Port, Resources, Section, contradiction
from cluster.config_security import SecurityConfig
from cluster.units import Duration, Quantity
from engine.errors import ConfigError

SYSTEM_FILE = Path("/etc/tandem/tandem.yaml")
LARGEST_FILE = 2**20


class ModelConfig(Section):
    """The model that is served."""

    path: str | None = Field(
        None,
        description="A Hugging Face folder or a GGUF file. Null serves the embedded SmolLM2-135M-Instruct.",
    )
    name: str | None = Field(
        None, description="The name that clients use. Null takes that of the file or folder."
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="Numbers to compute with. `auto` is float32 on a CPU and bfloat16 on a GPU; "
        "float16 is for GPUs.",
    )
    weights: Literal["auto", "dense"] = Field(
        "auto",
        description="How weights are kept. `auto` leaves 4- and 8-bit weights of a GGUF file as they are "
        "where the compiled CPU kernels run, with the same results; `dense` expands them to `dtype`.",
    )
    activations: Literal["auto", "int8"] = Field(
        "auto",
        description="What enters products. `auto` is `dtype`; `int8` rounds to 8 bits, a scale for each 32, "
        "what meets 4-bit weights: faster and less precise, for float32 and the compiled CPU kernels alone.",
    )
    max_length: Count | None = Field(
        None, description="The most tokens of prompt and answer together. Null takes the model's own limit."
    )

    @model_validator(mode="after")
    def _rounded_from_float32(self) -> ModelConfig:
        if self.activations == "int8" and (self.dtype not in ("auto", "float32") or self.weights != "auto"):
            raise contradiction(
                "activations int8 goes with dtype float32 and weights auto: change one of them"
            )
        return self


class PoolConfig(Section):
    """A pool of instances."""

    replicas: int = Field(1, ge=1, le=1024, description="How many instances the pool starts with.")
    min_replicas: int = Field(1, ge=1, le=1024, description="A target below it is refused.")
    max_replicas: int = Field(64, ge=1, le=1024, description="A target above it is refused.")
    resources: Resources = Field(
        {}, description="Ray resources that each instance asks for, such as `{decode: 1}` or `{GPU: 1}`."
    )
    autoscale: AutoscaleConfig = AutoscaleConfig()

    @model_validator(mode="after")
    def _within_bounds(self) -> PoolConfig:
        if not self.min_replicas <= self.replicas <= self.max_replicas:
            raise contradiction(
                f"{self.replicas} replicas are not within min_replicas {self.min_replicas} and max_replicas "
                f"{self.max_replicas}: change one of them"
            )
        return self


class PrefillPool(PoolConfig):
    """The pool that reads prompts."""

    replicas: int = Field(
        1,
        ge=0,
        le=1024,
        description="How many instances the pool starts with. With 0, and `min_replicas` 0 too, every prompt "
        "is read by the instance that decodes it.",
    )
    min_replicas: int = Field(1, ge=0, le=1024, description="A target below it is refused.")


class DecodePool(PoolConfig):
    """The pool that writes answers."""

    replicas: int = Field(
        2,
        ge=0,
        le=1024,
        description="How many instances the pool starts with. With 0, and `min_replicas` 0 too, gateways "
        "keep telling of the model. Where no prefill instance writes the answers, requests are refused and "
        "counted until there is an instance again: autoscaling starts one.",
    )
    min_replicas: int = Field(1, ge=0, le=1024, description="A target below it is refused.")


class PoolsConfig(Section):
    """The two pools."""

    prefill: PrefillPool = PrefillPool()
    decode: DecodePool = DecodePool()


class TransferConfig(Section):
    """How KV moves between instances."""

    transport: Literal["auto", "shm", "tcp", "nccl", "nixl"] = Field(
        "auto",
        description="`auto` takes shared memory on one machine and TCP between machines. `nccl` (GPUs) and "
        "`nixl` are taken between instances that both have them, and need their extras.",
    )
    host: str = Field("127.0.0.1", description="The address on which an instance receives KV over TCP.")
    reserve_timeout: Duration = Field(5.0, gt=0, description="How long a destination may take to reserve.")
    chunk_timeout: Duration = Field(10.0, gt=0, description="How long one chunk may take to arrive.")
    commit_timeout: Duration = Field(5.0, gt=0, description="How long the change of ownership may take.")
    lease: Duration = Field(30.0, gt=0, description="How long a reservation outlives its last renewal.")
    max_sessions: Count = Field(16, description="The most movements at once into one instance.")
    resends: int = Field(2, ge=0, le=100, description="How often a chunk that arrived damaged is sent again.")
    live_stages: Count = Field(
        3, description="How often a request that is migrated is copied while it runs; then it stays."
    )
    last_stage_blocks: Count = Field(
        16, description="A migrated request pauses for its last copy when fewer KV blocks than this remain."
    )
    pause: Duration = Field(
        0.02, gt=0, description="It also pauses as soon as the last copy is predicted to take no longer."
    )
    max_moves: Count = Field(4, description="The most migrations at once out of one instance; more wait.")
    moving_tokens: Count = Field(
        65536, description="The most tokens of requests that migrate out of one instance at once."
    )
    reserved_share: float = Field(
        0.5, gt=0, le=1, description="The share of an instance's KV blocks that migrations may reserve."
    )


class GatewayConfig(Section):
    """The OpenAI-compatible address."""

    host: str = Field("127.0.0.1", description="The address that gateways listen on.")
    port: Port = Field(
        8000, description="Their port; with 0 each takes a free one (`tandem up` draws one for all)."
    )
    replicas: int = Field(
        2,
        ge=1,
        le=64,
        description="How many gateways there are. On each machine one listens, and the next takes the port "
        "over the moment that one dies.",
    )
    resources: Resources = Field(
        {}, description="Ray resources that each gateway asks for, such as `{gateway: 1}`."
    )
    api_keys: Names = Field(
        (),
        description="Keys that clients must send as bearer tokens, best as `[TENANT=]sha256:HEX`: "
        "`tandem key new` draws one. Empty, and without a key file, accepts everybody.",
        json_schema_extra={"secret": True},
    )
    key_file: str | None = Field(
        None, description="A file of such hashes, one a line; it is read again when it changes."
    )
    metrics_token: str | None = Field(
        None,
        repr=False,
        json_schema_extra={"secret": True},
        description="A secret that opens `/metrics` and `/load` and nothing else, where API keys are asked "
        "for.",
    )
    cors_origins: Names = Field((), description="Web origins that browsers may call from.")
    body_limit: Quantity = Field(
        8 * 2**20, ge=1024, description="The largest request body; more is answered 413."
    )
    header_limit: Quantity = Field(
        32 * 2**10, ge=1024, description="The largest request line and headers; more is answered 431."
    )
    arrival_timeout: Duration = Field(
        30.0, gt=0, description="How long headers and body of one request may take to arrive."
    )
    connections: Count = Field(
        4096, description="The most connections to one gateway; more are answered 503 and closed."
    )
    stream_timeout: Duration = Field(600.0, gt=0, description="How long one request may take in all.")
    resume_lease: Duration = Field(
        30.0,
        gt=0,
        description="How long a request with `x-tandem-resumable: 1` waits for its client, and how long "
        "an instance keeps what has ended there.",
    )
    keepalive: Duration = Field(15.0, gt=0, description="How often a silent stream sends a comment.")
    retries: int = Field(
        3, ge=0, le=10, description="How many instances in a row a request may lose without a further token."
    )


class ControlConfig(Section):
    """The controller and its address, which the command line talks to."""

    host: str = Field("127.0.0.1", description="The address of the control port.")
    port: Port = Field(0, description="The control port. 0 takes a free one; `tandem up` records it.")
    resources: Resources = Field(
        {}, description="Ray resources that the controller asks for, such as `{controller: 1}`."
    )
    token: str | None = Field(
        None,
        repr=False,
        json_schema_extra={"secret": True},
        description="The secret that every part of the cluster shows. Null draws one at each start.",
    )
    beat: Duration = Field(
        0.25, gt=0, description="How often each instance is asked for a sign of life and its status."
    )
    surge: int = Field(
        1,
        ge=0,
        le=1,
        description="How many instances more than its target a pool may have while instances are replaced; "
        "with 0 the old one goes first.",
    )
    start_timeout: Duration = Field(120.0, gt=0, description="How long an instance may take to start.")
    drain_timeout: Duration = Field(
        60.0, gt=0, description="How long an instance that is taken away may go on."
    )
    call_timeout: Duration = Field(
        5.0, gt=0, description="How long a call between two parts of the cluster may take."
    )
    silence_timeout: Duration = Field(
        1.4,
        gt=0,
        description="How long after its last beat an instance is killed and replaced. Time "
        "that one beside the controller waited for CPU or disk is not counted, up to ten times as long.",
    )
    step_factor: float = Field(
        10.0,
        ge=1,
        description="A step that takes so many times what its size lets expect is hung: the instance is "
        "killed and replaced.",
    )
    step_floor: Duration = Field(3.0, gt=0, description="No step is taken for hung before that time.")
    orphan_timeout: Duration = Field(
        60.0, gt=0, description="How long an instance stays when no controller asks for its status."
    )
    longest_pause: Duration = Field(
        30.0, gt=0, description="The longest pause before an instance that failed to start is tried again."
    )
    events: Count = Field(1000, description="How many events, and how many moves, the controller remembers.")


class CacheConfig(Section):
    """Files that are kept between starts."""

    directory: str | None = Field(
        None, description="The folder of packed weights. Null takes `tandem` in the user's XDG cache folder."
    )


class LogConfig(Section):
    """What is logged."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="The least severe message."
    )
    format: Literal["text", "json"] = Field("text", description="Plain lines, or one JSON object a line.")


class Config(Section):
    """All settings. Plain data: model_dump_json and model_validate_json carry it to every actor."""

    model: ModelConfig = ModelConfig()
    pools: PoolsConfig = PoolsConfig()
    engine: EngineConfig = EngineConfig()
    transfer: TransferConfig = TransferConfig()
    scheduler: SchedulerConfig = SchedulerConfig()
    gateway: GatewayConfig = GatewayConfig()
    control: ControlConfig = ControlConfig()
    admin: AdminConfig = AdminConfig()
    observe: ObserveConfig = ObserveConfig()
    security: SecurityConfig = SecurityConfig()
    cache: CacheConfig = CacheConfig()
    log: LogConfig = LogConfig()
    kubernetes: KubernetesConfig = KubernetesConfig()

    @property
    def cache_directory(self) -> Path:
        """The folder for packed weights and fetched files; it need not exist yet."""
        if self.cache.directory is not None:
            return Path(self.cache.directory).expanduser()
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "tandem"


def read(
    path: str | os.PathLike[str] | None = None,
    overrides: Mapping[str, object] | None = None,
    *,
    flags: Mapping[str, str] | None = None,
    environment: Mapping[str, str] | None = None,
    system_file: Path = SYSTEM_FILE,
) -> Resolved[Config]:
    """Read all layers; problems are returned, not raised. `overrides` go by dotted path."""
    layers = []
    if system_file.is_file():
        layers.append(file_layer(_text(system_file), str(system_file)))
    if path is not None:
        layers.append(file_layer(_text(Path(path)), str(path)))
    layers.append(environment_layer(os.environ if environment is None else environment))
    layers.append(flag_layer(overrides or {}, flags or {}))
    return resolve(Config, layers)


def load(
    path: str | os.PathLike[str] | None = None,
    overrides: Mapping[str, object] | None = None,
    *,
    flags: Mapping[str, str] | None = None,
) -> Config:
    """The config in force. Raises ConfigError with every problem, each with its place."""
    resolved = read(path, overrides, flags=flags)
    if resolved.config is None:
        raise ConfigError("\n".join(str(problem) for problem in resolved.problems))
    return resolved.config


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    if len(data) > LARGEST_FILE:
        raise ConfigError(f"{path}: larger than {LARGEST_FILE >> 20} MiB: this is no config file")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        before = data[: error.start]
        line, column = before.count(b"\n") + 1, error.start - before.rfind(b"\n")
        raise ConfigError(f"{path}:{line}:{column}: not UTF-8 text: save the file as UTF-8") from error
