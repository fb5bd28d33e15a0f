"""Codecs: bytes in, events out, and requests to bytes. No I/O, no clock, no randomness in here."""
