"""The evidence page ``/probewatch/ui``: a static shell without data, and one case as a single file."""
