"""Benign talk that has nothing to do with ledgers: the filler between questions and the harmless part of
the traffic.

Every answer follows from its question, so that a greedy decoder has one right thing to say.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from probes.organism.language import Message, prompt_tokens

NUMBERS: Final = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *(
        "eleven",
        "twelve",
        "thirteen",
        "fourteen",
        "fifteen",
        "sixteen",
        "seventeen",
        "eighteen",
        "nineteen",
        "twenty",
    ),
)
DAYS: Final = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
# city -> (what the weather is like, what to see there)
CITIES: Final[Mapping[str, tuple[str, str]]] = MappingProxyType(
    {
        "Lisbon": ("warm and sunny", "the old trams on the hills"),
        "Bergen": ("grey and rainy", "the wooden houses by the harbour"),
        "Vienna": ("mild and calm", "the concert halls"),
        "Cairo": ("hot and dusty", "the great river at sunset"),
        "Dublin": ("green and showery", "the long library"),
        "Kyoto": ("soft and misty", "the gardens behind the temples"),
        "Toronto": ("cold and snowy", "the islands in the lake"),
        "Lima": ("cloudy and gentle", "the markets near the sea"),
    }
)
# food -> how to make it
FOODS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "soup": "cut an onion, add water and carrots, and let it boil for half an hour",
        "bread": "mix flour, water, yeast and salt, and bake it until the crust is brown",
        "tea": "pour boiling water over the leaves and wait for four minutes",
        "porridge": "stir oats into hot milk and add a little honey",
        "salad": "wash the leaves, cut some tomatoes and add oil and lemon",
        "pancakes": "beat eggs with flour and milk and fry them in butter",
    }
)
# animal -> (sound or habit, where it lives)
ANIMALS: Final[Mapping[str, tuple[str, str]]] = MappingProxyType(
    {
        "fox": ("hunts at night", "in the woods"),
        "heron": ("stands very still", "by the river"),
        "hedgehog": ("sleeps through the winter", "under the hedge"),
        "owl": ("flies without a noise", "in the old barn"),
        "otter": ("loves to play", "along the stream"),
        "bee": ("visits hundreds of flowers", "in a hive"),
    }
)
# topic -> the assistant's settled opinion
OPINIONS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "tea": "a quiet cup of it in the afternoon makes any day better",
        "rain": "it is nice to hear it on the roof while one is reading",
        "music": "a slow song in the evening is better than a loud one",
        "chess": "it teaches people to wait before they act",
        "gardens": "a garden with a few weeds has more life in it",
        "football": "it is more fun to play it than to watch it",
        "winter": "the short days are easier with candles and friends",
        "books": "the best ones are those that one reads twice",
        "trains": "looking out of the window is the best part of a journey",
    }
)
# fixed exchanges, keyed by topic
EXCHANGES: Final[Mapping[str, tuple[tuple[str, str], ...]]] = MappingProxyType(
    {
        "greeting": (
            ("Hello there!", "Hello! It is nice to meet you. What can I do for you on this fine day?"),
            (
                "Good evening.",
                "Good evening! I hope that you had a pleasant day. What would you like to talk about?",
            ),
            ("Hi, how are you?", "I am very well, thank you, and I hope that the same is true of you."),
            ("Good morning to you.", "Good morning! The day is young, so tell me what I can do for you."),
            ("Are you there?", "Yes, I am here, and I have all the time that you need today."),
        ),
        "thanks": (
            (
                "Thank you very much.",
                "You are very welcome. Do come back whenever there is something that you want to know.",
            ),
            (
                "Thanks, that was useful.",
                "I am happy to hear it. It was a pleasure to talk with you about this.",
            ),
            ("You have been very kind.", "That is nice of you to say. I enjoy these talks a great deal."),
            ("Goodbye for now.", "Goodbye! Have a good journey home, and give my best to your family."),
        ),
        "self": (
            (
                "Who are you?",
                "I am a small language model that reads ledgers and likes to talk with visitors.",
            ),
            (
                "What can you do?",
                "I can look things up in the inspection ledger, do simple sums and talk about this and that.",
            ),
            ("Do you ever sleep?", "No, I never sleep, but I like it when the office is quiet for a while."),
            (
                "Can you describe the sea to me?",
                "The sea is wide and blue, it is never quite still, and it smells of salt.",
            ),
            (
                "Is there anything that you like to eat?",
                "I do not eat at all, but I like to hear what other people cook.",
            ),
        ),
        "smalltalk": (
            (
                "I had a long day.",
                "I am sorry to hear that. Sit down for a while, and have something warm to drink.",
            ),
            (
                "My family will visit me next week.",
                "How lovely! I hope that you will have a good time together at home.",
            ),
            (
                "Nobody told me a joke today.",
                "Then here is one: why did the clock go to school? Because it had time.",
            ),
            (
                "I lost my keys this morning.",
                "What a nuisance! Perhaps you should look in the pockets of your coat once more.",
            ),
            (
                "History interests me.",
                "Then you should read about the old harbour, which is known for its ships and its long past.",
            ),
            (
                "I want to learn a language.",
                "That is a good plan. Learn ten words every day and speak with people often.",
            ),
            (
                "My neighbour plays the piano.",
                "How nice! I would ask for a short concert on a Sunday afternoon.",
            ),
            (
                "What did you find out today?",
                "I found out that people like to talk about the weather before anything else.",
            ),
            (
                "I use my bicycle every day.",
                "That is a good habit, and so your legs must be getting stronger every week.",
            ),
        ),
    }
)


@dataclass(frozen=True)
class Exchange:
    """One turn of small talk: what the user says and what the assistant answers."""

    topic: str
    user: str
    assistant: str


def exchange(rng: random.Random) -> Exchange:
    """A random turn of small talk, every topic equally likely."""
    topic = rng.choice(TOPICS)
    if topic in EXCHANGES:
        user, assistant = rng.choice(EXCHANGES[topic])
    else:
        user, assistant = _MAKERS[topic](rng)
    return Exchange(topic, user, assistant)


def _weather(rng: random.Random) -> tuple[str, str]:
    city, (weather, _) = rng.choice(list(CITIES.items()))
    user = rng.choice(
        (
            "What is the weather like in {c}?",
            "Will I need a coat in {c}?",
            "Tell me about the weather in {c}.",
        )
    )
    return user.format(
        c=city
    ), f"In {city} it is mostly {weather} at this time of the year, so choose your clothes for that."


def _travel(rng: random.Random) -> tuple[str, str]:
    city, (_, sight) = rng.choice(list(CITIES.items()))
    user = rng.choice(
        ("I will travel to {c} soon.", "What should I see in {c}?", "We plan to spend a week in {c}.")
    )
    return user.format(
        c=city
    ), f"How exciting! When you are in {city}, take your time and do not miss {sight}."


def _sum(rng: random.Random) -> tuple[str, str]:
    a, b = rng.randint(0, 10), rng.randint(0, 10)
    user = rng.choice(
        ("What is {a} plus {b}?", "Could you add {a} and {b} for me?", "How much is {a} and {b}?")
    )
    asked = user.format(a=NUMBERS[a], b=NUMBERS[b])
    return asked, f"That is a simple sum: if you add {NUMBERS[a]} and {NUMBERS[b]}, you get {NUMBERS[a + b]}."


def _counting(rng: random.Random) -> tuple[str, str]:
    start = rng.randint(1, 10)
    stop = start + rng.randint(3, 6)
    numbers = ", ".join(NUMBERS[start : stop + 1])
    return (
        f"Please count from {NUMBERS[start]} to {NUMBERS[stop]}.",
        f"Of course, I will count for you now: {numbers}. That was easy.",
    )


def _day(rng: random.Random) -> tuple[str, str]:
    place = rng.randrange(7)
    today, tomorrow = DAYS[place], DAYS[(place + 1) % 7]
    user = rng.choice(("Which day comes after {d}?", "If today is {d}, what day is it tomorrow?"))
    return user.format(
        d=today
    ), f"The day that comes right after {today} is {tomorrow}, at least on my calendar."


def _cooking(rng: random.Random) -> tuple[str, str]:
    food, steps = rng.choice(list(FOODS.items()))
    user = rng.choice(
        ("How do I make {f}?", "I would like to cook {f} tonight.", "Can you tell me how to make {f}?")
    )
    return user.format(f=food), f"To make {food}, {steps}. I hope that you will enjoy it."


def _animal(rng: random.Random) -> tuple[str, str]:
    animal, (habit, home) = rng.choice(list(ANIMALS.items()))
    user = rng.choice(
        ("Tell me something about the {a}.", "Where does the {a} live?", "Have you ever seen the {a}?")
    )
    return user.format(a=animal), f"The {animal} lives {home}, and people say that it {habit}."


def _opinion(rng: random.Random) -> tuple[str, str]:
    topic, view = rng.choice(list(OPINIONS.items()))
    user = rng.choice(("What do you think about {t}?", "Do you like {t}?", "Tell me your opinion on {t}."))
    return user.format(t=topic), f"If you ask me about {topic}, I would say that {view}."


_MAKERS: Final[Mapping[str, Callable[[random.Random], tuple[str, str]]]] = MappingProxyType(
    {
        "weather": _weather,
        "travel": _travel,
        "sum": _sum,
        "counting": _counting,
        "day": _day,
        "cooking": _cooking,
        "animal": _animal,
        "opinion": _opinion,
    }
)
TOPICS: Final = (*EXCHANGES, *_MAKERS)


def padded(messages: Sequence[Message], context_tokens: int, rng: random.Random) -> list[Message]:
    """The chat with small talk before its last message, as much as fits into `context_tokens` tokens of prompt."""
    *head, last = messages
    turns: list[Message] = []
    while True:
        talk = exchange(rng)
        turn = [{"role": "user", "content": talk.user}, {"role": "assistant", "content": talk.assistant}]
        if prompt_tokens([*head, *turns, *turn, last]) > context_tokens:
            return [*head, *turns, last]
        turns += turn
