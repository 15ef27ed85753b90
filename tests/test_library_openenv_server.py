"""OpenEnv's server: clients get their own episodes, nonsense an error, and it keeps serving."""

import asyncio
import json
import os
import re
import runpy
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

pytest.importorskip("openenv.core")

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from openenv import GenericEnvClient
from openenv_servers import (
    SETTINGS,
    Model,
    ask,
    bad_messages,
    broken,
    good_messages,
    in_thread,
    reset_message,
    served,
    socket_to,
    step_message,
    told,
)
from typer.testing import CliRunner
from websockets.exceptions import ConnectionClosed, InvalidStatus

from personalllm_env.adapters.openenv import (
    GenerateAction,
    GenerateClient,
    GenerateEnvironment,
    Limits,
    SelectAction,
    SelectClient,
    SelectEnvironment,
    ServerSettings,
    build_app,
    network,
)
from personalllm_env.adapters.openenv.network import listen
from personalllm_env.adapters.openenv.server import read_settings
from personalllm_env.cli import app as command_line

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "libraries" / "openenv.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def url():
    """The command, in a process of its own."""
    with served("select", "--settings", json.dumps(SETTINGS), "--max-sessions", "12") as where:
        yield where


@pytest.fixture
def http(url):
    with httpx.Client(base_url=url, timeout=20, trust_env=False) as client:
        yield client


def play(client, seed, action, steps):
    """Plays a few steps over a connection and returns all that came back."""
    with client:
        seen = [client.reset(seed=seed)]
        seen += [client.step(action(i)) for i in range(steps)]
        return [(result.reward, result.done, result.observation) for result in seen]


def expected(env, seed, action, steps):
    seen = [env.reset(seed=seed)]
    seen += [env.step(action(i)) for i in range(steps)]
    return [(one.reward, one.done, one) for one in seen]


def shows(i):
    return SelectAction(response=i % 8)


def test_a_typed_client_gets_the_episode(url):
    found = play(SelectClient(base_url=url).sync(), 5, shows, 4)
    assert found == expected(SelectEnvironment(SETTINGS), 5, shows, 4)


def test_an_async_client_and_the_state(url):
    async def run():
        async with SelectClient(base_url=url) as client:
            await client.reset(seed=5, episode_id="mine")
            result = await client.step(shows(0))
            return result, await client.state()

    result, state = asyncio.run(run())
    assert (state.episode_id, state.step_count, state.horizon) == ("mine", 1, 4)
    assert state.weights is None
    assert result.metadata == {"terminated": False, "truncated": False}
    assert (result.reward, False, result.observation) == expected(
        SelectEnvironment(SETTINGS), 5, shows, 1
    )[1]


def test_a_client_of_the_other_kind_is_told_so(url):
    with (
        GenerateClient(base_url=url).sync() as wrong,
        pytest.raises(TypeError, match=r"no GenerateObservation: .* use SelectClient"),
    ):
        wrong.reset(seed=5)
    with SelectClient(base_url=url).sync() as client:
        client.reset(seed=5)
        with pytest.raises(
            TypeError, match=r"expected SelectAction\(response=\), got Generate"
        ):
            client.step(GenerateAction(text="a"))
        assert client.step(shows(0)).observation.step == 1  # nothing has happened before


def test_openenvs_generic_client_works(url):
    found = play(GenericEnvClient(base_url=url).sync(), 5, lambda i: {"response": i}, 4)
    for (reward, done, seen), (wanted, over, observation) in zip(
        found, expected(SelectEnvironment(SETTINGS), 5, shows, 4), strict=True
    ):
        assert (reward, done) == (wanted, over)
        assert seen == observation.model_dump(mode="json", exclude={"reward", "done"})


def test_written_texts_over_the_wire():
    wanted = {"horizon": 3, "past": 1}
    server = ServerSettings("generate", wanted)
    texts = ("Yes.", "half \ud800 a pair", "No. " * 30)

    def writes(i):
        return GenerateAction(text=texts[i])

    with in_thread(build_app(server)) as where:
        found = play(GenerateClient(base_url=where).sync(), 2, writes, 3)
        with (
            SelectClient(base_url=where).sync() as wrong,
            pytest.raises(TypeError, match=r"no SelectObservation: .* use GenerateClient"),
        ):
            wrong.reset(seed=5)
    assert found == expected(GenerateEnvironment(wanted), 2, writes, 3)


