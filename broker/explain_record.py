"""Why a record can be read or not (pure). Verdicts:

``readable``, ``beyond_end``, ``not_committed``, ``expired``, ``compacted``, ``erased``; for a
group also ``waiting`` and ``committed``; and two for what is none of these: ``damaged`` (there, but
not to be read) and ``offline`` (nothing is known of it).

What is not known is said: the log keeps no key of a record that is gone, a receipt neither keys nor
positions, and what moved the log start only as long as the broker runs.
"""

from dataclasses import dataclass

from tailrace.broker.explain import Damage, MoveCause, Reading, Uncommitted, facts, standing_facts
from tailrace.protocol import texts_explain as texts, texts_explain_group as group_texts
from tailrace.protocol.shapes import Explanation, Fact
from tailrace.protocol.texts import record_name


@dataclass(frozen=True, slots=True)
class ErasureFacts:
    """An erasure of the topic that reaches as far as the record."""

    receipt: str  # its id, UUID text
    records: int  # that it found in the partition
    pending: bool
    names: bool  # it is stored that it names the record
    fits: bool  # its fingerprint is that of a request for this record alone


@dataclass(frozen=True, slots=True)
class RecordFound:
    """The record itself."""

    append_time: int  # ms since the epoch
    size_bytes: int  # of its batch
    batch_first: int  # its batch's first and last offset
    batch_last: int


@dataclass(frozen=True, slots=True)
class RecordFacts:
    """All that is known of one offset."""

    topic: str
    partition: int
    offset: int
    log_start: int = 0
    high_watermark: int = 0
    log_end: int = 0
    offline: str = ""  # why
    unreadable: str = ""  # why its file cannot be read
    undecodable: str = ""  # why its batch cannot be decoded
    damage: Damage | None = None
    found: RecordFound | None = None  # None: a gap, or not looked for
    moved: MoveCause | None = None  # what moved the log start past it, if that is known
    retention: str | None = None  # what it keeps, as set; None: everything
    may_drop: bool = False  # where room is short
    cleanup: str = "delete"
    compacted_below: int = 0  # compaction came so far, once
    ever_compacted: bool = False
    erasures: tuple[ErasureFacts, ...] = ()
    uncommitted: Uncommitted | None = None
    reading: Reading | None = None


Judgement = tuple[str, list[str], str | None]  # verdict, sentences, next


def explain_record(known: RecordFacts) -> Explanation:
    """The whole of it."""
    verdict, sentences, following = _judge(known)
    reading = known.reading
    if reading is not None and reading.standing is None:
        sentences.append(texts.reads_not(reading.group, known.topic))
    elif reading is not None and verdict == "readable":
        verdict, following = _for_group(known, reading, sentences)
    return Explanation(
        target=record_name(known.topic, known.partition, known.offset),
        kind="record",
        verdict=verdict,
        summary=" ".join(sentences),
        facts=_facts(known),
        next=following,
    )


def _judge(known: RecordFacts) -> Judgement:
    where = (known.topic, known.partition)
    if known.offline:
        return "offline", [texts.offline(*where, known.offline)], texts.HEALTH
    if known.offset < known.log_start:
        return _expired(known)
    if known.offset >= known.log_end:
        text = texts.beyond_end(*where, known.offset, known.log_end)
        return "beyond_end", [text], texts.last_record(*where)
    if known.offset >= known.high_watermark:
        sentences = [texts.not_committed(*where, known.high_watermark, known.log_end)]
        if known.uncommitted is not None:
            waits = texts.waits_for_sync(known.uncommitted.sync_s, known.uncommitted.batches)
            sentences.append(waits)
        return "not_committed", sentences, texts.DOCTOR
    if known.damage is not None:
        one = known.damage
        range_ = (one.first_offset, one.next_offset)
        text = texts.damaged(one.file, one.position, *range_, one.reason)
        return "damaged", [text], _behind_damage(known, one.next_offset)
    if known.unreadable:
        return "damaged", [texts.unreadable_file(known.unreadable)], texts.DOCTOR
    if known.undecodable:
        text = texts.undecodable(known.undecodable)
        return "damaged", [text], _behind(known, known.offset + 1)
    if known.found is None:
        return _gap(known)
    sentences = [texts.readable(*where, known.log_start, known.high_watermark)]
    sentences += [texts.soon_erased(one.receipt) for one in known.erasures if _takes(one)]
    return "readable", sentences, texts.cat(*where, known.offset)


