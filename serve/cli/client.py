"""A client of an OpenAI-compatible server, for the terminal chat and the benchmark."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import httpx

from qwen_jax.decoding.sampling import Sampling
from serve.cli.settings import changed

KEY = "QWEN_API_KEY"  # the variable of the environment: arguments can be read by everyone
CONNECT_SECONDS = 10.0  # an answer itself may take as long as it wants


class ServerError(OSError):
    """What a server refused, or a stream that ended before its end."""


@dataclass
class Answer:
    """An answer as far as it has come."""

    text: str = ""
    tokens: int = 0
    finish_reason: str = ""  # empty while it grows


class Source(Protocol):
    """Where answers come from: a model in this process or a server."""

    name: str

    def settings(self, changes: Mapping[str, Any]) -> dict[str, Any]: ...

    def answer(
        self,
        query: str,
        history: Sequence[tuple[str, str]],
        system: str | None,
        seed: int,
        changes: Mapping[str, Any],
        begun: str = "",  # what the answer begins with already
    ) -> Iterator[Answer]: ...


class Stream:
    """An answer in server-sent events, read from whatever pieces the network makes of them."""

    def __init__(self) -> None:
        self.finish_reason, self.usage, self.done = "", dict[str, int](), False
        self._rest, self._thinking = b"", False

    def push(self, data: bytes) -> list[str]:
        """The texts in the events that are complete now; empty ones are left out."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        events = [line[5:].strip() for line in lines if line.startswith(b"data:")]
        return [text for event in events if (text := self._read(event))]

    def finish(self) -> None:
        """Raise ServerError unless the server said that the answer is whole."""
        if not self.done:
            raise ServerError("the connection was lost before the answer was whole")

    def _read(self, event: bytes) -> str:
        if event == b"[DONE]":
            self.done = True
            return ""
        try:
            chunk = json.loads(event)
            if "error" in chunk:
                raise ServerError(chunk["error"]["message"])
            self.usage = chunk.get("usage") or self.usage
            if not chunk["choices"]:
                return ""
            choice = chunk["choices"][0]
            self.finish_reason = choice.get("finish_reason") or self.finish_reason
            return self._said(choice["delta"]) if "delta" in choice else str(choice["text"] or "")
        except (ValueError, LookupError, TypeError, AttributeError):
            raise ServerError(
                f"got an event that is no chunk of an answer: {event[:200]!r}"
            ) from None

    def _said(self, delta: dict[str, Any]) -> str:
        """What was thought and said, as the model wrote it: a thought between its markers."""
        thought, text = str(delta.get("reasoning_content") or ""), str(delta.get("content") or "")
        opening = "<think>\n" if thought and not self._thinking else ""
        self._thinking = self._thinking or bool(thought)
        closing = "\n</think>\n\n" if text and self._thinking else ""
        self._thinking = self._thinking and not text
        return opening + thought + closing + text


def connection() -> dict[str, Any]:
    """The arguments of an httpx client: its key, and how long it waits."""
    key = os.environ.get(KEY)
    return {
        "headers": {"Authorization": f"Bearer {key}"} if key else {},
        "timeout": httpx.Timeout(None, connect=CONNECT_SECONDS),
    }


def check(response: httpx.Response, content: bytes) -> None:
    """Raise ServerError with what the server says about its refusal."""
    if not response.is_error:
        return
    try:
        said = json.loads(content)["error"]["message"]
    except (ValueError, LookupError, TypeError):
        said = response.reason_phrase
    hint = f"; put a key into the variable {KEY}" if response.status_code == 401 else ""
    raise ServerError(f"HTTP {response.status_code}: {said}{hint}")


def fetch(client: httpx.Client, method: str, url: str, **how: Any) -> Any:
    """The JSON that a server answers; ServerError where it cannot be reached or refuses."""
    try:
        response = client.request(method, url, **how)
        check(response, response.content)
        return response.json()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise ServerError(f"{url}: {error or type(error).__name__}") from None


def models(client: httpx.Client, url: str) -> list[str]:
    """The names of the models that a server has."""
    listed = fetch(client, "GET", f"{url}/v1/models")
    return [model["id"] for model in listed["data"]]


class Remote:
    """A model behind a server, as the terminal chat sees it."""

    def __init__(self, url: str, model: str | None):
        self.url = url.rstrip("/")
        with httpx.Client(**connection()) as client:
            names = models(client, self.url)
        if model is not None and model not in names:
            raise ServerError(f"the server has no model {model!r}, it has {', '.join(names)}")
        self.name = model or names[0]

    def settings(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """What is known of the settings here: the changes; the server has the rest.

        ValueError if they are wrong, so that the server need not be asked for that.
        """
        changed(Sampling(), changes)
        return dict(changes)

    def answer(
        self,
        query: str,
        history: Sequence[tuple[str, str]],
        system: str | None,
        seed: int,
        changes: Mapping[str, Any],
        begun: str = "",
    ) -> Iterator[Answer]:
        """The answer as it grows, behind what it has begun with.

        Leaving the iterator ends it at the server too.
        """
        messages = [{"role": "system", "content": system}] if system is not None else []
        for question, reply in history:
            messages.append({"role": "user", "content": question})
            messages.append({"role": "assistant", "content": reply})
        messages.append({"role": "user", "content": query})
        asked = {
            "max_tokens" if name == "max_new_tokens" else name: changes[name] for name in changes
        }
        body = {"model": self.name, "messages": messages, "seed": seed, **asked, "stream": True}
        body["stream_options"] = {"include_usage": True}
        if begun:
            messages.append({"role": "assistant", "content": begun})
            body |= {"continue_final_message": True, "add_generation_prompt": False}
        stream, answer = Stream(), Answer()
        try:
            url = f"{self.url}/v1/chat/completions"
            with (
                httpx.Client(**connection()) as client,
                client.stream("POST", url, json=body) as response,
            ):
                check(response, response.read() if response.is_error else b"")
                for data in response.iter_bytes():
                    for text in stream.push(data):
                        answer = Answer(answer.text + text, answer.tokens + 1)
                    yield answer
        except httpx.HTTPError as error:
            raise ServerError(f"{self.url}: {error or type(error).__name__}") from None
        stream.finish()
        tokens = stream.usage.get("completion_tokens", answer.tokens)
        yield Answer(answer.text, tokens, stream.finish_reason)
