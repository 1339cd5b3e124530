"""Small general-knowledge tables of the demo model's corpus, one "key|value" line each."""

from __future__ import annotations

from builder.demo_model.lists import listed


def _pairs(text: str) -> tuple[tuple[str, str], ...]:
    out = []
    for line in text.strip().splitlines():
        key, value = line.split("|")
        out.append((key.strip(), value.strip()))
    return tuple(out)


ELEMENTS = _pairs("""
hydrogen|H
helium|He
lithium|Li
beryllium|Be
boron|B
carbon|C
nitrogen|N
oxygen|O
fluorine|F
neon|Ne
sodium|Na
magnesium|Mg
aluminium|Al
silicon|Si
phosphorus|P
sulfur|S
chlorine|Cl
argon|Ar
potassium|K
calcium|Ca
titanium|Ti
chromium|Cr
manganese|Mn
iron|Fe
cobalt|Co
nickel|Ni
copper|Cu
zinc|Zn
arsenic|As
bromine|Br
krypton|Kr
silver|Ag
tin|Sn
iodine|I
xenon|Xe
tungsten|W
platinum|Pt
gold|Au
mercury|Hg
lead|Pb
radium|Ra
uranium|U
plutonium|Pu
""")

YOUNG = _pairs("""
dog|puppy
cat|kitten
cow|calf
horse|foal
sheep|lamb
goat|kid
pig|piglet
hen|chick
duck|duckling
goose|gosling
swan|cygnet
bear|cub
lion|cub
fox|cub
deer|fawn
rabbit|kit
kangaroo|joey
frog|tadpole
owl|owlet
eagle|eaglet
seal|pup
wolf|pup
whale|calf
elephant|calf
hare|leveret
butterfly|caterpillar
spider|spiderling
""")

SOUNDS = _pairs("""
dog|barks
cat|meows
cow|moos
horse|neighs
sheep|bleats
pig|oinks
hen|clucks
rooster|crows
duck|quacks
goose|honks
lion|roars
wolf|howls
frog|croaks
owl|hoots
bee|buzzes
snake|hisses
mouse|squeaks
crow|caws
donkey|brays
turkey|gobbles
pigeon|coos
cricket|chirps
monkey|chatters
elephant|trumpets
bear|growls
""")

LEGS = _pairs("""
spider|8
dog|4
cat|4
horse|4
bird|2
ant|6
bee|6
beetle|6
fly|6
crab|10
lobster|10
scorpion|8
snake|0
fish|0
person|2
hen|2
cow|4
frog|4
lizard|4
kangaroo|2
""")

COLOURS = _pairs("""
the sky|blue
grass|green
snow|white
coal|black
blood|red
a lemon|yellow
a banana|yellow
a carrot|orange
an orange|orange
a ripe tomato|red
a strawberry|red
a cherry|red
a plum|purple
an aubergine|purple
lavender|purple
milk|white
salt|white
sugar|white
chocolate|brown
coffee|brown
wood|brown
a polar bear|white
a crow|black
a raven|black
a flamingo|pink
a frog|green
a leaf|green
an elephant|grey
a mouse|grey
the sun|yellow
the sea|blue
an emerald|green
a ruby|red
a sapphire|blue
a panda|black and white
a zebra|black and white
a cucumber|green
broccoli|green
a fire engine|red
a pig|pink
""")

MIXES = _pairs("""
red and yellow|orange
blue and yellow|green
red and blue|purple
red and white|pink
black and white|grey
red and green|brown
blue and white|light blue
""")

OPPOSITES = _pairs("""
hot|cold
big|small
tall|short
fast|slow
light|dark
happy|sad
up|down
left|right
in|out
old|new
rich|poor
hard|soft
high|low
day|night
open|closed
wet|dry
full|empty
early|late
loud|quiet
strong|weak
good|bad
clean|dirty
near|far
thick|thin
true|false
first|last
wide|narrow
deep|shallow
sweet|sour
begin|end
love|hate
win|lose
push|pull
buy|sell
give|take
black|white
north|south
east|west
summer|winter
front|back
inside|outside
above|below
before|after
always|never
more|less
many|few
smooth|rough
sharp|blunt
brave|cowardly
easy|difficult
cheap|expensive
safe|dangerous
asleep|awake
alive|dead
polite|rude
noisy|silent
friend|enemy
question|answer
success|failure
arrive|leave
laugh|cry
float|sink
forget|remember
accept|refuse
ancient|modern
""")

