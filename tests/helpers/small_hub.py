"""A hub on this machine: one dataset, and as much of the Hugging Face hub's interface as fetching it takes."""

import contextlib
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs

COMMIT = "a" * 40
NAME = "openai/gsm8k"
CARD = b"""---
configs:
- config_name: main
  data_files:
  - split: train
    path: main/train-*
  - split: test
    path: main/test-*
- config_name: socratic
  data_files:
  - split: test
    path: socratic/test-*
---
"""
FILES = {
    "README.md": CARD,
    "main/test-00000.jsonl": b'{"question": "Q?", "answer": "So.\\n#### 1,000"}\n',
    "main/train-00000.jsonl": b'{"question": "T?", "answer": "So.\\n#### 2"}\n',
    "socratic/test-00000.jsonl": b'{"question": "S?", "answer": "So.\\n#### 3"}\n',
}


def _entry(path):
    if path in FILES:
        data = FILES[path]
        return {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
    return {"type": "directory", "path": path, "size": 0, "oid": "0"}


def _listed(folder):
    """The entries of a folder, as the hub's tree has them."""
    start = f"{folder}/" if folder else ""
    below = [path.removeprefix(start) for path in FILES if path.startswith(start)]
    return [_entry(start + name) for name in sorted({path.split("/")[0] for path in below})]


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, *arguments):
        pass

    def _reply(self, data, status=200, **headers):
        body = data if isinstance(data, bytes) else json.dumps(data).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self):
        path = self.path.partition("?")[0]
        if NAME not in path:
            self._reply({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
        elif "/resolve/" in path:
            name = path.partition("/resolve/")[2].partition("/")[2]
            if name in FILES:
                self._reply(FILES[name], X_Repo_Commit=COMMIT, ETag=f'"{_entry(name)["oid"]}"')
            else:
                self._reply({"error": "Entry not found"}, 404, X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
        elif "/tree/" in path:
            self._reply(_listed(path.partition("/tree/")[2].partition("/")[2]))
        else:
            siblings = [{"rfilename": name} for name in FILES]
            self._reply({"id": NAME, "sha": COMMIT, "siblings": siblings, "private": False, "tags": []})

    do_HEAD = do_GET

    def do_POST(self):
        asked = parse_qs(self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()).get("paths", [])
        self._reply([_entry(path.strip("/")) for path in asked])


@contextlib.contextmanager
def small_hub():
    """Serve the hub for a while; yields its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
