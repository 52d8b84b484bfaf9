"""probewatch: activation probes, scored inside vLLM's compiled forward pass."""

__version__ = "0.1.0"
