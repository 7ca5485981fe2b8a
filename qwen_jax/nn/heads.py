"""How attention's heads lie on devices that do not divide them.

Weights know nothing of it: their rows are cut evenly, through the middle of a head where it falls
so. Between the products, each device has whole heads to attend with: key/value heads are doubled
where their queries can be shared out among the copies, and heads of zeros fill what is left.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from qwen_jax.nn.projected import parts
from qwen_jax.nn.sharding import RULES, ways


@dataclass(frozen=True)
class Heads:
    """Which heads a cache and attention see, of a network's K key/value heads with G queries each.

    `of(4, 7, mesh)` for 8 devices: every key/value head twice, four queries to the one copy and
    three and a zero to the other. `of(40, 1, mesh)` for 16: eight heads of zeros behind the 40.
    """

    kv_heads: int  # K, of the network
    groups: int  # G, of the network
    copies: int  # of each key/value head
    places: int  # key/value heads in all, with copies and zeros
    mesh: Mesh | AbstractMesh | None

    @staticmethod
    def of(kv_heads: int, groups: int, mesh: Mesh | AbstractMesh | None) -> "Heads":
        """As they are where the mesh divides them; else what holds least, and computes least."""
        count = 1 if mesh is None else ways(mesh, "heads")
        if kv_heads % count == 0:
            return Heads(kv_heads, groups, 1, kv_heads, mesh)
        filled = lambda copies: -(-kv_heads * copies // count) * count
        copies = min(range(1, groups + 1), key=lambda n: (filled(n), -(-groups // n), n))
        return Heads(kv_heads, groups, copies, filled(copies), mesh)

    @property
    def even(self) -> bool:
        return self.places == self.kv_heads

    @property
    def of_a_device(self) -> int:
        """Key/value heads that one device holds."""
        return self.places // (1 if self.mesh is None else ways(self.mesh, "heads"))

    @property
    def queries(self) -> int:
        """Query heads that one device computes."""
        return self.of_a_device * -(-self.groups // self.copies)

    def spread(self, q: Array, k: Array, v: Array) -> tuple[Array, Array, Array]:
        """q [B T N H], k and v [B T K H] -> [B T K' G' H] and twice [B T K' H], K' the places."""
        q = q.reshape(*q.shape[:2], self.kv_heads, self.groups, q.shape[-1])
        if self.even:
            return q, k, v
        q = _padded(q, 3, -self.groups % self.copies)
        q = q.reshape(*q.shape[:2], self.kv_heads * self.copies, -1, q.shape[-1])
        k, v = (jnp.repeat(x, self.copies, axis=2) for x in (k, v))
        q, k, v = (self._cut(self._whole(_padded(x, 2, self._zeros))) for x in (q, k, v))
        return q, k, v

    def spread_product(self, qkv: Array) -> Array:
        """[B T K G+2 H], of which an axis has queries, key and value -> [B T K' G'+2 H]."""
        if self.even:
            return qkv
        if self.copies == 1:  # queries stay beside their key
            return self._cut(self._whole(_padded(qkv, 2, self._zeros)))
        q, k, v = self.spread(*parts(qkv))
        return jnp.concatenate([q, k[..., None, :], v[..., None, :]], axis=3)

    def collect(self, y: Array) -> Array:
        """What attention makes of it, [B T K' G' H] -> [B T N H]."""
        batch, length, *_, size = y.shape
        if not self.even:
            y = self._whole(y)[:, :, : self.kv_heads * self.copies]
            y = y.reshape(batch, length, self.kv_heads, -1, size)[:, :, :, : self.groups]
        return y.reshape(batch, length, -1, size)

    @property
    def _zeros(self) -> int:
        return self.places - self.kv_heads * self.copies

    def _whole(self, x: Array) -> Array:
        """x [B T ...] with all of its heads on every device; XLA sends parts of heads otherwise."""
        return self._lies(x, P(P.UNCONSTRAINED, *[None] * (x.ndim - 1)))

    def _cut(self, x: Array) -> Array:
        return self._lies(x, P(P.UNCONSTRAINED, None, RULES["heads"]))

    def _lies(self, x: Array, partition: P) -> Array:
        assert self.mesh is not None
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, partition))


def _padded(x: Array, axis: int, zeros: int) -> Array:
    return jnp.pad(x, [(0, zeros if n == axis else 0) for n in range(x.ndim)])
