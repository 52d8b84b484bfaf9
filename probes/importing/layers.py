"""The three ways in which files number layers, and ours: the residual stream after the 0-based block.

resid_post N     the stream after block N                                       block N
hf N             Hugging Face's hidden_states[N]; 0 is the embedding            block N - 1
block_input N    what block N reads, which is the stream after block N - 1      block N - 1
"""

from collections.abc import Sequence
from typing import Final

from probes.errors import NotConvertible
from probes.importing.foreign import Convention

LIMIT: Final = 1 << 16
"""No file has more layers."""
CONVENTIONS: tuple[Convention, ...] = ("resid_post", "hf", "block_input")


def block(number: int, convention: Convention) -> int:
    """Our 0-based block for a file's layer. `NotConvertible` where no block has written that tensor yet."""
    found = number if convention == "resid_post" else number - 1
    if found < 0:
        raise NotConvertible(
            f"layer {number} read as {convention} is not the output of a block (the embedding, or none); "
            "leave it out with --layers, or say what the numbers are with --layers-are"
        )
    return found


def blocks(numbers: Sequence[int], convention: Convention) -> tuple[int, ...]:
    """The same for several."""
    return tuple(block(number, convention) for number in numbers)
