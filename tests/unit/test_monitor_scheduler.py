"""The scheduler's side of a step: sequences that a probe ends, and scores that are delivered whatever goes wrong."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from monitor.events import StepScores, Stop
from monitor.seam.scheduler import deliver, unshare
from monitor.wire import CARRIER, shares, unpack
from tests.unit.monitor_fakes import column, ints, plant_enums


@pytest.fixture(autouse=True)
def _enums(monkeypatch: pytest.MonkeyPatch) -> None:
    plant_enums(monkeypatch)


class Rows(list[int]):
    """What is needed of ``LogprobsLists``: one entry a position."""

    def slice_request(self, request: int, positions: int) -> Rows:
        return Rows(self[request : request + positions])


class Scheduler:
    def __init__(self, broken: bool = False) -> None:
        self.finished: list[tuple[str, str]] = []
        self._broken = broken

    def finish_requests(self, request_id: str, status: str) -> None:
        if self._broken:
            raise RuntimeError("planted")
        self.finished.append((request_id, status))


def output(request_id: str, *new: int, logprobs: bool = False, ended: str | None = None) -> Any:
    return SimpleNamespace(
        request_id=request_id,
        new_token_ids=list(new),
        new_logprobs=Rows(new) if logprobs else None,
        new_sampling_mask=Rows(new) if logprobs else None,
        finish_reason=ended,
        stop_reason=None,
        kv_transfer_params=None,
    )


def run(scheduler: Scheduler, outputs: list[Any], *stops: Stop, start: int = 10, count: int = 1) -> None:
    """A step of the requests a and b, of which ``count`` positions from ``start`` on became due for each."""
    states = column(*range(2 * count))
    scores = StepScores(ints(count, count), ints(start, start), states, (1e-4,), stops=stops)
    fetched = SimpleNamespace(req_ids=["a", "b"], req_id_to_index={"a": 0, "b": 1})
    setattr(fetched, CARRIER, scores)
    deliver(scheduler, {0: SimpleNamespace(outputs=outputs)}, fetched)


def delivered(outputs: list[Any]) -> tuple[StepScores, list[list[float]]]:
    step = unpack(outputs[0].kv_transfer_params[CARRIER])
    return step, [states[:, 0].tolist() for _, states in shares(step)]


def test_a_sequence_ends_as_if_it_had_stopped_by_itself() -> None:
    scheduler, outputs = Scheduler(), [output("a", 7), output("b", 8)]
    run(scheduler, outputs, Stop(1, "guard", 10))
    assert scheduler.finished == [("b", "stopped")]
    assert [(o.finish_reason, o.stop_reason, o.new_token_ids) for o in outputs] == [
        (None, None, [7]),
        ("stop", "probe:guard", [8]),
    ]
    assert delivered(outputs)[1] == [[0.0], [1.0]]


@pytest.mark.parametrize(
    ("crossed", "kept"),
    [
        (10, [21]),  # the first of the accepted drafts: the token sampled after it is the last
        (11, [21, 22]),
        (12, [21, 22, 23]),
        (3, [21]),  # told again, because the output that should have carried it was dropped
    ],
)
def test_tokens_after_the_one_that_follows_the_crossing_are_cut(crossed: int, kept: list[int]) -> None:
    # Positions 10, 11 and 12 were fed; the new tokens stand at 11, 12 and 13.
    scheduler, outputs = Scheduler(), [output("a", 21, 22, 23, logprobs=True), output("b", 31, 32, 33)]
    run(scheduler, outputs, Stop(0, "guard", crossed), count=3)
    assert outputs[0].new_token_ids == outputs[0].new_logprobs == outputs[0].new_sampling_mask == kept
    assert outputs[1].new_token_ids == [31, 32, 33]
    assert outputs[0].finish_reason == "stop"


def test_a_prompt_that_crosses_costs_one_token() -> None:
    # The whole prompt became due with the first token, which stands at position 5.
    scheduler, outputs = Scheduler(), [output("a", 21), output("b", 31)]
    run(scheduler, outputs, Stop(0, "guard", 2), start=0, count=5)
    assert outputs[0].new_token_ids == [21]
    assert outputs[0].finish_reason == "stop"


def test_a_vllm_without_sampling_masks_is_understood() -> None:
    outputs = [output("a", 21, 22, logprobs=True)]
    del outputs[0].new_sampling_mask
    run(Scheduler(), outputs, Stop(0, "guard", 10), count=2)
    assert outputs[0].new_logprobs == [21]


def test_an_output_that_was_dropped_ends_nothing_and_costs_nobody_a_score() -> None:
    scheduler, outputs = Scheduler(), [output("b", 8)]
    run(scheduler, outputs, Stop(0, "guard", 10))
    assert scheduler.finished == []
    assert outputs[0].finish_reason is None
    assert delivered(outputs)[1] == [[1.0]]


def test_a_sequence_that_has_ended_keeps_its_reason() -> None:
    scheduler, outputs = Scheduler(), [output("a", 7, ended="length"), output("b", 8)]
    run(scheduler, outputs, Stop(0, "guard", 10))
    assert scheduler.finished == []
    assert (outputs[0].finish_reason, outputs[0].stop_reason) == ("length", None)


def test_a_fault_is_counted_and_the_scores_are_delivered_all_the_same() -> None:
    scheduler, outputs = Scheduler(broken=True), [output("a", 7), output("b", 8)]
    run(scheduler, outputs, Stop(0, "guard", 10))
    step, found = delivered(outputs)
    assert step.errors == 1
    assert found == [[0.0], [1.0]]
    assert outputs[0].finish_reason is None, "the sequence goes on"


def test_a_step_without_our_scores_is_left_alone() -> None:
    outputs = [output("a", 7)]
    deliver(Scheduler(), {0: SimpleNamespace(outputs=outputs)}, SimpleNamespace(req_ids=["a"]))
    assert outputs[0].kv_transfer_params is None


def test_scores_that_cannot_be_attached_cost_no_request() -> None:
    fetched = SimpleNamespace(req_ids=["a"])  # without its index
    setattr(fetched, CARRIER, StepScores(ints(1), ints(0), np.zeros((1, 1), np.float32), (1e-4,)))
    outputs = [output("a", 7)]
    deliver(Scheduler(), {0: SimpleNamespace(outputs=outputs)}, fetched)
    assert outputs[0].kv_transfer_params is None


# What a gate has steered leaves the prefix cache.

BLOCK = 4


class Cache:
    """A request of the prefix cache: blocks 10, 11 ... of ``BLOCK`` tokens, ``hashed`` of them with a hash."""

    def __init__(self, hashed: int, ended: bool = False) -> None:
        self.evicted: set[int] = set()
        self.held: dict[str, tuple[list[int]]] = {}
        self.blocks = {10 + i: SimpleNamespace(ref_cnt=1) for i in range(hashed + 1)}
        self.request = SimpleNamespace(
            block_hashes=[bytes([i]) * 32 for i in range(hashed)], cache_salt="own", is_finished=lambda: ended
        )
        spec = SimpleNamespace(kv_cache_spec=SimpleNamespace(block_size=BLOCK))
        manager = SimpleNamespace(
            get_block_ids=lambda name: self.held.get(name, ([10 + i for i in range(hashed + 1)],)),
            kv_cache_config=SimpleNamespace(kv_cache_groups=[spec]),
            block_pool=SimpleNamespace(evict_blocks=self.evicted.update, blocks=self.blocks),
        )
        self.scheduler = SimpleNamespace(
            requests={"a": self.request}, kv_cache_manager=manager, hash_block_size=BLOCK, running=[]
        )

    def changed(self) -> list[int]:
        return [i for i, found in enumerate(self.request.block_hashes) if found != bytes([i]) * 32]


def test_blocks_from_the_steered_token_on_are_evicted_and_later_ones_get_names_of_their_own() -> None:
    cache = Cache(hashed=5)
    unshare(cache.scheduler, "a", position=3 * BLOCK + 1, block=13)
    assert cache.evicted == {13, 14, 15}
    # The block before stays cached under its name; changed here it breaks the chain for those that follow.
    assert cache.changed() == [2, 3, 4]
    assert cache.request.cache_salt == "own"


def test_a_block_that_is_not_full_yet_breaks_the_chain_before_it() -> None:
    cache = Cache(hashed=2)
    unshare(cache.scheduler, "a", position=2 * BLOCK + 1, block=-1)
    assert cache.evicted == {12}
    assert cache.changed() == [1]


def test_in_the_first_block_the_salt_does_it() -> None:
    cache = Cache(hashed=0)
    unshare(cache.scheduler, "a", position=2, block=10)
    assert cache.evicted == {10}
    assert cache.request.cache_salt != "own"


def test_of_a_request_that_has_just_ended_the_steered_block_goes() -> None:
    for ended in (Cache(hashed=3, ended=True), Cache(hashed=3)):
        ended.scheduler.requests = {} if not ended.request.is_finished() else ended.scheduler.requests
        unshare(ended.scheduler, "a", position=2 * BLOCK, block=12)
        assert ended.evicted == {12}
        assert ended.changed() == []
        unshare(ended.scheduler, "a", position=2 * BLOCK, block=-1)
        assert ended.evicted == {12}


def test_of_a_request_that_was_preempted_meanwhile_the_steered_block_goes_too() -> None:
    cache = Cache(hashed=3)
    cache.held["a"] = ([],)
    unshare(cache.scheduler, "a", position=2 * BLOCK, block=12)
    assert cache.evicted == {12}
    assert cache.changed() == [1, 2]


def test_who_took_a_steered_block_in_that_very_step_does_not_pass_it_on() -> None:
    cache = Cache(hashed=3)
    cache.blocks[12].ref_cnt = 2
    readers = [
        SimpleNamespace(request_id=name, block_hashes=[b"x" * 32] * 4, cache_salt=None) for name in ("b", "c")
    ]
    cache.held |= {"b": ([30, 12, 31],), "c": ([40],)}
    cache.scheduler.running = readers
    unshare(cache.scheduler, "a", position=2 * BLOCK + 1, block=12)
    assert b"x" * 32 not in readers[0].block_hashes
    assert set(readers[1].block_hashes) == {b"x" * 32}


def test_one_gate_that_cannot_be_served_does_not_cost_the_others() -> None:
    outputs = [output("a", 7), output("b", 8)]
    scores = StepScores(
        ints(1, 1), ints(10, 10), column(0, 1), (1e-4,), gated=((0, 11, -1),), stops=(Stop(1, "guard", 10),)
    )
    fetched = SimpleNamespace(req_ids=["a", "b"], req_id_to_index={"a": 0, "b": 1})
    setattr(fetched, CARRIER, scores)
    deliver(Scheduler(), {0: SimpleNamespace(outputs=outputs)}, fetched)  # this scheduler has no cache at all
    assert outputs[1].stop_reason == "probe:guard"
    assert delivered(outputs)[0].errors == 1
