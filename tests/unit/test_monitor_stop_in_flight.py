"""How many tokens a client gets after the one whose score crossed, with steps in flight as asynchronous scheduling has
them: worker, triggers, scheduler and front end are the monitor's own, vLLM is played by ``FakeEngine``.

``tests/engine/test_stop_in_flight.py`` asks the same of vLLM's own scheduler.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from probes import Probe
from tests.unit.monitor_fake_runners import FakeRequest, planted
from tests.unit.monitor_fake_server import FakeServer
from tests.unit.monitor_fakes import make_probe, plant_enums, value

HALF = 2.0**23
"""Planted scores are spread evenly over 0 .. 2**24."""
SETUPS = [("v1", 0), ("v1", 1), ("v1", 2), ("v2", 0), ("v2", 1), ("v2", 2)]
"""Model runner, and steps in flight when the scheduler hears of one."""


def guard(prompt: str) -> Probe:
    """Stops where the mean of at least three tokens is high: no single one decides."""
    return make_probe(
        "guard",
        kind="steering",
        scoring="projection",
        layers=(1, 2),
        token_mask={"prompt": prompt, "generated": True, "skip_positions": ()},
        aggregation={"method": "mean", "min_tokens": 3},
        statistic="running_sup",
        threshold=1.1 * HALF,
        default_action="stop",
    )


class Stopping(FakeServer):
    """Traffic that only its own end or the probe ends."""

    def __init__(self, seed: int, runner: str, in_flight: int, prompt: str) -> None:
        # The other probe keeps two layers tapped with norms, as the planted taps write them.
        other = make_probe("cosine", kind="steering", scoring="cosine", layers=(2,))
        super().__init__(seed, runner, in_flight + 1, columns=2, probes=(guard(prompt), other))
        self.asked: dict[str, FakeRequest] = {}

    def _traffic(self, turn: int) -> None:
        if turn % 2 == 0:
            self._add()

    def _add(self) -> None:
        super()._add()
        request = self.engine.waiting[-1]
        request.wanted = 12
        self.asked[request.id] = request

    def crossing(self, request: FakeRequest, fed: int, probe: Probe) -> int | None:
        """Position of the token that brings the statistic above the threshold, by hand."""
        stream, skipped = (
            probe.stream(),
            0 if probe.manifest.token_mask.prompt == "all" else len(request.prompt),
        )
        for position in range(skipped, fed):
            stream.update(np.array([planted(request.tokens[: position + 1], 2)[0]]))
            if probe.crossed(stream.live):
                return position
        return None

    def stopped(self, probe: Probe) -> Counter[int]:
        """Tokens that clients got after the one whose score crossed, by how often; of a prompt that crossed, all."""
        found: Counter[int] = Counter()
        for name, request in self.asked.items():
            outputs = self.sent[name]
            got = [token for output in outputs for token in output.new_token_ids]
            assert got == request.outputs[: len(got)], "a token of a step past the end, or one out of order"
            crossed = self.crossing(request, len(request.prompt) + len(got) - 1, probe)
            if crossed is None:
                assert (outputs[-1].finish_reason, outputs[-1].stop_reason) == ("stop", None)
                assert len(got) == request.wanted
            elif outputs[-1].stop_reason is None:
                assert len(got) == request.wanted, "it crossed with its last token, and ended by itself"
                assert crossed == len(request.prompt) + len(got) - 2
            else:
                assert outputs[-1].stop_reason == "probe:guard"
                found[len(got) - 1 - max(-1, crossed - len(request.prompt))] += 1
        return found


@pytest.mark.parametrize("prompt", ["none", "all"])
@pytest.mark.parametrize(("runner", "in_flight"), SETUPS)
def test_a_stop_costs_one_token_whatever_is_in_flight(
    runner: str, in_flight: int, prompt: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant_enums(monkeypatch)
    tokens: Counter[int] = Counter()
    thrown_away = 0
    for seed in range(2):
        server = Stopping(seed, runner, in_flight, prompt)
        server.serve(40)
        own = server.stopped(guard(prompt))
        assert value(server.registry, "probewatch_stopped_requests_total", probe="guard") == own.total()
        assert server.monitor.report()["errors"] == 0
        assert sorted(server.engine._free) == list(range(server.engine.num_blocks)), (
            "every block is free again"
        )
        tokens, thrown_away = tokens + own, thrown_away + server.engine.events["past_end"]
    print(
        f"{runner}, {in_flight} steps in flight, prompt {prompt}: tokens after the crossing {dict(tokens)}, "
        f"{thrown_away} steps thrown away"
    )
    assert set(tokens) == {1}
    assert tokens[1] >= 5
    assert (thrown_away > 0) == (in_flight > 0)
