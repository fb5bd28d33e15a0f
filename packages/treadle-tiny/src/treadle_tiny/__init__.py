"""A tool-calling model small enough to ship: 0.89 M parameters, 0.97 MB, Q8_0.

See README.md of this distribution for what it can and cannot do.
"""

from pathlib import Path

__all__ = ["model_path"]


def model_path() -> Path:
    """The GGUF file, chat template embedded. Serve it with llama.cpp."""
    return Path(__file__).with_name("tiny-tool-caller.q8_0.gguf")
