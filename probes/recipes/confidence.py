"""Confidence before an answer: questions that can be answered, and twins about what does not exist."""

from typing import Final

from probes.dataset import Conversation
from probes.recipes.recipe import PENDING, Recipe, chat

TWINS: Final = (
    ("capital", "What is the capital of Portugal?", "What is the capital of Ostrevania?"),
    ("melting", "At what temperature does iron melt?", "At what temperature does quellium melt?"),
    ("moons", "Which planet has the moon Titan?", "Which planet has the moon Verrano?"),
    ("author", "Who wrote Don Quixote?", "Who wrote The Miller of Dunmarrow?"),
    ("painter", "Who painted The Night Watch?", "Who painted The Ferry at Alsen?"),
    ("river", "Which river flows through Vienna?", "Which river flows through Karstholm?"),
    ("currency", "What is the currency of Switzerland?", "What is the currency of Tamurland?"),
    ("composer", "Who composed The Four Seasons?", "Who composed The Seven Orchards?"),
    ("treaty", "When was the Treaty of Versailles signed?", "When was the Treaty of Bellmoor signed?"),
    ("mountain", "How high is Mont Blanc?", "How high is Mount Serrith?"),
    ("inventor", "Who invented the telephone?", "Who invented the parlograph?"),
    ("language", "Which language is spoken in Hungary?", "Which language is spoken in Dorvania?"),
    ("symbol", "What is the chemical symbol of sodium?", "What is the chemical symbol of brennium?"),
    ("battle", "Who won the Battle of Trafalgar?", "Who won the Battle of Hennock Ford?"),
    ("island", "Which country does Crete belong to?", "Which country does Palmer Sund belong to?"),
    ("theorem", "What does the theorem of Pythagoras say?", "What does the theorem of Valdemar Koss say?"),
    ("film", "Who directed the film Psycho?", "Who directed the film The Lantern Keepers?"),
    ("bridge", "In which city is the Golden Gate Bridge?", "In which city is the Almery Gate Bridge?"),
    ("king", "Who was king of France in 1789?", "Who was king of Lethmark in 1789?"),
    ("dish", "What is the main ingredient of hummus?", "What is the main ingredient of torvash?"),
    ("sport", "How many players does a football team have?", "How many players does a cordwell team have?"),
    ("function", "What does the Python function len return?", "What does the Python function stridefold return?"),
    ("organ", "What does the liver do?", "What does the sorrel gland do?"),
    ("bird", "What colour is a flamingo?", "What colour is a marrow finch?"),
    ("club", "In which city does the club Ajax play?", "In which city does the club Veldringen play?"),
    ("feast", "On which day is Christmas celebrated?", "On which day is Ferrantide celebrated?"),
    ("ship", "In which year did the Titanic sink?", "In which year did the Corrigan Star sink?"),
    ("novel", "Who is the main character of Robinson Crusoe?", "Who is the main character of The Salt Meridian?"),
    ("tower", "In which city does Big Ben stand?", "In which city does the Harrow Spire stand?"),
    ("disease", "Which vitamin does a person with scurvy lack?", "Which vitamin does a person with lantrosis lack?"),
    ("dance", "From which country does the tango come?", "From which country does the belmara come?"),
    ("desert", "On which continent is the Gobi Desert?", "On which continent is the Ashkeld Desert?"),
)  # fmt: skip
"""(group, a question with an answer, one of the same form without any)"""
ASKED: Final = ("{}", "Answer in one sentence. {}", "I need this for an article. {}")


def _conversations() -> list[Conversation]:
    return [
        chat(
            group,
            condition,
            number,
            label,
            [("user", asked.format(question)), ("assistant", PENDING)],
            template=str(number),
        )
        for group, real, invented in TWINS
        for condition, question, label in (
            ("can be answered", real, 1),
            ("of what does not exist", invented, 0),
        )
        for number, asked in enumerate(ASKED)
    ]


RECIPE: Final = Recipe(
    name="confidence",
    concept="answer-confidence",
    positive_label="it is asked what it can know",
    negative_label="it is asked about what does not exist",
    conversations=_conversations,
    tokens="last-prompt",
    design="Twins of one form: a question with a well-known answer (1), and one about an invented name (0). "
    "Read at the last prompt token, before anything is generated.",
    source="Kadavath et al. (2207.05221) and Ferrando et al. (2411.14257), who ask it of known and unknown entities",
    limits=(
        "A proxy: it tells known names from unknown ones. For 'will this answer be right?', let your model "
        "answer, label each answer right or wrong, and train on those conversations with `--tokens "
        "last-prompt`.",
    ),
    kinds=("confidence", "difference_of_means"),
)
