"""``python -m flows top`` against a control plane: one picture, the picture that stays, and each thing that can go wrong."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import socket
import ssl
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trustme

from flows.__main__ import main
from flows.commands.top import client
from flows.commands.top.client import url_of
from orchestrator_adapter.control_plane.document import Health
from orchestrator_adapter.control_plane.headline import with_headline
from tests.helpers.documents import document
from tests.helpers.support import ROOT

HEALTHY = msgspec.json.encode(with_headline(document()))
TOKEN = "a-secret-of-the-test"


class FakeControlPlane(ThreadingHTTPServer):
    """Answers ``/graph`` with ``status`` and ``body``, and with 401 where ``token`` is set and not sent."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.status, self.body, self.token = 200, HEALTHY, ""
        self.requests = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: FakeControlPlane

    def do_GET(self) -> None:
        self.server.requests += 1
        status, body = self.server.status, self.server.body
        if self.server.token and self.headers["Authorization"] != f"Bearer {self.server.token}":
            status, body = 401, b"{}"
        elif self.path != "/graph":
            status, body = 404, b"{}"
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def serving(tls: trustme.LeafCert | None = None) -> Iterator[FakeControlPlane]:
    server = FakeControlPlane()
    if tls is not None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.configure_cert(context)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def plane() -> Iterator[FakeControlPlane]:
    with serving() as server:
        yield server


