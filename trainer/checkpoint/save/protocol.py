"""What the trainer and its writer say to each other: JSON objects over a socket, each behind its length. Nothing is unpickled.

A message may still be on its way when the trainer dies. So what a slot holds, which must not be believed a moment too long, also stands
in the slot itself, in its last bytes: the memory that the two share is the same for both at every instant.
"""

import base64
import json
import logging
import mmap
import queue
import select
import socket
import struct
import threading
from typing import Any

log = logging.getLogger(__name__)

CLOSE_SECONDS = 30.0
"""How long an end that leaves waits for its last messages to be taken."""


_MARK = struct.Struct("<q")


class Channel:
    """One end. `receive` and `arrived` return None when the other end has left; `send` never waits for it."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._read = b""
        self._unsent: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._sender = threading.Thread(target=self._send_all, name="send", daemon=True)
        self._sender.start()

    def send(self, message: dict[str, Any]) -> None:
        """Hands a message over to be sent: whoever trains must not wait for a process that was stopped."""
        content = json.dumps(message).encode()
        self._unsent.put(struct.pack("<Q", len(content)) + content)

    def _send_all(self) -> None:
        while (content := self._unsent.get()) is not None:
            try:
                self._socket.sendall(content)
            except OSError as error:
                log.debug("nobody takes messages any more: %s", error)  # which reading tells, to whoever reads
                return

    def receive(self) -> dict[str, Any] | None:
        """Waits for a message, as long as it takes; None when the other end has closed, also in the middle of one."""
        while (message := self._taken()) is None:
            received = self._receive()
            if not received:
                return None
            self._read += received
        return message

    def arrived(self, seconds: float = 0.0) -> list[dict[str, Any]] | None:
        """The messages that are there, or come within the time; None when the other end has closed and none is left."""
        messages: list[dict[str, Any]] = []
        while select.select([self._socket], [], [], 0.0 if messages else seconds)[0]:
            received = self._receive()
            if not received:
                return messages or None
            self._read += received
            while (message := self._taken()) is not None:
                messages.append(message)
        return messages

    def close(self) -> None:
        """Sends what is unsent, unless the other end is stuck, and leaves."""
        self._unsent.put(None)
        self._sender.join(CLOSE_SECONDS)
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _receive(self) -> bytes:
        try:
            return self._socket.recv(1 << 20)
        except ConnectionError:
            return b""  # it left with messages unread

    def _taken(self) -> dict[str, Any] | None:
        """The first whole message of what was read, taken off it."""
        if len(self._read) < 8:
            return None
        end = 8 + struct.unpack_from("<Q", self._read)[0]
        if len(self._read) < end:
            return None
        content, self._read = self._read[8:end], self._read[end:]
        return json.loads(content)


def mark(slot: mmap.mmap, step: int | None) -> None:
    """Says in the slot itself which step's snapshot it holds whole; None: it is being filled, whatever was said of it."""
    slot[-_MARK.size :] = _MARK.pack(-1 if step is None else step)


def marked(slot: memoryview) -> int:
    """The step whose snapshot a slot holds whole; -1: none."""
    return _MARK.unpack(slot[-_MARK.size :])[0]


def to_text(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def to_bytes(text: str) -> bytes:
    return base64.b64decode(text)
