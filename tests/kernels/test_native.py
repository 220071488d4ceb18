"""The compiled kernels compute what the definitions say, and each row by itself, bit for bit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kernels import cpu_sampling, library, native, panels, reference
from kernels.panels import Quantised

pytestmark = pytest.mark.skipif(library.obstacle() is not None, reason=f"kernels: {library.obstacle()}")

KINDS = ("plain", "4 bits", "8 bits")
DTYPES = (torch.float32, torch.bfloat16)
# Sums of float32, in another order than the twin's.
TOLERANCE = 2e-5


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def quantised(outputs: int, inputs: int, kind: str, seed: int = 0) -> Quantised:
    rng = generator(seed)
    scales = (torch.rand(outputs, inputs // 32, generator=rng) * 0.1).half()
    if kind == "8 bits":
        numbers = torch.randint(-128, 128, (outputs, inputs), generator=rng, dtype=torch.int8)
        return Quantised(numbers, scales / 16, None)
    numbers = torch.randint(0, 16, (outputs, inputs), generator=rng, dtype=torch.uint8)
    return Quantised(numbers, scales, -8 * scales)


def weights(outputs: int, inputs: int, kind: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Panels, and the same weights as [outputs, inputs]."""
    if kind == "plain":
        dense = torch.randn(outputs, inputs, generator=generator(1)).to(dtype)
        return panels.plain(dense, dtype), dense
    stored = quantised(outputs, inputs, kind)
    return panels.compressed(stored, dtype), stored.dense().to(dtype)


