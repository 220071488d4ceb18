"""tandem bench agreement: how far faster numbers agree with float32."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer

from cluster.cli.failures import Exit, Failure
from cluster.cli.options import ConfigFile, Format, Output, Settings, overrides, root
from cluster.cli.output import messages, out, print_data, table
from cluster.cli.progress import Steps
from cluster.config import Config, load
from cluster.units import counted


def agreement(
    context: typer.Context,
    prompts: Annotated[
        Path, typer.Argument(metavar="PROMPTS", help='A JSON list of texts, or of objects with a "text".')
    ],
    file: ConfigFile = None,
    settings: Settings = None,
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="Of each answer.")] = 64,
    output: Output = Format.TABLE,
) -> None:
    """Compare greedy answers and distributions of a configuration with those of float32."""
    texts = _texts(prompts)
    config = load(file, overrides(settings))
    with Steps(messages(quiet=root(context).quiet)).step(
        f"comparing {counted(len(texts), 'answer')} with float32"
    ):
        found = _measure(config, texts, tokens)
    if output.is_data:
        print_data(output, "Agreement", [found])
        return
    rows = table("MEASURE", "VALUE")
    for name, value in found.items():
        rows.add_row(name.replace("_", " "), f"{value:.5g}" if isinstance(value, float) else str(value))
    out().print(rows)


def _texts(path: Path) -> list[str]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return [value if isinstance(value, str) else value["text"] for value in values]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Failure(Exit.USAGE, "usage", f"{path}: not a JSON list of texts: {error}") from error


def _measure(config: Config, texts: list[str], tokens: int) -> dict[str, object]:
    # They bring torch, which takes seconds to import.
    from model.agreement import agreement as compare
    from model.device import resolve
    from model.runner import ModelRunner
    from model.tokenizer import Tokenizer

    device, dtype = resolve(config.engine.device, config.model.dtype)

    def runner(dtype: str, activations: str, blocks: int) -> ModelRunner:
        return ModelRunner(
            config.model.path,
            dtype=dtype,
            device=device,
            cache=config.cache_directory,
            blocks=blocks,
            weights=config.model.weights,
            activations=activations,
        )

    tokenizer = Tokenizer(runner("float32", "auto", 1).assets)
    encoded = [tokenizer.encode(text) for text in texts]
    blocks = -(-(max(map(len, encoded)) + tokens) // config.engine.block_size)
    ours = runner(dtype, config.model.activations, blocks)
    reference = runner("float32", "auto", blocks)
    found = compare(ours, reference, encoded, tokens)
    return {"dtype": ours.numbers, "weights": ours.weights_format, **dataclasses.asdict(found)}
