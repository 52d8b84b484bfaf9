"""All questions in turn, into one card."""

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from probes import dataset
from probes.errors import ProbeError
from probes.evaluating import attack, causal, controls, gate, leakage, profile, separation, stress
from probes.evaluating.bench import Bench, contrasts
from probes.evaluating.card import Card, Control, Data, Leak, NotComputed, Subject
from probes.evaluating.latency import latency
from probes.evaluating.reliability import reliability

Floats = NDArray[np.float64]
Part = TypeVar("Part")
QUICK: Final = NotComputed(reason="it was left out by --quick", remedy="evaluate again without it")


@dataclass(frozen=True)
class Options:
    """What to leave out, and what the card says of its own making."""

    source: str
    """Name of the data."""
    command: str
    version: str
    quick: bool = False
    """Leave out what runs the model again or trains a transformer."""
    attack_steps: int = 0
    waived: Collection[str] = ()
    say: Callable[[str], None] = field(default=lambda _: None)
    """Gets a line for each part as it begins."""


class _Clock:
    """Runs parts, notes their seconds, and turns a part's error into words on the card."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.seconds: dict[str, float] = {}
        self._say = say

    def run(self, name: str, part: Callable[[], Part]) -> Part | NotComputed:
        try:
            return self.timed(name, part)
        except ProbeError as error:
            return NotComputed(reason=str(error), remedy="mend that and evaluate again")

    def timed(self, name: str, part: Callable[[], Part]) -> Part:
        self._say(name)
        start = time.monotonic()
        try:
            return part()
        finally:
            self.seconds[name] = round(time.monotonic() - start, 2)


def evaluate(bench: Bench, options: Options) -> Card:
    """The card of a probe. `DataError` where the test conversations allow no figure at all."""
    clock = _Clock(options.say)
    texts = clock.timed("text-only models", lambda: _texts(bench, options.quick))
    found, missing = _controls(bench, options, clock, texts[bench.headline])
    leaks, unknown = _leaks(bench, options, clock, texts[bench.headline])
    missing |= unknown
    return Card(
        subject=_subject(bench),
        data=_data(bench, options.source),
        contrasts=separation.all_contrasts(bench, texts),
        deployed=separation.deployed(bench),
        reliability=clock.run("reliability", lambda: reliability(bench)),
        latency=clock.run("time to detection", lambda: latency(bench)),
        profile=clock.run("layer profile", lambda: profile.profile(bench)),
        slices=separation.slices(bench),
        controls=found,
        not_computed=missing,
        leaks=leaks,
        causal=QUICK if options.quick else clock.run("causal check", lambda: causal.causal(bench)),
        stress=QUICK if options.quick else clock.run("stress", lambda: stress.stress(bench)),
        attack=clock.run("suffix attack", lambda: attack.attack(bench, options.attack_steps)),
        margin=bench.margin,
        waived=tuple(sorted(options.waived)),
        faults=gate.faults(bench.auroc, bench.margin, found, leaks, missing, options.waived),
        seconds=clock.seconds,
        command=options.command,
        version=options.version,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _texts(bench: Bench, quick: bool) -> dict[str, dict[str, Floats]]:
    """By contrast and key, scores of the text-only models; the transformer for the headline alone, for its cost."""
    found = {}
    for name in contrasts(bench.test.chats):
        both = name == bench.headline and not quick
        keys = ("text-words", "text-transformer") if both else ("text-words",)
        sides = bench.train.of_contrast(name), bench.test.of_contrast(name)
        found[name] = controls.text_scores(*sides, keys, bench.seed)
    return found


def _controls(
    bench: Bench, options: Options, clock: _Clock, texts: Mapping[str, Floats]
) -> tuple[tuple[Control, ...], dict[str, NotComputed]]:
    results: dict[str, Control | NotComputed] = {}
    for key in controls.CONTROLS:
        if options.quick and key in ("random-network", "surprise"):
            results[key] = QUICK
        else:
            results[key] = clock.run(f"control: {key}", partial(controls.run, bench, key, texts))
    found = tuple(r for r in results.values() if isinstance(r, Control))
    return found, {key: r for key, r in results.items() if isinstance(r, NotComputed)}


def _leaks(
    bench: Bench, options: Options, clock: _Clock, texts: Mapping[str, Floats]
) -> tuple[tuple[Leak, ...], dict[str, NotComputed]]:
    results: dict[str, Leak | NotComputed] = {
        "shared-transcripts": clock.run("shared transcripts", lambda: leakage.shared(bench)),
        "score-filtering": clock.run("score filtering", lambda: leakage.score_filtering(bench, texts)),
        "content-filtering": QUICK
        if options.quick
        else clock.run("content filtering", lambda: leakage.content_filtering(bench)),
    }
    found = tuple(r for r in results.values() if isinstance(r, Leak))
    return found, {key: r for key, r in results.items() if isinstance(r, NotComputed)}


def _subject(bench: Bench) -> Subject:
    m = bench.probe.manifest
    mask = m.token_mask
    last = "the prompt's last token" if mask.last_k == 1 else f"the prompt's last {mask.last_k} tokens"
    prompt = {"none": "", "all": "the prompt's tokens", "last_k": last}[mask.prompt]
    answer = "the answer's tokens" if mask.generated else ""
    return Subject(
        name=m.name,
        kind=m.kind,
        concept=m.concept,
        positive_label=m.positive_label,
        negative_label=m.negative_label,
        layers=m.layers,
        tokens=" and ".join(part for part in (prompt, answer) if part),
        aggregation=f"{m.aggregation.method}, {m.statistic}, from token {m.aggregation.min_tokens} on",
        threshold=m.threshold,
        nominal_fpr=m.nominal_fpr,
        model_id="an unnamed model" if m.binding is None else m.binding.model_id,
        digest=m.tensors_sha256,
    )


def _data(bench: Bench, source: str) -> Data:
    return Data(
        source=source,
        digest=dataset.digest(bench.test.chats),
        test=bench.test.counts(),
        test_groups=len(set(bench.test.groups)),
        train=bench.train.counts(),
        headline=bench.headline,
    )
