"""About how many tokens a prompt has: messages, instructions and tools, before any server has counted it."""

from __future__ import annotations

import msgspec

from treadle.values.messages import AssistantMessage, Document, Image, Message, Text, Thinking, ToolCall, ToolMessage, UserMessage
from treadle.values.request import ToolSpec
from treadle.values.tokens import estimate_tokens

__all__ = ["attached_tokens", "message_tokens", "tools_tokens"]

_IMAGE_TOKENS = 1_000  # Anthropic: width x height / 750, at most about 1,600; OpenAI: 85 to 1,445 (their documentation, 2026-11)
_DOCUMENT_BYTES_PER_TOKEN = 40
_MESSAGE_TOKENS = 5  # role and marks of the template, and of each call


def tools_tokens(tools: tuple[ToolSpec, ...]) -> float:
    """About how many tokens the tools' descriptions have."""
    return estimate_tokens(msgspec.json.encode(tools).decode()) if tools else 0.0


def message_tokens(message: Message) -> float:
    """About how many tokens a message has."""
    tokens = float(_MESSAGE_TOKENS)
    if isinstance(message, AssistantMessage):
        for part in message.content:
            if isinstance(part, ToolCall):
                tokens += estimate_tokens(part.name) + estimate_tokens(part.arguments) + _MESSAGE_TOKENS
            else:
                tokens += estimate_tokens(part.text if isinstance(part, Text | Thinking) else part.data)
        return tokens
    tokens += estimate_tokens(message.content) + attached_tokens(message)
    return tokens + estimate_tokens(message.note or "") if isinstance(message, ToolMessage) else tokens


def attached_tokens(message: Message) -> float:
    """What the pictures and documents of a message may cost. It differs by provider and size, tenfold and more."""
    if isinstance(message, ToolMessage):
        return float(_IMAGE_TOKENS * len(message.images))
    return sum(map(_attachment_tokens, message.attachments)) if isinstance(message, UserMessage) else 0.0


def _attachment_tokens(attached: Image | Document) -> float:
    return _IMAGE_TOKENS if isinstance(attached, Image) else len(attached.data) / _DOCUMENT_BYTES_PER_TOKEN
