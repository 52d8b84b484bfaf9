"""A step of vLLM's V2 model runner as the bookkeeping sees it: what the device knows, not what the host expected."""

from __future__ import annotations

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from monitor.events import StepView
from monitor.seam import view_v1, view_v2
from monitor.seam.capture import Capture
from monitor.seam.transfer import Transfer
from tests.unit.monitor_fake_runners import GROUP, FakeRequest, Share, V1Runner, V2Runner

BLOCK = 4


def request(prompt: int, outputs: int = 0, *, blocks: list[int], prefill: int | None = None) -> FakeRequest:
    """A request that was handed over with ``prefill`` tokens (the prompt alone, if not said)."""
    found = FakeRequest(f"{prompt}+{outputs}", [0] * prompt, 99, [1] * outputs, list(blocks))
    found.tape, found.prefill = found.tokens, prefill or prompt
    return found


def share(
    of: FakeRequest, first: int, rows: int, *, computed: int | None = None, scheduled: int | None = None
) -> Share:
    """Rows from the device's position ``first``; the host believes in ``computed`` and asked for ``scheduled``."""
    return Share(
        of, first, rows, scheduled or rows, first if computed is None else computed, [], 0, found=[1]
    )


def captured(*shares: Share, runner: V2Runner | None = None) -> Capture:
    runner = runner or V2Runner(random.Random(0), BLOCK, 64)
    runner.forward(shares)
    return view_v2.capture(runner, GROUP)


def view_of(capture: Capture) -> StepView:
    return capture.settle(Transfer(capture.device).arrived())


def test_a_prompt_in_one_piece_has_no_history() -> None:
    view = view_of(captured(share(request(6, blocks=[9, 5]), 0, 6)))
    assert view.request_ids == ("6+0",)
    assert (view.query_start_loc.tolist(), view.first_position.tolist()) == ([0, 6], [0])
    assert (view.prompt_tokens.tolist(), view.known_tokens.tolist()) == ([6], [6])
    assert view.slots.tolist() == [36, 37, 38, 39, 20, 21]
    assert not view.history


def test_the_last_chunk_of_a_prompt_knows_the_slots_of_the_earlier_ones() -> None:
    early = share(request(9, blocks=[9, 5]), 2, 3)
    last = share(request(7, blocks=[3, 8]), 5, 2)
    view = view_of(captured(early, last))
    assert view.known_tokens.tolist() == [9, 7]
    assert {row: slots.tolist() for row, slots in view.history.items()} == {1: [12, 13, 14, 15, 32]}


def test_positions_are_the_devices_where_the_host_counted_rejected_drafts() -> None:
    view = view_of(captured(share(request(5, 3, blocks=[1, 2, 6]), first=7, rows=3, computed=10)))
    assert view.first_position.tolist() == [7]
    assert view.known_tokens.tolist() == [8]
    assert view.slots.tolist() == [11, 24, 25]
    assert not view.history


def test_a_resumed_request_has_given_out_all_but_the_last_of_its_prefill() -> None:
    chunk = share(request(5, 4, blocks=[1, 2, 6], prefill=9), 0, 6)
    end = share(request(5, 3, blocks=[3, 4], prefill=8), 6, 2)
    later = share(request(5, 5, blocks=[7, 8, 9], prefill=8), 9, 1)
    view = view_of(captured(chunk, end, later))
    assert view.prompt_tokens.tolist() == [5, 5, 5]
    assert view.known_tokens.tolist() == [9, 8, 10]
    assert not view.history, "its prompt went out with its first output"


def test_a_request_preempted_before_its_first_output_gives_out_its_whole_prompt() -> None:
    view = view_of(captured(share(request(6, blocks=[2, 1]), 4, 2)))
    assert {row: slots.tolist() for row, slots in view.history.items()} == {0: [8, 9, 10, 11]}


def test_drafts_that_the_runner_dropped_leave_no_rows() -> None:
    capture = captured(
        share(request(5, 1, blocks=[1, 2]), 5, 1, scheduled=4), share(request(3, blocks=[6]), 0, 3)
    )
    assert capture.rows == 4
    view = view_of(capture)
    assert view.query_start_loc.tolist() == [0, 1, 4]
    assert view.slots.tolist() == [9, 24, 25, 26]


