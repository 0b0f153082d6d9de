"""Who gets in, and how much memory requests may take."""

from tailrace.broker.limits import (
    GREETING_MAX,
    NEW_PER_IP_PER_S,
    Admission,
    MemoryBudget,
    is_loopback,
)


def enter(admission: Admission, ip: str, now: float = 0.0) -> tuple[str, int] | None:
    refused = admission.admit(ip, now)
    if refused is None:
        admission.greeted()
    return refused


def test_connections_are_counted_in_and_out() -> None:
    admission = Admission(connections_max=2, per_ip_max=10)
    assert enter(admission, "10.0.0.1") is None
    assert enter(admission, "10.0.0.2") is None
    assert enter(admission, "10.0.0.3") == ("connections", 2)
    admission.leave("10.0.0.1")
    assert enter(admission, "10.0.0.3") is None


def test_one_address_has_a_limit_of_its_own_but_loopback_has_not() -> None:
    admission = Admission(connections_max=100, per_ip_max=2)
    assert [enter(admission, "10.0.0.1", now) for now in (0, 1, 2)] == [
        None,
        None,
        ("connections_per_ip", 2),
    ]
    assert enter(admission, "10.0.0.2") is None
    for ip in ("127.0.0.1", "::1", "::ffff:127.0.0.1"):
        assert [enter(admission, ip) for _ in range(5)] == [None] * 5


def test_new_connections_per_second_are_limited_per_address() -> None:
    admission = Admission(connections_max=10_000, per_ip_max=10_000)
    for _ in range(NEW_PER_IP_PER_S):
        assert enter(admission, "10.0.0.1", 5.0) is None
    assert enter(admission, "10.0.0.1", 5.9) is not None
    assert enter(admission, "10.0.0.1", 6.1) is None


def test_connections_without_hello_are_limited_in_all() -> None:
    admission = Admission(connections_max=10_000, per_ip_max=10_000)
    for _ in range(GREETING_MAX):
        assert admission.admit("127.0.0.1", 0.0) is None
    assert admission.admit("127.0.0.1", 0.0) is not None
    admission.greeted()
    assert admission.admit("127.0.0.1", 0.0) is None


def test_addresses_that_left_are_forgotten_when_there_are_many() -> None:
    admission = Admission(connections_max=10, per_ip_max=10)
    for number in range(100):
        ip = f"10.0.0.{number}"
        assert enter(admission, ip, float(number)) is None
        admission.leave(ip)
    assert len(admission._addresses) <= 11  # pyright: ignore[reportPrivateUsage]


def test_loopback() -> None:
    assert is_loopback("127.8.9.1")
    assert not is_loopback("10.1.1.1")
    assert not is_loopback("n1")  # a host of the simulation


def test_memory_is_granted_first_come_first_served() -> None:
    budget = MemoryBudget(100)
    granted: list[str] = []
    assert budget.reserve(60)
    assert not budget.reserve(60)
    budget.wait(60, lambda: granted.append("large"))
    budget.wait(10, lambda: granted.append("small"))
    assert not budget.reserve(10)  # it would fit, but others wait
    assert granted == []
    budget.give(60)
    assert granted == ["large", "small"]
    assert budget.used_bytes == 70


def test_one_request_larger_than_the_budget_gets_in_alone() -> None:
    budget = MemoryBudget(100)
    assert budget.reserve(500)
    assert not budget.reserve(1)
    budget.give(500)
    assert budget.reserve(1)


def test_giving_up_lets_the_next_one_in() -> None:
    budget = MemoryBudget(100)
    granted: list[str] = []
    assert budget.reserve(50)
    give_up = budget.wait(80, lambda: granted.append("first"))
    budget.wait(40, lambda: granted.append("second"))
    assert give_up() is False
    assert granted == ["second"]
    late = budget.wait(20, lambda: granted.append("third"))
    budget.give(50)
    assert late() is True  # it came too late: the room is the caller's to give back
    assert granted == ["second", "third"]


def test_while_the_budget_is_overdrawn_nobody_reads() -> None:
    budget = MemoryBudget(100)
    budget.charge(150)
    assert not budget.reserve(0)
    budget.give(60)
    assert budget.reserve(0)


def test_an_unlimited_budget_grants_everything() -> None:
    budget = MemoryBudget(None)
    budget.charge(1 << 40)
    assert budget.reserve(1 << 40)
