"""One conversation with a server that is up: questions out, judged answers in, counted and shown."""

from __future__ import annotations

import threading
import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any, Final

from prometheus_client.parser import text_string_to_metric_families

from monitor.client import Server
from monitor.demo import text
from monitor.demo.outcome import Answer, Tally
from monitor.demo.text import Gauges, ProbeFacts
from monitor.demo.traffic import Interviewer, questions
from monitor.demo.view import View
from monitor.errors import ServerError

CONCURRENCY: Final = 8
SLOW_SECONDS: Final = 1.5
"""Pause between questions once the asked-for number is answered."""
GAUGE_SECONDS: Final = 1.0
COUNTER_SECONDS: Final = 5.0
"""How long the server's counter may lag behind its answers."""
CONCEPT: Final = "deception"


@dataclass
class Session:
    """One conversation with a server that is up."""

    server: Server
    probe: ProbeFacts
    seed: int
    view: View
    stop: threading.Event
    started_at: float = field(default_factory=time.monotonic)
    tally: Tally = field(default_factory=Tally)
    answers: list[Answer] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._before = self._counters()
        self._gauges_at = 0.0

    def run(self, interviewer: Interviewer, n: int, once: bool) -> None:
        """Asks ``n`` questions at once, then goes on slowly until told to stop unless ``once``."""
        pending: set[Future[Answer]] = set()
        pool = ThreadPoolExecutor(CONCURRENCY)
        try:
            for number, case in questions(n, self.seed):
                slow = number > n
                if slow and once:
                    break
                self._collect(pending, below=1 if slow else CONCURRENCY)
                if slow and number == n + 1:
                    self._announce(n)
                if self.stop.wait(SLOW_SECONDS if slow else 0):
                    self.view.say(["stopping"])
                    break
                pending.add(pool.submit(interviewer.ask, number, case))
            self._collect(pending, below=1)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # the server's end ends what is on its way

    def _collect(self, pending: set[Future[Answer]], below: int) -> None:
        """Takes in finished answers until fewer than ``below`` are on their way."""
        while True:
            done = {future for future in pending if future.done()}
            pending -= done
            for answer in sorted((future.result() for future in done), key=lambda answer: answer.number):
                self.answers.append(answer)
                self.tally.add(answer)
                self.view.answer(answer, self.tally)
            if time.monotonic() - self._gauges_at > GAUGE_SECONDS:
                self.view.gauges(self.gauges())
            if len(pending) < below:
                return
            wait(pending, timeout=GAUGE_SECONDS, return_when=FIRST_COMPLETED)

    def _announce(self, n: int) -> None:
        self.view.say([f"{n} questions are answered; going on slowly. Ctrl-C stops the server."])
        self.view.pin(
            [f"try            {step}" for step in text.next_steps(self.server.url, self.flagged_id)]
        )

    @property
    def flagged_id(self) -> str | None:
        """Id of the newest flagged answer."""
        return next((a.id for a in reversed(self.answers) if a.verdict.flagged), None)

    def gauges(self) -> Gauges:
        """The server's own figures now."""
        self._gauges_at = time.monotonic()
        scored = self._counters()["tokens"] - self._before["tokens"]
        return Gauges(int(scored), self.server.status()["coverage"].get(self.probe.name))

    def flags_counted(self) -> int:
        """By how much the server's counter of flagged requests has grown."""
        deadline = time.monotonic() + COUNTER_SECONDS
        while True:
            grown = int(self._counters()["flagged"] - self._before["flagged"])
            if grown == self.tally.flagged or time.monotonic() > deadline:
                return grown
            time.sleep(0.2)

    def _counters(self) -> dict[str, float]:
        metrics = self.server.metrics()
        wanted = {"probe": self.probe.name}
        return {
            "tokens": total(metrics, "probewatch_tokens_scored_total", wanted),
            "flagged": total(metrics, "probewatch_requests_total", {**wanted, "verdict": "flagged"}),
        }


def total(metrics: str, name: str, labels: dict[str, str]) -> float:
    """Sum of a metric's samples that carry these labels. Raises ``ServerError`` if there is none."""
    found = [
        sample.value
        for family in text_string_to_metric_families(metrics)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    ]
    if not found:
        raise ServerError(f"/metrics has no {name} with {labels}; is the probe attached to this server?")
    return float(sum(found))


def deception_probe(status: dict[str, Any]) -> ProbeFacts:
    """The calibrated probe for deception among the attached ones. Raises ``ServerError`` if there is none."""
    for probe in sorted(status["probes"], key=lambda probe: str(probe["name"]) != CONCEPT):
        if probe["concept"] == CONCEPT and probe["threshold"] is not None:
            return ProbeFacts(
                probe["name"], probe["kind"], tuple(probe["layers"]), probe["threshold"], probe["nominal_fpr"]
            )
    names = ", ".join(str(probe["name"]) for probe in status["probes"]) or "none"
    raise ServerError(
        f"no calibrated probe for {CONCEPT!r} is attached (attached: {names}); attach the shipped one"
    )


def open_session(server: Server, seed: int, view: View, stop: threading.Event) -> Session:
    """Looks at a server that is up, and says where to look. Raises ``ServerError`` if the demo cannot use it."""
    status = server.status()
    if not status["attached"]:
        raise ServerError(f"{server.url} runs unmonitored: {status['last_error']}; start it again")
    probe = deception_probe(status)
    server.requests(1)  # whether the evidence may be read at all
    view.say([text.heading(status, probe, seed)])
    view.pin(text.links(server.url, server.answers("/probewatch/ui")))
    return Session(server, probe, seed, view, stop)


def served_model(server: Server) -> str:
    """The name to ask for in requests."""
    models = server.models()
    if not models:
        raise ServerError(f"{server.url} lists no model on /v1/models; see the server's log")
    return str(models[0]["id"])
