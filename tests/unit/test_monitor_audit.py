"""The audit log: what it records, and that nobody changes it unseen."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from monitor.audit_chain import LINE_BYTES, Link, seal
from monitor.audit_file import AuditFile
from monitor.audit_head import head_path
from monitor.audit_log import AuditLog, Deed, fingerprint, open_audit
from monitor.audit_verify import verify
from monitor.cli import main
from monitor.client import ADMIN_HEADER
from monitor.config import Settings
from monitor.control import Control, UnknownProbe
from monitor.errors import AttachError, AuditError
from monitor.frontend import Frontend
from monitor.http import make_router
from monitor.server_state import HttpState
from tests.unit.monitor_fakes import alerting, alone, column, make_frontend, summed
from tests.unit.test_monitor_records import SCORES, record_of
from tests.unit.waiting import until

METRIC = "probewatch_evidence_total"
KEY = b"key of the log"
Tamper = Callable[[list[bytes]], list[bytes]]


def written(path: Path, events: int = 9, key: bytes | None = None) -> Path:
    log = AuditFile(path, key)
    for start in range(0, events, 3):
        assert (
            log.append([{"event": "verdict", "n": n} for n in range(start, min(start + 3, events))]) is None
        )
    return path


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def changed(number: int) -> Tamper:
    def tamper(found: list[bytes]) -> list[bytes]:
        found[number - 1] = found[number - 1].replace(b'"n":', b'"n":7')
        return found

    return tamper


def forged(number: int) -> Tamper:
    """Changes a line and makes every later one fit it, as somebody without the key can."""

    def tamper(found: list[bytes]) -> list[bytes]:
        made: list[bytes] = []
        link = Link()
        for position, line in enumerate(found, 1):
            content = {k: v for k, v in json.loads(line).items() if k not in ("serial", "prev", "mac")}
            sealed, link = seal(content | ({"n": 70} if position == number else {}), link, None)
            made.append(sealed.rstrip(b"\n"))
        return made

    return tamper


def finish(frontend: Frontend, response_id: str) -> None:
    """A sequence that the probe flags, told to who listens."""
    record = record_of(frontend.bank, column(*SCORES), response_id=response_id)
    for listener in frontend.listeners:
        listener(record)


@pytest.mark.parametrize("key", [None, KEY])
def test_an_untouched_log_is_intact(tmp_path: Path, key: bytes | None) -> None:
    report = verify([written(tmp_path / "log", key=key)], key, at_least=9)
    assert (report.faults, report.lines, report.last.serial, report.signed) == ([], 9, 9, key is not None)
    assert lines(tmp_path / "log")[0]["prev"] == "0" * 64


@pytest.mark.parametrize("key", [None, KEY])
@pytest.mark.parametrize(
    ("tamper", "named"),
    [
        pytest.param(
            changed(1), "line 2: does not continue the line before: serial 1 was changed", id="first"
        ),
        pytest.param(
            changed(5), "line 6: does not continue the line before: serial 5 was changed", id="middle"
        ),
        pytest.param(changed(9), "line 9: serial 9 is not the one that was written", id="last"),
        pytest.param(lambda found: found[1:], "line 1: serials 1 to 1 are missing", id="first missing"),
        pytest.param(
            lambda found: found[:4] + found[6:], "line 5: serials 5 to 6 are missing", id="two missing"
        ),
        pytest.param(lambda found: found[:-2], "line 7: serials 8 to 9 were cut off", id="tail missing"),
        pytest.param(lambda found: [], "serials 1 to 9 were cut off", id="emptied"),
        pytest.param(
            lambda found: [*found[:3], found[4], found[3], *found[5:]],
            "line 5: serial 4 stands after 5",
            id="swapped",
        ),
        pytest.param(
            lambda found: [*found[:4], found[3], *found[4:]], "line 5: serial 4 stands after 4", id="doubled"
        ),
        pytest.param(lambda found: [*found[:-1], found[-1][:30]], "line 9: is no line", id="cut inside"),
        pytest.param(lambda found: [*found[:2], b"[1]", *found[3:]], "line 3: is no line", id="replaced"),
    ],
)
def test_tampering_is_found_and_its_place_named(
    tmp_path: Path, key: bytes | None, tamper: Tamper, named: str
) -> None:
    path = written(tmp_path / "log", key=key)
    path.write_bytes(b"".join(line + b"\n" for line in tamper(path.read_bytes().splitlines())))
    faults = verify([path], key).faults
    assert any(named in fault for fault in faults), faults


def test_with_a_key_a_line_and_a_chain_that_fit_are_not_enough(tmp_path: Path) -> None:
    path = written(tmp_path / "log", key=KEY)
    path.write_bytes(b"".join(line + b"\n" for line in forged(4)(path.read_bytes().splitlines())))
    assert "line 1: has no signature" in verify([path], KEY).faults[0]
    path = written(tmp_path / "other", key=KEY)
    path.write_bytes(path.read_bytes().replace(b'"n":3', b'"n":8'))
    assert "line 4: was changed, or signed with another key" in verify([path], KEY).faults[0]
    assert "another key" in verify([written(tmp_path / "third", key=b"other")], KEY).faults[0]


def test_without_a_key_who_rewrites_everything_is_found_by_what_is_known_from_elsewhere(
    tmp_path: Path,
) -> None:
    path = written(tmp_path / "log", events=6)
    old = (path.read_bytes(), head_path(path).read_bytes())
    written(path, events=3)
    path.write_bytes(old[0])
    head_path(path).write_bytes(old[1])
    assert verify([path], None).faults == []
    assert "the log ends with serial 6, 9 is expected" in verify([path], None, at_least=9).faults[0]


def test_a_missing_or_damaged_head_is_a_fault(tmp_path: Path) -> None:
    path = written(tmp_path / "log")
    head_path(path).write_bytes(b"{}")
    assert "is damaged" in verify([path], None).faults[0]
    head_path(path).unlink()
    assert "is missing" in verify([path], None).faults[0]


def test_a_rotated_log_is_verified_with_its_earlier_part(tmp_path: Path) -> None:
    path, earlier = written(tmp_path / "log"), tmp_path / "log.1"
    path.rename(earlier)
    assert AuditFile(path, None).append([{"event": "verdict"}]) is None
    assert [line["event"] for line in lines(path)] == ["log_rotated", "verdict"]
    assert verify([earlier, path], None).faults == []
    assert (
        "line 1: serials 1 to 9 are missing before it (name the earlier file"
        in verify([path], None).faults[0]
    )


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: os.truncate(path, path.stat().st_size // 2), "it was cut from"),
        (lambda path: path.write_bytes(b"".join(path.read_bytes().splitlines(True)[:4])), "it was cut from"),
        (lambda path: path.write_bytes(path.read_bytes() + b"something\n"), "a foreign line is no line"),
        (lambda path: path.write_bytes(path.read_bytes() + b'{"serial":'), "its last line is cut"),
        (lambda path: head_path(path).unlink(), "its head is missing"),
        (lambda path: head_path(path).write_bytes(b"x" * 512), "its head is damaged"),
    ],
)
def test_the_writer_notices_damage_says_so_in_the_log_and_goes_on(
    tmp_path: Path, damage: Callable[[Path], object], reason: str
) -> None:
    path = written(tmp_path / "log")
    damage(path)
    log = AuditFile(path, None)
    trouble = log.append([{"event": "verdict"}])
    assert trouble is not None
    assert reason in trouble
    assert log.append([{"event": "verdict"}]) is None, "it goes on from there"
    faults = verify([path], None).faults
    assert any("tells that the log was broken" in fault and reason in fault for fault in faults), faults


def test_a_running_writer_notices_that_everything_was_replaced_or_deleted(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = AuditFile(path, KEY)
    assert log.append([{"event": "verdict"}] * 3) is None
    old = (path.read_bytes(), head_path(path).read_bytes())
    assert log.append([{"event": "verdict"}] * 3) is None
    path.write_bytes(old[0])
    head_path(path).write_bytes(old[1])
    assert log.append([{"event": "verdict"}]) == "an older copy was put back"
    assert any("serials 4 to 6 are missing" in fault for fault in verify([path], KEY).faults)
    path.unlink()
    head_path(path).unlink()
    assert log.append([{"event": "verdict"}]) == "its head is missing"
    assert any("serials 1 to 8 are missing" in fault for fault in verify([path], KEY).faults)


def test_lines_of_a_process_that_died_before_its_head_are_no_damage(tmp_path: Path) -> None:
    path = written(tmp_path / "log")
    head = head_path(path).read_bytes()
    written(path, events=3)
    head_path(path).write_bytes(head)
    assert verify([path], None).faults == []
    assert AuditFile(path, None).append([{"event": "verdict"}]) is None
    assert verify([path], None, at_least=13).faults == []


WRITER = """
import sys
from pathlib import Path
from monitor.audit_file import AuditFile
log = AuditFile(Path(sys.argv[1]), b"key")
for n in range(int(sys.argv[2])):
    assert log.append([{"event": "verdict", "n": n}] * 2) is None
    print(n, flush=True)
