"""Traffic of one round, and what is measured while an engine answers it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.model import VOCABULARY


@dataclass(frozen=True)
class Workload:
    """``requests`` at once, with prompts of random tokens; answers are as long as they may be."""

    requests: int
    tokens_in: int
    tokens_out: int

    @property
    def name(self) -> str:
        """For tables."""
        return f"{self.requests} x ({self.tokens_in} + {self.tokens_out})"

    @classmethod
    def parse(cls, text: str) -> Workload:
        """From ``REQUESTSxIN+OUT``."""
        requests, _, tokens = text.partition("x")
        tokens_in, _, tokens_out = tokens.partition("+")
        return cls(int(requests), int(tokens_in), int(tokens_out))


class Turns:
    """A clock that stands still while others have their turn, and what each step took by it."""

    def __init__(self, wait: Callable[[], None] | None = None) -> None:
        """``wait`` is called after each step and returns when it is our turn again; None: nobody waits."""
        self._wait, self._waited = wait, 0.0
        self._begun = time.perf_counter()
        self.seconds: list[float] = []
        """Of each step; what comes before the first belongs to it."""

    def now(self) -> float:
        """Seconds."""
        return time.perf_counter() - self._waited

    def step_done(self) -> None:
        """After each step."""
        now = self.now()
        self.seconds.append(now - self._begun)
        self._begun = now
        if self._wait:
            begun = time.perf_counter()
            self._wait()
            self._waited += time.perf_counter() - begun
            self._begun = self.now()


def run(
    llm: Any,
    load: Workload,
    seed: int,
    wish: dict[str, Any] | None,
    turns: Turns | None = None,
    settle: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Drives the engine step by step. Times in seconds; a gap is the time between a sequence's tokens.

    ``wish``: what each request asks for; ``{scale}`` in it becomes a number of its own. ``turns``: None where nobody
    else has one. ``settle`` does what was put off, in the round's time, though after its last token.
    """
    turns = turns or Turns()
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    engine, rng = llm.llm_engine, np.random.default_rng(seed)
    begun: dict[str, float] = {}
    for number in range(load.requests):
        # Scales too small to change a token: the work is the same as with any other.
        scale = f"{(number + 1) * 1e-6:.7f}"
        own = {k: v.format(scale=scale) if isinstance(v, str) else v for k, v in (wish or {}).items()}
        params = SamplingParams(
            max_tokens=load.tokens_out,
            temperature=0,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
            extra_args=own or None,
        )
        # No hyphen before a number: ids of one response end so, and its sequences are judged as one.
        name = f"bench{seed}x{load.requests}x{load.tokens_in}x{number}"
        prompt: Any = {"prompt_token_ids": rng.integers(3, VOCABULARY, load.tokens_in).tolist()}
        begun[name] = turns.now()
        engine.add_request(name, prompt, params)
    started = min(begun.values())
    first: dict[str, float] = {}
    last: dict[str, float] = {}
    gaps: list[float] = []
    for name, now in _tokens(engine, turns):
        if name in last:
            gaps.append(now - last[name])
        else:
            first[name] = now - begun[name]
        last[name] = now
    settle()
    seconds = turns.now() - started
    turns.step_done()
    llm.reset_prefix_cache()
    return {
        "tokens_per_second": load.requests * (load.tokens_in + load.tokens_out) / seconds,
        "first_token_seconds": float(np.median(list(first.values()))),
        **(
            {
                "inter_token_seconds": float(np.median(gaps)),
                "inter_token_p99_seconds": float(np.percentile(gaps, 99)),
            }
            if gaps
            else {}
        ),
    }


def _tokens(engine: Any, turns: Turns) -> Iterator[tuple[str, float]]:
    while engine.has_unfinished_requests():
        outputs = engine.step()
        now = turns.now()
        for output in outputs:
            yield output.request_id, now
        turns.step_done()
