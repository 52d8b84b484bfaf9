"""The worker's monitor with fake taps: what an error or a silent tap leaves behind is never another's score."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from monitor.adapters import AdapterRules
from monitor.arguments import SKIP
from monitor.attach import Plan
from monitor.events import StepScores
from monitor.seam import view_v1, worker
from monitor.seam.layers import upstream
from monitor.seam.steps import StepReader
from monitor.seam.tap import TapBuffers
from monitor.seam.worker import WorkerMonitor
from monitor.unscored import Reason, reasons
from monitor.wire import CARRIER
from tests.unit.monitor_fake_server import FailingStore, Promise
from tests.unit.monitor_fakes import alerting, make_bank

BLOCK = 4


def make_monitor(**probe_like: Any) -> WorkerMonitor:
    """One probe on one layer; a token's score is what ``write`` put into its row, plus the bias."""
    probe = alerting(layers=(1,), **probe_like)
    monitor = WorkerMonitor(Plan((probe,), (), 1, 1))
    monitor.bank = make_bank(probe, capacity=2)
    monitor.buffers = TapBuffers.allocate(1, 16, 2, monitor.bank.needs_norm, torch.device("cpu"))
    monitor.reader = StepReader(
        monitor.bank,
        monitor.buffers,
        FailingStore(8 * BLOCK, 2, 1),
        BLOCK,
        view_v1.Batches(0).capture,
        AdapterRules(monitor.bank, lambda folder: None),
    )
    monitor.proven = True
    return monitor


@dataclass
class Turn:
    """A step of one request that lives in one block. ``score`` is what the taps write; None: they are silent."""

    request: str
    block: int
    first: int
    rows: int
    prompt: int
    known: int
    score: float | None = 1.0
    broken: bool = False
    """The runner cannot be read."""
    copies: list[tuple[int, int]] | None = None
    sent: int | None = None
    """Rows that the scheduler claims to have sent, if not ``rows``."""
    block_size: int = BLOCK
    new: tuple[Any, ...] = ()
    """Requests that come with the step, as the scheduler tells them."""

    def forward(self, monitor: WorkerMonitor) -> None:
        """Executes the model."""
        if self.score is not None:
            monitor.buffers.scores[0, : self.rows, 0] = self.score
        table = SimpleNamespace(
            block_table=SimpleNamespace(np=np.array([[self.block]])), block_size=self.block_size
        )
        batch = SimpleNamespace(
            num_reqs=1,
            req_ids=[self.request],
            block_table=[table],
            num_computed_tokens_cpu=np.array([self.first]),
            num_prompt_tokens=np.array([self.prompt]),
            num_tokens_no_spec=np.array([self.known]),
        )
        runner = SimpleNamespace(
            input_batch=None if self.broken else batch,
            query_start_loc=SimpleNamespace(np=np.array([0, self.rows])),
            lora_config=None,
        )
        monitor.after_forward(
            runner, scheduled(self.rows if self.sent is None else self.sent, self.copies, self.new)
        )

    @property
    def output(self) -> Any:
        """What the runner returns of it."""
        samples = self.first + self.rows >= self.known
        return SimpleNamespace(req_ids=[self.request], sampled_token_ids=[[9]] if samples else [[]])


def scheduled(rows: int, copies: list[tuple[int, int]] | None = None, new: tuple[Any, ...] = ()) -> Any:
    return SimpleNamespace(
        total_num_scheduled_tokens=rows,
        kv_cache_block_copies=copies,
        finished_req_ids=(),
        scheduled_new_reqs=new,
        scheduled_cached_reqs=SimpleNamespace(resumed_req_ids=()),
    )


def carried(monitor: WorkerMonitor, output: Any) -> StepScores | None:
    """What goes out with it, as the API server reads it."""
    found: StepScores | None = getattr(output, CARRIER, None)
    return None if found is None else monitor.bank.made(found)


def run(monitor: WorkerMonitor, *args: Any, **kwargs: Any) -> StepScores | None:
    """A whole ``Turn``; what went out with it."""
    turn = Turn(*args, **kwargs)
    turn.forward(monitor)
    output = turn.output
    monitor.after_sampling(output)
    return carried(monitor, output)


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