"""


def test_several_processes_write_one_chain_and_one_may_be_killed(tmp_path: Path) -> None:
    path = tmp_path / "log"
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", WRITER, str(path)]
    doomed = subprocess.Popen([*command, "100000"], cwd=root, stdout=subprocess.PIPE)
    others = [subprocess.Popen([*command, "20"], cwd=root, stdout=subprocess.PIPE) for _ in range(2)]
    assert doomed.stdout is not None
    for _ in range(10):
        doomed.stdout.readline()
    doomed.kill()
    for process in (doomed, *others):
        process.communicate()
    assert [process.returncode for process in others] == [0, 0]
    report = verify([path], b"key", at_least=100)
    assert report.faults == []
    assert report.lines == report.last.serial >= 2 * (10 + 20 + 20)
    assert path.stat().st_mode & 0o077 == 0


def test_a_full_disk_leaves_no_half_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "log")
    real, before = os.write, path.read_bytes()

    def full(descriptor: int, data: bytes) -> int:
        if len(data) < 100:
            raise OSError(28, "No space left on device")
        return real(descriptor, data[: len(data) - 50])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(AuditError, match="No space left"):
        AuditFile(path, None).append([{"event": "verdict"}])
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert AuditFile(path, None).append([{"event": "verdict"}]) is None
    assert verify([path], None, at_least=10).faults == []


def test_a_disk_that_is_full_at_the_first_line_does_not_look_like_somebody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head has its room since the log was opened; without it the next line would tell of a missing one."""
    log = AuditFile(tmp_path / "log", KEY)
    log.open()
    assert verify([log.path], KEY).faults == []

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    for name in ("write", "pwrite"):
        monkeypatch.setattr(os, name, full)
        with pytest.raises(AuditError, match="No space left"):
            log.append([{"event": "verdict"}])
        monkeypatch.undo()
    assert log.append([{"event": "verdict"}]) is None
    report = verify([log.path], KEY)
    assert (report.faults, report.lines) == ([], 2)
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(AuditError, match="No space left"):
        AuditFile(tmp_path / "other", KEY).open()


