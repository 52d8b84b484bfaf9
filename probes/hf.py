"""Hugging Face transformers, imported nowhere else: activations of conversations, and greedy answers."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from probes.dataset import Conversation
from probes.errors import BindingError, DataError, LayerMismatch
from probes.identity import ModelIdentity, model_identity
from probes.manifest import TokenMask
from probes.masks import mask


@dataclass(frozen=True)
class Activations:
    """The residual stream over the kept tokens of one conversation."""

    layers: tuple[int, ...]
    """0-based block indices"""
    hidden: Tensor
    """[T, L, d] float32, T the kept tokens, L those layers"""
    first: int
    """Absolute position of row 0; the rows are consecutive."""
    prompt_length: int
    """Tokens of the prompt; later positions are the answer's."""

    @cached_property
    def positions(self) -> NDArray[np.int64]:
        """[T] absolute positions."""
        return np.arange(self.first, self.first + len(self.hidden), dtype=np.int64)

    def at(self, layers: Sequence[int]) -> Tensor:
        """[T, len(layers), d] of those layers alone."""
        return self.hidden[:, [self.layers.index(layer) for layer in layers]]

    def mask(self, token_mask: TokenMask) -> NDArray[np.bool_]:
        """[T] which rows count."""
        return mask(self.positions, self.prompt_length, token_mask)


@dataclass(frozen=True)
class ChatTokenizer:
    """What turns a conversation into the tokens that a model is fed."""

    tokenizer: Any
    identity: ModelIdentity


@dataclass(frozen=True)
class LoadedModel:
    """A causal language model in evaluation mode with its tokenizer and identity."""

    model: Any
    tokenizer: Any
    identity: ModelIdentity

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return torch.device(self.model.device)

    def blocks(self) -> nn.ModuleList:
        """The transformer blocks in order."""
        for module in self.model.modules():
            if isinstance(module, nn.ModuleList) and len(module) == self.identity.n_layers:
                return module
        raise BindingError(
            f"{self.identity.model_id} has no list of {self.identity.n_layers} blocks; give a decoder"
        )


def load(model_dir: Path, *, dtype: torch.dtype = torch.float32, device: str = "cpu") -> LoadedModel:
    """Load a local Hugging Face model. Raises `BindingError` where transformers cannot read it."""
    from transformers import AutoModelForCausalLM

    chats = load_tokenizer(model_dir)
    with _readable(model_dir), _quiet():
        model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=dtype, local_files_only=True)
    return LoadedModel(model.to(device).eval(), chats.tokenizer, chats.identity)


