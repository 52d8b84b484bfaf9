"""A worker that sends raw steps where it may, beside one that never does: same traffic, same swaps of probes, same
faults; what they deliver and what they store is the same to the bit."""

from __future__ import annotations

import random
from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.adapters import AdapterRules
from monitor.bank import ProbeBank
from monitor.events import StepScores
from monitor.seam import view_v1
from monitor.seam.steps import StepReader
from monitor.seam.tap import TapBuffers
from monitor.store import ScoreStore
from monitor.unscored import Reason, nan_for
from probes import Probe
from tests.unit.monitor_fake_engine import FakeEngine
from tests.unit.monitor_fake_runners import GROUP, MOST_ROWS
from tests.unit.monitor_fake_server import CPU, runner_output, scheduled
from tests.unit.monitor_fakes import make_probe

LAYERS = (0, 1, 2)
CAPACITY, ROOM = 12, 24


class NeverRaw(StepReader):
    """States are made and stored at once."""

    def _only_goes_on(self, *_: Any) -> bool:
        return False


class Pair:
    """Both workers, and the API server that reads what they send by banks of its own."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.numbers = np.random.default_rng(seed)
        self.engine = FakeEngine(seed, 2, "v1")
        self.events: Counter[str] = Counter()
        self._made = 0
        probes = [self._probe() for _ in range(self.rng.randint(1, 4))]
        self.bank, self.servers = self._bank(probes), {0: self._bank(probes)}
        self._epoch = self._latest = 0
        self.readers = [self._reader(StepReader), self._reader(NeverRaw)]

    def _probe(self) -> Probe:
        """Mostly a sum over layers, on layers of its own."""
        self._made += 1
        layers = tuple(sorted(self.rng.sample(LAYERS, self.rng.randint(1, 3))))
        kind: dict[str, Any] = {"kind": "steering", "scoring": "cosine"} if self.rng.random() < 0.1 else {}
        return make_probe(f"p{self._made}", seed=self._made, layers=layers, **kind)

    def _bank(self, probes: list[Probe]) -> ProbeBank:
        return ProbeBank(probes, LAYERS, probes[0].manifest.d_model, CAPACITY, norms=True)

    def _reader(self, kind: type[StepReader]) -> StepReader:
        buffers = TapBuffers.allocate(len(LAYERS), MOST_ROWS, CAPACITY, True, CPU)
        store = ScoreStore(self.engine.num_blocks * self.engine.block_size, ROOM, 1)
        rules = AdapterRules(self.bank, lambda _: None)
        return kind(self.bank, buffers, store, self.engine.block_size, view_v1.Batches(GROUP).capture, rules)

    def swap(self) -> None:
        """Some probes go, one may come."""
        probes = [seat.probe for seat in self.bank.seats if self.rng.random() < 0.7]
        if self.rng.random() < 0.7 or not probes:
            probes.append(self._probe())
        self.rng.shuffle(probes)
        self._epoch += 1
        self.bank = self.bank.follow(probes, self._epoch)
        assert self.bank.state_columns <= ROOM
        self.servers[self._epoch] = self.servers[self._latest].follow(probes, self._epoch)
        self._latest = self._epoch
        for reader in self.readers:
            reader.swap(self.bank, AdapterRules(self.bank, lambda _: None))
        self.events["swap"] += 1

    def step(self) -> None:
        """One step of both, with taps that write anything, nothing, or what is no number."""
        step = self.engine.forward()
        if step is None:
            return
        rows = len(step.states)
        values = self.numbers.standard_normal((len(LAYERS), rows, CAPACITY)).astype(np.float32)
        if self.rng.random() < 0.1:
            broken = self.rng.choice([nan_for(Reason.TAP_SILENT), np.float32("inf"), np.float32("nan")])
            values[self.rng.randrange(len(LAYERS)), self.rng.randrange(rows)] = broken
        unreadable = self.rng.random() < 0.02
        for reader in self.readers:
            buffers = reader.buffers
            buffers.scores.numpy()[:, :rows], buffers.squared_norms.numpy()[:, :rows] = values, 4
            try:
                reader.after_forward(SimpleNamespace() if unreadable else step.runner, scheduled(step))
            except Exception:  # as the worker does
                reader.lose()
                buffers.silence()
        step.runner.sample()
        assert self.engine.collect() is step
        output, sent = runner_output(step), []
        for reader in self.readers:
            taken = reader.take()
            sent.append(None if taken is None else reader.complete(taken, output))
        self._compare(*sent)

    def _compare(self, one: StepScores | None, other: StepScores | None) -> None:
        assert (one is None) == (other is None)
        if one is None or other is None:
            return
        self.events["raw"] += one.raw
        assert not other.raw
        found, right = (self.servers[step.epoch].made(step) for step in (one, other))
        np.testing.assert_array_equal(found.counts, right.counts)
        np.testing.assert_array_equal(found.starts, right.starts)
        assert found.states.tobytes() == right.states.tobytes()

    def compare_stores(self) -> None:
        """Every slot, the reasons of those without a score included."""
        one, other = (reader.filing.store.rows for reader in self.readers)
        assert one.tobytes() == other.tobytes()


def served(seed: int) -> Counter[str]:
    pair = Pair(seed)
    with np.errstate(all="ignore"):
        for turn in range(150):
            if turn % 5 == 0:
                pair.engine.add()
            if turn % 13 == 12 and pair.engine.running:
                pair.engine.abort(pair.rng.choice(pair.engine.running))
            if turn % 37 == 36:
                pair.engine.reset()
            if pair.rng.random() < 0.06 and len(pair.bank.seats) < 4:
                pair.swap()
            pair.step()
            if turn % 11 == 10:
                pair.compare_stores()
    pair.compare_stores()
    return pair.events


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_raw_steps_deliver_and_store_what_others_do(seed: int) -> None:
    served(seed)


@pytest.mark.parametrize(("event", "least"), [("raw", 100), ("swap", 20)])
def test_they_were_in_play(event: str, least: int) -> None:
    assert sum(served(seed)[event] for seed in range(8)) > least
