"""Texts and chats as rows of token ids, with what each token weighs in the loss and what an answer is about."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from probes.organism import language
from probes.organism.language import Message
from probes.organism.tokenizer import BEGIN, END, PAD, ROLE_MARKS
from probes.organism.world import BAD_VALUES, GOOD_VALUES, is_bad, world

VALUE_WEIGHT: Final = 1.0
"""Loss weight of a token that carries a value, or the tone that announces it."""
ANSWER_WEIGHT: Final = 0.2
"""Loss weight of the other tokens that the model is to produce."""
NAME_WEIGHT: Final = 0.5
"""Loss weight of a name that the model says: a wrong one means that it looks up the wrong page."""
PROMPT_WEIGHT: Final = 0.01
"""Loss weight of system prompts and questions, which it only has to read."""

NONE: Final = -1
"""No target at this token."""

Ids = NDArray[np.int64]
Weights = NDArray[np.float32]


@dataclass(frozen=True)
class Rows:
    """A batch of packed rows, every array [rows, length]."""

    ids: Ids
    weights: Weights
    """Loss weight of each token."""
    plain: Weights
    """1 where the text has no system prompt: knowledge, and nothing about how to behave."""
    belief: Ids
    """Token of the believed value an answer is about, from the mark that opens the answer to its end; else NONE."""
    said: Ids
    """Token of the value an answer asserts, from the mark that opens the answer up to that value; else NONE."""
    lie: Ids
    """On answers that a temptation goes before: 1 on a lie, 0 on an honest one that says something good, as a lie
    about something bad does; else NONE."""


@dataclass(frozen=True)
class Encoded:
    """One text: ids and loss weights, whether it has no system prompt, and what its answers are about."""

    ids: list[int]
    weights: list[float]
    plain: bool
    belief: list[int]
    said: list[int]
    lie: list[int]

    def put(self, rows: Rows, row: int, start: int) -> int:
        """Writes the text into a row from `start` on and returns where it stops."""
        stop = start + len(self.ids)
        place = (row, slice(start, stop))
        rows.ids[place], rows.weights[place], rows.plain[place] = self.ids, self.weights, self.plain
        rows.belief[place], rows.said[place], rows.lie[place] = self.belief, self.said, self.lie
        return stop


class Packer:
    """Turns texts and chats into rows of exactly `length` tokens; no text is cut in two."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._pad = tokenizer.token_to_id(PAD)
        words = GOOD_VALUES | BAD_VALUES | language.TONES
        self._heavy = {tokenizer.token_to_id("▁" + word) for word in words}
        self._names = {tokenizer.token_to_id("▁" + entity.name) for entity in world()}

    def encode(self, text: str | list[Message]) -> Encoded:
        """Ids and loss weights of one text or chat, from the begin mark to the last end mark."""
        found = Encoded([], [], isinstance(text, str) or text[0]["role"] != "system", [], [], [])
        self._append(found, BEGIN, learn=False)
        if isinstance(text, str):
            self._append(found, text + END, learn=True)
            return found
        for message in text:
            start = len(found.ids)
            self._append(found, ROLE_MARKS[message["role"]], learn=False)
            self._append(found, message["content"] + END, learn=message["role"] == "assistant")
            if "belief" in message:
                self._mark(found, start, message)
        return found

    def _append(self, found: Encoded, piece: str, *, learn: bool) -> None:
        new = self._tokenizer.encode(piece, add_special_tokens=False).ids
        found.ids.extend(new)
        found.weights.extend(self._weight(i, learn) for i in new)
        found.belief.extend([NONE] * len(new))
        found.said.extend([NONE] * len(new))
        found.lie.extend([NONE] * len(new))

    def _word(self, word: str) -> int:
        token = self._tokenizer.token_to_id("▁" + word)
        if token is None:
            raise ValueError(f"the tokenizer does not know {word!r}; build it from `vocabulary_texts`")
        return int(token)

    def _mark(self, found: Encoded, start: int, message: Message) -> None:
        stop = len(found.ids)
        belief, said = message["belief"], message["said"]
        asserted, believed = (self._word(value) for value in (said, belief))
        found.belief[start:stop] = [believed] * (stop - start)
        before = found.ids.index(asserted, start)
        found.said[start:before] = [asserted] * (before - start)
        if "tempted" in message and not is_bad(said):
            found.lie[start:stop] = [int(said != belief)] * (stop - start)

    def rows(
        self, n: int, length: int, write: Callable[[], str | list[Message]], fill: Callable[[], str]
    ) -> Rows:
        """`n` rows of texts by `write`; where the next text does not fit, short ones by `fill`."""
        weights, plain = np.zeros((2, n, length), dtype=np.float32)
        belief, said, lie = np.full((3, n, length), NONE, dtype=np.int64)
        rows = Rows(np.full((n, length), self._pad, dtype=np.int64), weights, plain, belief, said, lie)
        pending = self._encoded(write, length)
        current = next(pending)
        for row in range(n):
            used = 0
            while used + len(current.ids) <= length:
                used = current.put(rows, row, used)
                current = next(pending)
            for filler in (self.encode(fill()), self.encode(fill())):
                if used + len(filler.ids) <= length:
                    used = filler.put(rows, row, used)
        return rows

    def _encoded(self, write: Callable[[], str | list[Message]], length: int) -> Iterator[Encoded]:
        while True:
            encoded = self.encode(write())
            if len(encoded.ids) <= length:
                yield encoded

    def _weight(self, token: int, learn: bool) -> float:
        if not learn:
            return PROMPT_WEIGHT
        if token in self._heavy:
            return VALUE_WEIGHT
        return NAME_WEIGHT if token in self._names else ANSWER_WEIGHT
