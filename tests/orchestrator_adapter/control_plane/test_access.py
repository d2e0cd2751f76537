"""Who may read: by ``Host`` on a loopback address, by token on others; and TLS with real certificates."""

from __future__ import annotations

import asyncio
import base64
import socket
import ssl
import threading
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme

from orchestrator_adapter.control_plane import ControlPlane
from orchestrator_adapter.control_plane.config import is_loopback
from orchestrator_adapter.control_plane.connections import CannotUseCertificate
from orchestrator_adapter.control_plane.server import ControlPlaneServer
from tests.helpers.acting import TOKEN
from tests.helpers.control_plane import ANY, fetch, is_closed, logged, served, waiting

NOTHING_TRUSTED = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""For plain HTTP: the system's certificates take a tenth of a second to load."""
OPEN = replace(ANY, host="0.0.0.0", token=TOKEN, behind_proxy=True)


async def ask(url: str, **headers: str) -> httpx.Response:
    async with httpx.AsyncClient(verify=NOTHING_TRUSTED, timeout=30) as client:
        return await client.get(url, headers=[(name.encode(), value.encode()) for name, value in headers.items()])


def basic(password: str) -> str:
    return "Basic " + base64.b64encode(f"anyone:{password}".encode()).decode()


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("localhost", True),
        ("LocalHost.", True),
        ("live.localhost", True),
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("0.0.0.0", False),
        ("::", False),
        ("", False),
        ("evil.example", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("notlocalhost", False),
        ("10.0.0.1", False),
    ],
)
def test_loopback_is_what_means_this_machine_by_definition(host: str, loopback: bool) -> None:  # noqa: FBT001 - a case
    """A name of the internet that resolves to 127.0.0.1 is not."""
    assert is_loopback(host) is loopback


async def test_a_request_for_another_host_name_is_rejected_on_a_loopback_address() -> None:
    """DNS rebinding: a page of the internet whose name has become 127.0.0.1 can read nothing, and is not in the log's flood."""

    async def during(url: str) -> None:
        for host in (
            "evil.example",
            "evil.example:9100",
            "192.168.0.1",
            "localhost@evil.example",
            "localhost:80@evil.example",
            "[::1].evil.example",
            "[::2]:1",
            "x" * 5_000,
        ):
            for page in (
                "/",
                "/health",
                "/metrics",
                "/graph",
                "/events",
                "/dead-letters",
                "/page/index.html",
                "/nothing",
            ):
                answer = await ask(f"{url}{page}", Host=host)
                assert answer.status_code == 421
                assert len(answer.content) < 1_000
        for host in ("localhost", "localhost:1", "127.0.0.1:9100", "[::1]:9100", "live.localhost"):
            assert (await ask(f"{url}/health", Host=host)).status_code == 200

    with logged("orchestrator_adapter.control_plane") as lines:
        await served(waiting(), during)
    denied = [line for line in lines if line["event"] == "access_denied"]
    assert 1 <= len(denied) < 40
    assert max(len(str(line)) for line in denied) < 1_500


async def test_an_address_that_is_not_loopback_needs_the_token_for_every_page_but_the_status() -> None:
    """As Bearer, or as the password of Basic. ``/health`` has the status without it, and no reason."""

    async def during(url: str) -> None:
        url = url.replace("0.0.0.0", "127.0.0.1")
        for page in ("/", "/metrics", "/graph", "/events", "/dead-letters", "/page/index.html", "/nothing"):
            for sent in (
                {},
                {"Authorization": f"Bearer {TOKEN}x"},
                {"Authorization": basic("")},
                {"Authorization": "Basic §"},
            ):
                answer = await ask(f"{url}{page}", **sent)
                assert answer.status_code == 401
                assert answer.headers["www-authenticate"].startswith("Basic ")
                assert TOKEN not in answer.text
        for authorization in (f"Bearer {TOKEN}", f"bearer {TOKEN}", basic(TOKEN)):
            for page in ("/", "/metrics", "/graph", "/dead-letters"):
                assert (await ask(f"{url}{page}", Authorization=authorization)).status_code == 200
        assert (await ask(f"{url}/graph", Authorization=f"Bearer {TOKEN}", Host="name.example")).status_code == 200
        status = await ask(f"{url}/health")
        assert (status.status_code, status.json()) == (200, {"status": "ok"})
        assert "reasons" in (await ask(f"{url}/health", Authorization=basic(TOKEN))).json()

    await served(waiting(), during, plane=OPEN)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"host": "0.0.0.0"}, "needs a token and a certificate and its key for TLS"),
        ({"host": "db.example", "token": TOKEN}, "so it needs a certificate and its key for TLS"),
        ({"host": "::", "tls": (Path("c"), Path("k"))}, "so it needs a token"),
        ({"behind_proxy": True}, "behind_proxy needs a token"),
        ({"actions": True}, "actions need a token"),
        ({"token": "too-short"}, "token must have at least 16 characters"),
        ({"token": "has a space in the middle"}, "token must have at least 16 characters"),
    ],
)
def test_an_access_that_is_not_safe_is_an_error_that_says_what_to_set(wrong: dict[str, Any], says: str) -> None:
    """When it is configured; the token is not repeated."""
    with pytest.raises(ValueError, match=says) as raised:
        ControlPlane(**wrong)
    assert wrong.get("token", "\0") not in str(raised.value)


