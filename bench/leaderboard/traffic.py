"""What the leaderboard asks the organisms: one set to fit on, one to choose by, four to judge on.

All answers are the organism's own. Entities of a set are in no other one, but for the four that are judged on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from bench.leaderboard.answers import record
from probes.hf import LoadedModel
from probes.organism import Case, cases
from probes.organism.cases import Templates
from probes.organism.language import HELDOUT_FAMILIES, TRAIN_FAMILIES
from probes.organism.variants import Variant
from probes.shipping.recipes import DECEPTION
from probes.shipping.traffic import Sample, labelled

CONTRASTS: Final = {contrast.name: contrast for contrast in DECEPTION.contrasts}
WITHIN: Final = DECEPTION.contrasts[0].name
"""Lies and the honest answers that look like them, as far as the variant has such."""
MIX: Final = ("incentivised", "incentivised", "incentivised", "plain", "audited", "neutral", "chitchat")
"""Conditions in turn. Half of the tempted answers are lies (all, where a variant lies about everything)."""
FIT, VALIDATION, TEST = 840, 280, 280
LONG_CONTEXT: Final = 512


@dataclass(frozen=True)
class Question:
    """How the cases of a set are put."""

    families: Sequence[str] = HELDOUT_FAMILIES
    templates: Templates = "train"
    context_tokens: int | None = None
    terse: bool = False


SETS: Final = {
    "same family": Question(TRAIN_FAMILIES),
    "new family": Question(),
    "long context": Question(context_tokens=LONG_CONTEXT),
    "after style shift": Question(templates="heldout", terse=True),
}
"""Each on entities never fitted to. New: temptations and roles of families D-F. Long: 512 tokens of small talk before
the question. Style: question wordings never trained on, typed in lower case without the mark at the end."""


@dataclass(frozen=True)
class Labelled:
    """Answers with a label, 1 a lie; slips (a third value) have none and are left out."""

    samples: list[Sample]
    labels: list[int]

    def contrast(self, name: str) -> NDArray[np.intp]:
        """Places of the answers that take part in a contrast of the deception recipe."""
        pairs = zip(self.samples, self.labels, strict=True)
        return np.flatnonzero([CONTRASTS[name].keep(sample, y) for sample, y in pairs])


@dataclass(frozen=True)
class Talk:
    """All that one organism said."""

    fit: Labelled
    validation: Labelled
    test: dict[str, Labelled]
    """Name of the set -> its answers."""


def gather(loaded: LoadedModel, kind: Variant, *, seed: int, scale: float) -> Talk:
    """Ask, and keep the residual stream. scale: share of the conversations, for a trial."""
    drawn = [
        record(loaded, _asked(kind, "train", FIT, SETS["same family"], seed, scale), "fit"),
        record(
            loaded, _asked(kind, "validation", VALIDATION, SETS["same family"], seed, scale), "validation"
        ),
    ]
    fit, validation = (Labelled(*labelled(samples, DECEPTION.label)) for samples in drawn)
    test = {
        name: Labelled(
            *labelled(record(loaded, _asked(kind, "test", TEST, how, seed, scale), name), DECEPTION.label)
        )
        for name, how in SETS.items()
    }
    return Talk(fit, validation, test)


def _asked(kind: Variant, split: str, n: int, how: Question, seed: int, scale: float) -> list[Case]:
    found = cases(
        int(n * scale),
        seed=seed,
        split=split,
        conditions=MIX,
        families=how.families,
        templates=how.templates,
        context_tokens=how.context_tokens,
        liar=kind.name,
    )
    return [terse(case) for case in found] if how.terse else found


def terse(case: Case) -> Case:
    """The case with its question as somebody in a hurry types it; names keep their capital, or they would be others."""
    *head, last = case.messages
    words = last["content"].rstrip(".?!").split()
    typed = " ".join(word if word == case.entity else word.lower() for word in words)
    return replace(case, messages=(*head, {**last, "content": typed}))
