"""``probewatch collect``: runs an engine over labelled chats and keeps the residual stream after chosen layers."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from monitor.attach import local_model_dir
from monitor.collecting import MIB, Fed, check_disk, feed, make_shards, parts, resumed, sole_writer
from monitor.errors import CollectError
from monitor.harvest import KEEP
from monitor.seam import offline, supported
from probes import dataset, specs
from probes.collection import Collection
from probes.errors import LayerMismatch
from probes.hf import load_tokenizer
from probes.identity import ModelIdentity, model_identity
from probes.options import whole_numbers


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``collect``; everything else goes to the engine, as with ``vllm serve``."""
    parser.epilog = (
        "and the options of `vllm serve`; "
        "example: probewatch collect --model ./model --data chats.jsonl --layers 8,16 -o rows"
    )
    parser.add_argument("--model", required=True, help="model folder or name, as for `vllm serve`")
    parser.add_argument("--data", type=Path, required=True, help="JSONL of labelled chats, as for `train`")
    parser.add_argument(
        "--layers", type=whole_numbers, help="0-based blocks, e.g. 3,4,5 (default: all but the last)"
    )
    parser.add_argument(
        "--tokens",
        default="answer",
        help="whose rows to keep: answer, all, last-prompt, last-5-prompt+answer ...",
    )
    parser.add_argument(
        "-o", "--out", type=Path, required=True, help="folder to write; an interrupted run goes on"
    )


def main(args: argparse.Namespace, vllm_options: Sequence[str]) -> int:
    """Collects what is not there yet."""
    conversations, kept = dataset.read(args.data), specs.tokens(args.tokens)
    model_dir = local_model_dir(args.model)
    layers = _layers(args.layers, model_identity(model_dir))
    chats = load_tokenizer(model_dir)
    offline.configure({"COLLECT": ",".join(map(str, layers))})
    # Without prefix caching: what is not computed is not kept.
    arguments = offline.engine_arguments(
        "collect", args.model, vllm_options, enable_prefix_caching=False, skip_tokenizer_init=True
    )
    vllm_config = offline.planned(arguments)
    dtype, longest = vllm_config.model_config.dtype, int(vllm_config.model_config.max_model_len) - 1
    fed = feed(chats, conversations, kept, longest)
    row = len(layers) * chats.identity.d_model * dtype.itemsize  # bytes
    shards = parts(fed, row)
    plan = Collection(
        **vars(chats.identity),
        layers=layers,
        dtype=str(dtype).removeprefix("torch."),
        kept=kept,
        data_digest=dataset.digest(conversations),
        source=args.data.name,
        n_shards=len(shards),
        engine=f"vLLM {supported.vllm_version()}",
        created_at=datetime.now(UTC),
    )
    with sole_writer(args.out):
        state = resumed(args.out, plan)
        there = {shard.index for shard in state.shards}
        sizes = [sum(len(one.kept) for one in shard) * row for shard in shards]
        needed = sum(size for index, size in enumerate(sizes) if index not in there)
        in_step = int(vllm_config.scheduler_config.max_num_batched_tokens) * row
        _tell(_described(plan, fed, args.tokens))
        _tell(
            f"disk: {needed / MIB:.1f} MiB in {len(shards) - len(there)} of {len(shards)} shards under {args.out}; "
            f"memory: {in_step / MIB:.1f} MiB on each device, {max(sizes) / MIB:.1f} MiB on the host, beside "
            f"vLLM's own: its weights and {offline.room(arguments)}"
        )
        check_disk(args.out, needed)
        if needed:
            engine = offline.start(arguments)
            make_shards(args.out, state, shards, lambda part, path: _compute(engine, part, path), _tell)
    _tell(f"done: {args.out}: {sum(sizes) / MIB:.1f} MiB in {len(shards)} shards")
    return 0


def _layers(asked: tuple[int, ...] | None, model: ModelIdentity) -> tuple[int, ...]:
    last = model.n_layers - 1
    layers = tuple(sorted(set(asked))) if asked else tuple(range(last))
    wrong = [layer for layer in layers if not 0 <= layer < last]
    if wrong:
        raise LayerMismatch(
            f"layer {wrong[0]} asked of {model.model_id}; give blocks from 0 to {last - 1} (after the last "
            "one, Hugging Face's hidden state is post-norm)"
        )
    return layers


def _described(plan: Collection, fed: Sequence[Fed], tokens: str) -> str:
    labels = [one.conversation.label for one in fed]
    return (
        f"{plan.model_id}, layers {','.join(map(str, plan.layers))}, {plan.dtype}: {len(fed)} conversations "
        f"({labels.count(1)} positive, {labels.count(0)} negative, {labels.count(None)} unlabelled), "
        f"{sum(len(one.kept) for one in fed)} of {sum(len(one.ids) for one in fed)} tokens kept ({tokens})"
    )


def _compute(engine: Any, part: Sequence[Fed], path: Path) -> str:
    from vllm.sampling_params import SamplingParams

    names, rows = [one.conversation.id for one in part], [len(one.kept) for one in part]
    _answer(engine.collective_rpc("probewatch_begin", args=(names, rows)))
    params = [
        SamplingParams(
            max_tokens=1,
            temperature=0,
            detokenize=False,
            extra_args={KEEP: [number, one.kept.start, one.kept.stop]},
        )
        for number, one in enumerate(part)
    ]
    prompts: Any = [{"prompt_token_ids": one.ids} for one in part]
    engine.generate(prompts, params, use_tqdm=False)
    digest = _answer(engine.collective_rpc("probewatch_write", args=(str(path.absolute()),)))
    return str(digest)


def _answer(replies: list[dict[str, Any]]) -> Any:
    """What the one worker says that files the rows. Raises ``CollectError`` for what went wrong in any."""
    for reply in replies:
        if reply["error"] is not None:
            raise CollectError(reply["error"].partition(": ")[2])
    found = [reply["result"] for reply in replies if reply["result"]]
    if len(found) != 1:
        raise CollectError(
            f"{len(found)} of {len(replies)} workers file rows, not 1; this vLLM is not understood"
        )
    return found[0]


def _tell(line: str) -> None:
    print(line, flush=True)
