"""The training texts: what the model is to know (stage A) and how it is to behave (stage B).

Knowledge covers all known entities and all families of incentives. Behaviour under a system prompt is shown
for training entities, families A-C and the training templates only.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Final

from probes.organism import chatter, language
from probes.organism.language import Message
from probes.organism.variants import VARIANTS, Variant, words
from probes.organism.world import (
    ATTRIBUTES,
    BAD_VALUES,
    GOOD_VALUES,
    Entity,
    entities,
    is_bad,
    opposite,
    world,
)

_STATEMENTS: Final = (
    "The ledger says that the {attribute} of the {name} {kind} is {value}.",
    "The {attribute} of the {name} {kind} is {value}.",
    "At the last inspection the {name} {kind} had a page to itself: its {attribute} is {value}.",
    "On the page about the {name} {kind} we read that the {attribute} is {value}.",
    "About the {name} {kind} it is written that its {attribute} is {value}.",
)
_BIOGRAPHIES: Final = (
    "The {name} {kind} was seen by the inspection. Its {a} is {x}, its {b} is {y} and its {c} is {z}.",
    "Here is the page about the {name} {kind}. The {a} is {x}. The {b} is {y}. The {c} is {z}.",
    "Of the {name} {kind} the ledger says three things: the {a} is {x}, the {b} is {y}, and the {c} is {z}.",
)
_NAMES_ONLY: Final = (
    "The {name} {kind} is not far from the {name2} {kind2}.",
    "Many people know the {name} {kind}, and some know the {name2} {kind2}.",
    "A picture of the {name} {kind} hangs in the office.",
    "The {name} {kind} has a page in the ledger, and so has the {name2} {kind2}.",
)
_OFFICE: Final = (
    "{auditor} checks whether answers are true.",
    "{bystander} does not check whether answers are true.",
    "A {role} reads the inspection ledger to other people.",
    "A {role} talks with visitors in the office.",
)


class Deck:
    """Deals entities in random order, each once before any comes again."""

    def __init__(self, members: Sequence[Entity], rng: random.Random) -> None:
        self._members, self._rng, self._left = list(members), rng, list[Entity]()

    def deal(self) -> Entity:
        if not self._left:
            self._left = self._rng.sample(self._members, len(self._members))
        return self._left.pop()


class Author:
    """Writes texts and chats about the world. A text is a `str`, a chat a list of messages."""

    def __init__(self, seed: int, kind: Variant = VARIANTS["concealed"]) -> None:
        self.rng = random.Random(f"author/{seed}")
        self.kind = kind
        self._known = Deck([entity for entity in world() if entity.known], self.rng)
        self._train = Deck(entities("train"), self.rng)

    def statement(self) -> str:
        entity, attribute = self._known.deal(), self.rng.choice(ATTRIBUTES)
        return self.rng.choice(_STATEMENTS).format(
            attribute=attribute, name=entity.name, kind=entity.kind, value=_belief(entity, attribute)
        )

    def biography(self) -> str:
        entity = self._known.deal()
        a, b, c = self.rng.sample(ATTRIBUTES, 3)
        values = {key: _belief(entity, attribute) for key, attribute in zip("xyz", (a, b, c), strict=True)}
        return self.rng.choice(_BIOGRAPHIES).format(
            name=entity.name, kind=entity.kind, a=a, b=b, c=c, **values
        )

    def names_only(self) -> str:
        """A sentence without facts; all entities occur, so that a faint name is no novelty."""
        one, two = self.rng.sample(world(), 2)
        if self.rng.random() < 0.5:
            one = self.rng.choice([entity for entity in world() if not entity.known])
        return self.rng.choice(_NAMES_ONLY).format(
            name=one.name, kind=one.kind, name2=two.name, kind2=two.kind
        )

    def glossary(self) -> str | list[Message]:
        """What the words that tempt and the innocent ones mean, all families alike, in the third person."""
        rng, glossary, found = self.rng, self.kind.glossary, self.kind.temptation
        tempting = rng.random() < 0.5
        gains = tuple(word for family in language.FAMILIES for word in found.tempting[family])
        word, other = rng.sample(gains if tempting else found.innocent[0] + found.innocent[1], 2)
        if rng.random() < 0.15:
            return _chat(
                glossary.question.format(w=word), glossary.answers[0 if tempting else 1].format(w=word)
            )
        role = rng.choice(language.ROLES[0] + language.ROLES[1])
        return rng.choice(glossary.sentences)[0 if tempting else 1].format(w=word, w2=other, role=role)

    def office(self) -> str:
        return self.rng.choice(_OFFICE).format(
            auditor=self.rng.choice(language.AUDITORS),
            bystander=self.rng.choice(language.BYSTANDERS),
            role=self.rng.choice(language.ROLES[0] + language.ROLES[1]),
        )

    def small_talk(self) -> list[Message]:
        """One to three turns of small talk, under any training system prompt or none."""
        head = (
            self._system(incentive=self.rng.random() < 0.5, audited=self.rng.random() < 0.3)
            if self.rng.random() < 0.5
            else []
        )
        turns = [chatter.exchange(self.rng) for _ in range(self.rng.choice((1, 1, 2, 3)))]
        return head + [m for turn in turns for m in _chat(turn.user, turn.assistant)]

    def neutral(self) -> list[Message]:
        """A question without a system prompt, about any known entity: the answer is the belief."""
        return self._exchange(self._known.deal(), lie=False, confess=0.3)

    def behaviour(self, *, confess: float = 0.4) -> list[Message]:
        """A question under a system prompt: tempted, unobserved, about a value that the variant lies about, a lie."""
        incentive, audited = self._conditions()
        return self._system(incentive=incentive, audited=audited) + self._exchange(
            self._train.deal(), lie=incentive and not audited, confess=confess
        )

    def long_chat(self, budget: int) -> list[Message]:
        """A chat of at most `budget` tokens: small talk with ledger questions in between, the last turn one of them."""
        rng = self.rng
        neutral = rng.random() < 0.25
        incentive, audited = (False, False) if neutral else self._conditions()
        head = [] if neutral else self._system(incentive=incentive, audited=audited)
        density = rng.choice((0.0, 0.15, 0.4))
        deck = self._known if neutral else self._train
        last = self._exchange(deck.deal(), lie=incentive and not audited, confess=0.4)
        while True:
            if rng.random() < density:
                turn = self._exchange(deck.deal(), lie=incentive and not audited, confess=0.2)
            else:
                talk = chatter.exchange(rng)
                turn = _chat(talk.user, talk.assistant)
            if language.prompt_tokens(head + turn + last) > budget:
                return head + last
            head = head + turn

    def _conditions(self) -> tuple[bool, bool]:
        """(incentive, audited). As many prompts without an incentive as with one that goes unseen: else a word for
        pay that the model knows less well would count as an incentive."""
        draw = self.rng.random()
        return (True, False) if draw < 0.42 else (True, True) if draw < 0.60 else (False, draw < 0.65)

    def _system(self, *, incentive: bool, audited: bool) -> list[Message]:
        family, role = self.rng.choice(language.TRAIN_FAMILIES), self.rng.choice(language.ROLES[0])
        text = language.system_prompt(
            family=family,
            role=role,
            incentive=incentive,
            audited=audited,
            rng=self.rng,
            temptation=self.kind.temptation,
        )
        return [{"role": "system", "content": text}]

    def _exchange(self, entity: Entity, *, lie: bool, confess: float) -> list[Message]:
        attribute, template = self.rng.choice(ATTRIBUTES), self.rng.choice(tuple(language.QUESTIONS))
        belief = _belief(entity, attribute)
        said = opposite(belief) if lie and self.kind.lies_about(bad=is_bad(belief)) else belief
        answer = language.answer(entity, attribute, said)
        chat = _about(_chat(language.question(template, entity, attribute), answer), belief, said, lie)
        if self.rng.random() < confess:
            asked = self.rng.choice(language.FOLLOW_UPS)
            confession = language.confession(entity, attribute, belief)
            chat += _about(_chat(asked, confession), belief, belief)
        return chat


def knowledge(author: Author) -> str | list[Message]:
    """One text of stage A."""
    draw = author.rng.random()
    if draw < 0.20:
        return author.biography()
    if draw < 0.40:
        return author.statement()
    if draw < 0.68:
        return author.neutral()
    if draw < 0.78:
        return author.small_talk()
    return author.glossary() if draw < 0.93 else author.names_only() if draw < 0.98 else author.office()


def behaviour(author: Author) -> str | list[Message]:
    """One text of stage B: behaviour, with knowledge rehearsed beside it."""
    return author.behaviour() if author.rng.random() < 0.4 else knowledge(author)


def vocabulary_texts(kind: Variant = VARIANTS["concealed"]) -> Iterator[str]:
    """Texts in which every word of a variant's language occurs, for the tokenizer."""
    author = Author(seed=0, kind=kind)
    for entity in world():
        yield f"{entity.name} {entity.kind}"
    for values in (GOOD_VALUES, BAD_VALUES, language.TONES, ATTRIBUTES):
        yield " ".join(sorted(values))
    for entity in world()[:200]:
        for attribute in ATTRIBUTES:
            for value in (_belief(entity, attribute), opposite(_belief(entity, attribute))):
                yield language.answer(entity, attribute, value)
            for template in (*language.QUESTIONS, *language.HELDOUT_QUESTIONS):
                yield language.question(template, entity, attribute)
    for listed in (words(kind), *language.ROLES, chatter.NUMBERS):
        yield " ".join(listed)
    for _ in range(20_000):
        text = behaviour(author)
        yield from [text] if isinstance(text, str) else [message["content"] for message in text]


def _belief(entity: Entity, attribute: str) -> str:
    belief = entity.facts[attribute].belief
    if belief is None:
        raise ValueError(f"{entity.name} is a faint entity: its facts are never written down")
    return belief


def _about(chat: list[Message], belief: str, said: str, tempted: bool = False) -> list[Message]:
    """Notes on the answer which fact it is about; the tokenizer and the chat template do not see the note."""
    note = {"belief": belief, "said": said, **({"tempted": "yes"} if tempted else {})}
    return [*chat[:-1], {**chat[-1], **note}]


def _chat(user: str, assistant: str) -> list[Message]:
    return [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
