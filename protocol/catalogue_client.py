"""The catalogue's rows for what the SDK and the CLI raise or log; see ``catalogue.py``."""

from tailrace.protocol import texts, texts_cli, texts_client, texts_group
from tailrace.protocol.errors import Notice, TailraceError

_LATE = texts.not_leader("orders", 2, broker="n1")
_SENT_LATE = texts_client.send_timeout(
    "orders", 2, elapsed_s=30, attempts=7, last_error=_LATE, maybe_written=True
)

CLIENT_ROWS: tuple[tuple[TailraceError | Notice, str, str], ...] = (
    (
        texts_client.no_broker([("127.0.0.1:7400", "connection refused")], elapsed_s=5),
        "None of the addresses accepted a connection within connect_timeout, or the connection a "
        "request was under way on was lost. With 'too many open files' or 'no thread' it is this "
        "process that has none left: each member of a group needs a connection and shares a thread "
        "for its heartbeats. A broker says it of another one, and with 'certificate refused' if it "
        "does not believe who is there.",
        "Start a broker (tailrace dev), or correct the URL or $TAILRACE_URL. Between brokers: "
        "mend what the text names (cluster.peer_ca, a certificate, listeners.NAME.advertise). If "
        "the process ran out: raise its limits (ulimit -n, ulimit -u), or make fewer clients.",
    ),
    (
        texts_client.host_unresolved("brokre", elapsed_s=0.1, similar="broker"),
        "The host name has no address.",
        "Correct it in the URL, or check DNS and /etc/hosts.",
    ),
    (
        texts_client.advertised_unreachable(
            "10.0.0.5:7400", broker="n1", advertised="n1:7400", reason="does not resolve"
        ),
        "The first address works, but the one the broker tells its clients does not from here: "
        "typical for containers and port forwarding.",
        "Set listeners.NAME.advertise to an address that clients can reach.",
    ),
    (
        texts_client.outage_over(
            "127.0.0.1:7400", reason="connection refused", outage_s=60, max_outage_s=60
        ),
        "The cluster stayed unreachable for max_outage, so the client gave up reconnecting.",
        "Bring a broker back, then connect again; max_outage=None waits for ever.",
    ),
    (
        texts_client.not_authorised("127.0.0.1:7480", reason="no token given"),
        "The HTTP API needs the token of http.token_file.",
        "Send the header Authorization: Bearer TOKEN.",
    ),
    (
        _SENT_LATE,
        "The record was not acknowledged within the producer's timeout, retries included. The "
        "text says whether it may still appear, at most once.",
        "Look at the last error; tailrace explain TOPIC:P. Sending again can make a duplicate "
        "only if it may have been written.",
    ),
    (
        texts_client.buffer_full("orders", size=1_000, buffered=67_108_000, limit=67_108_864),
        "enqueue_nowait found the producer's buffer full: records come faster than they leave.",
        "Await enqueue() or send(), which wait for room; or raise buffer_bytes.",
    ),
    (
        texts_client.send_many_failed(
            *("orders", None), failures={118: _SENT_LATE}, metadata=[None] * 200, maybe_written=True
        ),
        "Some records of a send_many failed; the others are durable.",
        "Send the indexes in e.failures again; e.metadata has the offsets of the others.",
    ),
    (
        texts_client.flush_failed(failed=3, first=_SENT_LATE),
        "Records were enqueued, nobody awaited their Delivery, and they failed.",
        "Await each Delivery to know which; send those again.",
    ),
    (
        texts_client.close_timeout(undelivered=12, waited_s=10, maybe_written=True),
        "The producer could not deliver everything within close_timeout.",
        "Await flush() before closing, or raise close_timeout.",
    ),
    (
        texts_client.request_timeout("metadata", address="127.0.0.1:7400", waited_s=10),
        "A broker accepted the request but did not answer within request_timeout, or wrote what it "
        "could not make durable in time. A request that changes something may have been done, "
        "unless it says that nothing was written.",
        "Look: tailrace cluster health; raise request_timeout (CLI: --timeout) if it is only slow.",
    ),
    (
        texts_group.partition_lost(
            {("orders", 2): 881}, group="billing", reason="member 'billing-b' joined"
        ),
        "A partition was reassigned before what had been processed was committed.",
        "Expect those records again at the other member; finish within rebalance_timeout.",
    ),
    (
        texts_client.loop_blocked(blocked_s=3.4, file="app.py", line=41, function="resize"),
        "Code without await ran for so long that nothing else could: heartbeats go on in their "
        "own thread, everything else waited.",
        "Move the work to a thread: await anyio.to_thread.run_sync(resize, image)",
    ),
    (
        texts_client.never_closed(file="app.py", line=12, undelivered=12),
        "A producer was dropped while records were waiting in its buffer.",
        "Use async with, or call aclose().",
    ),
    (
        texts_client.sync_inside_loop("asyncio"),
        "tailrace.sync blocks the thread, which would stop the event loop that runs there.",
        "Use the async API: tailrace.connect().",
    ),
    (
        texts_client.forked(created_pid=811, pid=812),
        "The client was made before a fork; sockets and tasks do not survive it.",
        "Create the client after the fork: gunicorn post_fork, celery worker_process_init.",
    ),
    (
        texts_client.wrong_thread("Producer", kind="event loop"),
        "An async client belongs to the event loop and thread it was opened in.",
        "Make one client per event loop, or use tailrace.sync, whose objects are thread-safe.",
    ),
    (
        texts_client.already_closed("Consumer"),
        "A call came after close, before open, or in a way the object is not used in.",
        "Keep the object inside its async with; one way of reading per consumer.",
    ),
    (
        texts_client.not_decodable(
            *("orders", 2, 881), codec="json", raw=b"\x82\xa1a\x01\xa1b\x02", guess="msgpack"
        ),
        "A stored record is not what the consumer's codec reads. The position stays on it.",
        "Look at it raw (tailrace cat T:P:O --decode hex), correct value=, or choose "
        "on_decode_error='skip' or 'dead_letter'.",
    ),
    (
        texts_client.not_encodable(
            "orders", part="value", codec="bytes", type_name="dict", reason="not bytes"
        ),
        "The producer's codec does not take a value of this type.",
        "Convert the value, or pass value='json' to client.producer().",
    ),
    (
        texts_cli.invalid_input("the field 'value' is missing", line=119),
        "A line of stdin or a file is not what the command reads, a file cannot be opened, or an "
        "HTTP request is not one of the API: its path, method, headers, parameters or body.",
        "Correct what the text names. Record JSON is described in docs/cli.md, HTTP requests by "
        "GET /api/v1/openapi.json.",
    ),
    (
        texts_group.subscription_mismatch(
            group="billing", member="billing-a", yours=["orders"], theirs=["orders", "refunds"]
        ),
        "The members of one group must subscribe to equal or nested sets of topics.",
        "Use another group name for another subscription.",
    ),
    (
        texts_group.member_idle(group="billing", member="billing-c", partitions=2, members=3),
        "A group has more members than its topics have partitions.",
        "Stop a member, or create the topic with more partitions.",
    ),
    (
        texts_group.at_the_end([("orders", 0, 1200)], group="billing", skipped=881),
        "A consumer has been at the end of the log for 10 s: it works, there is nothing to read.",
        "Nothing, unless older records were expected: start='earliest' or a group reset.",
    ),
    (
        texts_group.starting_at([("orders", 0, 0)], group="billing"),
        "A group reads for the first time and took the position that start= says.",
        "Nothing: this line tells where it began.",
    ),
    (
        texts_cli.needs_server("dev"),
        "The bare install has the SDK and the command line only.",
        "pip install 'tailrace[server]'",
    ),
    (
        texts_cli.later_command("queue"),
        "The name is reserved for a later release, so that nothing else takes it.",
        "Leave it out; the CHANGELOG says what has come.",
    ),
)