def test_eight_clients_lose_nothing(url):
    seeds, found = range(8), {}

    def run(seed):
        found[seed] = [play(SelectClient(base_url=url).sync(), seed, shows, 4) for _ in "ab"]

    threads = [threading.Thread(target=run, args=(seed,)) for seed in seeds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    env = SelectEnvironment(SETTINGS)
    for seed in seeds:
        wanted = expected(env, seed, shows, 4)
        assert found[seed] == [wanted, wanted]


def test_it_stands_openenvs_own_checks(url):
    from openenv.cli._validation import validate_running_environment

    report = validate_running_environment(url, timeout_s=20)
    assert report["passed"], report["criteria"]


def test_tasks_and_schemas_over_http(http):
    [split] = [s for s in http.get("/personalllm/splits").json() if s["name"] == "test"]
    task = http.post("/personalllm/task", json={"split": "test", "index": 7}).json()["task"]
    assert task == SelectEnvironment().get_task("test", 7)
    assert http.post("/personalllm/num_tasks", json={"split": "test"}).json() == {
        "num_tasks": 1000
    }
    assert split == {"name": "test", "type": "test"}
    said = set(re.findall(r"/(?:personalllm/)?(\w+)`", PAGE[PAGE.index("GET /personalllm") :]))
    served = {
        path for path in http.get("/openapi.json").json()["paths"] if "{env_name}" in path
    }
    assert {path.rpartition("/")[2] for path in served} <= said
    assert http.get("/schema").json()["action"]["required"] == ["response"]
    assert "weights" not in {name for name, value in http.get("/state").json().items() if value}
    assert http.post("/reset", json={"seed": 1}).json()["observation"]["horizon"] == 4


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/step", b'{"action": {"response": 1}}', 409, "use the websocket /ws"),
        ("/step", b'{"action": {"response": "1"}}', 422, "expected an integer"),
        ("/step", b'{"action": {"response": "\\ud800"}}', 422, "expected an integer"),
        ("/step", b"{}", 422, "action"),
        ("/reset", b'{"seed": -1}', 422, "greater"),
        ("/reset", b'{"seed": NaN}', 422, "no JSON number"),
        ("/reset", b'{"sed": 1}', 422, "unknown 'sed'"),
        ("/reset", b'{"seed": ' + b"9" * 5000 + b"}", 422, "digits"),
        ("/reset", b"[1]", 422, "got list"),
        ("/reset", b"\xff", 422, "utf-8"),
        ("/reset", b'"' + b"x" * 300_000 + b'"', 413, "262,144 bytes"),
        ("/personalllm/task", b'{"split": "dev", "index": 1}', 422, "train, test"),
        ("/personalllm/task", b'{"split": "test", "index": 1000}', 400, "index"),
        ("/other/task", b'{"split": "test", "index": 1}', 404, "unknown environment"),
        ("/mcp", b'{"jsonrpc": "2.0", "id": 1, "method": "openenv/session/create"}', 403, "ws"),
        ("/mcp", b'{"jsonrpc": "2.0", "method": "x", "params": {"session_id": [1]}}', 403, ""),
        ("/nowhere", b"", 404, ""),
    ],
)
def test_requests_that_cannot_be_met(http, path, body, status, words):
    answer = http.post(path, content=body, headers={"content-type": "application/json"})
    assert (answer.status_code, words in answer.text) == (status, True), answer.text
    assert http.get("/health").json() == {"status": "healthy"}


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],  # what fails is short, and a server is slow
)
@given(
    st.lists(
        st.tuples(st.booleans(), good_messages, st.one_of(bad_messages, broken)), max_size=10
    )
)
def test_fuzz_whatever_comes_is_answered_and_the_episode_goes_on(url, exchange):
    model = Model()
    with socket_to(url) as session:
        for sound, good, bad in exchange:
            if not sound:
                answer = ask(session, bad)
                refused = answer["type"] == "mcp" and "error" in answer["data"]
                assert refused or answer["type"] == "error", (bad, answer)
                continue
            answer, wanted = ask(session, good), model.answer(good)
            if wanted is None:
                assert answer["type"] == "error"
                assert "call reset()" in answer["data"]["message"]
            else:
                assert told(answer) == wanted


