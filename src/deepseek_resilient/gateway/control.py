"""What supervisor and workers say to each other, over a pair of sockets: a length and a pickle, both ways.

Only the two ends of a socket pair that the supervisor made can speak on it, so a pickle is safe here.

    supervisor → worker    ("begin", (0, (GatewaySettings, Spent))), the first
                           ("settings", (n, GatewaySettings))   ("status", (n, None))   ("metrics", (n, None))
                           ("spent", (n, Spent)): what was spent elsewhere; the answer is what was spent here
                           ("drain", (0, None)), which has no answer
    worker → supervisor    ("ready", (0, True)) once, then (word, (n, answer)) for each question n
                           ("spent", (0, Spent)), the last
"""

from __future__ import annotations

import asyncio
import pickle
import struct
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import socket

_LENGTH = struct.Struct("!I")


class Channel:
    """One end. For one event loop."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def over(cls, end: socket.socket) -> Channel:
        """On that end of a pair."""
        return cls(*await asyncio.open_connection(sock=end))

    async def send(self, word: str, value: object = None) -> None:
        """Raises OSError where the other end is gone."""
        data = pickle.dumps((word, value))
        self._writer.write(_LENGTH.pack(len(data)) + data)
        await self._writer.drain()

    async def receive(self) -> tuple[str, Any] | None:
        """The next message; None once the other end is gone."""
        try:
            (size,) = _LENGTH.unpack(await self._reader.readexactly(_LENGTH.size))
            message: tuple[str, Any] = pickle.loads(await self._reader.readexactly(size))  # noqa: S301 -- see above
        except (asyncio.IncompleteReadError, OSError):
            return None
        return message

    def close(self) -> None:
        """Hang up."""
        self._writer.close()
