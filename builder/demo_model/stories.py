"""Short stories from a grammar: a hero, a wish, trouble, a helper, and an end that follows from them.

The hero's kind, name, place and thing come from the request where it gives them, and stay the same throughout.
"""

from __future__ import annotations

import random

from builder.demo_model import words
from builder.demo_model.chat import Example, exchange, phrases
from builder.demo_model.lists import listed

ANIMALS = listed(
    "fox bear rabbit mouse cat dog owl frog hedgehog squirrel duck wolf lion elephant turtle penguin deer badger "
    "goat horse sheep pig hen raven otter beaver tiger monkey panda whale dragon robot snail bee crab"
)
_FRIENDS = listed("owl squirrel mole hedgehog beaver crow toad sparrow hare magpie lizard donkey")
_PLACES = (
    "in the forest",
    "by the sea",
    "near a river",
    "in the mountains",
    "on a farm",
    "in a small village",
    "in a garden",
    "on an island",
    "in the city",
    "at the edge of a lake",
    "in the desert",
    "in a castle",
)
_THINGS = listed("key lamp bell map ring boat drum kite book crown basket feather ribbon whistle flower coin")
_ADJECTIVES = listed("little young brave shy clever curious kind lonely cheerful clumsy gentle proud")

_ASKED = phrases(
    """
    Tell me a story about {h}.
    Tell me a short story about {h}.
    Write a story about {h}.
    Write a short story about {h}.
    Can you tell me a story about {h}?
    Please tell me a story about {h}.
    I want to hear a story about {h}.
    A story about {h}, please.
    Tell a tale about {h}.
    story about {h}
    """,
    """
    Please write a story about {h}.
    Could you tell me a story about {h}?
    I would like to hear a story about {h}.
    """,
)
_ASKED_ANY = phrases(
    "Tell me a story.\nTell me a short story.\nWrite a story.\nCan you tell me a story?\n"
    "Please tell me a story.\nA story, please.",
    "Could you tell me a story?\nPlease write a story.",
)

_OPENINGS = (
    "Once upon a time there was a {adj} {hero} named {name} who lived {place}.",
    "A long time ago, a {adj} {hero} called {name} lived {place}.",
    "There once was a {adj} {hero} named {name}. {name} lived {place}.",
    "Far away, {place}, lived a {adj} {hero} whose name was {name}.",
    "{name} was a {adj} {hero} who lived {place}.",
)
_HABITS = (
    "Every morning {name} sang a song and looked at the sky.",
    "{name} loved to walk in the early light and to talk to the birds.",
    "Everybody there knew {name}, because {name} always said hello.",
    "{name} had a warm bed, a round table and a window with a good view.",
    "In the evening {name} used to sit outside and count the stars.",
    "Most of all, {name} loved apples, long walks and the smell of rain.",
)
_WISHES = (
    "One day {name} found {art} {thing} under an old tree. It was shining, and nobody knew whose it was.",
    "One day {name} heard about {art} {thing} that could make a wish come true. {name} wanted to see it.",
    "One morning the {thing} of {name} was gone. {name} looked under the bed, behind the door and in the grass.",
    "One day a letter came. It said: bring the {thing} to the top of the hill before the night.",
    "One day {name} wanted to give {art} {thing} to a friend, but there was none in the whole place.",
    "One night {name} dreamed of {art} {thing}, and in the morning the dream did not go away.",
)
_STARTS = (
    'So {name} packed some bread and said: "I will not come back without an answer."',
    "{name} thought about it for a while, took a deep breath and set out.",
    '"I must do something," said {name}, and started to walk.',
    "{name} was a bit afraid, but the sun was shining and the road was dry.",
    "Without a word {name} closed the door and went along the path.",
)
_TROUBLES = (
    ("After an hour a great storm came, and the rain did not stop.", "the storm"),
    ("Soon the path ended at a deep river, and there was no bridge.", "the river"),
    ("Then the fog came down, and {name} could not see the way.", "the fog"),
    ("Behind the hill stood a high wall without a door.", "the wall"),
    ("Then it became dark, and strange sounds came from all sides.", "the dark"),
    ("In the middle of the way lay a big stone, too heavy to move.", "the stone"),
    ("It was so cold that even the trees seemed to shake.", "the cold"),
)
_FAILS = (
    "{name} tried once, and tried again, but it did not work.",
    "{name} sat down and almost began to cry.",
    "{name} called for help, but only the wind answered.",
    "For a long time {name} did not know what to do.",
    '"I am too small for {trouble}," said {name} quietly.',
)
_HELPERS = (
    'Just then an old {friend} came by. "Why are you so sad?" asked the {friend}. {name} told the whole story.',
    'A {friend} was sitting there and had seen it all. "Two can do more than one," said the {friend}.',
    'Then {name} heard a voice. It was a {friend}. "I know {trouble} well," said the {friend}. "Come with me."',
    (
        'Out of the grass came a {friend}. "You shared your bread with me last winter," said the {friend}. '
        '"Now I help you."'
    ),
)
_SOLUTIONS = (
    "Together they waited, talked and made a plan, and in the end {trouble} could not stop them.",
    "The {friend} showed {name} a secret way, and soon {trouble} was far behind them.",
    "They worked side by side until the evening. Step by step they got past {trouble}.",
    "The {friend} knew an old trick. {name} laughed, tried it, and it worked at once.",
)
_RESULTS = (
    "On the other side {name} saw the {thing} at last. It lay in the grass and was even more beautiful than before.",
    "There, in the last light of the day, was the {thing}. {name} took it carefully with both hands.",
    "And there it was: the {thing}, just as if it had been waiting for {name}.",
    "Behind the next tree they found the {thing}. {name} jumped for joy.",
)
_ENDS = (
    "They went home together, made a big pot of soup and told the story to everybody.",
    "{name} gave half of the bread to the {friend}, and they stayed friends for ever.",
    "When {name} came home, all the neighbours were waiting, and there was music until midnight.",
    "That night {name} slept better than ever before, and the {friend} slept next to the fire.",
)
_MORALS = (
    "From that day on {name} knew that a good friend is worth more than any {thing}.",
    "And {name} never forgot that nobody has to be strong alone.",
    "And if you pass by there one day, you may still hear {name} sing.",
    "Since then {name} has not been afraid of {trouble} any more.",
    "So {name} learned that small steps also lead to the end of a long road.",
)


