"""What a hosted provider says of one of its models.

Written from the providers' documentation (docs/protocols/chat.md, "Hosted providers"; 2026-11), not from captures. As in
`servers`, what comes back is outside data: what is not as documented is as if it had not been said.
"""

from __future__ import annotations

import contextlib
from typing import Any, cast
from urllib.parse import quote

from treadle.drivers.http import get_json
from treadle.drivers.windows import WindowField, window_of
from treadle.errors import UsageError
from treadle.values.request import ModelInfo

__all__ = ["hosted_info"]

_ASK_S = 5.0
_MAX_LISTED = 5_000
_OWN_NAMES = frozenset({"azure"})  # there a name is that of a deployment, and says nothing of the model


async def hosted_info(server: str, base_url: str, model: str, *, field: WindowField | None, headers: dict[str, str]) -> ModelInfo:
    """The model's window, as the provider says, else as the table in `windows` has it, else none. Azure's names are the customer's, so
    they are not looked up.

    The only address asked is below `base_url`. A provider that does not answer is as one that does not say.

    Args:
        headers: With the key, where the provider wants it.
    """
    tokens = await _asked(base_url, model, field, headers) if field is not None else None
    if tokens is not None and field is not None:
        source = f"GET {field.path} {field.name}"
    elif server not in _OWN_NAMES and (row := window_of(model)) is not None:
        tokens, source = row.tokens, f"treadle's table: {row.source}, {row.read}"
    else:
        source = None
    return ModelInfo(model=model, server=server, window_tokens=tokens, window_source=source)


async def _asked(base_url: str, model: str, field: WindowField, headers: dict[str, str]) -> int | None:
    url = base_url + field.path.format(model=quote(model.removeprefix("models/"), safe=""))
    answer: Any = None
    # UsageError: a SOCKS proxy; ValueError: a header that cannot be sent.
    with contextlib.suppress(TimeoutError, UsageError, ValueError):
        answer = await get_json(url, timeout_s=_ASK_S, headers=headers)
    entry = answer if "{model}" in field.path else _entry(answer, model)
    tokens = cast("dict[str, Any]", entry).get(field.name) if isinstance(entry, dict) else None
    return tokens if type(tokens) is int and 0 < tokens < 2**40 else None


def _entry(answer: Any, model: str) -> Any:
    """The model's entry of a list, which is the answer itself or its `data`."""
    listed = cast("dict[str, Any]", answer).get("data") if isinstance(answer, dict) else answer
    entries = cast("list[Any]", listed)[:_MAX_LISTED] if isinstance(listed, list) else []
    named = {e.get("id"): e for e in (cast("dict[str, Any]", e) for e in entries if isinstance(e, dict)) if _is_text(e.get("id"))}
    return named.get(model) or named.get(model.partition(":")[0])  # `:nitro` and the like choose a route, not a model


def _is_text(value: Any) -> bool:
    return isinstance(value, str)