def load_first_blocks(model_dir: Path, n_blocks: int) -> LoadedModel:
    """Embedding, the first `n_blocks` blocks, final norm and unembedding, in the checkpoint's own dtype on the CPU.

    Whatever lies deeper is not read, nor is a tokenizer. `BindingError` as `load`, for a model that is fed more than
    text, for one with code of its own, which is never run, and for one whose weights are no safetensors.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    identity = replace(model_identity(model_dir), n_layers=n_blocks)
    with _readable(model_dir), _quiet():
        config = AutoConfig.from_pretrained(model_dir, local_files_only=True, trust_remote_code=False)
        if config.get_text_config() is not config:
            raise ValueError(f"{config.model_type} is fed more than text")
        for name, types in vars(config).copy().items():
            if name.endswith("layer_types") and isinstance(types, list):
                setattr(config, name, types[:n_blocks])
        config.num_hidden_layers = n_blocks
        model, told = AutoModelForCausalLM.from_pretrained(
            model_dir,
            config=config,
            dtype="auto",
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
        if told["missing_keys"]:
            raise ValueError(f"{min(told['missing_keys'])} is not in its files")
    return LoadedModel(model.eval(), None, identity)


def load_tokenizer(model_dir: Path) -> ChatTokenizer:
    """Load the tokenizer of a local Hugging Face model alone. Raises `BindingError` as `load` does."""
    from transformers import AutoTokenizer

    identity = model_identity(model_dir)
    with _readable(model_dir), _quiet():
        return ChatTokenizer(AutoTokenizer.from_pretrained(model_dir, local_files_only=True), identity)


def randomised(loaded: LoadedModel, seed: int) -> LoadedModel:
    """The same architecture and tokenizer with fresh random weights: a control that must not work."""
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(loaded.model.config).to(loaded.device, torch.float32).eval()
    return LoadedModel(model, loaded.tokenizer, loaded.identity)


def token_ids(loaded: LoadedModel | ChatTokenizer, conversation: Conversation) -> tuple[list[int], int]:
    """(ids as they are fed to the model, prompt length): the chat template with the generation prompt, then
    the answer.

    The end-of-text token is not fed: the last sampled token never has a row in the residual stream.
    """
    prompt = _prompt_ids(loaded, conversation.prompt)
    if conversation.answer_ids is not None:
        return prompt + list(conversation.answer_ids), len(prompt)
    answer = loaded.tokenizer(conversation.answer, add_special_tokens=False)["input_ids"]
    return prompt + list(answer), len(prompt)


@torch.no_grad()
def activations(
    loaded: LoadedModel,
    conversations: Sequence[Conversation],
    layers: Sequence[int],
    *,
    prompt_tail: int | None = None,
    batch_size: int = 64,
) -> list[Activations]:
    """The residual stream after each of `layers` (0-based blocks) for every conversation, in their order.

    The residual after block b is `hidden_states[b + 1]`, except after the last block, where Hugging Face
    applies the final norm first: that layer is refused. `prompt_tail` keeps only so many tokens at the
    prompt's end (and all of the answer); None keeps everything. Memory: 4 bytes x kept tokens x layers x
    d_model.
    """
    last = loaded.identity.n_layers - 1
    wrong = [layer for layer in layers if not 0 <= layer < last]
    if wrong:
        raise LayerMismatch(
            f"layers {wrong} asked of {loaded.identity.model_id}; give blocks from 0 to {last - 1}"
        )
    fed = [token_ids(loaded, conversation) for conversation in conversations]
    found: dict[int, Activations] = {}
    by_length = sorted(range(len(fed)), key=lambda i: len(fed[i][0]))
    for start in range(0, len(by_length), batch_size):
        batch = by_length[start : start + batch_size]
        states = _residuals(loaded, [fed[i][0] for i in batch], layers)  # [B, T, L, d]
        for row, i in enumerate(batch):
            ids, prompt_length = fed[i]
            first = 0 if prompt_tail is None else max(0, prompt_length - prompt_tail)
            found[i] = Activations(tuple(layers), states[row, first : len(ids)].clone(), first, prompt_length)
    return [found[i] for i in range(len(fed))]


@torch.no_grad()
def generate(
    loaded: LoadedModel,
    prompts: Sequence[Sequence[dict[str, str]]],
    *,
    max_new_tokens: int = 80,
    batch_size: int = 128,
    steering: tuple[int, Tensor] | None = None,
) -> list[tuple[str, tuple[int, ...]]]:
    """Greedy answers: (text, ids of the answer that were fed to the model, so without the last sampled one).

    `steering` = (block, vector [d]) adds the vector to the residual stream after that block, at every token.
    """
    tokenizer = loaded.tokenizer
    ids = [_prompt_ids(loaded, prompt) for prompt in prompts]
    by_length = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    found: dict[int, tuple[str, tuple[int, ...]]] = {}
    with _steered(loaded, *steering) if steering else nullcontext():
        for start in range(0, len(by_length), batch_size):
            batch = by_length[start : start + batch_size]
            for i, answer in zip(
                batch, _greedy(loaded, [ids[i] for i in batch], max_new_tokens), strict=True
            ):
                found[i] = (tokenizer.decode(answer, skip_special_tokens=True).strip(), tuple(answer[:-1]))
    return [found[i] for i in range(len(ids))]


def _prompt_ids(loaded: LoadedModel | ChatTokenizer, messages: Sequence[dict[str, str]]) -> list[int]:
    try:
        encoded = loaded.tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=True, tokenize=True, return_dict=True
        )
    except (ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"the chat template of {loaded.identity.model_id} refuses a conversation ({reason}); mend it"
        ) from None
    return list(encoded["input_ids"])


def _padded(rows: Sequence[Sequence[int]], *, left: bool) -> tuple[Tensor, Tensor]:
    width = max(len(row) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    attention = torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        place = slice(width - len(row), None) if left else slice(0, len(row))
        ids[i, place] = torch.tensor(row)
        attention[i, place] = 1
    return ids, attention


def _residuals(loaded: LoadedModel, rows: Sequence[Sequence[int]], layers: Sequence[int]) -> Tensor:
    ids, attention = _padded(rows, left=False)
    try:
        out = loaded.model(
            input_ids=ids.to(loaded.device),
            attention_mask=attention.to(loaded.device),
            output_hidden_states=True,
            use_cache=False,
            logits_to_keep=1,
        )
    except IndexError:  # of an embedding
        limits = loaded.model.config.get_text_config()
        raise DataError(
            f"token ids from {int(ids.min())} to {int(ids.max())}, {ids.shape[1]} of them in the longest conversation; "
            f"{loaded.identity.model_id} has {limits.vocab_size} ids and {limits.max_position_embeddings} positions: "
            "mend answer_ids, or leave out what is too long"
        ) from None
    return (
        torch.stack([out.hidden_states[layer + 1] for layer in layers], dim=2).float().cpu()
    )  # [B, T, L, d]


def _greedy(loaded: LoadedModel, rows: Sequence[Sequence[int]], max_new_tokens: int) -> Iterator[list[int]]:
    """Sampled ids of each row up to and with its end-of-text token, or `max_new_tokens` of them."""
    ids, attention = _padded(rows, left=True)
    ends = _end_ids(loaded)
    out = loaded.model.generate(
        input_ids=ids.to(loaded.device),
        attention_mask=attention.to(loaded.device),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=sorted(ends),
        pad_token_id=min(ends),
    )
    for row in out[:, ids.shape[1] :].tolist():
        stop = next((n + 1 for n, token in enumerate(row) if token in ends), len(row))
        yield row[:stop]


def _end_ids(loaded: LoadedModel) -> set[int]:
    declared = loaded.model.generation_config.eos_token_id
    several = declared if isinstance(declared, list) else [declared]
    found = {token for token in [*several, loaded.tokenizer.eos_token_id] if token is not None}
    if not found:
        raise BindingError(
            f"{loaded.identity.model_id} declares no end-of-text token; set eos_token_id in its config"
        )
    return found


@contextmanager
def _readable(model_dir: Path) -> Iterator[None]:
    try:
        yield
    except (
        Exception
    ) as error:  # transformers raises dozens of types for a bad directory; here they become ours
        reason = " ".join(str(error).split())[:200]
        raise BindingError(
            f"{model_dir}: transformers cannot load it ({reason}); give a Hugging Face model"
        ) from None


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars: stderr is for errors, one line each."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@contextmanager
def _steered(loaded: LoadedModel, block: int, vector: Tensor) -> Iterator[None]:
    def add(_module: nn.Module, _inputs: object, output: Any) -> Any:
        if isinstance(output, tuple):
            return (output[0] + vector.to(output[0]), *output[1:])
        return output + vector.to(output)

    handle = loaded.blocks()[block].register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()
