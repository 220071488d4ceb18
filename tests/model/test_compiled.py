"""The compiled decoder against the eager one in float64, over odd shapes; and its exactness, bit for bit."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from torch import Tensor

from engine.errors import ConfigError, HandshakeRefused, SetupError
from engine.plan import Work
from kernels import dispatch, library, reference
from migration.handshake import Identity, agree
from model.compiled import CompiledDecoder
from model.config import from_hugging_face
from model.packing import recipe
from model.runner import ModelRunner
from tests.model import tiny

needed = pytest.mark.skipif(library.obstacle() is not None, reason=f"kernels: {library.obstacle()}")

SHAPES: dict[str, dict[str, Any]] = {
    "llama": {},
    "untied-biased": {"attention_bias": True, "mlp_bias": True},
    "tied": {"tie_word_embeddings": True},
    "one-kv-head": {"num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 16},
    "wide-heads": {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 256},
    "heads-of-48": {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 48},
    "heads-of-80": {"num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 80},
    "hidden-160": {"hidden_size": 160, "intermediate_size": 224, "head_dim": 32},
    "qwen2": {"architectures": ["Qwen2ForCausalLM"]},
    "qwen3": {"architectures": ["Qwen3ForCausalLM"], "head_dim": 64},
    "yarn": {
        "rope_parameters": {
            "rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64,
        },
        "max_position_embeddings": 256,
    },
}  # fmt: skip
# The greatest error of any logit, in standard deviations of all; torch's operations err by 1e-5 and 0.11.
TOLERANCES = {"float32": 2e-5, "bfloat16": 0.15}
CHUNKS = (1, 5, 30, 64, 1, 1, 7)


def write(folder: Path, changes: Mapping[str, Any]) -> Path:
    """A random model of a shape."""
    changes = {"head_dim": 16, **changes}
    config = from_hugging_face({**tiny.CONFIG, **changes}, "test")
    rng = torch.Generator().manual_seed(0)
    tensors = {}
    for packed in recipe(config):
        for name, shape in packed.sources:
            tensors[name] = (torch.randn(shape, generator=rng) * shape[-1] ** -0.5).numpy()
            if len(shape) == 1:
                tensors[name] += 1
    return tiny.write_folder(folder, tensors, **changes)


def tokens(length: int, seed: int = 0) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(tiny.VOCABULARY) for _ in range(length)]


def chunked(runner: ModelRunner, chunks: tuple[int, ...], blocks: list[int], seed: int = 0) -> Tensor:
    """Logits of all positions of one sequence."""
    known = tokens(sum(chunks), seed)
    parts, start = [], 0
    for count in chunks:
        parts.append(runner.logits([Work("a", 0, known[start : start + count], start, blocks)]))
        start += count
    return torch.cat(parts)


@needed
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("shape", SHAPES)
def test_logits_are_those_of_the_eager_decoder_in_float64(shape: str, dtype: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "model", SHAPES[shape])
    blocks = random.Random(1).sample(range(40), 40)
    ours = ModelRunner(folder, dtype=dtype, blocks=40, block_size=3)
    assert ours.obstacle is None
    twin = ModelRunner(folder, dtype="float64", blocks=40, block_size=3)
    got, expected = chunked(ours, CHUNKS, blocks), chunked(twin, (sum(CHUNKS),), blocks)
    assert float((got - expected).abs().max()) < TOLERANCES[dtype] * float(expected.std())


def test_sizes_that_do_not_suit_are_served_by_torch(tmp_path: Path) -> None:
    for name, changes in (("dim", {"head_dim": 8}), ("hidden", {"hidden_size": 48}), ("f64", {})):
        folder = write(tmp_path / name, changes)
        runner = ModelRunner(folder, dtype="float64" if name == "f64" else "float32", blocks=4)
        assert runner.obstacle is not None
        assert chunked(runner, (5, 1), [1, 0]).shape == (6, tiny.VOCABULARY)


def test_without_the_library_torch_serves_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "library", lambda: "not built: for this test")
    runner = ModelRunner(write(tmp_path / "model", {}), blocks=4)
    assert runner.obstacle == "not built: for this test"
    assert chunked(runner, (5, 1), [1, 0]).shape == (6, tiny.VOCABULARY)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 4-bit weights whose sizes are whole groups."""
    path = tmp_path_factory.mktemp("stored") / "model.gguf"
    return tiny.write_gguf(path, tiny.weights(), kind=gguf.GGMLQuantizationType.Q4_1)


