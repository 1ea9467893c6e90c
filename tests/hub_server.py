"""A Hugging Face hub on loopback: what huggingface_hub asks a server for, and the ways in which a server can fail."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections import defaultdict
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    Fault = Callable[["_Handler", bytes], bool]

_PAGE = re.compile(r"/(?P<name>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)")
_API = re.compile(r"/api/models/(?P<name>[^/]+/[^/]+)(?:/(?P<kind>revision|tree)/(?P<revision>[^/?]+))?(?:\?.*)?")


class HubServer:
    """Serves repositories that live in memory.

    Attributes:
        url: Address to give to huggingface_hub.
        requests: What was asked so far, such as `"GET /owner/model/resolve/main/config.json"`.
        authorizations: The `Authorization` headers that came, None where there was none.
        renamed: Old names of repositories and their new ones.
        private: Repositories that need `token`.
        gated: Repositories whose terms were not accepted.
        fault: Looks at each request and the body of its answer; where it returns True, it has dealt with it.
        stopped: Set when the server goes down.
    """

    token = "hf_right"

    def __init__(self) -> None:
        self.requests: list[str] = []
        self.authorizations: list[str | None] = []
        self.renamed: dict[str, str] = {}
        self.private: set[str] = set()
        self.gated: set[str] = set()
        self.fault: Fault | None = None
        self.stopped = threading.Event()
        self.commits: defaultdict[str, dict[str, Mapping[str, bytes]]] = defaultdict(dict)
        self.branches: defaultdict[str, dict[str, str]] = defaultdict(dict)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.hub = self  # type: ignore[attr-defined]
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def add(self, name: str, commit: str, files: Mapping[str, bytes] | Path, *, branch: str = "main") -> None:
        """Put files under a commit, and let a branch point to it."""
        if not isinstance(files, dict):
            folder = files
            files = {
                path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
            }
        self.commits[name][commit] = files
        self.branches[name][branch] = commit

    def stop(self) -> None:
        """Go down: later connections are refused."""
        if not self.stopped.is_set():
            self.stopped.set()
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *_: Any) -> None:
        """Keep the test's output clean."""

    @property
    def hub(self) -> HubServer:
        return self.server.hub  # type: ignore[attr-defined, no-any-return]

    def _answer(self) -> None:
        self.hub.requests.append(f"{self.command} {self.path}")
        self.hub.authorizations.append(self.headers["Authorization"])
        status, headers, body = self._look_up()
        if self.hub.fault is not None and self.hub.fault(self, body):
            return
        if status == 200 and (wanted := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))):
            start = int(wanted[1])
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
            status, body = 206, body[start:]
        self.send(status, headers, body)

    def send(self, status: int, headers: Mapping[str, str], body: bytes, *, promised: int | None = None) -> None:
        """Send an answer whose length may be another than promised."""
        with suppress(ConnectionError):
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body) if promised is None else promised))
            # A connection that stays open would be served on after `stop`.
            self.send_header("Connection", "close")
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

    def _look_up(self) -> tuple[int, dict[str, str], bytes]:
        asked = _PAGE.fullmatch(self.path) or _API.fullmatch(self.path)
        if asked is None:
            return _refused(404, "")
        name = asked["name"]
        if name in self.hub.renamed:
            return 307, {"Location": self.path.replace(name, self.hub.renamed[name])}, b""
        return self._refusal(name) or self._content(asked)

    def _refusal(self, name: str) -> tuple[int, dict[str, str], bytes] | None:
        token = self.headers["Authorization"]
        if token not in {None, f"Bearer {self.hub.token}"}:
            return _refused(401, "", "Invalid credentials in Authorization header")
        if name not in self.hub.commits or (name in self.hub.private and token is None):
            return _refused(401, "RepoNotFound")
        return _refused(403, "GatedRepo") if name in self.hub.gated else None

    def _content(self, asked: re.Match[str]) -> tuple[int, dict[str, str], bytes]:
        name, revision = asked["name"], asked["revision"] or "main"
        commit = self.hub.branches[name].get(revision, revision)
        if commit not in self.hub.commits[name]:
            return _refused(404, "RevisionNotFound")
        headers = {"X-Repo-Commit": commit}
        files = self.hub.commits[name][commit]
        if asked.re is _PAGE:
            if asked["file"] not in files:
                return _refused(404, "EntryNotFound", headers=headers)
            body = files[asked["file"]]
            return 200, {**headers, "ETag": f'"{_digest(body)}"'}, body
        if asked["kind"] == "tree":
            tree = [
                {"type": "file", "path": path, "size": len(body), "oid": _digest(body)} for path, body in files.items()
            ]
            return 200, headers, json.dumps(tree).encode()
        info = {"id": name, "modelId": name, "sha": commit, "siblings": [{"rfilename": path} for path in files]}
        return 200, headers, json.dumps(info).encode()


def _digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def _refused(
    status: int, code: str, message: str = "", *, headers: Mapping[str, str] | None = None
) -> tuple[int, dict[str, str], bytes]:
    return status, {**(headers or {}), "X-Error-Code": code, "X-Error-Message": message or code}, b""


def answers(status: int) -> Fault:
    """Answer everything with a status."""

    def fault(handler: _Handler, body: bytes) -> bool:
        handler.send(status, {}, b"")
        return True

    return fault


def answers_for(file: str, status: int) -> Fault:
    """Answer requests for one file with a status."""

    def fault(handler: _Handler, body: bytes) -> bool:
        if not handler.path.endswith(file):
            return False
        handler.send(status, {}, b"")
        return True

    return fault


def hangs(handler: _Handler, body: bytes) -> bool:
    """Accept and never answer."""
    handler.hub.stopped.wait()
    handler.close_connection = True
    return True


def hangs_in_files(handler: _Handler, body: bytes) -> bool:
    """Begin to send a file and never go on."""
    if handler.command == "HEAD":
        return False
    handler.send(200, {}, body[: len(body) // 2], promised=len(body))
    return hangs(handler, body)


def sends_too_little(handler: _Handler, body: bytes) -> bool:
    """Send fewer bytes of a file than HEAD promised."""
    if handler.command == "HEAD":
        return False
    handler.send(200, {}, body[: len(body) // 2])
    return True


def breaks_off() -> Fault:
    """Close the connection in the middle of a file, and at once for whoever tries to go on."""
    begun: set[str] = set()

    def fault(handler: _Handler, body: bytes) -> bool:
        if handler.command == "HEAD":
            return False
        if handler.path not in begun:
            begun.add(handler.path)
            handler.send(200, {}, body[: len(body) // 2], promised=len(body))
        handler.close_connection = True
        return True

    return fault
