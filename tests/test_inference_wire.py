"""HTTP/1.1's bytes: what is understood, and what is refused because two readers could understand it differently."""

from __future__ import annotations

import gzip
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.inference.wire import (
    Chunks,
    Refusal,
    Response,
    accepted_coding,
    compress,
    decompress,
    parse_head,
    response_head,
)

pytestmark = pytest.mark.fast

MIB = 1024 * 1024

SMUGGLING = {
    "both framings": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked",
    "both framings, the other way round": b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 4",
    "two lengths": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nContent-Length: 5",
    "the same length twice": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nContent-Length: 4",
    "a list of lengths": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4, 4",
    "a signed length": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: +4",
    "a negative length": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1",
    "a hexadecimal length": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0x4",
    "a length with an underscore": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1_0",
    "a length in other digits": "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: ٤".encode(),
    "an empty length": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length:",
    "a huge length": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999",
    "chunked in HTTP/1.0": b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked",
    "two transfer codings": b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity",
    "a blank before the colon": b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding : chunked",
    "a tab in the name": b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding\t: chunked",
    "a folded line": b"POST / HTTP/1.1\r\nHost: x\r\nX: a\r\n Content-Length: 4",
    "a bare line feed": b"POST / HTTP/1.1\r\nHost: x\nContent-Length: 4",
    "a bare carriage return": b"POST / HTTP/1.1\r\nHost: x\rContent-Length: 4",
    "a NUL": b"POST / HTTP/1.1\r\nHost: x\r\nX: a\x00b",
    "a control character": b"POST / HTTP/1.1\r\nHost: x\r\nX: a\x0bb",
    "an empty header name": b"POST / HTTP/1.1\r\nHost: x\r\n: chunked",
    "no colon": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length 4",
    "no host": b"POST / HTTP/1.1\r\nContent-Length: 4",
    "two hosts": b"POST / HTTP/1.1\r\nHost: x\r\nHost: y",
    "two blanks in the request line": b"POST  / HTTP/1.1\r\nHost: x",
    "a blank in the path": b"POST /a b HTTP/1.1\r\nHost: x",
    "HTTP/0.9": b"GET /",
    "a lower-case protocol": b"GET / http/1.1\r\nHost: x",
    "a target without a slash": b"GET v2 HTTP/1.1\r\nHost: x",
    "an asterisk": b"OPTIONS * HTTP/1.1\r\nHost: x",
    "an authority": b"CONNECT a:443 HTTP/1.1\r\nHost: x",
    "a method that is no token": b"G(T / HTTP/1.1\r\nHost: x",
}


@pytest.mark.parametrize("block", SMUGGLING.values(), ids=SMUGGLING.keys())
def test_a_head_that_could_be_read_in_two_ways_is_refused(block: bytes) -> None:
    with pytest.raises(Refusal) as refused:
        parse_head(block)

    assert refused.value.status == 400
    assert refused.value.message.endswith(".")


@pytest.mark.parametrize(
    "block, status",
    [
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked", 501),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked", 501),
        (b"GET / HTTP/2.0\r\nHost: x", 505),
        (b"POST / HTTP/1.1\r\nHost: x\r\nExpect: a-miracle", 417),
    ],
)
def test_what_is_not_implemented_has_its_own_status(block: bytes, status: int) -> None:
    with pytest.raises(Refusal) as refused:
        parse_head(block)

    assert refused.value.status == status


def test_a_head_is_understood_whatever_the_case_of_its_names_and_the_blanks_around_its_values() -> None:
    head = parse_head(b"POST /v2/a?b=c HTTP/1.1\r\nhOST:x\r\nCONTENT-length: \t 12 \r\nX-A: 1\r\nx-a: 2")

    assert (head.method, head.path, head.length, head.chunked) == ("POST", "/v2/a", 12, False)
    assert head.headers["x-a"] == "1, 2"
    assert parse_head(b"GET http://h:1/v2 HTTP/1.1\r\nHost: h").path == "/v2"


@pytest.mark.parametrize(
    "version, connection, keep",
    [
        ("1.1", "", True),
        ("1.1", "Close", False),
        ("1.0", "", False),
        ("1.0", "Keep-Alive", True),
        ("1.1", "a, close", False),
    ],
)
def test_a_connection_is_kept_as_its_version_and_header_say(version: str, connection: str, keep: bool) -> None:
    line = f"\r\nConnection: {connection}" if connection else ""

    assert parse_head(f"GET / HTTP/{version}\r\nHost: x{line}".encode()).keep_alive is keep