COUNTS = _pairs("""
How many days are in a week?|There are 7 days in a week.
How many days are in a year?|There are 365 days in a year.
How many days are in a leap year?|There are 366 days in a leap year.
How many months are in a year?|There are 12 months in a year.
How many weeks are in a year?|There are 52 weeks in a year.
How many hours are in a day?|There are 24 hours in a day.
How many minutes are in an hour?|There are 60 minutes in an hour.
How many seconds are in a minute?|There are 60 seconds in a minute.
How many seasons are in a year?|There are 4 seasons in a year.
How many years are in a decade?|There are 10 years in a decade.
How many years are in a century?|There are 100 years in a century.
How many years are in a millennium?|There are 1000 years in a millennium.
How many letters are in the alphabet?|There are 26 letters in the alphabet.
How many vowels are in the alphabet?|There are 5 vowels in the alphabet.
How many sides are in a triangle?|There are 3 sides in a triangle.
How many sides are in a square?|There are 4 sides in a square.
How many sides are in a pentagon?|There are 5 sides in a pentagon.
How many sides are in a hexagon?|There are 6 sides in a hexagon.
How many sides are in an octagon?|There are 8 sides in an octagon.
How many planets are in the solar system?|There are 8 planets in the solar system.
How many colours are in a rainbow?|There are 7 colours in a rainbow.
How many cards are in a deck?|There are 52 cards in a deck.
How many players are in a football team?|There are 11 players in a football team.
How many strings are on a guitar?|There are 6 strings on a guitar.
How many strings are on a violin?|There are 4 strings on a violin.
How many keys are on a piano?|There are 88 keys on a piano.
How many squares are on a chessboard?|There are 64 squares on a chessboard.
How many fingers are on a hand?|There are 5 fingers on a hand.
How many teeth are in an adult mouth?|There are 32 teeth in an adult mouth.
How many bones are in the human body?|There are 206 bones in the human body.
How many eggs are in a dozen?|There are 12 eggs in a dozen.
How many grams are in a kilogram?|There are 1000 grams in a kilogram.
How many metres are in a kilometre?|There are 1000 metres in a kilometre.
How many centimetres are in a metre?|There are 100 centimetres in a metre.
How many cents are in a dollar?|There are 100 cents in a dollar.
How many continents are in the world?|There are 7 continents in the world.
How many oceans are in the world?|There are 5 oceans in the world.
How many bits are in a byte?|There are 8 bits in a byte.
How many wheels are on a car?|There are 4 wheels on a car.
How many wheels are on a bicycle?|There are 2 wheels on a bicycle.
How many wheels are on a tricycle?|There are 3 wheels on a tricycle.
How many arms are on an octopus?|There are 8 arms on an octopus.
How many degrees are in a circle?|There are 360 degrees in a circle.
""")

YEARS = _pairs("""
the French Revolution begin|The French Revolution began in 1789.
the First World War begin|The First World War began in 1914.
the First World War end|The First World War ended in 1918.
the Second World War begin|The Second World War began in 1939.
the Second World War end|The Second World War ended in 1945.
the Berlin Wall fall|The Berlin Wall fell in 1989.
people first land on the Moon|People first landed on the Moon in 1969.
Columbus reach America|Columbus reached America in 1492.
the Titanic sink|The Titanic sank in 1912.
the United States become independent|The United States became independent in 1776.
the Great Fire of London happen|The Great Fire of London happened in 1666.
the Battle of Hastings happen|The Battle of Hastings happened in 1066.
the Battle of Waterloo happen|The Battle of Waterloo happened in 1815.
the Magna Carta appear|The Magna Carta appeared in 1215.
the Soviet Union end|The Soviet Union ended in 1991.
India become independent|India became independent in 1947.
the Eiffel Tower open|The Eiffel Tower opened in 1889.
the Suez Canal open|The Suez Canal opened in 1869.
the Panama Canal open|The Panama Canal opened in 1914.
the first modern Olympic Games happen|The first modern Olympic Games happened in 1896.
the first powered flight happen|The first powered flight happened in 1903.
the first satellite fly|The first satellite flew in 1957.
the first person fly into space|The first person flew into space in 1961.
the American Civil War begin|The American Civil War began in 1861.
the Russian Revolution happen|The Russian Revolution happened in 1917.
Mozart die|Mozart died in 1791.
Napoleon die|Napoleon died in 1821.
Shakespeare die|Shakespeare died in 1616.
Einstein die|Einstein died in 1955.
the Western Roman Empire fall|The Western Roman Empire fell in 476.
Constantinople fall|Constantinople fell in 1453.
""")

HOLIDAYS = _pairs("""
Christmas Day|25 December
Christmas Eve|24 December
Boxing Day|26 December
New Year's Day|1 January
New Year's Eve|31 December
Valentine's Day|14 February
Halloween|31 October
Saint Patrick's Day|17 March
April Fools' Day|1 April
Labour Day|1 May
Bastille Day|14 July
Earth Day|22 April
Women's Day|8 March
Pi Day|14 March
""")

MONTHS = (
    ("January", 31),
    ("February", 28),
    ("March", 31),
    ("April", 30),
    ("May", 31),
    ("June", 30),
    ("July", 31),
    ("August", 31),
    ("September", 30),
    ("October", 31),
    ("November", 30),
    ("December", 31),
)

WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

ORDINALS = tuple(listed("first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth"))

PLANETS = tuple(listed("Mercury Venus Earth Mars Jupiter Saturn Uranus Neptune"))