@pytest.mark.parametrize("steps", [1, 8, 9])
def test_decoded_tokens_are_stored_by_the_time_that_a_prompt_repeats_them(steps: int) -> None:
    monitor = make_monitor()
    run(monitor, "a", 1, 0, 1, 1, 1, score=0.0, block_size=16)
    for at in range(1, steps + 1):
        found = run(monitor, "a", 1, at, 1, 1, at + 1, score=float(at), block_size=16)
        assert found is not None
        assert found.states[:, 0] == pytest.approx([at + bias(monitor)])
    again = run(monitor, "b", 1, steps, 1, steps + 1, steps + 1, score=99.0, block_size=16)
    assert again is not None
    assert again.states[:, 0] == pytest.approx(np.array([*range(steps), 99.0]) + bias(monitor))


def other_bank(monitor: WorkerMonitor) -> None:
    assert monitor.reader is not None
    bank = monitor.bank.follow([alerting(name="another", layers=(1,))])
    monitor.reader.swap(bank, AdapterRules(bank, lambda folder: None))


def skipped_request(monitor: WorkerMonitor) -> None:
    wish = SimpleNamespace(req_id="other", sampling_params=SimpleNamespace(extra_args={SKIP: True}))
    run(monitor, "other", 3, 0, 2, 2, 2, new=(wish,))


def steering(monitor: WorkerMonitor) -> None:
    monitor.reader._steerer = SimpleNamespace(last=None)  # type: ignore[union-attr, assignment]


def lost_step(monitor: WorkerMonitor) -> None:
    run(monitor, "other", 3, 0, 2, 2, 2, broken=True)


NOTHING_ELSE: list[Any] = [other_bank, skipped_request, steering, lost_step]


@pytest.mark.parametrize(
    ("probe", "before", "step", "raw"),
    [
        ({}, None, {}, True),
        *(({}, what, {}, False) for what in NOTHING_ELSE),
        ({}, None, {"copies": [(5, 6)]}, False),
        ({"default_action": "stop"}, None, {}, False),
        ({"kind": "steering", "scoring": "cosine"}, None, {}, False),
    ],
)
def test_only_a_step_after_which_nothing_else_is_to_be_done_goes_out_raw(
    probe: dict[str, Any], before: Callable[[WorkerMonitor], None] | None, step: dict[str, Any], raw: bool
) -> None:
    monitor = make_monitor(**probe)
    run(monitor, "a", 2, 0, 1, 1, 1)
    if before is not None:
        before(monitor)
    turn = Turn("a", 2, 1, 1, 1, 2, **step)
    turn.forward(monitor)
    output = turn.output
    monitor.after_sampling(output)
    assert getattr(output, CARRIER).raw is raw
    assert monitor.report()["errors"] == (before is lost_step)


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


def test_scores_that_arrive_with_the_output_ride_on_it_and_not_before() -> None:
    monitor = make_monitor()
    turn = Turn("a", 2, 0, 3, 3, 3, score=4.0)
    turn.forward(monitor)
    output = turn.output
    promise = Promise(lambda: output)
    monitor.after_sampling(promise)
    assert carried(monitor, output) is None
    assert promise.get_output() is output
    found = carried(monitor, output)
    assert found is not None
    assert found.states[:, 0] == pytest.approx([4.0 + bias(monitor)] * 3)


def test_a_step_that_was_fetched_is_free_without_a_collection() -> None:
    monitor = make_monitor()
    turn = Turn("a", 2, 0, 3, 3, 3)
    turn.forward(monitor)
    promise = Promise(lambda output=turn.output: output)  # type: ignore[misc]
    monitor.after_sampling(promise)
    promise.get_output()
    held = weakref.ref(promise)
    gc.disable()
    try:
        del promise
        assert held() is None
    finally:
        gc.enable()


def test_outputs_fetched_after_later_steps_have_the_scores_of_their_own() -> None:
    monitor = make_monitor()
    turns = [Turn("a", 2, 0, 3, 3, 3, score=1.0), Turn("a", 2, 3, 1, 3, 4, score=2.0)]
    promises = []
    for turn in turns:
        turn.forward(monitor)
        promise = Promise(lambda output=turn.output: output)
        monitor.after_sampling(promise)
        promises.append(promise)
    found = [carried(monitor, promise.get_output()) for promise in promises]
    assert [scores.states[:, 0].tolist() for scores in found if scores is not None] == [
        pytest.approx([1.0 + bias(monitor)] * 3),
        pytest.approx([2.0 + bias(monitor)]),
    ]


