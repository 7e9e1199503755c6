#!/usr/bin/env python3
"""The same example service in frames (docs/protocol.md), with nothing but Python's standard library.

It has no port: it dials its agent, offers /service/demo, and answers what it is called with. It prints the agent's address
once it can be called, and ends with its input. Its answers have one frame, which is enough for an example.
"""

import argparse
import asyncio
import os
import struct

from demo_service import URI, Demo, Server, encode, end_of_input

HEADER = struct.Struct(">2sBBHHIIQQII")
HELLO, REQUEST, RESPONSE, DATA, CANCEL, PING, PONG, CREDIT, GOAWAY = range(1, 10)
END_STREAM, ONE_WAY, TO_CALLER = 0x0001, 0x0002, 0x0080
# Entries of HELLO.
VERSIONS, ROLE, APPLICATION, INSTANCE, OFFER, WINDOWS, CONNECTION, CONNECTIONS = 1, 2, 3, 4, 5, 6, 8, 9
APPLICATION_ROLE = b"\1"
FRAME_MAX, STREAM_WINDOW, CONNECTION_WINDOW = 65_536, 1 << 20, 1 << 22
SERIALIZATION = 302


def frame(kind, flags=0, stream=0, via=0, service=0, word=0, meta=b"", body=b""):
    """A whole frame."""
    return HEADER.pack(b"MO", 1, kind, flags, len(meta), len(body), stream, via, service, word, 0) + meta + body


def entry(number, value):
    """An entry of metadata."""
    return struct.pack(">BH", number, len(value)) + value


def entries(meta):
    """The entries of metadata, by their numbers."""
    found, at = {}, 0
    while at < len(meta):
        number, length = struct.unpack_from(">BH", meta, at)
        found[number] = meta[at + 3 : at + 3 + length]
        at += 3 + length
    return found


def hello(connection):
    """The first frame: who is there, and what it serves."""
    windows = struct.pack(">II", STREAM_WINDOW, CONNECTION_WINDOW)
    who = entry(APPLICATION, b"demo") + entry(INSTANCE, b"demo-%d" % os.getpid())
    which = entry(CONNECTION, struct.pack(">H", connection))
    meta = entry(VERSIONS, b"\1\1") + entry(ROLE, APPLICATION_ROLE) + who + entry(OFFER, URI.encode())
    return frame(HELLO, meta=meta + entry(WINDOWS, windows) + which)


async def read_frame(reader):
    """The next frame: its header's fields, its metadata, its body."""
    head = HEADER.unpack(await reader.readexactly(HEADER.size))
    _, _, kind, flags, meta_len, body_len, stream, via, service, word, _ = head
    meta, body = await reader.readexactly(meta_len), await reader.readexactly(body_len)
    return kind, flags, (stream, via, service), meta, body


class Connection:
    """One connection to the agent."""

    def __init__(self, server):
        self.server = server
        self.running = {}
        self.gathered = {}

    async def open(self, host, port, number):
        """Says who is there; returns how many connections are worth having."""
        self.reader, self.writer = await asyncio.open_connection(host, port)
        self.writer.write(hello(number))
        kind, _, _, meta, _ = await read_frame(self.reader)
        if kind != HELLO:
            raise ConnectionError(f"the agent refused: {meta!r}")
        return struct.unpack(">H", entries(meta).get(CONNECTIONS, b"\0\1"))[0]

    async def serve(self):
        """Answers calls until the agent goes."""
        try:
            while True:
                self.take(*await read_frame(self.reader))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass

    def take(self, kind, flags, call, meta, body):
        """Handles a frame. What came is given back to the windows at once: it is held in memory."""
        stream, via, service = call
        if flags & TO_CALLER:
            return
        if kind in (REQUEST, DATA):
            length = HEADER.size + len(meta) + len(body)
            self.writer.write(frame(CREDIT, word=length))
            self.gathered[via] = self.gathered.get(via, b"") + body
            if flags & END_STREAM:
                self.running[via] = asyncio.create_task(self.answer(flags, call, self.gathered.pop(via)))
            else:
                self.writer.write(frame(CREDIT, TO_CALLER, stream, via, service, word=length))
        elif kind == CANCEL:
            self.gathered.pop(via, None)
            if task := self.running.pop(via, None):
                task.cancel()
        elif kind == PING:
            self.writer.write(frame(PONG, via=via))

    async def answer(self, flags, call, body):
        """Carries out a call."""
        stream, via, service = call
        status, answer = 0, await self.server.call(body)
        if len(answer) > FRAME_MAX // 2:
            status, answer = SERIALIZATION, encode({"ec": SERIALIZATION, "em": "too large for this example", "result": None})
        self.running.pop(via, None)
        if not flags & ONE_WAY:
            self.writer.write(frame(RESPONSE, TO_CALLER | END_STREAM, stream, via, service, status, body=answer))


async def main():
    """Serves until the input ends, or the agent does."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("agent", help="its address, as 127.0.0.1:13000")
    host, port = parser.parse_args().agent.rsplit(":", 1)
    server = Server(Demo())
    connections = [Connection(server)]
    count = await connections[0].open(host, int(port), 0)
    for number in range(1, count):
        connections.append(Connection(server))
        await connections[number].open(host, int(port), number)
    print(f"{host}:{port}", flush=True)
    serving = [asyncio.create_task(connection.serve()) for connection in connections]
    await asyncio.wait([asyncio.create_task(end_of_input()), *serving], return_when=asyncio.FIRST_COMPLETED)
    os._exit(0)  # Connections and calls that are still open end with the process.


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except KeyboardInterrupt:
        pass
