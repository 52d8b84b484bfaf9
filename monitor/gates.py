"""Gates: the probes of a bank with the action ``steer:VECTOR``, as the device and the host tell them apart."""

from __future__ import annotations

from monitor.bank import ProbeBank, Seat

_STEER = "steer:"
GateKey = tuple[str, str, str]


def gating(bank: ProbeBank) -> list[Seat]:
    """The seats of a bank that gate, in the order of the device's gates."""
    return [seat for seat in bank.seats if seat.probe.manifest.default_action.startswith(_STEER)]


def gate_key(seat: Seat) -> GateKey:
    """What makes a gate the same gate in two banks."""
    manifest = seat.probe.manifest
    return manifest.name, manifest.tensors_sha256, manifest.default_action


def gate_numbers(bank: ProbeBank) -> dict[GateKey, int]:
    """Which of the device's gates each gating probe of a bank drives."""
    return {gate_key(seat): number for number, seat in enumerate(gating(bank))}


def steer_of(seat: Seat) -> str:
    """What a gating probe asks for: ``VECTOR[:SCALE][:WORD]...``."""
    return seat.probe.manifest.default_action.removeprefix(_STEER)
