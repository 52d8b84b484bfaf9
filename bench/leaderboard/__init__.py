"""Every kind of probe on every organism: ``make leaderboard``, ``python -m bench.leaderboard``."""