WHO = _pairs("""
wrote Hamlet|William Shakespeare
wrote Romeo and Juliet|William Shakespeare
wrote Macbeth|William Shakespeare
wrote Don Quixote|Miguel de Cervantes
wrote War and Peace|Leo Tolstoy
wrote Anna Karenina|Leo Tolstoy
wrote Crime and Punishment|Fyodor Dostoevsky
wrote Pride and Prejudice|Jane Austen
wrote Frankenstein|Mary Shelley
wrote Dracula|Bram Stoker
wrote Oliver Twist|Charles Dickens
wrote Moby Dick|Herman Melville
wrote Faust|Johann Wolfgang von Goethe
wrote the Divine Comedy|Dante Alighieri
wrote the Odyssey|Homer
wrote Les Miserables|Victor Hugo
wrote Treasure Island|Robert Louis Stevenson
wrote Jane Eyre|Charlotte Bronte
wrote The Little Prince|Antoine de Saint-Exupery
painted the Mona Lisa|Leonardo da Vinci
painted The Starry Night|Vincent van Gogh
painted Guernica|Pablo Picasso
painted The Scream|Edvard Munch
painted the Night Watch|Rembrandt
painted the Sistine Chapel|Michelangelo
composed the Ninth Symphony|Ludwig van Beethoven
composed The Magic Flute|Wolfgang Amadeus Mozart
composed The Four Seasons|Antonio Vivaldi
composed Swan Lake|Pyotr Tchaikovsky
composed the Messiah|George Frideric Handel
invented the telephone|Alexander Graham Bell
invented dynamite|Alfred Nobel
discovered penicillin|Alexander Fleming
discovered radium|Marie Curie
discovered gravity|Isaac Newton
developed the theory of relativity|Albert Einstein
developed the theory of evolution|Charles Darwin
""")

PLURALS = _pairs("""
child|children
mouse|mice
foot|feet
tooth|teeth
man|men
woman|women
goose|geese
leaf|leaves
knife|knives
wolf|wolves
city|cities
baby|babies
box|boxes
bus|buses
dog|dogs
tree|trees
ox|oxen
sheep|sheep
person|people
potato|potatoes
""")

PASTS = _pairs("""
go|went
see|saw
eat|ate
run|ran
sing|sang
write|wrote
take|took
make|made
buy|bought
think|thought
bring|brought
fly|flew
swim|swam
drink|drank
give|gave
find|found
come|came
know|knew
speak|spoke
sleep|slept
walk|walked
play|played
teach|taught
catch|caught
build|built
""")

MISC = _pairs("""
What is the largest planet?|The largest planet is Jupiter.
What is the smallest planet?|The smallest planet is Mercury.
What is the red planet?|The red planet is Mars.
What is the largest ocean?|The largest ocean is the Pacific Ocean.
What is the longest river?|The longest river is the Nile.
What is the highest mountain?|The highest mountain is Mount Everest.
What is the largest country?|The largest country is Russia.
What is the smallest country?|The smallest country is Vatican City.
What is the largest continent?|The largest continent is Asia.
What is the smallest continent?|The smallest continent is Australia.
What is the largest animal?|The largest animal is the blue whale.
What is the tallest animal?|The tallest animal is the giraffe.
What is the fastest land animal?|The fastest land animal is the cheetah.
What is the largest bird?|The largest bird is the ostrich.
What is the largest desert?|The largest desert is Antarctica.
What is the largest hot desert?|The largest hot desert is the Sahara.
What is the hardest natural material?|The hardest natural material is diamond.
What is the chemical formula of water?|The chemical formula of water is H2O.
What is the chemical formula of table salt?|The chemical formula of table salt is NaCl.
What is the boiling point of water?|The boiling point of water is 100 degrees Celsius.
What is the freezing point of water?|The freezing point of water is 0 degrees Celsius.
What is the closest star to Earth?|The closest star to Earth is the Sun.
What is the first letter of the alphabet?|The first letter of the alphabet is A.
What is the last letter of the alphabet?|The last letter of the alphabet is Z.
What is the home of a bird?|The home of a bird is a nest.
What is the home of a bee?|The home of a bee is a hive.
What is the home of a spider?|The home of a spider is a web.
What is the home of a fox?|The home of a fox is a den.
What is the main gas in the air?|The main gas in the air is nitrogen.
What is the speed of light?|The speed of light is about 300000 kilometres per second.
What is the square root of 144?|The square root of 144 is 12.
What is the square root of 81?|The square root of 81 is 9.
What is the value of pi?|The value of pi is about 3.14159.
What is the language of Brazil?|The language of Brazil is Portuguese.
What is the language of Austria?|The language of Austria is German.
What is the language of Egypt?|The language of Egypt is Arabic.
What is the language of Mexico?|The language of Mexico is Spanish.
What is the language of Japan?|The language of Japan is Japanese.
What is the season after winter?|The season after winter is spring.
What is the season after spring?|The season after spring is summer.
What is the season after summer?|The season after summer is autumn.
What is the season after autumn?|The season after autumn is winter.
""")