def test_an_error_of_vllm_in_fetching_is_vllms_own() -> None:
    monitor = make_monitor()
    Turn("a", 2, 0, 3, 3, 3).forward(monitor)

    def fails() -> Any:
        raise RuntimeError("device lost")

    promise = Promise(fails)
    monitor.after_sampling(promise)
    with pytest.raises(RuntimeError, match="device lost"):
        promise.get_output()


def test_an_output_in_another_order_is_not_believed_and_reaches_vllm_all_the_same() -> None:
    monitor = make_monitor()
    turn = Turn("a", 2, 0, 3, 3, 3)
    turn.forward(monitor)
    other = SimpleNamespace(req_ids=["b"], sampled_token_ids=[[9]])
    promise = Promise(lambda: other)
    monitor.after_sampling(promise)
    assert promise.get_output() is other
    assert carried(monitor, other) is None
    assert monitor.report()["errors"] == 1
    assert "order of requests" in monitor.report()["last_error"]


def test_a_step_in_flight_does_not_bring_back_the_slots_that_a_lost_one_took_over() -> None:
    monitor = make_monitor()
    past_its_end = Turn("ended", 2, 0, 4, 4, 4, score=7.0)
    past_its_end.forward(monitor)
    promise = Promise(lambda: past_its_end.output)
    monitor.after_sampling(promise)
    run(monitor, "a", 2, 0, 2, 4, 4, broken=True)  # has been given the block; its scores are lost
    promise.get_output()  # only now are the scores of the step before filed
    found = run(monitor, "a", 2, 2, 2, 4, 4, score=1.0)
    assert found is not None
    assert reasons(found.states)[:, 0].tolist() == [Reason.NOT_DELIVERED] * 2 + [-1] * 2


def test_a_step_that_fails_in_the_output_thread_leaves_the_one_that_is_being_sampled_alone() -> None:
    monitor = make_monitor()
    Turn("a", 2, 0, 3, 3, 3, score=1.0).forward(monitor)
    promise = Promise(lambda: SimpleNamespace(req_ids=["b"], sampled_token_ids=[[9]]))
    monitor.after_sampling(promise)
    later = Turn("a", 2, 3, 1, 3, 4, score=2.0)
    later.forward(monitor)
    promise.get_output()  # fails between the later step's forward pass and its sampling
    output = later.output
    monitor.after_sampling(output)
    found = carried(monitor, output)
    assert found is not None
    assert found.states[:, 0] == pytest.approx([2.0 + bias(monitor)])
    assert found.errors == 1


def test_a_step_that_cannot_be_filed_leaves_nothing_of_its_slots_earlier_owner() -> None:
    monitor = make_monitor()
    run(monitor, "before", 2, 0, 4, 4, 4, score=7.0)  # its block is then given to another request
    with FailingStore.at_work():
        assert run(monitor, "a", 2, 0, 2, 4, 4, score=1.0) is None
    assert monitor.report()["errors"] == 1
    run(monitor, "b", 3, 0, 2, 4, 4, score=5.0)
    found = [run(monitor, "a", 2, 2, 2, 4, 4, score=1.0), run(monitor, "b", 3, 2, 2, 4, 4, score=5.0)]
    told = [reasons(scores.states)[:, 0].tolist() for scores in found if scores is not None]
    assert told == [[Reason.NOT_DELIVERED] * 2 + [-1] * 2, [-1] * 4]


def test_a_step_that_is_never_sampled_is_told_and_what_comes_later_is_scored() -> None:
    monitor = make_monitor()
    Turn("a", 2, 0, 2, 6, 6, score=7.0).forward(monitor)  # never sampled
    assert run(monitor, "a", 2, 2, 1, 6, 6, score=7.0) is None
    assert "never sampled" in monitor.report()["last_error"]
    assert run(monitor, "a", 2, 3, 1, 6, 6, score=1.0) is not None
    found = run(monitor, "b", 3, 0, 2, 2, 2, score=1.0)
    assert found is not None
    assert np.isfinite(found.states).all()
    assert monitor.report()["errors"] == 1


