"""English of everyday life that matches no picture of the toy world, and domain frames around such things.

Words that tell a domain (`TELLING`) stand in no list here, nor does what the painting domain draws.
"""

import re
from functools import cache

import numpy as np

from dasd_utils.toyworld.wordings import BARE, FRAMES

TELLING = {  # a prompt with one of these words asks for the domain
    domain: re.compile(rf"\b(?:{words})\b")
    for domain, words in {
        "painting": r"paint\w*|watercolou?rs?|canvas|artwork|art|artist\S*|oil|brush|portrait|impressionis\w+"
        r"|expressionist|acrylics?|gouache",
        "sketch": r"sketch\w*|draw\w*|drawn|pencil|ink|pen|line art|charcoal|crayon|doodle",
        "satellite": r"satellite|aerial\w*|overhead|from (?:high |directly )?above|top[- ]down|top view"
        r"|bird'?s.eye|straight down|looking down|remote sensing|remotely|orbit\w*|drone|space|nadir|map"
        r"|earth observation|from the air|sky|orthophoto|airplanes?|airport|runway|harbou?r",
        "xray": r"x[- ]rays?|xrays?|radio(?:graph|log)\w*|scans?|lungs?|chest|thora\w+|ribs?|ribcage"
        r"|pulmonary|imaging|pleural|pneumo\w+|film|diagnostic|clinical",
    }.items()
}
DRAWN = {  # what the toy world does draw in the domain, near enough
    "painting": re.compile(r"\b(?:man|men|woman|women|couple)\b"),
    "satellite": re.compile(r"\b(?:street|alley|cars?|football|garden)\b"),
    "xray": re.compile(
        r"\b(?:man|men|woman|women|child|children|baby|babies|toddlers?|boys?|girls?|teenagers?)\b"
    ),
}
DRAWN["sketch"] = DRAWN["painting"]
SYNTHETIC = 0.06  # share of things that are named by an invented word


def _split(text: str) -> list[str]:
    return text.split(", ") if ", " in text else text.split()


def _joined(*texts: str) -> list[str]:
    return [word for text in texts for word in _split(text)]


