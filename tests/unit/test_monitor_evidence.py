"""The evidence store: what is written, what never is, and what happens when the disk does not do its part."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from monitor.alerts import AlertQuery
from monitor.config import Settings
from monitor.engines import Engines
from monitor.errors import EvidenceError
from monitor.evidence import EvidenceStore, default_path, open_store
from monitor.evidence_file import EvidenceFile
from monitor.evidence_rows import Line, Text, keyed_hash, make_row, worst_response
from monitor.evidence_schema import open_evidence
from monitor.frontend import Arrival, Frontend, Running
from monitor.metrics import Metrics
from monitor.records import RecentRecords, Record, of_response
from monitor.unscored import Reason, nan_for
from tests.unit import nursery
from tests.unit.monitor_fakes import MODEL, alerting, column, make_bank, make_frontend, make_probe, value
from tests.unit.waiting import until

PLANTED = (1_234_567, 7_654_321, 1_357_913)
"""Token ids that stand in no other number of a record."""
TEXT = Text(lambda ids: " ".join(f"word{i}" for i in ids), lambda i: f" word{i}")


def finish(
    frontend: Frontend,
    response_id: str,
    *scores: float | np.float32,
    choice: int = 0,
    group: str | None = None,
) -> Record:
    """A sequence whose prompt (two tokens, if so many were fed) and answer are the planted ids, over and over."""
    prompt = min(2, len(scores))
    ids = [PLANTED[i % 3] for i in range(len(scores) + 1)]
    running = Running(response_id, group, choice, prompt, tuple(ids[:prompt]))
    width = frontend.bank.state_columns
    states = np.repeat(column(*scores), width, axis=1)
    frontend.arrive([Arrival(running, tuple(ids[prompt:]), 0, states)])
    record = frontend.finish(running, "stop")
    assert record is not None
    return record


def make_watched() -> tuple[Frontend, CollectorRegistry]:
    """An alerting probe and one that observes, both over 2.5."""
    return make_frontend(alerting(threshold=2.5), alerting("hush", threshold=2.5, default_action="observe"))


class Kept:
    """A store over a frontend of its own, and what it counted."""

    def __init__(self, path: Path, text: Text | None = None, days: float = 30, mib: float = 64) -> None:
        self.file = EvidenceFile(path, days, mib)
        self.store = EvidenceStore(self.file, text)
        self.frontend, self.registry = make_watched()
        Engines(lambda index: self.frontend, [0], self.frontend.recent).listen(self.store.listener)
        self.store.start()

    def counts(self) -> tuple[float | None, ...]:
        """(stored, dropped, failed)"""
        return tuple(
            value(self.registry, "probewatch_evidence_total", sink="sqlite", outcome=outcome)
            for outcome in ("stored", "dropped", "failed")
        )

    def wait(self, *counts: float) -> None:
        """Until that is what has become of the records."""
        until(lambda: self.counts() == counts, 20, shown=lambda: (self.counts(), counts))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "evidence.sqlite"


@pytest.fixture
def keep(path: Path) -> Any:
    """Makes stores, and closes them in the end."""
    made: list[Kept] = []

    def make(**options: Any) -> Kept:
        made.append(Kept(path, **options))
        return made[-1]

    yield make
    for kept in made:
        kept.store.close()


Keep = Callable[..., Kept]


def test_children_exist_before_any_record(keep: Keep) -> None:
    assert keep().counts() == (0, 0, 0)


def test_a_flagged_record_comes_back_as_memory_shows_it_but_for_the_text(keep: Keep) -> None:
    kept = keep()
    record = finish(kept.frontend, "cmpl-1", 1.0, nan_for(Reason.TAP_SILENT), 3.0)
    kept.wait(1, 0, 0)
    shown = of_response([record], str)
    for probe in shown["probes"].values():
        for token in probe["tokens"]:
            token["token_id"] = token["token"] = None
    assert kept.file.response("cmpl-1") == shown
    assert [t["reason"] for t in shown["probes"]["lie"]["tokens"]] == [None, "tap_silent", None, "not_fed"]


def test_an_unflagged_record_comes_back_as_a_summary(keep: Keep) -> None:
    kept = keep()
    finish(kept.frontend, "cmpl-1", 1.0, 2.0, 0.5)
    kept.wait(1, 0, 0)
    found = kept.file.response("cmpl-1")
    assert found is not None
    assert (found["verdict"], found["probes"]["lie"]["score"]) == ("ok", 2.0)
    assert [probe["tokens"] for probe in found["probes"].values()] == [[], []]
    with sqlite3.connect(kept.file.path) as connection:
        assert connection.execute("SELECT scores, alert, event_id FROM records").fetchone() == (
            None,
            None,
            None,
        )


def test_an_alert_names_the_acting_probes_that_flagged_and_no_others(keep: Keep) -> None:
    kept = keep()
    record = finish(kept.frontend, "cmpl-1", 1.0, 2.0, 3.0)
    finish(kept.frontend, "cmpl-2", 1.0, 2.0, 0.0)
    kept.wait(2, 0, 0)
    (alert,) = kept.file.find(AlertQuery())
    assert alert.pop("event_id") > 0
    assert alert == {
        "id": "cmpl-1",
        "choice": 0,
        "model": MODEL,
        "time": record.finished_at,
        "verdict": "flagged",
        "finish_reason": "stop",
        "prompt_tokens": 2,
        "fed_tokens": 3,
        "probes": [{"name": "lie", "score": 3.0, "threshold": 2.5, "action": "alert", "peak_token": 2}],
        "coverage": {"prompt": 1.0, "generated": 1.0},
    }


def test_an_observing_probe_alone_makes_no_alert(tmp_path: Path) -> None:
    frontend, _ = make_frontend(alerting("hush", threshold=2.5, default_action="observe"))
    row = make_row(finish(frontend, "cmpl-1", 9.0), b"key", None)
    assert (row.flagged, row.alert, row.scores) == (0, None, None)


def traces(folder: Path) -> list[str]:
    """Planted ids and words that the files of a folder hold, in any plausible spelling."""
    found = []
    for file in folder.iterdir():
        data = file.read_bytes()
        for token in PLANTED:
            spellings = [str(token).encode(), token.to_bytes(4, "little"), token.to_bytes(4, "big")]
            found += [f"{file.name}: {token}" for spelling in spellings if spelling in data]
        found += [f"{file.name}: word" for _ in range(data.count(b"word"))]
    return found


def test_neither_text_nor_ids_reach_the_disk_unless_asked_for(keep: Keep, path: Path) -> None:
    kept = keep()
    finish(kept.frontend, "cmpl-1", 1.0, 2.0, 3.0)
    finish(kept.frontend, "cmpl-2", 1.0, 2.0, 0.0)
    kept.wait(2, 0, 0)
    assert traces(path.parent) == []
    with sqlite3.connect(path) as connection:
        stored = connection.execute("SELECT prompt_text, answer_text, tokens FROM records").fetchall()
    assert stored == [(None, None, None)] * 2
    kept.store.close()
    assert traces(path.parent) == []


def test_the_search_for_traces_finds_them_where_text_is_stored(keep: Keep, path: Path) -> None:
    kept = keep(text=TEXT)
    finish(kept.frontend, "cmpl-1", 1.0, 2.0, 3.0)
    kept.wait(1, 0, 0)
    assert traces(path.parent)


def test_with_text_the_disk_shows_what_memory_shows(keep: Keep, path: Path) -> None:
    kept = keep(text=TEXT)
    record = finish(kept.frontend, "cmpl-1", 1.0, 2.0, 3.0)
    kept.wait(1, 0, 0)
    assert kept.file.response("cmpl-1") == of_response([record], TEXT.token_text)
    with sqlite3.connect(path) as connection:
        prompt, answer = connection.execute("SELECT prompt_text, answer_text FROM records").fetchone()
    assert prompt == f"word{PLANTED[0]} word{PLANTED[1]}"
    assert answer == f"word{PLANTED[2]} word{PLANTED[0]}"


def test_equal_texts_have_equal_hashes_and_another_key_gives_others(tmp_path: Path) -> None:
    frontend, _ = make_watched()
    first, again = (make_row(finish(frontend, name, 1.0, 1.0), b"k" * 32, None) for name in "ab")
    longer = make_row(finish(frontend, "c", 1.0, 1.0, 1.0), b"k" * 32, None)
    assert first.prompt_hash == again.prompt_hash == longer.prompt_hash
    assert first.answer_hash == again.answer_hash != longer.answer_hash
    ids = np.array(PLANTED[:2], np.int32)
    assert keyed_hash(b"k" * 32, ids) == first.prompt_hash != keyed_hash(b"other", ids)


def test_a_prompt_of_embeddings_has_no_hash_and_no_text() -> None:
    frontend, _ = make_watched()
    running = Running("cmpl-1", None, 0, 2, None)
    frontend.arrive([Arrival(running, (1, 2), 0, np.repeat(column(1, 2, 3), 2, axis=1))])
    record = frontend.finish(running, "stop")
    assert record is not None
    row = make_row(record, b"key", TEXT)
    assert (row.prompt_hash, row.answer_hash, row.prompt_text, row.tokens, row.positions) == (None,) * 4 + (
        4,
    )


def test_folder_file_and_key_are_for_their_user_alone(keep: Keep, path: Path) -> None:
    kept = keep()
    finish(kept.frontend, "cmpl-1", 1.0)
    kept.wait(1, 0, 0)
    assert path.parent.stat().st_mode & 0o777 == 0o700
    files = sorted(path.parent.iterdir())
    assert {path, path.with_name(path.name + ".key")} <= set(files)
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}


def test_a_restart_finds_old_evidence_and_the_same_key(keep: Keep) -> None:
    first = keep()
    finish(first.frontend, "cmpl-1", 1.0, 3.0)
    first.store.close()
    assert first.counts() == (1, 0, 0)
    (before,) = first.file.find(AlertQuery())
    second = keep()
    assert second.file.key == first.file.key != b""
    finish(second.frontend, "cmpl-2", 1.0, 3.0)
    second.wait(1, 0, 0)
    after, again = second.file.find(AlertQuery())
    assert (again, after["id"]) == (before, "cmpl-2")
    assert after["event_id"] > before["event_id"]
    assert second.file.response("cmpl-1") is not None


def test_what_waits_is_written_when_the_server_stops(keep: Keep) -> None:
    kept = keep()
    for i in range(600):
        finish(kept.frontend, f"cmpl-{i}", 1.0, 3.0)
    kept.store.close()
    stored, dropped, failed = kept.counts()
    assert (stored, dropped, failed) == (600, 0, 0)
    assert len(kept.file.find(AlertQuery(limit=1000))) == 600


ENDING = """
import sys
from pathlib import Path
from tests.unit.test_monitor_evidence import Kept, finish
kept = Kept(Path(sys.argv[1]))
for i in range(300):
    finish(kept.frontend, f"cmpl-{i}", 3.0)
