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
