"""tandem serve: one model behind one instance that both reads and writes, with the flags of other servers."""

from __future__ import annotations

from typing import Annotated

import typer

from cluster.cli.detach import detach as start_detached
from cluster.cli.greeting import print_addresses
from cluster.cli.options import ConfigFile, Settings, Wait, overrides, root, start_config
from cluster.cli.output import messages
from cluster.cli.progress import Steps
from cluster.cli.up import BACKGROUND, run

COLOCATED: dict[str, object] = {
    "pools.prefill.replicas": 0,
    "pools.prefill.min_replicas": 0,
    "pools.decode.replicas": 1,
}
FLAGS = {
    "model.path": "MODEL",
    "model.name": "--served-model-name",
    "model.max_length": "--max-model-len",
    "model.dtype": "--dtype",
    "gateway.host": "--host",
    "gateway.port": "--port",
    "gateway.api_keys": "--api-key",
    "pools.decode.replicas": "--replicas",
    "engine.max_sequences": "--max-num-seqs",
    "engine.token_budget": "--max-num-batched-tokens",
    "engine.block_size": "--block-size",
}


def command(
    context: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(help="A Hugging Face folder or a GGUF file. Default: the embedded small model."),
    ] = None,
    host: Annotated[str | None, typer.Option("--host", help="The address to listen on.")] = None,
    port: Annotated[int | None, typer.Option("--port", help="The port; 0 takes a free one.")] = None,
    name: Annotated[
        str | None, typer.Option("--served-model-name", help="The name that clients use.")
    ] = None,
    max_length: Annotated[
        int | None, typer.Option("--max-model-len", help="The most tokens of prompt and answer together.")
    ] = None,
    dtype: Annotated[str | None, typer.Option("--dtype", help="auto, float32 or bfloat16.")] = None,
    api_keys: Annotated[
        list[str] | None, typer.Option("--api-key", help="A key that clients must send; may be repeated.")
    ] = None,
    max_sequences: Annotated[
        int | None, typer.Option("--max-num-seqs", help="The most sequences that run at once.")
    ] = None,
    token_budget: Annotated[
        int | None, typer.Option("--max-num-batched-tokens", help="The most tokens of one step.")
    ] = None,
    block_size: Annotated[
        int | None, typer.Option("--block-size", help="Tokens in one block of the KV cache.")
    ] = None,
    replicas: Annotated[int | None, typer.Option("--replicas", help="How many instances.")] = None,
    file: ConfigFile = None,
    settings: Settings = None,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Return when it is ready.")] = False,
    wait: Wait = "300s",  # type: ignore[assignment]
    log: Annotated[str | None, typer.Option("--log", hidden=True)] = None,
) -> None:
    """Serve a model from instances that both prefill and decode: `up` without a prefill pool.

    `tandem apply --set pools.prefill.replicas=1` takes it apart into two pools later, while it serves.
    """
    named: dict[str, object | None] = {
        "model.path": model,
        "model.name": name,
        "model.max_length": max_length,
        "model.dtype": dtype,
        "gateway.host": host,
        "gateway.port": port,
        "gateway.api_keys": api_keys or None,
        "pools.decode.replicas": replicas,
        "engine.max_sequences": max_sequences,
        "engine.token_budget": token_budget,
        "engine.block_size": block_size,
    }
    given = {key: value for key, value in named.items() if value is not None}
    config, origins = start_config(file, COLOCATED | overrides(settings) | given, FLAGS)
    if detach and log is None:
        with Steps(messages(quiet=root(context).quiet)).step(BACKGROUND):
            state = start_detached(wait)
        print_addresses(state, config)
        return
    run(context, config, wait, log=log, origins=origins)
