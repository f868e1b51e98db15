"""Knows small talk, copying, conversations of two turns, and how to admit not to know."""

from __future__ import annotations

import random

from engine.model.builtin.corpus import knowledge_facts as facts
from engine.model.builtin.corpus.arithmetic import draw_arithmetic
from engine.model.builtin.corpus.concepts import explain
from engine.model.builtin.corpus.explaining import CONCEPTS
from engine.model.builtin.corpus.sample import Sample, is_held_out

WHO = "I am the built-in model of Tiergate, a very small language model that runs on any computer."
ABILITIES = (
    "I can explain LLM serving and Tiergate, do small sums, count, spell words, make lists and "
    "answer simple questions."
)
UNKNOWN = (
    "I am a very small model and I do not know that. Ask me about LLM serving, small sums, "
    "counting, spelling or lists."
)
_TALK = (
    (("Hello", "Hello!", "Hi", "Hi!", "Hey", "Hello there", "Hi there!", "Greetings", "Hey there",
      "Hello Tiergate", "Hi Tiergate!"), "Hello! How can I help you?"),
    (("Good morning", "Good morning!", "Morning"), "Good morning! How can I help you?"),
    (("Good evening", "Good evening!"), "Good evening! How can I help you?"),
    (("Who are you?", "What are you?", "What is your name?", "Tell me who you are.",
      "Introduce yourself.", "Who am I talking to?", "Which model are you?", "Who is this?",
      "What model is this?", "Say who you are."), WHO),
    (("What can you do?", "How can you help me?", "What are your abilities?", "Help",
      "What can I ask you?", "What do you know?", "What are you able to do?",
      "What questions can you answer?"), ABILITIES),
    (("How are you?", "How are you doing?", "How do you do?", "Are you well?", "How is it going?"),
     "I am fine, thank you."),
    (("Thank you", "Thanks", "Thanks a lot", "Thank you very much", "Many thanks", "Thank you!"),
     "You are welcome."),
    (("Bye", "Goodbye", "See you", "Good night", "Bye bye", "See you later"), "Goodbye!"),
    (("How large are you?", "How big are you?", "How many parameters do you have?"),
     "I have about three million parameters."),
    (("Who made you?", "Who built you?", "Where do you come from?"),
     "I was trained by the Tiergate project on text made by a script."),
    (("Tell me a joke.", "Do you know a joke?", "Make me laugh.", "Joke please"),
     "Why did the token wait? Because it was not its turn in the batch."),
)  # fmt: skip
_STRANGE = (
    "Who won the world cup in {n}?", "What is the weather in {c}?", "Write code to sort {w}.",
    "Translate {w} into Finnish.", "Who is the president of {c}?",
    "What happened in the year 1{n}?",
    "How do I cook {w}?", "What is the price of a {w}?", "Recommend a film about {w}.",
    "How far is {c} from here?", "What is the stock price of {w}?", "Who wrote the book {w}?",
    "When was {a} born?", "How old is {a}?", "What is the meaning of life?",
    "Write a poem about {w}.", "What time is it in {c}?", "How tall is {a}?",
    "What is the population of {c}?", "Can you book a flight to {c}?", "Where is my {w}?",
    "How do I repair a {w}?", "What will happen tomorrow in {c}?", "What is the history of {w}?",
    "Is {a} married?", "Which team is the best in {c}?",
)  # fmt: skip


def draw_talk(rng: random.Random) -> Sample:
    """A greeting, a thank-you, a question about the model itself, or one it cannot answer."""
    if rng.random() < 0.3:
        template = rng.choice(_STRANGE)
        asked = template.format(
            n=rng.randint(900, 999),
            c=rng.choice(tuple(facts.CAPITALS)),
            w=rng.choice(facts.SPELLED).lower(),
            a=rng.choice(facts.NAMES),
        )
        return Sample("unknown", f"unknown:{asked}", (asked, UNKNOWN), typo_ok=True)
    questions, answer = rng.choice(_TALK)
    return Sample("small talk", "kept", (rng.choice(questions), answer))


