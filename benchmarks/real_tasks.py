"""Small tasks for `benchmarks/real.py`: problems with labels, written for this repository.

A task is a list of problems in a fixed shuffled order. Its first ``TRAIN`` problems are the seeds, given to a run
without their labels; the following ``HELD_OUT`` problems measure it. No problem is in both.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TRAIN, HELD_OUT = 40, 50
ALONE, SHORT = "Answer with the number or word alone.", "Give a short answer."


@dataclass(frozen=True)
class Task:
    """A kind of problem.

    Args:
        kind: What is asked for: numbers, choices or facts.
        rows: Objects with ``problem``, ``answer`` and, for multiple choice, ``choices``.
        tokens: Most tokens of a response.
        answer_format: The sentence that asks for the form of the answer; ``None`` for the product's own.
    """

    kind: str
    rows: list[dict[str, Any]]
    tokens: int = 20
    answer_format: str | None = ALONE

    def split(self, name: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Seeds and held-out problems, both with labels."""
        rows = list(self.rows)
        random.Random(name).shuffle(rows)
        return rows[:TRAIN], rows[TRAIN : TRAIN + HELD_OUT]

    def write(self, name: str, folder: Path, labelled: bool = False) -> tuple[Path, Path]:
        """Write both parts as jsonl files, the seeds without their labels unless ``labelled``; returns their paths."""
        folder.mkdir(parents=True, exist_ok=True)
        stem = name.replace(" ", "_")
        paths = folder / f"{stem}-{'labelled' if labelled else 'seeds'}.jsonl", folder / f"{stem}-held-out.jsonl"
        seeds, held_out = self.split(name)
        if not labelled:
            seeds = [{k: v for k, v in row.items() if k != "answer"} for row in seeds]
        for path, rows in zip(paths, (seeds, held_out), strict=True):
            path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
        return paths


def asked(question: str, pairs: list[tuple[Any, Any]]) -> list[dict[str, Any]]:
    """One row for each pair of what fills the question's place and its answer."""
    return [{"problem": question.format(*(p if isinstance(p, tuple) else (p,))), "answer": str(a)} for p, a in pairs]


def words(text: str) -> list[tuple[str, str]]:
    """Pairs from ``a:b, c:d``."""
    return [tuple(part.strip().split(":")) for part in text.replace("\n", " ").split(",")]  # type: ignore[misc]


def options(question: str, of: dict[str, str], count: int = 4) -> list[dict[str, Any]]:
    """Multiple choice: one member of a category among members of other categories.

    Args:
        question: With a place for the category.
        of: Members by category, separated by blanks.
        count: Options of each problem.
    """
    draw = random.Random(question)
    rows = []
    members = {category: names.split() for category, names in of.items()}
    for category, names in members.items():
        for name in names:
            others = draw.sample([c for c in members if c != category], count - 1)
            shown = [name, *(draw.choice(members[c]) for c in others)]
            draw.shuffle(shown)
            letter = "ABCDEFGHIJ"[shown.index(name)]
            rows.append({"problem": question.format(category), "choices": shown, "answer": letter})
    return rows


DIGITS = [(a, b) for a in range(10) for b in range(10)]
PAIRS = [(a, b) for a in range(2, 13) for b in range(2, 13)]
FAR = random.Random("pairs").sample([(a, b) for a in range(10, 100) for b in range(10, 100) if abs(a - b) > 9], 110)

