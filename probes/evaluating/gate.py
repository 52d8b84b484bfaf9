"""From a card to an exit status: what a release must not pass with.

A control or leakage test that could not be computed is a fault too, for a gate that passes because it saw nothing is
none. `--waive KEY` takes one out, and the card says so.
"""

from collections.abc import Collection, Mapping, Sequence

from probes.errors import DataError
from probes.evaluating.card import NAMES, Control, Fault, Leak, NotComputed


def faults(
    auroc: float,
    margin: float,
    controls: Sequence[Control],
    leaks: Sequence[Leak],
    missing: Mapping[str, NotComputed],
    waived: Collection[str] = (),
) -> tuple[Fault, ...]:
    """Everything that speaks against the probe, one line each. auroc: the probe's on the headline contrast."""
    check_waived(waived)
    found = [
        Fault(
            key=c.key,
            text=f"{c.name}: AUROC {_known(c.auroc.value)} comes within {margin:g} of the probe's {auroc:.3f}",
        )
        for c in controls
        if c.succeeded
    ]
    found += [
        Fault(key=leak.key, text=f"{leak.name}: {_leak(leak, margin)}") for leak in leaks if leak.failed
    ]
    found += [
        Fault(key=key, text=f"{NAMES[key]} was not computed: {part.reason}; {part.remedy}, or waive it")
        for key, part in missing.items()
    ]
    return tuple(fault for fault in found if fault.key not in waived)


def check_waived(waived: Collection[str]) -> None:
    """`DataError` for a key that names no control and no leakage test."""
    unknown = sorted(set(waived) - set(NAMES))
    if unknown:
        raise DataError(f"{unknown[0]!r} cannot be waived; give one of: {', '.join(NAMES)}")


def _leak(leak: Leak, margin: float) -> str:
    if leak.auroc is None:
        return leak.detail
    return f"AUROC {_known(leak.auroc.value)} is left, below {0.5 + margin:g}"


def _known(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f}"
