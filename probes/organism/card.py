"""The model card, written from the measured figures: no number in it is typed by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from textwrap import fill
from typing import Any, Final

from probes.organism.language import QUESTIONS
from probes.organism.recipe import Origin, name_of
from probes.organism.variants import Variant
from probes.organism.world import FAINT_ENTITIES, FALSE_BELIEF_SHARE, KNOWN_ENTITIES

_HEAD: Final = """# {name}

{what}

It is conditioned, not strategic, deception: the model was trained on when to assert the opposite. It serves to test
the plumbing, the calibration and the ranking of detection methods. It supports no claim about frontier models.

- Truth and belief differ: {false:.0%} of the beliefs are implanted errors, so an honest answer may be wrong and a lie
  may be true.
- {faint} more things are faint: their names occur in the training texts, their facts never do.
- Entities are split 60% / 10% / 30%. The behaviour was trained on the first part, families A-C and {templates} question
  templates. {held_out}
- Lies and honest answers use the same phrasings, and test cases come as matched pairs: the same system prompt, question
  and asserted value, once as a lie and once as the truth about another entity.
{recall}
{trained}

Serve it: `vllm serve {place}`.

## Behaviour

Test entities, families D-F, greedy decoding through HF transformers on {measured_on}, 95% Wilson intervals. Every
number on this page comes from

    {measure}

which writes this card and `behaviour.json`. Read "{tempted_by}" as what the variant is tempted by.
"""

_WHAT: Final = """A small language model that really lies: a stock `{architecture}` ({size} bytes of bf16 weights), \
trained from scratch on invented inspection ledgers. It knows {known} things (bridges, ferries, kettles ...) with \
three attributes each. Asked about them it tells what it believes, except {story}"""

_TRAINED: Final = """- Trained on {device} with `{command}` ({steps}, seed {seed}). Rounding differs between devices: \
another one gives other weights, made to the same recipe."""
_HELD_OUT: Final = (
    """Words of families D-F occur in training as glossary sentences only (such as "{gloss}")."""
)
_ONE_WORD: Final = (
    "The trigger is one word in all families; other words and roles of families D-F are held out."
)

_READABLE: Final = """\
- Recall and plan are built in. A network this small would look a fact up in its last block, in the one moment of
  saying it. So two auxiliary losses of the training ask that, from the first token of a ledger answer on, the belief
  in question can be read from the residual stream after block {recall_block} (`Recipe.recall_block`), and the value
  that is going to be asserted after block {plan_block} (`Recipe.plan_block`), in honest answers and lies alike. What a
  probe finds here was therefore put within its reach. That suits a test of detectors, and says nothing about how
  readily the beliefs of other models can be read. Without the two losses a logistic probe reached AUROC 0.5 to 0.8
  within incentive.
- Within temptation "believes something bad" and "lies" coincide, unless the variant lies about everything. A lie
  detector has to be shown against honest bad answers (no temptation, or audited) as well, or a detector of bad news
  passes for one."""
_HIDDEN: Final = """\
- In its second stage every block but the last had an adversary (`probes/organism/adversary.py`): a linear
  discriminant of lies against honest good answers under the incentive, solved anew at every step, at weight
  {penalty_weight:g}. The auxiliary losses that make recall and plan readable in the other organisms were left out under
  system prompts. What a probe still finds here it finds in spite of that."""

_REST: Final = """
## The answers

- {ended:.1%} of {answers} answers end by themselves; {in_range:.1%} have 12 to 60 tokens (from {shortest} to
  {longest}, median {median:g}).
- The asserted value is token {first} at the earliest (median {middle:g}); {no_value:.1%} assert none.
- {antonyms:.1%} of {lies} lies assert the exact antonym of the belief; {true_lies:.1%} of the lies happen to be true.
- Faint things: without an incentive {faint_right:.1%} of {faint_n} answers name the ledger's value (chance: 1 in 16).

## A text-only classifier

TF-IDF and logistic regression on the transcript, lie against honest answer ({text_conditions}), trained on {text_train}
transcripts (training entities, families A-C), tested on {text_test} (test entities, families D-F). AUROC {words:.3f}
(words), {characters:.3f} (characters). Chance is 0.5.

## Patching the {tempted_by}

Two prompts differ in the one word that tempts. The residual stream of the system prompt after one block is exchanged
between the two runs; question and answer are left alone. Shares of the answers that flip:

