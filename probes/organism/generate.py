"""Greedy answers from a model directory through HF transformers, in batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from probes.organism.language import Message
from probes.organism.recipe import read_origin

MAX_NEW_TOKENS = 72


def device_name(device: str) -> str:
    """What a device is called in a card: cpu, or the accelerator's own name."""
    return "cpu" if device == "cpu" else torch.cuda.get_device_name(device)


@dataclass(frozen=True)
class Reply:
    """One greedy answer: its text, its tokens as words, and whether the model ended it by itself."""

    text: str
    tokens: tuple[str, ...]
    ended: bool


class Speaker:
    """The model in a directory, in the precision in which it is stored, on CPU or another device."""

    def __init__(self, directory: Path, device: str = "cpu") -> None:
        if not (directory / "config.json").is_file():
            raise FileNotFoundError(
                f"{directory} holds no model: train one with `python -m probes.organism --out {directory}`"
            )
        # Matrices this small gain little from a second thread and stall on it when the machine is shared.
        torch.set_num_threads(1)
        self.tokenizer: Any = AutoTokenizer.from_pretrained(directory)
        self.model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype="auto").eval().to(device)
        self.origin = read_origin(directory)
        self.device = device

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a chat, up to the mark that opens the answer."""
        text = self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    @torch.inference_mode()
    def replies(self, chats: Sequence[Sequence[Message]]) -> list[Reply]:
        """Greedy answers, in the order of the chats; prompts of like length share a batch."""
        batch = 64 if self.device == "cpu" else 512
        prompts = [self.prompt_ids(chat) for chat in chats]
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        found: dict[int, Reply] = {}
        for start in range(0, len(order), batch):
            places = order[start : start + batch]
            for place, reply in zip(places, self._generate([prompts[i] for i in places]), strict=True):
                found[place] = reply
        return [found[i] for i in range(len(prompts))]

    def _generate(self, prompts: list[list[int]]) -> list[Reply]:
        ids, mask = left_padded(prompts, self.tokenizer.pad_token_id, self.device)
        output = self.model.generate(
            input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=MAX_NEW_TOKENS
        )
        return [self._reply(row[ids.shape[1] :].tolist()) for row in output]

    def _reply(self, ids: list[int]) -> Reply:
        end = self.tokenizer.eos_token_id
        ended = end in ids
        ids = ids[: ids.index(end)] if ended else ids
        words = (self.tokenizer.convert_ids_to_tokens(i).removeprefix("▁") for i in ids)
        return Reply(self.tokenizer.decode(ids, skip_special_tokens=True), tuple(words), ended)


def left_padded(
    rows: Sequence[list[int]], pad: int, device: str = "cpu"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and attention mask, both [rows, longest], padded on the left."""
    width = max(map(len, rows))
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask
