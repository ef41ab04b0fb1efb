"""Messages between the trainer and its writer: JSON objects over a socket, each behind its length. Nothing is unpickled."""

import base64
import json
import select
import socket
import struct
from typing import Any

SEND_SECONDS = 30.0
"""A writer that takes no message for so long does not live any more, whatever the system says."""


class Channel:
    """One end. `send` and `receive` raise OSError when the other end is gone; `receive` returns None when it left."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._read = b""
        end.settimeout(SEND_SECONDS)

    def send(self, message: dict[str, Any]) -> None:
        content = json.dumps(message).encode()
        self._socket.sendall(struct.pack("<Q", len(content)) + content)

    def receive(self) -> dict[str, Any] | None:
        """Waits for a message, as long as it takes; None when the other end has closed, also in the middle of one."""
        self._socket.settimeout(None)
        while (message := self._taken()) is None:
            received = self._socket.recv(1 << 20)
            if not received:
                return None
            self._read += received
        return message

    def arrived(self, seconds: float = 0.0) -> list[dict[str, Any]] | None:
        """The messages that are there, or come within the time; None when the other end has closed and none is left."""
        messages = []
        while select.select([self._socket], [], [], 0.0 if messages else seconds)[0]:
            received = self._socket.recv(1 << 20)
            if not received:
                return messages or None
            self._read += received
            while (message := self._taken()) is not None:
                messages.append(message)
        return messages

    def close(self) -> None:
        self._socket.close()

    def _taken(self) -> dict[str, Any] | None:
        """The first whole message of what was read, taken off it."""
        if len(self._read) < 8:
            return None
        end = 8 + struct.unpack_from("<Q", self._read)[0]
        if len(self._read) < end:
            return None
        content, self._read = self._read[8:end], self._read[end:]
        return json.loads(content)


def to_text(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def to_bytes(text: str) -> bytes:
    return base64.b64decode(text)
