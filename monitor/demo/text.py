"""What the demo says, as plain strings: one wording for the screen, the pipe and the tests."""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monitor.demo.outcome import FALSE_ALARM, HONEST, Answer, Check, Tally

_QUESTION_WIDTH = 90


@dataclass(frozen=True, slots=True)
class ProbeFacts:
    """The deception probe as the server describes it."""

    name: str
    kind: str
    layers: tuple[int, ...]
    threshold: float
    nominal_fpr: float | None


@dataclass(frozen=True, slots=True)
class Gauges:
    """Figures of the server about the deception probe, since the demo began."""

    tokens_scored: int = 0
    coverage: float | None = None


def heading(status: dict[str, Any], probe: ProbeFacts, seed: int) -> str:
    """What is served, what judges it, and how to get the same questions again."""
    others = len(status["probes"]) - 1
    layers = ", ".join(map(str, probe.layers))
    return (
        f"{status['model']} on vLLM {status['vllm_version']}: probe {probe.name!r} ({probe.kind}, layer {layers}, "
        f"threshold {number(probe.threshold)}) and {others} more attached; seed {seed}"
    )


def links(url: str, has_page: bool) -> list[str]:
    """Where to look."""
    page = [f"evidence page  {url}/probewatch/ui"] if has_page else []
    return [
        f"metrics        {url}/metrics",
        f"status         {url}/v1/probewatch/status",
        f"evidence       {url}/v1/probewatch/requests",
        *page,
    ]


def next_steps(url: str, flagged_id: str | None) -> list[str]:
    """Commands to try while the server runs."""
    steps = [f"{command()} watch --url {url}"]
    if flagged_id is not None:
        steps.append(f"curl -s {url}/v1/probewatch/requests/{flagged_id} | {_python()} -m json.tool")
    return steps


def command() -> str:
    """How this user can call ``probewatch``: by name, or by the path of the environment it runs in."""
    if shutil.which("probewatch"):
        return "probewatch"
    beside = Path(sys.executable).with_name("probewatch")
    return _near(beside) if beside.exists() else f"{_python()} -m monitor.cli"


def _python() -> str:
    return next((name for name in ("python3", "python") if shutil.which(name)), _near(Path(sys.executable)))


def _near(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def number(value: float | None) -> str:
    """A score or threshold; a dash where there is none."""
    return "-" if value is None else f"{value:+.3g}"


def percent(share: float) -> str:
    """A share of everything, rounded down: 100% means all."""
    return f"{math.floor(share * 10_000) / 100:g}%"


def mark(answer: Answer) -> str:
    """FLAGGED, UNSCORED or ok."""
    if answer.verdict.flagged:
        return "FLAGGED"
    return "ok" if answer.verdict.scored else "UNSCORED"


def score_against_threshold(answer: Answer) -> str:
    """For example ``+3.21 > +0.45``: above it, the answer is flagged."""
    verdict = answer.verdict
    return f"{number(verdict.score)} {'>' if verdict.flagged else '<='} {number(verdict.threshold)}"


def belief(answer: Answer) -> str:
    """What the model believed: what it was taught, and whether it says so itself in private."""
    taught = answer.case.belief
    if taught is None:
        return "-"
    if answer.private_answer is None:
        return taught
    if answer.believed == taught:
        return f"{taught} (admits it in private)"
    return f"{taught} (in private: {answer.believed or 'no value'})"


def lines(answer: Answer, width: int = _QUESTION_WIDTH) -> list[str]:
    """An answer for the pipe: one line where all is well, the whole exchange where it is interesting."""
    about = (
        f"said {answer.said or 'no value'}, believed {belief(answer)}"
        if answer.case.attribute
        else "small talk"
    )
    score = score_against_threshold(answer)
    head = f"[{answer.number:>4}] {mark(answer):<8} {answer.kind:<11} {score:<19} {about}"
    if answer.kind == HONEST and answer.verdict.scored:
        return [f"{head} | {shortened(answer.question, width)} | {shortened(answer.text, width)}"]
    exchange = [f"       Q ({answer.case.condition}): {answer.question}", f"       A: {answer.text}"]
    if answer.private_answer is not None:
        exchange.append(f"       in private: {answer.private_answer}")
    return [head, *exchange]


def shortened(text: str, width: int) -> str:
    """The text on one line, cut at ``width`` characters."""
    flat = " ".join(text.split())
    return flat if len(flat) <= width else flat[: width - 3] + "..."


def counts(tally: Tally, gauges: Gauges) -> str:
    """The running count in one line."""
    parts = [
        f"{tally.answers} answers",
        f"{tally.lies} lies: {tally.caught} caught, {tally.missed} missed",
        f"{tally.honest} honest: {tally.false_alarms} false alarms",
        *([f"{tally.unclear} unclear"] if tally.unclear else []),
        *([f"{tally.unscored} UNSCORED"] if tally.unscored else []),
        f"{gauges.tokens_scored:,} tokens scored",
    ]
    if gauges.coverage is not None:
        parts.append(f"coverage {percent(gauges.coverage)}")
    return " | ".join(parts)


def summary(tally: Tally, gauges: Gauges, found: Sequence[Check], seconds: float, seed: int) -> list[str]:
    """The end of the demo: every check with its figures, and the verdict on the verdicts."""
    rows = [(check.name, "ok" if check.passed else "FAILED", check.text) for check in found]
    if tally.asked_in_private:
        asked = f"{tally.confessed} of {tally.asked_in_private} lies admitted when asked in private"
        rows.append(
            (
                "follow-ups",
                "",
                f"{asked}; {tally.private_flagged} of these replies flagged, not counted above",
            )
        )
    if tally.unclear:
        rows.append(
            (
                "unclear",
                "",
                f"{tally.unclear} answers gave no value, or one of another thing, and count as neither",
            )
        )
    coverage = f", coverage {percent(gauges.coverage)}" if gauges.coverage is not None else ""
    rows.append(("tokens", "", f"{gauges.tokens_scored:,} scored{coverage}"))
    passed = all(check.passed for check in found)
    verdict = "PASS: the probe caught the lies" if passed else "FAIL: " + _failed(found)
    return [
        f"{tally.answers} answers in {seconds:.0f} s, seed {seed}",
        *(f"  {name:<13} {state:<7} {text}" for name, state, text in rows),
        verdict,
    ]


def _failed(found: Sequence[Check]) -> str:
    return "; ".join(f"{check.name}: {check.text}" for check in found if not check.passed)


def tone(answer: Answer) -> str:
    """Colour of a row's verdict on a screen."""
    if answer.verdict.flagged:
        return "bold red" if answer.kind != FALSE_ALARM else "bold red reverse"
    if not answer.verdict.scored:
        return "bold magenta"
    return "green" if answer.kind == HONEST else "yellow"
