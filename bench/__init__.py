"""What the monitor costs, measured against stock compiled vLLM. ``make bench``."""
