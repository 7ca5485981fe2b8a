"""Text to token ids and back: one tiktoken engine for every Qwen, and text as it streams in."""

import codecs
import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

import tiktoken

from qwen_jax.text.vocabulary import END_OF_TEXT, PATTERN, Vocabulary, read

PADDING_ROWS = 512  # models round their vocabulary up; the published ones add 85 to 418 rows


class Tokenizer:
    """A vocabulary, its control tokens and the chat template that came with them.

    specials: every control token, name -> id; text never becomes one unless `encode` is told so.
    markup: the names among them that belong to a visible answer, such as <think> and <tool_call>
        (`"special": false` in Hugging Face files); `skip_specials` keeps these.
    names: what tokenizer_config.json calls bos_token, eos_token and so on; templates may use them.
    chat_template: jinja2 source, or None (v1 has none: ChatML is built in `chatml`).
    encoding: the tiktoken engine, for libraries that want one.
    """

    def __init__(self, vocabulary: Vocabulary):
        self.specials = vocabulary.specials
        self.markup = frozenset(vocabulary.markup)
        self.chat_template = vocabulary.chat_template
        self.names = vocabulary.names
        self.encoding = tiktoken.Encoding(
            "qwen",
            pat_str=PATTERN,
            mergeable_ranks=dict(vocabulary.ranks),
            special_tokens=dict(vocabulary.specials),
        )
        self._bytes = {id: token for token, id in vocabulary.ranks.items()}
        self._bytes |= {id: name.encode() for name, id in vocabulary.specials.items()}
        self._hidden = {id for name, id in self.specials.items() if name not in self.markup}
        self._rows = max(self._bytes) + 1 + PADDING_ROWS

    @classmethod
    def load(
        cls, folder: str | Path, extra_vocab_file: str | Path | None = None
    ) -> "Tokenizer | None":
        """The tokenizer of a checkpoint folder; None when it holds no tokenizer file at all.

        Arguments and errors are those of `vocabulary.read`.
        """
        vocabulary = read(folder, extra_vocab_file)
        return None if vocabulary is None else cls(vocabulary)

    @property
    def vocab_size(self) -> int:
        """How many ids have a meaning: 151851 for v1. A model's matrix may have more rows."""
        return len(self._bytes)

    @property
    def end_of_text(self) -> int:
        """The id of <|endoftext|>: it separates documents, ends them, and pads."""
        return self.specials[END_OF_TEXT]

    def encode(self, text: str, specials: bool | Collection[str] = False) -> list[int]:
        """Token ids of the NFC form of `text`.

        specials: False, text is text, even `<|im_end|>`; True, control tokens written in the text
        count; a set of names, only those do. Raises ValueError for a name that is none.
        """
        text = unicodedata.normalize("NFC", text)
        names = self.specials.keys() if specials is True else set(specials or ())
        if unknown := names - self.specials.keys():
            raise ValueError(f"{sorted(unknown)} are no control tokens; see Tokenizer.specials")
        ids = []
        for piece in split(text, names):
            ids += [self.specials[piece]] if piece in names else self._encode_plain(piece)
        return ids

    def _encode_plain(self, text: str) -> list[int]:
        # encode_ordinary would be the natural call, but where encode raises it panics.
        try:
            return self.encoding.encode(text, disallowed_special=())
        except ValueError:  # the regex engine's stack ends at a run of a million blanks
            pieces = re.split(r"(\s{500000})", text)
            return [id for p in pieces for id in self.encoding.encode(p, disallowed_special=())]

    def token_bytes(self, id: int) -> bytes:
        """The bytes of one token, perhaps not whole characters; of a control token, its name.

        Rows that a model adds to round up its vocabulary are no tokens, but an untrained model may
        sample one: they have no bytes (the original raises). Raises ValueError for any other id.
        """
        token = self._bytes.get(id)
        if token is None:
            if not 0 <= id < self._rows:
                raise ValueError(f"got token id {id}, this vocabulary ends at {max(self._bytes)}")
            return b""
        return token

    def decode(
        self, ids: Iterable[int], errors: str = "replace", skip_specials: bool = False
    ) -> str:
        """The text of `ids`; `errors` as in bytes.decode, for bytes that are not UTF-8.

        skip_specials leaves out control tokens, not markup. (v1 also dropped the tokens of an extra
        vocabulary there; those are text.) Raises ValueError as `token_bytes` does.
        """
        return b"".join(self._token_bytes(ids, skip_specials)).decode("utf-8", errors)

    def _token_bytes(self, ids: Iterable[int], skip_specials: bool) -> Iterator[bytes]:
        hidden = self._hidden if skip_specials else ()
        return (self.token_bytes(id) for id in map(int, ids) if id not in hidden)


class TextStream:
    """Decodes ids as they come; all pushes and the flush together are `Tokenizer.decode` of all."""

    def __init__(self, tokenizer: Tokenizer, errors: str = "replace", skip_specials: bool = True):
        self._tokenizer = tokenizer
        self._skip_specials = skip_specials
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors)

    def push(self, ids: Iterable[int]) -> str:
        """The text that `ids` complete; the bytes of an unfinished character wait for the rest."""
        pieces = self._tokenizer._token_bytes(ids, self._skip_specials)
        return self._decoder.decode(b"".join(pieces))

    def flush(self) -> str:
        """What is left at the end: nothing, or the replacement of an unfinished character."""
        return self._decoder.decode(b"", final=True)


class StopStrings:
    """Cuts a stream of text before the first stop string to be complete, the longest of several.

    The result does not depend on how the text was divided into pushes.
    """

    def __init__(self, stops: Sequence[str]):
        if isinstance(stops, str) or not all(stops):
            raise ValueError(f"got stop strings {stops!r}, wanted a list of non-empty strings")
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> tuple[str, bool]:
        """(text that is safe to show, whether a stop string was met); after a stop, ("", True).

        Held back is the shortest tail that could still become a stop string.
        """
        if self.stopped:
            return "", True
        text = self._held + text
        starts = ((text.find(stop), stop) for stop in self._stops)
        met = [(start + len(stop), start) for start, stop in starts if start >= 0]
        if met:
            self._held, self.stopped = "", True
            return text[: min(met)[1]], True
        longest = max(map(len, self._stops), default=1)
        tails = range(max(0, len(text) - longest + 1), len(text))
        open_tails = (i for i in tails if any(s.startswith(text[i:]) for s in self._stops))
        cut = next(open_tails, len(text))
        self._held = text[cut:]
        return text[:cut], False

    def flush(self) -> str:
        """The held back text, once no more can come."""
        text, self._held = self._held, ""
        return text


def split(text: str, names: Collection[str]) -> list[str]:
    """Divide text at control tokens: the names stand alone, the longest first where two fit."""
    if not names:
        return [text]
    longest_first = sorted(names, key=len, reverse=True)
    return re.split(f"({'|'.join(map(re.escape, longest_first))})", text)
