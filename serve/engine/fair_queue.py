"""A bounded queue that takes from its tenants in turn."""

from bisect import insort
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")


class QueueFull(Exception):
    """No room; the caller may try again later."""


class FairQueue(Generic[Item]):
    """First come first served within a tenant, round robin between tenants."""

    def __init__(self, limit: int, order: Callable[[Item], int] = lambda item: 0):
        """order: of a tenant's own items; less is sooner."""
        self._limit, self._order = limit, order
        self._tenants: OrderedDict[str, deque[Item]] = OrderedDict()

    def __len__(self) -> int:
        return sum(map(len, self._tenants.values()))

    def put(self, tenant: str, item: Item) -> None:
        """Raises QueueFull when all tenants together wait for `limit` turns."""
        if len(self) >= self._limit:
            raise QueueFull(f"{self._limit} requests wait already")
        insort(self._tenants.setdefault(tenant, deque()), item, key=self._order)

    def put_first(self, tenant: str, item: Item) -> None:
        """Back to the head of its tenant's line, however many wait."""
        self._tenants.setdefault(tenant, deque()).appendleft(item)

    def heads(self) -> Iterator[tuple[str, Item]]:
        """Each tenant's first item, in the order of their turns."""
        for tenant, items in list(self._tenants.items()):
            yield tenant, items[0]

    def take(self, tenant: str | None = None) -> Item:
        """The next item, or this tenant's next; its tenant goes to the end of the line."""
        tenant = next(iter(self._tenants)) if tenant is None else tenant
        items = self._tenants.pop(tenant)
        item = items.popleft()
        if items:
            self._tenants[tenant] = items
        return item

    def remove(self, tenant: str, item: Item) -> bool:
        """Whether the item was waiting; it no longer is."""
        items = self._tenants.get(tenant, deque())
        if item not in items:
            return False
        items.remove(item)
        if not items:
            del self._tenants[tenant]
        return True
