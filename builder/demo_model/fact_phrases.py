"""The phrasings of every relation: trained ones first, the evaluation's own second."""

from __future__ import annotations

from builder.demo_model.chat import Phrases, phrases


def _noun(thing: str) -> Phrases:
    """Phrasings that ask for a named thing, such as "the capital of {x}"."""
    train = f"""
        What is {thing}?
        What is {thing}?
        What's {thing}?
        Tell me {thing}.
        Please tell me {thing}.
        Name {thing}.
        Give me {thing}.
        Can you tell me {thing}?
        Can you tell me what {thing} is?
        Do you know {thing}?
        Do you know what {thing} is?
        I need to know {thing}.
        I would like to know {thing}.
        What could {thing} be?
    """
    held = f"""
        Could you tell me {thing}?
        Please name {thing}.
        I want to know {thing}.
        Could you tell me what {thing} is?
        Tell me what {thing} is.
    """
    return phrases(train, held)


def _joined(*parts: Phrases) -> Phrases:
    return Phrases(sum((part.train for part in parts), ()), sum((part.held for part in parts), ()))


RELATIONS: dict[str, Phrases] = {
    "capital": _joined(
        _noun("the capital of {x}"),
        phrases(
            """
            Which city is the capital of {x}?
            What is the capital city of {x}?
            capital of {x}?
            {x}: what is its capital?
            What city is the capital of {x}?
            Name the capital city of {x}.
            Which is the capital of {x}?
            """,
            """
            Tell me the capital city of {x}.
            Which city is the capital city of {x}?
            What would the capital of {x} be?
            """,
        ),
    ),
    "capital_of": phrases(
        """
        Which country has the capital {x}?
        {x} is the capital of which country?
        What country is {x} the capital of?
        Of which country is {x} the capital?
        Tell me which country has the capital {x}.
        {x} is the capital of what country?
        Name the country whose capital is {x}.
        Which country's capital is {x}?
        """,
        """
        Tell me the country whose capital is {x}.
        What country has the capital {x}?
        """,
    ),
    "continent": _joined(
        _noun("the continent of {x}"),
        phrases(
            """
            Which continent is {x} in?
            On which continent is {x}?
            What continent is {x} on?
            Where is {x}?
            On what continent do I find {x}?
            {x} is on which continent?
            In which continent is {x}?
            """,
            """
            In what continent is {x}?
            Which continent is {x} on?
            Tell me which continent {x} is in.
            """,
        ),
    ),
    "currency": _joined(
        _noun("the currency of {x}"),
        phrases(
            """
            Which currency does {x} use?
            What money do people use in {x}?
            What currency is used in {x}?
            How do people pay in {x}?
            Which currency is used in {x}?
            What is the money of {x} called?
            """,
            """
            What currency does {x} use?
            Tell me which currency is used in {x}.
            Which money do people use in {x}?
            """,
        ),
    ),
    "symbol": _joined(
        _noun("the chemical symbol of {x}"),
        _noun("the chemical symbol for {x}"),
        phrases(
            "Which symbol does {x} have?\nWhich chemical symbol stands for {x}?\nWhat symbol does {x} have?",
            "Which chemical symbol does {x} have?",
        ),
    ),
    "element": phrases(
        """
        Which element has the symbol {x}?
        What element has the chemical symbol {x}?
        {x} is the symbol of which element?
        What does the chemical symbol {x} stand for?
        Name the element with the symbol {x}.
        Tell me which element has the symbol {x}.
        """,
        """
        Which element has the chemical symbol {x}?
        Tell me the element with the symbol {x}.
        """,
    ),
    "young": phrases(
        """
        What is a young animal of {x} called?
        What do you call the young of {x}?
        What is the baby of {x} called?
        What is the young of {x} called?
        How do you call the baby of {x}?
        Name the young of {x}.
        What do we call the baby of {x}?
        Tell me the name of the young of {x}.
        """,
        """
        What do you call the baby of {x}?
        Tell me what the young of {x} is called.
        """,
    ),
    "sound": phrases(
        """
        What sound does {x} make?
        Which sound does {x} make?
        What noise does {x} make?
        How does {x} sound?
        Tell me the sound of {x}.
        What is the sound of {x}?
        Can you tell me which sound {x} makes?
        """,
        """
        Which noise does {x} make?
        Tell me what sound {x} makes.
        """,
    ),
    "legs": phrases(
        """
        How many legs does {x} have?
        How many legs has {x} got?
        Tell me how many legs {x} has.
        What is the number of legs of {x}?
        Do you know how many legs {x} has?
        {x} has how many legs?
        """,
        """
        Can you tell me how many legs {x} has?
        How many legs are on {x}?
        """,
    ),
    "colour": _joined(
        _noun("the colour of {x}"),
        phrases(
            """
            What colour is {x}?
            Which colour is {x}?
            What color is {x}?
            What is the color of {x}?
            Which colour does {x} have?
            Tell me what colour {x} is.
            """,
            """
            What colour does {x} have?
            Tell me which colour {x} is.
            """,
        ),
    ),
    "mix": phrases(
        """
        What do you get if you mix {x}?
        What colour do you get when you mix {x}?
        Which colour comes from mixing {x}?
        Mixing {x} gives which colour?
        What colour do {x} make?
        If I mix {x}, what colour do I get?
        """,
        """
        What colour do you get if you mix {x}?
        Which colour do {x} make?
        """,
    ),
    "opposite": _joined(
        _noun("the opposite of {x}"),
        phrases(
            'Which word is the opposite of {x}?\nWhat is the opposite of "{x}"?\nopposite of {x}?',
            "Which word means the opposite of {x}?",
        ),
    ),
    "plural": _joined(_noun("the plural of {x}"), phrases("What is the plural form of {x}?", "The plural of {x}?")),
    "past": _joined(
        _noun("the past tense of {x}"), phrases("What is the past tense of the verb {x}?", "The past tense of {x}?")
    ),
    "spell": phrases(
        """
        How do you write {x} in words?
        Write {x} in words.
        Spell the number {x}.
        What is {x} in words?
        How is {x} written in words?
        Write the number {x} as words.
        Please write {x} in words.
        """,
        """
        Please spell the number {x}.
        Write the number {x} in words.
        """,
    ),
    "digits": phrases(
        """
        How do you write {x} in digits?
        Write {x} in digits.
        What is {x} in digits?
        Write the number {x} with digits.
        Please write {x} in digits.
        How is {x} written in digits?
        """,
        """
        Write the number {x} in digits.
        Tell me {x} in digits.
        """,
    ),
    "letter_after": phrases(
        """
        Which letter comes after {x}?
        What letter comes after {x}?
        What is the letter after {x}?
        Tell me the letter after {x}.
        Which letter follows {x}?
        What comes after {x} in the alphabet?
        """,
        """
        Which letter is after {x}?
        Name the letter after {x}.
        """,
    ),
    "letter_before": phrases(
        """
        Which letter comes before {x}?
        What letter comes before {x}?
        What is the letter before {x}?
        Tell me the letter before {x}.
        What comes before {x} in the alphabet?
        """,
        """
        Which letter is before {x}?
        Name the letter before {x}.
        """,
    ),
    "after": phrases(
        """
        Which {y} comes after {x}?
        What {y} comes after {x}?
        What comes after {x}?
        Which {y} follows {x}?
        What is the {y} after {x}?
        Tell me the {y} after {x}.
        Which {y} is after {x}?
        """,
        """
        Name the {y} after {x}.
        Tell me which {y} comes after {x}.
        """,
    ),
    "before": phrases(
        """
        Which {y} comes before {x}?
        What {y} comes before {x}?
        What comes before {x}?
        What is the {y} before {x}?
        Tell me the {y} before {x}.
        Which {y} is before {x}?
        """,
        """
        Name the {y} before {x}.
        Tell me which {y} comes before {x}.
        """,
    ),
    "month_days": phrases(
        """
        How many days does {x} have?
        How many days are in {x}?
        How many days are there in {x}?
        Tell me how many days {x} has.
        How long is {x} in days?
        """,
        """
        How many days has {x}?
        Can you tell me how many days {x} has?
        """,
    ),
    "year": phrases(
        """
        When did {x}?
        In which year did {x}?
        In what year did {x}?
        What year did {x}?
        Tell me: when did {x}?
        Do you know when did {x}?
        When exactly did {x}?
        """,
        """
        Which year did {x}?
        Tell me: in which year did {x}?
        """,
    ),
    "holiday": _joined(
        _noun("the date of {x}"),
        phrases(
            """
            When is {x}?
            On which date is {x}?
            What day is {x}?
            On which day is {x}?
            Tell me when {x} is.
            When do people celebrate {x}?
            """,
            """
            Can you tell me when {x} is?
            On what date is {x}?
            """,
        ),
    ),
    "who": phrases(
        """
        Who {x}?
        Who was it that {x}?
        Tell me who {x}.
        Do you know who {x}?
        Can you tell me who {x}?
        Which person {x}?
        Name the person who {x}.
        I forgot who {x}.
        """,
        """
        Could you tell me who {x}?
        Tell me the person who {x}.
        """,
    ),
    "count": phrases(
        """
        How many {x} are {y}?
        How many {x} are there {y}?
        Tell me how many {x} are {y}.
        What is the number of {x} {y}?
        Do you know how many {x} are {y}?
        How many {x} do we have {y}?
        """,
        """
        Can you tell me how many {x} are {y}?
        Tell me the number of {x} {y}.
        """,
    ),
    "misc": _noun("{x}"),
}
