from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.wire.cuts import cut, cut_points
from treadle.wire.sse import Frame, SSEDecoder


def decode(*chunks: bytes, max_frame_bytes: int = 1000) -> list[Frame]:
    decoder = SSEDecoder(max_frame_bytes)
    frames = [frame for chunk in chunks for frame in decoder.feed(chunk)]
    return frames + decoder.close()


@pytest.mark.parametrize(
    ("body", "frames"),
    [
        (b"data: a\n\ndata: b\n\n", [("", b"a"), ("", b"b")]),
        (b"data:a\r\n\r\ndata:b\r\r", [("", b"a"), ("", b"b")]),
        (b"data:  two spaces\n\n", [("", b" two spaces")]),
        (b"data: one\ndata: two\n\n", [("", b"one\ntwo")]),
        (b"data\n\n", [("", b"")]),
        (b": comment\n\ndata: a\n\n", [("", b"a")]),
        (b"\xef\xbb\xbfdata: a\n\n", [("", b"a")]),
        (b"data: a\n\n\xef\xbb\xbfdata: b\n\n", [("", b"a")]),
        (b"event: ping\ndata: {}\nid: 3\nretry: 10\nunknown: x\n\n", [("ping", b"{}")]),
        (b"event: lost\n\ndata: a\n\n", [("", b"a")]),
        (b'error: {"code":500}\n\n', [("error", b'{"code":500}')]),
        (b"data: \xe2\x80\xa8 line separator stays\n\n", [("", b"\xe2\x80\xa8 line separator stays")]),
        (b"data: no blank line", [("", b"no blank line")]),
        (b"data: no blank line\n", [("", b"no blank line")]),
        (b"", []),
        (b"\n\n\r\n", []),
    ],
)
def test_the_standards_rules(body: bytes, frames: list[Frame]) -> None:
    assert decode(body) == frames
    assert decode(*(body[i : i + 1] for i in range(len(body)))) == frames


line_noise = st.lists(
    st.sampled_from(
        [
            b"data: ",
            b"data:",
            b"event: e",
            b": c",
            b"\n",
            b"\r",
            b"\r\n",
            b"\n\n",
            b"x",
            b"\xc3",
            b"\xa9",
            b"\xef\xbb\xbf",
            b"error: ",
        ]
    )
).map(b"".join)


@given(line_noise | st.binary(max_size=300), cut_points)
def test_frames_do_not_depend_on_where_chunks_are_cut(body: bytes, points: list[int]) -> None:
    assert decode(*cut(body, points)) == decode(body)


@given(st.integers(0, 300), cut_points)
def test_a_frame_past_the_bound_ends_the_stream_wherever_it_is_cut(size: int, points: list[int]) -> None:
    body = b"data: first\n\ndata: " + b"x" * size + b"\n\ndata: last\n\n"
    fits = size <= 100
    for chunks in ([body], cut(body, points)):
        decoder = SSEDecoder(max_frame_bytes=100)
        frames = [frame for chunk in chunks for frame in decoder.feed(chunk)]
        if fits or decoder.overflow:
            assert decoder.overflow is not fits
        assert frames[0] == ("", b"first")
        assert (("", b"last") in frames) is fits


def test_a_line_without_end_is_bounded() -> None:
    decoder = SSEDecoder(max_frame_bytes=1000)
    for _ in range(200):
        decoder.feed(b"x" * 10)
    assert decoder.overflow
    assert decoder.feed(b"\n\ndata: a\n\n") == []