@needed
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0"])
def test_compressed_weights_give_the_bits_of_dense_ones(kind: str, dtype: str, tmp_path: Path) -> None:
    quantised = gguf.GGMLQuantizationType[kind]
    path = tiny.write_gguf(tmp_path / "model.gguf", tiny.weights(), kind=quantised)
    kept, dense = (ModelRunner(path, dtype=dtype, blocks=4, weights=weights) for weights in ("auto", "dense"))
    assert kept.weights_format == ("8-bit" if kind == "Q8_0" else "4-bit")
    assert dense.weights_format == dtype
    assert torch.equal(*(chunked(runner, (1, 30, 4, 1), [2, 0, 3]) for runner in (kept, dense)))


@needed
def test_rounded_activations_are_those_of_the_eager_decoder(
    stored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A number that falls between two steps may go to either: far less than what rounding changes."""

    def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        seen = x if len(weight) == tiny.VOCABULARY else reference.rounded(x.float()).to(x.dtype)
        return torch.nn.functional.linear(seen, weight, bias)

    blocks = random.Random(1).sample(range(40), 40)
    ours = ModelRunner(stored, activations="int8", blocks=40, block_size=4)
    full = ModelRunner(stored, blocks=40, block_size=4)
    plain = dispatch.plain
    monkeypatch.setattr(dispatch, "choose", lambda device: replace(plain(device), linear=linear))
    twin = ModelRunner(stored, dtype="float64", blocks=40, block_size=4)
    expected = chunked(twin, (sum(CHUNKS),), blocks)
    changed, missed = (
        float((chunked(runner, CHUNKS, blocks) - expected).abs().mean() / expected.std())
        for runner in (full, ours)
    )
    assert missed < 0.002 < 0.01 < changed


def scattered(runner: ModelRunner, seed: int) -> list[Tensor]:
    """Logits of four sequences in random chunks, company, order and blocks: [length, vocabulary] each."""
    rng = random.Random(seed)
    lengths = (70, 33, 5, 140)
    free = rng.sample(range(runner.kv.blocks), runner.kv.blocks)
    size = runner.kv.layout.block_size
    tables = [[free.pop() for _ in range(-(-length // size))] for length in lengths]
    known = [tokens(length, seed=index) for index, length in enumerate(lengths)]
    done = [0] * len(lengths)
    parts: list[list[Tensor]] = [[] for _ in lengths]
    while any(at < length for at, length in zip(done, lengths, strict=True)):
        chosen = [index for index, at in enumerate(done) if at < lengths[index] and rng.random() < 0.7]
        rng.shuffle(chosen)
        counts = [min(lengths[index] - done[index], rng.choice((1, 1, 2, 17, 64))) for index in chosen]
        pairs = list(zip(chosen, counts, strict=True))
        works = [Work("a", 0, known[i][done[i] : done[i] + n], done[i], tables[i]) for i, n in pairs]
        if works:
            for (index, count), rows in zip(pairs, runner.logits(works).split(counts), strict=True):
                parts[index].append(rows)
                done[index] += count
    return [torch.cat(part) for part in parts]


@needed
def test_kv_of_rounded_activations_is_not_mixed_with_that_of_others(stored: Path) -> None:
    plain, ours = (ModelRunner(stored, activations=one, blocks=4) for one in ("auto", "int8"))
    identities = [
        Identity.of(name, runner.kv, runner.numerics_digest, b"secret")
        for name, runner in (("plain", plain), ("rounded", ours))
    ]
    assert identities[0].layout == identities[1].layout
    assert plain.numerics_digest == plain.weights_digest
    with pytest.raises(HandshakeRefused, match=r"the same model and model\.activations"):
        agree(identities[0], identities[1].hello())


@needed
@pytest.mark.parametrize(
    "numbers", [{"dtype": "float32"}, {"dtype": "bfloat16"}, {"activations": "int8"}], ids=str
)
def test_logits_are_the_same_bits_on_every_way(stored: Path, numbers: dict[str, str], full: bool) -> None:
    runner = ModelRunner(stored, blocks=80, block_size=4, exact=True, **numbers)  # type: ignore[arg-type]
    first = scattered(runner, 0)
    for seed in range(1, 40 if full else 6):
        for one, other in zip(first, scattered(runner, seed), strict=True):
            assert torch.equal(one, other)


def test_the_way_shows_in_torch_s_operations(stored: Path) -> None:
    runner = ModelRunner(stored, dtype="float32", blocks=80, block_size=4, use_compiled=False)
    pairs = zip(scattered(runner, 0), scattered(runner, 1), strict=True)
    assert not all(torch.equal(one, other) for one, other in pairs)


@needed
@pytest.mark.parametrize("numbers", [{"dtype": "bfloat16"}, {"activations": "int8"}], ids=str)
def test_two_threads_compute_the_bits_of_one(stored: Path, numbers: dict[str, str]) -> None:
    one, two = (
        ModelRunner(stored, blocks=80, block_size=4, threads=n, **numbers)  # type: ignore[arg-type]
        for n in (1, 2)
    )
    torch.set_num_threads(1)
    for ours, theirs in zip(scattered(one, 0), scattered(two, 0), strict=True):
        assert torch.equal(ours, theirs)


@needed
@pytest.mark.parametrize(
    "numbers", [{"dtype": "float32"}, {"dtype": "bfloat16"}, {"activations": "int8"}], ids=str
)
def test_rows_are_the_same_bits_whichever_are_drawn_from(stored: Path, numbers: dict[str, str]) -> None:
    """The last layer leaves out the others, but for their KV: the second chunks read it."""
    runner = ModelRunner(stored, blocks=80, block_size=4, threads=2, **numbers)  # type: ignore[arg-type]
    rng = random.Random(2)
    counts, known = (9, 1, 40), [tokens(2 * count, seed) for seed, count in enumerate((9, 1, 40))]
    tables = [[*range(20 * i, 20 * i + 20)] for i in range(3)]
    decoder = runner._decoder
    assert isinstance(decoder, CompiledDecoder)

    def step(part: int, rows: Sequence[int]) -> Tensor:
        chunk = [one[part * n : (part + 1) * n] for one, n in zip(known, counts, strict=True)]
        lengths = [(part + 1) * count for count in counts]
        return decoder._decoder.forward([*itertools.chain(*chunk)], counts, lengths, tables, rows)

    every = [*range(sum(counts))]
    expected = [step(0, every), step(1, every)]
    for size in (0, 1, 2, 3, 7, 20, 50):
        runner.kv.pool.fill_(float("nan"))
        for part in range(2):
            rows = rng.sample(every, size)
            chosen = sorted(rows) if size % 2 else rows
            assert torch.equal(step(part, chosen), expected[part][chosen])


@needed
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_garbage_in_other_blocks_is_never_read(stored: Path, dtype: str) -> None:
    runner = ModelRunner(stored, dtype=dtype, blocks=20, block_size=4)
    expected = chunked(runner, (9, 1, 6), [4, 0, 7, 2])
    runner.kv.pool.fill_(float("nan"))
    assert torch.equal(chunked(runner, (9, 1, 6), [4, 0, 7, 2, 19]), expected)


@needed
def test_what_lies_outside_is_refused(stored: Path) -> None:
    runner = ModelRunner(stored, blocks=4)
    with pytest.raises(ValueError, match="vocabulary"):
        runner.logits([Work("a", 0, [tiny.VOCABULARY], 0, [0])])
    with pytest.raises(IndexError, match="pool of 4"):
        runner.logits([Work("a", 0, [1], 0, [4])])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"use_compiled": False}, "int8 needs the compiled CPU kernels"),
        ({"dtype": "bfloat16"}, "goes with dtype float32"),
        ({"weights": "dense"}, "these are float32: serve a Q4_0"),
        ({"activations": "int4"}, "activations is auto or int8"),
    ],
    ids=str,
)
def test_rounding_is_refused_where_it_cannot_be(stored: Path, changes: dict[str, Any], words: str) -> None:
    if library.obstacle() is not None:
        words = "int8 needs the compiled CPU kernels|activations is auto"
    with pytest.raises((ConfigError, SetupError), match=words):
        ModelRunner(stored, blocks=4, **{"activations": "int8", **changes})


def test_exactness_is_refused_where_it_cannot_be(stored: Path) -> None:
    with pytest.raises(SetupError, match=r"engine\.exact"):
        ModelRunner(stored, blocks=4, use_compiled=False, exact=True)
