"""Whose requests are answered where there are no keys: those of this server's own hosts and pages.

A browser sends what any web page asks for, to this machine too. It tells from which page (Origin,
Sec-Fetch-Site) and by which name it got here (Host): a name of the page's choice may have been
pointed to this machine.
"""

import ipaddress
import re
import socket

from starlette.types import Scope

from serve.http.errors import ApiError
from serve.http.keys import OPEN, PROBES
from serve.settings import ServeConfig

_AUTHORITY = re.compile(r"(\[[^\]]+\]|[^\s:/?#@\[\]]+)(?::(\d{1,5}))?")
_PORTS = {"http": 80, "https": 443}
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Origins:
    """The hosts that a server is, and the web pages that may ask it."""

    def __init__(self, settings: ServeConfig):
        self._pages = frozenset(settings.cors)
        self._names = {"localhost", *map(canonical, (*settings.allowed_host, settings.host))}
        listens = address(canonical(settings.host))
        self._everywhere = not settings.host or (listens is not None and listens.is_unspecified)
        if self._everywhere:
            self._names.add(canonical(socket.gethostname()))

    def refusal(self, scope: Scope) -> ApiError | None:
        """Why a request is not answered, if it is not."""
        said = lambda name: [v.decode("latin1") for n, v in scope["headers"] if n == name]
        hosts, origins, path = said(b"host"), said(b"origin"), scope["path"]
        if path not in PROBES and (unknown := [h for h in hosts if not self._is_host(h, scope)]):
            name = split(unknown[0])[0] or unknown[0]
            return ApiError(
                421,
                f"this server is not known as {name[:100]!r}; if it should be, start it with "
                f"--allowed-host {name[:100] or 'NAME'}, or with --api-keys",
            )
        foreign = [one for one in origins if not self._is_page(one, hosts)]
        if not origins and path not in OPEN:
            foreign = [site for site in said(b"sec-fetch-site") if site in _FOREIGN]
        if foreign:
            return ApiError(
                403,
                f"a web page from elsewhere ({foreign[0][:100]}) may not ask this server; "
                "--cors ORIGIN lets its pages, and --api-keys whoever has a key",
            )
        return None

    def _is_host(self, host: str, scope: Scope) -> bool:
        name, _ = split(host)
        if name in self._names or "*" in self._names:
            return True
        found = address(name)  # a name can be pointed to this machine, an address cannot
        if found is None:
            return False
        reached = address(canonical((scope.get("server") or ("",))[0] or ""))
        return self._everywhere or found.is_loopback or found == reached

    def _is_page(self, origin: str, hosts: list[str]) -> bool:
        """The page's own address is the one that it asks, or one that --cors names."""
        if origin in self._pages or "*" in self._pages:
            return True
        scheme, _, authority = origin.partition("://")
        name, port = split(authority)
        default = _PORTS.get(scheme)
        own = [(name, port or default) for name, port in map(split, hosts)]
        return default is not None and own == [(name, port or default)] != [("", default)]


_FOREIGN = ("cross-site", "same-site")  # another port of this machine is the same site


def split(authority: str) -> tuple[str, int | None]:
    """A canonical name and the port, if any; the name is empty if there is none."""
    found = _AUTHORITY.fullmatch(authority.strip())
    if found is None:
        return "", None
    return canonical(found[1]), int(found[2]) if found[2] else None


def canonical(name: str) -> str:
    """One spelling for every way to write a name or an address."""
    name = name.lower().removesuffix(".")
    found = address(name.strip("[]"))
    return name if found is None else str(found)


def address(name: str) -> Address | None:
    try:
        found = ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return None
    return getattr(found, "ipv4_mapped", None) or found
