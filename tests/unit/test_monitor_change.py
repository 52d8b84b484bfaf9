"""A change of probes in one worker: what is prepared, committed and undone, and what is refused meanwhile."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from monitor.attach import Plan
from monitor.bank import ProbeBank
from monitor.desired import Wanted, bank_of, load_added, wanted
from monitor.errors import AttachError
from monitor.quiet import QuietThread
from monitor.seam.tap import define_operation, used_layers
from monitor.seam.worker import WorkerMonitor
from probes import load
from probes.testing import write_artifact
from tests.unit.waiting import until

D_MODEL = 8


class Reader:
    """Notes what is swapped in."""

    def __init__(self) -> None:
        self.filing = SimpleNamespace(room=2)
        self.swapped: list[ProbeBank] = []

    def swap(self, bank: ProbeBank, rules: object) -> None:
        self.swapped.append(bank)


def artifact(folder: Path, name: str, seed: int = 0) -> Path:
    path = folder / f"{name}.safetensors"
    return write_artifact(path, seed=seed, name=name, layers=(1,), d_model=D_MODEL, threshold=1.0)


@pytest.fixture
def monitor(tmp_path: Path) -> WorkerMonitor:
    """A worker with the probe ``first`` on a tap that has room for two."""
    define_operation("CPU")
    probe = load(artifact(tmp_path, "first"))
    found = WorkerMonitor(Plan((probe,), (), 2, 1))
    found.bank = ProbeBank([probe], (1,), D_MODEL, 2)
    found.vectors, found._gates_need = None, None
    found._weights, found.selftest = found.bank.weights(), {"first": 0.125}
    found._used = used_layers(found._weights)
    found.reader = Reader()  # type: ignore[assignment]
    return found


def told(*desired: Wanted) -> list[dict[str, Any]]:
    return [asdict(one) for one in desired]


def prepare(monitor: WorkerMonitor, desired: list[dict[str, Any]], epoch: int) -> None:
    monitor.prepare(desired, epoch)
    until(monitor.prepared, 30)


def first(monitor: WorkerMonitor, **changes: Any) -> Wanted:
    return wanted(monitor.bank.seats[0].probe, **changes)


def test_a_change_is_in_force_once_it_is_committed_and_can_be_undone(
    monitor: WorkerMonitor, tmp_path: Path
) -> None:
    before, weights = monitor.bank, monitor._weights.clone()
    file = artifact(tmp_path, "second", seed=1)
    prepare(monitor, told(first(monitor), wanted(load(file), file)), 4)
    assert monitor.bank is before
    tested = monitor.commit(4)
    assert tested.keys() == {"first", "second"}
    assert max(tested.values()) < 1e-4, "what stays is tested again: it is gathered with other neighbours now"
    assert [name for name, _ in monitor.bank.contents] == ["first", "second"]
    assert torch.equal(monitor._weights, monitor.bank.weights())
    monitor.undo(3)
    assert monitor.bank.epoch == 4, "that change was never made here"
    monitor.undo(4)
    assert monitor.bank is before
    assert monitor.selftest == {"first": 0.125}
    assert torch.equal(monitor._weights, weights)
    assert [bank.epoch for bank in monitor.reader.swapped] == [4, 0]  # type: ignore[union-attr]


def test_what_was_prepared_and_undone_cannot_be_committed(monitor: WorkerMonitor) -> None:
    prepare(monitor, told(first(monitor, threshold=5.0)), 1)
    monitor.undo(1)
    with pytest.raises(AttachError, match="nothing is being prepared"):
        monitor.commit(1)
    prepare(monitor, told(first(monitor, threshold=6.0)), 2)
    with pytest.raises(AttachError, match="nothing is prepared for change 1"):
        monitor.commit(1)
    monitor.commit(2)
    assert monitor.bank.seats[0].probe.manifest.threshold == 6.0


def test_a_file_that_has_changed_meanwhile_is_refused(monitor: WorkerMonitor, tmp_path: Path) -> None:
    file = artifact(tmp_path, "second", seed=1)
    meant = wanted(load(file), file)
    for changes in (
        {"seed": 2},
        {"seed": 1, "token_mask": {"prompt": "all"}},
    ):  # other tensors, another manifest
        write_artifact(file, name="second", layers=(1,), d_model=D_MODEL, threshold=1.0, **changes)  # type: ignore[arg-type]
        with pytest.raises(AttachError, match="'second' is not the same in every process; attach it again"):
            prepare(monitor, told(first(monitor), meant), 1)
    file.write_bytes(b"no artifact")
    with pytest.raises(AttachError, match="no safetensors header"):
        prepare(monitor, told(first(monitor), meant), 1)


def test_a_process_that_is_behind_or_ahead_refuses(monitor: WorkerMonitor) -> None:
    bank = monitor.bank.follow([monitor.bank.seats[0].probe], epoch=7)
    with pytest.raises(AttachError, match="change 7 comes after change 7; restart"):
        bank_of(bank, [first(monitor)], 7, {})
    stranger = Wanted("stranger", None, 1.0, "observe", "0" * 64)
    with pytest.raises(AttachError, match="'stranger' is not attached in every process; restart"):
        bank_of(bank, [stranger], 8, {})
    other = Wanted("first", None, 1.0, "observe", "0" * 64)
    with pytest.raises(AttachError, match="'first' is not the same in every process; restart"):
        bank_of(bank, [other], 8, load_added([other]))


def test_background_work_computes_in_one_thread_and_changes_no_other() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert QuietThread().submit(torch.get_num_threads).result() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
