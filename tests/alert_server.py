"""A server on this machine that takes messages as Slack or Discord would, and answers as it is told to."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

SECRET = "T0SECRET/B0SECRET/xyzSECRETxyz"
"""The path of its URL, as Slack's are: who knows it may write."""


@dataclass
class AlertServer:
    """What came, and what is answered: one status after another, then 200."""

    url: str = ""
    answers: list[int] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    delay_seconds: float = 0.0
    received: list[dict[str, Any]] = field(default_factory=list)
    """The messages that were answered with 200."""
    num_requests: int = 0


@contextmanager
def taking_alerts() -> Iterator[AlertServer]:
    """A server that listens until the block ends."""
    served = AlertServer()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            time.sleep(served.delay_seconds)
            served.num_requests += 1
            status = served.answers.pop(0) if served.answers else 200
            if status == 200 and self.path == f"/{SECRET}":
                served.received.append(json.loads(body))
            self.send_response(status)
            for name, value in served.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            pass  # whoever asked did not wait for the answer

    with Server(("127.0.0.1", 0), Handler) as server:
        served.url = f"http://127.0.0.1:{server.server_address[1]}/{SECRET}"
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield served
        finally:
            server.shutdown()
            thread.join()
