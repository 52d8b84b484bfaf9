"""Recording rules and alerts: ``python -m deploy.prometheus`` writes them for Prometheus and for its operator."""
