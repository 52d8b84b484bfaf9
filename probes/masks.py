"""Which tokens count: one vectorised rule for training, calibration and the server."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from probes.manifest import TokenMask


def mask(
    positions: NDArray[np.integer] | Sequence[int],
    prompt_length: int | NDArray[np.integer],
    token_mask: TokenMask,
) -> NDArray[np.bool_]:
    """True where a token counts towards the statistic.

    positions: [T] absolute 0-based positions within their requests. prompt_length: of the one request, or
    [T] for rows of several requests in one batch. Positions from `prompt_length` on are generated ones.
    """
    at = np.asarray(positions, dtype=np.int64)
    generated = at >= prompt_length
    if token_mask.prompt == "all":
        counted = ~generated
    elif token_mask.last_k is not None:
        counted = ~generated & (at >= np.asarray(prompt_length) - token_mask.last_k)
    else:
        counted = np.zeros(at.shape, dtype=np.bool_)
    if token_mask.generated:
        counted = counted | generated
    for skipped in token_mask.skip_positions:
        counted = counted & (at != skipped)
    return np.asarray(counted, dtype=np.bool_)


def span(length: int, prompt_length: int, token_mask: TokenMask) -> slice | None:
    """The tokens of one sequence of `length` that `mask` counts, where they lie in one piece; None where they do not.

    Several times quicker than `mask`, for whoever judges many sequences.
    """
    counted = prompt_length if token_mask.prompt == "all" else token_mask.last_k or 0
    start = min(max(prompt_length - counted, 0), length)
    stop = length if token_mask.generated else min(prompt_length, length)
    skipped = set(token_mask.skip_positions)
    while start in skipped and start < stop:
        start += 1
    while stop - 1 in skipped and start < stop:
        stop -= 1
    return None if any(start <= position < stop for position in skipped) else slice(start, stop)
