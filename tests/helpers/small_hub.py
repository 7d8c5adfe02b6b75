"""A hub on this machine: as much of the Hugging Face hub's interface as fetching and pushing repositories takes."""

import base64
import contextlib
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs

import yaml

COMMIT = "a" * 40
NAME = "openai/gsm8k"
USER, TOKEN = "me", "hf_good"
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
_REPO = re.compile(r"/(?:api/)?(?:(models|datasets)/)?([\w.-]+/[\w.-]+?)(?:\.git)?(/.*)?")


class Hub:
    """The hub's repositories by kind and name, each with its files by path; large ones come by way of ``blobs``."""

    def __init__(self):
        self.repositories = {("datasets", NAME): dict(FILES)}
        self.private = set()
        self.blobs = {}
        self.commits = []
        self.fails = {}  # status by the end of a path, such as "/commit/main"
        self.address = ""


def _entry(path, data=None):
    if data is None:
        return {"type": "directory", "path": path, "size": 0, "oid": "0"}
    return {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}


def _entries(files, folder, deep):
    """The entries of a folder, as the hub's tree has them."""
    start = f"{folder}/" if folder else ""
    below = [path.removeprefix(start) for path in files if path.startswith(start)]
    names = below if deep else {path.split("/")[0] for path in below}
    return [_entry(start + name, files.get(start + name)) for name in sorted(names)]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self):
        return self.server.hub

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

    def _answer(self):
        path, _, query = self.path.partition("?")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status = next((status for end, status in self.hub.fails.items() if path.endswith(end)), None)
        if status is not None:
            return self._reply({"error": "the hub is tired"}, status)
        reads = self.command in ("GET", "HEAD") or "/paths-info/" in path
        known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if not known and ("whoami" in path or not (reads or path.startswith("/lfs/"))):
            return self._reply({"error": "Invalid credentials in Authorization header"}, 401)
        if path == "/api/whoami-v2":
            return self._reply({"name": USER, "type": "user"})
        if path == "/api/validate-yaml":
            return self._validate(json.loads(body)["content"])
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path.startswith("/lfs/"):
            self.hub.blobs[path.removeprefix("/lfs/")] = body
            return self._reply({})
        kind, name, rest = _REPO.fullmatch(path).groups()
        files = self.hub.repositories.get((kind or "models", name))
        if files is None:
            return self._reply({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
        return self._of_repository(name, files, rest or "", body, query)

    do_GET = do_HEAD = do_POST = do_PUT = _answer

    def _of_repository(self, name, files, rest, body, query):
        if rest.startswith("/resolve/"):
            data = files.get(rest.removeprefix("/resolve/").partition("/")[2])
            if data is None:
                return self._reply(
                    {"error": "Entry not found"}, 404, X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT
                )
            return self._reply(data, X_Repo_Commit=COMMIT, ETag=f'"{hashlib.sha1(data).hexdigest()}"')
        if rest.startswith("/tree/"):
            deep = "recursive=True" in query or "recursive=true" in query
            return self._reply(_entries(files, rest.removeprefix("/tree/").partition("/")[2], deep))
        if rest.startswith("/paths-info/"):
            asked = [path.strip("/") for path in parse_qs(body.decode()).get("paths", [])]
            return self._reply([_entry(path, files.get(path)) for path in asked])
        if rest.startswith("/preupload/"):
            modes = [("lfs" if one["size"] > 4000 else "regular", one["path"]) for one in json.loads(body)["files"]]
            return self._reply({"files": [{"path": p, "uploadMode": m, "shouldIgnore": False} for m, p in modes]})
        if rest == "/info/lfs/objects/batch":
            objects = json.loads(body)["objects"]
            upload = [{"upload": {"href": f"{self.hub.address}/lfs/{one['oid']}"}} for one in objects]
            listed = [one | {"actions": actions} for one, actions in zip(objects, upload, strict=True)]
            return self._reply({"objects": listed, "transfer": "basic"})
        if rest.startswith("/commit/"):
            return self._commit(name, files, [json.loads(line) for line in body.splitlines()])
        siblings = [{"rfilename": path} for path in files]
        return self._reply({"id": name, "sha": COMMIT, "siblings": siblings, "private": False, "tags": []})

    def _validate(self, text):
        facts = yaml.safe_load(text.split("---\n")[1])
        bad = [b for b in [facts.get("base_model", "a/b")] if not re.fullmatch(r"[\w.-]+/[\w.-]+", b)]
        if bad:
            return self._reply({"errors": [{"message": f'"base_model" with value "{bad[0]}" is not valid'}]}, 400)
        return self._reply({"errors": [], "warnings": []})

    def _create(self, asked):
        owner, kind = asked.get("organization") or USER, f"{asked.get('type', 'model')}s"
        if owner != USER:
            return self._reply({"error": f"You don't have the rights to create a model under {owner}"}, 403)
        name = f"{owner}/{asked['name']}"
        if (kind, name) in self.hub.repositories:
            return self._reply({"error": "You already created this repo", "url": f"{self.hub.address}/{name}"}, 409)
        self.hub.repositories[kind, name] = {".gitattributes": b""}
        if asked.get("visibility") == "private":
            self.hub.private.add(name)
        return self._reply({"url": f"{self.hub.address}/{name}"})

    def _commit(self, name, files, operations):
        for operation in operations:
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
        self.hub.commits.append(name)
        self._reply({"commitUrl": f"{self.hub.address}/{name}/commit/{COMMIT}", "commitOid": COMMIT})


@contextlib.contextmanager
def serving_hub():
    """Serve a hub for a while."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.hub = hub = Hub()
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextlib.contextmanager
def small_hub():
    """Serve a hub with one dataset for a while; yields its address."""
    with serving_hub() as hub:
        yield hub.address


@contextlib.contextmanager
def hub_of_this_process(monkeypatch, home, token=TOKEN):
    """Serve a hub to this process, which has a token and an empty cache."""
    from huggingface_hub import constants

    with serving_hub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.address)
        template = hub.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
        monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(home / "tokens"))
        if token is None:
            monkeypatch.delenv("HF_TOKEN", raising=False)
        else:
            monkeypatch.setenv("HF_TOKEN", token)
        yield hub
