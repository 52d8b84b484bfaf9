"""``probewatch score``: transcripts in, verdicts out, through the engine and the tap that a server uses."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from monitor.attach import local_model_dir
from monitor.collecting import Fed, feed
from monitor.errors import CollectError
from monitor.records import RecentRecords, TokenText, detail, summary
from monitor.scoring import as_live
from monitor.seam import offline
from monitor.wire import CARRIER
from probes import Probe, dataset, load
from probes.atomic import write_text
from probes.hf import ChatTokenizer, load_tokenizer
from probes.identity import check_binding, model_identity
from probes.manifest import TokenMask, revise

Ask = Callable[[list[list[int]]], list[str]]
"""Feeds prompts to the engine; the id of each one's response."""
AT_ONCE = 512
"""Transcripts that are fed together; the engine remembers the last 1024 at least."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``score``; everything else goes to the engine, as with ``vllm serve``."""
    parser.epilog = (
        "and the options of `vllm serve`; "
        "example: probewatch score chats.jsonl --model ./model --probe deception.safetensors"
    )
    parser.add_argument("file", type=Path, help="JSONL of chats that end with the answer, as for `train`")
    parser.add_argument("--model", required=True, help="model folder or name, as for `vllm serve`")
    parser.add_argument("--probe", action="append", required=True, type=Path, metavar="FILE")
    parser.add_argument(
        "--token-scores",
        action="store_true",
        help="every token with its text and score, as in GET /requests/{id}",
    )
    parser.add_argument("-o", "--out", type=Path, help="JSONL to write (default: standard output)")


def main(args: argparse.Namespace, vllm_options: Sequence[str]) -> int:
    """Judges every transcript; one JSON object a line, in the order of the file."""
    conversations = dataset.read(args.file)
    model_dir = local_model_dir(args.model)
    probes = [load(path) for path in args.probe]
    for probe in probes:
        check_binding(probe.manifest, model_identity(model_dir))
    chats = load_tokenizer(model_dir)
    with tempfile.TemporaryDirectory(prefix="probewatch-") as folder:
        offline.configure({"PROBES": ",".join(_observing(probes, Path(folder)))})
        arguments = offline.engine_arguments("score", args.model, vllm_options, skip_tokenizer_init=True)
        longest = int(offline.planned(arguments).model_config.max_model_len) - 1
        fed = feed(chats, conversations, TokenMask(prompt="all"), longest)
        engine = offline.start(arguments)
    lines, verdicts = [], Counter[str]()
    recent = getattr(engine.llm_engine.output_processor, CARRIER).engines.recent
    for line in _judged(_asking(engine), recent, fed, probes, _text_of(chats) if args.token_scores else None):
        verdicts[line["verdict"]] += 1
        lines.append(json.dumps(line))
        if args.out is None:
            print(lines[-1], flush=True)
    if args.out is not None:
        write_text(args.out, "\n".join([*lines, ""]))
    told = ", ".join(f"{verdicts[name]} {name}" for name in ("flagged", "unscored", "ok"))
    print(f"{len(lines)} transcripts: {told}", file=sys.stderr)
    return 0


def _observing(probes: Sequence[Probe], folder: Path) -> Iterator[str]:
    """Copies of the artifacts that do nothing but score: what is only read is neither stopped nor steered."""
    for index, probe in enumerate(probes):
        path = folder / f"{index}.safetensors"
        replace(probe, manifest=revise(probe.manifest, default_action="observe")).save(path)
        yield str(path)


def _judged(
    ask: Ask, recent: RecentRecords, fed: Sequence[Fed], probes: Sequence[Probe], text_of: TokenText | None
) -> Iterator[dict[str, Any]]:
    actions = {probe.manifest.name: probe.manifest.default_action for probe in probes}
    for start in range(0, len(fed), AT_ONCE):
        part = fed[start : start + AT_ONCE]
        for one, request_id in zip(part, ask([one.ids for one in part]), strict=True):
            records = recent.of(request_id)
            if len(records) != 1:
                raise CollectError(
                    f"the engine kept {len(records)} records of {one.conversation.id!r}, not 1"
                )
            record = as_live(records[0], one.prompt_length, actions)
            shown = summary(record) if text_of is None else detail(record, text_of)
            yield {**shown, "id": one.conversation.id}


def _asking(engine: Any) -> Ask:
    from vllm.sampling_params import SamplingParams

    params = SamplingParams(max_tokens=1, temperature=0, detokenize=False)

    def ask(prompts: list[list[int]]) -> list[str]:
        given: Any = [{"prompt_token_ids": ids} for ids in prompts]
        return [output.request_id for output in engine.generate(given, params, use_tqdm=False)]

    return ask


def _text_of(chats: ChatTokenizer) -> TokenText:
    return lambda token: str(chats.tokenizer.decode([token]))
