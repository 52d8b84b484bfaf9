"""How the metrics of the catalogue are counted.

Every child is created when a probe is loaded: a counter born at 1 hides its first flag from ``increase()``.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from weakref import WeakKeyDictionary

import numpy as np
from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics_core import Metric as MetricFamily
from prometheus_client.multiprocess import MultiProcessCollector

from monitor.catalogue import CATALOGUE, ERROR_STAGES, PHASES, PROBE_GAUGES
from monitor.tally import Tally
from monitor.unscored import Reason
from monitor.verdict import FLAGGED, OK, UNSCORED, Floats
from probes import Probe

Collector = Counter | Gauge | Histogram


class Metrics:
    """The catalogue, registered once per process, with children for one model and engine."""

    def __init__(self, model_name: str, engine: str, registry: CollectorRegistry = REGISTRY) -> None:
        self._base = (model_name, engine)
        self.engine = engine
        self._page = _page(registry)
        self._metrics = self._page.collectors
        self._children: dict[tuple[str, ...], Collector] = {}
        self._actions: dict[str, set[str]] = {}
        """That each attached probe has, or had."""
        self.others_read = "PROMETHEUS_MULTIPROC_DIR" in os.environ
        """With several API servers, another process may read the metrics at any time."""
        self.applying = self._page.applying
        """Held by whoever changes or reads the metrics of a page as a whole."""
        self._tally = Tally(self.inc, self.others_read, self.applying)
        self.before_reading(self._tally.flush)
        for stage in ERROR_STAGES:
            self.child("probewatch_errors_total", stage)
        for phase in PHASES:
            self.child("probewatch_tokens_seen_total", phase)
        for name in (
            "probewatch_attached",
            "probewatch_last_scored_timestamp_seconds",
            "probewatch_step_overhead_seconds",
        ):
            self.child(name)

    def child(self, name: str, *labels: str) -> Collector:
        """The child of a metric; ``labels`` in the order of its catalogue entry."""
        key = (name, *labels)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = self._metrics[name].labels(*self._base, *labels)
        return child

    def inc(self, name: str, *labels: str, by: float = 1) -> None:
        """Adds to a counter; nothing at all costs nothing."""
        if not by:
            return
        child = self.child(name, *labels)
        assert not isinstance(child, Histogram)
        child.inc(by)

    def inc_all(self, name: str, children: Sequence[tuple[str, ...]], by: float) -> None:
        """Adds the same to several counters, by the time that somebody reads them.

        ``children``: the labels of each; the same object every time."""
        self._tally.add(name, children, by)

    def inc_later(self, name: str, *labels: str, by: int = 1) -> None:
        """Adds to a counter by the time that somebody reads it."""
        self._tally.add_one(name, labels, by)

    def before_reading(self, flush: Callable[[], None]) -> None:
        """``flush`` is called whenever somebody reads, and adds what waits elsewhere. It must not raise."""
        self._page.waiting.append(flush)

    def together(self) -> contextlib.AbstractContextManager[None]:
        """What ``inc_all`` and ``inc_later`` add inside is seen by a scrape as a whole or not at all."""
        return self._tally.together()

    def flush(self) -> None:
        """What waits is there for every reader; of all engines, since two of a name share counters."""
        self._page.flush()

    def set(self, name: str, *labels: str, to: float) -> None:
        """Sets a gauge."""
        child = self.child(name, *labels)
        assert isinstance(child, Gauge)
        child.set(to)

    def observe(self, name: str, *labels: str, value: float) -> None:
        """Adds to a histogram."""
        child = self.child(name, *labels)
        assert isinstance(child, Histogram)
        child.observe(value)

    def observe_all(self, name: str, children: Sequence[tuple[str, ...]], values: Floats) -> None:
        """Adds ``values [n, children]`` to several histograms of a metric; what is not finite counts in none."""
        bounds = CATALOGUE[name].buckets
        known = np.isfinite(values)
        bucket = np.where(known, np.searchsorted(bounds, values), len(bounds) + 1)
        width = len(bounds) + 2  # above the last bound, and unknown
        places = np.arange(len(children)) * width + bucket
        counts = np.bincount(places.ravel(), minlength=len(children) * width).reshape(-1, width)[:, :-1]
        totals = np.where(known, values, 0.0).sum(axis=0)
        for labels, own, total in zip(children, counts.tolist(), totals.tolist(), strict=True):
            child = self.child(name, *labels)
            assert isinstance(child, _Histogram)
            child.add(own, total)

    def total(self, name: str, first_label: str | None = None) -> float:
        """Sum over this engine's children of a counter, or over those with this first label of its own.

        With several API servers it is the sum over their processes.
        """
        totals = self.totals(name)
        return sum(totals.values()) if first_label is None else totals[first_label]

    def totals(self, name: str) -> defaultdict[str, float]:
        """The same by first label, in one walk through the children: many probes have many."""
        self.flush()
        wanted = dict(zip(("model_name", "engine"), self._base, strict=True))
        first = CATALOGUE[name].labels[0]
        found: defaultdict[str, float] = defaultdict(float)
        for family in self._families(name):
            for sample in family.samples:
                if sample.name == name and wanted.items() <= sample.labels.items():
                    found[sample.labels[first]] += sample.value
        return found

    def _families(self, name: str) -> Iterable[MetricFamily]:
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            families: Iterable[MetricFamily] = MultiProcessCollector(CollectorRegistry()).collect()  # type: ignore[no-untyped-call]
            return families
        return self._metrics[name].collect()

    def announce(self, version: str, vllm_version: str, runner: str) -> None:
        """Publishes the versions in use."""
        self.set("probewatch_build_info", version, vllm_version, runner, to=1)

    def add_probe(self, probe: Probe) -> None:
        """Creates every child that this probe can ever need."""
        manifest = probe.manifest
        name, action = manifest.name, manifest.default_action
        self.set("probewatch_probe_info", *probe_labels(probe), to=1)
        known = self._actions.setdefault(name, set())
        known.add(action)
        for one in known:
            self.set("probewatch_action_info", name, one, to=float(one == action))
        if manifest.threshold is not None:
            self.set("probewatch_threshold", name, to=manifest.threshold)
        if manifest.nominal_fpr is not None:
            self.set("probewatch_nominal_fpr", name, to=manifest.nominal_fpr)
        for verdict in (OK, FLAGGED, UNSCORED):
            self.child("probewatch_requests_total", name, verdict)
        self.child("probewatch_request_margin", name)
        self.child("probewatch_score_drift", name)
        self.child("probewatch_score_drift_ks", name)
        self.child("probewatch_selftest_error", name)
        if action != "observe":
            self.child("probewatch_alerts_total", name, action)
        if action == "stop":
            self.child("probewatch_stopped_requests_total", name)
        for phase in PHASES:
            self.child("probewatch_tokens_scored_total", name, phase)
            for reason in Reason:
                self.child("probewatch_tokens_unscored_total", name, phase, reason.label)

    def retire_probe(self, probe: Probe) -> None:
        """After a detach: the probe is known not to be there. Its counters stay, its gauges would tell what was."""
        self.set("probewatch_probe_info", *probe_labels(probe), to=0)
        for name in PROBE_GAUGES:
            self.forget(name, probe.manifest.name)
        for action in self._actions.pop(probe.manifest.name, ()):
            self.forget("probewatch_action_info", probe.manifest.name, action)

    def forget(self, name: str, *labels: str) -> None:
        """Takes a gauge from the page. prometheus_client cannot where several processes share it: there it is NaN."""
        if (name, *labels) not in self._children:
            return
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            self.set(name, *labels, to=math.nan)
        else:
            del self._children[name, *labels]
            self._metrics[name].remove(*self._base, *labels)


def probe_labels(probe: Probe) -> Sequence[str]:
    """Labels of ``probewatch_probe_info``."""
    manifest = probe.manifest
    return manifest.name, manifest.kind, ",".join(map(str, manifest.layers)), manifest.tensors_sha256


class _Page:
    """All our metrics as the one collector that a registry knows: a scrape may run in another thread than the one that
    counts, and shows them as they were at one moment."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.collectors = {name: _collector(name) for name in CATALOGUE}
        self.waiting: list[Callable[[], None]] = []
        """Of every engine, also of those that are gone: what they counted may still wait for the first reader."""
        self.applying = threading.RLock()
        registry.register(self)

    def describe(self) -> list[MetricFamily]:
        """For the registry: the names, without samples."""
        return [family for one in self.collectors.values() for family in one.describe()]

    def flush(self) -> None:
        """What waits reaches its counters."""
        # The latest first: verdicts before the tokens of their sequences, which were there earlier.
        for flush in reversed(list(self.waiting)):
            flush()

    def collect(self) -> list[MetricFamily]:
        """For the registry."""
        with self.applying:
            self.flush()
            families = [family for one in self.collectors.values() for family in one.collect()]
        for family in families:
            # When a child was made: a third of all lines, which no dashboard or rule of ours reads, while whoever
            # writes a long page keeps the interpreter from the thread that streams.
            if family.type in ("counter", "histogram"):
                family.samples = [one for one in family.samples if not one.name.endswith("_created")]
        return families


# prometheus_client refuses a second collector of the same name; several engines in one process share them.
_PAGES: WeakKeyDictionary[CollectorRegistry, _Page] = WeakKeyDictionary()


def _page(registry: CollectorRegistry) -> _Page:
    if registry not in _PAGES:
        _PAGES[registry] = _Page(registry)
    return _PAGES[registry]


def _collector(name: str) -> Collector:
    spec = CATALOGUE[name]
    labels = ("model_name", "engine", *spec.labels)
    if spec.type == "counter":
        return Counter(name, spec.help, labels, registry=None)
    if spec.type == "gauge":
        return Gauge(name, spec.help, labels, registry=None, multiprocess_mode=spec.multiprocess)
    return _Histogram(name, spec.help, labels, registry=None, buckets=spec.buckets)


class _Histogram(Histogram):
    """With a way to observe many values at once, for which prometheus_client has none."""

    def add(self, counts: Sequence[int], total: float) -> None:
        """As ``observe`` of each of some values, given how many fall into each bucket, and their sum."""
        self._sum.inc(total)
        for bucket, count in zip(self._buckets, counts, strict=True):
            if count:
                bucket.inc(count)
