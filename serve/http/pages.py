"""The chat page's files: these and no others, whatever a path says."""

from pathlib import Path

_FOLDER = Path(__file__).parents[1] / "page"
_KINDS = {
    ".html": "text/html",
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
}

# path -> type and content; read once, so that whoever asks waits for no disk
FILES = {
    "/" if file.name == "index.html" else f"/{file.name}": (_KINDS[file.suffix], file.read_bytes())
    for file in sorted(_FOLDER.glob("*"))
    if file.suffix in _KINDS
}

# What a model writes is shown there: nothing of it may load or run anything.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
