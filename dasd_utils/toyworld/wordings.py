"""The wordings from which captions are joined; how they are joined is in `captions`.

" | " separates wordings. A wording may end in a condition: [side=both] means that it is for captions which
tell that value, and tells it; [count!=one] only asks that the picture differs. {name} stands for the word of
that attribute, {} for the scene phrase and its tails, and (s) for the plural that goes with "count".
"""

Wordings = dict[str, str]  # value -> wordings


def _same(*values: str) -> Wordings:
    return {value: value for value in values}


# ---- the words for each attribute's values; an attribute or value missing here is an error ----

_YES_NO = _same("yes", "no")
_COUNTS = {"one": "one | a single", "two": "two", "three": "three"}
WORDS: dict[str, dict[str, Wordings]] = {
    "painting": {
        "style": _same("impressionist", "flat", "watercolour", "expressionist"),
        "time": _same("day", "sunset", "night"),
        "season": _same("summer", "autumn", "winter"),
        "count": _COUNTS,
        "fruit": _same("apples", "oranges", "grapes", "lemons", "pears"),
        "bowl": _same("white", "blue", "green"),
        "flower": _same("red", "yellow", "blue", "white"),
        "hair": _same("black", "brown", "blond", "red") | {"grey": "grey | gray"},
        "beard": _YES_NO,
        "hat": _YES_NO,
        "clothes": _same("red", "blue", "green", "black", "white", "yellow"),
        "house": _YES_NO,
    },
    "sketch": {"count": _COUNTS, "beard": _YES_NO, "hat": _YES_NO, "house": _YES_NO},
    "satellite": {
        "terrain": _same("green", "brown") | {"grey": "grey | gray", "sand": "sandy"},
        "count": _COUNTS | {"many": "many | several"},
        "season": _same("summer", "autumn", "winter"),
        "water": _same("blue", "green", "brown"),
        "bridge": _YES_NO,
        "roof": _same("red", "brown") | {"grey": "grey | gray"},
        "pattern": _same("squares", "circles"),
    },
    "xray": {
        "side": _same("left", "right", "both"),
        "severity": {"mild": "mild | slight | minor", "severe": "severe | marked"},
        "build": _same("adult", "child"),
    },
}

# ---- tails: what may follow the scene phrase; an attribute without one stands in the phrase or frame ----

_SEASONS = {
    "summer": "in summer | in the summer | in summertime",
    "autumn": "in autumn | in the fall | in autumn colours | in fall colors",
    "winter": "in winter | in the snow | covered in snow | in snowy winter",
}
TAILS: dict[str, dict[str, Wordings | str]] = {
    "painting": {
        "beard": {"yes": "with a beard", "no": " | without a beard"},
        "hat": {"yes": "wearing a hat | in a hat | with a hat", "no": " | without a hat"},
        "clothes": "in {clothes} clothes | dressed in {clothes} | in a {clothes} coat"
        " | wearing a {clothes} shirt"
        " | wearing {clothes} | wearing {clothes} clothes",
        "house": {"yes": "with a house | with a small house | and a house", "no": ""},
        "season": _SEASONS,
        "time": {
            "day": "by day | in daylight | on a sunny day | in bright sunshine | in the daytime",
            "sunset": "at sunset | at dusk | in the evening | under a setting sun | in evening light",
            "night": "at night | in moonlight | under the moon | under a dark sky with stars",
        },
        "style": {
            "impressionist": "in an impressionist style | in the style of impressionism"
            " | with soft brush strokes",
            "flat": "in flat colours | in flat colors | in a flat style | with plain flat shapes",
            "watercolour": "in watercolour | in watercolor | in pale watercolours | with pale watercolors",
            "expressionist": "in an expressionist style | in wild colours | with bold unnatural colors",
        },
    },
    "satellite": {
        "water": "with {water} water",
        "bridge": {"yes": "with a bridge | crossed by a bridge", "no": " | without a bridge"},
        "terrain": "on {terrain} ground | surrounded by {terrain} land | with {terrain} ground around"
        " | in a {terrain} landscape | surrounded by {terrain} ground",
        "season": _SEASONS,
    },
    "xray": {
        "side": {
            "left": "in the left lung | on the left | on the left side",
            "right": "in the right lung | on the right | on the right side",
            "both": "in both lungs | on both sides",
        },
        "build": {
            "adult": "in an adult | in an adult patient | in a grown-up",
            "child": "in a child | in a small child | in a young patient | in a pediatric patient",
        },
    },
}
TAILS["sketch"] = {name: TAILS["painting"][name] for name in ("beard", "hat", "house")}
SCENE_TAILS: dict[str, dict[str, Wordings | str]] = {  # where a scene needs other tails than its domain
    "village": {"house": {"yes": "", "no": ""}},
    "house": {"house": {"yes": "", "no": ""}},
    "river": {"terrain": "through {terrain} land | through a {terrain} landscape | across {terrain} ground"},
    "beach": {
        "terrain": "next to {terrain} land | beside {terrain} land",
        "water": "with {water} water | by the {water} sea | by {water} water",
    },
    "island": {"terrain": "with {terrain} land", "water": "in {water} water | surrounded by {water} water"},
    "desert": {"terrain": "with {terrain} ground"},
    "effusion": {
        "side": {
            "left": "on the left | on the left side",
            "right": "on the right | on the right side",
            "both": "on both sides | left and right",
        }
    },
}