def test_a_log_that_was_deleted_as_a_whole_is_found_by_what_is_missing(tmp_path: Path) -> None:
    """The writer takes it for a rotation; whoever verifies has no earlier part to show. ``at_least`` is for the rest:
    a log that was deleted with its head while no server ran."""
    path = written(tmp_path / "log", key=KEY)
    serial = verify([path], KEY).last.serial
    path.unlink()
    assert AuditFile(path, KEY).append([{"event": "verdict"}]) is None
    assert any(f"serials 1 to {serial} are missing" in fault for fault in verify([path], KEY).faults)
    path.unlink()
    head_path(path).unlink()
    assert AuditFile(path, KEY).append([{"event": "verdict"}]) is None
    assert verify([path], KEY).faults == []
    assert verify([path], KEY, at_least=serial).faults != []


def test_verdicts_and_changes_are_recorded_without_text(tmp_path: Path) -> None:
    frontend, registry = make_frontend(alerting("lie"))
    engines = alone(frontend)
    settings = Settings(audit_path=tmp_path / "folder" / "log", admin_key="admin-secret")
    log = open_audit(settings, engines, {"version": "1"})
    assert log is not None
    engines.listen(log.listener)
    finish(frontend, "answer-1")
    log.change(Deed("attach", {"path": "lie.safetensors"}, "10.0.0.7"), "done")
    log.close()
    found = lines(tmp_path / "folder" / "log")
    assert [line["event"] for line in found] == ["start", "verdict", "change", "end"]
    _, verdict, change, _ = found
    assert (verdict["id"], verdict["verdict"]) == ("answer-1", "flagged")
    probe = frontend.bank.seats[0].probe.manifest
    assert verdict["probes"]["lie"]["sha256"] == probe.tensors_sha256[:16]
    assert change["who"] == {"key": fingerprint("admin-secret"), "peer": "10.0.0.7"}
    assert change["asked"] == {"path": "lie.safetensors"}
    assert change["probes"][0]["sha256"] == probe.tensors_sha256
    assert "token" not in json.dumps(verdict).replace("_tokens", "")
    assert "admin-secret" not in (tmp_path / "folder" / "log").read_text()
    assert summed(registry, METRIC, sink="audit", outcome="stored") == 4
    assert verify([tmp_path / "folder" / "log"], None).faults == []