def _takes(one: ErasureFacts) -> bool:
    return one.pending and one.names


def _expired(known: RecordFacts) -> Judgement:
    sentences = [texts.log_starts(known.topic, known.partition, known.log_start)]
    if known.moved == "deleted":
        sentences.append(texts.removed_by_command())
    elif known.moved == "expired_or_dropped":
        sentences.append(texts.removed_for_room(known.retention))
    elif known.moved == "expired":
        sentences.append(texts.removed_by_retention(known.retention))
    else:
        sentences.append(texts.removed_somehow(known.retention, may_drop=known.may_drop))
    following = _behind(known, known.log_start)
    reading, where = known.reading, (known.topic, known.partition)
    one = None if reading is None else reading.standing
    if reading is not None and one is not None and 0 <= one.position < known.log_start:
        owned = one.owner is not None
        lost = group_texts.lost_records(
            *(reading.group, *where),
            one.position,
            known.log_start,
            retention=one.retention,
            owned=owned,
        )
        sentences.append(lost)
        following = texts.reset(reading.group, *where, "start")
        if owned:  # refused while there are members: first, who they are
            following = texts.describe_group(reading.group)
    return "expired", sentences, following


def _gap(known: RecordFacts) -> Judgement:
    """The offset was given out and has no record any more."""
    following = _behind(known, known.offset + 1)
    for certain in (True, False):
        for one in known.erasures:
            if one.names if certain else one.fits:
                return "erased", [texts.erased_by(one.receipt, certain=certain)], following
    receipts = [one.receipt for one in known.erasures if one.records]
    if not known.ever_compacted:
        return "erased", [texts.erased_by_one_of(receipts)], following
    if receipts and known.offset >= known.compacted_below:
        return "erased", [texts.erased_or_compacted(receipts)], following
    sentences = [texts.compacted(known.offset)]
    if receipts:
        sentences.append(texts.perhaps_erased(receipts))
    return "compacted", sentences, following


def _behind(known: RecordFacts, offset: int) -> str | None:
    """Read on there, if there may be something."""
    if offset >= known.high_watermark:
        return texts.last_record(known.topic, known.partition)
    return texts.read_on(known.topic, known.partition, offset)


def _behind_damage(known: RecordFacts, offset: int) -> str | None:
    """A group that stands before the damage is led past it."""
    reading = known.reading
    one = None if reading is None else reading.standing
    if reading is not None and one is not None and one.damaged and one.owner is None:
        return texts.reset(reading.group, known.topic, known.partition, offset)
    return _behind(known, offset)


def _for_group(
    known: RecordFacts, reading: Reading, sentences: list[str]
) -> tuple[str, str | None]:
    """Whether a group has come to a record that can be read."""
    one = reading.standing
    assert one is not None
    if one.committed is not None and one.committed > known.offset:
        sentences.append(texts.has_committed(reading.group, one.committed))
        return "committed", texts.cat(known.topic, known.partition, known.offset)
    before = known.offset - max(one.position, known.log_start)
    sentences.append(texts.has_not_come(reading.group, one.committed, before))
    return "waiting", texts.explain_group(reading.group)


def _facts(known: RecordFacts) -> list[Fact]:
    damage, found, pending = known.damage, known.found, known.uncommitted
    online = not known.offline
    return [
        *facts(
            offset=known.offset,
            offline=known.offline,
            log_start=known.log_start if online else None,
            high_watermark=known.high_watermark if online else None,
            log_end=known.log_end if online else None,
            append_time=None if found is None else found.append_time,
            batch_first_offset=None if found is None else found.batch_first,
            batch_last_offset=None if found is None else found.batch_last,
            batch_size_bytes=None if found is None else found.size_bytes,
            log_start_moved_by=known.moved,
            cleanup=known.cleanup,
            retention=known.retention,
            compacted_below=known.compacted_below if known.ever_compacted else None,
            erasures=[one.receipt for one in known.erasures],
            waiting_batches=None if pending is None else pending.batches,
            sync_seconds=None if pending is None else pending.sync_s,
            damaged_file=None if damage is None else damage.file,
            damaged_position=None if damage is None else damage.position,
            damaged_first_offset=None if damage is None else damage.first_offset,
            damaged_next_offset=None if damage is None else damage.next_offset,
            reason=known.undecodable or known.unreadable or (damage.reason if damage else None),
        ),
        *standing_facts(known.reading),
    ]
