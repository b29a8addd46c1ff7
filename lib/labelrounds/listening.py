"""Where a server listens: checked before it starts, so that nothing is opened to a network by mistake."""

import ipaddress
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labelrounds.addresses import listens_on_loopback
from labelrounds.errors import BadInput


@dataclass(frozen=True)
class Listening:
    """What the command line says of it.

    Attributes:
        host: the address, or a name of it.
        port: the port.
        insecure: let everybody in who can reach it.
        certificate: the file of the TLS certificate and those that it was signed with (PEM).
        key: the file of its key.
        proxy: addresses of reverse proxies, separated by commas, whose word for who is calling counts.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    insecure: bool = False
    certificate: Path | None = None
    key: Path | None = None
    proxy: str = ""

    @property
    def address(self) -> str:
        """Return what a client on this machine enters."""
        shown = "127.0.0.1" if self.host in ("0.0.0.0", "::") else self.host
        return f"{'https' if self.certificate else 'http'}://{f'[{shown}]' if ':' in shown else shown}:{self.port}"

    def check(self, login: bool) -> None:
        """Refuse what would open the server by mistake.

        Raises:
            BadInput: a network's address without a login, a certificate that can't be used.
        """
        if not listens_on_loopback(self.host) and not login and not self.insecure:
            raise BadInput(
                f"host {self.host!r} is reached from the network, and nobody has to log in: add a user with"
                " `labelrounds users add NAME --role admin`, set LABELROUNDS_OIDC_ISSUER, or give --insecure to let"
                " everybody in"
            )
        for address in filter(None, self.proxy.split(",")):
            try:
                ipaddress.ip_network(address.strip())
            except ValueError as error:
                raise BadInput(f"--behind-proxy {address.strip()!r} is not an IP address, nor a network") from error
        if (self.certificate is None) != (self.key is None):
            raise BadInput("--tls-certificate and --tls-key go together")
        if self.certificate is not None and self.key is not None:
            try:
                ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self.certificate, self.key, _no_password)
            except (OSError, ValueError) as error:  # an SSLError is an OSError
                raise BadInput(
                    f"TLS certificate {str(self.certificate)!r} with key {str(self.key)!r}: {error}"
                ) from error

    def warning(self, login: bool) -> str:
        """Return what should be said to whoever starts it so; mostly nothing."""
        if listens_on_loopback(self.host):
            return ""
        if not login:
            return "Warning: --insecure lets everybody in who can reach this address, to read, change and remove all."
        if self.certificate is None and not self.proxy:
            return "Warning: keys and images go over the network unencrypted; see --tls-certificate in the README."
        return ""

    def options(self) -> dict[str, Any]:
        """Return the same for uvicorn."""
        return {
            "host": self.host,
            "port": self.port,
            "ssl_certfile": self.certificate,
            "ssl_keyfile": self.key,
            "proxy_headers": bool(self.proxy),
            "forwarded_allow_ips": self.proxy or None,
            "server_header": False,
        }


def _no_password() -> str:
    raise ValueError("the key is protected by a password, which nobody is there to enter")
