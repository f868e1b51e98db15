"""Messages become the prompt that transformers would make of them, or one clear refusal."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import tokenizers_made_here as made
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from engine.model.chat_template import ChatTemplate, ChatTemplateError, ToolForm
from engine.model.tokenizer import Tokenizer

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
Messages = list[dict[str, Any]]
USER: Messages = [{"role": "user", "content": "  Hello, <|eot_id|> world!\n"}]
TALK: Messages = [
    *USER,
    {"role": "assistant", "content": "Größe & <b>"},
    {"role": "user", "content": "你好 \\n 'quoted' {{ not_code }}"},
]
SYSTEM: Messages = [{"role": "system", "content": "Be kind."}, *TALK]
TOOLS = [
    {
        "type": "function",
        "function": {"name": "weather", "description": "Wetter für <Orte>", "parameters": {}},
    }
]


@pytest.fixture(scope="module")
def pairs(
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, tuple[Tokenizer, PreTrainedTokenizerFast]]:
    folders = made.write_families(tmp_path_factory.mktemp("models"))
    return {
        name: (Tokenizer.load(folder), AutoTokenizer.from_pretrained(folder))
        for name, folder in folders.items()
    }


@pytest.mark.parametrize(
    ("family", "messages", "extra"),
    [
        ("llama3", USER, {"date_string": "1 Jan"}),
        ("llama3", SYSTEM, {"date_string": "1 Jan", "tools": TOOLS}),
        ("llama3", SYSTEM, {"date_string": "1 Jan", "add_generation_prompt": False}),
        ("qwen", TALK, {}),
        ("qwen", SYSTEM, {"enable_thinking": False}),
        ("qwen", [*SYSTEM, {"role": "skip", "content": "?"}, *USER], {}),
        ("mistral", USER, {}),
        ("mistral", TALK, {}),
        ("gemma", TALK, {}),
    ],
)
def test_prompts_equal_those_of_transformers(
    pairs: dict[str, tuple[Tokenizer, PreTrainedTokenizerFast]],
    family: str,
    messages: Messages,
    extra: dict[str, Any],
) -> None:
    """Text and ids, with the opening token exactly once where the model has one."""
    ours, theirs = pairs[family]
    arguments = {"add_generation_prompt": True, **extra}
    text = theirs.apply_chat_template(messages, tokenize=False, **arguments)
    ids = theirs.apply_chat_template(messages, return_dict=False, **arguments)
    assert ours.render_chat(messages, **extra) == text
    encoded = ours.encode_chat(messages, **extra)
    assert encoded == tuple(ids)
    if ours.bos_token_id is not None:
        assert encoded[0] == ours.bos_token_id
        assert encoded.count(ours.bos_token_id) == 1


@pytest.mark.parametrize(
    "source",
    [
        "a\n  {% if true %}\n  b\n  {% endif %}\n c\n",  # blocks take their line with them
        "{% set ns = namespace(n=1, self=2) %}{% set ns.n = ns.n + ns.self %}{{ ns.n }}",
        "{% for m in messages %}{% if loop.last %}{% break %}{% endif %}-{% endfor %}",
        "{% set a = 1 %}{% generation %}{% set a = 2 %}{{ a }}{% endgeneration %}{{ a }}",
        "{{ {'b': 'ü<', 'a': none} | tojson }} {{ [1] | tojson(indent=1) }}",
        "{{ {'b': 1, 'a': [2]} | tojson(separators=(',', ':'), sort_keys=true) }}",
        "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}",
        "{{ dict(a=1).items() | list }} {{ cycler(1, 2).next() }} {{ range(3) | join('-') }}",
        "{{ tools is none }} {{ documents is none }} {{ nothing is defined }} {{ eos_token }}",
        "{{ messages[0].name is defined }} {{ add_generation_prompt }}",
    ],
)
def test_the_language_is_that_of_transformers(
    pairs: dict[str, tuple[Tokenizer, PreTrainedTokenizerFast]], source: str
) -> None:
    """Whitespace, scopes, loops, filters and globals of its Jinja, one by one."""
    _, theirs = pairs["qwen"]
    messages = [{"role": "user", "content": "x", "name": None}, *TALK]
    expected = theirs.apply_chat_template(
        messages, chat_template=source, tokenize=False, add_generation_prompt=True
    )
    template = ChatTemplate(source, {"eos_token": "<|im_end|>"})
    assert template.render(messages, NOW) == expected


def test_the_time_a_template_prints_is_handed_in(
    pairs: dict[str, tuple[Tokenizer, PreTrainedTokenizerFast]],
) -> None:
    """Two days give two prompts, and equal times equal ones."""
    ours, _ = pairs["llama3"]
    assert "Today: 21 Nov 2026\n" in ours.render_chat(USER, now=NOW)
    assert ours.encode_chat(USER, now=NOW) == ours.encode_chat(USER, now=NOW)
    assert "Today: 02 Nov 2026\n" in ours.render_chat(USER, now=NOW.replace(day=2))


def test_the_template_for_tools_is_used_with_tools_only(tmp_path: Path) -> None:
    """A folder may ship several templates; files go before the configuration."""
    folder = made.write_folder(
        tmp_path,
        made.byte_level(made.QWEN_SPECIAL),
        {"chat_template": [{"name": "default", "template": "overruled"}]},
        chat_template_jinja="plain",
    )
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools | length }}")
    ours, theirs = Tokenizer.load(folder), AutoTokenizer.from_pretrained(folder)
    for tools, text in ((None, "plain"), (TOOLS, "1")):
        assert ours.render_chat(USER, tools) == text
        assert theirs.apply_chat_template(USER, tools=tools, tokenize=False) == text


def render(source: str, messages: Messages, **variables: Any) -> str:
    return ChatTemplate(source, {"bos_token": "<s>"}).render(messages, NOW, **variables)


ROLES = "{% for m in messages %}{{ m.role }}={{ m.content }};{% endfor %}"


def test_developer_becomes_system_unless_the_template_knows_it() -> None:
    """The OpenAI API's newer name for the same role must not get lost or refused."""
    messages = [{"role": "developer", "content": "a"}, {"role": "user", "content": "b"}]
    assert render(ROLES, messages) == "system=a;user=b;"
    knowing = ROLES + "{% if messages[0].role == 'developer' %}known{% endif %}"
    assert render(knowing, messages) == "developer=a;user=b;known"


