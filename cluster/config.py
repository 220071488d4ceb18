"""The one configuration: frozen values with defaults, read from layers of YAML, variables and flags."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from cluster.config_layers import Resolved, environment_layer, file_layer, flag_layer, resolve
from cluster.units import Duration, Quantity
from engine.errors import ConfigError

SYSTEM_FILE = Path("/etc/tandem/tandem.yaml")

Count = Annotated[int, Field(ge=1)]
Port = Annotated[int, Field(ge=0, le=65535)]
Names = Annotated[tuple[str, ...], Field(strict=False)]


class Section(BaseModel):
    """Values that never change; YAML types are taken literally ("2" is no integer)."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class ModelConfig(Section):
    """The model that is served."""

    path: str | None = Field(
        None,
        description="A Hugging Face folder or a GGUF file. Null serves the embedded SmolLM2-135M-Instruct.",
    )
    name: str | None = Field(
        None, description="The name that clients use. Null takes that of the file or folder."
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="Numbers to compute with. `auto` takes what is fastest on the device."
    )
    max_length: Count | None = Field(
        None, description="The most tokens of prompt and answer together. Null takes the model's own limit."
    )


class PoolConfig(Section):
    """A pool of instances."""

    replicas: int = Field(1, ge=1, le=1024, description="How many instances the pool starts with.")
    resources: dict[str, Annotated[float, Field(ge=0)]] = Field(
        {}, description="Ray resources that each instance asks for, such as `{decode: 1}` or `{GPU: 1}`."
    )


class PrefillPool(PoolConfig):
    """The pool that reads prompts."""


class DecodePool(PoolConfig):
    """The pool that writes answers."""

    replicas: int = Field(2, ge=1, le=1024, description="How many instances the pool starts with.")


class PoolsConfig(Section):
    """The two pools."""

    prefill: PrefillPool = PrefillPool()
    decode: DecodePool = DecodePool()


class EngineConfig(Section):
    """The engine inside each instance."""

    block_size: Literal[8, 16, 32, 64] = Field(16, description="Tokens in one block of the KV cache.")
    kv_memory: Quantity = Field(2**28, ge=2**20, description="Memory for the KV cache of each instance.")
    token_budget: Count = Field(
        256, description="The most tokens of one step; prompts are cut into chunks to fit it."
    )
    max_sequences: Count = Field(64, description="The most sequences that run at once in one instance.")
    queue_limit: Count = Field(
        256, description="The most sequences that wait in one instance; more are answered 503."
    )
    prefix_cache: bool = Field(True, description="Keep the KV of prompts for requests that begin alike.")
    threads: Count | None = Field(None, description="CPU threads of an instance. Null shares out the cores.")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="`auto` takes a GPU where there is one."
    )


class TransferConfig(Section):
    """How KV moves between instances."""

    transport: Literal["auto", "shm", "tcp"] = Field(
        "auto", description="`auto` takes shared memory on one machine and TCP between machines."
    )
    host: str = Field("127.0.0.1", description="The address on which an instance receives KV over TCP.")
    reserve_timeout: Duration = Field(5.0, gt=0, description="How long a destination may take to reserve.")
    chunk_timeout: Duration = Field(10.0, gt=0, description="How long one chunk may take to arrive.")
    commit_timeout: Duration = Field(5.0, gt=0, description="How long the change of ownership may take.")
    lease: Duration = Field(30.0, gt=0, description="How long a reservation outlives its last renewal.")
    max_sessions: Count = Field(16, description="The most movements at once into one instance.")


class SchedulerConfig(Section):
    """Where requests go."""

    local_prefill_tokens: int = Field(
        32, ge=0, description="Prompts up to this length are prefilled by the instance that decodes them."
    )
    place_timeout: Duration = Field(10.0, gt=0, description="How long a request waits for an instance.")


class GatewayConfig(Section):
    """The OpenAI-compatible address."""

    host: str = Field("127.0.0.1", description="The address that gateways listen on.")
    port: Port = Field(
        8000, description="Their port; a further replica on one machine, or 0, takes a free one."
    )
    replicas: int = Field(1, ge=1, le=64, description="How many gateways there are.")
    api_keys: Names = Field(
        (),
        description="Keys that clients must send as bearer tokens. Empty accepts everybody.",
        json_schema_extra={"secret": True},
    )
    cors_origins: Names = Field((), description="Web origins that browsers may call from.")
    body_limit: Quantity = Field(
        8 * 2**20, ge=1024, description="The largest request body; more is answered 413."
    )
    stream_timeout: Duration = Field(600.0, gt=0, description="How long one request may take in all.")
    keepalive: Duration = Field(15.0, gt=0, description="How often a silent stream sends a comment.")
    retries: int = Field(3, ge=0, le=10, description="How often a request of a dead instance is retried.")


class ControlConfig(Section):
    """The controller and its address, which the command line talks to."""

    host: str = Field("127.0.0.1", description="The address of the control port.")
    port: Port = Field(0, description="The control port. 0 takes a free one; `tandem up` records it.")
    token: str | None = Field(
        None,
        repr=False,
        json_schema_extra={"secret": True},
        description="The secret that every part of the cluster shows. Null draws one at each start.",
    )
    beat: Duration = Field(0.25, gt=0, description="How often each instance reports its status.")
    start_timeout: Duration = Field(120.0, gt=0, description="How long an instance may take to start.")
    drain_timeout: Duration = Field(
        60.0, gt=0, description="How long an instance that is taken away may go on."
    )
    call_timeout: Duration = Field(
        5.0, gt=0, description="How long a call between two parts of the cluster may take."
    )
    silence_timeout: Duration = Field(
        30.0, gt=0, description="How long an instance may give no status before it is replaced."
    )
    orphan_timeout: Duration = Field(
        60.0, gt=0, description="How long an instance stays when no controller asks for its status."
    )
    longest_pause: Duration = Field(
        30.0, gt=0, description="The longest pause before an instance that failed to start is tried again."
    )
    events: Count = Field(1000, description="How many events the controller remembers.")


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
    cache: CacheConfig = CacheConfig()
    log: LogConfig = LogConfig()

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


def load(path: str | os.PathLike[str] | None = None, overrides: Mapping[str, object] | None = None) -> Config:
    """The config in force. Raises ConfigError with every problem, each with its place."""
    resolved = read(path, overrides)
    if resolved.config is None:
        raise ConfigError("\n".join(str(problem) for problem in resolved.problems))
    return resolved.config


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text at byte {error.start}") from error
