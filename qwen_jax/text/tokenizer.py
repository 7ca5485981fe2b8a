"""Text to token ids and back: one tiktoken engine for every Qwen, and text as it streams in."""

import codecs
import itertools
import re
from array import array
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import tiktoken

from qwen_jax.text.byte_level import PATTERN
from qwen_jax.text.segments import STRETCH, nfc, slices, split, stretches
from qwen_jax.text.vocabulary import END_OF_TEXT, Vocabulary, read

MOST_BLANKS = 500_000  # in a row; the regex engine's stack ends at about a million
NFC_SHRINKS = 4  # times at most, in bytes of UTF-8: 3.5 for iota, diaeresis and acute in Greek
PADDING_ROWS = 512  # models round their vocabulary up; the published ones add 85 to 418 rows


class Tokenizer:
    """A vocabulary, its control tokens and the chat template that came with them.

    specials: every control token, name -> id; text never becomes one unless `encode` is told so.
    hidden: the ids of those that are never part of a visible answer.
    markup: the names among them that belong to a visible answer, such as <think> and <tool_call>
        (`"special": false` in Hugging Face files); `skip_specials` keeps these.
    names: what tokenizer_config.json calls bos_token, eos_token and so on; templates may use them.
    start: ids that begin a text to be completed; Qwen's own have none.
    end: ids behind a text that becomes a vector, where the vocabulary says.
    chat_template: jinja2 source, or None (v1 has none: ChatML is built in `chatml`).
    encoding: the tiktoken engine, for libraries that want one.
    longest_stretch: bytes that text may have without a place where it divides, such as a blank
        behind a letter; the engine takes fifty times their memory. None, as many as there are.
    """

    longest_stretch: int | None = None

    def __init__(self, vocabulary: Vocabulary):
        self.specials = vocabulary.specials
        self.markup = frozenset(vocabulary.markup)
        self.chat_template = vocabulary.chat_template
        self.names = vocabulary.names
        self.start = tuple(vocabulary.start)
        self.end = tuple(vocabulary.end)
        self.normalized = frozenset(vocabulary.normalized)
        self.encoding = tiktoken.Encoding(
            "qwen",
            pat_str=PATTERN,
            mergeable_ranks=dict(vocabulary.ranks),
            special_tokens=dict(vocabulary.specials),
        )
        self._bytes = {id: token for token, id in vocabulary.ranks.items()}
        self._bytes |= {id: name.encode() for name, id in vocabulary.specials.items()}
        self.hidden = frozenset(i for name, i in self.specials.items() if name not in self.markup)
        self._rows = max(self._bytes) + 1 + PADDING_ROWS
        self._longest = max(map(len, self._bytes.values()))

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
        """The id of <|endoftext|>, or else eos_token: it separates documents, ends them, and pads.

        Raises ValueError if the vocabulary has neither.
        """
        for name in (END_OF_TEXT, self.names.get("eos_token", "")):
            if name in self.specials:
                return self.specials[name]
        raise ValueError(
            f"this vocabulary has no {END_OF_TEXT}, and its tokenizer_config.json names no "
            "eos_token of it; a text has no end then"
        )

    def encode(self, text: str, specials: bool | Collection[str] = False) -> list[int]:
        """Token ids of the NFC form of `text`, as `segments.nfc` has it, in linear time.

        Other threads go on meanwhile: the longest call that keeps the interpreter takes about 5 ms.
        specials: False, text is text, even `<|im_end|>`; True, control tokens written in the text
        count; a set of names, only those do. They divide the text before NFC, as in `tokenizers`;
        v1's after it, as in the original. Raises ValueError for a name that is none, and for a
        stretch past `longest_stretch`.
        """
        return self._encode(text, specials).tolist()

    def encode_prompt(self, text: str) -> list[int]:
        """Ids of a text to complete: control tokens in it count, and it begins with `start`."""
        return self.prompt_array(text).tolist()

    def prompt_array(self, text: str) -> "array[int]":
        """What `encode_prompt` gives in a tenth of the memory, for texts of megabytes."""
        ids = self._encode(text, True)
        begun = tuple(ids[: len(self.start)]) == self.start
        return ids if begun else array("I", self.start) + ids

    def _encode(self, text: str, specials: bool | Collection[str]) -> "array[int]":
        names = self.specials.keys() if specials is True else set(specials or ())
        if unknown := names - self.specials.keys():
            raise ValueError(f"{sorted(unknown)} are no control tokens; see Tokenizer.specials")
        early = names - self.normalized
        ids = array("I")
        for piece in split(text, early):
            if piece in early:
                ids.append(self.specials[piece])
            else:
                self._encode_normal(nfc(piece), names & self.normalized, ids)
        return ids

    def _encode_normal(self, text: str, names: Collection[str], ids: "array[int]") -> None:
        """Adds the ids of a text in NFC, in which these control tokens count."""
        if not names and len(text) <= STRETCH:
            self._encode_plain(text, ids)
            return
        for piece in split(text, names):
            if piece in names:
                ids.append(self.specials[piece])
            else:
                for part in stretches(piece):
                    self._encode_plain(part, ids)

    def least_tokens(self, text: str) -> int:
        """A count that `encode` never falls below, told by the text's length alone.

        To refuse a text that cannot fit before any work goes into it: no token covers more than
        the vocabulary's longest, and NFC makes no text shorter than a quarter of its bytes.
        """
        if text.isascii():
            return -(-len(text) // self._longest)
        size = sum(len(part.encode("utf-8", "surrogatepass")) for part in slices(text))
        return -(-size // (NFC_SHRINKS * self._longest))

    def _encode_plain(self, text: str, ids: "array[int]") -> None:
        # encode_ordinary would be the natural call, but where encode raises it panics.
        if len(text) <= 2 * STRETCH:
            ids.extend(self.encoding.encode(text, disallowed_special=()))
            return
        size = len(text.encode("utf-8", "surrogatepass"))
        if self.longest_stretch is not None and size > self.longest_stretch:
            raise ValueError(
                f"{size} bytes of the text follow one another without a blank, a comma or a full "
                f"stop behind a letter, at most {self.longest_stretch} may; divide them"
            )
        if not text.isascii():  # lone surrogates become replacement characters, as in encode
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        try:
            ids.frombytes(self._encode_long(text))
        except ValueError:
            for piece in _without_long_blanks(text):
                ids.frombytes(self._encode_long(piece))

    def _encode_long(self, text: str) -> memoryview:
        found = self.encoding.encode_to_numpy(text, disallowed_special=())
        return found.astype(np.uint32, copy=False).data.cast("B")

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
        hidden = self.hidden if skip_specials else ()
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

    @property
    def pending(self) -> int:
        """Bytes of a character that is unfinished."""
        return len(self._decoder.getstate()[0])

    def flush(self) -> str:
        """What is left at the end: nothing, or the replacement of an unfinished character."""
        return self._decoder.decode(b"", final=True)


class StopStrings:
    """Cuts a stream of text before the first stop string to be complete, the longest of several.

    The result does not depend on how the text was divided into pushes, and the time is linear in
    the text for each stop string, however long that is.
    """

    def __init__(self, stops: Sequence[str]):
        if isinstance(stops, str) or not all(stops):
            raise ValueError(f"got stop strings {stops!r}, wanted a list of non-empty strings")
        self._stops = [(stop, _borders(stop)) for stop in stops]
        self._met = [0 for _ in stops]  # characters of each that the text ends with
        self._held = ""  # the stop string that the held back text begins
        self._size = 0  # of the held back text
        self.stopped = False

    @property
    def met(self) -> str:
        """The stop string that ended the text; empty before."""
        return self._held if self.stopped else ""

    def push(self, text: str) -> tuple[str, bool]:
        """(text that is safe to show, whether a stop string was met); after a stop, ("", True).

        Held back is the shortest tail that could still become a stop string.
        """
        if self.stopped:
            return "", True
        held, size, end = self._held, self._size, len(text)
        for at, char in enumerate(text if self._stops else ""):
            for index, (stop, borders) in enumerate(self._stops):
                self._met[index] = _follow(char, self._met[index], stop, borders)
                self.stopped |= self._met[index] == len(stop)
            if self.stopped:
                end = at + 1
                break
        self._hold_back()
        cut = size + end - self._size
        shown = held[: min(cut, size)] + text[: max(0, cut - size)]
        if self.stopped:
            self._size = 0
        return shown, self.stopped

    def _hold_back(self) -> None:
        """Hold back the longest beginning of a stop string there is, or of the complete ones."""
        begun = zip(self._met, (stop for stop, _ in self._stops), strict=True)
        held = ((met, stop) for met, stop in begun if met == len(stop) or not self.stopped)
        self._size, self._held = max(held, default=(0, ""))

    def flush(self) -> str:
        """The held back text, once no more can come."""
        text, self._size = self._held[: self._size], 0
        return text


def _borders(stop: str) -> list[int]:
    """For each n the longest proper prefix of stop[:n] that also ends it (Knuth-Morris-Pratt)."""
    borders = [0, 0]
    for char in stop[1:]:
        borders.append(_follow(char, borders[-1], stop, borders))
    return borders


def _follow(char: str, met: int, stop: str, borders: Sequence[int]) -> int:
    """How much of `stop` a text ends with after `char`, having ended with stop[:met]."""
    while met and stop[met] != char:
        met = borders[met]
    return met + (stop[met] == char)


def _without_long_blanks(text: str) -> list[str]:
    """`text` divided before and after every MOST_BLANKS blanks in a row."""
    runs = re.finditer(rf"\s{{1,{MOST_BLANKS}}}", text)
    cuts = [cut for run in runs if len(run[0]) == MOST_BLANKS for cut in run.span()]
    return [text[start:end] for start, end in itertools.pairwise([0, *cuts, len(text)])]
