"""The only room that touches vLLM. One file a concern; everything it hands on is in ``monitor.events``."""