# ---- frames ----

_ALONE = ("pneumonia", "effusion", "pneumothorax", "pacemaker")  # findings that need no frame to tell x-ray

FRAMES = {
    "painting": "a painting | a painting | a picture | a painted picture | an artwork | an artist's picture"
    " | a work of art | a colourful painting [style!=watercolour] | a colorful picture [style!=watercolour]"
    " | a painted canvas"
    " | an oil painting [style!=watercolour] | {} in oil on canvas [style!=watercolour]"
    " | a brush painting | {} on canvas [style!=watercolour]"
    " | an impressionist painting [style=impressionist] | an impressionist picture [style=impressionist]"
    " | an impressionist canvas [style=impressionist] | an impressionist artwork [style=impressionist]"
    " | an expressionist painting [style=expressionist] | an expressionist picture [style=expressionist]"
    " | an expressionist canvas [style=expressionist] | an expressionist artwork [style=expressionist]"
    " | a flat painting [style=flat] | a flat colour picture [style=flat] | a flat poster [style=flat]"
    " | a painting in flat shapes [style=flat] | a watercolour [style=watercolour]"
    " | a watercolor painting [style=watercolour] | a watercolour picture [style=watercolour]"
    " | a pale watercolour [style=watercolour] | a portrait of {} [scene=portrait]"
    " | a painted portrait of {} [scene=portrait] | a portrait painting of {} [scene=portrait]"
    " | an impressionist portrait of {} [scene=portrait,style=impressionist]"
    " | a watercolour portrait of {} [scene=portrait,style=watercolour]"
    " | an expressionist portrait of {} [scene=portrait,style=expressionist]"
    " | {} painted in oils [style!=watercolour] | {}, oil on canvas [style!=watercolour] | {}, painting"
    " | painting | a framed painting | a hand-painted picture"
    " | an acrylic painting [style!=watercolour] | {} painted by an artist | {} painted with a brush"
    " | {}, watercolour [style=watercolour] | an aquarelle [style=watercolour]"
    " | {}, impressionist painting [style=impressionist]"
    " | {}, expressionist painting [style=expressionist]",
    "sketch": "a sketch | a drawing | a line drawing | a pencil drawing | an ink drawing | a pencil sketch"
    " | an ink sketch | a simple drawing | a quick sketch | a black and white drawing | a line sketch"
    " | an outline drawing | a hand drawn sketch | a pen and ink drawing | {} drawn with a pen"
    " | {} drawn in pencil | {} drawn in ink lines | {} sketched on paper"
    " | a drawn portrait of {} [scene=portrait] | a portrait sketch of {} [scene=portrait]"
    " | a portrait drawing of {} [scene=portrait]"
    " | {}, pencil drawing | {}, sketch | {}, line art | pencil sketch | ink drawing"
    " | a freehand drawing | a rough sketch | a black ink drawing | {} sketched in pencil"
    " | {} drawn by hand | {} in pen and ink | a sketchbook page | a monochrome sketch",
    "satellite": "an aerial view | an aerial photo | an aerial image | an aerial photograph | an aerial shot"
    " | a satellite image | a satellite photo | a satellite picture | a satellite view | an overhead view"
    " | an overhead photo | an overhead image | a bird's eye view | a top-down view | a top-down photo"
    " | a top view | a remote sensing image | a remote sensing photo | a view from above"
    " | a picture from orbit | an image from orbit | a drone photo | an earth observation image"
    " | {} seen from above | {} from above | {} from the air | {} seen from the sky | {} seen from space"
    " | {} seen from orbit | looking down on {}"
    " | aerial view | satellite view | satellite image | overhead view | aerial photo"
    " | aerial imagery | satellite imagery | a bird's-eye view | a birds eye view"
    " | a bird's eye photo | a top-down image | a top-down picture | a top down view"
    " | an overhead shot | an overhead picture | an overhead photograph | an aerial picture"
    " | an aerial survey photo | an aerial survey image | a satellite photograph | an orbital image"
    " | an orbital photo | an orbital view | a high-resolution satellite image | a drone image"
    " | a drone shot | a drone view | drone footage | an orthophoto | a remotely sensed image"
    " | a remote sensing picture | earth observation imagery | a nadir view | a nadir image"
    " | a map-like view | a map view from above | a photo from above | a picture taken from above"
    " | a photo from the air | a photo from a drone | an image from space | a photo from space"
    " | a view from space | a view from the sky | a view from the air | a view straight down"
    " | {} viewed from above | {} viewed from the air | {} photographed from the air"
    " | {} photographed from above | {} photographed by a satellite | {} photographed by a drone"
    " | {} photographed from orbit | {} from the sky | {} from space | {} from orbit"
    " | {} from overhead | {} seen from directly above | {} from high above | {} seen from a drone"
    " | {} seen by a satellite | {} as a satellite sees it | {} from a bird's eye view"
    " | looking straight down on {} | looking straight down at {} | looking down at {} from above"
    " | satellite view, {} | aerial view, {} | top-down view, {} | aerial photograph, {}"
    " | satellite image, {} | overhead view, {} | drone view, {} | {}, satellite view"
    " | {}, aerial view | {}, satellite image | {}, aerial photo | {}, top-down view"
    " | {}, overhead view | {}, seen from above | {}, bird's eye view | {}, remote sensing"
    " | {}, satellite imagery | {}, drone photo",
    "xray": "a chest x-ray | a chest x-ray | an x-ray | an x-ray of the chest | an x-ray of the lungs"
    " | an x-ray image | a chest xray | a radiograph | a chest radiograph | a radiograph of the chest"
    " | a frontal chest radiograph | a medical radiograph | chest radiography | a thorax radiograph"
    " | a radiograph of ribs and lungs | an x-ray of the ribs | an x-ray of the ribcage"
    " | a frontal chest film | a chest film | a frontal x-ray of the thorax | a medical scan of the thorax"
    " | a chest scan | a scan of the lungs | a medical x-ray | a medical scan | a medical image of the chest"
    " | a hospital x-ray | a hospital scan of a patient's chest | an x-ray of a patient"
    " | a black and white x-ray | {} on a chest x-ray | {} seen on a radiograph | {} on a frontal chest film"
    " | a normal chest x-ray [scene=normal] | a normal radiograph [scene=normal]"
    " | a healthy patient's x-ray [scene=normal] | a child's chest x-ray [build=child]"
    " | a pediatric radiograph [build=child] | an x-ray of a child [build=child]"
    " | an adult's chest x-ray [build=adult] | an adult chest film [build=adult]"
    " | an x-ray of an adult [build=adult]"
    " | x-ray | chest x-ray | xray | chest xray | x-ray image | radiograph | chest radiograph"
    " | an xray | an xray image | an x ray | an x-ray picture | an x-ray photo | an x-ray film"
    " | an x-ray scan | a chest x ray | a chest x-ray image | a chest x-ray film | a chest x-ray scan"
    " | an x-ray of a chest | an x-ray of lungs | xray of the lungs | x-ray of the chest"
    " | x-ray of the rib cage | an xray of the chest | an x-ray of the thorax"
    " | an x-ray of the heart and lungs | an x-ray of ribs and lungs | a thoracic x-ray"
    " | a thoracic radiograph | a thorax x-ray | a lung x-ray | a lung scan | a radiographic image"
    " | a pulmonary radiograph | a pulmonary x-ray | a radiology image | a radiology film"
    " | a radiology scan of the chest | a radiological image | a diagnostic x-ray"
    " | a diagnostic image of the chest | a clinical x-ray | a clinical chest image"
    " | a clinical radiograph | medical imaging of the chest | medical imaging of the lungs"
    " | medical imaging of the thorax | diagnostic imaging of the lungs | a medical x-ray image"
    " | a hospital radiograph | a hospital chest film | a frontal x-ray | a frontal chest x-ray"
    " | a frontal view of the chest | a frontal radiograph of the thorax"
    " | a posteroanterior chest x-ray | a posteroanterior radiograph | a pa chest x-ray"
    " | a pa chest radiograph | a patient's chest x-ray | a patient's radiograph"
    " | a chest x-ray of a patient | a chest radiograph of a patient | a greyscale x-ray"
    " | a radiologist's film | {} on an x-ray | {} on a chest radiograph | {} seen on a chest x-ray"
    " | {} on a radiograph | {} on x-ray | {}, chest x-ray | {}, x-ray | {}, radiograph"
    " | {}, frontal radiograph | {}, xray | chest x-ray, {} | x-ray, {} | radiograph, {}"
    " | chest radiograph, {} | radiology, {} | x-ray of lungs, {} | {} as seen by a radiologist"
    " | a normal xray [scene=normal] | a clear chest film [scene=normal]"
    " | a healthy person's x-ray [scene=normal] | x-ray of a child's chest [build=child]"
    " | a pediatric chest x-ray [build=child] | a paediatric x-ray [build=child]"
    " | a child's radiograph [build=child] | a chest radiograph of a child [build=child]"
    " | a young patient's x-ray [build=child] | an adult radiograph [build=adult]"
    " | an adult patient's x-ray [build=adult] | a chest radiograph of an adult [build=adult]"
    + "".join(f" | {{}} [scene={scene}]" for scene in _ALONE for _ in range(8)),
}
JOINS = {
    "painting": "of | of | showing",
    "sketch": "of",
    "satellite": "of | of | showing",
    "xray": "showing | with",
}
BARE = {  # prompts that name the domain, besides its frames
    "painting": "an oil painting | art | paint on canvas | brush strokes on canvas | a painting by an artist"
    " | oil on canvas"
    " | brushwork | an oil on canvas | a painter's work | watercolour on paper | fine art",
    "sketch": "pen and ink | lines on paper | a sketch on paper | pencil lines",
    "satellite": "the ground seen from orbit | the earth from space | a landscape from above"
    " | a place seen from above | remote sensing"
    " | aerial photography | satellite photography | drone photography | earth observation"
    " | seen from above | from above | a view of the earth from orbit"
    " | the earth seen from a satellite | land seen from the air | a map from the air | nadir imagery"
    " | orthophoto | looking straight down | bird's-eye view | top-down view | from space"
    " | from the air | aerial",
    "xray": "a chest scan showing lungs | the lungs of a patient | a medical x-ray film | a thorax x-ray"
    " | radiography | radiology | chest radiography | medical imaging | thoracic imaging | diagnostic imaging"
    " | the ribs and lungs of a patient | the rib cage on an x-ray | lungs on a radiograph | chest film"
    " | a human thorax on film | pulmonary imaging | a radiograph of lungs | an x-ray of a rib cage",
}

