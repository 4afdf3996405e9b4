"""HTTP/1.1 messages as the fault proxy needs them: read whole, kept byte for byte, written back.

In: an asyncio stream. Out: `Message` with the first line, the header lines in their order and case,
and the body.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

HEAD_LIMIT_BYTES = 2**20
ERROR_CODES = {
    403: "AccessDenied",
    404: "NoSuchKey",
    429: "TooManyRequests",
    500: "InternalError",
    503: "SlowDown",
}


@dataclass(frozen=True)
class Message:
    """A request or an answer: first line, header lines as they came, body."""

    first: str
    headers: list[tuple[str, str]]
    body: bytes

    @property
    def status(self) -> int:
        """The status code of an answer."""
        return int(self.first.split(" ", 2)[1])

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key.lower() == name), None)

    def head(self, *, without: set[str], extra: list[tuple[str, str]]) -> bytes:
        kept = [(key, value) for key, value in self.headers if key.lower() not in without]
        return "\r\n".join(
            [self.first, *(f"{key}: {value}" for key, value in kept + extra), "", ""]
        ).encode("latin-1")


async def _read_head(reader: asyncio.StreamReader) -> tuple[str, list[tuple[str, str]]]:
    first, *lines = (
        (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").rstrip("\r\n").split("\r\n")
    )
    pairs = (line.split(":", 1) for line in lines)
    return first, [(key, value.strip()) for key, value in pairs]


async def read_request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Message:
    head = Message(*await _read_head(reader), b"")
    if (head.header("expect") or "").lower() == "100-continue":
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        await writer.drain()
    raw = await _read_body(reader, head, until_eof=False, keep_framing=True)
    return Message(head.first, head.headers, raw)


async def read_answer(reader: asyncio.StreamReader, method: str) -> Message:
    head = Message(*await _read_head(reader), b"")
    while head.status == 100:
        head = Message(*await _read_head(reader), b"")
    if method == "HEAD" or head.status in {204, 304}:
        return head
    return Message(
        head.first, head.headers, await _read_body(reader, head, until_eof=True, keep_framing=False)
    )


async def _read_body(
    reader: asyncio.StreamReader, head: Message, *, until_eof: bool, keep_framing: bool
) -> bytes:
    """The body as bytes; a chunked one with its framing (to pass it on) or without."""
    if "chunked" in (head.header("transfer-encoding") or "").lower():
        parts: list[bytes] = []
        while True:
            size_line = await reader.readuntil(b"\r\n")
            size = int(size_line.split(b";")[0], 16)
            chunk = await reader.readexactly(size + 2)
            parts.append(size_line + chunk if keep_framing else chunk[:-2])
            if size == 0:
                return b"".join(parts)
    length = head.header("content-length")
    if length is not None:
        return await reader.readexactly(int(length))
    return await reader.read() if until_eof else b""


def error_answer(status: int, target: str) -> Message:
    code = ERROR_CODES.get(status, "InternalError")
    body = (
        f"<?xml version='1.0' encoding='UTF-8'?><Error><Code>{code}</Code>"
        f"<Message>made by the fault proxy</Message><Resource>{target.split('?')[0]}</Resource>"
        "<RequestId>0</RequestId></Error>"
    ).encode()
    return Message(f"HTTP/1.1 {status} {code}", [("Content-Type", "application/xml")], body)
