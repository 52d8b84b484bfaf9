"""A word-level tokenizer: one token a word, one a punctuation mark, `<|unk|>` for a word it does not know.

A word carries the space before it (`▁bridge`), so decoding restores the text; punctuation carries none. The
begin mark comes from the chat template alone and no post-processor adds another: rendering first and
encoding later gives the same ids as doing both at once.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import WordLevel

PAD: Final = "<|pad|>"
UNK: Final = "<|unk|>"
BEGIN: Final = "<|begin|>"
END: Final = "<|end|>"
ROLE_MARKS: Final = {role: f"<|{role}|>" for role in ("system", "user", "assistant")}
SPECIAL: Final = (PAD, UNK, BEGIN, END, *ROLE_MARKS.values())
PUNCTUATION: Final = tuple('.,:;?!()"')
CHAT_TEMPLATE: Final = (
    "{{ '<|begin|>' }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def build(texts: Iterable[str]) -> Tokenizer:
    """A tokenizer that knows every word of `texts`, ids in alphabetical order after the special tokens."""
    splitter = _pre_tokenizer()
    words: set[str] = set()
    for text in texts:
        words.update(word for word, _ in splitter.pre_tokenize_str(text))
    vocabulary = [*SPECIAL, "▁", *PUNCTUATION, *sorted(words - {"▁", *PUNCTUATION})]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token=UNK))
    # Line breaks and runs of spaces become one space: a word stays the same word wherever it stands.
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    )
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return tokenizer


def _pre_tokenizer() -> Any:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always"),
            pre_tokenizers.Split(Regex(r'[.,:;?!()"]'), behavior="isolated"),
        ]
    )


def render(messages: Iterable[dict[str, str]], *, add_generation_prompt: bool = False) -> str:
    """A chat as text, as the chat template renders it."""
    body = "".join(ROLE_MARKS[m["role"]] + m["content"] + END for m in messages)
    return BEGIN + body + (ROLE_MARKS["assistant"] if add_generation_prompt else "")


def save(tokenizer: Tokenizer, directory: Path, *, max_length: int) -> None:
    """Writes tokenizer.json and tokenizer_config.json, which transformers and vLLM load without further code."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_length,
        "bos_token": BEGIN,
        "eos_token": END,
        "pad_token": PAD,
        "unk_token": UNK,
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