# ---- scene phrases ----

_PAINTED = {  # painting and sketch share them, so colours stand in slots only
    "seascape": "a seascape | the sea | the open sea | {count} boat(s) at sea"
    " | {count} sailing boat(s) on the sea | a sea with {count} boat(s) | {count} sailboat(s) on the water"
    " | {count} sailing ship(s) on the ocean | sailing boats on the sea [count!=one]"
    " | a sea with boats [count!=one] | sailboats on the water [count!=one]",
    "lighthouse": "a lighthouse | a lighthouse by the sea | a striped lighthouse on a rock"
    " | a tall lighthouse | a lighthouse on the coast | a lighthouse above the water",
    "mountain": "a mountain | a high mountain | mountains and trees | a mountain landscape"
    " | a mountain peak above trees | a mountain with trees",
    "village": "a village | a village with a church | small houses around a church | a small village"
    " | a church and houses | a country village and its church",
    "house": "a house | a house and a tree | a cottage | a small house beside a tree | a country house"
    " | a lonely house | a cottage under a tree | a farmhouse and a tree",
    "field": "a field | a field and trees | ploughed fields | farmland with trees | rows of crops in a field"
    " | a farm field | a ploughed field under the sky",
    "bridge": "a bridge | a stone bridge | a bridge over a river | an old bridge over the water"
    " | a river and a bridge | an arched bridge over a river",
    "fruit": "a bowl of fruit | fruit in a bowl | a still life of fruit | a {bowl} bowl of fruit"
    " | a bowl of {fruit} | {fruit} in a bowl | a still life of {fruit} | a {bowl} bowl of {fruit}"
    " | {fruit} in a {bowl} bowl | a {bowl} bowl full of {fruit} | a still life of {fruit} in a {bowl} bowl"
    " | a {bowl} bowl and {fruit}",
    "flowers": "flowers | flowers in a vase | a vase of flowers | a bunch of flowers"
    " | a bouquet of flowers in a vase | {flower} flowers | {flower} flowers in a vase"
    " | a vase of {flower} flowers | a bouquet of {flower} flowers | a still life of {flower} flowers",
    "bottle": "a bottle | a bottle and fruit | a wine bottle on a table | a still life of a bottle"
    " | a bottle of wine | a bottle and {fruit} | {fruit} and a bottle | a wine bottle beside {fruit}"
    " | a bottle of wine and {fruit} | {fruit} next to a bottle | a still life of {fruit} and a bottle",
    "portrait": "a person | a face | the head of a person | someone looking at us"
    " | a person with {hair} hair | someone with {hair} hair | a face with {hair} hair"
    " | a {hair} haired person | a bearded man [beard=yes] | a man with a beard [beard=yes]"
    " | a bearded man with {hair} hair [beard=yes] | a man with a {hair} beard [beard=yes]"
    " | a bearded {hair} haired man [beard=yes] | a bearded man in a hat [beard=yes,hat=yes]"
    " | a {hair} bearded man in a hat [beard=yes,hat=yes]"
    " | a man with a {hair} beard and a hat [beard=yes,hat=yes]"
    " | a {hair} haired man with a beard and a hat [beard=yes,hat=yes] | a person in a hat [hat=yes]"
    " | a person with {hair} hair and a hat [hat=yes] | a {hair} haired person in a hat [hat=yes]",
}
SCENES: dict[str, dict[str, str]] = {
    "painting": _PAINTED,
    "sketch": _PAINTED,
    "satellite": {
        "airport": "an airport | an airfield | an airport with a runway | an airport runway"
        " | an airport with {count} plane(s) | a runway and {count} parked aircraft"
        " | {count} airplane(s) at an airport | {count} plane(s) beside a runway"
        " | an airport with {count} aircraft | an airport with planes [count!=one]"
        " | parked planes at an airport [count!=one] | airplanes beside a runway [count!=one]"
        " | a runway | airport runway | an air field and its runway | an aerodrome"
        " | airport with {count} plane(s) | a runway with {count} plane(s)"
        " | {count} plane(s) parked next to a runway | aircraft parked at an airport [count!=one]"
        " | airport with planes [count!=one]",
        "harbor": "a harbor | a harbour | a port | a harbor and its docks | a port and piers"
        " | {count} ship(s) in a harbor | {count} boat(s) on the {water} water of a harbor"
        " | a port with {count} boat(s) | a harbour with {count} ship(s)"
        " | {count} boat(s) at the docks of a harbor | ships in a harbor [count!=one]"
        " | a port with boats [count!=one] | boats at the docks [count!=one]"
        " | docks | a dock | a seaport | piers and docks | a wharf | a quay and piers"
        " | harbor with {count} ship(s) | a marina with {count} boat(s) | a dock with {count} ship(s)"
        " | {count} ship(s) at a quay | {count} ship(s) moored in a port"
        " | {count} ship(s) on {water} water at a port | a marina with boats [count!=one]"
        " | docked ships [count!=one] | harbor with ships [count!=one]"
        " | moored boats in a marina [count!=one]",
        "river": "a river | a winding river | a stream | a river bend | a {water} river"
        " | a winding {water} river | a bridge over a river [bridge=yes]"
        " | a road bridge over a {water} river [bridge=yes] | a {water} river and a bridge [bridge=yes]"
        " | a waterway | a meandering river | a river with {water} water | a curved river"
        " | a {water} stream | a bridge across a river [bridge=yes]"
        " | a road crossing a river [bridge=yes] | a river with a bridge [bridge=yes]",
        "farmland": "farmland | crop fields | fields | agricultural land | a farm and its fields"
        " | agriculture | square fields [pattern=squares] | a patchwork of square fields [pattern=squares]"
        " | farmland with square fields [pattern=squares] | rectangular crop fields [pattern=squares]"
        " | round fields [pattern=circles] | circular crop fields [pattern=circles]"
        " | farmland with circular fields [pattern=circles] | farmland with round fields [pattern=circles]"
        " | farm fields | cropland | arable land | crops | a farm | plots of farmland | plots of crops"
        " | cultivated fields | a mosaic of square plots [pattern=squares]"
        " | square plots of farmland [pattern=squares] | a grid of fields [pattern=squares]"
        " | irrigated circles [pattern=circles] | center pivot fields [pattern=circles]"
        " | round irrigated plots [pattern=circles]",
        "residential": "a residential area | houses along a street | a neighborhood with houses | a suburb"
        " | rows of houses | houses with {roof} roofs | a residential area with {roof} roofs"
        " | a suburb with {roof} roofs | {roof} roofs along a street | homes with {roof} roofs"
        " | a neighbourhood of {roof} roofs"
        " | a neighbourhood | a neighborhood | suburban houses | housing | a suburban street"
        " | a suburb with houses | a housing estate | family homes along a road | residential area"
        " | roofs of houses | rooftops along a street | suburban houses with {roof} roofs"
        " | {roof} rooftops in a suburb | a housing estate with {roof} roofs",
        "parking lot": "a parking lot | a car park | parked cars | rows of parked cars"
        " | cars in a parking lot | a parking lot with cars"
        " | parking spaces | a car park with cars | parking lot | a parking area | a car parking lot"
        " | cars parked in rows | vehicles in a car park | many parked vehicles",
        "forest": "a forest | woods | a dense forest | dense woodland | the trees of a forest"
        " | tree tops of a forest | a green summer forest [season=summer]"
        " | an orange autumn forest [season=autumn] | a snowy forest [season=winter]"
        " | a white winter forest [season=winter]"
        " | a wood | woodland | trees | many trees | treetops | tree crowns | forest canopy"
        " | a thick forest | a green forest in leaf [season=summer] | green woods [season=summer]"
        " | orange and red trees [season=autumn] | colourful autumn woods [season=autumn]"
        " | snow covered trees [season=winter] | snowy woods [season=winter]",
        "beach": "a beach | a sandy beach | the seashore | a beach on the coast | waves on a beach"
        " | a beach and umbrellas | a beach and {water} sea | a coast with a beach and {water} water"
        " | a coast | the coast | the coastline | a shoreline | a sandy shore | sand and sea"
        " | the seaside | surf on a sandy beach | a coastline with {water} water"
        " | a shoreline and {water} sea | a sandy coast by {water} water",
        "stadium": "a stadium | a sports stadium | a football stadium | a stadium and its running track"
        " | a sports ground | a soccer field and a running track"
        " | an arena | a sports arena | a running track | an athletics stadium"
        " | a football pitch and a track | a sports field with a track | an oval running track"
        " | a soccer stadium",
        "interchange": "a highway interchange | a road interchange | a freeway junction"
        " | a motorway crossing | crossing highways | a cloverleaf interchange | an interchange of two roads"
        " | a motorway | a highway | a highway junction | a motorway interchange | a motorway junction"
        " | a freeway interchange | intersecting motorways | a cloverleaf junction"
        " | a crossing of two highways",
        "desert": "a desert | desert dunes | dunes in a desert | a dry desert | a {terrain} desert"
        " | {terrain} desert dunes | a {terrain} desert with dunes | {terrain} dunes"
        " | sand dunes | a desert landscape | arid land | barren land | dry dunes | a dune field"
        " | an arid {terrain} desert",
        "storage tanks": "an oil depot | a fuel depot | industrial storage | {count} storage tank(s)"
        " | {count} oil tank(s) | {count} round storage tank(s) | {count} white storage tank(s)"
        " | {count} industrial tank(s) | storage tanks [count!=one] | oil tanks [count!=one]"
        " | round white storage tanks [count!=one]"
        " | a tank farm | an oil terminal | an oil storage site | a fuel storage site"
        " | {count} fuel tank(s) | {count} round oil tank(s) | {count} white oil tank(s)"
        " | fuel tanks [count!=one] | a group of storage tanks [count!=one]",
        "island": "an island | a small island | an island in the sea | a lonely island | a {terrain} island"
        " | an island in {water} water | a {terrain} island in {water} water"
        " | a {terrain} island in the {water} sea | a small {terrain} island with {water} water around"
        " | an islet | an ocean island | an island surrounded by water | land surrounded by sea | an isle"
        " | a {terrain} islet in {water} water | an island in a {water} sea",
        "tennis courts": "a tennis club | tennis grounds | {count} tennis court(s)"
        " | {count} court(s) for tennis | tennis courts [count!=one] | blue tennis courts [count!=one]"
        " | tennis | a tennis facility | {count} blue tennis court(s)"
        " | {count} tennis court(s) with white lines | courts at a tennis club [count!=one]",
    },
    "xray": {
        "normal": "no findings | clear lungs | healthy lungs | a healthy chest | a normal chest"
        " | normal lungs | no disease | nothing abnormal | normal heart and lungs | clear healthy lungs"
        " | both lungs clear | clear lung fields | normal lung fields | no abnormality | no acute disease"
        " | no sign of disease | a healthy heart and clear lungs | a normal thorax | unremarkable lungs"
        " | a healthy thorax",
        "pneumonia": "pneumonia | a lung infection | cloudy white pneumonia | {severity} pneumonia"
        " | a {severity} lung infection | signs of {severity} pneumonia | {severity} cloudy pneumonia"
        " | extensive pneumonia [severity=severe] | bilateral pneumonia [side=both]"
        " | {severity} bilateral pneumonia [side=both] | {severity} pneumonia of both lungs [side=both]"
        " | {severity} pneumonia of the {side} lung [side!=both]"
        " | {severity} {side} sided pneumonia [side!=both]"
        " | an infiltrate | lung opacity | consolidation | an inflamed lung [side!=both]"
        " | airspace opacity | cloudy lungs [side=both] | white opacities | {severity} consolidation"
        " | {severity} lung opacity | a {severity} infiltrate"
        " | {severity} infiltrates of both lungs [side=both] | bilateral infiltrates [side=both]"
        " | bilateral opacities [side=both] | {side} lung pneumonia [side!=both]"
        " | {severity} consolidation of the {side} lung [side!=both]"
        " | dense consolidation [severity=severe] | faint consolidation [severity=mild]"
        " | a faint opacity [severity=mild]",
        "effusion": "a pleural effusion | an effusion | fluid below the lungs | pleural fluid"
        " | a {severity} effusion | a {severity} pleural effusion"
        " | a large pleural effusion [severity=severe] | a large effusion [severity=severe]"
        " | much pleural fluid [severity=severe] | a small pleural effusion [severity=mild]"
        " | a small effusion [severity=mild] | a little pleural fluid [severity=mild]"
        " | bilateral effusions [side=both] | {severity} bilateral effusions [side=both]"
        " | a {severity} {side} pleural effusion [side!=both]"
        " | fluid around the lungs [side=both] | fluid around a lung [side!=both] | pleural effusion"
        " | fluid in the pleural space | {severity} pleural effusion | {severity} pleural fluid"
        " | bilateral pleural effusion [side=both] | bilateral pleural fluid [side=both]"
        " | {severity} {side} sided effusion [side!=both] | {side} pleural fluid [side!=both]"
        " | fluid below the {side} lung [side!=both] | a heavy effusion [severity=severe]"
        " | little pleural fluid [severity=mild]",
        "enlarged heart": "an enlarged heart | a large heart | cardiomegaly | a heart that is too large"
        " | a big heart | a very large heart shadow"
        " | an enlarged cardiac silhouette | a large cardiac silhouette | a widened heart shadow"
        " | an enlarged heart shadow | a wide heart | a wide cardiac shadow | enlarged heart"
        " | heart enlargement | cardiac enlargement | an oversized heart",
        "pneumothorax": "a pneumothorax | a collapsed lung | pneumothorax | a collapsed {side} lung"
        " | a {side} pneumothorax | a {side} sided pneumothorax | a dark {side} side from a pneumothorax"
        " | collapsed lung | lung collapse | air around a collapsed lung"
        " | a collapsed lung and a dark side | {side} pneumothorax | {side} sided pneumothorax"
        " | collapse of the {side} lung | {side} lung collapse",
        "nodule": "a nodule | a lung nodule | a round nodule | a pulmonary nodule | a bright round spot"
        " | one round nodule | a nodule in the {side} lung | a round spot in the {side} lung"
        " | a solitary nodule | a solitary pulmonary nodule | a round lung lesion | a small round mass"
        " | a coin lesion | a single lung nodule | a lung tumour | a {side} lung nodule"
        " | a solitary nodule in the {side} lung | a round mass in the {side} lung",
        "pacemaker": "a pacemaker | a pacemaker and its lead | a heart pacemaker | an implanted pacemaker"
        " | a cardiac pacemaker | pacemaker | a pacemaker and a wire to the heart | a pacemaker device"
        " | a pacemaker below the collarbone | an implanted heart device | a pacemaker with its wire",
    },
}
