"""Which of the OpenAI SDK's own tests this server has to pass, and why not the others.

The tests of the SDK's `tests/api_resources` talk to a server, one file or folder for each part of
the API; all others try the client by itself, and are no question to a server. Within a file of ours
the first rule whose pattern is found in a test's name, parameters and all, decides: None for in
scope, else why not.
"""

from __future__ import annotations

import re

Rules = tuple[tuple[str, str | None], ...]

CLIENT_ONLY = "the client refuses an empty path itself; no server is asked"
STORED = "nothing is stored here: there is nothing to list, fetch, change or cancel"
OURS: dict[str, Rules] = {
    "chat/test_completions.py": (
        ("path_params", CLIENT_ONLY),
        ("_create_", None),
        ("retrieve|update|list|delete", STORED),
    ),
    "test_completions.py": (("create", None),),
    "test_embeddings.py": (
        ("create_with_all_params", "asks for vectors of one dimension; ours have the model's own"),
        (
            r"\[(strict|aiohttp)\]",
            "the client asks for base64 and then, where it is strict, refuses what is no list",
        ),
        ("create", None),
    ),
    "test_models.py": (
        ("path_params", CLIENT_ONLY),
        ("list|retrieve", None),
        ("delete", "a client cannot delete the model of this server"),
    ),
    "test_responses.py": (
        ("path_params", CLIENT_ONLY),
        (
            "create_with_all_params",
            "asks for an earlier, stored response and a stored conversation",
        ),
        ("create", None),
        ("retrieve|delete|cancel|compact", STORED),
    ),
}
NOT_OFFERED = "a part of the API that this server does not offer"


def verdict(test_id: str) -> str | None:
    """Return None for a test in scope, else why it is not; raises LookupError for an unknown one.

    `test_id` is pytest's, as in `tests/api_resources/test_models.py::TestModels::test_x[loose]`.
    """
    path, _, name = test_id.partition("::")
    rules = OURS.get(path.removeprefix("tests/api_resources/"))
    if rules is None:
        return NOT_OFFERED
    function = name.rpartition("::")[2]
    for pattern, reason in rules:
        if re.search(pattern, function):
            return reason
    raise LookupError(test_id)
