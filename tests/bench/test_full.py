from tailrace.bench.full import STEPS, command_of, commit, options, round_of, what
from tests.simulation import sweep


def modules(number: int, first: int) -> set[tuple[str, str]]:
    return {(step.module, step.arguments) for step in round_of(STEPS, number, first)}


def test_what_a_target_asks_for_is_measured_in_each_round() -> None:
    left_out = modules(0, 0) - modules(1, 0)
    assert {module for module, _ in left_out} == {"connections", "many_groups", "streams"}
    assert ("connections", "--connections 100") in modules(1, 0)
    for module in ("raw", "clustered", "cold", "footprint", "maintenance", "latency", "limits"):
        assert (module, "") in modules(1, 0)
    assert ("growth", "--log {log}") in modules(1, 0)
    sizes = [words for module, words in modules(1, 0) if module == "streams"]
    assert sorted(words.split()[-1] for words in sizes) == ["100", "1024"]


def test_the_report_names_the_commit_and_each_peer_or_what_it_lacks() -> None:
    if (head := sweep.commit()) != "unknown":  # else there is no checkout
        assert commit().removesuffix("-dirty") == head
    assert commit() in what(peers=False)[0]
    told = [line.partition(":")[0] for line in what(peers=True)[2:]]
    assert told == ["redis", "nats", "rabbitmq", "kafka", "librdkafka-mock"]


def test_rounds_that_are_added_begin_with_all_there_is() -> None:
    assert modules(3, 3) == modules(0, 0)
    assert modules(4, 3) == modules(1, 0)


def test_a_kafka_that_runs_is_told_to_the_peers_alone() -> None:
    given = options(["--kafka", "10.0.0.1:9092"])
    for step in STEPS:
        words = command_of(step, 2, given)
        assert words[words.index("--round") + 1] == "2"
        assert ("--kafka" in words) is step.peer
        assert ("10.0.0.1:9092" in words) is step.peer


def test_how_large_a_log_grows_is_told_to_its_step() -> None:
    (step,) = [step for step in STEPS if step.name == "growth"]
    assert command_of(step, 0, options(["--log", "20GiB"]))[-2:] == ["--log", "20GiB"]
