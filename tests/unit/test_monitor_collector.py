"""The collector inside a worker, with a fake engine: every row from the right step, on both model runners."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from monitor.errors import CollectError
from monitor.harvest import KEEP, Harvest
from monitor.seam import view_v1, view_v2
from monitor.seam.collector import Collector
from monitor.seam.hooks import answering
from monitor.seam.keep import KeptRows
from tests.unit.monitor_fake_engine import FakeEngine
from tests.unit.monitor_fake_runners import GROUP, MOST_ROWS, FakeRequest, FakeStep, planted

D = 2
LAYERS = (1, 4)


def make_collector(runner: str) -> Collector:
    collector = Collector(LAYERS)
    collector._kept = KeptRows(len(LAYERS), MOST_ROWS, D, torch.float32, torch.device("cpu"))
    collector._harvest = Harvest(LAYERS, D, torch.float32)
    collector._capture = partial((view_v2 if runner == "v2" else view_v1).capture, group=GROUP)
    collector._proven = True
    return collector


def scheduled(step: FakeStep, new: list[tuple[FakeRequest, list[int]]]) -> Any:
    requests = [
        SimpleNamespace(req_id=one.id, sampling_params=SimpleNamespace(extra_args={KEEP: place}))
        for one, place in new
    ]
    return SimpleNamespace(
        total_num_scheduled_tokens=step.scheduled, finished_req_ids=(), scheduled_new_reqs=requests
    )


def write(collector: Collector, step: FakeStep, silent: bool = False) -> None:
    """What the graph's operations do, padding rows included."""
    rows = torch.from_numpy(step.states)
    collector._kept.rows[0, : len(rows)] = rows
    collector._kept.rows[0, len(rows) : len(rows) + 2] = 99
    if not silent:
        collector._kept.rows[1, : len(rows)] = -rows


def drive(collector: Collector, engine: FakeEngine, prompts: list[FakeRequest], firsts: list[int]) -> None:
    """Runs all requests to their first token. Each is new in the first step that has it."""
    places = {
        one: [i, first, len(one.prompt)] for i, (one, first) in enumerate(zip(prompts, firsts, strict=True))
    }
    for _ in range(10_000):
        step = engine.forward()
        if step is not None:
            new = [(one, places.pop(one)) for one in step.requests if one in places]
            write(collector, step)
            collector.after_forward(step.runner, scheduled(step, new))
            step.runner.sample()
        if engine.in_flight and (step is None or len(engine.in_flight) >= engine.depth):
            engine.collect()
        if not engine.in_flight and not engine.waiting and not engine.running:
            return
    raise AssertionError("the fake engine does not come to an end")


@pytest.mark.parametrize(("runner", "depth"), [("v1", 1), ("v1", 2), ("v2", 1), ("v2", 3)])
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=10, deadline=None)
def test_a_shard_holds_every_row(
    tmp_path_factory: pytest.TempPathFactory, runner: str, depth: int, seed: int
) -> None:
    engine = FakeEngine(seed, columns=D, runner=runner, depth=depth)
    engine.sharing, engine.max_drafts = False, 0  # neither prefix caching nor drafts
    prompts = [engine.add() for _ in range(8)]
    for one in prompts:
        one.wanted = 1
    firsts = [engine.rng.randrange(len(one.prompt)) for one in prompts]
    collector = make_collector(runner)
    collector.begin(
        [one.id for one in prompts],
        [len(one.prompt) - first for one, first in zip(prompts, firsts, strict=True)],
    )
    drive(collector, engine, prompts, firsts)
    path = tmp_path_factory.mktemp("shard") / "shard.safetensors"
    assert collector.write(str(path))
    expected = np.stack(
        [
            planted(one.prompt[: position + 1], D)
            for one, first in zip(prompts, firsts, strict=True)
            for position in range(first, len(one.prompt))
        ]
    )
    found = load_file(path)
    np.testing.assert_array_equal(found["layer.1"].numpy(), expected)
    np.testing.assert_array_equal(found["layer.4"].numpy(), -expected)


def one_step(silent: bool = False, broken: bool = False) -> Collector:
    engine = FakeEngine(0, columns=D)
    engine.max_drafts = 0
    request = engine.add()
    step = None
    while step is None:
        step = engine.forward()
    collector = make_collector("v1")
    collector.begin([request.id], [len(request.prompt)])
    write(collector, step, silent)
    runner = SimpleNamespace() if broken else step.runner
    collector.after_forward(runner, scheduled(step, [(request, [0, 0, len(request.prompt)])]))
    return collector


@pytest.mark.parametrize(
    ("fault", "words"),
    [({"silent": True}, "TapError: nothing was kept after layers"), ({"broken": True}, "AttributeError")],
)
def test_what_went_wrong_is_told_when_the_shard_is_written(
    tmp_path: Path, fault: dict[str, bool], words: str
) -> None:
    collector = one_step(**fault)
    reply = answering(Collector.write)(SimpleNamespace(probewatch=collector), str(tmp_path / "shard"))
    assert words in reply["error"]
    assert not list(tmp_path.iterdir())
    collector.begin(["next"], [0])
    assert collector._fault is None


def test_a_worker_that_is_not_read_files_nothing(tmp_path: Path) -> None:
    collector = make_collector("v1")
    collector._harvest = None
    assert collector.begin(["one"], [1]) is False
    assert collector.write(str(tmp_path / "shard")) is None
    lacking = make_collector("v1")
    lacking.begin(["one"], [1])
    with pytest.raises(CollectError, match="1 of 1 rows never came"):
        lacking.write(str(tmp_path / "shard"))
    assert not list(tmp_path.iterdir())
