"""A small OpenAI-compatible endpoint that answers as a test wants."""

import json
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Endpoint:
    """What the endpoint replies, and what it was sent."""

    url: str
    bodies: list = field(default_factory=list)
    keys: list = field(default_factory=list)

    @property
    def prompts(self):
        return [body["messages"][0]["content"] for body in self.bodies]


@contextmanager
def judging(reply):
    """Serve `reply(prompt)`, a text or an HTTP status, on a free port."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            endpoint.bodies.append(body)
            endpoint.keys.append(self.headers["Authorization"])
            content = reply(body["messages"][0]["content"])
            status = content if isinstance(content, int) else 200
            message = {"role": "assistant", "content": content}
            answer = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
            data = json.dumps(answer if status == 200 else {"error": {"message": "no"}}).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *given):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    endpoint = Endpoint(f"http://127.0.0.1:{server.server_port}/v1")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield endpoint
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
