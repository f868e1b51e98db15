"""Knows tables of everyday facts; knows no question wording."""

from __future__ import annotations

CAPITALS = {
    "France": "Paris", "Germany": "Berlin", "Spain": "Madrid", "Italy": "Rome",
    "Portugal": "Lisbon",
    "Austria": "Vienna", "Poland": "Warsaw", "Greece": "Athens", "Norway": "Oslo",
    "Sweden": "Stockholm", "Finland": "Helsinki", "Denmark": "Copenhagen", "Ireland": "Dublin",
    "Belgium": "Brussels", "Hungary": "Budapest", "Japan": "Tokyo", "China": "Beijing",
    "India": "New Delhi", "Russia": "Moscow", "Egypt": "Cairo", "Kenya": "Nairobi",
    "Canada": "Ottawa", "Mexico": "Mexico City", "Brazil": "Brasilia", "Argentina": "Buenos Aires",
    "Chile": "Santiago", "Peru": "Lima", "Australia": "Canberra", "England": "London",
    "Turkey": "Ankara", "Thailand": "Bangkok", "Cuba": "Havana",
}  # fmt: skip
OPPOSITES = {
    "hot": "cold", "big": "small", "fast": "slow", "high": "low", "long": "short", "young": "old",
    "rich": "poor", "hard": "soft", "light": "dark", "full": "empty", "open": "closed",
    "early": "late", "wet": "dry", "strong": "weak", "happy": "sad", "good": "bad", "up": "down",
    "left": "right", "day": "night", "first": "last", "thick": "thin", "loud": "quiet",
    "clean": "dirty", "near": "far", "true": "false", "begin": "end", "buy": "sell", "push": "pull",
}  # fmt: skip
PLURALS = {
    "cat": "cats", "dog": "dogs", "mouse": "mice", "child": "children", "foot": "feet",
    "tooth": "teeth", "man": "men", "woman": "women", "house": "houses", "box": "boxes",
    "city": "cities", "baby": "babies", "leaf": "leaves", "knife": "knives", "sheep": "sheep",
    "fish": "fish", "bus": "buses", "tree": "trees", "book": "books", "goose": "geese",
    "wolf": "wolves", "key": "keys", "token": "tokens", "tenant": "tenants", "story": "stories",
}  # fmt: skip
COLOURS_OF = {
    "the sky": "blue", "grass": "green", "snow": "white", "blood": "red", "a banana": "yellow",
    "coal": "black", "milk": "white", "an orange": "orange", "a lemon": "yellow",
    "a tomato": "red", "the sun": "yellow", "chocolate": "brown", "an elephant": "gray",
    "a carrot": "orange", "a strawberry": "red", "a frog": "green", "a crow": "black",
}  # fmt: skip
SOUNDS = {
    "a dog": "barks", "a cat": "meows", "a cow": "moos", "a duck": "quacks", "a lion": "roars",
    "a sheep": "bleats", "a bee": "buzzes", "a snake": "hisses", "a wolf": "howls",
    "a horse": "neighs", "a pig": "oinks", "an owl": "hoots",
}  # fmt: skip
SINGLE = (
    (("How many days are in a week?", "How many days does a week have?", "Days in a week?"),
     "7", "A week has 7 days."),
    (("How many months are in a year?", "How many months does a year have?", "Months in a year?"),
     "12", "A year has 12 months."),
    (("How many hours are in a day?", "How many hours does a day have?", "Hours in a day?"),
     "24", "A day has 24 hours."),
    (("How many minutes are in an hour?", "How many minutes does an hour have?",
      "Minutes in an hour?"), "60", "An hour has 60 minutes."),
    (("How many seconds are in a minute?", "How many seconds does a minute have?",
      "Seconds in a minute?"), "60", "A minute has 60 seconds."),
    (("How many legs does a spider have?", "How many legs has a spider?", "Legs of a spider?"),
     "8", "A spider has 8 legs."),
    (("How many legs does a dog have?", "How many legs has a dog?", "Legs of a dog?"),
     "4", "A dog has 4 legs."),
    (("How many bits are in a byte?", "How many bits does a byte have?", "Bits in a byte?"),
     "8", "A byte has 8 bits."),
    (("How many planets are in the solar system?", "How many planets does the solar system have?",
      "Planets in the solar system?"), "8", "The solar system has 8 planets."),
    (("How many letters are in the alphabet?", "How many letters does the alphabet have?",
      "Letters in the alphabet?"), "26", "The alphabet has 26 letters."),
    (("What is the largest planet?", "Which planet is the largest?", "Largest planet?"),
     "Jupiter", "Jupiter is the largest planet."),
    (("What is the largest ocean?", "Which ocean is the largest?", "Largest ocean?"),
     "Pacific", "The Pacific is the largest ocean."),
    (("What do bees make?", "What is made by bees?", "Product of bees?"),
     "Honey", "Bees make honey."),
    (("What is frozen water called?", "What do we call frozen water?", "Frozen water?"),
     "Ice", "Frozen water is called ice."),
    (("What is the largest animal?", "Which animal is the largest?", "Largest animal?"),
     "Whale", "The blue whale is the largest animal."),
)  # fmt: skip
STATEMENTS = (
    ("snow cold", "Is snow cold?", True), ("fire cold", "Is fire cold?", False),
    ("ice hot", "Is ice hot?", False), ("sun hot", "Is the sun hot?", True),
    ("cat animal", "Is a cat an animal?", True), ("rose animal", "Is a rose an animal?", False),
    ("apple fruit", "Is an apple a fruit?", True), ("dog fruit", "Is a dog a fruit?", False),
    ("fish swim", "Can fish swim?", True), ("birds fly", "Can birds fly?", True),
    ("pigs fly", "Can pigs fly?", False), ("cars swim", "Can cars swim?", False),
    ("stone food", "Is a stone food?", False), ("bread food", "Is bread food?", True),
    ("water wet", "Is water wet?", True), ("moon star", "Is the moon a star?", False),
    ("sun star", "Is the sun a star?", True), ("paris italy", "Is Paris in Italy?", False),
    ("paris france", "Is Paris in France?", True), ("rome italy", "Is Rome in Italy?", True),
    ("berlin spain", "Is Berlin in Spain?", False), ("red colour", "Is red a color?", True),
    ("seven colour", "Is seven a color?", False), ("monday day", "Is Monday a day?", True),
    ("may month", "Is May a month?", True), ("friday month", "Is Friday a month?", False),
    ("mars planet", "Is Mars a planet?", True), ("elephant small", "Is an elephant small?", False),
    ("ant small", "Is an ant small?", True), ("gpu fast", "Is a GPU fast at matrix products?",
    True),
    ("premium first", "Is premium served before free?", True),
    ("free first", "Is free served before premium?", False),
    ("stream", "Can Tiergate stream answers?", True),
    ("ttft first", "Does TTFT measure the first token?", True),
    ("tbt first", "Does TBT measure the first token?", False),
    ("kv grow", "Does the KV cache grow with every token?", True),
    ("decode parallel", "Does decode compute the whole prompt?", False),
    ("prefill parallel", "Does prefill read the whole prompt?", True),
    ("greedy random", "Is greedy decoding random?", False),
    ("share keys", "Should I share my API key?", False),
    ("tenants see", "Can one tenant see the data of another tenant?", False),
    ("alise predicts", "Does ALISE predict the output length?", True),
    ("fcfs predicts", "Does FCFS predict the output length?", False),
    ("orca cont", "Did Orca introduce continuous batching?", True),
    ("429 many", "Does 429 mean too many requests?", True),
    ("int8 16", "Does INT8 have 16 bits?", False), ("bf16 16", "Does bfloat16 have 16 bits?", True),
    ("paged blocks", "Does paged attention use blocks?", True),
    ("slai budget", "Does SLAI use a token budget?", True),
    ("swap host", "Does swapping use host memory?", True),
    ("recompute host", "Does recomputation need host memory?", False),
    ("are you human", "Are you a human?", False), ("are you model", "Are you a language model?",
    True),
    ("are you large", "Are you a large model?", False), ("gpt", "Are you ChatGPT?", False),
    ("offline", "Can you work offline?", True),
)  # fmt: skip
LISTS: dict[str, tuple[str, ...]] = {
    "colors": ("red", "blue", "green", "yellow", "orange", "purple", "black", "white", "brown",
    "pink"),
    "fruits": ("apple", "banana", "cherry", "orange", "pear", "grape", "lemon", "mango", "peach",
    "plum"),
    "animals": ("cat", "dog", "horse", "cow", "lion", "tiger", "bear", "wolf", "mouse", "rabbit"),
    "planets": ("Mercury", "Venus", "Earth", "Mars", "Jupiter", "Saturn", "Uranus", "Neptune"),
    "days": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
    "months": ("January", "February", "March", "April", "May", "June", "July", "August",
               "September", "October", "November", "December"),
    "letters": ("A", "B", "C", "D", "E", "F", "G", "H", "I", "J", "K", "L"),
    "vegetables": ("carrot", "potato", "onion", "tomato", "pea", "bean", "spinach", "cabbage"),
    "countries": ("France", "Germany", "Spain", "Italy", "Japan", "China", "India", "Canada",
                  "Brazil", "Egypt"),
    "birds": ("eagle", "owl", "crow", "duck", "swan", "robin", "parrot", "penguin"),
    "schedulers": ("FCFS", "Orca", "Sarathi", "SLAI", "RAD", "ALISE", "FastServe", "hybrid"),
    "metrics": ("TTFT", "TBT", "throughput", "goodput", "attainment", "queue length"),
    "instruments": ("piano", "guitar", "violin", "flute", "drum", "trumpet", "harp", "cello"),
    "languages": ("English", "German", "French", "Spanish", "Italian", "Chinese", "Japanese",
    "Russian"),
    "seasons": ("spring", "summer", "autumn", "winter"),
}  # fmt: skip
SPELLED = (  # noqa: SIM905
    "cat dog house tree apple banana cherry orange pear grape lemon mango peach plum horse cow "
    "lion tiger bear wolf mouse rabbit red blue green yellow purple black white brown pink "
    "carrot potato onion tomato bean eagle owl crow duck swan robin parrot piano guitar violin "
    "flute drum hello world water fire earth stone river mountain sun moon star cloud rain snow "
    "wind spring summer autumn winter Monday Friday Sunday January April March token model "
    "queue batch tenant premium free engine gateway server cache block memory prompt answer "
    "latency budget scheduler python computer keyboard window door table chair bread butter "
    "cheese milk sugar coffee school teacher doctor friend family brother sister mother father "
    "garden flower rose ship train plane street bridge city village king queen castle music "
    "dance letter number question language morning evening night week month year hour minute "
    "second Paris London Berlin Rome Madrid"
).split()
NAMES = (
    "Ada", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Henry", "Ida", "Jack", "Kate",
    "Leo", "Mia", "Noah", "Olga", "Paul", "Ruth", "Sam", "Tina", "Victor", "Anna", "Tom", "Lisa",
    "Peter", "Maria", "John",
)  # fmt: skip
NUMBER_WORDS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven", "twelve",
)  # fmt: skip