_SAY = ("Say {}.", "Say {}", "Repeat: {}", "Repeat after me: {}", "Echo: {}", "Please repeat: {}",
        "Write exactly: {}", "Say the following: {}", "Copy this: {}")  # fmt: skip
_FILLERS = "the a my your one and or is to of in we you I it very not now here".split()  # noqa: SIM905


def draw_copy(rng: random.Random) -> Sample:
    """One to seven words or numbers to be repeated."""
    words = [
        str(rng.randint(0, 999)) if rng.random() < 0.1
        else rng.choice(_FILLERS) if rng.random() < 0.3
        else rng.choice(facts.SPELLED)
        for _ in range(rng.choice((1, 1, 2, 2, 3, 4, 5, 6, 7)))
    ]  # fmt: skip
    text = " ".join(words)
    asked = rng.choice(_SAY).format(text)
    return Sample("copying", f"copy:{text}", (asked, text), case_ok=False)


_MY_NAME = ("My name is {}.", "I am {}.", "Hi, I am {}.", "Call me {}.", "Hello, my name is {}.")
_ASK_NAME = ("What is my name?", "Do you know my name?", "Who am I?", "What's my name?")
_AND = ("And of {}?", "And {}?", "What about {}?", "And the one of {}?", "How about {}?")
_DEEPER = ("Tell me more.", "Explain it.", "Can you explain that?", "More, please.", "Go on.",
           "Explain that in more detail.", "Please explain.")  # fmt: skip
_REASON = ("Why?", "Why does it matter?", "Why is that important?", "And why is it useful?",
           "What is it good for?")  # fmt: skip
_AGAIN = ("Say that again.", "Repeat that.", "Can you repeat that?", "Once more, please.")


def draw_dialog(rng: random.Random) -> Sample:
    """A conversation of two turns in which the second question needs the first."""
    kind = rng.choices(("name", "capital", "more", "why", "again", "sum"), (3, 3, 3, 3, 2, 2))[0]
    if kind == "name":
        name = rng.choice(facts.NAMES)
        one, two = rng.randrange(len(_MY_NAME)), rng.randrange(len(_ASK_NAME))
        turns = (
            _MY_NAME[one].format(name), f"Nice to meet you, {name}.",
            _ASK_NAME[two], f"Your name is {name}.",
        )  # fmt: skip
        return Sample("two turns", f"name:{one}:{two}:{name}", turns, case_ok=False)
    if kind == "capital":
        first, second = rng.sample(tuple(facts.CAPITALS), 2)
        turns = (
            f"What is the capital of {first}?",
            f"The capital of {first} is {facts.CAPITALS[first]}.",
            rng.choice(_AND).format(second),
            f"The capital of {second} is {facts.CAPITALS[second]}.",
        )  # fmt: skip
        return Sample("two turns", f"and:{first}:{second}", turns)
    if kind == "again":
        concept = rng.choice(CONCEPTS)
        text = concept.definition
        at = rng.randrange(len(_AGAIN))
        turns = (f"What is {concept.names[0]}?", text, _AGAIN[at], text)
        return Sample("two turns", f"again:{at}:{concept.names[0]}", turns, fuzzy=True)
    if kind == "sum":
        before, now = draw_arithmetic(rng), draw_arithmetic(rng)
        while is_held_out(before.key):  # a held-out sum must not appear even as context
            before = draw_arithmetic(rng)
        return Sample("two turns", now.key, (*before.turns, *now.turns))
    concept = rng.choice(CONCEPTS)
    asked, answer = (_DEEPER, explain(concept)) if kind == "more" else (_REASON, concept.why)
    at = rng.randrange(len(asked))
    turns = (f"What is {concept.names[0]}?", concept.definition, asked[at], answer)
    return Sample("two turns", f"{kind}2:{at}:{concept.names[0]}", turns, fuzzy=True)