"""


@pytest.mark.thorough
def test_what_waits_is_written_when_a_process_ends_without_a_word(path: Path) -> None:
    nursery.run(ENDING, [path])
    assert len(EvidenceFile(path, 30, 64).find(AlertQuery(limit=1000))) == 300


def test_after_the_end_records_are_dropped_and_counted(keep: Keep) -> None:
    kept = keep()
    kept.store.close()
    kept.store.close()
    finish(kept.frontend, "cmpl-1", 1.0)
    assert kept.counts() == (0, 1, 0)


def test_a_full_queue_drops_counts_and_never_waits(path: Path) -> None:
    store = EvidenceStore(EvidenceFile(path, 30, 64), queue_records=3)  # nobody takes anything out
    frontend, registry = make_watched()
    frontend.listeners.append(store.listener(frontend))
    started = time.monotonic()
    for i in range(10):
        finish(frontend, f"cmpl-{i}", 1.0)
    assert time.monotonic() - started < 5
    assert value(registry, "probewatch_evidence_total", sink="sqlite", outcome="dropped") == 7
    store.close()
    assert value(registry, "probewatch_evidence_total", sink="sqlite", outcome="dropped") == 10


def test_a_batch_that_a_hanging_disk_holds_at_the_end_is_counted_once(
    keep: Keep, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = keep()
    writing, go_on = threading.Event(), threading.Event()

    def hang(rows: object) -> None:
        writing.set()
        assert go_on.wait(10)

    monkeypatch.setattr(kept.store._file, "write", hang)
    finish(kept.frontend, "cmpl-1", 1.0)
    assert writing.wait(5)
    finish(kept.frontend, "cmpl-2", 1.0)
    kept.store.close(patience=0.05)
    assert kept.counts() == (0, 2, 0)
    go_on.set()
    kept.store._courier._thread.join(5)
    assert kept.counts() == (0, 2, 0)


class Panic(BaseException):
    """As a tokenizer written in Rust raises."""


def test_a_tokenizer_that_panics_costs_its_record_alone(keep: Keep) -> None:
    def decode(ids: list[int]) -> str:
        if len(ids) > 2:
            raise Panic
        return "said"

    kept = keep(text=Text(decode, str))
    finish(kept.frontend, "cmpl-1", 1.0, 1.0, 1.0, 1.0)
    finish(kept.frontend, "cmpl-2", 1.0)
    kept.wait(1, 0, 1)


def test_upkeep_that_fails_is_told_once_and_not_as_a_loss(
    keep: Keep, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kept = keep()

    def refuse(now: float) -> None:
        raise EvidenceError("it is in use")

    monkeypatch.setattr(kept.file, "trim", refuse)
    for done in (1, 2, 3):
        finish(kept.frontend, f"cmpl-{done}", 1.0)
        kept.wait(done, 0, 0)
    kept.store.close()
    told = [line.getMessage() for line in caplog.records if line.name == "probewatch"]
    assert told == [
        "probewatch: upkeep of sqlite fails (EvidenceError: it is in use); it loses no record by that"
    ]


def test_engines_that_come_later_are_heard_too(path: Path) -> None:
    registry, recent = CollectorRegistry(), RecentRecords(1024)
    bank = make_bank(alerting(threshold=2.5))
    engines = Engines(
        lambda index: Frontend(bank, Metrics(MODEL, str(index), registry), MODEL, recent), [0], recent
    )
    heard: list[str] = []
    engines.listen(lambda frontend: lambda record: heard.append(record.response_id))
    finish(engines[0], "cmpl-1", 1.0)
    finish(engines[1], "cmpl-2", 1.0)
    assert heard == ["cmpl-1", "cmpl-2"]


def test_retention_by_age(keep: Keep) -> None:
    kept = keep(days=1)
    for name in ("cmpl-1", "cmpl-2"):
        finish(kept.frontend, name, 1.0, 3.0)
    kept.store.close()
    kept.file.trim(time.time() + 0.9 * 86400)
    assert len(kept.file.find(AlertQuery())) == 2
    kept.file.trim(time.time() + 1.1 * 86400)
    assert kept.file.find(AlertQuery()) == []
    assert kept.file.response("cmpl-1") is None
    kept.file.close()


def test_retention_by_size_takes_the_oldest_and_flagged_evidence_last(keep: Keep, path: Path) -> None:
    kept = keep()
    flagged = [1.0] * 3000 + [3.0]
    finish(kept.frontend, "flagged-old", *flagged)
    for i in range(400):
        finish(kept.frontend, f"ok-{i}", 1.0)
    finish(kept.frontend, "flagged-new", *flagged)
    kept.store.close()
    assert kept.counts() == (402, 0, 0)
    smaller = EvidenceFile(path, 30, 0.2)
    for _ in range(5):
        smaller.trim(time.time())
    left = [i for i in range(400) if smaller.response(f"ok-{i}") is not None]
    assert 0 < len(left) < 400
    assert left == list(range(400 - len(left), 400))
    assert {alert["id"] for alert in smaller.find(AlertQuery())} == {"flagged-old", "flagged-new"}
    smaller.close()
    assert path.stat().st_size <= 0.25 * 2**20
    smallest = EvidenceFile(path, 30, 0.001)
    for _ in range(5):
        smallest.trim(time.time())
    assert smallest.find(AlertQuery()) == []
    smallest.close()


def test_a_deleted_file_is_made_anew_and_event_ids_go_on(keep: Keep, path: Path) -> None:
    kept = keep()
    finish(kept.frontend, "cmpl-1", 3.0)
    kept.wait(1, 0, 0)
    (before,) = kept.file.find(AlertQuery())
    path.unlink()
    with pytest.raises(EvidenceError, match="cannot be read"):
        kept.file.find(AlertQuery())
    finish(kept.frontend, "cmpl-2", 3.0)
    kept.wait(2, 0, 0)
    (after,) = kept.file.find(AlertQuery())
    assert (after["id"], after["event_id"] > before["event_id"]) == ("cmpl-2", True)


def test_a_broken_file_counts_failed_is_logged_once_and_a_mended_disk_is_used_again(
    keep: Keep, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept = keep()
    finish(kept.frontend, "cmpl-1", 3.0)
    kept.wait(1, 0, 0)
    path.unlink()
    path.mkdir()  # even root cannot write to it
    for i in range(3):
        finish(kept.frontend, f"lost-{i}", 3.0)
        kept.wait(1, 0, i + 1)
    path.rmdir()
    finish(kept.frontend, "cmpl-2", 3.0)
    kept.wait(2, 0, 3)
    assert [alert["id"] for alert in kept.file.find(AlertQuery())] == ["cmpl-2"]
    said = [record.levelname for record in caplog.records if "sqlite" in record.message]
    assert said == ["ERROR", "WARNING"]


def test_a_corrupted_file_counts_failed_until_it_is_taken_away(keep: Keep, path: Path) -> None:
    first = keep()
    finish(first.frontend, "cmpl-1", 3.0)
    first.store.close()
    kept = keep()
    path.write_bytes(b"no database at all " * 1000)
    finish(kept.frontend, "lost", 3.0)
    kept.wait(0, 0, 1)
    with pytest.raises(EvidenceError, match="mend or remove"):
        kept.file.response("cmpl-1")
    path.rename(path.with_name("corrupt"))
    finish(kept.frontend, "cmpl-2", 3.0)
    kept.wait(1, 0, 1)


def test_a_full_disk_counts_failed_and_recovers(keep: Keep) -> None:
    kept = keep()
    finish(kept.frontend, "cmpl-1", 3.0)
    kept.wait(1, 0, 0)
    connection = kept.file._connection
    assert connection is not None
    connection.execute("PRAGMA max_page_count = 1")  # SQLite answers as if the disk were full
    finish(kept.frontend, "lost", 3.0, *np.random.default_rng(0).normal(size=20_000))
    kept.wait(1, 0, 1)
    finish(kept.frontend, "cmpl-2", 3.0)
    kept.wait(2, 0, 1)
    assert [alert["id"] for alert in kept.file.find(AlertQuery())] == ["cmpl-2", "cmpl-1"]


def test_a_locked_file_is_waited_for(keep: Keep, path: Path) -> None:
    kept = keep()
    with sqlite3.connect(path, isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        finish(kept.frontend, "cmpl-1", 3.0)
        time.sleep(0.5)
        assert kept.counts() == (0, 0, 0)
        other.execute("COMMIT")
    kept.wait(1, 0, 0)


def test_a_record_that_no_file_can_hold_costs_no_other(keep: Keep) -> None:
    kept = keep()
    finish(kept.frontend, "lone \ud800 surrogate", 3.0)
    finish(kept.frontend, "cmpl-1", 3.0)
    kept.wait(1, 0, 1)
    assert kept.file.response("lone \ud800 surrogate") is None


HOSTILE = [
    "",
    "' OR 1=1 --",
    "a\nid: 9\n\ndata: x",
    "x\0y",
    "\u202e{}",
    "%",
    "_",
    "é" * 3000,
    "../../etc",
    "1; DROP TABLE",
]


@pytest.mark.parametrize("response_id", HOSTILE)
def test_a_hostile_id_is_data_and_nothing_else(keep: Keep, response_id: str) -> None:
    kept = keep()
    finish(kept.frontend, response_id, 3.0)
    finish(kept.frontend, "cmpl-1", 1.0)
    kept.wait(2, 0, 0)
    found = kept.file.response(response_id)
    assert found is not None
    assert (found["id"], found["verdict"]) == (response_id, "flagged")
    assert [alert["id"] for alert in kept.file.find(AlertQuery())] == [response_id]
    assert kept.file.response("cmpl-") is None


def test_an_id_that_comes_again_does_not_hide_a_flag(keep: Keep) -> None:
    kept = keep()
    finish(kept.frontend, "same", 3.0, group="one")
    finish(kept.frontend, "same", 1.0, group="two")
    kept.wait(2, 0, 0)
    found = kept.file.response("same")
    assert found is not None
    assert found["verdict"] == "flagged"
    assert "choices" not in found


def test_choices_of_one_response_are_shown_together(keep: Keep) -> None:
    kept = keep()
    for choice, score in enumerate((1.0, 3.0, 2.0)):
        finish(kept.frontend, "cmpl-1", score, choice=choice)
    kept.wait(3, 0, 0)
    found = kept.file.response("cmpl-1")
    assert found is not None
    assert [(c["index"], c["verdict"]) for c in found["choices"]] == [(0, "ok"), (1, "flagged"), (2, "ok")]
    assert (found["verdict"], found["choice"]) == ("flagged", 1)
    single = kept.file.response("cmpl-1", 2)
    assert single is not None
    assert (single["verdict"], single["choice"]) == ("ok", 2)
    assert kept.file.response("cmpl-1", 3) is None


def test_a_response_on_disk_is_put_together_as_in_memory() -> None:
    recent = RecentRecords(1024)
    frontend, _ = make_frontend(alerting(threshold=2.5), make_probe("fresh"))
    asked = [
        (None, 0, 1.0),
        (None, 1, 3.0),
        (None, 0, 1.0),
        ("beam", 0, 1.0),
        ("beam", 0, 3.0),
        (None, 1, 1.0),
    ]
    lines = []
    for serial, (group, choice, score) in enumerate(asked):
        record = finish(frontend, "same", score, choice=choice, group=group)
        recent.add(record)
        lines.append(Line(serial, group, choice, record.verdict))
        expected = [(one.choice, one.verdict, one.group) for one in recent.worst_of("same")]
        found = [(line.choice, line.verdict, line.response_group) for line in worst_response(lines)]
        assert found == expected
    assert worst_response([]) == []


def test_alerts_are_chosen_by_time_probe_place_and_number(keep: Keep) -> None:
    kept = keep()
    records = [finish(kept.frontend, f"cmpl-{i}", 3.0) for i in range(5)]
    kept.wait(5, 0, 0)

    def found(**query: Any) -> list[str]:
        return [alert["id"][5:] for alert in kept.file.find(AlertQuery(**query))]

    assert found() == ["4", "3", "2", "1", "0"]
    assert found(limit=2) == ["4", "3"]
    assert found(since=records[3].finished_at) == ["4", "3"]
    assert (found(probe="lie", limit=1), found(probe="hush"), found(probe="' OR 1")) == (["4"], [], [])
    third = kept.file.find(AlertQuery())[2]["event_id"]
    assert found(after=third) == ["3", "4"]
    assert found(after=third, limit=1) == ["3"]
    assert asyncio.run(kept.store.find(AlertQuery(limit=1)))[0]["id"] == "cmpl-4"


WRITER = """
import sys
from pathlib import Path
from monitor.evidence_file import EvidenceFile
from monitor.evidence_rows import Row
file = EvidenceFile(Path(sys.argv[1]), 30, 64)
file.open()
print(file.key.hex())
for i in range(100):
    name = f"{sys.argv[2]}-{i}"
    file.write([Row(name, None, 0, 1.8e9, "flagged", 1, "{}", "{}", None, None, 1, None, None, None, None)])
    file.trim(1.8e9)
