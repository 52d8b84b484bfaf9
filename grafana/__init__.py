"""Grafana dashboards beside vLLM's own: ``python -m grafana`` writes them, ``--check`` fails where they are stale.

One module a dashboard (``overview``, ``probes``, ``fleet``, ``actions``); edit there, never the JSON.
"""
