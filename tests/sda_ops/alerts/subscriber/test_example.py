"""The subscriber of ``docs/alerts.md``, as a process that the sink delivers to."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

from orchestrator_adapter import source_of
from orchestrator_adapter.testing import chain, run_graph
from sda_ops.alerts.delivery.signature import signing_key
from sda_ops.alerts.delivery.sink import alerts_sink
from sda_ops.alerts.delivery.webhook import Webhook
from sda_ops.alerts.formats.json import alert_json
from tests.helpers.alerts import conjunction, outbox_in, risk
from tests.helpers.running import eventually
from tests.helpers.support import ROOT

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def listens(port: int) -> bool:
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) == 0


def started(program: str, folder: Path, port: int) -> subprocess.Popen[str]:
    """The program as a process of its own."""
    folder.mkdir()
    (folder / "receiver.py").write_text(program, encoding="utf-8")
    environment = {**os.environ, "ALERTS_SECRET": SECRET, "PORT": str(port)}
    command = [sys.executable, "receiver.py"]
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )


async def test_the_documented_subscriber_accepts_signed_alerts_only_and_prints_each_one_once(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "alerts.md").read_text(encoding="utf-8")
    section = page.split("\n## A subscriber of your own\n")[1].split("\n## ")[0]
    (program,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    port = free_port()
    receiver = started(program, tmp_path / "receiver", port)
    try:
        await eventually(lambda: listens(port), "the example listens")
        url = f"http://127.0.0.1:{port}/alerts"
        hooks = [
            Webhook(name="signed", url=url, body=alert_json, key=signing_key(SECRET)),
            Webhook(name="twice", url=url, body=alert_json, key=signing_key(SECRET)),
            Webhook(name="unsigned", url=url, body=lambda _: b"{}"),
        ]
        outbox = outbox_in(tmp_path, "signed", "twice", "unsigned")
        sink = alerts_sink(outbox, hooks, last_deliveries=timedelta(seconds=2))
        await run_graph(chain(source_of([risk(0), risk(0, 1, status="retracted", cause="withdrawn")]), sink))
        outbox.open(0)
        pending = {name: each.pending for name, each in outbox.depth().items()}
        outbox.close()
    finally:
        receiver.kill()
        printed, _ = receiver.communicate()
    assert pending == {"signed": 0, "twice": 0, "unsigned": 2}
    assert printed.splitlines() == [f"{conjunction(0)} 0 high provisional", f"{conjunction(0)} 1 high retracted"]