def test_a_head_of_spaces_is_parsed_in_no_time() -> None:
    """The header's value must not be matched in quadratic time."""
    head = parse_head(b"GET / HTTP/1.1\r\nHost: x\r\nX:" + b" " * 32000 + b"a")

    assert head.headers["x"] == "a"


BAD_CHUNKS = {
    "a size that is no number": b"zz\r\n",
    "a size with 0x": b"0x5\r\nhello\r\n",
    "a signed size": b"+5\r\nhello\r\n",
    "a blank before the size": b" 5\r\nhello\r\n",
    "a blank behind the size": b"5 \r\nhello\r\n",
    "an empty size": b"\r\nhello\r\n",
    "a bare line feed behind the size": b"5\nhello\r\n",
    "a bare line feed in the extension": b"5;a\nb\r\nhello\r\n",
    "a chunk that is longer than it says": b"4\r\nhello\r\n0\r\n\r\n",
    "a line feed alone behind the data": b"5\r\nhello\n0\r\n\r\n",
    "a size that does not fit": b"fffffffff\r\n",
    "a size line without an end": b"5;" + b"a" * 300,
    "a trailer that is no header": b"0\r\nnonsense\r\n\r\n",
}


@pytest.mark.parametrize("sent", BAD_CHUNKS.values(), ids=BAD_CHUNKS.keys())
def test_a_chunked_body_that_could_be_read_in_two_ways_is_refused(sent: bytes) -> None:
    with pytest.raises(Refusal) as refused:
        Chunks(MIB).feed(bytearray(sent))

    assert refused.value.status == 400


def test_a_chunked_body_ends_at_its_limit_before_it_is_read() -> None:
    with pytest.raises(Refusal) as refused:
        Chunks(MIB).feed(bytearray(b"100001\r\n"))

    assert refused.value.status == 413


@given(
    st.lists(st.binary(min_size=1, max_size=40), max_size=6),
    st.lists(st.integers(min_value=1, max_value=7), min_size=1, max_size=20),
)
def test_a_chunked_body_reads_the_same_however_it_is_cut(parts: list[bytes], cuts: list[int]) -> None:
    sent = b"".join(b"%x;ext=1\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\nTrailer: x\r\n\r\nNEXT"

    chunks, buffer, at, turn, done = Chunks(MIB), bytearray(), 0, 0, False
    while at < len(sent) and not done:
        step = cuts[turn % len(cuts)]
        buffer += sent[at : at + step]
        at, turn = at + step, turn + 1
        done = chunks.feed(buffer)

    assert done
    assert bytes(chunks.body) == b"".join(parts)
    assert b"NEXT".startswith(bytes(buffer))


@pytest.mark.parametrize("coding, fold", [("gzip", gzip.compress), ("deflate", zlib.compress), ("GZIP", gzip.compress)])
def test_a_body_is_unfolded_and_its_bombs_are_not(coding: str, fold) -> None:
    assert decompress(fold(b"hello"), coding, MIB) == b"hello"

    with pytest.raises(Refusal) as refused:
        decompress(fold(bytes(MIB + 1)), coding, MIB)

    assert refused.value.status == 413


@pytest.mark.parametrize(
    "body, coding, status",
    [
        (b"hello", "gzip", 400),
        (gzip.compress(b"hello")[:-3], "gzip", 400),
        (gzip.compress(b"hello") + b"more", "gzip", 400),
        (b"hello", "br", 415),
        (b"hello", "gzip, gzip", 415),
    ],
)
def test_a_body_that_cannot_be_unfolded_is_refused(body: bytes, coding: str, status: int) -> None:
    with pytest.raises(Refusal) as refused:
        decompress(body, coding, MIB)

    assert refused.value.status == status


@pytest.mark.parametrize(
    "header, coding",
    [
        ("gzip, deflate", "gzip"),
        ("deflate", "deflate"),
        ("gzip;q=0, deflate;q=0.5", "deflate"),
        ("gzip; q=0.000", ""),
        ("br", ""),
        ("", ""),
    ],
)
def test_the_answer_is_folded_as_the_client_accepts(header: str, coding: str) -> None:
    assert accepted_coding(header) == coding


def test_an_answer_is_folded_only_where_its_size_makes_that_worth_while() -> None:
    small, large = Response(200, (b"x" * 100,)), Response(200, (b"x" * 5000, b"y" * 5000))

    assert compress(small, "gzip") is small
    packed = compress(large, "gzip")
    assert gzip.decompress(packed.parts[0]) == b"x" * 5000 + b"y" * 5000
    assert b"Content-Encoding: gzip\r\n" in response_head(packed, keep_alive=True, minor=1)