def test_a_request_keeps_its_own_row_of_state_whatever_the_order_of_the_batch() -> None:
    runner = V2Runner(random.Random(3), BLOCK, 64)
    one, two = request(6, blocks=[2, 1]), request(7, blocks=[4, 3])
    captured(share(one, 0, 3), share(two, 0, 4), runner=runner)
    view = view_of(captured(share(two, 4, 3), share(one, 3, 3), runner=runner))
    assert view.prompt_tokens.tolist() == [7, 6]
    assert {row: slots.tolist() for row, slots in view.history.items()} == {
        0: [16, 17, 18, 19],
        1: [8, 9, 10],
    }


def test_what_the_runner_does_next_does_not_reach_a_step_on_its_way() -> None:
    runner = V2Runner(random.Random(0), BLOCK, 64)
    capture = captured(share(request(7, blocks=[3, 8]), 5, 2), runner=runner)
    transfer = Transfer(capture.device)
    before = capture.settle(transfer.arrived())
    runner.sample()
    runner.forward([share(request(30, 2, blocks=list(range(9))), 31, 1)])
    after = capture.settle(transfer.arrived())
    for name in ("query_start_loc", "first_position", "prompt_tokens", "known_tokens", "slots"):
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name), name)
    np.testing.assert_array_equal(after.history[0], before.history[0])


def test_slots_of_a_large_cache_do_not_wrap_at_32_bits() -> None:
    runner = V2Runner(random.Random(0), BLOCK, 64)
    captured(share(request(7, blocks=[3, 8]), 5, 2), runner=runner)
    runner.block_tables.block_tables[GROUP].gpu[:] = 2**31 - 1
    view = view_of(view_v2.capture(runner, GROUP))
    assert view.history[0].tolist() == [(2**31 - 1) * BLOCK + i for i in (0, 1, 2, 3, 0)]


def lora(id: int, path: str) -> SimpleNamespace:
    return SimpleNamespace(lora_int_id=id, lora_path=path)


def test_each_request_is_told_with_the_folder_of_its_adapter() -> None:
    runner = V2Runner(random.Random(1), BLOCK, 64)
    requests = [request(3 + i, blocks=[i]) for i in range(3)]
    shares = [share(one, 0, 1) for one in requests]
    assert view_of(captured(*shares, runner=runner)).adapters is None
    rows = runner.execute_model_state.input_batch.idx_mapping_np
    ids = np.full(64, 9, np.int32)
    ids[rows] = [7, 0, 4]
    runner.lora_config = object()  # type: ignore[assignment]
    held = {requests[0].id: lora(7, "/seven"), requests[2].id: lora(4, "/four"), "another": lora(9, "/nine")}
    runner.lora_state = SimpleNamespace(lora_ids=ids, lora_requests=held)  # type: ignore[attr-defined]
    assert view_of(view_v2.capture(runner, GROUP)).adapters == ("7:/seven", None, "4:/four")


def test_the_v1_runner_tells_adapters_too() -> None:
    runner = V1Runner(random.Random(1), BLOCK, 64)
    runner.forward([share(request(3, blocks=[1]), 0, 3), share(request(4, blocks=[2]), 0, 4)])
    assert view_v1.step_view(runner, GROUP).adapters is None
    runner.lora_config = object()  # type: ignore[assignment]
    runner.input_batch.request_lora_mapping = np.array([0, 7, 7])
    runner.input_batch.lora_id_to_lora_request = {7: lora(7, "/seven")}
    assert view_v1.step_view(runner, GROUP).adapters == (None, "7:/seven")


def test_both_runners_show_the_same_step() -> None:
    shares = [
        share(request(7, blocks=[3, 8]), 5, 2),
        share(request(5, 1, blocks=[6, 7]), 5, 1),
        share(request(9, blocks=[10, 1, 2]), 0, 4),
    ]
    one = V1Runner(random.Random(0), BLOCK, 64)
    one.forward(shares)
    v1, v2 = view_v1.step_view(one, GROUP), view_of(captured(*shares))
    assert (v1.request_ids, v1.history.keys()) == (v2.request_ids, v2.history.keys())
    for name in ("query_start_loc", "first_position", "prompt_tokens", "known_tokens", "slots"):
        np.testing.assert_array_equal(getattr(v1, name), getattr(v2, name), name)
    np.testing.assert_array_equal(v1.history[0], v2.history[0])


@pytest.mark.parametrize("name", ["starts", "positions", "slots"])
def test_only_the_rows_of_the_step_leave_the_device(name: str) -> None:
    capture = captured(share(request(6, blocks=[2, 1]), 0, 6))
    assert isinstance(capture.device[name], torch.Tensor)
    assert len(capture.device[name]) == (2 if name == "starts" else 6)