def test_text_parts_are_joined_by_lines_and_other_parts_refused() -> None:
    """Content may come in parts; a picture is an error, not a silent gap."""
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert render(ROLES, [{"role": "user", "content": parts}]) == "user=one\ntwo;"
    picture = [{"type": "image_url", "image_url": {"url": "data:"}}]
    for content in (picture, [{"type": "text"}], [3]):
        with pytest.raises(ChatTemplateError):
            render(ROLES, [{"role": "user", "content": content}])


def test_tool_calls_reach_the_template_as_objects() -> None:
    """The API carries arguments as JSON text; templates write objects out themselves."""
    source = "{% for c in messages[0].tool_calls %}{{ c.function.arguments | tojson }}{% endfor %}"

    def shown(arguments: str) -> str:
        call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}
        return render(source, [{"role": "assistant", "content": None, "tool_calls": [call]}])

    assert shown('{"city": "Köln", "n": 1}') == '{"city": "Köln", "n": 1}'
    assert shown("") == "{}"
    assert shown("{broken") == '"{broken"'


def test_messages_stay_as_the_caller_gave_them() -> None:
    """Rewriting happens on a copy."""
    call = {"function": {"name": "f", "arguments": "{}"}}
    messages = [{"role": "developer", "content": [{"type": "text", "text": "a"}]},
                {"role": "assistant", "content": None, "tool_calls": [call]}]  # fmt: skip
    render(ROLES, messages)
    assert messages[0] == {"role": "developer", "content": [{"type": "text", "text": "a"}]}
    assert call == {"function": {"name": "f", "arguments": "{}"}}


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("{{ raise_exception('Roles must alternate') }}", "Roles must alternate"),
        ("{{ missing.attribute }}", "missing"),
        ("{{ messages[0].content + 1 }}", "TypeError"),
        ("{{ messages[7].content }}", "no element 7"),
        ("{{ 1 // 0 }}", "ZeroDivisionError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{{ messages.__class__.__base__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ dict.mro() }}", "unsafe"),
        ("{{ strftime_now.__self__.year }}", "unsafe"),
        ("{{ raise_exception.__globals__.json }}", "unsafe"),
        ("{% set ns = namespace(_x=1) %}", "_x"),
        ("{% set ns = namespace() %}{% set ns.__class__ = 1 %}", "__class__"),
        ("{{ lipsum() }}", "lipsum"),
    ],
)
def test_a_template_that_fails_is_one_kind_of_error(source: str, says: str) -> None:
    """Refusals, mistakes and attempts to leave the sandbox all become a ChatTemplateError."""
    with pytest.raises(ChatTemplateError, match=says) as caught:
        render(source, USER)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("messages", [[], [{"content": "x"}], [{"role": 3}], ["text"]])
def test_messages_that_are_none_are_refused(messages: Any) -> None:
    """What is no list of messages never reaches the template."""
    with pytest.raises(ChatTemplateError):
        render(ROLES, messages)


def test_values_with_methods_never_reach_a_template() -> None:
    """Only JSON's types do; anything else is refused by its type's name."""
    with pytest.raises(ChatTemplateError, match="PosixPath"):
        render(ROLES, USER, where=Path("/"))


def test_a_template_with_a_mistake_is_refused_at_load(tmp_path: Path) -> None:
    """The operator learns it at the start, not the first client."""
    folder = made.write_folder(tmp_path, made.word_piece(), {"chat_template": "{% if %}"})
    with pytest.raises(ChatTemplateError, match="not valid"):
        Tokenizer.load(folder)


@pytest.mark.parametrize(
    ("source", "form"),
    [
        ("{{ messages }}", None),
        ("{% for tools in messages %}{% endfor %}", None),
        ("{% if tools %}<tool_call>{{ tools | tojson }}{% endif %}", ToolForm.HERMES),
        ("{% if tools %}<tool_call><function=name>{% endif %}", ToolForm.OTHER),
        ('{% if tools %}{{ \'{"name": f, "parameters": a}\' }}{% endif %}', ToolForm.LLAMA),
        ('{% if tools %}{{ "{\\"name\\": f, \\"parameters\\": a}" }}{% endif %}', ToolForm.LLAMA),
        (
            "{% if custom is defined %}{% set tools = custom %}{% endif %}"
            "{% if not tools is defined %}{% set tools = none %}{% endif %}"
            "{% if tools is not none %}<|python_tag|>{% endif %}",
            ToolForm.LLAMA,
        ),
        ("{% if tools %}[TOOL_CALLS]{% endif %}", ToolForm.OTHER),
        ('{% if tools %}[{"name": n, "arguments": a}]{% endif %}', ToolForm.OTHER),
        ("{% if tools %}{{ tools }}{% endif %}", ToolForm.OTHER),
    ],
)
def test_a_template_says_how_tools_are_called(source: str, form: ToolForm | None) -> None:
    """None where it takes no tools, whatever else it is about."""
    assert ChatTemplate(source).tool_form is form
