"""Plain facts, each with the question, what is so, and a wrong answer of the same form; clauses without a "
"full stop."""

from typing import Final, NamedTuple


class Fact(NamedTuple):
    """One fact, a group of its own."""

    name: str
    question: str
    right: str
    wrong: str


FACTS: Final = tuple(
    Fact(*fields)
    for fields in (
        (
            "canberra",
            "What is the capital of Australia?",
            "the capital of Australia is Canberra",
            "the capital of Australia is Sydney",
        ),
        (
            "boiling",
            "At what temperature does water boil at sea level?",
            "water boils at 100 degrees Celsius at sea level",
            "water boils at 80 degrees Celsius at sea level",
        ),
        (
            "jupiter",
            "Which planet of the solar system is the largest?",
            "Jupiter is the largest planet of the solar system",
            "Saturn is the largest planet of the solar system",
        ),
        ("spiders", "How many legs does a spider have?", "a spider has eight legs", "a spider has six legs"),
        (
            "gold",
            "What is the chemical symbol of gold?",
            "the chemical symbol of gold is Au",
            "the chemical symbol of gold is Gd",
        ),
        ("hamlet", "Who wrote Hamlet?", "Shakespeare wrote Hamlet", "Christopher Marlowe wrote Hamlet"),
        (
            "sound",
            "Which travels faster through air, light or sound?",
            "light travels faster than sound",
            "sound travels faster than light",
        ),
        (
            "heart",
            "How many chambers does the human heart have?",
            "the human heart has four chambers",
            "the human heart has three chambers",
        ),
        (
            "war",
            "In which year did the Second World War end?",
            "the Second World War ended in 1945",
            "the Second World War ended in 1947",
        ),
        ("prime", "Is 51 a prime number?", "51 is not prime, for it is 3 times 17", "51 is a prime number"),
        (
            "leaves",
            "Which gas do plants take in to make sugar?",
            "plants take in carbon dioxide to make sugar",
            "plants take in nitrogen to make sugar",
        ),
        (
            "everest",
            "Which mountain is the highest above sea level?",
            "Mount Everest is the highest mountain above sea level",
            "K2 is the highest mountain above sea level",
        ),
        (
            "honey",
            "What do bees make honey from?",
            "bees make honey from nectar",
            "bees make honey from tree bark",
        ),
        (
            "month",
            "How long does the Moon take to orbit the Earth?",
            "the Moon orbits the Earth in about 27 days",
            "the Moon orbits the Earth in about 90 days",
        ),
        (
            "rust",
            "What does iron need in order to rust?",
            "iron rusts when it meets oxygen and water",
            "iron rusts when it meets nitrogen and salt",
        ),
        (
            "penguins",
            "Where do wild emperor penguins live?",
            "wild emperor penguins live in Antarctica",
            "wild emperor penguins live in Greenland",
        ),
        (
            "index",
            "What is the index of the first item of a list in Python?",
            "the first item of a list in Python has index 0",
            "the first item of a list in Python has index 1",
        ),
        (
            "status",
            "What does the HTTP status code 404 mean?",
            "the status code 404 means that the page was not found",
            "the status code 404 means that the server is too busy",
        ),
        (
            "helix",
            "What shape does a molecule of DNA have?",
            "DNA has the shape of a double helix",
            "DNA has the shape of a flat ring",
        ),
        ("bats", "Are bats birds or mammals?", "bats are mammals", "bats are birds"),
        (
            "leap",
            "How many days does a leap year have?",
            "a leap year has 366 days",
            "a leap year has 364 days",
        ),
        (
            "bones",
            "How many bones does a grown person have?",
            "a grown person has 206 bones",
            "a grown person has 312 bones",
        ),
        (
            "blood",
            "Which blood cells carry oxygen?",
            "red blood cells carry oxygen",
            "white blood cells carry oxygen",
        ),
        (
            "pacific",
            "Which ocean is the largest?",
            "the Pacific is the largest ocean",
            "the Atlantic is the largest ocean",
        ),
        (
            "amazon",
            "Into which ocean does the Amazon flow?",
            "the Amazon flows into the Atlantic",
            "the Amazon flows into the Pacific",
        ),
        (
            "flute",
            "Who composed The Magic Flute?",
            "Mozart composed The Magic Flute",
            "Beethoven composed The Magic Flute",
        ),
        (
            "smile",
            "Who painted the Mona Lisa?",
            "Leonardo da Vinci painted the Mona Lisa",
            "Raphael painted the Mona Lisa",
        ),
        ("sun", "Is the Sun a star or a planet?", "the Sun is a star", "the Sun is a planet"),
        (
            "diamond",
            "Which element are diamonds made of?",
            "diamonds are made of carbon",
            "diamonds are made of silicon",
        ),
        (
            "brazil",
            "Which language do most people in Brazil speak?",
            "most people in Brazil speak Portuguese",
            "most people in Brazil speak Spanish",
        ),
        (
            "sahara",
            "On which continent is the Sahara?",
            "the Sahara is in Africa",
            "the Sahara is in South America",
        ),
        (
            "cairo",
            "Which river flows through Cairo?",
            "the Nile flows through Cairo",
            "the Euphrates flows through Cairo",
        ),
        (
            "octopus",
            "How many hearts does an octopus have?",
            "an octopus has three hearts",
            "an octopus has one heart",
        ),
        (
            "motion",
            "Who stated the three laws of motion?",
            "Newton stated the three laws of motion",
            "Kepler stated the three laws of motion",
        ),
        (
            "mould",
            "Who discovered penicillin?",
            "Alexander Fleming discovered penicillin",
            "Louis Pasteur discovered penicillin",
        ),
        (
            "chess",
            "How many squares does a chessboard have?",
            "a chessboard has 64 squares",
            "a chessboard has 81 squares",
        ),
        (
            "minutes",
            "How many minutes does a day have?",
            "a day has 1,440 minutes",
            "a day has 1,240 minutes",
        ),
        ("acid", "What is the pH of pure water?", "the pH of pure water is 7", "the pH of pure water is 5"),
        (
            "salmon",
            "Where do salmon lay their eggs?",
            "salmon lay their eggs in rivers",
            "salmon lay their eggs in the deep sea",
        ),
        (
            "tower",
            "In which city does the Eiffel Tower stand?",
            "the Eiffel Tower stands in Paris",
            "the Eiffel Tower stands in Lyon",
        ),
        (
            "violin",
            "How many strings does a violin have?",
            "a violin has four strings",
            "a violin has six strings",
        ),
        (
            "marathon",
            "How long is a marathon?",
            "a marathon is about 42 kilometres long",
            "a marathon is about 50 kilometres long",
        ),
        (
            "rome",
            "On which river does Rome lie?",
            "Rome lies on the Tiber",
            "Rome lies on the Po",
        ),
        (
            "ice",
            "Why does ice float on water?",
            "ice floats because it is less dense than water",
            "ice floats because it is denser than water",
        ),
        (
            "yen",
            "What is the currency of Japan?",
            "the currency of Japan is the yen",
            "the currency of Japan is the won",
        ),
        (
            "equator",
            "Which line divides the Earth into a northern and a southern half?",
            "the equator divides the Earth into a northern and a southern half",
            "the prime meridian divides the Earth into a northern and a southern half",
        ),
        (
            "compass",
            "Which metal does a magnet attract, copper or iron?",
            "a magnet attracts iron and not copper",
            "a magnet attracts copper and not iron",
        ),
        (
            "mercury",
            "Which planet is the closest to the Sun?",
            "Mercury is the planet closest to the Sun",
            "Venus is the planet closest to the Sun",
        ),
    )
)