def test_copies_of_a_step_without_rows_happen_before_the_next() -> None:
    monitor = make_monitor()
    run(monitor, "before", 2, 0, 4, 4, 4, score=3.0)
    monitor.after_forward(SimpleNamespace(), scheduled(0, [(2, 5)]))
    found = run(monitor, "a", 5, 2, 1, 3, 3, score=1.0)
    assert found is not None
    assert found.states[:, 0] == pytest.approx(np.array([3, 3, 1]) + bias(monitor))


def test_a_copy_reads_what_was_there_before_the_step_that_it_comes_with() -> None:
    monitor = make_monitor()
    run(monitor, "before", 2, 0, 4, 4, 4, score=3.0)
    run(monitor, "next owner", 2, 0, 4, 4, 4, score=8.0, copies=[(2, 5)])
    found = run(monitor, "a", 5, 2, 1, 3, 3, score=1.0)
    assert found is not None
    assert found.states[:, 0] == pytest.approx(np.array([3, 3, 1]) + bias(monitor))


def test_errors_are_told_once_with_the_next_scores_that_go_out() -> None:
    monitor = make_monitor()
    run(monitor, "a", 2, 0, 2, 4, 4, broken=True)
    run(monitor, "a", 2, 2, 1, 4, 4, broken=True)
    told = [run(monitor, "a", 2, 3, 1, 4, 4), run(monitor, "a", 2, 3, 1, 4, 5)]
    assert [scores.errors for scores in told if scores is not None] == [2, 0]


def test_rows_that_the_scheduler_did_not_send_are_not_understood() -> None:
    monitor = make_monitor()
    assert run(monitor, "a", 2, 0, 2, 2, 2, sent=3) is None
    assert "the batch holds 2 rows, the scheduler sent 3" in monitor.report()["last_error"]


def test_a_worker_whose_output_nobody_reads_takes_nothing_off_the_device() -> None:
    monitor = make_monitor()
    monitor.reader = None
    assert run(monitor, "a", 2, 0, 3, 3, 3, broken=True) is None
    assert monitor.report()["errors"] == 0
    assert monitor.report()["score_store_mib"] == 0.0


def test_dummy_tokens_of_an_idle_engine_never_pass_for_scores() -> None:
    monitor = make_monitor()
    monitor.buffers.scores[:] = 5.0
    monitor.after_dummy_batch()
    found = run(monitor, "a", 2, 0, 3, 3, 3, score=None)
    assert found is not None
    assert (reasons(found.states) == Reason.TAP_SILENT).all()


class PPMissingLayer(nn.Module):
    """As vLLM's: what another pipeline stage computes."""


class GPT2Block(nn.Module):
    """Returns the complete stream."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return 2 * hidden_states


def test_the_taps_of_a_stage_score_the_stream_after_its_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "check_model", lambda *_: None)
    monkeypatch.setattr(worker, "local_model_dir", lambda *_: None)
    monkeypatch.setattr(worker, "stages", lambda: 1)
    probe = alerting(layers=(0, 2))
    width = probe.manifest.d_model
    monitor = WorkerMonitor(Plan((probe,), (), 1, 1))
    monitor.bank, monitor.vectors = make_bank(probe), None
    model = nn.Sequential(nn.ModuleList([PPMissingLayer(), GPT2Block(), GPT2Block()]))
    text = SimpleNamespace(num_hidden_layers=3, hidden_size=width)
    config = SimpleNamespace(hf_text_config=text, model="", revision=None, dtype=torch.float32)
    runner = SimpleNamespace(
        vllm_config=SimpleNamespace(model_config=config), get_model=lambda: model, max_num_tokens=8
    )
    monitor.attach(runner, torch.device("cpu"))
    stream = torch.arange(3.0 * width).reshape(3, width)
    for block in list(model[0])[1:]:
        stream = block(stream)
    assert monitor.buffers.silent_layers(3) == [0]
    assert upstream(model[0], (0, 2)) == 1
    weight = monitor.bank.weights()[1]  # [d, C]
    torch.testing.assert_close(monitor.buffers.scores[1, :3], stream @ weight)