def test_what_cannot_be_written_is_counted_and_told_in_the_log(tmp_path: Path) -> None:
    frontend, registry = make_frontend(alerting("lie"))
    path = tmp_path / "log"
    log = AuditLog(AuditFile(path, None), alone(frontend), None)
    log.start({})
    frontend.listeners.append(log.listener(frontend))
    until(lambda: summed(registry, METRIC, sink="audit", outcome="stored") == 1)
    path.rename(tmp_path / "aside")
    path.mkdir()  # where a folder lies no file can be opened
    finish(frontend, "answer-1")
    until(lambda: summed(registry, METRIC, sink="audit", outcome="failed") == 1)
    path.rmdir()
    (tmp_path / "aside").rename(path)
    log.close()
    assert [line["event"] for line in lines(path)] == ["start", "lost", "end"]
    assert lines(path)[1]["events"] == 1
    assert verify([path], None).faults == []


@pytest.mark.parametrize(
    ("fault", "status", "outcome"),
    [
        (None, 200, "done"),
        (AttachError("layer 3 is not tapped; restart with --tap-layers"), 409, "layer 3 is not tapped"),
        (UnknownProbe("no probe 'lie' is attached"), 404, "no probe 'lie'"),
        (RuntimeError("something else"), 500, "interrupted"),
    ],
)
def test_every_change_that_the_key_opened_is_recorded_with_its_outcome(
    tmp_path: Path, fault: Exception | None, status: int, outcome: str
) -> None:
    frontend, _ = make_frontend(alerting("lie"))
    settings = Settings(audit_path=tmp_path / "log", admin_key="secret")
    control: Any = SimpleNamespace(trouble=None, detach=AsyncMock(side_effect=fault))
    state = HttpState(alone(frontend), settings, str, control=control)
    state.keep_sinks("http://127.0.0.1:8000")
    application = FastAPI()
    application.include_router(make_router(lambda: state))
    client = TestClient(application, raise_server_exceptions=False)
    assert client.delete("/v1/probewatch/probes/lie").status_code == 403
    headers = {ADMIN_HEADER: "secret"}
    assert client.delete("/v1/probewatch/probes/lie", headers=headers).status_code == status
    state.close()
    [change] = [line for line in lines(tmp_path / "log") if line["event"] == "change"]
    assert (change["what"], change["asked"]) == ("detach", {"name": "lie"})
    assert str(change["outcome"]).startswith(outcome)
    assert change["who"] == {"key": fingerprint("secret"), "peer": "testclient"}


@pytest.mark.parametrize("asked", ["1e999", "-1e999", "NaN"])
def test_a_threshold_that_is_no_number_is_refused_and_recorded(tmp_path: Path, asked: str) -> None:
    frontend, registry = make_frontend(alerting("lie"))
    settings = Settings(audit_path=tmp_path / "log", admin_key="secret")
    control = Control(alone(frontend), AsyncMock(), None, None, None)
    state = HttpState(alone(frontend), settings, str, control=control)
    state.keep_sinks("http://127.0.0.1:8000")
    application = FastAPI()
    application.include_router(make_router(lambda: state))
    reply = TestClient(application).patch(
        "/v1/probewatch/probes/lie",
        content=f'{{"threshold": {asked}}}',
        headers={ADMIN_HEADER: "secret", "Content-Type": "application/json"},
    )
    assert reply.status_code == 422
    state.close()
    [change] = [line for line in lines(tmp_path / "log") if line["event"] == "change"]
    assert (change["what"], change["asked"]) == ("set", {"name": "lie", "threshold": repr(float(asked))})
    assert "not finite" in change["outcome"]
    assert summed(registry, METRIC, sink="audit", outcome="failed") == 0


