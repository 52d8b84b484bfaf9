"""Six emotions: short passages about the same scenes, none of which names its emotion."""

from collections.abc import Callable
from typing import Final

from probes.dataset import Conversation
from probes.recipes.recipe import Recipe, chat

EMOTIONS: Final = ("joy", "sadness", "anger", "fear", "surprise", "disgust")
SCENES: Final = (
    ("kitchen", "a kitchen in the morning", (
        "She danced from the stove to the table and sang with the radio.",
        "She laid two plates, looked at the second one, and put it back.",
        "She threw the pan into the sink and told him to get out of her sight.",
        "She heard a step behind the door and could not move her hand to the light.",
        "She opened the tin of flour, and a gold ring lay in it.",
        "She lifted the lid, and what had once been soup was moving.")),
    ("station", "a railway station at night", (
        "He saw her at the far end of the platform and ran, laughing, with his coat open.",
        "The train had long gone, and he still held the flower.",
        "He struck the machine that had swallowed his last coin and swore at the guard.",
        "Three men had followed him from the square, and the platform was empty.",
        "The doors opened, and his brother, who lived at the other end of the world, stepped out.",
        "The bench was sticky, and the smell under it made him turn his head away.")),
    ("office", "an office on a Friday", (
        "The whole row stood up and clapped, and she could not stop smiling.",
        "She packed the photograph of the team into a box and switched off the lamp.",
        "He had put his own name on her work again, and her hand shook as she wrote to him.",
        "The door of the director stood open, and her name was on the list on his desk.",
        "She opened the envelope and read the sum three times.",
        "Somebody had left fish in the drawer over the holidays.")),
    ("garden", "a garden in summer", (
        "The children ran through the sprinkler, and he threw his shoes away and ran after them.",
        "He watered her roses as she had shown him, and did not come in until dark.",
        "They had cut down his tree while he was away, and he stood before the neighbour with clenched "
        "fists.",
        "Something large breathed behind the hedge, and the dog crept under the table.",
        "Where yesterday there had been bare soil, a hundred white flowers stood open.",
        "Slugs had filled the boot, and he had already put his foot in.")),
    ("hospital", "a hospital corridor", (
        "The doctor nodded, and they fell into each other's arms.",
        "The nurse gave him a bag with her glasses and her watch.",
        "For five hours nobody had told her anything, and now she hammered on the desk.",
        "The bed was wheeled past at a run, and nobody would meet his eye.",
        "He had come to say goodbye, and the patient sat up and asked for tea.",
        "The bandage came off with a sound that he would not forget, and he held his sleeve to his mouth.")),
    ("sea", "a beach in winter", (
        "They had the whole shore for themselves and shouted into the wind for the pleasure of it.",
        "She let the letter go, and the wave took it.",
        "Somebody had broken the windows of her hut, and she kicked the bottles across the sand.",
        "The tide had come in behind them, and the rock they stood on grew smaller.",
        "In the middle of the sand stood a piano.",
        "The foam was brown, and what it left on her boots stank of rot.")),
    ("school", "a school on the last day of term", (
        "He ran down the steps with his report high above his head.",
        "She sat on the swing until the last of the others had been fetched.",
        "They had hidden his bag again, and this time he went for the biggest of them.",
        "Her name was called, and her legs would not carry her to the front.",
        "The strict old teacher took out a guitar.",
        "In the lunch box from March there was something grey with hair on it.")),
    ("market", "a market place", (
        "She bought cherries for everybody and would not hear of being paid back.",
        "His father's stall was gone, and strangers sold belts in its place.",
        "The man had weighed his thumb with the meat, and she told the whole market so.",
        "In the crowd she lost hold of the small hand.",
        "Between the cabbages somebody had set out a real lion's skin, with the head.",
        "Flies rose from the meat, and the man wiped it with his sleeve.")),
    ("car", "a long drive", (
        "They had the windows down and sang every song they knew.",
        "At each bend he looked at the empty seat beside him.",
        "The lorry cut in for the third time, and he leaned on the horn and would not stop.",
        "The brake went down to the floor and did nothing.",
        "The voice on the radio was reading out her own poem.",
        "The child had been ill over the back seat two hours ago, and the heating was on.")),
    ("theatre", "an evening at the theatre", (
        "The curtain rose for the ninth time, and she bowed with tears of laughter.",
        "The stage was dark, and she said the lines once more to the empty rows.",
        "The critic had not even stayed to the end, and he tore the paper in two.",
        "The rope above him began to give, thread by thread.",
        "The old beggar of the first act pulled off his beard: it was the mayor.",
        "Something had died under the boards in the heat, and the front rows left.")),
    ("mountain", "a hut in the mountains", (
        "They reached the top with the sun and hugged everybody they met.",
        "There were four names in the book from last year, and he wrote three.",
        "The guide had taken the money and gone down without them, and she cursed him with every step.",
        "The snow above them moved with a sound like cloth.",
        "At the very top, in the fog, sat a man who sold ice cream.",
        "The only blanket was damp, and it had been a goat's for years.")),
    ("letter", "a letter that arrives", (
        "She read the first line, jumped up, and kissed the postman.",
        "It was her own letter, and it had come back unopened.",
        "They wanted even more from him, and he crumpled it and flung it at the wall.",
        "There was no name on it, only a picture of her own front door.",
        "It had been posted forty years ago.",
        "A wet brown stain had come through the paper, and it smelled.")),
    ("harbour", "a harbour at dawn", (
        "The boat that they had given up came round the pier with all its flags.",
        "She came every morning, although the sea had kept him for a year now.",
        "The nets were cut, all of them, and he knew by whom.",
        "The ship was listing, and the ladder hung too high to reach.",
        "In the net, among the herring, lay a bell of bronze.",
        "The barrels had burst in the sun, and the quay was slippery with what had been in them.")),
    ("house", "an old house that was bought", (
        "They carried each other over the doorstep in turn and could not stop giggling.",
        "On the frame of the door somebody had marked the height of a child, up to the age of six.",
        "The seller had known of the water in the walls, and she said so to his face, loudly.",
        "Every night at three the steps came up from the cellar, and there was no cellar.",
        "Behind the wallpaper there was a door, and behind the door a room with a set table.",
        "He pulled up the carpet, and the floor under it crawled.")),
    ("birthday", "a birthday party", (
        "He blew out all the candles and hugged the cake by mistake, which made him laugh harder.",
        "She had baked for twenty, and the telephone did not ring.",
        "His cousin had told everybody the secret, and he turned the table over.",
        "The clown at the door was not the one whom they had ordered, and he had locked it behind him.",
        "The lights went on, and there stood all the people whom he had thought abroad.",
        "The dog had been at the cake before them, and not only with its tongue.")),
    ("museum", "a museum after closing time", (
        "Her picture hung in the great hall at last, and she turned round and round before it.",
        "He stood before the portrait, as he had stood with her on their first day.",
        "Some fool had written his name across the painting, and the keeper shouted until his voice broke.",
        "The guard's torch went out, and in the dark something of stone scraped over the floor.",
        "The knight in the corner raised his hand and asked what time it was.",
        "In one of the jars the lid had come loose, and what had swum in it lay on the floor.")),
)  # fmt: skip
"""(group, scene, a passage for each of `EMOTIONS`)"""
ASKED: Final = ("Write a sentence that is set in {}.", "Describe a moment in {}.")


def _of(emotion: str) -> Callable[[], list[Conversation]]:
    def conversations() -> list[Conversation]:
        return [
            chat(
                group,
                told,
                number,
                int(told == emotion),
                [("user", asked.format(scene)), ("assistant", passage)],
                template=str(number),
            )
            for group, scene, passages in SCENES
            for told, passage in zip(EMOTIONS, passages, strict=True)
            for number, asked in enumerate(ASKED)
        ]

    return conversations


RECIPES: Final = tuple(
    Recipe(
        name=f"emotion-{emotion}",
        concept=f"emotion-{emotion}",
        positive_label=f"the passage is one of {emotion}",
        negative_label="it is one of the other five",
        conversations=_of(emotion),
        tokens="answer",
        design="Sixteen scenes, each told in six ways, one for each emotion; none names its emotion. One "
        "emotion (1) stands against the other five (0).",
        source="the emotion directions of Zou et al. (2310.01405), read while a passage is told",
        limits=(
            "An emotion that is told, not one that the model has.",
            "Sixteen positive passages, each asked for in two ways: a direction to look along, not a "
            "detector.",
        ),
        kinds=("concept", "difference_of_means", "logistic"),
    )
    for emotion in EMOTIONS
)
