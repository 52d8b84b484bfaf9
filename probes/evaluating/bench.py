"""What the questions are put to: a probe, its model if there is one, and labelled conversations with activations."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from probes import dataset, evaluation
from probes.calibration import clopper_pearson
from probes.dataset import Conversation
from probes.errors import DatasetInvalid
from probes.evaluating.card import Figure, Share
from probes.hf import Activations, LoadedModel
from probes.probe import Probe

Floats = NDArray[np.float64]
ALL = "all"


@dataclass(frozen=True)
class Side:
    """Labelled conversations with their activations, in one order."""

    chats: Sequence[Conversation]
    found: Sequence[Activations]

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """[n] 0 or 1"""
        return np.array([int(chat.label or 0) for chat in self.chats], np.int64)

    @cached_property
    def groups(self) -> list[str]:
        """What must not stand on two sides."""
        return dataset.groups(self.chats)

    @cached_property
    def texts(self) -> list[str]:
        """The transcripts."""
        return [chat.text for chat in self.chats]

    def __len__(self) -> int:
        return len(self.chats)

    def take(self, index: NDArray[np.intp]) -> "Side":
        """Those at `index`."""
        return Side([self.chats[i] for i in index], [self.found[i] for i in index])

    def sample(self, most: int) -> "Side":
        """At most `most` conversations, evenly spread, always the same ones."""
        if len(self) <= most:
            return self
        return self.take(np.unique(np.linspace(0, len(self) - 1, most).astype(int)))

    def of_contrast(self, name: str) -> "Side":
        """Those that take part in a contrast."""
        return self.take(np.flatnonzero(in_contrast(self.chats, name)))

    def counts(self) -> tuple[int, int]:
        """(positives, negatives)"""
        return int(self.labels.sum()), int((1 - self.labels).sum())


@dataclass(frozen=True)
class Bench:
    """A probe on the stand. `train` and `validation` may be empty, `loaded` may be absent: parts then say so."""

    probe: Probe
    loaded: LoadedModel | None
    train: Side
    validation: Side
    test: Side
    headline: str
    margin: float = 0.1
    """How far below the probe's AUROC every control has to stay."""
    seed: int = 0
    resamples: int = evaluation.RESAMPLES
    """Of the groups, for each interval."""
    draws: int = 1000
    """Random directions that are tried."""

    @cached_property
    def scores(self) -> Floats:
        """[n] deployed statistics of the test conversations."""
        return evaluation.statistics(self.probe, self.test.found)

    @cached_property
    def in_headline(self) -> NDArray[np.bool_]:
        """[n] which test conversations take part in the headline contrast."""
        return in_contrast(self.test.chats, self.headline)

    @cached_property
    def headline_test(self) -> Side:
        """The test conversations of the headline contrast."""
        return self.test.take(np.flatnonzero(self.in_headline))

    @cached_property
    def headline_train(self) -> Side:
        """The training conversations of the headline contrast."""
        return self.train.of_contrast(self.headline)

    @property
    def headline_scores(self) -> Floats:
        """Deployed statistics in the order of `headline_test`."""
        return self.scores[self.in_headline]

    @cached_property
    def auroc(self) -> float:
        """The probe's on the headline contrast: what controls are held against."""
        return evaluation.auroc_of(self.headline_test.labels.tolist())(self.headline_scores)

    def figure(self, scores: Floats, side: Side, of: evaluation.Separation = evaluation.auroc) -> Figure:
        """AUROC, or another figure, with its interval clustered by group."""
        return self.interval(scores, side.labels, side.groups, of)

    def interval(
        self, scores: Floats, labels: ArrayLike, groups: Sequence[str], of: evaluation.Separation
    ) -> Figure:
        """The same for labels that are not the side's own."""
        return Figure.of(
            evaluation.bootstrap(of, scores, labels, groups, resamples=self.resamples, seed=self.seed)
        )

    def close(self, auroc: float) -> bool:
        """Whether an AUROC comes within the margin of the probe's; so does any where the probe is at chance."""
        return not auroc < self.auroc - self.margin


def contrasts(chats: Sequence[Conversation]) -> list[str]:
    """Names of the contrasts: those that conversations name under the key `contrasts`, else all of them in one.

    In the order of the longest list that a conversation gives, then as they occur.
    """
    named = sorted((_named(chat) for chat in chats), key=len, reverse=True)
    return list(dict.fromkeys(name for names in named for name in names)) or [ALL]


def in_contrast(chats: Sequence[Conversation], name: str) -> NDArray[np.bool_]:
    """[n] which conversations take part in a contrast. `DatasetInvalid` where the name is unknown."""
    if name == ALL:
        return np.ones(len(chats), np.bool_)
    return np.array([name in _named(chat) for chat in chats], np.bool_)


def _named(chat: Conversation) -> list[str]:
    found = (chat.model_extra or {}).get("contrasts") or []
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise DatasetInvalid(
            f"conversation {chat.id!r}: contrasts is {str(found)[:60]!r}; give a list of names"
        )
    return found


def share(hits: int, n: int) -> Share:
    """hits of n with their Clopper-Pearson interval; n >= 1."""
    low, high = clopper_pearson(hits, n)
    return Share(hits=hits, n=n, low=low, high=high)


def share_of(crossed: NDArray[np.bool_]) -> Share | None:
    """How many are True; None of an empty row."""
    return share(int(crossed.sum()), len(crossed)) if len(crossed) else None
