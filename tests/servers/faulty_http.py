"""An HTTP server on loopback whose connections may break, on demand or by who is killed."""

from __future__ import annotations

import socket
import struct
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FaultyServer(ThreadingHTTPServer):
    """A server that says nothing of broken connections."""

    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_: object) -> None:
        """Clients that are killed or give up leave them; they are no concern of a test."""


class FaultyHandler(BaseHTTPRequestHandler):
    """A handler that keeps connections open, and can break them."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def reset(self) -> None:
        """Break the connection off."""
        # With a linger time of zero, closing sends RST.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.rfile.close()
        self.wfile.close()
        self.connection.close()

    def log_message(self, *_: object) -> None:
        """Keep the tests' output to the tests."""
