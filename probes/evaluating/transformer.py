"""A small transformer that reads the transcript alone: the stronger of the two text-only controls.

Word-level, two layers of width 64, mean over tokens, AdamW at 1e-3 with classes weighed equally; CPU, seeded.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Floats = NDArray[np.float64]
WIDTH: Final = 64
MAX_WORDS: Final = 128
"""The last so many words of a transcript are read: the answer stands at its end."""
VOCABULARY: Final = 8000
EPOCHS: Final = 6
BATCH: Final = 32
MAX_TRAIN: Final = 3000
PAD, UNKNOWN = 0, 1


class Reader(nn.Module):
    """ids [B, T] -> logit of the positive class [B]."""

    def __init__(self, words: int) -> None:
        super().__init__()
        self.word = nn.Embedding(words, WIDTH, padding_idx=PAD)
        self.place = nn.Embedding(MAX_WORDS, WIDTH)
        layer = nn.TransformerEncoderLayer(
            WIDTH, 4, 2 * WIDTH, dropout=0.1, batch_first=True, norm_first=True
        )
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, 1)

    def forward(self, ids: Tensor) -> Tensor:
        padded = ids == PAD  # [B, T]
        x = self.word(ids) + self.place(torch.arange(ids.shape[1]))
        x = self.body(x, src_key_padding_mask=padded).masked_fill(padded[..., None], 0.0)  # [B, T, d]
        pooled = x.sum(1) / (~padded).sum(1, keepdim=True)
        logit: Tensor = self.head(pooled).squeeze(-1)
        return logit


@dataclass(frozen=True)
class _Vocabulary:
    places: dict[str, int]

    def encode(self, texts: Sequence[str]) -> list[Tensor]:
        """Ids of the last words of each text; at least one."""
        return [
            torch.tensor([self.places.get(word, UNKNOWN) for word in text.split()[-MAX_WORDS:]] or [UNKNOWN])
            for text in texts
        ]


def text_transformer(
    train: Sequence[str], labels: Sequence[int], test: Sequence[str], *, seed: int = 0, epochs: int = EPOCHS
) -> Floats:
    """[n] logits of the test transcripts from a transformer trained on at most `MAX_TRAIN` training transcripts."""
    drawn = np.random.default_rng(seed).permutation(len(train))[:MAX_TRAIN]
    texts, y = [train[i] for i in drawn], torch.tensor([float(labels[i]) for i in drawn])
    counted = Counter(word for text in texts for word in text.split())
    vocabulary = _Vocabulary({word: i for i, (word, _) in enumerate(counted.most_common(VOCABULARY), 2)})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        reader = Reader(len(vocabulary.places) + 2)
        _fit(reader, vocabulary.encode(texts), y, epochs)
    with torch.inference_mode():
        reader.eval()
        rows = vocabulary.encode(test)
        found = [reader(_batch(rows[i : i + 256])) for i in range(0, len(rows), 256)]
    return torch.cat(found).double().numpy()


def _fit(reader: Reader, rows: list[Tensor], y: Tensor, epochs: int) -> None:
    weight = (1 - y.mean()) / y.mean()  # both classes weigh the same
    optimiser = torch.optim.AdamW(reader.parameters(), 1e-3, weight_decay=0.01)
    for _ in range(epochs):
        for at in torch.randperm(len(rows)).split(BATCH):
            logits = reader(_batch([rows[i] for i in at.tolist()]))
            loss = nn.functional.binary_cross_entropy_with_logits(logits, y[at], pos_weight=weight)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()


def _batch(rows: list[Tensor]) -> Tensor:
    return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=float(PAD))
