"""Brokers as processes around etcd, with TLS between them: whom they believe is read by SIGHUP."""

import os
import signal
from pathlib import Path

import pytest
import trustme

import tailrace.sync
from tailrace.bench.processes import free_ports
from tests.broker.brokers import Broker, Start
from tests.broker.certified import certified
from tests.etcd_process import etcd_cluster, needs_etcd

pytestmark = [needs_etcd, pytest.mark.slow]


def begin(run: Start, folder: Path, name: str, etcd: str) -> Broker:
    settings = {
        **{"broker.id": name, "cluster.metadata": "etcd", "cluster.etcd": etcd, "http.bind": ""},
        **{"cluster.peer_listener": "peer", "cluster.peer_ca": str(folder / f"{name}.pem")},
        **{"listeners.peer.tls": "true", "listeners.peer.bind": f"127.0.0.1:{free_ports(1)[0]}"},
        **{"listeners.client.bind": "127.0.0.1:0", "topic.segment_size": "4MiB"},
        "security.tls_cert": str(folder / "cert.pem"),
        "security.tls_key": str(folder / "key.pem"),
    }
    options = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    return run("-O", "json", "serve", "--data", name, *options)


def test_a_follower_copies_when_it_was_told_whom_to_believe(run: Start, tmp_path: Path) -> None:
    authority, value = trustme.CA(), os.urandom(700_000)
    certified(tmp_path, authority, "127.0.0.1")
    for name in ("n1", "n2"):
        trustme.CA().cert_pem.write_to_path(str(tmp_path / f"{name}.pem"))
    with etcd_cluster(tmp_path) as etcd:
        brokers = {name: begin(run, tmp_path, name, etcd.urls[0]) for name in ("n1", "n2")}
        urls = [one.ready()["url"] for one in brokers.values()]
        with tailrace.sync.connect(urls[0]) as client, client.producer() as producer:
            client.admin.create_topic("orders", replicas=2, config={"min_isr": 2})
            leader = client.admin.describe_topic("orders").partition_list[0].leader
            assert leader is not None
            follower = brokers["n2" if leader == "n1" else "n1"]
            said = follower.wait_logged("peer.unreachable")
            assert (said["level"], said["code"], said["peer"]) == ("warning", "T001", leader)
            assert "certificate refused: " in said["message"]
            assert "Set cluster.peer_ca" in said["message"]

            for name in brokers:
                (tmp_path / f"{name}.pem").write_text("nothing")
            follower.process.send_signal(signal.SIGHUP)
            refused = follower.wait_logged("config.refused")
            assert refused["code"] == "T082"
            assert ".pem: no certificates" in refused["message"]

            for name, broker in brokers.items():
                authority.cert_pem.write_to_path(str(tmp_path / f"{name}.pem"))
                broker.process.send_signal(signal.SIGHUP)
            assert follower.wait_logged("peer.reachable")["level"] == "info"
            producer.send("orders", value)  # acknowledged by both
            partition = client.admin.describe_topic("orders").partition_list[0]
            assert sorted(partition.isr) == ["n1", "n2"]
        assert len(follower.lines("peer.unreachable")) == 1
        assert len(follower.lines("config.refused")) == 1
        assert sum(value in one.read_bytes() for one in tmp_path.glob("n?/topics/*/*.log")) == 2
