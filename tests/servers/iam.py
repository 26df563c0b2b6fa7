"""Google's IAM service on loopback: which service accounts there are, and who may use them."""

from __future__ import annotations

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

ACT_AS = "iam.serviceAccounts.actAs"
DISABLED = (
    403,
    "PERMISSION_DENIED",
    "Identity and Access Management (IAM) API has not been used in project lab-test before or it "
    "is disabled.",
)


class IamServer:
    """A server on loopback until it is closed.

    Attributes
    ----------
    accounts : dict
        {address: the permissions on it that whoever asks has}.
    refuse : tuple of (int, str, str) or None
        Status code, its name and a message with which everything is answered.
    outages : int
        Requests that are answered 503 from now on.
    requests : list of (resource, authorisation)
        All that were received, in order.
    """

    def __init__(self) -> None:
        handler = type("Handler", (_Handler,), {"iam": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.accounts: dict[str, list[str]] = {}
        self.refuse: tuple[int, str, str] | None = None
        self.outages = 0
        self.requests: list[tuple[str, str | None]] = []
        threading.Thread(target=self._server.serve_forever, args=[0.05], daemon=True).start()

    @property
    def environment(self) -> dict[str, str]:
        """The variables that send clients here."""
        url = f"http://127.0.0.1:{self._server.server_port}/"
        return {"CLOUDSDK_API_ENDPOINT_OVERRIDES_IAM": url}

    def answer(self, path: str, permissions: list[str]) -> tuple[int, str, Any]:
        """Return status, its name, and a message or the permissions of an account."""
        found = re.fullmatch(
            r"/v1/projects/([^/]+)/serviceAccounts/([^/]+):testIamPermissions", path
        )
        if self.outages:
            self.outages -= 1
            return 503, "UNAVAILABLE", "try again"
        if self.refuse:
            return self.refuse
        if not found:
            return 404, "NOT_FOUND", f"no {path}"
        granted = self.accounts.get(found[2])
        if granted is None and found[1] == "-":
            # As documented: without a project it does not say what is there.
            return 403, "PERMISSION_DENIED", "Permission denied on resource (or it may not exist)."
        if granted is None:
            return 404, "NOT_FOUND", f"Unknown service account: {found[2]}"
        return 200, "", [name for name in permissions if name in granted]

    def close(self) -> None:
        """Stop."""
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    iam: IamServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        path = unquote(self.path)
        self.iam.requests.append((path, self.headers.get("Authorization")))
        status, name, said = self.iam.answer(path, body["permissions"])
        # Who may do nothing is answered {}.
        content: dict[str, Any] = {"permissions": said} if said else {}
        if status != 200:
            content = {"error": {"code": status, "message": said, "status": name}}
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        pass
