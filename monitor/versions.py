"""The vLLM releases this version supports, as (major, minor)."""

OLDEST = (0, 26)
NEWEST = (0, 33)
