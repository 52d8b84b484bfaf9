"""Pipeline stages: the last one's buffers hold what every tap of every stage wrote, and vLLM sees nothing of it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from monitor.seam.pipeline import Relay
from monitor.seam.tap import TapBuffers
from monitor.seam.transfer import Transfer
from monitor.unscored import Reason, reasons

CPU = torch.device("cpu")
MOST_ROWS, COLUMNS, ROWS = 8, 3, 5


class Stage:
    """One stage: ``own`` of the tapped layers, after the ``upstream`` ones of the stages before it."""

    def __init__(self, own: list[int], upstream: int, layers: int, norms: bool) -> None:
        self.own = own
        self.buffers = TapBuffers.allocate(layers, MOST_ROWS, COLUMNS, norms, CPU)
        self.relay = Relay(self.buffers.arrays, upstream, len(own))

    def compute(self, scores: Tensor, norms: Tensor, rows: int) -> None:
        """Its taps write; padding rows as well."""
        for layer in self.own:
            self.buffers.scores[layer, :rows] = scores[layer, :rows]
            self.buffers.scores[layer, rows : rows + 2] = 99.0
            if self.buffers.squared_norms.shape[1]:
                self.buffers.squared_norms[layer, :rows] = norms[layer, :rows]


def stages(shares: list[list[int]], norms: bool) -> list[Stage]:
    layers = sum(map(len, shares))
    return [Stage(own, sum(map(len, shares[:i])), layers, norms) for i, own in enumerate(shares)]


def hidden_states() -> Any:
    return SimpleNamespace(tensors={"hidden_states": torch.arange(6.0), "residual": torch.ones(6)})


def run(
    line: list[Stage], scores: Tensor, norms: Tensor, rows: int = ROWS, lose_after: int | None = None
) -> Any:
    """A step through all stages, as the worker of each drives its relay; what the last stage received."""
    message = None
    for index, stage in enumerate(line):
        received = stage.relay.take(message)
        stage.compute(scores, norms, rows)
        stage.relay.fill(received)
        if stage is line[-1]:
            return message
        message = stage.relay.send(hidden_states(), rows)
        if index == lose_after:
            message = hidden_states()
        stage.buffers.silence(rows)
    return message


def planted(layers: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(layers)
    return (
        torch.randn(layers, MOST_ROWS, COLUMNS, generator=generator),
        torch.rand(layers, MOST_ROWS, generator=generator),
    )


SHARES = [
    [[0, 1], [2, 3], [4, 5]],
    [[0, 1], [], [2, 3]],
    [[], [0, 1], [2]],
    [[0, 1], [2], []],
    [[], [], [0]],
    [[0], [], []],
    [[0, 1, 2]],
]


@pytest.mark.parametrize("norms", [False, True])
@pytest.mark.parametrize("shares", SHARES)
def test_the_last_stage_holds_what_all_taps_wrote(shares: list[list[int]], norms: bool) -> None:
    line = stages(shares, norms)
    last = line[-1].buffers
    for step, rows in enumerate((ROWS, 2, 6)):
        scores, squares = planted(last.scores.shape[0] * (step + 1))
        run(line, scores, squares, rows)
        found = Transfer(last.read(rows)).arrived()
        layers = last.scores.shape[0]
        np.testing.assert_array_equal(found["scores"], scores[:layers, :rows].numpy())
        if norms:
            np.testing.assert_array_equal(found["squared_norms"], squares[:layers, :rows].numpy())
        else:
            assert "squared_norms" not in found
        last.silence(rows)


@pytest.mark.parametrize("norms", [False, True])
@pytest.mark.parametrize("lost", [0, 1])
def test_a_missing_entry_leaves_the_layers_of_earlier_stages_silent(norms: bool, lost: int) -> None:
    line = stages(SHARES[0], norms)
    scores, squares = planted(6)
    run(line, scores, squares)  # a whole step first: nothing of it may be taken for the next one's
    line[-1].buffers.silence(ROWS)
    scores, squares = planted(7)
    run(line, scores, squares, lose_after=lost)
    found = line[-1].buffers.scores[:, :ROWS].numpy()
    silent = 2 * (lost + 1)
    assert (reasons(found[:silent]) == Reason.TAP_SILENT).all()
    np.testing.assert_array_equal(found[silent:], scores[silent:6, :ROWS].numpy())


def test_a_tap_that_is_silent_on_an_earlier_stage_arrives_as_silent() -> None:
    line = stages([[0, 1], [2]], False)
    scores, squares = planted(3)
    line[0].own = [1]
    run(line, scores, squares)
    found = line[-1].buffers.scores[:, :ROWS].numpy()
    assert (reasons(found[0]) == Reason.TAP_SILENT).all()
    assert (reasons(found[1:]) == -1).all()


@pytest.mark.parametrize("norms", [False, True])
def test_vllms_own_tensors_go_on_untouched_and_the_models_output_is_not_changed(norms: bool) -> None:
    line = stages(SHARES[0], norms)
    scores, squares = planted(6)
    output = hidden_states()
    before = dict(output.tensors)
    line[0].compute(scores, squares, ROWS)
    sent = line[0].relay.send(output, ROWS)
    assert output.tensors.keys() == before.keys()
    assert len(sent.tensors) == len(before) + 1
    for name, tensor in before.items():
        assert sent.tensors[name] is tensor


def test_nothing_of_ours_is_left_in_what_vllm_reads() -> None:
    line = stages(SHARES[0], True)
    scores, squares = planted(6)
    line[0].compute(scores, squares, ROWS)
    sent = line[0].relay.send(hidden_states(), ROWS)
    assert line[1].relay.take(sent) is not None
    assert sent.tensors.keys() == hidden_states().tensors.keys()
    assert line[1].relay.take(sent) is None


def test_what_is_sent_is_not_overwritten_by_the_next_step() -> None:
    line = stages([[0], [1]], True)
    scores, squares = planted(2)
    line[0].compute(scores, squares, ROWS)
    sent = line[0].relay.send(hidden_states(), ROWS)
    line[0].buffers.silence(ROWS)
    line[0].buffers.squared_norms.zero_()
    line[1].relay.fill(line[1].relay.take(sent))
    np.testing.assert_array_equal(line[1].buffers.scores[0, :ROWS], scores[0, :ROWS])
    np.testing.assert_array_equal(line[1].buffers.squared_norms[0, :ROWS], squares[0, :ROWS])


def test_the_first_stage_receives_nothing_and_a_stage_without_layers_before_it_sends_nothing() -> None:
    line = stages([[], [0]], False)
    assert line[0].relay.take(None) is None
    output = hidden_states()
    assert line[0].relay.send(output, ROWS) is output
