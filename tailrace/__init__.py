"""tailrace: a log-based message broker for Python teams.

``connect`` is where to begin; the same without an event loop is ``tailrace.sync``. Names are
imported when they are first used: ``import tailrace`` alone loads no event loop and no codec.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

_here = Path(__file__).parent
if (_here / "broker").is_symlink():  # a checkout, not an install:
    __path__.insert(0, str(_here.parent))  # the rooms are the top-level folders

from tailrace.protocol.version import VERSION  # noqa: E402 - only now can it be found

if TYPE_CHECKING:
    from tailrace import sync as sync
    from tailrace.client.admin import (
        Admin as Admin,
    )
    from tailrace.client.client import (
        Client as Client,
        connect as connect,
    )
    from tailrace.client.codecs import (
        Codec as Codec,
        CodecSpec as CodecSpec,
    )
    from tailrace.client.consumer import (
        Consumer as Consumer,
        PartitionStream as PartitionStream,
    )
    from tailrace.client.delivery import (
        Delivery as Delivery,
    )
    from tailrace.client.policy import (
        ErrorPolicy as ErrorPolicy,
        retry as retry,
    )
    from tailrace.client.producer import (
        Producer as Producer,
    )
    from tailrace.client.records import (
        Acks as Acks,
        At as At,
        Batch as Batch,
        ConfigValue as ConfigValue,
        Headers as Headers,
        Record as Record,
        RecordMetadata as RecordMetadata,
    )
    from tailrace.client.shapes import (
        ClientHealth as ClientHealth,
        ConsumerHealth as ConsumerHealth,
        Event as Event,
        ProducerHealth as ProducerHealth,
    )
    from tailrace.protocol.errors import (
        AuthError as AuthError,
        BatchRefused as BatchRefused,
        BrokerError as BrokerError,
        BufferFull as BufferFull,
        CloseTimeout as CloseTimeout,
        CodecError as CodecError,
        ConfigError as ConfigError,
        ConnectError as ConnectError,
        ConsumeError as ConsumeError,
        CorruptBatch as CorruptBatch,
        DecodeError as DecodeError,
        EncodeError as EncodeError,
        FlushError as FlushError,
        ForkedClientError as ForkedClientError,
        GroupConfigMismatch as GroupConfigMismatch,
        GroupFenced as GroupFenced,
        GroupNotEmpty as GroupNotEmpty,
        GroupNotFound as GroupNotFound,
        InputError as InputError,
        InvalidName as InvalidName,
        InvalidTimestamp as InvalidTimestamp,
        MetadataUnavailable as MetadataUnavailable,
        NotEnoughReplicas as NotEnoughReplicas,
        NotFound as NotFound,
        OffsetOutOfRange as OffsetOutOfRange,
        PartitionLost as PartitionLost,
        PartitionNotFound as PartitionNotFound,
        PartitionOffline as PartitionOffline,
        ProduceError as ProduceError,
        RecordTooLarge as RecordTooLarge,
        RequestTimeout as RequestTimeout,
        SendManyError as SendManyError,
        SendTimeout as SendTimeout,
        StorageFull as StorageFull,
        TailraceError as TailraceError,
        TopicExists as TopicExists,
        TopicNotFound as TopicNotFound,
        UsageError as UsageError,
        VersionMismatch as VersionMismatch,
    )
    from tailrace.protocol.shapes import (
        BrokerInfo as BrokerInfo,
        ClusterInfo as ClusterInfo,
        CompactionInfo as CompactionInfo,
        ConfigEntry as ConfigEntry,
        ErasureReceipt as ErasureReceipt,
        GroupDetail as GroupDetail,
        GroupInfo as GroupInfo,
        GroupLag as GroupLag,
        MemberInfo as MemberInfo,
        OffsetChange as OffsetChange,
        PartitionInfo as PartitionInfo,
        PartitionLag as PartitionLag,
        TopicDetail as TopicDetail,
        TopicInfo as TopicInfo,
        TopicPartition as TopicPartition,
    )
    from tailrace.protocol.shapes_cluster import (
        DrainStatus as DrainStatus,
        LeaderChange as LeaderChange,
        ReplicaMove as ReplicaMove,
    )

__version__ = VERSION
__all__ = [
    "Acks",
    "Admin",
    "At",
    "AuthError",
    "Batch",
    "BatchRefused",
    "BrokerError",
    "BrokerInfo",
    "BufferFull",
    "Client",
    "ClientHealth",
    "CloseTimeout",
    "ClusterInfo",
    "Codec",
    "CodecError",
    "CodecSpec",
    "CompactionInfo",
    "ConfigEntry",
    "ConfigError",
    "ConfigValue",
    "ConnectError",
    "ConsumeError",
    "Consumer",
    "ConsumerHealth",
    "CorruptBatch",
    "DecodeError",
    "Delivery",
    "DrainStatus",
    "EncodeError",
    "ErasureReceipt",
    "ErrorPolicy",
    "Event",
    "FlushError",
    "ForkedClientError",
    "GroupConfigMismatch",
    "GroupDetail",
    "GroupFenced",
    "GroupInfo",
    "GroupLag",
    "GroupNotEmpty",
    "GroupNotFound",
    "Headers",
    "InputError",
    "InvalidName",
    "InvalidTimestamp",
    "LeaderChange",
    "MemberInfo",
    "MetadataUnavailable",
    "NotEnoughReplicas",
    "NotFound",
    "OffsetChange",
    "OffsetOutOfRange",
    "PartitionInfo",
    "PartitionLag",
    "PartitionLost",
    "PartitionNotFound",
    "PartitionOffline",
    "PartitionStream",
    "ProduceError",
    "Producer",
    "ProducerHealth",
    "Record",
    "RecordMetadata",
    "RecordTooLarge",
    "ReplicaMove",
    "RequestTimeout",
    "SendManyError",
    "SendTimeout",
    "StorageFull",
    "TailraceError",
    "TopicDetail",
    "TopicExists",
    "TopicInfo",
    "TopicNotFound",
    "TopicPartition",
    "UsageError",
    "VersionMismatch",
    "__version__",
    "connect",
    "retry",
    "sync",
]

_HOME = {
    "tailrace.client.admin": "Admin",
    "tailrace.client.client": "Client connect",
    "tailrace.client.codecs": "Codec CodecSpec",
    "tailrace.client.consumer": "Consumer PartitionStream",
    "tailrace.client.delivery": "Delivery",
    "tailrace.client.policy": "ErrorPolicy retry",
    "tailrace.client.producer": "Producer",
    "tailrace.client.records": ("Acks At Batch ConfigValue Headers Record RecordMetadata"),
    "tailrace.client.shapes": "ClientHealth ConsumerHealth Event ProducerHealth",
    "tailrace.protocol.errors": (
        "AuthError BatchRefused BrokerError BufferFull CloseTimeout CodecError "
        "ConfigError ConnectError ConsumeError CorruptBatch DecodeError EncodeError "
        "FlushError ForkedClientError GroupConfigMismatch GroupFenced GroupNotEmpty "
        "GroupNotFound InputError InvalidName InvalidTimestamp MetadataUnavailable "
        "NotEnoughReplicas NotFound OffsetOutOfRange PartitionLost PartitionNotFound "
        "PartitionOffline ProduceError RecordTooLarge RequestTimeout SendManyError "
        "SendTimeout StorageFull TailraceError TopicExists TopicNotFound UsageError "
        "VersionMismatch"
    ),
    "tailrace.protocol.shapes": (
        "BrokerInfo ClusterInfo CompactionInfo ConfigEntry ErasureReceipt GroupDetail GroupInfo "
        "GroupLag MemberInfo OffsetChange PartitionInfo PartitionLag TopicDetail TopicInfo "
        "TopicPartition"
    ),
    "tailrace.protocol.shapes_cluster": "DrainStatus LeaderChange ReplicaMove",
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names.split()}
_PACKAGES = ("sync", "testing")


if not TYPE_CHECKING:  # or every misspelt name would have the type object

    def __getattr__(name: str) -> object:
        """PEP 562: import a public name when it is first asked for."""
        if name in _PACKAGES:
            return import_module(f"tailrace.{name}")
        module = _MODULE_OF.get(name)
        if module is None:
            raise AttributeError(f"module 'tailrace' has no attribute {name!r}")
        found = getattr(import_module(module), name)
        globals()[name] = found
        return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
