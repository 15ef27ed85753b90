"""Servers in a process or a thread of their own, and messages to try them with."""

import contextlib
import json
import re
import select
import subprocess
import sys
import threading
import time

from hypothesis import strategies as st
from websockets.sync.client import connect

from personalllm_env.adapters.openenv import SelectAction, SelectEnvironment
from personalllm_env.adapters.openenv.network import InTime, listen

SETTINGS = {"bank": "text", "horizon": 4, "concentration": 0.05}


@contextlib.contextmanager
def served(*arguments, timeout=60):
    """Runs the command, on a port that it finds free, and yields where it listens."""
    command = [sys.executable, "-m", "personalllm_env", "serve", *arguments, "--port", "0"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        line, end = "", time.monotonic() + timeout
        while "Serving" not in line:
            ready, _, _ = select.select([process.stdout], [], [], end - time.monotonic())
            line = process.stdout.readline() if ready else ""
            assert line, process.stderr.read() if process.poll() is not None else "too slow"
        yield re.search(r"http://[^\s;]+", line).group()
        assert process.poll() is None, process.stderr.read()
    finally:
        process.terminate()
        _, said = process.communicate(timeout=20)
    assert "Traceback" not in said, said


@contextlib.contextmanager
def in_thread(app):
    """Serves an ASGI application from this process."""
    import uvicorn

    bound = listen("127.0.0.1", 0)
    config = uvicorn.Config(app, log_level="error", http=InTime, lifespan="on")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=20)
        assert not thread.is_alive()


def socket_to(url, path="/ws"):
    return connect(url.replace("http", "ws", 1) + path, proxy=None, compression=None)


def ask(socket, message):
    """Sends a message as it is, or as JSON, and returns the answer."""
    as_it_is = isinstance(message, str | bytes)
    socket.send(message if as_it_is else json.dumps(message))
    return json.loads(socket.recv(timeout=20))


def reset_message(**data):
    return {"type": "reset", "data": data}


def step_message(response):
    return {"type": "step", "data": {"response": response}}


class Model:
    """What a session must answer, computed without a server."""

    def __init__(self):
        self.env = SelectEnvironment(SETTINGS)
        self.under_way = False

    def answer(self, message):
        """Returns the observation that answers a message, or None for an error."""
        if message["type"] == "reset":
            observation = self.env.reset(**message["data"])
            self.under_way = True
        elif not self.under_way:
            return None
        else:
            observation = self.env.step(SelectAction(**message["data"]))
            self.under_way = not observation.done
        found = observation.model_dump(mode="json")
        return found.pop("reward"), found.pop("done"), found


def told(answer):
    data = answer["data"]
    return data["reward"], data["done"], data["observation"]


# Values that are no good anywhere: of wrong types, huge, nested, broken, or too many.
odd_numbers = st.sampled_from([-1, 8, 2**31, 2**63, 2**64, -(2**70), 10**400, 1.5, 1e300, -0.0])
odd_texts = st.sampled_from(["", "3", "\ud800", "a\udfffb", "\x00", "é" * 50, "x" * 3000, "__"])
odd = st.recursive(
    odd_numbers | odd_texts | st.none() | st.booleans() | st.text(max_size=5) | st.integers(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4) | odd_texts, inner)
    ),
    max_leaves=6,
)
names = st.sampled_from(
    ["seed", "episode_id", "split", "index", "user", "prompts", "self", "weights", "func",
     "response", "metadata", "type", "data", "session_id", "timeout_s", "options"]
)  # fmt: skip
kinds = st.sampled_from(["reset", "step", "state", "mcp", "", "Reset", "close ", "harness"])


def _fails(data):
    """Says whether ``reset`` and ``step`` must refuse this: by luck it may be sound."""
    known = {"seed", "episode_id", "split", "index", "user", "prompts", "response", "metadata"}
    return not set(data) <= known


bad_bodies = st.dictionaries(names | st.text(max_size=5), odd, min_size=1, max_size=4)
bad_messages = st.one_of(
    st.builds(lambda data: {"type": "reset", "data": data}, bad_bodies.filter(_fails)),
    st.builds(lambda data: {"type": "step", "data": data}, bad_bodies.filter(_fails)),
    st.builds(lambda kind, data: {"type": kind, "extra": data}, kinds, odd),
    st.builds(lambda kind, data: {"type": [kind], "data": data}, kinds, odd),
    odd.filter(lambda value: not isinstance(value, dict)),
).map(json.dumps)
broken = st.one_of(
    st.sampled_from(
        [
            "", " ", "{", "}", '{"type": "step", "data": {"response": NaN}}', "[" * 100_000,
            '{"type": "reset", "data": {"seed": 1e999}}', '{"a":' * 5000, "\x00", "null",
            '{"type": "reset", "data": {"seed": ' + "9" * 5000 + "}}", '"reset"', "\ufeff{}",
            '{"type": "step", "data": {"response": "\\ud800"}}', '{"type": "\\udfff"}',
            '{"type": "step", "data": ' + '{"a":' * 40 + "1" + "}" * 40 + "}",
        ]
    ),
    st.binary(max_size=40),
    st.text(max_size=30).filter(lambda text: not text.strip().startswith("{")),
    bad_messages.map(lambda text: text[:-1]),
)  # fmt: skip
good_messages = st.one_of(
    st.builds(reset_message, seed=st.integers(0, 2**128 - 1)),
    st.builds(reset_message, split=st.sampled_from(["train", "test"]), index=st.integers(0, 9)),
    st.integers(0, 7).map(step_message),
    st.integers(0, 7).map(step_message),
)
