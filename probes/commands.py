"""What each command of `probes.cli` does. Each takes parsed options and returns the exit status."""

import argparse

from probes import artifact, report
from probes.command_calibrate import calibrate as calibrate
from probes.command_recipes import recipes as recipes
from probes.command_train import train as train
from probes.evaluating.command import evaluate as evaluate
from probes.identity import check_binding, model_identity
from probes.probe import load


def inspect(options: argparse.Namespace) -> int:
    """The manifest as JSON, or the report card."""
    manifest, _ = artifact.read(options.probe)
    print(manifest.model_dump_json(indent=2) if options.json else report.markdown(manifest), end="")
    return 0


def verify(options: argparse.Namespace) -> int:
    """Format, digest and golden scores; with a model, the binding too. Faults raise."""
    probe = load(options.probe)
    checked = "format, digest, golden scores"
    if options.model is not None:
        check_binding(probe.manifest, model_identity(options.model))
        checked += ", binding"
    print(f"ok: {options.probe}: {probe.manifest.name} ({checked}; golden error {probe.selftest():.2g})")
    return 0
