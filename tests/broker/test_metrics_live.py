"""What a broker counts while it is used; one scrape of the real thing."""

import shutil
from pathlib import Path

from tailrace.broker.server import Server
from tailrace.protocol.messages import DeleteTopicRequest, DeleteTopicResponse
from tests.broker.harness import connected, fetch_request, run, serving
from tests.broker.scraping import text_of


def scrape(server: Server) -> dict[str, float]:
    lines = text_of(server.metrics, detailed=True).decode().splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name.removeprefix("tailrace_"): float(value) for name, value in pairs}


def test_use_shows_in_the_metrics(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as (server, ready), connected(ready) as client:
            topic_id = await client.create("orders")
            await client.produce(topic_id, [b"a", b"b"])  # with event times of 2025
            await client.produce(topic_id, [b"c"], acks=1)
            await client.fetch(topic_id)
            found = scrape(server)
            orders = '{topic="orders"}'
            assert found[f"topic_records_in_total{orders}"] == 3
            assert found[f"topic_bytes_in_total{orders}"] > 170
            assert found[f"topic_bytes_out_total{orders}"] > 85
            assert found[f"topic_size_bytes{orders}"] > 170
            assert found[f"old_timestamps_total{orders}"] == 2
            assert found['weak_acks_total{acks="1",topic="orders"}'] == 1
            assert found['requests_total{api="produce",code="ok"}'] == 2
            assert found['request_duration_seconds_count{api="fetch"}'] == 1
            assert found['connections{listener="client"}'] == 1
            assert found['received_bytes_total{listener="client"}'] > 0
            assert found['sent_bytes_total{listener="client"}'] > 85
            assert found["fsync_duration_seconds_count"] >= 1
            assert found["fsync_batches_sum"] >= 1
            assert found["append_duration_seconds_count"] == 2
            assert found["partitions"] == found["partitions_leader"] == 1
            assert found['partition_high_watermark{partition="0",topic="orders"}'] >= 2
            assert found['broker_state{state="running"}'] == 1
            assert found["requests_in_flight"] == found["request_memory_bytes"] == 0

    run(main)


def test_series_of_a_deleted_topic_disappear_from_a_running_broker(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as (server, ready), connected(ready) as client:
            await client.produce(await client.create("orders"), [b"a"])
            await client.ask(DeleteTopicRequest("orders"), DeleteTopicResponse)
            assert not [name for name in scrape(server) if "orders" in name]

    run(main)


def test_requests_in_hand_and_a_disk_without_room_show_in_the_metrics(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as (server, ready), connected(ready) as client:
            topic_id = await client.create("orders")
            await client.send(fetch_request(topic_id, wait_ms=20_000))
            await client.metadata()
            found = scrape(server)
            assert found["requests_in_flight"] == 1
            assert found["request_memory_bytes"] > 0
        async with serving(tmp_path, {"storage.min_free": "99%"}) as (server, ready):
            server.clean_now()
            found = scrape(server)
            assert found["disk_read_only"] == found['broker_state{state="read_only"}'] == 1
            assert found['broker_state{state="running"}'] == 0

    run(main)


def test_a_partition_that_could_not_be_opened_is_counted_as_offline(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as (_, ready), connected(ready) as client:
            await client.create("orders", partitions=2)
        shutil.rmtree(next((tmp_path / "data" / "topics").glob("*-1")))
        async with serving(tmp_path) as (server, _):
            found = scrape(server)
            assert (found["partitions"], found["partitions_leader"]) == (2, 1)
            assert found["partitions_offline"] == 1
            assert found["data_loss_possible_total"] == 1
            assert 'partition_log_end{partition="1",topic="orders"}' not in found

    run(main)
