"""Barred owners: who has had a worker sleep is refused for a while, with all hosts of his."""

from collections.abc import Callable

from sniproxy.resolver.hosts import OVERFLOW_UID

BARRED = 60.0
"""Seconds."""

MOST = 1024
"""Accounts that are barred at the same time; one more lets the first go."""


_UID = "uid="


def word(account: str | int) -> str:
    """Write whom to bar for other processes, which may not know whose a host is."""
    return account if isinstance(account, str) else f"{_UID}{account}"


class Barred(dict[str | int, float]):
    """The accounts that are barred (``Hosts.account``), and until when by ``clock``. Empty where
    nobody has to be asked for."""

    def __init__(self, account: Callable[[str], str | int], clock: Callable[[], float]) -> None:
        super().__init__()
        self._account = account
        self._clock = clock

    def bar(self, whom: str) -> str | int:
        """Bar on whose account a host goes, or an owner (``word``); give that."""
        owner = whom.removeprefix(_UID)
        account = self.account(whom) if owner == whom else int(owner)
        self.pop(account, None)
        while len(self) >= MOST:
            del self[next(iter(self))]
        self[account] = self._clock() + BARRED
        return account

    def holds(self, directory: str) -> bool:
        """Say whether a host is to be refused."""
        account = self.account(directory)
        until = self.get(account)
        if until is not None and until <= self._clock():
            del self[account]
            until = None
        return until is not None

    def account(self, directory: str) -> str | int:
        """Give a host's account; its own where its owner may be anybody."""
        account = self._account(directory)
        return directory if account == OVERFLOW_UID else account
