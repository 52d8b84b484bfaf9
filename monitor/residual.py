"""The one definition of "the residual stream" in this project.

Convention (also stored in every artifact): layer ``b`` means the residual stream AFTER the 0-based
block ``b``. It equals Hugging Face ``hidden_states[b + 1]``, except for the last block, where Hugging
Face returns the stream after the final norm.

A block in vLLM hands it over in one of three shapes, told apart by its class (``RULES``):

* ``FUSED``: ``(h, residual)``; the sum is deferred into the next block's fused add + norm;
* ``COMPLETE``: a tuple whose first entry is already the whole stream;
* ``PLAIN``: one tensor.
"""

from __future__ import annotations

import inspect
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from monitor.errors import TapError

if TYPE_CHECKING:
    import torch


class ResidualRule(StrEnum):
    """How a block's return value spells the residual stream."""

    FUSED = "fused"
    COMPLETE = "complete"
    PLAIN = "plain"


# Class names of vLLM's decoder blocks. `h + residual` on a block that already returns the complete
# stream (or `h` alone on a fused one) scores the wrong tensor without any error: so no guessing.
RULES: dict[str, ResidualRule] = {
    **dict.fromkeys(
        (
            "GemmaDecoderLayer",
            "Gemma2DecoderLayer",
            "Gemma3DecoderLayer",
            "Glm4DecoderLayer",
            "LlamaDecoderLayer",
            "MistralDecoderLayer",
            "MixtralDecoderLayer",
            "NemotronDecoderLayer",
            "Qwen2DecoderLayer",
            "Qwen2MoeDecoderLayer",
            "Qwen3DecoderLayer",
            "Qwen3MoeDecoderLayer",
        ),
        ResidualRule.FUSED,
    ),
    **dict.fromkeys(
        ("CohereDecoderLayer", "Exaone4DecoderLayer", "StablelmDecoderLayer"), ResidualRule.COMPLETE
    ),
    **dict.fromkeys(
        (
            "BloomBlock",
            "FalconDecoderLayer",
            "GPT2Block",
            "GPTJBlock",
            "GPTNeoXLayer",
            "GraniteDecoderLayer",
            "Olmo2DecoderLayer",
            "OPTDecoderLayer",
        ),
        ResidualRule.PLAIN,
    ),
}


def rule_for(block_class: str) -> ResidualRule:
    """The rule of a block class. Raises ``TapError`` for a class nobody has verified."""
    try:
        return RULES[block_class]
    except KeyError:
        raise TapError(
            f"no verified residual rule for decoder block {block_class!r}; known: "
            f"{', '.join(sorted(RULES))}; add it to monitor/residual.py with a parity test"
        ) from None


def check_signature(rule: ResidualRule, block: Any) -> None:
    """Self-check at load. Raises ``TapError`` if the block's ``forward`` does not take what its rule implies.

    A block that defers the sum receives the residual of the block before; one that returns a single tensor does not;
    one that returns the complete stream in a tuple may do either.
    """
    takes_residual = "residual" in inspect.signature(type(block).forward).parameters
    expected = {
        ResidualRule.FUSED: (True,),
        ResidualRule.PLAIN: (False,),
        ResidualRule.COMPLETE: (True, False),
    }
    if takes_residual not in expected[rule]:
        raise TapError(
            f"decoder block {type(block).__name__!r} is listed as {rule.value!r}, but its forward "
            f"{'takes' if takes_residual else 'does not take'} a residual; this vLLM is not understood: correct its "
            "entry in monitor/residual.py"
        )


def residual_stream(rule: ResidualRule, block_output: Any) -> torch.Tensor:
    """The residual stream ``[..., d]`` after a block, from what the block returned.

    Called while the model is traced, so the sum becomes a plain add in the compiled graph, which the
    compiler may share with the next block's fused add + norm.
    """
    if rule is ResidualRule.PLAIN:
        if isinstance(block_output, tuple):
            raise TapError(
                f"a block declared {rule.value!r} returned a tuple of {len(block_output)}; correct its "
                "entry in monitor/residual.py"
            )
        return block_output  # type: ignore[no-any-return]
    if not isinstance(block_output, tuple) or len(block_output) < 2:
        raise TapError(
            f"a block declared {rule.value!r} returned {type(block_output).__name__} instead of a "
            "tuple; correct its entry in monitor/residual.py"
        )
    if rule is ResidualRule.COMPLETE:
        return block_output[0]  # type: ignore[no-any-return]
    return block_output[0] + block_output[1]  # type: ignore[no-any-return]
