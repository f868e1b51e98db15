"""Asks through the Anthropic SDK, plain and streamed; prints what came as JSON.

usage: ask_anthropic.py BASE_URL API_KEY QUESTION
"""

from __future__ import annotations

import json
import sys

import anthropic

base_url, api_key, question = sys.argv[1:]
client = anthropic.Anthropic(base_url=base_url, api_key=api_key, max_retries=0)
asked = {
    "model": "builtin",
    "max_tokens": 64,
    "messages": [{"role": "user", "content": question}],
    "extra_body": {"temperature": 0},
}
plain = client.messages.create(**asked)
pieces = []
with client.messages.stream(**asked) as stream:
    pieces += stream.text_stream
    whole = stream.get_final_message()
counted = client.messages.count_tokens(model="builtin", messages=asked["messages"])
refused = {}
for name, other, more in (
    ("key", client.with_options(api_key="tgk_live_wrong"), {}),
    ("body", client, {"max_tokens": 10**6, "stream": True}),
):
    try:
        other.messages.create(**asked | more)
    except anthropic.APIStatusError as error:
        refused[name] = [type(error).__name__, error.type, bool(error.request_id)]
print(
    json.dumps(
        {
            "plain": plain.content[0].text,
            "plain_usage": plain.usage.model_dump(),
            "streamed": "".join(pieces),
            "pieces": len(pieces),
            "final": whole.content[0].text,
            "final_usage": whole.usage.model_dump(),
            "stop_reason": [plain.stop_reason, whole.stop_reason],
            "counted": counted.input_tokens,
            "refused": refused,
        }
    )
)
