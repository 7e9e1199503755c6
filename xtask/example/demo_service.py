#!/usr/bin/env python3
"""An example MOA service, with nothing but Python's standard library.

It speaks Redis GET as MOA servers do: GET with {"action": URI, "params": {"m": METHOD, "args": [...]}} is answered by a
bulk string {"ec": code, "em": text, "result": ...}. It prints the address that it listens on, and ends with its input.
"""

import argparse
import asyncio
import inspect
import json
import os
import sys
import time

URI = "/service/demo"
NOT_FOUND, NO_METHOD, WRONG_ARGUMENTS, THREW = 501, 502, 302, 503

USERS = {1: {"id": 1, "name": "Ada", "city": "London"}, 2: {"id": 2, "name": "Lin", "city": "Beijing"}}


class Demo:
    """The service: each public method can be called."""

    def echo(self, value):
        """Gives back what it is given."""
        return value

    def add(self, a, b):
        """Adds two numbers."""
        return a + b

    def getUser(self, id):
        """A user, or None."""
        return USERS.get(id)

    async def slow(self, milliseconds):
        """Answers later."""
        await asyncio.sleep(milliseconds / 1000)
        return f"after {milliseconds} ms"

    def boom(self):
        """Always fails."""
        raise RuntimeError("boom: as asked")


class Refused(Exception):
    """A call that the service does not carry out."""

    def __init__(self, code, text):
        super().__init__(text)
        self.code = code


class Server:
    """The protocol around the service."""

    def __init__(self, service):
        self.service = service
        self.started = time.time()
        self.calls = 0
        self.errors = 0

    async def connection(self, reader, writer):
        """Serves one connection, one command after the other, which is what keeps answers in order."""
        try:
            while (command := await read_command(reader)) is not None:
                writer.write(await self.command(command))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, ValueError):
            pass  # The other end has gone, or speaks something else.
        finally:
            writer.close()

    async def command(self, command):
        """The answer to a command, as bytes."""
        verb = command[0].upper()
        if verb == b"GET" and len(command) == 2:
            return bulk(await self.call(command[1]))
        if verb == b"PING":
            return b"+PONG\r\n"
        if verb == b"INFO":
            info = {"uptime_s": int(time.time() - self.started), "calls": self.calls, "errors": self.errors}
            return b"+" + encode(info) + b"\r\n"
        return b"-ERR unknown command\r\n"

    async def call(self, text):
        """Carries out a call; the envelope of its result."""
        self.calls += 1
        try:
            return encode({"ec": 0, "em": "", "result": await self.result(text)})
        except Refused as refused:
            code, reason = refused.code, str(refused)
        except Exception as error:  # Whatever a method throws is the caller's to know.
            code, reason = THREW, f"{type(error).__name__}: {error}"
        self.errors += 1
        return encode({"ec": code, "em": reason, "result": None})

    async def result(self, text):
        """What the method returns."""
        method, args = self.method(text)
        try:
            inspect.signature(method).bind(*args)
        except TypeError as error:
            raise Refused(WRONG_ARGUMENTS, f"{method.__name__}: {error}") from error
        result = method(*args)
        return await result if inspect.isawaitable(result) else result

    def method(self, text):
        """The method and the arguments that a call names."""
        try:
            call = json.loads(text)
            uri, params = call["action"], call["params"]
            name, args = params["m"], params.get("args") or []
            method = None if name.startswith("_") else getattr(self.service, name, None)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Refused(WRONG_ARGUMENTS, f"not a call: {error!r}") from error
        if uri != URI:
            raise Refused(NOT_FOUND, f"no service {uri} here, only {URI}")
        if method is None:
            raise Refused(NO_METHOD, f"{URI} has no method {name}")
        if not isinstance(args, list):
            raise Refused(WRONG_ARGUMENTS, "args is no list")
        return method, args


async def read_command(reader):
    """The next command as a list of its arguments; None at the end."""
    line = await reader.readline()
    if not line:
        return None
    if not line.startswith(b"*"):
        return line.split() or await read_command(reader)
    arguments = []
    for _ in range(int(line[1:])):
        header = await reader.readline()
        if not header.startswith(b"$"):
            raise ValueError("not a bulk string")
        argument = await reader.readexactly(int(header[1:]) + 2)
        arguments.append(argument[:-2])
    return arguments or [b""]


def encode(value):
    """JSON in the form that MOA's servers write."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def bulk(body):
    """A bulk string of the Redis protocol."""
    return b"$%d\r\n%s\r\n" % (len(body), body)


async def end_of_input():
    """Ends when whoever started this service has closed its input, or is gone."""
    loop = asyncio.get_running_loop()
    await loop.run_in_executor(None, sys.stdin.buffer.read)


async def main():
    """Serves until the input ends."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=0, help="0 for any (default)")
    arguments = parser.parse_args()
    server = await asyncio.start_server(Server(Demo()).connection, "127.0.0.1", arguments.port, backlog=1024)
    host, port = server.sockets[0].getsockname()[:2]
    print(f"{host}:{port}", flush=True)
    await end_of_input()
    os._exit(0)  # Connections and calls that are still open end with the process.


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except KeyboardInterrupt:
        pass