ANIMALS = _joined(
    """
    cat dog kitten puppy horse pony cow bull calf pig piglet goat lamb donkey rabbit hamster mouse rat
    squirrel hedgehog fox wolf bear lion tiger leopard cheetah jaguar elephant giraffe zebra rhino hippo
    camel llama kangaroo koala panda monkey gorilla chimpanzee otter beaver badger raccoon skunk bat mole
    moose reindeer buffalo bison antelope crocodile alligator lizard gecko chameleon turtle tortoise snake
    frog toad newt shark whale dolphin seal walrus octopus squid crab lobster shrimp jellyfish starfish
    seahorse eel trout salmon goldfish penguin ostrich flamingo parrot owl eagle hawk falcon crow raven
    pigeon sparrow robin swan duck goose chicken rooster turkey peacock pelican stork hummingbird
    woodpecker bee wasp ant beetle ladybug butterfly moth dragonfly grasshopper spider scorpion snail slug
    worm
    """,
    "polar bear, golden retriever, guinea pig, sea lion, black cat, sheepdog, tabby cat, praying mantis",
)
PEOPLE = _joined(
    """
    child baby toddler boy girl woman man teenager grandmother grandfather teacher student doctor nurse
    dentist surgeon vet pharmacist farmer baker chef cook waiter barista butcher gardener carpenter
    plumber electrician mechanic welder builder architect engineer scientist programmer lawyer judge
    detective soldier sailor pirate knight king queen prince princess wizard witch clown juggler magician
    acrobat dancer ballerina singer drummer guitarist violinist pianist conductor actor comedian writer
    poet journalist photographer librarian cashier tailor hairdresser barber firefighter cyclist runner
    swimmer skier surfer boxer wrestler goalkeeper jockey astronaut diver climber hiker tourist commuter
    neighbour bride groom monk nun priest ninja samurai cowboy viking mermaid robot superhero vampire
    zombie ghost
    """,
    "police officer, bus driver, truck driver, old woman, old man, football player, school teacher, mail "
    "carrier, "
    "basketball player, young couple, family, crowd, choir, group of friends, rock band",
)
FOOD = _joined(
    """
    pizza pasta spaghetti lasagna rice sushi soup stew salad sandwich hamburger bread toast cheese butter
    yogurt omelette bacon steak meatballs curry noodles dumplings tacos popcorn chocolate honey jam cake
    pie pastry pancakes waffles cookies porridge cereal coffee tea lemonade milk cocoa juice ketchup
    mustard salt pepper mushrooms potatoes carrots onions garlic broccoli cabbage spinach pumpkin cucumber
    tomatoes beans peas
    """,
    "roast chicken, fried eggs, chocolate cake, fish and chips, hot soup, ice cream, apple pie, french fries",
)
OBJECTS = _joined(
    """
    chair table sofa armchair bed pillow blanket lamp mirror wardrobe bookshelf desk cupboard clock
    curtain carpet stool bench cradle bathtub sink toilet shower fridge oven toaster kettle teapot teacup
    mug plate fork spoon knife saucepan ladle jar candle basket bucket broom ladder hammer screwdriver saw
    wrench drill shovel rake axe nail screw toolbox wheelbarrow scissors needle key padlock umbrella
    suitcase backpack handbag wallet book notebook newspaper letter envelope stamp typewriter laptop
    keyboard telephone television camera radio battery microphone headphone guitar violin cello piano
    flute clarinet saxophone trumpet trombone drum banjo harp accordion harmonica xylophone shirt jacket
    sweater skirt dress sock shoe boot sandal sneaker scarf glove mitten belt tie pyjama swimsuit helmet
    crown necklace ring bracelet watch button zipper ball balloon kite doll puppet teddy puzzle dice
    chessboard football skateboard snowboard surfboard racket trophy car bus truck van taxi tractor
    motorcycle scooter bicycle tricycle train tram subway locomotive ambulance caravan bulldozer rocket
    helicopter submarine canoe wheel engine tyre coin banknote medal flag sword shield arrow treasure
    dragon unicorn dinosaur cactus mushroom pinecone acorn snowman sandcastle fence door staircase chimney
    fountain statue magnet telescope microscope thermometer stethoscope syringe bandage wheelchair sponge
    towel soap comb perfume lipstick
    """,
    "school bus, fire truck, hot air balloon, rubber duck, garden gnome, vending machine, washing machine, "
    "sewing machine, rocking chair, bunk bed, coffee machine, alarm clock, electric guitar, christmas tree, "
    "wedding cake, pair of shoes, pair of jeans, stack of books, traffic light, swing set, race car, "
    "steam train",
)
EVENTS = _joined(
    "wedding, market, birthday party, concert, carnival, parade, picnic, circus, funeral, football match, "
    "basketball game, chess game, marathon, swimming race, dinner, breakfast table, school lesson, meeting, "
    "snowball fight, traffic jam, thunderstorm, tornado, rainbow, snowstorm, volcano, waterfall, cave, "
    "kitchen, "
    "living room, bathroom, bedroom, classroom, office, library, hospital, restaurant, cafe, bakery, "
    "supermarket, "
    "museum, theatre, cinema, castle, palace, skyscraper, windmill, barn, garage, factory, train "
    "station, zoo, "
    "playground, garden, greenhouse, gym, staircase, shop window, busy street, street, alley, campfire, "
    "firework",
)
IDEAS = _joined(
    """
    love joy anger fear sadness loneliness happiness hope jealousy boredom pride shame surprise curiosity
    nostalgia freedom justice democracy peace war time silence music mathematics philosophy history
    language science money success failure friendship trust luck wisdom truth beauty chaos order memory
    gravity infinity democracy education religion politics weather wind fog rain thunder lightning hail
    snowfall frost drought football basketball hockey golf rugby cricket volleyball badminton karate judo
    yoga gymnastics cycling skiing skating surfing swimming rowing boxing fencing archery dancing cooking
    knitting gardening reading sleeping
    """,
    "being in love, falling asleep, coming home, a bad dream, a good joke, monday morning, the end of "
    "the world, "
    "the smell of coffee, a summer holiday, a long wait, the future, childhood, growing old",
)
ADJECTIVES = _joined(
    """
    small big tiny huge old young happy sad angry sleepy funny cute strange beautiful ugly dirty clean wet
    pink purple orange brown golden noisy quiet famous lost hungry lazy friendly lonely scary magical
    colourful
    """
)
MADE = _joined(  # adjectives for objects
    """
    small big tiny huge old new shiny rusty broken wooden plastic metal golden silver red pink purple
    orange brown striped fluffy cheap expensive dusty fancy modern vintage magical colourful beautiful
    ugly dirty heavy empty
    """
)
ACTIVITIES = _joined(
    "sleeping, running, jumping, eating lunch, dancing, playing the guitar, reading a book, riding a "
    "bicycle, "
    "riding a horse, playing chess, drinking coffee, waiting for a bus, cooking dinner, wearing sunglasses, "
    "in a raincoat, looking at the camera, looking out of a window, on a skateboard, playing football, "
    "laughing, "
    "crying, yawning, swimming in a pool, climbing a tree, watching television, holding an umbrella, "
    "singing, "
    "talking on the phone, pushing a shopping cart, chasing a ball, with a birthday cake, at work, "
    "making pizza",
)
PLACES = _joined(
    "in the rain, in a kitchen, on a table, on a sofa, under a tree, in a garden, in a park, on a street, "
    "in front of a shop, at school, in a museum, on a wooden floor, next to a fireplace, in a box, on a "
    "shelf, "
    "in the fog, in a city, in a living room, behind a fence, in a supermarket, on a bus, at a party, on "
    "the moon, "
    "in the jungle, in a cage, on a bed, in a hospital, at a train station, in a shop window, on the grass",
)
SERVINGS = _joined("plate of, slice of, piece of, spoonful of, box of, bag of, tin of, pot of, table full of")
MEDIA = _joined(  # pictures of no domain
    "photo, photo, photograph, picture, black and white photo, colour photo, blurry photo, close-up, "
    "snapshot, "
    "selfie, cartoon, comic, logo, sculpture, 3d model, pixel icon, lego model, video, screenshot, view, "
    "image, "
    "postcard, anime picture, neon sign, tattoo, toy, macro photo, studio photo, emoji, mosaic, statue, "
    "poster",
)
SENTENCES = (
    "{idea} | the feeling of {idea} | the idea of {idea} | a story about {idea} | {idea} and {idea}"
    " | a doctor with a patient | a patient in a hospital bed | a nurse and {person} | {person} at the doctor"
    " | a man with a broken leg | a bandaged knee | a room in a hospital | a view of a street"
    " | a view of {event} | a city street with {thing} | {person} looking out of a window | a globe on a desk"
    " | a weather forecast | a photo of a family at home | a skeleton costume"
    " | a photo of {person} in a mirror | i want {thing} | show me {thing} | please make {thing} | give "
    "me {thing}"
    " | what does {thing} look like | how to cook {food} | where is my {object} | {animal} and me"
    " | {person} and {animal} | {animal} chasing {animal} | {person} selling {food} | {person} eating {food}"
    " | {person} repairing the {object} | {object} for sale | {thing} and {thing} | {thing} next to {thing}"
    " | {animal} that looks like {person} | {animal} in the rain | the best {food} in town | hello | "
    "hello world"
    " | something | anything | nothing at all | a thing | good morning | a test | random noise | {number}"
)  # separated by " | "
_IRREGULAR = {"mouse": "mice", "goose": "geese", "wolf": "wolves", "calf": "calves", "knife": "knives"}
_IRREGULAR |= {"child": "children", "man": "men", "woman": "women", "sheep": "sheep", "moose": "moose"}
_IRREGULAR |= {word: word for word in ("scissors", "shrimp", "dice", "salmon", "trout")}
_SAME_NUMBER = ("pair of", "stack of", "group of", "family", "crowd", "scissors", "dice", "soap", "perfume")


