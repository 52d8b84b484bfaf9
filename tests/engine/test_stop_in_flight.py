"""Stops on vLLM's own schedulers, with steps in flight: no model runs, its scores are planted.

On CPU vLLM schedules synchronously only, so its asynchronous scheduler is driven here as its engine core does it: a
step is scheduled while the results of up to two earlier ones are not known yet.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import Any

import numpy as np
import pytest
import tiny

from monitor.bank import ProbeBank
from monitor.events import StepScores, StepView
from monitor.seam.scheduler import deliver
from monitor.triggers import Triggers
from monitor.wire import CARRIER
from probes import Probe, load
from probes.testing import write_artifact

BLOCKS, BLOCK_SIZE = 65, 16
"""One of the blocks is vLLM's own."""
PROMPT, ANSWER = 5, 40


@pytest.fixture(scope="module")
def guard(tmp_path_factory: pytest.TempPathFactory) -> Probe:
    """Stops at the first token whose score is above 1, in prompt or answer."""
    return load(
        write_artifact(
            tmp_path_factory.mktemp("guard") / "guard.safetensors",
            name="guard",
            layers=(1,),
            aggregation={"method": "max"},
            statistic="running_sup",
            token_mask={"prompt": "all", "generated": True, "skip_positions": ()},
            threshold=1.0,
            default_action="stop",
        )
    )


@pytest.fixture(scope="module")
def configuration(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """vLLM's configuration of a tiny model."""
    from vllm.engine.arg_utils import EngineArgs

    model = tiny.write_model(tmp_path_factory.mktemp("model") / "model", "llama")
    arguments = EngineArgs(
        model=str(model), skip_tokenizer_init=True, max_model_len=256, enable_prefix_caching=False
    )
    found = arguments.create_engine_config()
    found.cache_config.num_gpu_blocks = BLOCKS
    return found


class Driven:
    """A scheduler of vLLM's and the monitor's side of its steps. ``crossing``: by request, where its score is high."""

    def __init__(self, configuration: Any, guard: Probe, in_flight: int, crossing: dict[str, int]) -> None:
        import torch
        from vllm.v1.core.sched.async_scheduler import AsyncScheduler
        from vllm.v1.core.sched.scheduler import Scheduler
        from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
        from vllm.v1.structured_output import StructuredOutputManager

        spec = FullAttentionSpec(block_size=BLOCK_SIZE, num_kv_heads=1, head_size=64, dtype=torch.float32)
        self.scheduler: Any = (AsyncScheduler if in_flight else Scheduler)(
            vllm_config=configuration,
            kv_cache_config=KVCacheConfig(BLOCKS, [], [KVCacheGroupSpec(["layer"], spec)]),
            structured_output_manager=StructuredOutputManager(configuration),
            block_size=BLOCK_SIZE,
        )
        self.in_flight = in_flight
        self.crossing = crossing
        self.triggers = Triggers(ProbeBank([guard], [1], guard.manifest.d_model, 1))
        self.received: dict[str, list[Any]] = {name: [] for name in crossing}
        self.wasted: Counter[str] = Counter()
        """Rows of a request that were computed when it had ended already."""
        self._fed: dict[str, int] = dict.fromkeys(crossing, 0)

    @property
    def free_blocks(self) -> int:
        return int(self.scheduler.kv_cache_manager.block_pool.get_num_free_blocks())

    def serve(self) -> None:
        """All requests to their ends."""
        from vllm import SamplingParams
        from vllm.v1.request import Request

        for name in self.crossing:
            params = SamplingParams(max_tokens=ANSWER, ignore_eos=True)
            self.scheduler.add_request(Request(name, list(range(3, 3 + PROMPT)), params, None))
        pending: deque[Any] = deque()
        while pending or self.scheduler.has_requests():
            step = self.scheduler.schedule()
            if step.total_num_scheduled_tokens:
                pending.append(step)
            if pending and (len(pending) > self.in_flight or not step.total_num_scheduled_tokens):
                self._hear(pending.popleft())

    def _hear(self, step: Any) -> None:
        """Forward pass, sampling and bookkeeping of a step, and vLLM's and our part in hearing of it."""
        from vllm.v1.outputs import ModelRunnerOutput

        names = list(step.num_scheduled_tokens)
        counts = np.array([step.num_scheduled_tokens[name] for name in names], np.int64)
        starts = np.array([self._fed[name] for name in names], np.int64)
        for name, count in zip(names, counts.tolist(), strict=True):
            self._fed[name] += count
            self.wasted[name] += name not in self.scheduler.requests
        rows = zip(names, starts.tolist(), counts.tolist(), strict=True)
        scores = [2.0 * (p == self.crossing[name]) for name, s, n in rows for p in range(s, s + n)]
        states = np.array(scores, np.float32)[:, None]
        bounds = np.cumsum([0, *counts.tolist()])
        prompts = np.full(len(names), PROMPT, np.int64)
        view = StepView(tuple(names), bounds, starts, prompts, starts, np.zeros(0, np.int64), {})
        crossed = self.triggers.follow(view, starts, counts, states)
        rows_of = {name: row for row, name in enumerate(names)}
        output = ModelRunnerOutput(names, rows_of, [[7] for _ in names])
        setattr(output, CARRIER, StepScores(counts, starts, states, (1e-4,), stops=crossed.stops))
        results = self.scheduler.update_from_output(step, output)
        deliver(self.scheduler, results, output)
        for client in results.values():
            for sent in client.outputs:
                self.received[sent.request_id].append(sent)
                if sent.finish_reason is not None:
                    assert sent.request_id not in self.scheduler.requests


@pytest.mark.parametrize("in_flight", [0, 1, 2])
def test_a_stop_costs_one_token_whatever_is_in_flight(
    configuration: Any, guard: Probe, in_flight: int
) -> None:
    crossing = {f"r{i}": PROMPT - 2 + 3 * i for i in range(8)}
    driven = Driven(configuration, guard, in_flight, {**crossing, "quiet": -1})
    free = driven.free_blocks
    driven.serve()
    after = {}
    for name, position in crossing.items():
        outputs = driven.received[name]
        got = sum(len(output.new_token_ids) for output in outputs)
        assert (str(outputs[-1].finish_reason), outputs[-1].stop_reason) == ("stop", "probe:guard")
        assert [output for output in outputs[:-1] if output.finish_reason is not None] == []
        after[name] = got - max(0, position - PROMPT + 1)
    wasted = {name: driven.wasted[name] for name in crossing}
    print(f"{in_flight} steps in flight: tokens after the crossing {after}, rows thrown away {wasted}")
    assert set(after.values()) == {1}
    assert set(wasted.values()) == {in_flight}, "what was in flight at each stop is thrown away"
    assert sum(len(output.new_token_ids) for output in driven.received["quiet"]) == ANSWER
    assert driven.free_blocks == free == BLOCKS - 1
    assert not driven.scheduler.running
