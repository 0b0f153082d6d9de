"""TLS contexts and the HTTP token."""

import ssl
from pathlib import Path

import pytest
import trustme

from tailrace.broker.config import SecurityConfig
from tailrace.broker.security import read_token, server_context
from tailrace.protocol.errors import ConfigError


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    issued, other = authority.issue_cert("localhost"), authority.issue_cert("elsewhere")
    paths = {name: str(folder / f"{name}.pem") for name in ("ca", "cert", "key", "other")}
    authority.cert_pem.write_to_path(paths["ca"])
    for blob in issued.cert_chain_pems:
        blob.write_to_path(paths["cert"], append=True)
    issued.private_key_pem.write_to_path(paths["key"])
    other.private_key_pem.write_to_path(paths["other"])
    return paths


def test_handshake_is_tls_1_2_or_newer(files: dict[str, str]) -> None:
    context = server_context(SecurityConfig(False, files["cert"], files["key"]))
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.options & ssl.OP_NO_COMPRESSION
    assert context.options & ssl.OP_NO_RENEGOTIATION
    trusting = ssl.create_default_context(cafile=files["ca"])
    assert handshake(context, trusting) == "TLSv1.3"
    old = ssl.create_default_context(cafile=files["ca"])
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    assert handshake(context, old) == "TLSv1.2"


def handshake(server: ssl.SSLContext, client: ssl.SSLContext) -> str | None:
    """Join both in memory; the version they agreed on."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [
        client.wrap_bio(to_client, to_server, server_hostname="localhost"),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    for _ in range(4):
        for side in sides:
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    return sides[0].version()


def test_missing_files_are_named(files: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"T082: /nowhere/c\.pem cannot be read: No such file"):
        server_context(SecurityConfig(False, "/nowhere/c.pem", files["key"]))
    with pytest.raises(ConfigError, match=r"T082: /nowhere/k\.pem cannot be read: No such file"):
        server_context(SecurityConfig(False, files["cert"], "/nowhere/k.pem"))


def test_key_of_another_certificate_is_refused(files: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"T082: .*no certificate chain that goes with"):
        server_context(SecurityConfig(False, files["cert"], files["other"]))


def test_encrypted_key_is_refused_instead_of_asking_on_the_terminal(
    files: dict[str, str], tmp_path: Path
) -> None:
    from cryptography.hazmat.primitives import serialization

    key = serialization.load_pem_private_key(Path(files["key"]).read_bytes(), None)
    encrypted = tmp_path / "encrypted.pem"
    encrypted.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    with pytest.raises(ConfigError, match="unencrypted private key"):
        server_context(SecurityConfig(False, files["cert"], str(encrypted)))


def test_token_is_the_file_without_its_line_end(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("s3cret\n")
    assert read_token(str(file)) == "s3cret"


@pytest.mark.parametrize("content", [b"", b"\n", b"two words", b"\xff\xfe", b"x" * 4097])
def test_file_without_a_usable_token_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "token"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"T082: .*holds no token"):
        read_token(str(file))
    with pytest.raises(ConfigError, match=r"T082: .*cannot be read"):
        read_token(str(tmp_path / "missing"))
