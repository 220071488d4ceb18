"""Drawing tokens: the distribution, filters, penalties, log-probabilities, independence of the batch."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from engine.plan import Draw, Drawn
from engine.request import Sampling
from kernels import dispatch, reference
from model.sampler import draw

CPU = dispatch.choose(torch.device("cpu"))
SIZE = 50


def logits(rows: int = 1, size: int = SIZE, seed: int = 0) -> Tensor:
    return 2 * torch.randn(rows, size, generator=torch.Generator().manual_seed(seed))


def sampling(**changes: object) -> Sampling:
    return Sampling(max_tokens=8, **changes)  # type: ignore[arg-type]


def one(row: Tensor, item: Draw) -> Drawn:
    ((drawn,),) = draw(row[None], [item], CPU)
    return drawn


def many(row: Tensor, count: int, **changes: object) -> Tensor:
    """How often each token is drawn at `count` positions."""
    setting = sampling(**changes)
    draws = [Draw(setting, (0,), position) for position in range(count)]
    results = draw(row.expand(count, -1), draws, CPU)
    return torch.bincount(torch.tensor([drawn.token for (drawn,) in results]), minlength=len(row))


def chi_square(counts: Tensor, expected: Tensor) -> float:
    """Pearson's statistic; tokens of probability zero must not occur."""
    total = counts.sum()
    assert int(counts[expected == 0].sum()) == 0
    kept = expected > 0
    wanted = expected[kept] * total
    return float(((counts[kept] - wanted) ** 2 / wanted).sum())


def bound(expected: Tensor) -> float:
    """Above the 99.9 % point of the statistic: near k + 3.1 · sqrt(2 k) + 6 for k degrees of freedom."""
    freedom = max(int((expected > 0).sum()) - 1, 1)
    return freedom + 3.1 * math.sqrt(2 * freedom) + 6


def kept(row: Tensor, temperature: float, top_k: int, top_p: float, min_p: float) -> Tensor:
    """The distribution by the words of the definition, token by token."""
    p = (row.double() / temperature).softmax(-1)
    stays = torch.ones(len(p), dtype=torch.bool)
    if top_k:
        stays &= torch.tensor([int((p > x).sum()) < top_k for x in p])
    left = p * stays
    if top_p < 1:
        stays &= torch.tensor([float(left[p > x].sum()) < top_p * float(left.sum()) for x in p])
    stays &= p >= min_p * p.max()
    return p * stays / (p * stays).sum()


FILTERS = {
    "plain": (1.0, 0, 1.0, 0.0),
    "hot": (1.7, 0, 1.0, 0.0),
    "top-k": (1.0, 5, 1.0, 0.0),
    "top-p": (1.0, 0, 0.7, 0.0),
    "min-p": (1.0, 0, 1.0, 0.1),
    "all": (0.8, 20, 0.9, 0.02),
    "top-1": (1.0, 1, 1.0, 0.0),
    "tiny-p": (1.0, 0, 1e-6, 0.0),
}


@pytest.mark.parametrize("name", FILTERS)
def test_draws_follow_the_distribution(name: str, full: bool) -> None:
    temperature, top_k, top_p, min_p = FILTERS[name]
    row = logits()[0]
    counts = many(
        row, 20_000 if full else 3000, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p
    )
    expected = kept(row, temperature, top_k, top_p, min_p)
    assert chi_square(counts, expected) < bound(expected)


def test_another_temperature_is_noticed() -> None:
    row = logits()[0]
    expected = kept(row, 1.1, 0, 1.0, 0.0)
    assert chi_square(many(row, 20_000, temperature=1.0), expected) > bound(expected)


def test_the_fast_path_draws_what_the_definition_draws() -> None:
    rows = logits(rows=300, size=777)
    generator = torch.Generator().manual_seed(2)

    def pick(*values: float) -> Tensor:
        return torch.tensor(values)[torch.randint(0, len(values), (300,), generator=generator)]

    settings = (pick(0, 0.3, 1, 2), pick(0, 1, 7, 800).long(), pick(1, 0.99, 0.5), pick(0, 0.05))
    keys = torch.tensor([reference.draw_key(3, 0, position) for position in range(300)])
    ours, theirs = (kernels.sample(rows, *settings, keys) for kernels in (CPU, dispatch.plain(rows.device)))
    # A token on the very edge of the nucleus may fall either way by the order of a sum.
    assert int((ours != theirs).sum()) <= 1


@pytest.mark.parametrize("name", ["plain", "top-p"])
def test_logits_of_another_batch_draw_the_same_tokens(name: str) -> None:
    """Rounding moves logits by 1e-5; a tail of many unlikely tokens must not turn that into other tokens."""
    temperature, top_k, top_p, min_p = FILTERS[name]
    setting = sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    row = 1.5 * torch.randn(20_000, generator=torch.Generator().manual_seed(1))
    draws = [Draw(setting, (0,), position) for position in range(300)]
    noise = torch.randn(300, 20_000, generator=torch.Generator().manual_seed(2))
    exact, moved = (draw(row + size * noise, draws, CPU) for size in (0.0, 1e-5))
    assert sum(one != other for one, other in zip(exact, moved, strict=True)) <= 1


def test_a_wide_nucleus_is_found_beyond_the_first_tried() -> None:
    row = torch.zeros(5000)
    row[0] = 1.0
    counts = many(row, 300, top_p=0.5)
    assert int((counts > 0).sum()) > 200