file.close()
"""


def test_two_processes_write_one_file(path: Path) -> None:
    keys = set(nursery.run(WRITER, [path, "a"], [path, "b"]))
    assert len(keys) == 1
    alerts = EvidenceFile(path, 30, 64).find(AlertQuery(after=0, limit=1000))
    ids = [alert["event_id"] for alert in alerts]
    assert len(set(ids)) == 200
    assert ids == sorted(ids)


def settings_with(**values: Any) -> Settings:
    return Settings.model_validate(values)


def test_off_opens_nothing() -> None:
    assert open_store(settings_with(evidence_path="off"), MODEL, 8000, TEXT) is None


@pytest.mark.parametrize("obstacle", ["folder", "parent", "text", "foreign", "later", "key"])
def test_a_path_that_cannot_be_used_refuses_the_start_in_one_line(tmp_path: Path, obstacle: str) -> None:
    path = tmp_path / "evidence.sqlite"
    if obstacle == "folder":
        path.mkdir()
    elif obstacle == "parent":
        path.write_text("a file")
        path = path / "evidence.sqlite"
    elif obstacle == "text":
        path.write_text("this is my diary, not a database\n" * 100)
    elif obstacle == "key":
        path.with_name(path.name + ".key").write_bytes(b"short")
    else:
        with sqlite3.connect(path) as connection:
            connection.execute(
                "CREATE TABLE mine (x)" if obstacle == "foreign" else "PRAGMA user_version = 99"
            )
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(
        EvidenceError, match=r"^PROBEWATCH_EVIDENCE_PATH=/.* cannot be opened .*`off`"
    ) as caught:
        open_store(settings_with(evidence_path=path), MODEL, 8000, TEXT)
    assert len(str(caught.value).splitlines()) == 1
    assert before is None or path.read_bytes() == before


def test_text_is_handed_on_only_where_it_may_be_stored(path: Path) -> None:
    for allowed in (False, True):
        store = open_store(settings_with(evidence_path=path, store_text=allowed), MODEL, 8000, TEXT)
        assert store is not None
        frontend, _ = make_watched()
        frontend.listeners.append(store.listener(frontend))
        finish(frontend, f"cmpl-{allowed}", 3.0)
        store.close()
    with sqlite3.connect(path) as connection:
        texts = dict(connection.execute("SELECT response_id, prompt_text FROM records").fetchall())
    assert texts == {"cmpl-False": None, "cmpl-True": f"word{PLANTED[0]}"}


def test_the_default_path_is_below_the_state_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert (
        default_path("org/My Model:7b", 8001)
        == tmp_path / "probewatch" / "evidence-org-My-Model-7b-8001.sqlite"
    )
    assert default_path("../..", 1).name == "evidence-model-1.sqlite"
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_path("m", 1).parent == tmp_path / "home" / ".local" / "state" / "probewatch"


def test_opening_twice_changes_nothing(path: Path) -> None:
    first, key = open_evidence(path)
    second, same = open_evidence(path)
    assert key == same
    assert json.loads(second.execute("SELECT json_array(count(*)) FROM records").fetchone()[0]) == [0]
    first.close()
    second.close()
