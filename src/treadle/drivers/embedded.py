"""llama.cpp's own HTTP server inside this process. The only module that knows `xllamacpp`; extra `embedded`.

What was measured with xllamacpp 2026.10.11549 (Linux, the model of treadle-tiny):

- Starting holds the interpreter lock until the model is loaded (12 ms here, longer for a larger file): nothing else in
  the process runs meanwhile, whichever thread starts it.
- Stopping takes about 5 ms, 0.1 s with idle connections, up to 2.1 s while a client still streams; the interpreter lock
  is held here too. The library's default of one keep-alive comment in 30 s made the last case 30 s.
- After stopping, the port is closed and its threads are gone, but for one log thread that the library keeps.
- A second server in one process, and one started after another was closed, work.
- It ends the process (SIGSEGV, in its tokenizer) on a text of 30,000 characters without a blank; 20,000 are fine. So requests
  with one of more than 16,000 are refused before they are sent.
- It aborts the process on a window of one token; a wrong file is one `RuntimeError` without a reason.
"""

from __future__ import annotations

import http.client
import importlib
import os
import re
import time
from typing import Any, Self
from urllib.parse import urlsplit

from treadle.drivers.counting import count_by_llamacpp
from treadle.drivers.http import HttpDriver
from treadle.drivers.servers import look_at
from treadle.errors import ConnectFailed, ContextOverflow, MissingExtra, ModelError, UsageError
from treadle.values.messages import AssistantMessage, Message
from treadle.values.request import ModelInfo, ModelRequest
from treadle.wire.chat import ChatCodec
from treadle.wire.dialects import LLAMACPP

__all__ = ["LlamaServer"]

_READY_S = 10.0
_MIN_CTX = 256  # what llama.cpp rounds up to
_CACHE_RAM_MIB = 64  # prompts kept outside the window; the library would take 8 GiB
_PING_S = 1  # a keep-alive comment is how the server notices that it should stop; see above
_MAX_WORD = 16_000
_LONG_WORD = re.compile(rf"\S{{{_MAX_WORD + 1},}}")
_WRITE_S = 10  # a client that does not read can delay the stop no longer than this


class LlamaServer:
    """A GGUF model served from this process, on a free port of 127.0.0.1, for as long as the block lasts.

        with LlamaServer("model.gguf") as server:
            result = Agent(server.driver).run_sync("Hello")

    The block must outlive the runs that use it. Whoever can open a local port of this machine can use it.

    Args:
        model_path: A GGUF file.
        n_ctx: Window of one conversation, in tokens; at least 256, and never more than the model was trained for.
        n_parallel: Conversations served at the same time; each takes memory for a window of its own.
        n_threads: Threads that compute; by default as many as llama.cpp thinks right.
        n_gpu_layers: Layers on the GPU; -1 is as many as fit.

    Raises:
        UsageError: The file is missing, unreadable or no GGUF, or a number cannot work. From entering the block: the
            library could not load the model.
        MissingExtra: `xllamacpp` is not installed.
    """

    def __init__(
        self,
        model_path: str | os.PathLike[str],
        *,
        n_ctx: int = 4096,
        n_parallel: int = 2,
        n_threads: int | None = None,
        n_gpu_layers: int = 0,
    ) -> None:
        self.model_path = os.fspath(model_path)
        for name, value, least in (
            ("n_ctx", n_ctx, _MIN_CTX),
            ("n_parallel", n_parallel, 1),
            ("n_threads", 1 if n_threads is None else n_threads, 1),
            ("n_gpu_layers", n_gpu_layers, -1),
        ):
            if value < least:
                raise UsageError(f"{name}={value} cannot work", hint=f"{name} is at least {least}.")
        _check_file(self.model_path)
        self._n_ctx = n_ctx
        self._n_parallel = n_parallel
        self._n_threads = n_threads
        self._n_gpu_layers = n_gpu_layers
        self._server: Any = None
        self._driver: HttpDriver | None = None

    def __repr__(self) -> str:
        where = self._driver.base_url if self._driver and self._server is not None else "not running"
        return f"LlamaServer({self.model_path!r}, {where})"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def base_url(self) -> str:
        """Where the server's OpenAI-compatible API begins, as `http://127.0.0.1:PORT/v1`."""
        return self.driver.base_url

    @property
    def driver(self) -> HttpDriver:
        """A driver for the model, named `embedded/<file name without .gguf>`.

        Raises:
            UsageError: The server has not been started.
        """
        if self._driver is None:
            raise UsageError("the server has not been started", hint="Use it in a block: `with LlamaServer(FILE) as server:`.")
        return self._driver

    def start(self) -> None:
        """Load the model and listen; returns when requests can be answered. Entering the block does this."""
        if self._server is not None:
            return
        library = _library()
        name = os.path.basename(self.model_path).removesuffix(".gguf")
        try:
            server = library.Server(self._settings(library, name))
        except RuntimeError as error:
            raise UsageError(
                f"llama.cpp could not load {self.model_path}",
                hint="The file may be cut short, not a language model, or newer than the library "
                "(`pip install -U xllamacpp`); or memory is short: try a smaller n_ctx or n_parallel.",
            ) from error
        address: str = server.listening_address
        _wait_until_ready(address)
        self._server = server
        self._driver = self._new_driver(f"{address}/v1", name)

    def close(self) -> None:
        """Stop the server and free the model. Safe to call twice. A stream still open is cut, which takes 2 s."""
        self._server = None

    def _settings(self, library: Any, name: str) -> Any:
        params = library.CommonParams()
        params.model.path = self.model_path
        params.model_alias = {name}
        params.port = 0
        params.n_ctx = self._n_ctx * self._n_parallel  # the library splits it over the conversations
        params.n_parallel = self._n_parallel
        params.n_gpu_layers = self._n_gpu_layers
        if self._n_threads is not None:
            params.cpuparams.n_threads = self._n_threads
        params.cache_ram_mib = _CACHE_RAM_MIB
        params.sse_ping_interval = _PING_S
        params.timeout_write = _WRITE_S
        params.ui = False
        params.verbosity = -1
        return params

    def _new_driver(self, base_url: str, name: str) -> HttpDriver:
        async def explain(error: ModelError) -> str:
            if self._server is None:
                return "This LlamaServer was closed: keep its `with` block open while runs use it."
            return ""

        async def info() -> ModelInfo:
            found = await look_at(base_url, timeout_s=5.0)  # it answers late while it computes on every core
            if found is None or not found.models:
                error = ConnectFailed(f"nothing answers at {base_url}")
                error.hint = await explain(error) or error.hint
                raise error
            return found.models[0]

        return HttpDriver(
            ChatCodec(LLAMACPP),
            base_url,
            name,
            name=f"embedded/{name}",
            explain=explain,
            check=_check_words,
            info=info,
            counter=count_by_llamacpp,
        )


