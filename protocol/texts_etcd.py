"""The texts of a metadata store on etcd: T100 of one request, T082 of its files.

Rules as in ``texts.py``. None of them shows a password or a token.
"""

from collections.abc import Sequence

from tailrace.protocol import errors
from tailrace.protocol.texts import shown


def failed(
    found: Sequence[tuple[str, str]], *, unknown: bool = False
) -> errors.MetadataUnavailable:
    """T100 for one request. ``found``: each address that was tried, and what happened there.

    ``unknown``: it was sent, and may have been applied.
    """
    [(url, reason), *others] = found
    also = "".join(f"; {shown(other)}: {shown(what)}" for other, what in others)
    left_open = "; whether the change was made is not known" if unknown else ""
    return errors.MetadataUnavailable(
        "T100",
        f"metadata store {shown(url)} failed: {shown(reason)}{also}{left_open}",
        f"Check etcd: etcdctl --endpoints={shown(url)} endpoint status",
        url=url,
    )


def no_space(url: str) -> errors.MetadataUnavailable:
    """T100: the alarm NOSPACE is on; etcd reads, and takes nothing new."""
    return errors.MetadataUnavailable(
        "T100",
        f"metadata store {shown(url)} is read-only: its database is full (alarm NOSPACE)",
        "Make room (etcdctl compact, etcdctl defrag), then: etcdctl alarm disarm",
        url=url,
    )


def refused_user(url: str, *, user: str, reason: str) -> errors.MetadataUnavailable:
    """T100: etcd did not accept name and password."""
    return errors.MetadataUnavailable(
        "T100",
        f"metadata store {shown(url)} refused user '{shown(user)}': {shown(reason)}",
        "Check cluster.etcd_user and what is in cluster.etcd_password_file.",
        url=url,
    )


def went_back(url: str, *, seen: int, found: int) -> errors.MetadataUnavailable:
    """T100: etcd forgot what it had said, as after a restore of an older snapshot."""
    return errors.MetadataUnavailable(
        "T100",
        f"metadata store {shown(url)} went back in time: revision {found} after {seen}",
        "If it was restored from a snapshot, restart every broker of the cluster.",
        url=url,
    )
