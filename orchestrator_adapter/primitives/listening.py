"""Opens TCP listeners. A failure is always an ``OSError`` whose text is one plain line."""

from __future__ import annotations

import errno
import socket

_REASONS = {
    errno.EADDRINUSE: "another socket listens there: choose another port, or port 0 for any free one",
    errno.EADDRNOTAVAIL: "it is not an address of this machine",
    errno.EACCES: "this user may not use the port: choose one above 1023, or port 0 for any free one",
    errno.EAFNOSUPPORT: "this machine has no IPv6: 0.0.0.0 is every IPv4 address",
}


def listen_tcp(host: str, port: int, *, backlog: int) -> socket.socket:
    """A listener on ``host``, an address or a name, and ``port``; 0 for any free port.

    ``0.0.0.0`` is every IPv4 address, and ``::`` every address, IPv4 and IPv6. A name with both kinds of address means IPv4.
    Resolving a name blocks. Raises ``OSError``, which says why in one line and does not name the address.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)
        everywhere = family == socket.AF_INET6 and socket.has_dualstack_ipv6()
        return socket.create_server(address, family=family, backlog=backlog, dualstack_ipv6=everywhere)
    except socket.gaierror as error:
        raise OSError(error.errno, f"the name cannot be resolved ({error.strerror})") from error
    except UnicodeError as error:  # the codec "idna": a label that is empty or too long
        raise OSError(errno.EINVAL, "it is neither a host name nor an address") from error
    except OverflowError as error:
        raise OSError(errno.EINVAL, "a port is a number from 0 to 65535") from error
    except OSError as error:
        raise OSError(error.errno, _REASONS.get(error.errno or 0, error.strerror or str(error))) from error
