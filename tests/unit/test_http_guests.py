"""Who may be connected to the HTTP server, and who makes room."""

from __future__ import annotations

from broker.http.guests import Guest, Guests


def gone(guest: Guest | None) -> bool:
    assert guest is not None
    return guest.scope.cancel_called


def admitted(guests: Guests, origin: str, *, known: bool = False, served: bool = False) -> Guest:
    guest = guests.admit(origin)
    assert guest is not None
    guest.known, guest.served = known, served
    return guest


async def test_the_oldest_stranger_makes_room() -> None:
    guests = Guests(most=4, of_address=4)
    idle = admitted(guests, "a", known=True)
    first, second = (admitted(guests, "b") for _ in range(2))
    served = admitted(guests, "a", known=True, served=True)
    third = admitted(guests, "c")
    assert gone(first) and not gone(second)
    second.rests()
    fourth = admitted(guests, "c")
    assert gone(third) and not gone(second)
    admitted(guests, "c")
    assert gone(second) and not gone(fourth) and not gone(idle) and not gone(served)


async def test_who_rests_makes_room_after_strangers_and_who_is_served_never() -> None:
    guests = Guests(most=2, of_address=2)
    idle = admitted(guests, "a", known=True)
    served = admitted(guests, "a", known=True, served=True)
    other = admitted(guests, "b", known=True, served=True)
    assert gone(idle) and not gone(served)
    assert guests.admit("c") is None and not gone(other)
    guests.leave(other)
    guests.leave(other)
    assert guests.admit("c") is not None


async def test_an_address_has_its_share() -> None:
    guests = Guests(most=10, of_address=2)
    other = admitted(guests, "b")
    first, second = (admitted(guests, "a") for _ in range(2))
    third = admitted(guests, "a", known=True, served=True)
    assert gone(first) and not gone(second) and not gone(other)
    fourth = admitted(guests, "a", known=True, served=True)
    assert gone(second)
    assert guests.admit("a") is None and guests.admit("b") is not None
    assert not gone(third) and not gone(fourth)


async def test_who_leaves_most_unread_goes() -> None:
    guests = Guests(unread_max=100)
    small, large, other = (admitted(guests, origin) for origin in "abc")
    with guests.sending(small, 10), guests.sending(large, 80):
        with guests.sending(other, 10):
            assert not gone(large)
        with guests.sending(other, 90):
            assert gone(large) and not gone(small)
        with guests.sending(other, 1000):  # nobody else can be blamed
            assert gone(small) and not gone(other)
    with guests.sending(other, 100), guests.sending(admitted(guests, "d"), 0):
        assert not gone(other)


async def test_a_connection_of_a_proxy_counts_for_whom_it_serves() -> None:
    guests = Guests(most=10, of_address=2)
    proxied = [admitted(guests, "") for _ in range(4)]  # a proxy has no share of its own
    assert guests.serves(proxied[0], "a") and guests.serves(proxied[1], "a") and guests.serves(proxied[2], "b")
    assert guests.serves(proxied[3], "a")
    assert gone(proxied[0]) and not gone(proxied[1]) and not gone(proxied[2])
    for guest in (proxied[1], proxied[3]):
        guest.known = guest.served = True
    assert not guests.serves(proxied[2], "a") and guests.admit("a") is None
    assert guests.serves(proxied[1], "c") and guests.serves(proxied[2], "a")
    guests.leave(proxied[1])
    guests.leave(proxied[2])
    assert guests.serves(proxied[2], "d")  # it has gone: nothing is counted
    assert guests.admit("a") is not None
