"""The same questions put to transformers, by code that shares nothing with ours but the words."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "transformers")


class Theirs:
    """A folder in Hugging Face's layout, in float32 on the CPU."""

    def __init__(self, folder: Path, dtype: str = "float32") -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.torch = torch
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        load: Any = AutoModelForCausalLM.from_pretrained
        self.model = load(folder, dtype=getattr(torch, dtype), attn_implementation="sdpa").eval()
        self._before: tuple[list[int], Any] = [], None  # ids, their keys and values

    def chat_ids(self, message: str) -> list[int]:
        """Of one message of a user, under the template's own system text."""
        text = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": message}], tokenize=False, add_generation_prompt=True
        )
        return self.ids(text)

    def ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def greedy(self, ids: Sequence[int], most: int, stop: Sequence[str] = ()) -> str:
        """What `generate` writes after a prompt, up to where a stop string begins."""
        prompt = self.torch.tensor([list(ids)])
        asked: dict[str, Any] = {"stop_strings": list(stop), "tokenizer": self.tokenizer}
        out = self.model.generate(
            prompt,
            attention_mask=self.torch.ones_like(prompt),
            max_new_tokens=most,
            do_sample=False,
            repetition_penalty=1.0,
            temperature=None,
            top_p=None,
            top_k=None,
            **(asked if stop else {}),
        )
        return self.cut(out[0, len(ids) :].tolist(), stop)

    def greedy_after(
        self, ids: Sequence[int], guess: str, most: int, stop: Sequence[str] = ()
    ) -> str:
        """The same in a fraction of the time, where a guess is right at first.

        As far as each of the guess's tokens is the likeliest after those before it, greedy
        generation writes them; from there on it is asked to.
        """
        guessed = self.ids(guess)[:most]
        best = self.logits([*ids, *guessed], len(ids) - 1).argmax(-1).tolist()
        right = next((at for at, id in enumerate(guessed) if best[at] != id), len(guessed))
        begun = guessed[:right]
        rest = self._go_on([*ids, *begun], most - right, begun, stop)
        return self.cut([*begun, *rest], stop)

    def _go_on(
        self, ids: list[int], most: int, begun: Sequence[int], stop: Sequence[str]
    ) -> list[int]:
        """Greedy tokens until the end, or until a stop string is in what was begun and these."""
        ends = self.model.generation_config.eos_token_id
        found: list[int] = []
        with self.torch.inference_mode():
            now, kept = self.torch.tensor([ids]), None
            while len(found) < most:
                made = self.model(now, past_key_values=kept, use_cache=True, logits_to_keep=1)
                kept = made.past_key_values
                found.append(int(made.logits[0, -1].argmax()))
                text = self.tokenizer.decode([*begun, *found])
                if found[-1] in ends or any(one in text for one in stop):
                    break
                now = self.torch.tensor([found[-1:]])
        return found

    def cut(self, ids: Sequence[int], stop: Sequence[str]) -> str:
        text = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text[: min((at for one in stop if (at := text.find(one)) >= 0), default=len(text))]

    def logits(self, ids: Sequence[int], start: int) -> Any:
        """After each of ids[start:], float32."""
        with self.torch.inference_mode():
            kept = self.model(self.torch.tensor([list(ids)]), logits_to_keep=len(ids) - start)
            return kept.logits[0].float()

    def losses(self, ids: Sequence[int], piece: int = 512) -> Any:
        """Of each of ids[1:] after those before it, float64; the head takes them in pieces.

        torch's log_softmax of 151,936 float32 numbers is 3e-5 too high on average.
        """
        with self.torch.inference_mode():
            hidden = self.model.model(self.torch.tensor([list(ids[:-1])])).last_hidden_state[0]
            wanted = self.torch.tensor(list(ids[1:]))[:, None]
            pairs = zip(hidden.split(piece), wanted.split(piece), strict=True)
            return -self.torch.cat(
                [self.model.lm_head(x).double().log_softmax(-1).gather(1, y) for x, y in pairs]
            )[:, 0]

    def logits_after(self, ids: Sequence[int]) -> Any:
        """After the last id, float32; what the call before began with as well is reused."""
        known, kept = self._before
        pairs = enumerate(zip(known, ids[:-1], strict=False))
        same = next((at for at, (a, b) in pairs if a != b), min(len(known), len(ids) - 1))
        if kept is not None and same < len(known):
            kept.crop(same - len(known))
        with self.torch.inference_mode():
            rest = self.torch.tensor([list(ids[same:])])
            made = self.model(rest, past_key_values=kept, use_cache=True, logits_to_keep=1)
        self._before = list(ids), made.past_key_values
        return made.logits[0, -1].float()
