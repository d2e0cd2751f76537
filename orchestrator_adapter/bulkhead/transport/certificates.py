"""Certificates for one bulkhead: a new authority signs one certificate for each side, then its key is discarded.

No certificate of another authority is accepted, and these two are accepted nowhere else.
"""

from __future__ import annotations

import ssl
import tempfile
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from orchestrator_adapter.bulkhead.transport.invitation import Credentials

_MAX_CLOCK_SKEW = timedelta(days=1)
_VALID_FOR = timedelta(days=3650)  # longer than any run: a certificate must not expire during one


def issue(host: str) -> tuple[Credentials, Credentials]:
    """Credentials for the listener, whose name or address is ``host``, and for its workers."""
    authority_key = ec.generate_private_key(ec.SECP256R1())
    authority_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "bulkhead authority")])
    authority = (
        _builder(authority_name, authority_name, authority_key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .sign(authority_key, hashes.SHA256())
    )

    def sign(name: str, purpose: ObjectIdentifier, alternative: x509.GeneralName) -> Credentials:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = (
            _builder(subject, authority_name, key)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
            .add_extension(x509.SubjectAlternativeName([alternative]), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False
            )
            .sign(authority_key, hashes.SHA256())
        )
        return Credentials(
            authority=authority.public_bytes(serialization.Encoding.PEM).decode(),
            certificate=certificate.public_bytes(serialization.Encoding.PEM).decode(),
            private_key=key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            ).decode(),
        )

    return (
        sign("bulkhead listener", ExtendedKeyUsageOID.SERVER_AUTH, _general_name(host)),
        sign("bulkhead worker", ExtendedKeyUsageOID.CLIENT_AUTH, x509.DNSName("worker.bulkhead.invalid")),
    )


def listener_context(credentials: Credentials) -> ssl.SSLContext:
    """TLS 1.3 for the listener; the worker must have a certificate of the same authority."""
    return _context(ssl.PROTOCOL_TLS_SERVER, credentials)


def worker_context(credentials: Credentials) -> ssl.SSLContext:
    """TLS 1.3 for the worker; it checks the listener's authority and host name."""
    return _context(ssl.PROTOCOL_TLS_CLIENT, credentials)


def _context(protocol: int, credentials: Credentials) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=credentials.authority)
    # The ssl module loads a private key only from a file. The folder is private and removed at once.
    with tempfile.TemporaryDirectory(prefix="bulkhead-") as folder:
        certificate, key = Path(folder, "certificate.pem"), Path(folder, "key.pem")
        certificate.write_text(credentials.certificate)
        key.write_text(credentials.private_key)
        context.load_cert_chain(certificate, key)
    return context


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _MAX_CLOCK_SKEW)
        .not_valid_after(now + _VALID_FOR)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        return x509.DNSName(host)
