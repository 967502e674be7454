"""Status only moves forward."""

from limner.contracts.statuses import ALLOWED_FROM, TERMINAL, RequestStatus


def test_nothing_follows_an_end() -> None:
    assert all(not (before & TERMINAL) for before in ALLOWED_FROM.values())


def test_every_status_is_reachable_and_reaches_an_end() -> None:
    reached = {status for status, before in ALLOWED_FROM.items() if not before}
    assert reached == {RequestStatus.REGISTERED}
    for _ in RequestStatus:
        reached |= {status for status, before in ALLOWED_FROM.items() if before & reached}
    assert reached == set(RequestStatus)
    ending = set(TERMINAL)
    for _ in RequestStatus:
        ending |= set().union(*(ALLOWED_FROM[status] for status in ending))
    assert ending == set(RequestStatus)
