"""What a float16 loss is multiplied by, so that its gradient neither vanishes nor overflows."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

# torch.amp.GradScaler's numbers: where it begins, what an overflow and so many updates make of it
INITIAL, BACKOFF, GROWTH, INTERVAL = 65536.0, 0.5, 2.0, 2000
FLOOR = 1.0  # it falls no lower: what overflows here has diverged


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LossScale:
    """The scale of the next step, and how long it has done well."""

    value: Array  # float32
    updates: Array  # int32, made in a row since it changed

    @classmethod
    def start(cls) -> "LossScale":
        return cls(jnp.float32(INITIAL), jnp.int32(0))

    def after(self, sound: Array) -> "LossScale":
        """Behind a step whose gradient was finite, or was not."""
        updates, larger = self.updates + 1, self.value * GROWTH
        grows = updates >= INTERVAL
        kept = jnp.where(grows & jnp.isfinite(larger), larger, self.value)
        lower = jnp.maximum(self.value * BACKOFF, FLOOR)
        return LossScale(jnp.where(sound, kept, lower), jnp.where(sound & ~grows, updates, 0))
