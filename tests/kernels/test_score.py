"""The scoring kernel against float64: on a GPU as compiled, elsewhere in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch

from monitor.kernels.score import plan, score

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
EXACT = 2e-6
"""Relative error of a product in float32; one TF32 product alone is off by 3e-4."""


@pytest.mark.parametrize("norms", [True, False], ids=["norms", "bare"])
@pytest.mark.parametrize(
    ("d_model", "columns", "dtype"),
    [
        (128, 16, torch.bfloat16),
        (768, 5, torch.float16),
        (512, 130, torch.float32),
        (1000, 24, torch.bfloat16),
    ],
)
@pytest.mark.parametrize("rows", [1, 16, 33, 70])
def test_scores_and_squared_norms_are_those_of_float64(
    rows: int, d_model: int, columns: int, dtype: torch.dtype, norms: bool
) -> None:
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, d_model, generator=generator).to(dtype).to(DEVICE)
    weights = torch.randn(d_model, columns, generator=generator).to(DEVICE)
    scratch = torch.zeros(plan(d_model, columns).scratch, device=DEVICE)
    for _ in range(2):  # the second launch finds what the first left in the scratch
        scores = torch.full((rows + 3, columns), 7.0, device=DEVICE)
        squared = torch.full((rows + 3 if norms else 0,), 7.0, device=DEVICE)
        score(x, weights, scores, squared, scratch)
        expected = x.double() @ weights.double()
        assert (scores[:rows] - expected).norm() / expected.norm() < EXACT
        assert (scores[rows:] == 7).all()
        if norms:
            torch.testing.assert_close(squared[:rows].double(), x.double().square().sum(1), rtol=1e-5, atol=0)
            assert (squared[rows:] == 7).all()


def test_what_is_not_finite_stays_with_its_row() -> None:
    x = torch.ones(4, 256, device=DEVICE)
    x[1, 7], x[2, 100] = float("nan"), float("inf")
    scores = torch.zeros(4, 16, device=DEVICE)
    scratch = torch.zeros(plan(256, 16).scratch, device=DEVICE)
    score(x, torch.ones(256, 16, device=DEVICE), scores, torch.zeros(0, device=DEVICE), scratch)
    assert not torch.isfinite(scores[1:3]).any()
    assert (scores[0] == 256).all()
    assert (scores[3] == 256).all()


def test_two_launches_in_a_row_give_the_same_bits() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(32, 1024, generator=generator).to(torch.bfloat16).to(DEVICE)
    weights = torch.randn(1024, 16, generator=generator).to(DEVICE)
    scratch = torch.zeros(plan(1024, 16).scratch, device=DEVICE)
    found = [torch.zeros(32, 16, device=DEVICE) for _ in range(2)]
    for scores in found:
        score(x, weights, scores, torch.zeros(0, device=DEVICE), scratch)
    assert torch.equal(*found)