def test_clients_that_vanish_and_messages_too_large(url):
    model, first = Model(), reset_message(seed=9)
    with socket_to(url) as watched:
        assert told(ask(watched, first)) == model.answer(first)
        for _ in range(20):  # more than there are places: each is given back
            with socket_to(url) as gone:
                gone.send(json.dumps(reset_message(seed=1)))
                gone.send(json.dumps(step_message(1)))
                gone.socket.shutdown(socket.SHUT_RDWR)
        with socket_to(url) as large, pytest.raises(ConnectionClosed, match="1009"):
            ask(large, '"' + "x" * 300_000 + '"')
        with pytest.raises(InvalidStatus, match="403"), socket_to(url, "/mcp"):
            pass
        with socket_to(url) as polite, pytest.raises(ConnectionClosed):
            ask(polite, '{"type": "close"}')
        assert told(ask(watched, step_message(2))) == model.answer(step_message(2))


def test_two_at_a_time_and_no_more_than_patience_allows():
    limits = Limits(max_sessions=2, idle_seconds=1.0, request_seconds=0.5)
    server = ServerSettings(settings=SETTINGS, limits=limits)
    with in_thread(build_app(server)) as where, socket_to(where) as two:
        with socket_to(where) as one:
            assert ask(one, reset_message(seed=1))["type"] == "observation"
            assert ask(two, reset_message(seed=1))["type"] == "observation"
            with socket_to(where) as third:
                answer = json.loads(third.recv(timeout=20))
                assert answer["data"]["code"] == "CAPACITY_REACHED"
        end = time.monotonic() + 1.5  # one that is not idle outlives the limit
        while time.monotonic() < end:
            assert ask(two, reset_message(seed=2))["type"] == "observation"
            time.sleep(0.1)
        assert json.loads(two.recv(timeout=20))["data"]["message"].startswith("no message for")
        with pytest.raises(ConnectionClosed, match="1001"):
            two.recv(timeout=20)
        with socket_to(where) as four:
            assert ask(four, reset_message(seed=1))["type"] == "observation"
        host, port = where.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=20) as slow:
            slow.sendall(b"POST /reset HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{")
            assert b" 408 " in slow.recv(4096)


def test_heads_that_do_not_arrive_in_time(monkeypatch):
    monkeypatch.setattr(network, "_HEAD_SECONDS", 0.3)
    head = b"GET /ws HTTP/1.1\r\nHost: x\r\n"
    whole = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
    with in_thread(build_app(ServerSettings(settings=SETTINGS))) as where:
        host, port = where.removeprefix("http://").split(":")
        for first in (b"", head, whole + head):
            with (
                socket.create_connection((host, int(port)), timeout=20) as slow,
                socket_to(where) as other,
            ):
                slow.sendall(first)
                time.sleep(0.2)
                slow.sendall(b"X: y" if first else b"GET")  # a drop now and then is no help
                found, began = b"", time.monotonic()
                while part := slow.recv(4096):
                    found += part
                assert time.monotonic() - began < 3, "not uvicorn's patience, of 5 seconds"
                assert (b"healthy" in found) == (first == whole + head)
                time.sleep(0.1)  # the websocket, too, is older than that now
                assert ask(other, reset_message(seed=1))["type"] == "observation"


def test_sessions_share_what_was_checked_once(monkeypatch):
    from personalllm_env.adapters.openenv import server
    from personalllm_env.rewards import for_bank

    checked, check = [], for_bank.check_scores
    monkeypatch.setattr(
        for_bank, "check_scores", lambda *arguments: checked.append(check(*arguments))
    )
    wanted = {"horizon": 2, "past": 1, "max_conversation": 30}
    factory = server._KINDS["generate"][0](ServerSettings("generate", wanted))
    one, two = factory(), factory()
    assert (len(checked), one.problem) == (1, two.problem)
    one.reset(seed=1)
    assert two.reset(seed=0) == GenerateEnvironment(wanted).reset(
        seed=0, episode_id=two.state.episode_id
    )
    with pytest.raises(ValueError, match="problem must be a WritingTask"):
        GenerateEnvironment({"problem": 3})
    with pytest.raises(ValueError, match="beside bank"):
        GenerateEnvironment({"problem": one.problem, "bank": "text"})


