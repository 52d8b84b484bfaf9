"""Where scores lie: the KV slots of a cache group that keeps every token of a sequence."""

from __future__ import annotations

from typing import Any, NamedTuple

from monitor.errors import CompatibilityError

LARGEST_SLOT = 2**31 - 1
"""From a GPU, slots travel as 32-bit integers."""


class KvSlots(NamedTuple):
    """One KV-cache group of a worker."""

    group: int
    """Its index among the groups."""
    total: int
    block_tokens: int

    @classmethod
    def of(cls, kv_cache_config: Any) -> KvSlots:
        """Those that scores can lie beside. Raises ``CompatibilityError`` where there are none, or too many."""
        group = full_attention_group(kv_cache_config)
        block_tokens = int(kv_cache_config.kv_cache_groups[group].kv_cache_spec.block_size)
        total = kv_cache_config.num_blocks * block_tokens
        if total > LARGEST_SLOT:
            raise CompatibilityError(
                f"the KV cache has {total} slots, the monitor follows at most {LARGEST_SLOT}; shrink the KV cache"
            )
        return cls(group, total, block_tokens)


def full_attention_group(kv_cache_config: Any) -> int:
    """Index of a KV-cache group that keeps every token of a sequence."""
    from vllm.v1.kv_cache_interface import FullAttentionSpec

    for index, group in enumerate(kv_cache_config.kv_cache_groups):
        spec = group.kv_cache_spec
        # A sliding window frees the slots of old tokens while the request still runs.
        if isinstance(spec, FullAttentionSpec) and not getattr(spec, "sliding_window", None):
            return index
    raise CompatibilityError(
        "no KV-cache group of this model keeps every token (sliding-window or state-space layers only); "
        "the score store needs one full-attention group"
    )
