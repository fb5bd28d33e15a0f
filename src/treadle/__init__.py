"""treadle: an agent runtime whose loop keeps its promises on the model servers people really run.

    from treadle import Agent, tool

Names are loaded when they are first used: importing treadle loads no HTTP client, no terminal library and no server.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from treadle.agent.agent import Agent as Agent
    from treadle.agent.agent import RunSettings as RunSettings
    from treadle.agent.run import Run as Run
    from treadle.drivers.catalog import driver_for as driver_for
    from treadle.drivers.cooldown import Cooldown as Cooldown
    from treadle.drivers.embedded import LlamaServer as LlamaServer
    from treadle.drivers.http import HttpDriver as HttpDriver
    from treadle.drivers.scripted import ScriptedDriver as ScriptedDriver
    from treadle.drivers.scripted import calls as calls
    from treadle.errors import AuthenticationFailed as AuthenticationFailed
    from treadle.errors import BadStream as BadStream
    from treadle.errors import ConnectFailed as ConnectFailed
    from treadle.errors import ContentRefused as ContentRefused
    from treadle.errors import ContextFloorExceedsWindow as ContextFloorExceedsWindow
    from treadle.errors import ContextOverflow as ContextOverflow
    from treadle.errors import HistoryError as HistoryError
    from treadle.errors import InvalidRequest as InvalidRequest
    from treadle.errors import MissingExtra as MissingExtra
    from treadle.errors import ModelError as ModelError
    from treadle.errors import ModelNotFound as ModelNotFound
    from treadle.errors import ModelTimeout as ModelTimeout
    from treadle.errors import OutputInvalid as OutputInvalid
    from treadle.errors import Overloaded as Overloaded
    from treadle.errors import PromptSilentlyTruncated as PromptSilentlyTruncated
    from treadle.errors import QuotaExceeded as QuotaExceeded
    from treadle.errors import RateLimited as RateLimited
    from treadle.errors import ServerError as ServerError
    from treadle.errors import StreamTruncated as StreamTruncated
    from treadle.errors import ToolDefinitionError as ToolDefinitionError
    from treadle.errors import ToolError as ToolError
    from treadle.errors import ToolErrorKind as ToolErrorKind
    from treadle.errors import TreadleError as TreadleError
    from treadle.errors import Unsupported as Unsupported
    from treadle.errors import UsageError as UsageError
    from treadle.policy.compaction import Compaction as Compaction
    from treadle.policy.compaction import ModelSummary as ModelSummary
    from treadle.policy.compaction import Room as Room
    from treadle.policy.compaction import Summary as Summary
    from treadle.policy.compaction import local_summary as local_summary
    from treadle.policy.compaction import sliding_window as sliding_window
    from treadle.policy.context import ContextPolicy as ContextPolicy
    from treadle.policy.recovery import Abort as Abort
    from treadle.policy.recovery import Answer as Answer
    from treadle.policy.recovery import Failure as Failure
    from treadle.policy.recovery import Retry as Retry
    from treadle.policy.recovery import RetryPolicy as RetryPolicy
    from treadle.policy.recovery import Strategy as Strategy
    from treadle.policy.recovery import Switch as Switch
    from treadle.policy.recovery import retry_then_switch as retry_then_switch
    from treadle.tools.builtin.fetch import fetch_tool as fetch_tool
    from treadle.tools.builtin.files import file_tools as file_tools
    from treadle.tools.builtin.person import ask_user as ask_user
    from treadle.tools.builtin.processes import ProcessResult as ProcessResult
    from treadle.tools.builtin.processes import run_process as run_process
    from treadle.tools.builtin.results import read_result as read_result
    from treadle.tools.builtin.shell import shell_tool as shell_tool
    from treadle.tools.builtin.todo import todo as todo
    from treadle.tools.context import Injected as Injected
    from treadle.tools.context import ToolContext as ToolContext
    from treadle.tools.function import FunctionTool as FunctionTool
    from treadle.tools.function import ToolSettings as ToolSettings
    from treadle.tools.function import tool as tool
    from treadle.values.events import ApprovalAnswered as ApprovalAnswered
    from treadle.values.events import ApprovalRequested as ApprovalRequested
    from treadle.values.events import Asked as Asked
    from treadle.values.events import Compacted as Compacted
    from treadle.values.events import ContextPlanned as ContextPlanned
    from treadle.values.events import Delta as Delta
    from treadle.values.events import Discarded as Discarded
    from treadle.values.events import Ended as Ended
    from treadle.values.events import ErrorRecord as ErrorRecord
    from treadle.values.events import Event as Event
    from treadle.values.events import Fact as Fact
    from treadle.values.events import Failed as Failed
    from treadle.values.events import Omitted as Omitted
    from treadle.values.events import PrefixMoved as PrefixMoved
    from treadle.values.events import Prompted as Prompted
    from treadle.values.events import Pruned as Pruned
    from treadle.values.events import Repaired as Repaired
    from treadle.values.events import Replied as Replied
    from treadle.values.events import Resumed as Resumed
    from treadle.values.events import Retried as Retried
    from treadle.values.events import StopReason as StopReason
    from treadle.values.events import TextDelta as TextDelta
    from treadle.values.events import ThinkingDelta as ThinkingDelta
    from treadle.values.events import ToolCallDelta as ToolCallDelta
    from treadle.values.events import ToolFinished as ToolFinished
    from treadle.values.events import ToolProgress as ToolProgress
    from treadle.values.events import ToolRetried as ToolRetried
    from treadle.values.events import ToolStarted as ToolStarted
    from treadle.values.events import event_from_json as event_from_json
    from treadle.values.events import event_to_json as event_to_json
    from treadle.values.limits import GuardLimits as GuardLimits
    from treadle.values.limits import Limits as Limits
    from treadle.values.limits import Timeouts as Timeouts
    from treadle.values.messages import AssistantMessage as AssistantMessage
    from treadle.values.messages import Document as Document
    from treadle.values.messages import Image as Image
    from treadle.values.messages import Message as Message
    from treadle.values.messages import Opaque as Opaque
    from treadle.values.messages import SystemMessage as SystemMessage
    from treadle.values.messages import Text as Text
    from treadle.values.messages import Thinking as Thinking
    from treadle.values.messages import ToolCall as ToolCall
    from treadle.values.messages import ToolMessage as ToolMessage
    from treadle.values.messages import UserMessage as UserMessage
    from treadle.values.messages import messages_from_json as messages_from_json
    from treadle.values.messages import messages_to_json as messages_to_json
    from treadle.values.outgoing import HttpRequest as HttpRequest
    from treadle.values.ports import Connection as Connection
    from treadle.values.ports import Driver as Driver
    from treadle.values.ports import Journal as Journal
    from treadle.values.ports import ReplyStream as ReplyStream
    from treadle.values.request import ModelInfo as ModelInfo
    from treadle.values.request import ModelRequest as ModelRequest
    from treadle.values.request import Options as Options
    from treadle.values.request import Reply as Reply
    from treadle.values.request import ToolSpec as ToolSpec
    from treadle.values.state import RunResult as RunResult
    from treadle.values.state import State as State
    from treadle.values.state import run_from_json as run_from_json
    from treadle.values.state import run_to_json as run_to_json
    from treadle.values.toolcalls import Approvals as Approvals
    from treadle.values.toolcalls import PendingCall as PendingCall
    from treadle.values.toolcalls import Rule as Rule
    from treadle.values.toolcalls import ToolResult as ToolResult
    from treadle.values.toolcalls import approve as approve
    from treadle.values.toolcalls import deny as deny
    from treadle.values.toolcalls import edit as edit
    from treadle.values.toolcalls import say as say
    from treadle.values.usage import CacheBreak as CacheBreak
    from treadle.values.usage import CacheUse as CacheUse
    from treadle.values.usage import Usage as Usage

_EXPORTS = {
    "treadle.agent.agent": (
        "Agent",
        "RunSettings",
    ),
    "treadle.agent.run": ("Run",),
    "treadle.drivers.catalog": ("driver_for",),
    "treadle.drivers.cooldown": ("Cooldown",),
    "treadle.drivers.embedded": ("LlamaServer",),
    "treadle.drivers.http": ("HttpDriver",),
    "treadle.drivers.scripted": (
        "ScriptedDriver",
        "calls",
    ),
    "treadle.errors": (
        "AuthenticationFailed",
        "BadStream",
        "ConnectFailed",
        "ContentRefused",
        "ContextFloorExceedsWindow",
        "ContextOverflow",
        "HistoryError",
        "InvalidRequest",
        "MissingExtra",
        "ModelError",
        "ModelNotFound",
        "ModelTimeout",
        "OutputInvalid",
        "Overloaded",
        "PromptSilentlyTruncated",
        "QuotaExceeded",
        "RateLimited",
        "ServerError",
        "StreamTruncated",
        "ToolDefinitionError",
        "ToolError",
        "ToolErrorKind",
        "TreadleError",
        "Unsupported",
        "UsageError",
    ),
    "treadle.policy.compaction": (
        "Compaction",
        "ModelSummary",
        "Room",
        "Summary",
        "local_summary",
        "sliding_window",
    ),
    "treadle.policy.context": ("ContextPolicy",),
    "treadle.policy.recovery": (
        "Abort",
        "Answer",
        "Failure",
        "Retry",
        "RetryPolicy",
        "Strategy",
        "Switch",
        "retry_then_switch",
    ),
    "treadle.tools.builtin.fetch": ("fetch_tool",),
    "treadle.tools.builtin.files": ("file_tools",),
    "treadle.tools.builtin.person": ("ask_user",),
    "treadle.tools.builtin.processes": (
        "ProcessResult",
        "run_process",
    ),
    "treadle.tools.builtin.results": ("read_result",),
    "treadle.tools.builtin.shell": ("shell_tool",),
    "treadle.tools.builtin.todo": ("todo",),
    "treadle.tools.context": (
        "Injected",
        "ToolContext",
    ),
    "treadle.tools.function": (
        "FunctionTool",
        "ToolSettings",
        "tool",
    ),
    "treadle.values.events": (
        "ApprovalAnswered",
        "ApprovalRequested",
        "Asked",
        "Compacted",
        "ContextPlanned",
        "Delta",
        "Discarded",
        "Ended",
        "ErrorRecord",
        "Event",
        "Fact",
        "Failed",
        "Omitted",
        "PrefixMoved",
        "Prompted",
        "Pruned",
        "Repaired",
        "Replied",
        "Resumed",
        "Retried",
        "StopReason",
        "TextDelta",
        "ThinkingDelta",
        "ToolCallDelta",
        "ToolFinished",
        "ToolProgress",
        "ToolRetried",
        "ToolStarted",
        "event_from_json",
        "event_to_json",
    ),
    "treadle.values.limits": (
        "GuardLimits",
        "Limits",
        "Timeouts",
    ),
    "treadle.values.messages": (
        "AssistantMessage",
        "Document",
        "Image",
        "Message",
        "Opaque",
        "SystemMessage",
        "Text",
        "Thinking",
        "ToolCall",
        "ToolMessage",
        "UserMessage",
        "messages_from_json",
        "messages_to_json",
    ),
    "treadle.values.outgoing": ("HttpRequest",),
    "treadle.values.ports": (
        "Connection",
        "Driver",
        "Journal",
        "ReplyStream",
    ),
    "treadle.values.request": (
        "ModelInfo",
        "ModelRequest",
        "Options",
        "Reply",
        "ToolSpec",
    ),
    "treadle.values.state": (
        "RunResult",
        "State",
        "run_from_json",
        "run_to_json",
    ),
    "treadle.values.toolcalls": (
        "Approvals",
        "PendingCall",
        "Rule",
        "ToolResult",
        "approve",
        "deny",
        "edit",
        "say",
    ),
    "treadle.values.usage": ("CacheBreak", "CacheUse", "Usage"),
}
_HOME = {name: module for module, names in _EXPORTS.items() for name in names}

__all__ = sorted([*_HOME, "__version__"])  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("treadle")
    if name not in _HOME:
        raise AttributeError(f"module 'treadle' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
