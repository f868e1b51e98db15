"""Knows the facts of language models, batching and decoding as text; knows nothing of Tiergate."""

from __future__ import annotations

from engine.model.builtin.corpus.concepts import Concept

BATCHING: tuple[Concept, ...] = (
    Concept(
        ("prefill", "the prefill"),
        "Prefill is the phase that reads the whole prompt and fills the KV cache.",
        "It matters because it decides how long a user waits for the first token.",
        "All prompt tokens are computed in parallel, so prefill is limited by compute.",
    ),
    Concept(
        ("decode", "the decode phase"),
        "Decode is the phase that produces the answer one token at a time.",
        "It matters because most of the time of a long answer is spent there.",
        "Each step reads all the weights, so decode is limited by memory bandwidth.",
    ),
    Concept(
        ("chunked prefill",),
        "Chunked prefill cuts a long prompt into pieces and computes one piece per step.",
        "It matters because a long prompt then no longer stops the tokens of other users.",
        "The decodes of other requests ride along in the same batch.",
    ),
    Concept(
        ("continuous batching", "iteration level scheduling"),
        "Continuous batching lets requests join and leave the batch after every step.",
        "It matters because no request has to wait for the slowest one of its batch.",
        "It was introduced by Orca and is used by all modern engines.",
    ),
    Concept(
        ("static batching",),
        "Static batching starts a group of requests together and waits until all are done.",
        "It is simple, but short requests wait for the longest one.",
        "Continuous batching solves this problem.",
    ),
    Concept(
        ("a batch", "batch"),
        "A batch is a group of requests that are computed together in one step.",
        "It matters because the weights are read once for all requests of the batch.",
        "A larger batch raises the throughput and makes the step longer.",
    ),
    Concept(
        ("a step", "an engine step"),
        "A step is one pass of the engine through the model.",
        "It matters because the scheduler can change its mind only between two steps.",
        "Every decode in the step gains one token.",
    ),
    Concept(
        ("a token budget", "token budget", "the token budget"),
        "A token budget is the largest number of tokens that one step may compute.",
        "It matters because it bounds the length of the step and so the time between tokens.",
        "SLAI uses a budget of 512 tokens.",
    ),
    Concept(
        ("speculative decoding",),
        "Speculative decoding lets a small model guess tokens that the large model then checks.",
        "It matters because several tokens can be accepted in one step of the large model.",
        "The result is the same as without it, only faster.",
    ),
    Concept(
        ("tensor parallelism",),
        "Tensor parallelism splits every layer of a model across several GPUs.",
        "It is useful when a model is too large for one GPU.",
        "The GPUs must exchange results in every layer, so they need a fast link.",
    ),
)

LANGUAGE_MODELS: tuple[Concept, ...] = (
    Concept(
        ("a token", "token"),
        "A token is a small piece of text, such as a word or a part of a word.",
        "It matters because a language model reads and writes tokens, not letters.",
        "In English a token is about four letters long.",
    ),
    Concept(
        ("a tokenizer", "tokenizer"),
        "A tokenizer turns text into token numbers and back.",
        "It matters because the model understands only the numbers.",
        "Many tokenizers are trained with byte pair encoding.",
    ),
    Concept(
        ("an LLM", "LLM", "a large language model"),
        "An LLM is a neural network that predicts the next token of a text.",
        "It matters because good predictions can answer questions and write text.",
        "It is trained on a large amount of text and has many parameters.",
        "large language model",
    ),
    Concept(
        ("a transformer", "the transformer"),
        "A transformer is a neural network that is built from attention and feed-forward layers.",
        "It matters because nearly all language models are transformers.",
        "It can look at all positions of a text at the same time.",
    ),
    Concept(
        ("attention", "self-attention"),
        "Attention lets every token look at earlier tokens and collect what it needs from them.",
        "It matters because the meaning of a word depends on the words around it.",
        "It compares a query with keys and mixes the values that fit best.",
    ),
    Concept(
        ("grouped query attention", "GQA"),
        "Grouped query attention lets several query heads share one key and value head.",
        "It matters because the KV cache becomes several times smaller.",
        "The quality of the model hardly changes.",
        "grouped query attention",
    ),
    Concept(
        ("temperature", "the temperature", "sampling temperature"),
        "Temperature is a number that makes sampling more random or less random.",
        "It is useful because some tasks need exact answers and others need variety.",
        "At temperature 0 the model always takes the most likely token.",
    ),
    Concept(
        ("top-p", "nucleus sampling", "top_p"),
        "Top-p samples only from the most likely tokens whose probabilities add up to p.",
        "It is useful because unlikely and silly tokens are never chosen.",
        "A typical value is 0.9.",
    ),
    Concept(
        ("top-k", "top_k"),
        "Top-k samples only from the k most likely tokens.",
        "It is useful because it cuts off the long tail of bad tokens.",
        "With k equal to 1 it is the same as greedy decoding.",
    ),
    Concept(
        ("greedy decoding",),
        "Greedy decoding always picks the most likely next token.",
        "It is useful because the same prompt always gives the same answer.",
        "It is what temperature 0 means.",
    ),
    Concept(
        ("a prompt", "prompt", "the prompt"),
        "A prompt is the text that a user sends to a language model.",
        "It matters because the model knows nothing else about the wish of the user.",
        "A long prompt costs more time and money than a short one.",
    ),
    Concept(
        ("a system prompt", "system prompt", "the system message"),
        "A system prompt is a text before the conversation that tells the model how to behave.",
        "It is useful because it sets the tone and the rules once for all turns.",
        "It is often shared by many requests, so prefix caching helps a lot.",
    ),
    Concept(
        ("the context window", "a context window", "context length"),
        "The context window is the largest number of tokens a model can use at once.",
        "It matters because a text that is longer must be cut.",
        "The built-in model has a context window of 2048 tokens.",
    ),
    Concept(
        ("a parameter", "parameters", "model weights"),
        "Parameters are the numbers that a model has learned in training.",
        "They matter because they hold everything the model knows.",
        "The built-in model has about three million of them.",
    ),
    Concept(
        ("a stop token", "the end token", "EOS"),
        "A stop token is a special token that ends the answer.",
        "It matters because the engine would otherwise run on until the length limit.",
        "It is also called EOS, the end of sequence.",
        "end of sequence",
    ),
    Concept(
        ("max tokens", "max_tokens"),
        "Max tokens is the largest number of tokens that an answer may have.",
        "It is useful because it bounds the cost of a request.",
        "An answer that hits the limit ends with the finish reason length.",
    ),
    Concept(
        ("an embedding", "embeddings"),
        "An embedding is a list of numbers that stands for the meaning of a token or a text.",
        "It is useful because similar meanings have similar numbers.",
        "The first layer of a language model is a table of embeddings.",
    ),
    Concept(
        ("inference",),
        "Inference means using a trained model to produce results.",
        "It matters because every answer to a user is one inference.",
        "Training happens once, but inference happens for every request.",
    ),
    Concept(
        ("training",),
        "Training is the process in which a model learns its parameters from data.",
        "It matters because a model without training produces only noise.",
        "The built-in model was trained in less than one hour on a CPU.",
    ),
    Concept(
        ("hallucination", "a hallucination"),
        "A hallucination is an answer of a language model that sounds right but is wrong.",
        "It matters because users may trust a false statement.",
        "Small models like me hallucinate often outside of their topics.",
    ),
)