@pytest.mark.parametrize("batch", [2, 16])
def test_a_row_does_not_depend_on_its_neighbours(batch: int) -> None:
    rows = logits(rows=batch, size=3001)
    settings = [
        sampling(seed=n, temperature=n % 3 / 2, top_k=n % 5, top_p=1 - 0.1 * (n % 4), repetition_penalty=1.1)
        for n in range(batch)
    ]
    draws = [Draw(setting, (0,), n, (1, 2), (3, n)) for n, setting in enumerate(settings)]
    together = draw(rows, draws, CPU)
    assert together == [draw(rows[n : n + 1], [draws[n]], CPU)[0] for n in range(batch)]
    assert together == draw(rows.flip(0), draws[::-1], CPU)[::-1]


def test_choices_draw_from_the_same_logits_with_numbers_of_their_own() -> None:
    row = logits()[0]
    setting = sampling(seed=4)
    ((first, second, third),) = draw(row[None], [Draw(setting, (0, 1, 2), 0)], CPU)
    assert [first, second, third] == [one(row, Draw(setting, (choice,), 0)) for choice in range(3)]
    assert len({first.token, second.token, third.token}) > 1


def test_the_draw_is_a_function_of_seed_choice_and_position() -> None:
    row = torch.zeros(2**10)
    waits = reference.waits(torch.tensor([reference.draw_key(11, 2, 5)]), 2**10, torch.float32)
    assert one(row, Draw(sampling(seed=11), (2,), 5)).token == int(waits.argmin())


def test_temperature_zero_is_the_likeliest_and_the_lowest_of_equals() -> None:
    row = torch.tensor([0.0, 3.0, 3.0, -1.0])
    assert one(row, Draw(sampling(temperature=0.0), (0,), 0)).token == 1


def test_bias_and_bans_move_the_likeliest() -> None:
    row = torch.tensor([0.0, 3.0, 2.0, 1.0])
    greedy = sampling(temperature=0.0)
    assert one(row, Draw(greedy, (0,), 0, banned=frozenset({1, 2}))).token == 3
    biased = sampling(temperature=0.0, logit_bias=((0, 2.5), (0, 1.0), (1, -0.1)))
    assert one(row, Draw(biased, (0,), 0)).token == 0


def test_a_banned_token_is_never_drawn() -> None:
    row = logits()[0]
    best = int(row.argmax())
    setting = sampling(temperature=2.0)
    draws = [Draw(setting, (0,), n, banned=frozenset({best})) for n in range(500)]
    assert all(drawn.token != best for (drawn,) in draw(row.expand(500, -1), draws, CPU))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"frequency_penalty": 1.0}, 2),  # 5 − 3 · 1, 4 − 1, 3.5
        ({"presence_penalty": 1.2}, 0),  # 5 − 1.2, 4 − 1.2, 3.5
        ({"presence_penalty": 1.6}, 2),
        ({"repetition_penalty": 1.5}, 2),  # 5 / 1.5, 4 / 1.5, 3.5: the prompt's tokens count too
        ({"repetition_penalty": 0.5}, 0),
    ],
    ids=str,
)
def test_penalties(changes: dict[str, float], expected: int) -> None:
    row = torch.tensor([5.0, 4.0, 3.5, -2.0])
    item = Draw(sampling(temperature=0.0, **changes), (0,), 4, prompt=(1, 3), output=(0, 0, 0, 1))
    assert one(row, item).token == expected


def test_presence_and_frequency_count_the_output_alone() -> None:
    row = torch.tensor([5.0, 4.0])
    item = Draw(
        sampling(temperature=0.0, presence_penalty=2.0, frequency_penalty=2.0), (0,), 0, prompt=(0, 0)
    )
    assert one(row, item).token == 0


def test_repetition_makes_negative_logits_more_negative() -> None:
    row = torch.tensor([-1.0, -1.5])
    item = Draw(sampling(temperature=0.0, repetition_penalty=2.0), (0,), 1, prompt=(0,))
    assert one(row, item).token == 1


def test_logprobs_are_of_the_raw_logits() -> None:
    row = logits()[0]
    item = Draw(sampling(temperature=0.3, logprobs=3, logit_bias=((7, 100.0),)), (0,), 0)
    drawn = one(row, item)
    scores = row.double().log_softmax(-1)
    assert drawn.token == 7
    assert drawn.logprob == pytest.approx(float(scores[7]), abs=1e-5)
    assert [token for token, _ in drawn.top] == scores.topk(3).indices.tolist()
    assert [score for _, score in drawn.top] == pytest.approx(scores.topk(3).values.tolist(), abs=1e-5)


def test_logprobs_zero_reports_the_drawn_token_alone() -> None:
    drawn = one(logits()[0], Draw(sampling(temperature=0.0, logprobs=0), (0,), 0))
    assert drawn.logprob is not None
    assert drawn.top == ()


@pytest.mark.parametrize("temperature", [0.0, 1.0, 1e-30])
def test_nan_and_infinity_are_survived(temperature: float) -> None:
    inf, nan = float("inf"), float("nan")
    rows = torch.tensor(
        [[0.0, nan, 2.0], [nan, nan, nan], [0.0, inf, nan], [-inf, 1.0, -inf], [1.0, 2.0, 3.0]]
    )
    tokens = [
        drawn.token for (drawn,) in draw(rows, [Draw(sampling(temperature=temperature), (0,), 0)] * 5, CPU)
    ]
    assert tokens[0] != 1
    assert tokens[2] == 1
    assert tokens[3] == 1
    assert all(0 <= token < 3 for token in tokens)


def test_banning_everything_still_gives_a_token() -> None:
    item = Draw(sampling(), (0,), 0, banned=frozenset(range(SIZE)))
    assert 0 <= one(logits()[0], item).token < SIZE


def test_bfloat16_logits_are_drawn_from_in_float32() -> None:
    row = logits()[0].bfloat16()
    setting = sampling(seed=5)
    assert one(row, Draw(setting, (0,), 3)) == one(row.float(), Draw(setting, (0,), 3))
