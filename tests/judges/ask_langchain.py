"""Asks through LangChain's OpenAI chat model, by both APIs; prints what came as JSON.

usage: ask_langchain.py BASE_URL API_KEY QUESTION
"""

from __future__ import annotations

import json
import sys

from langchain_openai import ChatOpenAI

base_url, api_key, question = sys.argv[1:]
told = {}
for name, by_responses in (("chat", False), ("responses", True)):
    model = ChatOpenAI(
        model="builtin",
        base_url=base_url,
        api_key=api_key,
        temperature=0,
        max_tokens=64,
        max_retries=0,
        stream_usage=True,
        use_responses_api=by_responses,
    )
    plain = model.invoke(question)
    chunks = list(model.stream(question))
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    told[name] = {
        "plain": plain.text,
        "plain_usage": plain.usage_metadata,
        "streamed": whole.text,
        "chunks": len(chunks),
        "usage": whole.usage_metadata,
    }
print(json.dumps(told))
