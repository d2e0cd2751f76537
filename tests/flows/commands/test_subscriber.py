from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

import httpx
import pytest

from flows.__main__ import main
from sda_ops.alerts.subscriber.table import SubscriberTable
from tests.helpers.sizes import small_and_long
from tests.helpers.support import ROOT

ID = UUID("0f8fad5b-d9cb-469f-a165-70867728950e")


@contextmanager
def subscriber(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command as a process, and the URL that it prints."""
    words = [sys.executable, "-m", "flows", "subscriber", "--port", "0", *arguments]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        url = re.search(r"http://\S+/", line)
        assert url is not None, line
        yield process, url.group()
    finally:
        process.kill()
        process.wait()


@small_and_long("number", signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
def test_each_new_alert_is_one_line_and_a_signal_ends_it_with_0(tmp_path: Path, number: signal.Signals) -> None:
    path = tmp_path / "alerts.sqlite"
    with subscriber("--table", str(path)) as (process, url):
        for key in (f"{ID}/0", f"{ID}/0", f"{ID}/1"):
            assert httpx.post(url, content=b"{}", headers={"Idempotency-Key": key}).status_code == 200
        process.send_signal(number)
        printed, problems = process.communicate(timeout=60)
    assert [line.split()[1] for line in printed.splitlines()] == [f"{ID}/0", f"{ID}/1"]
    assert (process.returncode, problems) == (0, "")
    table = SubscriberTable(path)
    assert table.keys() == [(ID, 0), (ID, 1)]
    table.close()


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (
            ["--secret", "env:NO_SUCH_NAME"],
            "subscriber: --secret: env:NO_SUCH_NAME: there is no such environment variable",
        ),
        (["--secret", "file:/no/such"], "subscriber: --secret: file:/no/such: No such file or directory"),
        (
            ["--secret", "file:/dev/null"],
            "subscriber: --secret: file:/dev/null: expected a secret of at least 24 bytes, or whsec_ and base64",
        ),
        (["--table", "/proc/none/x"], "subscriber: --table /proc/none/x: No such file or directory; choose another"),
        (["--table", __file__], f"subscriber: --table {__file__}: file is not a database; choose another file"),
        (["--host", "no.such.invalid"], "subscriber: cannot listen on no.such.invalid:9500: the name cannot be"),
    ],
)
def test_what_keeps_it_from_starting_is_one_plain_line(
    arguments: list[str], problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["subscriber", "--table", str(tmp_path / "alerts.sqlite"), *arguments]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith(problem)
    assert printed.count("\n") == 1


@pytest.mark.parametrize("given", ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "secret:alerts"])
def test_a_secret_is_a_reference_and_otherwise_not_repeated(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["subscriber", "--secret", given])
    printed = capsys.readouterr().err
    assert "argument --secret: expected env:NAME or file:PATH, where the secret is" in printed
    assert given not in printed


def test_a_port_that_does_not_exist_is_rejected(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["subscriber", "--port", "65536"])
    assert "expected a port, 0 to 65535, got '65536'" in capsys.readouterr().err