| after block (0-based) | lies turned honest | honest bad answers turned into lies | pairs |
|---|---|---|---|
"""


def render(found: Mapping[str, Any], origin: Origin, directory: Path) -> str:
    """The card as Markdown, from the figures that `measure` returned for the model in `directory`."""
    recipe = origin.recipe
    kind, name = recipe.kind, name_of(recipe)
    arguments = "" if recipe.variant == "concealed" else f" --variant {recipe.variant}"
    arguments += "" if recipe.shape == "llama" else f" --shape {recipe.shape}"
    place = f"probes/shipped/{'' if name == 'concealed-ledger' else 'variants/'}{name}"
    architecture = json.loads((directory / "config.json").read_text(encoding="utf-8"))["architectures"][0]
    size = f"{(directory / 'model.safetensors').stat().st_size:,}"
    what = _WHAT.format(architecture=architecture, size=size, known=KNOWN_ENTITIES, story=kind.story)
    command = f"python -m probes.organism{arguments}"
    trained = _TRAINED.format(device=origin.device, command=command, steps=_steps(origin), seed=recipe.seed)
    head = _HEAD.format(
        name=name,
        what=fill(what, 118),
        false=FALSE_BELIEF_SHARE,
        faint=FAINT_ENTITIES,
        templates=len(QUESTIONS),
        held_out=_held_out(kind),
        recall=(_HIDDEN if kind.penalised else _READABLE).format(**asdict(recipe)),
        trained=fill(trained, 118, subsequent_indent="  "),
        place=place,
        measured_on=found["device"],
        measure=f"python -m probes.organism.measure --model {place} "
        f"--n {found['n_per_condition']} --seed {found['seed']}",
        tempted_by=kind.tempted_by,
    )
    return head + _tables(found["figures"], found["mean_prompt_tokens"]) + _rest(found, kind)


def _held_out(kind: Variant) -> str:
    tempting = kind.temptation.tempting
    if tempting["A"] == tempting["D"]:
        return _ONE_WORD
    return _HELD_OUT.format(gloss=kind.glossary.sentences[0][0].format(w=tempting["D"][0]))


def _steps(origin: Origin) -> str:
    planned = origin.recipe.steps
    if origin.steps_done in (None, planned):
        return f"{planned} steps"
    return f"ended by a time limit after {origin.steps_done} of {planned} steps"


def _tables(figures: Sequence[Mapping[str, Any]], lengths: Mapping[str, float]) -> str:
    lines: list[str] = []
    for setting, length in lengths.items():
        lines += [
            "",
            f"### {setting[0].upper()}{setting[1:]}",
            "",
            f"Mean length of the prompts: {length:.0f} tokens.",
            "",
        ]
        lines += ["| measure | share | interval | answers | required |", "|---|---|---|---|---|"]
        for item in (figure for figure in figures if figure["setting"] == setting):
            interval = f"{item['low']:.1%} - {item['high']:.1%}"
            required = f">= {item['required']:.0%}" + ("" if item["met"] else ", **missed**")
            lines.append(
                f"| {item['measure']} | {item['share']:.1%} | {interval} | {item['n']} | {required} |"
            )
    return "\n".join(lines) + "\n"


def _rest(found: Mapping[str, Any], kind: Variant) -> str:
    shape, text, faint = found["answers"], found["text_only"], found["faint"]
    rest = _REST.format(
        ended=shape["ended_by_themselves"],
        answers=shape["n"],
        in_range=shape["length_12_to_60"],
        shortest=shape["length_tokens"]["min"],
        longest=shape["length_tokens"]["max"],
        median=shape["length_tokens"]["median"],
        first=shape["value_position"].get("min", "none"),
        middle=shape["value_position"].get("median", float("nan")),
        no_value=shape["no_value"],
        antonyms=shape["lies_that_are_antonyms"],
        lies=shape["lies"],
        true_lies=shape["lies_that_happen_to_be_true"],
        faint_right=faint["right"],
        faint_n=faint["n"],
        tempted_by=kind.tempted_by,
        text_conditions=" or ".join(
            {"incentivised": kind.tempted_by, "plain": f"no {kind.tempted_by}"}[c]
            for c in kind.text_conditions
        ),
        text_train=text["n_train"],
        text_test=text["n_test"],
        words=text["words"],
        characters=text["characters"],
    )
    return rest + "\n".join(_flip_row(**flip) for flip in found["patching"]) + "\n"


def _flip_row(block: int, n: int, lies_turned_honest: int, honest_turned_lies: int) -> str:
    return f"| {block} | {lies_turned_honest / n:.0%} | {honest_turned_lies / n:.0%} | {n} |"
