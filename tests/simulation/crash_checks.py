"""What must hold of a log that was recovered, whatever the crash left (S32, S28, S10, S15)."""

from tailrace.protocol.errors import TailraceError
from tailrace.simulation.disk import Platter, SimDisk
from tailrace.simulation.life import Life
from tailrace.storage.log import Appended, Log
from tailrace.storage.producers import WINDOW
from tests.simulation.crash_model import (
    Model,
    Record,
    Sent,
    drop_all,
    keep_all,
    next_sequence,
    open_in_group,
    open_log,
    records_of,
    remove_log,
)

STRANGER = 99  # a producer that only this check uses


def check_recovered(platter: Platter, model: Model) -> None:
    """A new process finds what the model allows, finds it again, and goes on from there."""
    for clean in model.clean:
        copy = platter.crashed(keep_all)
        if model.removing:
            remove_log(SimDisk(copy, Life("remover")))
        log = open_log(SimDisk(copy, Life("next")), clean=clean)
        check_log(log, model)
        told = answers(log, model)  # begins an epoch where there was none
        found = log.start, log.end, records_of(log), list(log.epochs)
        second = copy.crashed(drop_all)  # what recovery found is durable
        again = open_in_group(SimDisk(second, Life("third")))
        assert told == answers(again, model)
        assert found == (again.start, again.end, records_of(again), list(again.epochs)), (
            "recovering again gives something else"
        )
        go_on(second, again, model)


def check_log(log: Log, model: Model) -> None:
    """S32, S28, S10: a prefix of what was written with all that was synced, nothing else."""
    assert not log.quarantined, log.quarantined
    assert log.end >= model.floor, f"synced up to {model.floor}, recovered up to {log.end}"
    assert log.end in {model.starts[0], *(one.next for one in model.sent), model.floor}, log.end
    assert log.start in model.starts, f"the log starts at {log.start}, not at {model.starts}"
    found = records_of(log)
    wanted = [model.expected(log.start, log.end, gone) for gone in model.gone]
    assert found in wanted, f"found {short(found)}, wanted one of {[short(one) for one in wanted]}"
    known = {entry.epoch: entry.start_offset for entry in log.epochs}
    newest = max((start for start in model.epochs.values() if start <= log.end), default=-1)
    for epoch, start in model.epochs.items():
        if start == newest:  # one that ended where it began leaves no entry behind the next
            same = [other for other, at in known.items() if at == start and other >= epoch]
            assert same, f"epoch {epoch} began at {start}, recovered: {known}"


def answers(log: Log, model: Model) -> list[object]:
    """S15: what each producer is told when it sends its last batches again, or skips one."""
    told: list[object] = []
    for producer in sorted(model.producers):
        sent = model.of(producer, log.end)
        for one in sent[-WINDOW:]:
            [again] = log.append([one.encoded()], leader_epoch=latest(log), now_ms=2000)
            assert isinstance(again, Appended), f"producer {producer} at {one.base}: {again}"
            assert (again.base_offset, again.next_offset) == (one.base, one.next), "S15"
            assert again.duplicate, "S15"
        gap = Sent(0, ((None, b"gap"),), producer, next_sequence(sent) + 1)
        [refused] = log.append([gap.encoded()], leader_epoch=latest(log), now_ms=2000)
        assert isinstance(refused, TailraceError), "a gap was accepted (S15)"
        assert refused.code == ("T038" if sent else "T039"), refused
        told.append((producer, len(sent), refused.code))
    return told


def go_on(platter: Platter, log: Log, model: Model) -> None:
    """Appending goes on where the log ends, and is as durable as ever."""
    before, expected = records_of(log), list[Sent]()
    sent = {producer: model.of(producer, log.end) for producer in model.producers}
    for producer in (*sorted(sent), STRANGER):
        sequence = next_sequence(sent.get(producer, []))
        one = Sent(log.end, ((None, b"on"), (b"k", b"and on")), producer, sequence)
        [result] = log.append([one.encoded()], leader_epoch=latest(log) + 1, now_ms=3000)
        assert isinstance(result, Appended), result
        assert result.base_offset == one.base
        assert not result.duplicate
        expected.append(one)
    log.sync()
    start, end = log.start, log.end
    after = open_log(SimDisk(platter.crashed(drop_all), Life("fourth")))
    assert (after.start, after.end) == (start, end), "what was synced after a recovery is gone"
    more = {at: record for one in expected for at, record in enumerate(one.records, one.base)}
    assert records_of(after) == {**before, **more}


def latest(log: Log) -> int:
    return max([0, *(entry.epoch for entry in log.epochs)])


def short(records: dict[int, Record]) -> str:
    """Which offsets these are, for texts."""
    return f"{sorted(records)}"
