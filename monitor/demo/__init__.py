"""``probewatch demo``: serves the shipped model that lies, talks to it, and shows what the probes catch."""

from monitor.demo.run import add_arguments, main

__all__ = ["add_arguments", "main"]
