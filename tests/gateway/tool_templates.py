"""Chat templates that take tools, as models of two families have them, for the byte tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

from tiny_tokenizer import SPECIAL

_TURNS = (
    "{% for m in messages %}"
    "{{ '<' + ('user' if m.role == 'tool' else m.role) + '>' }}"
    "{% if m.role == 'tool' %}<tool_response>{{ m.content }}</tool_response>"
    "{% else %}{{ m.content }}{% endif %}"
    "{% for call in m.tool_calls or [] %}CALL{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
_ONE = "{{ call.function | tojson }}"
HERMES = (
    "{% if tools %}<system># Tools: {% for tool in tools %}{{ tool | tojson }}{% endfor %} "
    'Answer <tool_call>{"name": ..., "arguments": ...}</tool_call>{% endif %}'
    + _TURNS.replace("CALL", "<tool_call>" + _ONE + "</tool_call>")
)
LLAMA = (
    "{% if tools %}<system># Tools: {% for tool in tools %}{{ tool | tojson }}{% endfor %} "
    'Answer {"name": function name, "parameters": dictionary of its arguments}{% endif %}'
    + _TURNS.replace("CALL", _ONE)
)
OTHER = "{% if tools %}[TOOL_CALLS]{{ tools | tojson }}{% endif %}" + _TURNS.replace("CALL", _ONE)


def use_template(folder: Path, template: str, *special: str) -> Path:
    """Give the model in `folder` another chat template, and further special tokens."""
    config = {"eos_token": SPECIAL[0], "chat_template": template}
    config |= {"extra_special_tokens": list(special)} if special else {}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder
