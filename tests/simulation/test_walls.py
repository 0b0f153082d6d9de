"""Who cannot reach whom, of three and of five brokers."""

from random import Random

from tailrace.simulation.net import Wall
from tailrace.simulation.walls import bridge, by_chance, deaf, isolate, one_way, ring

THREE = ("a", "b", "c")
FIVE = ("a", "b", "c", "d", "e")


def blocked(wall: Wall, hosts: tuple[str, ...]) -> set[str]:
    return {x + y for x in hosts for y in hosts if x != y and wall(x, y)}


def test_two_sides() -> None:
    assert blocked(isolate(THREE, {"a"}), THREE) == {"ab", "ac", "ba", "ca"}
    assert blocked(bridge(THREE, {"a"}, "c"), THREE) == {"ab", "ba"}


def test_a_ring() -> None:
    assert blocked(ring(THREE), THREE) == {"ac", "ba", "cb"}
    assert "ac" in blocked(ring(FIVE), FIVE)
    assert not {"ab", "ae", "ba", "ea"} & blocked(ring(FIVE), FIVE)


def test_one_direction() -> None:
    assert blocked(one_way(THREE, "a"), THREE) == {"ab", "ac"}
    assert blocked(deaf(THREE, "a"), THREE) == {"ba", "ca"}


def test_clients_reach_all_or_stand_beside_one() -> None:
    wall = isolate(THREE, {"a"})
    assert not wall("client", "a")
    beside = by_chance(Random(1), THREE)
    wall = isolate(THREE, {"a"}, beside)
    for client in ("c1", "c2", "c3", "c4", "c5"):
        assert [wall(client, one) for one in THREE] == [wall(one, client) for one in THREE]
        assert wall(client, "b") == wall(client, "c") != wall(client, "a")
