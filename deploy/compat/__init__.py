"""``make compat``: what the monitor touches inside vLLM, held against the released wheels."""