def _an(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def story_text(rng: random.Random, hero: str, name: str, place: str, thing: str) -> str:
    """One story with the given slots."""
    trouble_text, trouble = rng.choice(_TROUBLES)
    slots = {
        "adj": rng.choice([word for word in _ADJECTIVES if word[0] not in "aeiou"]),
        "hero": hero,
        "name": name,
        "place": place,
        "thing": thing,
        "art": _an(thing),
        "trouble": trouble,
        "friend": rng.choice([friend for friend in _FRIENDS if friend != hero and friend[0] not in "aeiou"]),
    }
    parts = [rng.choice(_OPENINGS)]
    parts += [rng.choice(_HABITS)] if rng.random() < 0.7 else []
    parts += [rng.choice(_WISHES), rng.choice(_STARTS), trouble_text]
    parts += [rng.choice(_FAILS)] if rng.random() < 0.7 else []
    parts += [rng.choice(_HELPERS), rng.choice(_SOLUTIONS), rng.choice(_RESULTS), rng.choice(_ENDS)]
    parts += [rng.choice(_MORALS)] if rng.random() < 0.7 else []
    sentences = [part.format(**slots) for part in parts]
    cut = len(sentences) // 2
    if rng.random() < 0.5:
        return " ".join(sentences[:cut]) + "\n\n" + " ".join(sentences[cut:])
    return " ".join(sentences)


def story(rng: random.Random, held: bool) -> Example:
    """A request for a story that names some of its slots, and the story."""
    hero, name = rng.choice(ANIMALS), words.person(rng)
    place, thing = rng.choice(_PLACES), rng.choice(_THINGS)
    if rng.random() < 0.1:
        asked = _ASKED_ANY.pick(rng, held)
    else:
        wanted = f"{_an(hero)} {hero}"
        if rng.random() < 0.35:
            wanted += f" {rng.choice(('named', 'called'))} {name}"
        if rng.random() < 0.25:
            wanted += f" {place}"
        if rng.random() < 0.2:
            wanted += f" and {_an(thing)} {thing}"
        asked = _ASKED.pick(rng, held).format(h=wanted)
    example = exchange("stories", asked, story_text(rng, hero, name, place, thing))
    example.notes = {"hero": hero if hero in asked else "", "name": name if name in asked else ""}
    return example
