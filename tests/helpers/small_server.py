"""A real HTTP server that speaks vLLM's protocol and writes tokens by a formula: for what happens between the two."""

import contextlib
import hashlib
import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from helpers.small_models import VOCABULARY


def tokens(prompt, seed, count):
    """What the server writes: depends on prompt and seed alone."""
    digest = hashlib.blake2b(f"{list(prompt)} {seed}".encode()).digest()
    return [1 + b % 200 for b in digest[:count]]


class SmallServer:
    """One server in a thread; its behaviour is set by attributes while it runs."""

    def __init__(self, **behaviour):
        self.adapters, self.weights = {}, "default"
        self.calls, self.bodies, self.headers = [], [], []
        self.lock = threading.Lock()
        self.in_flight = self.most_in_flight = 0
        self.key = None
        self.delay = 0.0
        self.hang = threading.Event()  # set: nothing is answered any more
        self.hold = {}  # prompt -> event that its answer waits for
        self.fail = {}  # path -> list of (status, message), used up one by one
        self.context = 128
        self.model = "base"
        self.config = None
        self.gone = False
        self.__dict__.update(behaviour)
        self._sockets = set()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            def setup(self):
                super().setup()
                owner._sockets.add(self.connection)

            def do_GET(self):
                self.answer(None)

            def do_POST(self):
                length = int(self.headers.get("Content-Length") or 0)
                self.answer(json.loads(self.rfile.read(length) or b"null"))

            def answer(self, body):
                path = self.path.partition("?")[0]
                with owner.lock:
                    owner.calls.append((path, body))
                    owner.headers.append(dict(self.headers))
                while owner.hang.is_set() and not owner.gone:
                    time.sleep(0.02)
                status, out = owner.reply(path, body, self.headers.get("Authorization"))
                data = b"" if out is None else json.dumps(out).encode()
                if owner.gone:
                    return
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def handle_one_request(self):
                try:
                    super().handle_one_request()
                except (OSError, ValueError):  # the client left, or kill() closed the socket
                    self.close_connection = True

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._http.handle_error = lambda *args: None
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()

    def kill(self):
        """Every connection is cut at once, and nobody listens any more."""
        self.gone = True
        self._http.shutdown()
        self._http.server_close()
        for connection in list(self._sockets):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def restart(self):
        """As a new process in the same place would be: it holds none of what was pushed."""
        self.weights, self.adapters = "default", {}

    def paths(self):
        return [path for path, _ in self.calls]

    def completions(self):
        """Bodies of the requests for completions, without the two that look at the model."""
        return [body for path, body in self.calls if path == "/v1/completions" and "seed" in body]

    def reply(self, path, body, key):
        if self.fail.get(path):
            status, message = self.fail[path].pop(0)
            return status, {"error": {"message": message}}
        if self.key is not None and path != "/health" and key != f"Bearer {self.key}":
            return 401, {"error": "Unauthorized"}
        if path == "/v1/completions":
            return self.complete(body)
        if path == "/health":
            return 200, None
        if path == "/v1/models":
            base = {"id": self.model, "parent": None, "root": "somewhere/model", "max_model_len": self.context}
            return 200, {"data": [base, *({"id": n, "parent": self.model} for n in self.adapters)]}
        if path == "/server_info" and self.config is not None:
            return 200, {"vllm_config": self.config}
        if path == "/weight_info":
            return 200, {"weight_version": self.weights}
        if path == "/update_weight_version":
            self.weights = body["new_version"]
            return 200, {"success": True}
        if path == "/v1/load_lora_adapter":
            self.adapters[body["lora_name"]] = body["lora_path"]
            return 200, None
        if path == "/v1/unload_lora_adapter":
            return (200, None) if self.adapters.pop(body["lora_name"], None) else (404, {"error": {"message": "gone"}})
        if path in ("/pause", "/resume", "/collective_rpc", "/reset_prefix_cache"):
            return 200, {"success": True}
        return 404, {"detail": "Not Found"}

    def complete(self, body):
        if body["model"] not in (self.model, *self.adapters):
            return 404, {"error": {"message": f"The model `{body['model']}` does not exist."}}
        if "seed" not in body and "prompt_logprobs" not in body:
            known = all(0 <= t < VOCABULARY for t in body["prompt"])
            return (200, {"choices": []}) if known else (400, {"error": {"message": "out of vocabulary"}})
        with self.lock:
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            time.sleep(self.delay)
            if "prompt_logprobs" in body:
                rows = [[None, *({str(t): {"logprob": -t / 10}} for t in row[1:])] for row in body["prompt"]]
                return 200, {"choices": [{"index": i, "prompt_logprobs": r} for i, r in enumerate(rows)][::-1]}
            if (held := self.hold.get(tuple(body["prompt"]))) is not None:
                while not held.is_set() and not self.gone:
                    time.sleep(0.01)
            ids = tokens(body["prompt"], body["seed"], body["max_tokens"])
            choice = {"index": 0, "token_ids": ids, "finish_reason": "length", "stop_reason": None, "text": ""}
            return 200, {"choices": [{**choice, "logprobs": {"token_logprobs": [-0.5] * len(ids)}}]}
        finally:
            with self.lock:
                self.in_flight -= 1