OPPOSITES = words(
    "hot:cold, big:small, up:down, fast:slow, happy:sad, light:dark, old:young, open:closed, full:empty, hard:soft, "
    "high:low, rich:poor, strong:weak, wet:dry, clean:dirty, early:late, long:short, loud:quiet, near:far, "
    "right:wrong, true:false, thick:thin, wide:narrow, sweet:sour, deep:shallow, good:bad, day:night, left:right, "
    "win:lose, love:hate, buy:sell, push:pull, start:stop, inside:outside, above:below, before:after, black:white, "
    "brave:cowardly, cheap:expensive, laugh:cry, alive:dead, asleep:awake, beautiful:ugly, first:last, heavy:light, "
    "noisy:quiet, easy:difficult, smooth:rough, tall:short, war:peace, north:south, east:west, summer:winter, "
    "front:back, top:bottom, yes:no, friend:enemy, give:take, remember:forget, arrive:leave, accept:reject, "
    "always:never, ancient:modern, arrival:departure, attack:defend, bitter:sweet, bright:dim, build:destroy, "
    "came:went, careful:careless, increase:decrease, maximum:minimum, positive:negative, present:absent, "
    "public:private, question:answer, rise:fall, safe:dangerous, single:married, success:failure, sunrise:sunset, "
    "victory:defeat, visible:invisible, possible:impossible, polite:rude, legal:illegal, honest:dishonest, "
    "lucky:unlucky, complete:incomplete, correct:incorrect, agree:disagree, appear:disappear, hello:goodbye, "
    "male:female, more:less, on:off, in:out, over:under, entrance:exit, add:subtract, multiply:divide"
)
CAPITALS = words(
    "France:Paris, Germany:Berlin, Italy:Rome, Spain:Madrid, Portugal:Lisbon, Poland:Warsaw, Austria:Vienna, "
    "Hungary:Budapest, Greece:Athens, Norway:Oslo, Sweden:Stockholm, Finland:Helsinki, Denmark:Copenhagen, "
    "Ireland:Dublin, Belgium:Brussels, Russia:Moscow, Ukraine:Kyiv, Turkey:Ankara, Egypt:Cairo, Kenya:Nairobi, "
    "Nigeria:Abuja, Ghana:Accra, Morocco:Rabat, Algeria:Algiers, Tunisia:Tunis, Ethiopia:Addis Ababa, Japan:Tokyo, "
    "China:Beijing, South Korea:Seoul, India:New Delhi, Pakistan:Islamabad, Thailand:Bangkok, Vietnam:Hanoi, "
    "Indonesia:Jakarta, Malaysia:Kuala Lumpur, Philippines:Manila, Australia:Canberra, New Zealand:Wellington, "
    "Canada:Ottawa, Mexico:Mexico City, Cuba:Havana, Brazil:Brasilia, Argentina:Buenos Aires, Chile:Santiago, "
    "Peru:Lima, Colombia:Bogota, Venezuela:Caracas, Ecuador:Quito, Uruguay:Montevideo, Paraguay:Asuncion, "
    "Iran:Tehran, Iraq:Baghdad, Israel:Jerusalem, Jordan:Amman, Lebanon:Beirut, Syria:Damascus, Saudi "
    "Arabia:Riyadh, Qatar:Doha, Nepal:Kathmandu, Bangladesh:Dhaka, Mongolia:Ulaanbaatar, Czech Republic:Prague, "
    "Romania:Bucharest, Bulgaria:Sofia, Serbia:Belgrade, Croatia:Zagreb, Slovenia:Ljubljana, Slovakia:Bratislava, "
    "Latvia:Riga, Estonia:Tallinn, Lithuania:Vilnius, Iceland:Reykjavik, Netherlands:Amsterdam, Switzerland:Bern, "
    "Albania:Tirana, Armenia:Yerevan, Georgia:Tbilisi, Afghanistan:Kabul, Cambodia:Phnom Penh, Laos:Vientiane, "
    "Senegal:Dakar, Uganda:Kampala, Rwanda:Kigali, Zambia:Lusaka, Zimbabwe:Harare, Angola:Luanda, "
    "Mozambique:Maputo, Sudan:Khartoum, Libya:Tripoli, Jamaica:Kingston, Haiti:Port-au-Prince, Panama:Panama City, "
    "Costa Rica:San Jose, Nicaragua:Managua, Honduras:Tegucigalpa, Guatemala:Guatemala City, El Salvador:San "
    "Salvador, Bolivia:La Paz, United Kingdom:London"
)
PAST = words(
    "go:went, eat:ate, see:saw, run:ran, take:took, give:gave, come:came, write:wrote, drive:drove, sing:sang, "
    "swim:swam, drink:drank, begin:began, break:broke, speak:spoke, steal:stole, wear:wore, fly:flew, know:knew, "
    "grow:grew, throw:threw, draw:drew, blow:blew, buy:bought, bring:brought, think:thought, teach:taught, "
    "catch:caught, fight:fought, find:found, build:built, send:sent, spend:spent, lend:lent, keep:kept, "
    "sleep:slept, feel:felt, leave:left, meet:met, lose:lost, make:made, have:had, say:said, pay:paid, sell:sold, "
    "tell:told, hold:held, stand:stood, understand:understood, win:won, sit:sat, get:got, forget:forgot, "
    "choose:chose, freeze:froze, rise:rose, ride:rode, hide:hid, bite:bit, fall:fell, feed:fed, lead:led, "
    "hear:heard, become:became, shake:shook, wake:woke, ring:rang, sink:sank, shoot:shot, dig:dug, hang:hung, "
    "stick:stuck, strike:struck, swing:swung, walk:walked, play:played, jump:jumped, open:opened, help:helped, "
    "wash:washed, clean:cleaned, cook:cooked, dance:danced, laugh:laughed, look:looked, love:loved, move:moved, "
    "need:needed, paint:painted, rain:rained, smile:smiled, start:started, talk:talked, touch:touched, "
    "visit:visited, wait:waited, want:wanted, watch:watched, work:worked, study:studied, carry:carried, cry:cried, "
    "try:tried"
)
PLURALS = words(
    "cat:cats, dog:dogs, box:boxes, bus:buses, church:churches, baby:babies, city:cities, lady:ladies, leaf:leaves, "
    "wolf:wolves, knife:knives, wife:wives, life:lives, half:halves, man:men, woman:women, child:children, "
    "foot:feet, tooth:teeth, goose:geese, mouse:mice, person:people, potato:potatoes, tomato:tomatoes, hero:heroes, "
    "watch:watches, dish:dishes, glass:glasses, class:classes, fox:foxes, country:countries, story:stories, "
    "party:parties, family:families, berry:berries, toy:toys, boy:boys, key:keys, day:days, monkey:monkeys, "
    "book:books, car:cars, tree:trees, house:houses, horse:horses, apple:apples, chair:chairs, table:tables, "
    "pen:pens, school:schools, teacher:teachers, student:students, friend:friends, flower:flowers, river:rivers, "
    "mountain:mountains, window:windows, door:doors, bird:birds, cow:cows, pig:pigs, shoe:shoes, hat:hats, "
    "shirt:shirts, cup:cups, plate:plates, spoon:spoons, fork:forks, brush:brushes, peach:peaches, bench:benches, "
    "branch:branches, sandwich:sandwiches, dress:dresses, kiss:kisses, tax:taxes, butterfly:butterflies, "
    "puppy:puppies, pony:ponies, penny:pennies, fly:flies, sky:skies, spy:spies, shelf:shelves, thief:thieves, "
    "calf:calves, loaf:loaves, scarf:scarves, ox:oxen, lamp:lamps, clock:clocks, phone:phones, road:roads, "
    "bridge:bridges, song:songs, letter:letters, picture:pictures, game:games, garden:gardens, island:islands, "
    "nurse:nurses"
)
CONTINENTS = {
    "Africa": "Egypt Kenya Nigeria Ghana Morocco Algeria Tunisia Ethiopia Senegal Uganda Rwanda Zambia Zimbabwe Angola "
    "Mozambique Sudan Libya Mali Niger Chad Somalia Tanzania Namibia Botswana Cameroon",
    "Asia": "Japan China India Pakistan Thailand Vietnam Indonesia Malaysia Philippines Nepal Bangladesh Mongolia Iran "
    "Iraq Jordan Lebanon Syria Qatar Afghanistan Cambodia Laos Singapore Bhutan Yemen Oman",
    "Europe": "France Germany Italy Spain Portugal Poland Austria Hungary Greece Norway Sweden Finland Denmark Ireland "
    "Belgium Ukraine Romania Bulgaria Serbia Croatia Slovenia Slovakia Latvia Estonia Switzerland",
    "South America": "Brazil Argentina Chile Peru Colombia Venezuela Ecuador Uruguay Paraguay Bolivia Guyana Suriname",
    "North America": "Canada Mexico Cuba Jamaica Haiti Panama Honduras Guatemala Nicaragua",
}
LANGUAGE = words(
    "dog:perro, cat:gato, house:casa, water:agua, bread:pan, milk:leche, red:rojo, blue:azul, green:verde, "
    "white:blanco, black:negro, one:uno, two:dos, three:tres, four:cuatro, five:cinco, six:seis, seven:siete, "
    "eight:ocho, nine:nueve, ten:diez, sun:sol, moon:luna, star:estrella, sea:mar, river:río, mountain:montaña, "
    "tree:árbol, flower:flor, book:libro, table:mesa, chair:silla, door:puerta, window:ventana, school:escuela, "
    "friend:amigo, brother:hermano, sister:hermana, mother:madre, father:padre, son:hijo, daughter:hija, boy:niño, "
    "girl:niña, man:hombre, woman:mujer, day:día, night:noche, week:semana, month:mes, year:año, today:hoy, "
    "tomorrow:mañana, yesterday:ayer, hand:mano, head:cabeza, eye:ojo, mouth:boca, nose:nariz, heart:corazón, "
    "foot:pie, big:grande, small:pequeño, good:bueno, bad:malo, new:nuevo, old:viejo, hot:caliente, cold:frío, "
    "happy:feliz, sad:triste, eat:comer, drink:beber, sleep:dormir, run:correr, walk:caminar, speak:hablar, "
    "read:leer, write:escribir, sing:cantar, apple:manzana, orange:naranja, egg:huevo, fish:pescado, meat:carne, "
    "cheese:queso, salt:sal, sugar:azúcar, coffee:café, tea:té, wine:vino, beer:cerveza, street:calle, city:ciudad, "
    "country:país, world:mundo, time:tiempo, money:dinero, work:trabajo, love:amor"
)
CITY = words(
    "Paris:France, Berlin:Germany, Rome:Italy, Madrid:Spain, Lisbon:Portugal, Warsaw:Poland, Vienna:Austria, "
    "Budapest:Hungary, Athens:Greece, Oslo:Norway, Stockholm:Sweden, Helsinki:Finland, Copenhagen:Denmark, "
    "Dublin:Ireland, Brussels:Belgium, Moscow:Russia, Kyiv:Ukraine, Istanbul:Turkey, Cairo:Egypt, Nairobi:Kenya, "
    "Lagos:Nigeria, Accra:Ghana, Casablanca:Morocco, Algiers:Algeria, Tunis:Tunisia, Addis Ababa:Ethiopia, "
    "Tokyo:Japan, Beijing:China, Seoul:South Korea, Mumbai:India, Karachi:Pakistan, Bangkok:Thailand, "
    "Hanoi:Vietnam, Jakarta:Indonesia, Kuala Lumpur:Malaysia, Manila:Philippines, Sydney:Australia, Auckland:New "
    "Zealand, Toronto:Canada, Guadalajara:Mexico, Havana:Cuba, Sao Paulo:Brazil, Buenos Aires:Argentina, "
    "Santiago:Chile, Lima:Peru, Bogota:Colombia, Caracas:Venezuela, Quito:Ecuador, Montevideo:Uruguay, Tehran:Iran, "
    "Baghdad:Iraq, Tel Aviv:Israel, Amman:Jordan, Beirut:Lebanon, Damascus:Syria, Riyadh:Saudi Arabia, Doha:Qatar, "
    "Kathmandu:Nepal, Dhaka:Bangladesh, Prague:Czech Republic, Bucharest:Romania, Sofia:Bulgaria, Belgrade:Serbia, "
    "Zagreb:Croatia, Bratislava:Slovakia, Riga:Latvia, Tallinn:Estonia, Vilnius:Lithuania, Reykjavik:Iceland, "
    "Amsterdam:Netherlands, Zurich:Switzerland, Munich:Germany, Hamburg:Germany, Lyon:France, Marseille:France, "
    "Milan:Italy, Venice:Italy, Barcelona:Spain, Seville:Spain, Porto:Portugal, Krakow:Poland, Salzburg:Austria, "
    "Osaka:Japan, Kyoto:Japan, Shanghai:China, Delhi:India, Kolkata:India, Melbourne:Australia, Vancouver:Canada, "
    "Montreal:Canada, Rio de Janeiro:Brazil, Cusco:Peru, Kabul:Afghanistan, Kampala:Uganda, Kigali:Rwanda, "
    "Harare:Zimbabwe, Dakar:Senegal, Tripoli:Libya, Khartoum:Sudan, Alexandria:Egypt"
)
CATEGORY = {
    "animal": "dog cat horse cow lion tiger elephant rabbit sheep goat wolf bear monkey mouse",
    "fruit": "apple banana orange grape peach pear plum cherry lemon mango strawberry pineapple melon kiwi",
    "colour": "red blue green yellow purple pink brown black white grey violet turquoise beige crimson",
    "vehicle": "car bus train truck bicycle motorcycle airplane tractor tram taxi van lorry scooter ferry",
    "body part": "arm leg hand foot nose ear mouth knee elbow shoulder finger toe neck chin",
    "country": "France Brazil Japan Egypt Canada India Mexico Italy Kenya Poland Peru Norway Chile Spain",
    "tool": "hammer saw drill screwdriver wrench axe chisel pliers shovel rake sander spanner crowbar mallet",
    "instrument": "piano guitar violin drum flute trumpet cello harp clarinet saxophone banjo trombone oboe tuba",
}
PLANTS = words(
    "rose:plant, oak:plant, tulip:plant, fern:plant, cactus:plant, daisy:plant, pine tree:plant, grass:plant, "
    "maple:plant, ivy:plant, birch:plant, bamboo:plant, moss:plant, sunflower:plant, lily:plant, orchid:plant, "
    "willow:plant, dandelion:plant, lavender:plant, clover:plant, wheat:plant, corn:plant, rice:plant, "
    "carrot:plant, cabbage:plant, lettuce:plant, potato:plant, tomato:plant, onion:plant, cedar:plant, palm "
    "tree:plant, strawberry bush:plant, mint:plant, basil:plant, parsley:plant, violet:plant, daffodil:plant, "
    "spruce:plant, elm:plant, vine:plant, pumpkin:plant, cucumber:plant, spinach:plant, bean:plant, pea:plant, "
    "cotton:plant, dog:animal, cat:animal, horse:animal, cow:animal, lion:animal, tiger:animal, elephant:animal, "
    "rabbit:animal, sheep:animal, goat:animal, wolf:animal, bear:animal, monkey:animal, mouse:animal, frog:animal, "
    "snake:animal, lizard:animal, eagle:animal, owl:animal, parrot:animal, penguin:animal, shark:animal, "
    "whale:animal, dolphin:animal, salmon:animal, trout:animal, crab:animal, lobster:animal, spider:animal, "
    "ant:animal, bee:animal, butterfly:animal, worm:animal, snail:animal, turtle:animal, crocodile:animal, "
    "giraffe:animal, zebra:animal, camel:animal, kangaroo:animal, koala:animal, panda:animal, deer:animal, "
    "fox:animal, pig:animal, duck:animal, chicken:animal, goose:animal, swan:animal, bat:animal, rat:animal, "
    "hamster:animal, squirrel:animal, beaver:animal"
)
NAMES = ["Tom", "Ana", "Ben", "Mia", "Leo", "Eva", "Sam", "Ida", "Max", "Zoe"]
THINGS = ["apples", "pens", "books", "coins", "cards", "eggs", "stamps", "shells", "marbles", "balls"]

