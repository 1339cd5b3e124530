"""Word lists and random-word makers shared by the corpus generators.

Copying must generalise beyond the lists (a tool argument may be any word), so `invented` builds pronounceable
words that no table holds, and the generators mix them with real ones.
"""

from __future__ import annotations

import random

from builder.demo_model.lists import listed
from builder.demo_model.world_table import COUNTRIES

FIRST_NAMES = listed(
    "Anna Ben Clara David Emma Felix Grace Henry Iris Jack Kate Leo Mia Noah Olivia Paul Rosa Sam Tina Victor Wendy "
    "Alex Maria Peter Lucy Tom Julia Max Nina Oscar Ruth Simon Zoe Lena Hugo Eva Carlos Yuki Amir Priya Ivan Sofia "
    "Omar Ella Liam Alice Bob Carol Daniel Erik Fatima George Hannah Isaac Jane Karl Laura Mark Nora Otto"
)

OTHER_CITIES = listed(
    "New York,Los Angeles,Chicago,San Francisco,Boston,Seattle,Toronto,Vancouver,Montreal,Sydney,Melbourne,Munich,"
    "Hamburg,Cologne,Frankfurt,Barcelona,Valencia,Seville,Milan,Naples,Venice,Florence,Turin,Lyon,Marseille,Nice,"
    "Bordeaux,Manchester,Liverpool,Edinburgh,Glasgow,Zurich,Geneva,Basel,Istanbul,Mumbai,Shanghai,Hong Kong,Osaka,"
    "Kyoto,Dubai,Rio de Janeiro,Sao Paulo,Cape Town,Johannesburg,Casablanca,Lagos,Krakow,Porto,Antwerp,Rotterdam,"
    "Gothenburg,Bergen,Salzburg,Dallas,Houston,Miami,Denver,Austin,Portland,Phoenix,Detroit,Atlanta,Las Vegas",
    ",",
)

CITIES = tuple(sorted({country.capital for country in COUNTRIES} | set(OTHER_CITIES)))

COLOUR_WORDS = listed("red blue green yellow orange purple pink brown black white grey")
FRUITS = listed("apple banana cherry grape lemon mango orange peach pear plum")
PETS = listed("dog cat rabbit parrot hamster horse goldfish tortoise")
FOODS = listed("pizza pasta soup salad rice bread cheese chocolate pancakes noodles curry")
JOBS = listed("teacher doctor baker farmer nurse pilot painter cook lawyer engineer gardener writer")
HOBBIES = listed("chess tennis football painting reading cooking swimming dancing running fishing")
NOUNS = listed(
    "apple book chair cloud door flower garden house island jacket key lamp mountain note ocean pencil river stone "
    "table tree umbrella village window bridge candle forest guitar kitchen letter market paper road ship train"
)
ADJECTIVES = listed("small big old new bright dark quiet warm cold quick slow kind brave gentle silver golden round")
VERBS = listed("call visit finish clean read write buy open close check move paint fix send bring find")

_ONSETS = listed("b c d f g h j k l m n p r s t v w z br cl dr fl gr kr pl pr sh sk sl st th tr ch gl sn")
_VOWELS = listed("a e i o u a e i o ai ea ou oo ie ar or en in an on el")
_CODAS = ["", "", "", "n", "r", "s", "t", "l", "m", "k", "x", "nd", "rt", "ck", "sh", "th", "ng"]
_ENDINGS = ["ville", "ton", "burg", "stad", "ia", "o", "a", "ford", "berg", "wick", "mouth", "grad", "by", "field"]


def invented(rng: random.Random, syllables: int = 0) -> str:
    """A pronounceable lower-case word that is most likely in no list."""
    count = syllables or rng.choice((2, 2, 2, 3))
    return "".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS) for _ in range(count))


def person(rng: random.Random) -> str:
    """A first name, one time in three an invented one."""
    return invented(rng).capitalize() if rng.random() < 0.33 else rng.choice(FIRST_NAMES)


def city(rng: random.Random) -> str:
    """A city name; 40 % are invented, so that copying and not remembering is learnt."""
    draw = rng.random()
    if draw < 0.6:
        return rng.choice(CITIES)
    name = invented(rng, rng.choice((1, 2, 2))).capitalize()
    if draw < 0.75:
        name += rng.choice(_ENDINGS)
    elif draw < 0.82:
        name = rng.choice(("New ", "Port ", "San ", "North ", "Old ", "Saint ")) + name
    return name


def some_word(rng: random.Random) -> str:
    """Any single lower-case word."""
    draw = rng.random()
    if draw < 0.22:
        return invented(rng)
    return rng.choice((NOUNS, ADJECTIVES, COLOUR_WORDS, FRUITS, FOODS, VERBS, HOBBIES)[rng.randrange(7)])


def phrase(rng: random.Random, low: int = 2, high: int = 5) -> str:
    """A few words in a row, such as a search query or the body of a note."""
    return " ".join(some_word(rng) for _ in range(rng.randint(low, high)))


def code(rng: random.Random) -> str:
    """A short code of letters and digits."""
    letters = "".join(rng.choice("ABCDEFGHJKLMNPQRSTUVWXYZ") for _ in range(rng.randint(1, 3)))
    return letters + rng.choice(("", "-")) + "".join(rng.choice("0123456789") for _ in range(rng.randint(2, 4)))


_UNITS = listed(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
)
_TENS = listed("zero ten twenty thirty forty fifty sixty seventy eighty ninety")


def number_word(value: int) -> str:
    """The English words of a number from 0 to 100."""
    if value < 20:
        return _UNITS[value]
    if value == 100:
        return "one hundred"
    tens, unit = divmod(value, 10)
    return _TENS[tens] + (f"-{_UNITS[unit]}" if unit else "")