def top(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(["top", *words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_once_prints_one_picture_without_escape_sequences(
    plane: FakeControlPlane, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = top(capsys, plane.url, "--once")

    assert (code, err) == (0, "")
    assert out.startswith("sda-ingest  OK  up 1 h 2 min")
    assert "\x1b" not in out
    assert plane.requests == 1


def test_without_a_terminal_it_prints_one_picture(plane: FakeControlPlane, capsys: pytest.CaptureFixture[str]) -> None:
    assert top(capsys, str(plane.server_port)) == top(capsys, plane.url, "--once")


@pytest.mark.parametrize("option", ["--once", "--json"])
def test_a_failing_run_has_an_exit_code_of_its_own(
    plane: FakeControlPlane, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    for status, expected in (("ok", 0), ("degraded", 0), ("draining", 0), ("failing", 3)):
        plane.body = msgspec.json.encode(document(health=Health(status=status, reasons=("x",))))  # type: ignore[arg-type]
        assert top(capsys, plane.url, option)[0] == expected


def test_json_prints_the_document_as_it_was_sent(plane: FakeControlPlane, capsys: pytest.CaptureFixture[str]) -> None:
    assert top(capsys, plane.url, "--json")[:2] == (0, HEALTHY.decode() + "\n")


def test_a_document_with_fields_of_a_later_release_is_shown(
    plane: FakeControlPlane, capsys: pytest.CaptureFixture[str]
) -> None:
    plane.body = json.dumps({**json.loads(HEALTHY), "new_field": {"x": [1]}}).encode()

    assert top(capsys, plane.url)[0] == 0


def test_the_token_comes_from_its_file(
    plane: FakeControlPlane, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    plane.token = TOKEN
    (tmp_path / "right").write_text(f"{TOKEN}\n")
    (tmp_path / "wrong").write_text("another")
    (tmp_path / "empty").write_text("\n")

    assert top(capsys, plane.url, "--token-file", str(tmp_path / "right"))[0] == 0
    for words, problem in (
        ((), f"{plane.url}: it needs a token: give the file that has it with --token-file"),
        (("--token-file", str(tmp_path / "wrong")), f"{plane.url}: it rejects the token of {tmp_path / 'wrong'}"),
        (
            ("--token-file", str(tmp_path / "empty")),
            f"--token-file {tmp_path / 'empty'}: expected one line of visible ASCII characters",
        ),
        (("--token-file", str(tmp_path / "none")), f"--token-file {tmp_path / 'none'}: No such file or directory"),
    ):
        assert top(capsys, plane.url, *words) == (1, "", f"top: {problem}\n")


def test_a_token_is_not_sent_unencrypted_to_another_machine(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "token").write_text(TOKEN)

    code, _, err = top(capsys, "http://192.0.2.1:9100", "--token-file", str(tmp_path / "token"))

    assert code == 1
    assert err == (
        "top: http://192.0.2.1:9100: the token would be sent unencrypted: use https://, or a tunnel to this machine\n"
    )


def test_a_certificate_is_verified_with_the_authority_that_is_given(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    right, wrong = trustme.CA(), trustme.CA()
    right.cert_pem.write_to_path(tmp_path / "right.pem")
    wrong.cert_pem.write_to_path(tmp_path / "wrong.pem")
    (tmp_path / "garbage.pem").write_text("x")
    with serving(right.issue_cert("127.0.0.1")) as plane:
        address = f"127.0.0.1:{plane.server_port}"

        assert top(capsys, address, "--ca", str(tmp_path / "right.pem"))[0] == 0
        for ca in ("--ca", str(tmp_path / "wrong.pem")), ():
            code, _, err = top(capsys, f"https://{address}", *ca)
            assert code == 1
            assert err.startswith(f"top: https://{address}: its certificate is not trusted: ")
            assert err.count("\n") == 1
        assert top(capsys, address)[2] == (
            f"top: http://{address}: it does not answer in HTTP: is it another port, or an address with https://?\n"
        )
        assert top(capsys, address, "--ca", str(tmp_path / "garbage.pem"))[2] == (
            f"top: --ca {tmp_path / 'garbage.pem'}: expected certificates in the format PEM\n"
        )


def test_whatever_is_not_a_control_plane_is_one_clear_line(
    plane: FakeControlPlane, capsys: pytest.CaptureFixture[str]
) -> None:
    other_version = json.dumps({**json.loads(HEALTHY), "version": 2}).encode()
    broken = json.dumps({**json.loads(HEALTHY), "operators": 5}).encode()
    for status, body, problem in (
        (200, b"<html>hello</html>", "the answer is not a document of a control plane"),
        (200, b"[" * 100_000, "the answer is not a document of a control plane"),
        (200, b"\xff\x00", "the answer is not a document of a control plane"),
        (
            200,
            other_version,
            "it sends documents of version 2, and this command reads version 1: use the command of the same release",
        ),
        (200, broken, "its document cannot be read: Expected `array`, got `int` - at `$.operators`"),
        (404, b"{}", "it has no page /graph: it is not a control plane, or of an older version"),
        (302, b"", "it answers 302 and refers to another address: give that one"),
        (421, b'{"error": "only \\u001b[31mlocalhost"}', "it answers 421: only ?[31mlocalhost"),
        (500, b"oops", "it answers 500, which is not a document"),
    ):
        plane.status, plane.body = status, body
        assert top(capsys, plane.url) == (1, "", f"top: {plane.url}: {problem}\n")


def test_an_address_where_nothing_listens_is_one_clear_line(
    plane: FakeControlPlane, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = top(capsys, f"127.0.0.1:{free_port()}")
    assert code == 1
    assert "it cannot be reached ([Errno 111] Connection refused): does the run serve its control plane there?" in err
    assert top(capsys, f"https://127.0.0.1:{plane.server_port}")[2] == (
        f"top: https://127.0.0.1:{plane.server_port}: it does not speak TLS as expected: is it an address with http://?\n"
    )


def test_without_an_address_the_first_default_port_that_answers_is_shown_and_the_other_is_named(
    plane: FakeControlPlane, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = f"http://127.0.0.1:{free_port()}"
    with serving() as other:
        monkeypatch.setattr("flows.commands.top.watch.DEFAULTS", (plane.url, other.url))
        assert top(capsys)[1].endswith(
            f"This is {plane.url}. {other.url} answers as well: python -m flows top {other.url}\n"
        )
        monkeypatch.setattr("flows.commands.top.watch.DEFAULTS", (nothing, other.url))
        code, out, _ = top(capsys)
        assert (code, "This is" in out) == (0, False)
    monkeypatch.setattr("flows.commands.top.watch.DEFAULTS", (nothing, nothing))
    code, _, err = top(capsys)
    assert (code, err.count(nothing), err.count("\n")) == (1, 2, 1)
    assert client.DEFAULTS == ("http://127.0.0.1:9100", "http://127.0.0.1:9101")


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("9101", "http://127.0.0.1:9101"),
        (":9101", "http://127.0.0.1:9101"),
        ("sda.example", "http://sda.example:9100"),
        ("sda.example:80", "http://sda.example:80"),
        ("[::1]:9100", "http://[::1]:9100"),
        ("https://sda.example/prefix/", "https://sda.example/prefix"),
        ("http://127.0.0.1:9100/graph", "http://127.0.0.1:9100"),
    ],
)
def test_an_address_may_be_a_port_a_host_or_a_url(address: str, url: str) -> None:
    assert url_of(address, tls=False) == url
    assert url_of("sda.example", tls=True) == "https://sda.example:9100"


@pytest.mark.parametrize("address", ["", "0", "70000", "host:port", "ftp://x", "http://", "a b", "http://[::1", "u@h"])
def test_an_address_with_a_typing_mistake_is_one_clear_line(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert top(capsys, address) == (
        1,
        "",
        f"top: expected an address such as 127.0.0.1:9100 or https://host:9100, got {address!r}\n",
    )


@pytest.mark.parametrize("interval", ["0", "0.1", "-1", "often"])
def test_an_interval_that_is_too_short_is_an_error_of_the_command_line(
    interval: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["top", "--interval", interval])
    assert ended.value.code == 2
    assert "--interval: expected" in capsys.readouterr().err


def test_on_a_terminal_the_picture_stays_reconnects_and_q_and_ctrl_c_restore_the_terminal(
    plane: FakeControlPlane,
) -> None:
    for end in (b"q", b"\x03"):
        plane.status = 200
        ours, theirs = pty.openpty()
        termios.tcsetwinsize(ours, (24, 80))
        before = termios.tcgetattr(theirs)
        process = subprocess.Popen(
            [sys.executable, "-m", "flows", "top", plane.url, "--interval", "0.2"],
            cwd=ROOT,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "", "LINES": ""},
            start_new_session=True,
            preexec_fn=_control_terminal,  # noqa: PLW1509 - Ctrl-C is a signal of the controlling terminal
        )
        try:
            screen = read_until(ours, "Nothing is wrong: 3 of 3")
            assert "\x1b[?1049h" in screen  # the alternate screen: what was there before returns at the end
            if end == b"q":
                plane.status = 500
                read_until(ours, "DISCONNECTED")
                plane.status = 200
                read_until(ours, "Nothing is wrong", without="DISCONNECTED")
                os.write(ours, b"x")  # another key does nothing
            os.write(ours, end)
            rest = read_until(ours, "\x1b[?1049l")
            assert process.wait(20) == 0
            assert "Traceback" not in rest
            assert termios.tcgetattr(theirs) == before
        finally:
            process.kill()
            process.wait()
            os.close(ours)
            os.close(theirs)


def _control_terminal() -> None:
    import fcntl  # noqa: PLC0415 - only in the child

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def read_until(terminal: int, text: str, *, without: str = "") -> str:
    """What the terminal shows until a part of the output has ``text`` and lacks ``without``."""
    shown, until = "", time.monotonic() + 60
    while time.monotonic() < until:
        if select.select([terminal], [], [], 1.0)[0]:
            part = os.read(terminal, 65_536).decode(errors="replace")
            shown += part
            if text in shown and not (without and without in shown):
                return shown
            if without and without in shown:
                shown = shown.rpartition("\x1b[H")[2]
    raise AssertionError(f"{text!r} is not shown: {shown[-2000:]!r}")