STORY = [
    ((NAMES[(a + b) % 10], a, THINGS[(3 * a + b) % 10], b, THINGS[(3 * a + b) % 10]), a + b)
    for a in range(2, 12)
    for b in range(2, 12)
]
GIVEN = [
    ((NAMES[(a + b) % 10], a, THINGS[(3 * a + b) % 10], b, THINGS[(3 * a + b) % 10]), a - b)
    for a in range(6, 18)
    for b in range(1, 10)
    if b < a
]

TASKS: dict[str, Task] = {
    "sums": Task("numbers", asked("What is {} + {}?", [((a, b), a + b) for a, b in DIGITS])),
    "sums in a box": Task(
        "numbers", asked("What is {} + {}?", [((a, b), a + b) for a, b in DIGITS]), tokens=28, answer_format=None
    ),
    "larger sums": Task("numbers", asked("What is {} + {}?", [((a, b), a + b) for a, b in PAIRS])),
    "differences": Task(
        "numbers", asked("What is {} - {}?", [((a, b), a - b) for a in range(6, 20) for b in range(1, 10) if b < a])
    ),
    "products": Task("numbers", asked("What is {} times {}?", [((a, b), a * b) for a, b in PAIRS])),
    "doubles": Task("numbers", asked("What is two times {}?", [(n, 2 * n) for n in range(1, 101)])),
    "halves": Task("numbers", asked("What is half of {}?", [(2 * n, n) for n in range(1, 101)])),
    "next": Task("numbers", asked("Which number comes after {}?", [(n, n + 1) for n in range(1, 101)])),
    "before": Task("numbers", asked("Which number comes just before {}?", [(n, n - 1) for n in range(2, 102)])),
    "tens": Task(
        "numbers",
        asked("What is {} + {}?", [((10 * a, 10 * b), 10 * (a + b)) for a in range(1, 11) for b in range(1, 11)]),
    ),
    "story sums": Task("numbers", asked("{} has {} {} and gets {} more. How many {} are there now?", STORY)),
    "story differences": Task("numbers", asked("{} has {} {} and loses {}. How many {} are left?", GIVEN)),
    "bigger": Task("choices", asked("Which number is bigger, {} or {}?", [((a, b), max(a, b)) for a, b in FAR])),
    "smaller": Task("choices", asked("Which number is smaller, {} or {}?", [((a, b), min(a, b)) for a, b in FAR])),
    "greater": Task(
        "choices", asked("Is {} greater than {}, yes or no?", [((a, b), "yes" if a > b else "no") for a, b in FAR])
    ),
    "parity": Task(
        "choices", asked("Is {} an even or an odd number?", [(n, ("even", "odd")[n % 2]) for n in range(1, 101)])
    ),
    "plant or animal": Task("choices", asked("Is this a plant or an animal: {}?", PLANTS)),
    "member": Task("choices", options("Which of these is a {}?", CATEGORY)),
    "member of two": Task("choices", options("Which of these is a {}?", CATEGORY, 2)),
    "continent": Task(
        "facts",
        asked(
            "On which continent is {}?",
            [(n, c) for c, names in CONTINENTS.items() for n in names.split()],
        ),
        answer_format=SHORT,
    ),
    "opposites": Task("facts", asked("What is the opposite of {}?", OPPOSITES), answer_format=SHORT),
    "capitals": Task("facts", asked("What is the capital of {}?", CAPITALS), answer_format=SHORT),
    "city": Task("facts", asked("In which country is {}?", CITY), answer_format=SHORT),
    "past": Task("facts", asked("What is the past tense of {}?", PAST), answer_format=SHORT),
    "plurals": Task("facts", asked("What is the plural of {}?", PLURALS), answer_format=SHORT),
    "Spanish": Task("facts", asked("What is the Spanish word for {}?", LANGUAGE), answer_format=SHORT),
    "letters": Task(
        "facts", asked("What is the first letter of the word {}?", [(w, w[0]) for w, _ in PLURALS]), answer_format=SHORT
    ),
}