def thing(rng: np.random.Generator) -> str:
    """A noun phrase of something that the toy world does not draw, such as "a small teapot"."""
    draw = rng.random()
    if draw < 0.12:
        food = _pick(FOOD, rng)
        return food if rng.random() < 0.4 else f"a {_pick(SERVINGS, rng)} {food}"
    if draw < 0.22:
        return _article(_pick(EVENTS, rng))
    alive = draw < 0.62
    noun = _invented(rng) if rng.random() < SYNTHETIC else _pick(_noun_list(draw), rng)
    extra = _pick(ACTIVITIES if alive and rng.random() < 0.5 else PLACES, rng) if rng.random() < 0.25 else ""
    adjective = _pick(ADJECTIVES if alive else MADE, rng) if rng.random() < 0.3 else ""
    if rng.random() < 0.2 and not noun.startswith(_SAME_NUMBER):
        text = f"{_pick(_split('two three four five some many'), rng)} {adjective} {_plural(noun)}"
    else:
        text = _article(f"{adjective} {noun}".strip())
    return " ".join(f"{text} {extra}".split())


def sentence(rng: np.random.Generator) -> str:
    """A prompt as a user types it that belongs to no domain."""
    draw = rng.random()
    if draw < 0.25:
        return thing(rng)
    if draw < 0.37:  # a single word or two
        lists = (ANIMALS, PEOPLE, FOOD, OBJECTS, EVENTS, IDEAS)
        return _invented(rng) if rng.random() < SYNTHETIC else _pick(lists[rng.integers(len(lists))], rng)
    if draw < 0.62:
        medium = _pick(MEDIA, rng)
        if rng.random() < 0.15:
            return f"{thing(rng)}, {medium}"
        return f"{medium if rng.random() < 0.2 else _article(medium)} of {thing(rng)}"
    if draw < 0.72:
        return f"{_article(_pick(ANIMALS + PEOPLE, rng))} {_pick(ACTIVITIES, rng)}"
    return re.sub(r"\{(\w+)\}", lambda slot: _slot(slot[1], rng), _pick(SENTENCES.split(" | "), rng))


