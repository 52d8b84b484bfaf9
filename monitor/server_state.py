"""What one API server of the monitor holds, and everything that hears of its verdicts."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from monitor import __version__
from monitor.alert_feed import AlertFeed
from monitor.alerts import AlertSource, MemoryAlerts
from monitor.audit_log import AuditLog, open_audit
from monitor.config import Settings
from monitor.control import Control
from monitor.engines import Engines
from monitor.evidence import EvidenceStore, open_store
from monitor.evidence_rows import Text
from monitor.flag_event import Origin
from monitor.frontend import Frontend, Listener
from monitor.otlp import open_otlp
from monitor.peers import Peers
from monitor.push import make_postmen
from monitor.words import Words


class Sink(Protocol):
    """Where verdicts go."""

    def listener(self, frontend: Frontend) -> Listener:
        """What an engine tells of every finished sequence. It neither waits nor raises."""

    def close(self) -> None:
        """Hands on what waits, within the few seconds that vLLM gives."""


@dataclass
class HttpState:
    """What the routes need; set once the engine is up and the taps are proven."""

    engines: Engines
    settings: Settings
    decode: Callable[[list[int]], str]
    facts: dict[str, Any] = field(default_factory=dict)
    """Versions, runner, and what the workers reported."""
    peers: Peers | None = None
    """The other API servers, where there are several."""
    control: Control | None = None
    """None where nothing can be attached."""
    alerts: AlertSource = field(default_factory=MemoryAlerts)
    """Where ``/alerts`` and ``/events`` read."""
    evidence: EvidenceStore | None = None
    """None where nothing is kept on disk."""
    audit: AuditLog | None = None
    """None where nothing is audited."""
    words: Words | None = None
    """None where no generation can be replayed."""
    sinks: list[Sink] = field(default_factory=list)
    """Whatever else hears of every verdict and writes or sends in the background."""
    closing: Callable[[], bool] = lambda: False
    """Whether the server is about to stop: then open streams end."""

    def keep_evidence(self, port: int) -> None:
        """From now on every verdict goes where the settings say. Raises ``EvidenceError``."""
        text = Text(self.decode, self.token_text)
        self.evidence = open_store(self.settings, self.engines.first.model_name, port, text)
        if self.evidence is not None:
            self.alerts = self.evidence
            self.engines.listen(self.evidence.listener)
        else:
            memory = MemoryAlerts(None if self.peers is None else self.peers.ask)
            self.alerts = memory
            self.engines.listen(lambda frontend: memory.add)

    def keep_sinks(self, url: str) -> None:
        """From now on verdicts, flags and changes go wherever else the settings say. Raises ``MonitorError``.

        ``url``: where people reach this server.
        """
        vllm_version, revision = (str(self.facts.get(key) or "") for key in ("vllm_version", "revision"))
        facts = {"version": __version__, "model": self.engines.first.model_name, "vllm_version": vllm_version}
        self.audit = open_audit(self.settings, self.engines, facts)
        origin = Origin(url, __version__, vllm_version, revision or None)
        postmen = make_postmen(self.settings, origin, Text(self.decode, self.token_text))
        for postman in postmen:
            postman.start()
        opened = (self.audit, open_otlp(self.settings), *postmen)
        self.sinks = [sink for sink in opened if sink is not None]
        for sink in self.sinks:
            self.engines.listen(sink.listener)

    def close(self) -> None:
        """Ends what works in the background, all at the same time: vLLM waits for a few seconds only."""
        sinks = [*self.sinks, *([] if self.evidence is None else [self.evidence])]
        threads = [threading.Thread(target=sink.close) for sink in sinks]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    @functools.cached_property
    def feed(self) -> AlertFeed:
        """What the event streams of this process share."""
        return AlertFeed(self.alerts, self.closing)

    @functools.cached_property
    def token_text(self) -> Callable[[int], str]:
        """Text of one token with its leading space: what it adds after itself."""

        @functools.lru_cache(maxsize=65536)
        def text(token_id: int) -> str:
            once = self.decode([token_id])
            twice = self.decode([token_id, token_id])
            return twice[len(once) :] if twice.startswith(once) else once

        return text
