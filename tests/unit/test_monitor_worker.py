"""The worker's monitor with fake taps: what an error or a silent tap leaves behind is never another's score."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from monitor.attach import Plan
from monitor.events import StepScores
from monitor.seam.tap import TapBuffers
from monitor.seam.worker import CARRIER, WorkerMonitor
from monitor.store import ScoreStore
from monitor.unscored import Reason, reasons
from tests.unit.monitor_fakes import alerting, make_bank

BLOCK = 4


def make_monitor() -> WorkerMonitor:
    """One probe on one layer; a token's score is what ``write`` put into its row, plus the bias."""
    probe = alerting(layers=(1,))
    monitor = WorkerMonitor(Plan((probe,), (), 1, 1))
    monitor.bank = make_bank(probe)
    monitor.buffers = TapBuffers.allocate(1, 16, 1, False, torch.device("cpu"))
    monitor.store = ScoreStore(8 * BLOCK, 1, 1)
    monitor._block_tokens = BLOCK
    monitor.proven = True
    return monitor


def run(
    monitor: WorkerMonitor,
    request: str,
    block: int,
    first: int,
    rows: int,
    prompt: int,
    known: int,
    *,
    score: float | None = 1.0,
    broken: bool = False,
) -> StepScores | None:
    """A step of one request that lives in one block; what went out with it."""
    if score is not None:
        monitor.buffers.scores[0, :rows, 0] = score
    batch = SimpleNamespace(
        num_reqs=1,
        req_ids=[request],
        block_table=[SimpleNamespace(block_table=SimpleNamespace(np=np.array([[block]])), block_size=BLOCK)],
        num_computed_tokens_cpu=np.array([first]),
        num_prompt_tokens=np.array([prompt]),
        num_tokens_no_spec=np.array([known]),
    )
    runner = SimpleNamespace(input_batch=batch, query_start_loc=SimpleNamespace(np=np.array([0, rows])))
    scheduled = SimpleNamespace(total_num_scheduled_tokens=rows, kv_cache_block_copies=None)
    if broken:
        runner.input_batch = None
    output: Any = SimpleNamespace(
        req_ids=[request], sampled_token_ids=[[9]] if first + rows >= known else [[]]
    )
    try:
        monitor.after_forward(runner, scheduled)
    except AttributeError as error:
        monitor.lose_step()
        monitor.guard(error)
    monitor.after_sampling(output)
    found: StepScores | None = getattr(output, CARRIER, None)
    return found


def bias(monitor: WorkerMonitor) -> float:
    found = monitor.bank.seats[0].bias
    assert found is not None
    return found


def test_a_chunked_prompt_goes_out_with_the_first_output() -> None:
    monitor = make_monitor()
    chunk = run(monitor, "a", 2, 0, 2, 4, 4, score=1.0)
    assert chunk is not None
    assert chunk.counts.tolist() == [0]
    whole = run(monitor, "a", 2, 2, 2, 4, 4, score=5.0)
    assert whole is not None
    assert whole.states[:, 0] == pytest.approx(np.array([1, 1, 5, 5]) + bias(monitor))


def test_a_tap_that_stays_silent_is_missing_and_not_the_step_before() -> None:
    monitor = make_monitor()
    run(monitor, "a", 2, 0, 3, 3, 3, score=1.0)
    found = run(monitor, "a", 2, 3, 1, 3, 4, score=None)
    assert found is not None
    assert reasons(found.states).tolist() == [[Reason.TAP_SILENT]]


def test_a_failed_step_is_counted_and_the_next_one_goes_on() -> None:
    monitor = make_monitor()
    assert run(monitor, "a", 2, 0, 3, 3, 3, broken=True) is None
    assert monitor.report()["errors"] == 1
    assert monitor.report()["last_error"]
    found = run(monitor, "a", 2, 3, 1, 3, 4, score=2.0)
    assert found is not None
    assert found.states[:, 0] == pytest.approx([2.0 + bias(monitor)])


def test_tokens_of_a_failed_step_never_take_the_scores_of_the_slots_earlier_owner() -> None:
    monitor = make_monitor()
    run(monitor, "before", 2, 0, 4, 4, 4, score=7.0)  # its block is then given to another request
    run(monitor, "a", 2, 0, 2, 4, 4, score=1.0, broken=True)
    found = run(monitor, "a", 2, 2, 2, 4, 4, score=1.0)
    assert found is not None
    assert np.isfinite(found.states[:, 0]).tolist() == [False, False, True, True]


def test_taps_that_stay_silent_after_a_failed_step_do_not_repeat_its_scores() -> None:
    monitor = make_monitor()
    run(monitor, "a", 2, 0, 3, 3, 3, score=7.0, broken=True)
    found = run(monitor, "b", 3, 0, 3, 3, 3, score=None)
    assert found is not None
    assert not np.isfinite(found.states).any()
