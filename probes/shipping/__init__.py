"""How the shipped artifacts are made from the shipped organism: `python -m probes.shipping`."""