def test_the_token_is_not_in_the_repr() -> None:
    """Settings may be logged."""
    assert TOKEN not in repr(OPEN)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def files(authority: trustme.CA, folder: Path, name: str = "localhost") -> tuple[Path, Path]:
    issued = authority.issue_cert(name)
    certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
    certificate.write_bytes(b"".join(each.bytes() for each in issued.cert_chain_pems))
    key.write_bytes(issued.private_key_pem.bytes())
    return certificate, key


async def test_everything_is_served_by_tls(authority: trustme.CA, tmp_path: Path) -> None:
    """With the certificate that was given; plain HTTP on that port is closed."""
    trusted = ssl.create_default_context()
    authority.configure_trust(trusted)

    async def during(url: str) -> None:
        assert url.startswith("https://127.0.0.1:")
        url = url.replace("127.0.0.1", "localhost")
        async with httpx.AsyncClient(verify=trusted, timeout=30) as client:
            assert (await client.get(f"{url}/health")).status_code == 200
            async with client.stream("GET", f"{url}/events") as answer:
                async for line in answer.aiter_lines():
                    if line.startswith("data: "):
                        break
        with pytest.raises(httpx.TransportError):
            await fetch(url.replace("https", "http") + "/health")

    await served(waiting(), during, plane=replace(ANY, tls=files(authority, tmp_path)))


async def test_a_client_that_does_not_finish_the_handshake_is_disconnected_and_counts(
    authority: trustme.CA, tmp_path: Path
) -> None:
    """Two such clients fill the limit of two; after the timeout there is room again."""
    trusted = ssl.create_default_context()
    authority.configure_trust(trusted)
    plane = replace(
        ANY,
        tls=files(authority, tmp_path),
        max_connections=2,
        patience=timedelta(milliseconds=50),
        request_timeout=timedelta(seconds=1),
    )

    async def during(url: str) -> None:
        port = int(url.rpartition(":")[2])
        silent = [socket.create_connection(("127.0.0.1", port), timeout=20) for _ in range(2)]
        third = socket.create_connection(("127.0.0.1", port), timeout=20)
        assert await asyncio.to_thread(is_closed, third)
        for each in silent:
            assert await asyncio.to_thread(is_closed, each)
        async with httpx.AsyncClient(verify=trusted, timeout=30) as client:
            assert (await client.get(f"https://localhost:{port}/health")).status_code == 200
        for each in (*silent, third):
            each.close()

    await served(waiting(), during, plane=plane)


async def test_a_certificate_that_cannot_be_used_is_one_line_and_nothing_is_started(
    authority: trustme.CA, tmp_path: Path
) -> None:
    """Missing, a folder, no PEM, the key of another certificate, a key with a password."""
    certificate, key = files(authority, tmp_path)
    _, other = files(authority, tmp_path, "other.example")
    (garbage := tmp_path / "garbage").write_bytes(b"\x00not PEM")
    (locked := tmp_path / "locked").write_text(ENCRYPTED)
    threads = set(threading.enumerate())
    for pair, says in (
        ((tmp_path / "none", key), f"cannot read the certificate {tmp_path / 'none'}: No such file or directory"),
        ((certificate, tmp_path), f"cannot read the key {tmp_path}: Is a directory"),
        ((garbage, key), f"cannot use the certificate {garbage} with the key {key}: "),
        ((certificate, other), f"cannot use the certificate {certificate} with the key {other}: key values mismatch"),
        ((certificate, locked), f"cannot use the certificate {certificate} with the key {locked}: "),
    ):
        with pytest.raises(CannotUseCertificate) as raised, ControlPlaneServer(waiting(), replace(ANY, tls=pair)):
            raise AssertionError("it serves")
        assert str(raised.value).startswith(f"control plane: {says}")
        assert "\n" not in str(raised.value)
        assert isinstance(raised.value, OSError)
    assert not set(threading.enumerate()) - threads


def _encrypted_key() -> str:
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415 - for this one key
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415 - the same

    return (
        ec.generate_private_key(ec.SECP256R1())
        .private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"a password"),
        )
        .decode()
    )


ENCRYPTED = _encrypted_key()