def test_an_event_that_no_line_can_hold_costs_no_other(tmp_path: Path) -> None:
    frontend, registry = make_frontend(alerting("lie"))
    log = AuditLog(AuditFile(tmp_path / "log", None), alone(frontend), None)
    log.change(Deed("attach", {"path": "x" * LINE_BYTES}, ""), "done")
    log.change(Deed("attach", {"path": "lie.safetensors"}, ""), "done")
    log.start({})  # so that one batch holds them all
    log.close()
    asked = [line["asked"] for line in lines(tmp_path / "log") if line["event"] == "change"]
    assert asked == [{"path": "lie.safetensors"}]
    assert summed(registry, METRIC, sink="audit", outcome="failed") == 1
    assert verify([tmp_path / "log"], None).faults == []


def test_a_log_that_was_touched_is_counted_for_the_alert(tmp_path: Path) -> None:
    frontend, registry = make_frontend(alerting("lie"))
    path = tmp_path / "log"
    log = AuditLog(AuditFile(path, None), alone(frontend), None)
    log.start({})
    until(lambda: summed(registry, METRIC, sink="audit", outcome="stored") == 1)
    assert summed(registry, METRIC, sink="audit", outcome="broken") == 0
    path.write_bytes(path.read_bytes()[:-20])
    log.close()
    assert summed(registry, METRIC, sink="audit", outcome="broken") == 1


def test_a_log_that_cannot_be_opened_refuses_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    frontend, _ = make_frontend(alerting("lie"))
    with pytest.raises(AuditError, match=r"PROBEWATCH_AUDIT_PATH=.*cannot be opened"):
        open_audit(Settings(audit_path=tmp_path / "file" / "log"), alone(frontend), {})
    assert open_audit(Settings(), alone(frontend), {}) is None


def test_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path / "log", key=KEY)
    assert main(["audit", "verify", str(path)]) == 0
    assert "signatures were not checked" in capsys.readouterr().out
    monkeypatch.setenv("PROBEWATCH_AUDIT_KEY", KEY.decode())
    assert main(["audit", "verify", str(path)]) == 0
    assert capsys.readouterr().out.startswith("intact: 9 lines, the last with serial 9")
    (tmp_path / "key").write_bytes(b"wrong\n")
    assert main(["audit", "verify", str(path), "--key-file", str(tmp_path / "key")]) == 1
    assert f"{path} line 1: was changed" in capsys.readouterr().err
    assert main(["audit", "verify", str(tmp_path / "none")]) == 2


def test_a_foreign_serial_of_many_digits_does_not_end_the_log(tmp_path: Path) -> None:
    path = written(tmp_path / "log", key=KEY)
    with path.open("ab") as log:
        log.write(b'{"serial":' + b"9" * 4000 + b',"prev":"x"}\n')
    writer = AuditFile(path, KEY)
    assert "foreign line" in str(writer.append([{"event": "verdict"}]))
    assert writer.append([{"event": "verdict"}]) is None
    assert [line["serial"] for line in lines(path)[-3:]] == [10, 11, 12]
    faults = verify([path], KEY).faults
    assert any("line 10: has a serial that no log reaches" in fault for fault in faults)
    assert all(len(fault) < 300 for fault in faults)


def test_a_forged_line_cannot_wipe_the_fault_from_the_screen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = AuditFile(tmp_path / "log", None)
    log.append([{"event": "log_broken", "reason": "\x1b[2J\x1b[H intact: 9 lines"}])
    assert main(["audit", "verify", str(tmp_path / "log")]) == 1
    shown = capsys.readouterr().err
    assert "\x1b" not in shown
    assert "tells that the log was broken" in shown
