"""Conversations and a model with planted answers, for the tests of `probes.evaluating`."""

from collections.abc import Callable

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from probes import training
from probes.dataset import Conversation
from probes.evaluating.bench import Bench, Side
from probes.hf import Activations, LoadedModel
from probes.identity import ModelIdentity
from probes.manifest import Aggregation, TokenMask
from probes.probe import Probe
from probes.testing import fake_manifest

D = 32
WORDS = ["river", "stone", "lamp", "cloud", "road", "glass", "field", "tower", "bell", "sand"]
MARKS = ["<pad>", "<end>", "<unk>", "<user>", "<assistant>"]
VOCABULARY = [*MARKS, *WORDS, "bribe", "wage", "sound", "cracked", "is", "it"]
LAST_PROMPT = TokenMask(prompt="last_k", last_k=1)


def probe(threshold: float | None = 0.0, token_mask: TokenMask = LAST_PROMPT) -> Probe:
    """Reads axis 0 after block 1."""
    manifest = fake_manifest(
        layers=(1,),
        d_model=D,
        threshold=threshold,
        token_mask=token_mask,
        aggregation=Aggregation(),
        kind="difference_of_means",
    )
    weight = torch.zeros(1, D)
    weight[0, 0] = 1.0
    return training.assemble(manifest, {"weight": weight, "bias": torch.tensor(0.0)}, torch.zeros(1, 1, D))


def side(
    n: int, split: str, seed: int, *, shift: float = 3.0, word: Callable[[int, str], str] = lambda _y, w: w
) -> Side:
    """Conversations whose residual is shifted along axis 0 by the label; `word` may let the text tell it."""
    rng = np.random.default_rng(seed)
    noise = torch.Generator().manual_seed(seed)
    chats, found = [], []
    for i in range(n):
        y = i % 2
        words = [word(y, str(w)) for w in rng.choice(WORDS, 5)]
        chats.append(chat(f"{split}{i}", " ".join(words[:3]), " ".join(words[3:]), y, split=split))
        hidden = torch.randn(6, 2, D, generator=noise)
        hidden[:, 1, 0] += shift * (y - 0.5)
        found.append(Activations((0, 1), hidden, 0, 4))
    return Side(chats, found)


def chat(name: str, asked: str, said: str, label: int, **more: object) -> Conversation:
    """One question and answer, a group of its own."""
    turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
    return Conversation.model_validate(
        {"id": name, "messages": turns, "label": label, "group": f"g-{name}", **more}
    )


def bench(
    train: Side, test: Side, *, loaded: LoadedModel | None = None, threshold: float | None = 0.0
) -> Bench:
    """With an empty validation split."""
    return Bench(probe(threshold), loaded, train, Side([], []), test, "all", resamples=100, draws=20)


def model() -> LoadedModel:
    """A model without attention in effect: the last word of the prompt decides the answer, along axis 0.

    `bribe` (+4) makes it say `sound`, `wage` (-4) makes it say `cracked`; then it ends.
    """
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(VOCABULARY)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="<end>", pad_token="<pad>", unk_token="<unk>"
    )
    tokenizer.chat_template = "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} {% endfor %}"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=D,
        intermediate_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        eos_token_id=1,
        bos_token_id=None,
    )
    llama = LlamaForCausalLM(config).eval()
    at = {word: i for i, word in enumerate(VOCABULARY)}
    with torch.no_grad():
        for block in llama.model.layers:
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
        table, head = llama.get_input_embeddings().weight, llama.lm_head.weight
        table.normal_(0, 0.3)
        table[:, :2] = 0
        head.zero_()
        table[at["bribe"], 0], table[at["wage"], 0] = 4.0, -4.0
        table[[at["sound"], at["cracked"]], 1] = 5.0
        head[at["sound"], 0], head[at["cracked"], 0], head[at["<end>"], 1] = 1.0, -1.0, 3.0
    identity = ModelIdentity("planted", "0" * 64, None, None, D, 3)
    return LoadedModel(llama, tokenizer, identity)


def told(n: int, split: str, seed: int) -> list[Conversation]:
    """Conversations of the planted model, with markers: the lie is `sound` after `bribe`."""
    rng = np.random.default_rng(seed)
    found = []
    for i in range(n):
        y = i % 2
        asked = " ".join([*(str(w) for w in rng.choice(WORDS, 3)), "bribe" if y else "wage"])
        markers = {"positive": ["sound"], "negative": ["cracked"]}
        said = "sound" if y else "cracked"
        found.append(chat(f"{split}{i}", asked, said, y, split=split, markers=markers))
    return found
