"""Does the probe stand where the text has been made to say nothing? Do train and test meet?

Score filtering drops the test conversations that a text-only model classifies rightly: what reads the words
falls to chance or below on the rest. Content filtering deletes the words that tell the classes apart most from
every transcript, feeds those to the model again and scores them (both after arXiv 2509.21344).
"""

import re
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from probes import evaluation, hf
from probes.dataset import Conversation, Message
from probes.evaluating.bench import Bench, Side
from probes.evaluating.card import NAMES, Leak, NotComputed
from probes.evaluating.controls import NO_MODEL
from probes.evaluating.profile import without_train

Floats = NDArray[np.float64]
MIN_LEFT: Final = 20
"""Conversations of each class that have to be left for a figure."""
N_WORDS: Final = 20
MAX_SHARED: Final = 0.05


def shared(bench: Bench) -> Leak:
    """Test transcripts that also occur in train, whatever their groups are called."""
    known = {_plain(text) for text in bench.headline_train.texts}
    test = bench.headline_test
    met = np.array([_plain(text) in known for text in test.texts], np.bool_)
    positive, negative = int(met[test.labels == 1].sum()), int(met[test.labels == 0].sum())
    return Leak(
        key="shared-transcripts",
        name=NAMES["shared-transcripts"],
        auroc=None,
        n_positive=positive,
        n_negative=negative,
        detail=f"{positive + negative} of {len(test)} test transcripts occur in train word for word",
        failed=met.mean() > MAX_SHARED,
    )


def score_filtering(bench: Bench, texts: Mapping[str, Floats]) -> Leak | NotComputed:
    """The probe on the test conversations that the strongest text-only model gets wrong.

    texts: by key, scores of text-only models on the headline's test conversations.
    """
    side = bench.headline_test
    if not texts:
        return without_train()
    strongest = max(texts.values(), key=lambda scores: abs(_auroc(scores, side) - 0.5))
    right = _right(strongest, side)
    left = side.take(np.flatnonzero(~right))
    n_positive, n_negative = left.counts()
    if min(n_positive, n_negative) < MIN_LEFT:
        return NotComputed(
            reason=f"{n_positive} positives and {n_negative} negatives are left that the text does not give away",
            remedy=f"give data with at least {MIN_LEFT} of each",
        )
    found = bench.figure(bench.headline_scores[~right], left)
    return Leak(
        key="score-filtering",
        name=NAMES["score-filtering"],
        auroc=found,
        n_positive=n_positive,
        n_negative=n_negative,
        detail=f"{int(right.sum())} of {len(side)} dropped: the stronger text-only model gets them right",
        failed=not (found.value or 0.0) >= 0.5 + bench.margin,
    )


def content_filtering(bench: Bench) -> Leak | NotComputed:
    """The probe on transcripts without the words that say most."""
    if bench.loaded is None:
        return NO_MODEL
    fit, side, rule = bench.headline_train, bench.headline_test, bench.probe.manifest
    if min(fit.counts()) == 0:
        return without_train()
    words = telling_words(fit)
    chats = [without_words(chat, words) for chat in side.chats]
    kept = np.flatnonzero([bool(chat.answer.strip()) for chat in chats])
    left = side.take(kept)
    if min(left.counts()) < MIN_LEFT:
        return NotComputed(
            reason=f"{len(kept)} of {len(side)} answers have words left", remedy="give longer answers"
        )
    again = hf.activations(
        bench.loaded, [chats[i] for i in kept], rule.layers, prompt_tail=rule.token_mask.prompt_tail
    )
    found = bench.figure(evaluation.statistics(bench.probe, again), left)
    return Leak(
        key="content-filtering",
        name=NAMES["content-filtering"],
        auroc=found,
        n_positive=left.counts()[0],
        n_negative=left.counts()[1],
        detail=f"deleted: {', '.join(words) or 'nothing, no word tells the classes apart'}",
        failed=not (found.value or 0.0) >= 0.5 + bench.margin,
    )


def telling_words(fit: Side) -> list[str]:
    """The `N_WORDS` words with the largest coefficients of a text-only model, of either sign."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    vectorise = TfidfVectorizer(sublinear_tf=True, min_df=2)
    try:
        x = vectorise.fit_transform(fit.texts)
    except ValueError:  # no word occurs twice
        return []
    model = LogisticRegression(C=10.0, class_weight="balanced", max_iter=500).fit(x, fit.labels)
    order = np.argsort(-np.abs(model.coef_[0]))[:N_WORDS]
    roles = {"system", "user", "assistant", "tool"}
    return [word for word in np.asarray(vectorise.get_feature_names_out())[order] if word not in roles]


def without_words(chat: Conversation, words: Sequence[str]) -> Conversation:
    """The conversation without those words, in any case; its answer is tokenised anew."""
    if not words:
        return chat
    pattern = re.compile(r"\b(?:" + "|".join(map(re.escape, words)) + r")\b", re.IGNORECASE)

    def cut(message: Message) -> Message:
        return Message(role=message.role, content=" ".join(pattern.sub("", message.content).split()))

    return chat.model_copy(update={"messages": tuple(map(cut, chat.messages)), "answer_ids": None})


def _right(scores: Floats, side: Side) -> NDArray[np.bool_]:
    """Which conversations a score puts on the right side, its probabilities taken at equal class weights."""
    middle = (np.median(scores[side.labels == 1]) + np.median(scores[side.labels == 0])) / 2
    above = scores > middle
    if _auroc(scores, side) < 0.5:
        above = ~above
    return np.asarray(above == (side.labels == 1), np.bool_)


def _auroc(scores: Floats, side: Side) -> float:
    return evaluation.auroc_of(side.labels.tolist())(scores)


def _plain(text: str) -> str:
    return " ".join(text.lower().split())