def activations(rows: int, inputs: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(rows, inputs, generator=generator(2)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("outputs", "inputs"), [(1, 32), (64, 64), (100, 96), (193, 576)])
def test_panels_hold_the_weights(outputs: int, inputs: int, kind: str, dtype: torch.dtype) -> None:
    packed, dense = weights(outputs, inputs, kind, dtype)
    assert packed.shape == (-(-outputs // 64), panels.panel_bytes(kind, inputs, dtype))
    assert torch.equal(panels.expanded(packed, outputs, inputs, dtype), dense)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [*range(1, 14), 64, 400])
@pytest.mark.parametrize(("outputs", "inputs"), [(1, 32), (100, 96), (192, 1536)])
def test_a_product_is_that_of_the_definition(
    rows: int, outputs: int, inputs: int, kind: str, dtype: torch.dtype
) -> None:
    packed, dense = weights(outputs, inputs, kind, dtype)
    x = activations(rows, inputs, dtype)
    bias = torch.zeros(packed.shape[0] * 64)
    bias[:outputs] = torch.randn(outputs, generator=generator(3))
    expected = x.double() @ dense.double().t() + bias[:outputs].double()
    got = native.multiply(x, packed, outputs, bias)
    size = x.double().abs() @ dense.double().abs().t() + 1
    assert bool(((got.double() - expected).abs() <= TOLERANCE * size).all())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_is_the_same_bits_in_any_company(kind: str, dtype: torch.dtype) -> None:
    packed, _ = weights(130, 576, kind, dtype)
    x = activations(23, 576, dtype)
    together = native.multiply(x, packed, 130)
    for count in (1, 2, 3, 4, 5, 8, 11):
        parts = [native.multiply(x[start : start + count], packed, 130) for start in range(0, 23, count)]
        assert torch.equal(torch.cat(parts), together)


def test_the_company_shows_in_torch_s_products() -> None:
    x = activations(23, 1536, torch.float32)
    _, dense = weights(130, 1536, "plain", torch.float32)
    assert not torch.equal(torch.cat([row[None] @ dense.t() for row in x]), x @ dense.t())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS[1:])
@pytest.mark.parametrize("rows", [1, 3, 4, 40])
def test_compressed_weights_give_the_bits_of_expanded_ones(rows: int, kind: str, dtype: torch.dtype) -> None:
    packed, dense = weights(130, 576, kind, dtype)
    x = activations(rows, 576, dtype)
    expanded = native.multiply(x, panels.plain(dense, dtype), 130)
    assert torch.equal(native.multiply(x, packed, 130), expanded)


@pytest.mark.parametrize("rows", [*range(1, 14), 64, 400])
@pytest.mark.parametrize(("outputs", "inputs"), [(1, 32), (100, 96), (192, 1536)])
def test_a_rounded_product_is_that_of_the_rounded_numbers(rows: int, outputs: int, inputs: int) -> None:
    packed, dense = weights(outputs, inputs, "4 bits", torch.float32)
    x = activations(rows, inputs, torch.float32)
    x[:, -32:-16] *= 1000.0
    x[rows // 2, :32] = 0.0
    bias = torch.zeros(packed.shape[0] * 64)
    bias[:outputs] = torch.randn(outputs, generator=generator(3))
    numbers = reference.rounded(x).double()
    expected = numbers @ dense.double().t() + bias[:outputs].double()
    got = native.multiply(x, packed, outputs, bias, rounded=True)
    size = numbers.abs() @ dense.double().abs().t() + 1
    assert bool(((got.double() - expected).abs() <= TOLERANCE * size).all())
    if inputs > 32:
        assert not torch.allclose(got, native.multiply(x, packed, outputs, bias), rtol=0, atol=1e-6)


def test_a_rounded_row_is_the_same_bits_in_any_company() -> None:
    packed, _ = weights(130, 576, "4 bits", torch.float32)
    x = activations(23, 576, torch.float32)
    together = native.multiply(x, packed, 130, rounded=True)
    for count in (1, 2, 3, 4, 5, 8, 11):
        starts = range(0, 23, count)
        parts = [native.multiply(x[start : start + count], packed, 130, rounded=True) for start in starts]
        assert torch.equal(torch.cat(parts), together)


def test_a_rounded_product_of_the_largest_numbers_overflows_nowhere() -> None:
    """Sums of a group are kept in 16 bits: all weights 15, all activations ±127 steps."""
    numbers = torch.full((64, 96), 15, dtype=torch.uint8)
    scales = torch.ones(64, 3).half()
    packed = panels.compressed(Quantised(numbers, scales, 0 * scales), torch.float32)
    for sign in (1.0, -1.0):
        got = native.multiply(torch.full((7, 96), sign * 127), packed, 64, rounded=True)
        assert torch.equal(got, torch.full((7, 64), sign * 127 * 15 * 96))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_no_number_does_not_pass_for_one_when_it_is_rounded(value: float) -> None:
    packed, _ = weights(64, 96, "4 bits", torch.float32)
    x = activations(2, 96, torch.float32)
    sound = native.multiply(x, packed, 64, rounded=True)
    x[1, 40] = value
    got = native.multiply(x, packed, 64, rounded=True)
    assert torch.equal(got[0], sound[0])
    assert not bool(got[1].isfinite().any())


@pytest.mark.parametrize("size", [1e-38, 1e-34, 1e36])
def test_the_smallest_and_largest_activations_are_rounded_as_the_definition_says(size: float) -> None:
    packed, dense = weights(64, 32, "4 bits", torch.float32)
    x = torch.full((1, 32), size)
    x[0, ::5] = 0.0
    numbers = reference.rounded(x).double()
    assert bool(numbers.any()) == (size > 1e-35)
    got, expected = native.multiply(x, packed, 64, rounded=True).double(), numbers @ dense.double().t()
    assert bool(((got - expected).abs() <= 1e-5 * (numbers.abs() @ dense.double().abs().t())).all())


def test_gate_and_up_lie_side_by_side() -> None:
    rows = torch.arange(192)[:, None].expand(-1, 3).contiguous()
    order = panels.interleaved(rows)[:, 0].tolist()
    assert order[:64] == [*range(32), *range(96, 128)]
    assert sorted(order) == list(range(192))


def draws(rows: int, vocabulary: int, seed: int) -> tuple[Tensor, ...]:
    rng = generator(seed)

    def pick(*values: float) -> Tensor:
        return torch.tensor(values)[torch.randint(len(values), (rows,), generator=rng)]

    logits = torch.randn(rows, vocabulary, generator=rng) * (1 + 3 * (seed % 3))
    logits[:, 1::7] = float("-inf")
    return (
        logits,
        pick(0.0, 0.3, 0.7, 1.0, 2.0),
        pick(0, 0, 1, 3, 50, 10**6).long(),
        pick(1.0, 1.0, 0.9, 0.5, 0.1, 0.0),
        pick(0.0, 0.0, 0.05, 0.5),
        torch.randint(0, 2**32, (rows, 2), generator=rng),
    )


@pytest.mark.parametrize("vocabulary", [1, 5, 37, 1000, 49152])
def test_drawn_tokens_are_those_of_the_definition(vocabulary: int, full: bool) -> None:
    for seed in range(30 if full else 3):
        given = draws(24, vocabulary, seed)
        expected = reference.sample(*given)
        assert torch.equal(native.sample(*given), expected)
        assert torch.equal(cpu_sampling.row_by_row(*given), expected)


def test_another_key_draws_other_tokens() -> None:
    *given, keys = draws(40, 1000, 0)
    given[1] = torch.ones(40)
    given[3] = torch.ones(40)
    assert not torch.equal(native.sample(*given, keys), native.sample(*given, keys ^ 1))
