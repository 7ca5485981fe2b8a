"""Who may ask: keys."""

import hashlib
import hmac
from collections.abc import Iterable
from pathlib import Path

from serve.http.pages import FILES

PROBES = frozenset({"/health", "/ready"})  # machines ask for them by whatever name
# Everything else needs a key, where there are keys.
OPEN = PROBES | FILES.keys()
_LEAST = 16  # characters of a key


class Keys:
    """Keys and the names of their owners."""

    def __init__(self, owners: dict[str, str]):
        """owners: key -> name."""
        self._owners = {_digest(key): name for key, name in owners.items()}

    def __bool__(self) -> bool:
        return bool(self._owners)

    @staticmethod
    def read(file: Path | None) -> "Keys":
        """A file with a name and a key on every line; lines that begin with # do not count."""
        owners: dict[str, str] = {}
        try:
            text = file.read_text("utf-8") if file else ""
        except OSError as error:
            raise ValueError(f"{file} cannot be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise ValueError(f"{file} is no file of keys: it is not in UTF-8") from None
        for number, line in enumerate(text.splitlines(), 1):
            if not line.strip() or line.startswith("#"):
                continue
            parts = line.split()
            if len(parts) != 2 or len(parts[1]) < _LEAST or not parts[1].isascii():
                raise ValueError(
                    f"{file}, line {number}: wanted a name and a key of {_LEAST} ASCII characters "
                    "or more"
                )
            if parts[1] in owners:
                raise ValueError(f"{file}, line {number}: the key is that of {owners[parts[1]]}")
            owners[parts[1]] = parts[0]
        if file is not None and not owners:
            raise ValueError(f"{file} holds no key")
        return Keys(owners)

    def expect_owners(self, names: Iterable[str]) -> None:
        """Raises ValueError for a name that owns no key; * is everybody."""
        if missing := set(names) - {"*", *self._owners.values()}:
            raise ValueError(f"--admin has {', '.join(sorted(missing))}, who has no key")

    def owner(self, path: str, authorization: str, method: str = "GET") -> str | None:
        """Who asks, "" where anyone may; None: refuse."""
        if not self._owners or (path in OPEN and method != "POST"):
            return ""
        scheme, _, key = authorization.partition(" ")
        if scheme.lower() != "bearer":
            return None
        given, found = _digest(key.strip()), None
        for digest, name in self._owners.items():  # all of them, so that time tells nothing
            if hmac.compare_digest(given, digest):
                found = name
        return found


def _digest(key: str) -> bytes:
    """Of equal length for every key."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
