"""The definitions of the kernels agree with textbook formulas and published test vectors."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from kernels import dispatch, reference
from tests.kernels.steps import Step, random_step

PLAIN = dispatch.plain(torch.device("cpu"))
EXACT = {torch.float64: 1e-12, torch.float32: 1e-5}
MIXED = ([5, 17, 1, 1, 1, 1], [5, 40, 1, 16, 33, 100])


def dense(step: Step) -> Tensor:
    """Attention by torch, sequence by sequence, on contiguous keys and values in float64."""
    parts, row = [], 0
    for index, (keys, values) in enumerate(step.dense):
        count = step.spans.counts[index]
        q = step.q[row : row + count].double().transpose(0, 1)
        group = q.shape[0] // keys.shape[1]
        k, v = (side.double().transpose(0, 1).repeat_interleave(group, 0) for side in (keys, values))
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=step.visible(index))
        parts.append(mixed.transpose(0, 1))
        row += count
    return torch.cat(parts)


def paged(step: Step) -> Tensor:
    attend = PLAIN.attention(step.spans, step.keys.shape[2], step.scale, None)
    return attend(step.q, step.keys, step.values)


@pytest.mark.parametrize("dtype", EXACT, ids=str)
@pytest.mark.parametrize("block", [1, 8, 16, 32])
def test_paged_attention_is_dense_attention(block: int, dtype: torch.dtype) -> None:
    step = random_step(*MIXED, block=block, dtype=dtype)
    torch.testing.assert_close(paged(step).double(), dense(step), atol=EXACT[dtype], rtol=0)


def test_a_table_in_another_order_is_noticed() -> None:
    step = random_step([20], [64])
    step.spans = replace(step.spans, blocks=[sorted(step.spans.blocks[0], reverse=True)])
    assert float((paged(step) - dense(step)).abs().max()) > 1e-2


def test_a_mask_replaces_the_causal_rule() -> None:
    step = random_step([6, 4], [6, 20])
    mask = torch.zeros(10, 20, dtype=torch.bool)
    mask[:6, :6], mask[6:] = step.visible(0), step.visible(1)
    attend = PLAIN.attention(step.spans, 3, step.scale, mask)
    torch.testing.assert_close(attend(step.q, step.keys, step.values), paged(step))
    mask[9, 3] = False
    attend = PLAIN.attention(step.spans, 3, step.scale, mask)
    assert not torch.allclose(attend(step.q, step.keys, step.values)[9], paged(step)[9])


def test_a_rotation_keeps_lengths_and_relative_angles() -> None:
    x = torch.randn(2, 1, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    frequencies = torch.tensor([1.0, 0.5, 0.25, 0.125], dtype=torch.float64)

    def turned(position: int) -> Tensor:
        angles = (position * frequencies).expand(2, 4)
        return reference.rotate(x, angles.cos(), angles.sin())

    torch.testing.assert_close(turned(9).norm(dim=-1), x.norm(dim=-1))
    near, far = (turned(p)[0, 0] @ turned(p + 3)[1, 0] for p in (2, 40))
    torch.testing.assert_close(near, far)


@pytest.mark.parametrize(
    ("key", "counter", "expected"),
    [
        ((0, 0), (0, 0, 0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (
            (0xFFFFFFFF, 0xFFFFFFFF),
            (0xFFFFFFFF,) * 4,
            (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        ),
        (
            (0xA4093822, 0x299F31D0),
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_vectors(
    key: tuple[int, int], counter: tuple[int, int, int, int], expected: tuple[int, int, int, int]
) -> None:
    assert reference.philox(key, counter) == expected


def test_mix_is_a_bijection_that_spreads_each_bit() -> None:
    words = torch.arange(2**16)
    mixed = reference.mix(words)
    assert len(mixed.unique()) == 2**16
    assert int(mixed.min()) >= 0
    assert int(mixed.max()) < 2**32
    for bit in range(32):
        changed = mixed ^ reference.mix(words ^ 1 << bit)
        shares = torch.tensor([float((changed >> other & 1).double().mean()) for other in range(32)])
        assert float(shares.min()) > 0.4
        assert float(shares.max()) < 0.6


def test_waits_are_exponential() -> None:
    keys = torch.tensor([reference.draw_key(seed, 0, p) for seed in range(10) for p in range(10)])
    levels = torch.exp(-reference.waits(keys, 2000, torch.float64)).flatten()
    counts = torch.histc(levels, 20, 0, 1)
    assert float(((counts - 10_000) ** 2 / 10_000).sum()) < 43.8  # the 99.9 % point, 19 degrees of freedom


def test_waits_of_tokens_and_of_positions_are_unrelated() -> None:
    keys = torch.tensor([reference.draw_key(5, 0, position) for position in range(3000)])
    columns = torch.corrcoef(reference.waits(keys, 6, torch.float64).t())
    rows = torch.corrcoef(reference.waits(keys[:6], 3000, torch.float64))
    for matrix in (columns, rows):
        assert float((matrix - torch.eye(6)).abs().max()) < 0.08


def test_seed_choice_and_position_all_change_the_key() -> None:
    names = [(7, 0, 0), (8, 0, 0), (7 + 2**32, 0, 0), (7, 1, 0), (7, 0, 1), (7, 1, 1)]
    assert len({reference.draw_key(*name) for name in names}) == len(names)
