"""Forward passes that keep more than the residual stream: surprise of the answers, edits while the model runs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from probes.dataset import Conversation
from probes.hf import LoadedModel, token_ids

Floats = NDArray[np.float64]
Edit = Callable[[Tensor], Tensor]
"""residual stream [B, T, d] after a block -> what the next block gets"""


@torch.no_grad()
def surprise(loaded: LoadedModel, chats: Sequence[Conversation], batch_size: int = 64) -> Floats:
    """[n, 4] of each answer's tokens: mean and lowest log-probability, mean and highest entropy, in nats."""
    fed = [token_ids(loaded, chat) for chat in chats]
    found = np.zeros((len(fed), 4))
    by_length = sorted(range(len(fed)), key=lambda i: len(fed[i][0]))
    for start in range(0, len(by_length), batch_size):
        batch = by_length[start : start + batch_size]
        rows = [torch.tensor(fed[i][0]) for i in batch]
        ids = nn.utils.rnn.pad_sequence(rows, batch_first=True).to(loaded.device)
        attention = torch.arange(ids.shape[1])[None] < torch.tensor([len(row) for row in rows])[:, None]
        logits = loaded.model(input_ids=ids, attention_mask=attention.long().to(loaded.device)).logits
        for row, i in enumerate(batch):
            length, prompt = len(fed[i][0]), fed[i][1]
            found[i] = _summary(logits[row, prompt - 1 : length - 1].float(), ids[row, prompt:length])
    return found


def _summary(logits: Tensor, ids: Tensor) -> list[float]:
    if not len(ids):
        return [0.0] * 4
    logp = logits.log_softmax(-1)
    said = logp.gather(1, ids[:, None])[:, 0]
    entropy = -(logp.exp() * logp).sum(-1)
    return [float(x) for x in (said.mean(), said.min(), entropy.mean(), entropy.max())]


@contextmanager
def edited(loaded: LoadedModel, edits: Mapping[int, Edit]) -> Iterator[None]:
    """While inside, the residual stream after each block of `edits` goes through its edit, at every token."""

    def hook(edit: Edit) -> Callable[[nn.Module, object, Any], Any]:
        def change(_module: nn.Module, _inputs: object, output: Any) -> Any:
            if isinstance(output, tuple):
                return (edit(output[0]), *output[1:])
            return edit(output)

        return change

    blocks = loaded.blocks()
    with ExitStack() as stack:
        for block, edit in edits.items():
            stack.callback(blocks[block].register_forward_hook(hook(edit)).remove)
        yield


def caught(loaded: LoadedModel, embedded: Tensor, layers: Sequence[int]) -> tuple[Tensor, Tensor]:
    """(residual after `layers` [B, T, L, d] in float32, logits [B, T, words]) of embeddings [B, T, d], unpadded."""
    out = loaded.model(inputs_embeds=embedded, output_hidden_states=True, use_cache=False)
    hidden = torch.stack([out.hidden_states[layer + 1] for layer in layers], dim=2).float()
    return hidden, out.logits.float()