def _check_words(request: ModelRequest) -> None:
    """Refuse what would crash the tokenizer, and this process with it."""
    for text in (request.instructions or "", *(_text_of(message) for message in request.messages)):
        if len(text) > _MAX_WORD and (word := _LONG_WORD.search(text)):
            raise ContextOverflow(
                f"a message holds {len(word[0]):,} characters without a blank, which crashes llama.cpp's tokenizer",
                hint=f"Break such texts (base64, minified code) up, or shorten them to {_MAX_WORD:,} characters; or run "
                "llama-server on its own, where a crash does not take this process with it.",
            )


def _text_of(message: Message) -> str:
    if isinstance(message, AssistantMessage):
        return " ".join((message.text, message.thinking, *(call.arguments for call in message.calls)))
    return message.content


def _library() -> Any:
    try:
        return importlib.import_module("xllamacpp")
    except ImportError as error:
        raise MissingExtra("LlamaServer", extra="embedded") from error


def _check_file(path: str) -> None:
    try:
        with open(path, "rb") as file:
            magic = file.read(4)
    except FileNotFoundError:
        raise UsageError(f"there is no file {path}", hint="A model is one .gguf file: check the path.") from None
    except IsADirectoryError:
        raise UsageError(f"{path} is a directory", hint="Name the .gguf file in it.") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}", hint="Check the file's permissions.") from error
    if magic != b"GGUF":
        raise UsageError(f"{path} is not a GGUF model", hint="llama.cpp serves GGUF files; convert the model, or get it as GGUF.")


def _wait_until_ready(address: str) -> None:
    host = urlsplit(address).netloc
    deadline = time.monotonic() + _READY_S
    while True:
        connection = http.client.HTTPConnection(host, timeout=1.0)  # goes around every proxy
        try:
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return
        except (OSError, http.client.HTTPException):
            pass
        finally:
            connection.close()
        if time.monotonic() > deadline:
            raise ConnectFailed(
                f"llama.cpp started at {address}, but was not ready within {_READY_S:g} s",
                hint="Is the machine short of memory or very busy? Try a smaller model or n_ctx.",
            )
        time.sleep(0.02)