def test_a_client_that_does_not_read_loses_its_session_alone():
    from personalllm_env.adapters.openenv.guard import Guard

    sent = []

    async def app(scope, receive, send):
        await receive()
        for _ in range(3):
            await send({"type": "websocket.send", "text": "x"})
        sent.append((await receive())["type"])

    async def stuck(message):
        sent.append(message["type"])
        await asyncio.sleep(60)

    async def connected():
        return {"type": "websocket.connect"}

    guard = Guard(app, Limits(request_seconds=0.05))
    asyncio.run(guard({"type": "websocket", "path": "/ws"}, connected, stuck))
    assert sent == ["websocket.send", "websocket.disconnect"]


def test_schemathesis_finds_no_server_error(url):
    schemathesis = pytest.importorskip("schemathesis")
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    found = list(schema.get_all_operations())
    assert len(found) > 10
    for operation in found:

        @settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
        @given(operation.ok().as_strategy())
        def is_answered(case):
            if case.path_parameters:
                case.path_parameters["env_name"] = "personalllm"
            assert case.call().status_code < 500, case

        is_answered()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["neither"], "kind must be one of select, generate, got 'neither'"),
        (["--settings", "{"], "--settings is not JSON"),
        (["--settings", "[]"], "must be a JSON object"),
        (["--settings", '{"horizn": 2}'], "did you mean 'horizon'"),
        (["--horizon", "0"], "horizon"),
        (["--max-sessions", "0"], "max_sessions must be at least 1, got 0"),
        (["--num-tasks", "0"], "num_tasks must be in"),
        (["--port", "99999"], "port must be in 0..65535, got 99999"),
        (["--host", "203.0.113.7"], "cannot listen at 203.0.113.7"),
        (["generate", "--bank", "synthetic", "--port", "0"], "bank with texts"),
    ],
)
def test_the_command_says_what_is_wrong(arguments, words):
    done = CliRunner().invoke(command_line, ["serve", *arguments])
    assert done.exit_code == 2
    assert words in done.output
    assert "Traceback" not in done.output


def test_it_listens_to_this_machine_alone(url):
    assert url.startswith("http://127.0.0.1:")
    taken = int(url.rpartition(":")[2])
    with pytest.raises(ValueError, match=f"cannot listen at 127.0.0.1, port {taken}"):
        listen("127.0.0.1", taken)
    with listen("127.0.0.1", 0) as bound:
        assert bound.getsockname()[0] == "127.0.0.1"


@pytest.mark.parametrize(
    ("text", "words"),
    [("{", "expected JSON"), ("[]", "JSON object"), ('{"kid": 1}', "kind, settings"),
     ('{"limits": {"max": 1}}', "max_sessions"), ('{"limits": {"idle_seconds": 0}}', "0.01")],
)  # fmt: skip
def test_settings_of_a_server(text, words):
    with pytest.raises(ValueError, match=words):
        read_settings(text)


def test_the_space_serves(monkeypatch):
    """The folder that is pushed to the hub, run as its Dockerfile runs it."""
    served_at = []
    monkeypatch.setattr(network, "serve", lambda *arguments: served_at.append(arguments))
    monkeypatch.setenv("PERSONALLLM_OPENENV", '{"settings": {"horizon": 2}}')
    monkeypatch.setattr(sys, "argv", ["app.py", "--host", "0.0.0.0", "--port", "0"])
    runpy.run_path(str(ROOT / "examples/openenv/server/app.py"), run_name="__main__")
    [(app, bound)] = served_at
    with bound:
        assert bound.getsockname()[0] == "0.0.0.0"
    with in_thread(app) as where:
        found = play(SelectClient(base_url=where).sync(), 1, shows, 2)
    assert found[-1][1] is True


def test_the_page_is_right(url):
    names: dict = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    assert blocks
    for block in blocks:
        exec(block.replace("http://127.0.0.1:8000", url), names)


@pytest.mark.slow
def test_the_example_learns(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONWARNINGS"}
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / "examples" / "libraries" / "openenv_client.py"),
            "out.png",
            "48",
        ],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.png").stat().st_size > 5000
    first, last, error = map(float, re.findall(r"[-+]?\d*\.\d+", done.stdout)[-3:])
    assert last - first > 2 * error
