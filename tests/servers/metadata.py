"""A metadata server as Google's machines have one: it gives a token to whoever asks.

Without one, each process that looks for credentials spends about 20 s in search of it.
"""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PROJECT = "lab-test"
#: No address, or google.auth would ask another server for the regions it may be used in.
ACCOUNT = "tester"
ROOT = "/computeMetadata/v1"


class MetadataServer:
    """Serves `PROJECT` and a token of no worth on a port of loopback until it is closed."""

    def __init__(self) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=[0.05], daemon=True).start()

    @property
    def address(self) -> str:
        """``host:port``, as ``GCE_METADATA_HOST`` and ``GCE_METADATA_IP`` want it."""
        return f"127.0.0.1:{self._server.server_port}"

    @property
    def environment(self) -> dict[str, str]:
        """The variables that send Google's clients here."""
        return {"GCE_METADATA_HOST": self.address, "GCE_METADATA_IP": self.address}

    def close(self) -> None:
        """Stop."""
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = self.path.partition("?")[0].rstrip("/")
        account = f"{ROOT}/instance/service-accounts"
        details = {"aliases": ["default"], "email": ACCOUNT, "scopes": ["cloud-platform"]}
        token = {"access_token": "loopback", "expires_in": 36000, "token_type": "Bearer"}
        answers: dict[str, Any] = {
            "": "",
            f"{ROOT}/project/project-id": PROJECT,
            f"{ROOT}/project/numeric-project-id": "1234567890",
            f"{ROOT}/universe/universe-domain": "googleapis.com",
            f"{ROOT}/universe/universe_domain": "googleapis.com",
            f"{ROOT}/instance/zone": "projects/1234567890/zones/europe-west4-a",
            account: {"default": details},
        }
        for name in ("default", ACCOUNT):
            answers[f"{account}/{name}"] = details
            answers[f"{account}/{name}/email"] = ACCOUNT
            answers[f"{account}/{name}/token"] = token
        answer = answers.get(path)
        text = answer if isinstance(answer, str) else json.dumps(answer)
        body = b"" if answer is None else text.encode()
        self.send_response(404 if answer is None else 200)
        self.send_header("Metadata-Flavor", "Google")
        kind = "application/text" if isinstance(answer, str) else "application/json"
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass
