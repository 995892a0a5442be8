"""`grr-coca serve` as a process: start and shutdown."""

import errno
import http.client
import re
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from processes import running
from serving import DRAWINGS, Client, wait_until

import grr_coca
from grr_coca.cli import main
from grr_coca_search.entry import Header
from grr_coca_search.store import make_store
from grr_coca_serve.server import listen

GUITAR = (DRAWINGS / "guitar.webp").read_bytes()


@contextmanager
def process(*arguments: object, is_ready: bool = True) -> Iterator[tuple[subprocess.Popen, Client]]:
    """A server in a process of its own, and a client of it."""
    command = [sys.executable, "-m", "grr_coca", "serve", "--port", "0", *arguments]
    with running(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
        line = first_line(server)
        address = re.search(r"http://\S+", line)
        assert address, line
        client = Client(address[0])
        if is_ready:
            wait_until(lambda: client.get("/ready").status == 200)
        yield server, client


def first_line(server: subprocess.Popen) -> str:
    ready, _, _ = select.select([server.stdout], [], [], 200)
    assert ready, "nothing was printed"
    return server.stdout.readline()


@pytest.fixture
def refused(capsys) -> Callable[..., str]:
    """Return a function that starts a server in this process, which must fail, and returns its error message."""

    def start(*arguments: object) -> str:
        assert main(["serve", *map(str, arguments)]) == 2
        output = capsys.readouterr()
        assert output.out == ""
        assert output.err.startswith("error: ")
        assert output.err.count("\n") == 1
        return output.err

    return start


def test_port_in_use_is_named_before_the_model_is_loaded(refused):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        message = refused("--port", port)
    assert message == f"error: 127.0.0.1:{port}: cannot listen (Address already in use); pass another --port\n"


def test_port_without_permission_suggests_a_larger_port(refused, monkeypatch):
    def denied(*_args, **_options):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(socket, "create_server", denied)
    message = refused("--port", 80)
    assert "127.0.0.1:80: cannot listen (Permission denied); low ports need special permissions" in message
    assert "--host" not in message


def test_second_packet_does_not_wait_for_the_client():
    with (
        listen("127.0.0.1", 0) as listening,
        socket.create_connection(listening.getsockname()),
        listening.accept()[0] as connection,
    ):
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.host.invalid"])
def test_foreign_host_address_reports_one_line(refused, host):
    assert "cannot listen" in refused("--host", host)


def test_moved_model_error_names_the_option(refused, tmp_path):
    location = tmp_path / "drawings.index"
    make_store(str(location), Header("/gone/model", "f" * 32, 8)).close()
    message = refused(location, "--port", "0")
    assert f"{location}: created with the model '/gone/model', which cannot be loaded" in message
    assert "pass its folder with -c" in message


@pytest.mark.ci
def test_signal_under_load_loses_no_accepted_request(index):
    """What was accepted before the signal is answered; what comes later gets 503 or finds the port closed."""
    with process(index) as (server, client):
        half = len(GUITAR) // 2
        accepted = [http.client.HTTPConnection(*client.place, timeout=60) for _ in range(4)]
        for connection in accepted:
            connection.putrequest("POST", "/caption")
            connection.putheader("Content-Length", str(len(GUITAR)))
            connection.endheaders(GUITAR[:half])
        wait_until(lambda: client.metric("grr_coca_body_bytes") == len(accepted) * half)

        answers: list[tuple[float, int]] = []
        is_over = threading.Event()

        def load() -> None:
            while not is_over.is_set():
                status = 0
                with suppress(OSError, http.client.HTTPException):
                    status = client.post("/caption", GUITAR).status
                answers.append((time.monotonic(), status))

        threads = [threading.Thread(target=load) for _ in range(16)]
        for thread in threads:
            thread.start()
        wait_until(lambda: len(answers) > 50)
        stopped = time.monotonic()
        server.send_signal(signal.SIGINT)
        wait_until(lambda: {status for _, status in answers} & {503, 0})
        for connection in accepted:
            connection.send(GUITAR[half:])
        assert [connection.getresponse().status for connection in accepted] == [200] * len(accepted)
        assert server.wait(30) == 0
        is_over.set()
        for thread in threads:
            thread.join(10)
        before = [status for ended, status in answers if ended < stopped]
        assert len(before) > 50
        assert set(before) == {200}
        assert {status for _, status in answers} <= {200, 503, 0}
        assert "stopped" in server.stdout.read()


@pytest.mark.ci
def test_second_signal_stops_immediately(index):
    with process(index) as (server, client), socket.create_connection(client.place) as connection:
        connection.sendall(b"POST /caption HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nx")
        wait_until(lambda: client.metric("grr_coca_body_bytes") == 1)
        server.send_signal(signal.SIGTERM)
        wait_until(lambda: client.get("/ready").status == 503)
        assert server.poll() is None, "it waits for the request"
        server.send_signal(signal.SIGTERM)
        assert server.wait(10) == 0


@pytest.mark.ci
@pytest.mark.skipif(sys.platform == "win32", reason="no limit of open files")
def test_too_few_open_files_log_one_line():
    command = shlex.join([sys.executable, "-m", "grr_coca", "serve", "--port", "0"])
    limited = ["bash", "-c", f"ulimit -n 64; exec {command}"]
    with running(limited, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server, ExitStack() as opened:
        client = Client(re.search(r"http://\S+", first_line(server))[0])
        wait_until(lambda: client.get("/ready").status == 200)
        for _ in range(100):
            opened.enter_context(socket.create_connection(client.place, timeout=10))
        assert "Too many open files" in first_line(server)
        opened.close()
        wait_until(lambda: client.get("/health").status == 200)
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 0
        assert server.stdout.read() == "stopped\n"


@pytest.mark.ci
@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no SIGHUP")
def test_hangup_stops_after_accepted_requests(index):
    with process(index) as (server, client):
        connection = http.client.HTTPConnection(*client.place, timeout=60)
        connection.putrequest("POST", "/caption")
        connection.putheader("Content-Length", str(len(GUITAR)))
        connection.endheaders(GUITAR[:100])
        wait_until(lambda: client.metric("grr_coca_body_bytes") == 100)
        server.send_signal(signal.SIGHUP)
        wait_until(lambda: client.get("/ready").status == 503)
        connection.send(GUITAR[100:])
        assert connection.getresponse().status == 200
        assert server.wait(30) == 0


@pytest.mark.ci
def test_server_killed_during_an_index_write_restarts(tmp_path):
    """The index is whole, the writer goes on, and a new server shows what was committed."""
    folder, location = tmp_path / "pictures", tmp_path / "own.index"
    shutil.copytree(DRAWINGS, folder)
    with grr_coca.Index.open(location, "icons", create=True) as made:
        made.add(folder)
    for number in range(500):
        shutil.copy(folder / "guitar.webp", folder / f"copy-{number}.webp")
        with Path(folder / f"copy-{number}.webp").open("ab") as file:
            file.write(number.to_bytes(2))  # other bytes, so that each is described anew
    index = [sys.executable, "-m", "grr_coca", "index", folder, "--out", location, "--batch-size", "4"]
    writing = running(index, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    with process(location) as (server, client), writing as writer:
        wait_until(lambda: client.get("/info").json()["pictures"] > 6)
        is_writing = writer.poll() is None
        server.kill()
        server.wait()
        with process(location) as (second, other):
            assert other.post("/search", {"texts": ["guitar"]}).status == 200
            assert writer.wait(120) == 0
            assert other.get("/info").json()["pictures"] == 506
            assert other.get("/pictures").json()["total"] == 506
            second.terminate()
            assert second.wait(30) == 0
    assert is_writing, "the server was killed while the index was written"


@pytest.mark.ci
def test_server_runs_without_torch_jaxtyping_and_matplotlib(index):
    code = """if True:
        import sys
        from importlib.machinery import PathFinder
        missing, find = ("torch", "jaxtyping", "matplotlib", "scipy", "pandas"), PathFinder.find_spec
        PathFinder.find_spec = lambda name, *more: None if name.partition(".")[0] in missing else find(name, *more)
        from grr_coca.cli import main
        main(["serve", sys.argv[1], "--port", "0"])
    """
    with running([sys.executable, "-c", code, index], stdout=subprocess.PIPE, text=True) as server:
        client = Client(re.search(r"http://\S+", first_line(server))[0])
        wait_until(lambda: client.get("/ready").status == 200)
        assert client.post("/caption", GUITAR).json()["caption"] == "guitar"
        assert client.post("/search", {"texts": ["guitar"]}).json()["hits"]
        assert client.post("/classify?labels=guitar&labels=boat", GUITAR).status == 200
        info = client.get("/info").json()
        assert info["engine"].startswith("onnx")
        assert info["can"] == ["search", "caption", "tags"]
        assert client.post("/explain", GUITAR).status == 501
        server.terminate()
        assert server.wait(30) == 0


@pytest.mark.ci
def test_public_server_without_a_key_warns():
    with process("--host", "0.0.0.0", is_ready=False) as (server, client):
        assert client.place[0] == "127.0.0.1"
        assert "GRR_COCA_API_KEY" in server.stdout.readline()
        wait_until(lambda: client.get("/ready").status == 200)
        assert client.get("/info", Host="pictures.example").status == 200
