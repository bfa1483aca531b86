"""A small Hugging Face hub on 127.0.0.1: models, their files, a token."""

import base64
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_secretsecretsecret"


@dataclass
class Hub:
    """What it holds and what it was asked."""

    url: str = ""
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)  # by model, then by name
    private: dict[str, bool] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)

    def sha(self, model: str) -> str:
        return sha1(repr(sorted(self.files[model].items())).encode()).hexdigest()

    def info(self, model: str) -> dict[str, object]:
        siblings = [{"rfilename": name} for name in self.files[model]]
        about = {"id": model, "modelId": model, "sha": self.sha(model), "private": self.private.get(model, False)}
        return about | {"siblings": siblings, "tags": [], "downloads": 0, "likes": 0}


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def answer(self, content: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(data))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        found = re.fullmatch(r"/(api/models/)?([^/]+/[^/]+?)(?:/(revision|tree|resolve)/([^/]+)(?:/(.*))?)?", path)
        model = found[2] if found else ""
        if found is None or model not in self.hub.files or found[4] not in (None, "main", "v1", self.hub.sha(model)):
            code = "RevisionNotFound" if model in self.hub.files else "RepoNotFound"
            self.answer({"error": "not found"}, 404, {"X-Error-Code": code})
        elif found[3] == "tree":
            files = self.hub.files[model].items()
            self.answer([{"type": "file", "path": name, "size": len(data), "oid": "0"} for name, data in files])
        elif found[3] == "resolve":
            data = self.hub.files[model][found[5]]
            about = {"ETag": f'"{sha1(data).hexdigest()}"', "X-Repo-Commit": self.hub.sha(model)}
            self.answer(data, headers=about)
        else:
            self.answer(self.hub.info(model))

    do_HEAD = do_GET  # noqa: N815

    def do_POST(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"POST {path}")
        content = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            self.answer({"error": "Invalid username or password."}, 401)
        elif path == "/api/repos/create":
            self.create(json.loads(content))
        elif path.endswith("/preupload/main"):
            files = json.loads(content)["files"]
            named = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in files]
            self.answer({"files": named})
        elif path.endswith("/commit/main"):
            model = path.removeprefix("/api/models/").removesuffix("/commit/main")
            for row in map(json.loads, content.splitlines()):
                if row["key"] == "file":
                    self.hub.files[model][row["value"]["path"]] = base64.b64decode(row["value"]["content"])
            self.answer({"commitOid": self.hub.sha(model), "commitUrl": f"{self.hub.url}/{model}/commit/1"})
        else:
            self.answer({})

    def create(self, asked: dict[str, str]) -> None:
        model = f"{asked['organization']}/{asked['name']}"
        is_new = model not in self.hub.files
        if is_new:
            self.hub.files[model] = {}
            self.hub.private[model] = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.answer({"url": f"{self.hub.url}/{model}"}, 200 if is_new else 409)


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A hub that answers meanwhile."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("HandlerOf", (Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
