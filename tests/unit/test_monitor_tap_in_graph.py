"""On a CPU the compiler gets the tap's arithmetic: it has to give what the operation gives."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from monitor.seam import tap
from monitor.unscored import Reason, reasons

D, ROOM = 64, 16


def block(
    h: Tensor, residual: Tensor, weight: Tensor, scores: Tensor, norms: Tensor
) -> tuple[Tensor, Tensor]:
    """A tap between an add and the norm that the compiler may join it with."""
    x = h + residual
    tap.in_graph(x, weight, scores, norms)
    wide = x.float()
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype), x


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.bfloat16, 1e-4), (torch.float32, 1e-4), (torch.float16, 2e-2)]
)
@pytest.mark.parametrize("columns", [1, tap.WIDEST_LOOP, tap.WIDEST_LOOP + 1])
def test_compiled_it_is_what_the_operation_is(dtype: torch.dtype, tolerance: float, columns: int) -> None:
    tap.define_operation("CPU")
    torch.compiler.reset()
    compiled = torch.compile(block)
    generator = torch.Generator().manual_seed(columns)
    weights = tap.laid_out(torch.randn(1, D, columns, generator=generator), torch.device("cpu"))
    strides = weights.stride()
    assert strides[1] == 1
    for rows in (5, 9):
        h, residual = (4 * torch.randn(rows, D, generator=generator).to(dtype) for _ in range(2))
        weights.copy_(torch.randn(1, D, columns, generator=generator))  # as when probes are changed
        scores, norms = torch.full((ROOM, columns), torch.nan), torch.full((ROOM,), torch.nan)
        _, x = compiled(h, residual, weights[0], scores, norms)
        expected, expected_norms = torch.empty(ROOM, columns), torch.empty(ROOM)
        used, scratch = torch.ones(1, dtype=torch.int64), torch.zeros(0)
        torch.ops.probewatch.tap(h + residual, weights[0], expected, expected_norms, used, scratch)
        assert torch.equal(x, h + residual)
        assert torch.allclose(scores[:rows], expected[:rows], rtol=tolerance, atol=tolerance * 10)
        assert torch.allclose(
            norms[:rows], expected_norms[:rows], rtol=1e-4 if dtype != torch.float16 else 1e-2
        )
        assert scores[rows:].isnan().all()
        assert norms[rows:].isnan().all()
    assert weights.stride() == strides


def test_a_row_that_the_graph_did_not_write_stays_marked() -> None:
    buffers = tap.TapBuffers.allocate(1, ROOM, 2, False, torch.device("cpu"))
    tap.in_graph(torch.ones(3, D), torch.ones(D, 2), buffers.scores[0], buffers.squared_norms[0])
    assert reasons(buffers.scores[0].numpy())[:, 0].tolist() == [-1] * 3 + [Reason.TAP_SILENT] * (ROOM - 3)