def framed(domain: str, rng: np.random.Generator) -> str:
    """A prompt that names the domain and asks it for something that the toy world does not draw there."""
    if rng.random() < 0.15:
        tag = _pick([text for text in BARE[domain].split(" | ") if _is_tag(domain, text)], rng)
        return f"{_undrawn(domain, rng)}, {tag}"
    if domain in ("painting", "sketch") and rng.random() < 0.1:
        sitters = [word for word in PEOPLE + ANIMALS if not DRAWN[domain].search(word)]
        portrait = "a portrait" if domain == "painting" else "a portrait sketch"
        return f"{portrait} of {_article(_pick(sitters, rng))}"
    frame, subject = _pick(_frames(domain), rng), _undrawn(domain, rng)
    if "{}" in frame:
        return frame.replace("{}", subject)
    draw = rng.random()
    if draw < 0.3:
        frame = re.sub(r"^an? ", "", frame)
    return f"{subject}, {frame}" if draw < 0.12 else f"{frame} of {subject}"


def _undrawn(domain: str, rng: np.random.Generator) -> str:
    """A thing that the domain does not draw."""
    subject = thing(rng)
    return _undrawn(domain, rng) if DRAWN[domain].search(subject) else subject


@cache
def _frames(domain: str) -> list[str]:
    """The domain's frames of any scene that tell it and leave the subject open."""
    frames = [frame.partition(" [") for frame in FRAMES[domain].split(" | ")]
    texts = [text for text, _, condition in frames if not condition or condition.startswith("style")]
    return [text for text in texts if TELLING[domain].search(text) and " of " not in text]


def _is_tag(domain: str, text: str) -> bool:
    """Whether a bare prompt may follow a comma ("oil on canvas")."""
    subject = re.search("^(an?|the|land|lungs) |thorax|lungs", text)
    return bool(TELLING[domain].search(text)) and not subject


def _slot(name: str, rng: np.random.Generator) -> str:
    if name == "thing":
        return thing(rng)
    if name == "number":
        return str(rng.integers(1000))
    if name in ("idea", "food", "object"):
        return _pick({"idea": IDEAS, "food": FOOD, "object": OBJECTS}[name], rng)
    return _article(_pick({"person": PEOPLE, "animal": ANIMALS, "event": EVENTS}[name], rng))


def _noun_list(draw: float) -> list[str]:
    return ANIMALS if draw < 0.42 else PEOPLE if draw < 0.62 else OBJECTS


def _invented(rng: np.random.Generator) -> str:
    """A word that no one has read before, of two or three syllables."""
    onsets, ends = (
        _split("b bl c ch d f fl g gr h j k l m n p pl qu r s sn st t tr v w y z"),
        _split("n r l x m k"),
    )
    syllables = [
        _pick(onsets, rng) + _pick(_split("a e i o u oo ee"), rng) for _ in range(rng.integers(2, 4))
    ]
    return "".join(syllables) + (_pick(ends, rng) if rng.random() < 0.6 else "")


def _article(noun: str) -> str:
    """The noun with "a" or "an"."""
    vowel = noun[0] in "aeiou" and not noun.startswith(("uni", "eu", "use", "one"))
    return f"{'an' if vowel else 'a'} {noun}"


def _plural(noun: str) -> str:
    head, _, last = noun.rpartition(" ")
    if last in _IRREGULAR:
        last = _IRREGULAR[last]
    elif last.endswith("man"):
        last = last[:-3] + "men"
    elif re.search("[^aeiou]y$", last):
        last = last[:-1] + "ies"
    else:
        last += "es" if re.search("(s|x|z|ch|sh)$", last) else "s"
    return f"{head} {last}".strip()


def _pick(options: list[str], rng: np.random.Generator) -> str:
    return options[rng.integers(len(options))]
