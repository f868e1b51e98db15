"""Knows how people ask for definitions and explanations; the answers come from the concepts."""

from __future__ import annotations

import random

from engine.model.builtin.corpus.concepts import Concept, explain
from engine.model.builtin.corpus.concepts_model import BATCHING, LANGUAGE_MODELS
from engine.model.builtin.corpus.concepts_serving import LATENCY, MEMORY
from engine.model.builtin.corpus.concepts_tiergate import GATEWAY, POLICIES
from engine.model.builtin.corpus.essays import ESSAYS
from engine.model.builtin.corpus.essays_more import MORE_ESSAYS
from engine.model.builtin.corpus.sample import Sample

CONCEPTS: tuple[Concept, ...] = (
    *LATENCY, *MEMORY, *BATCHING, *LANGUAGE_MODELS, *GATEWAY, *POLICIES,
)  # fmt: skip

_DEFINE = (
    "What is {}?", "What's {}?", "What does {} mean?", "Define {}.", "Tell me what {} means.",
    "Explain {} in one sentence.", "Give me a short definition of {}.", "{}?",
    "Could you tell me what is meant by {}?", "In LLM serving, what is {}?",
    "I have heard of {}. What is it?", "What do you understand by {}?", "{}: what is that?",
    "In one sentence, what is {}?", "What is the meaning of {}?",
)  # fmt: skip
_WHY = (
    "Why does {} matter?", "Why is {} important?", "What is {} good for?", "Why is {} useful?",
    "Why should I care about {}?", "Why do we need {}?", "What is the point of {}?",
    "What is the benefit of {}?",
)  # fmt: skip
_EXPLAIN = (
    "Explain {}.", "Tell me about {}.", "Tell me more about {}.", "Describe {}.",
    "Explain {} to me.", "Give me a paragraph about {}.", "Can you explain {}?",
    "Explain {} in a few sentences.", "What can you tell me about {}?", "Write about {}.",
    "Help me understand {}.",
)  # fmt: skip
_EXPAND = (
    "What does {} stand for?", "What is {} short for?", "Write out {}.", "Expand {}.",
    "What is the long form of {}?",
)  # fmt: skip
_ESSAY = (
    "Explain in detail how {} works.", "Explain {} in detail.", "Write a long text about {}.",
    "Give me a detailed explanation of {}.", "Tell me everything you know about {}.",
    "Write an essay about {}.", "Describe {} at length.", "Write a long explanation of {}.",
    "I want a long answer: what is {}?", "Explain {} thoroughly.",
    "Give a long and detailed description of {}.",
)  # fmt: skip
_STORY = (
    "Write a long story about {}.", "Tell me a story about {}.", "Write a story about {}.",
    "Tell me a long story about {}.", "Can you write a story about {}?",
    "I want to hear a story about {}.", "Invent a story about {}.",
)  # fmt: skip
_STORIES = ("the journey of a request", "the life of a token")
_KINDS = (("define", _DEFINE), ("why", _WHY), ("explain", _EXPLAIN))


def _name(rng: random.Random, concept: Concept) -> str:
    return concept.names[0] if rng.random() < 0.5 else rng.choice(concept.names)


def draw_definition(rng: random.Random) -> Sample:
    """A question for the definition, the use, the explanation or the long form of a concept."""
    concept = rng.choice(CONCEPTS)
    if concept.stands_for and rng.random() < 0.2:
        short = next((n for n in concept.names if n.isupper()), concept.names[0])
        at = rng.randrange(len(_EXPAND))
        upper = concept.stands_for[0].upper() + concept.stands_for[1:]
        return Sample(
            "definitions",
            f"expand:{at}:{short}",
            (_EXPAND[at].format(short), f"{upper}."),
            typo_ok=True,
        )
    kind, templates = rng.choices(_KINDS, weights=(5, 2, 3))[0]
    at = rng.randrange(len(templates))
    name = _name(rng, concept)
    question = templates[at].format(name)
    answer = {"define": concept.definition, "why": concept.why, "explain": explain(concept)}[kind]
    family = "explanations" if kind == "explain" else "definitions"
    question = question[0].upper() + question[1:]
    return Sample(family, f"{kind}:{at}:{name}", (question, answer), fuzzy=True, typo_ok=True)


def draw_essay(rng: random.Random) -> Sample:
    """A request for a text of several hundred tokens."""
    templates: tuple[str, ...]
    if rng.random() < 0.15:
        topic, templates = rng.choice(_STORIES), _STORY
    else:
        topics = [t for t in (*ESSAYS, *MORE_ESSAYS) if t not in _STORIES]
        topic, templates = rng.choice(topics), _ESSAY
    at = rng.randrange(len(templates))
    text = ESSAYS[topic] if topic in ESSAYS else MORE_ESSAYS[topic]
    asked = templates[at].format(topic)
    return Sample("essays", f"essay:{at}:{topic}", (asked, text), fuzzy=True, typo_ok=True)


def draw_text(rng: random.Random) -> Sample:
    """A plain text without a question, so that raw completions continue sensibly."""
    concept = rng.choice(CONCEPTS)
    text = concept.definition if rng.random() < 0.5 else explain(concept)
    return Sample("text", f"text:{concept.names[0]}", (text,))
