"""Certificates of test authorities, in files and as settings."""

from datetime import datetime
from pathlib import Path

import trustme

from tailrace.broker.config_values import Plain


def certified(
    folder: Path, authority: trustme.CA, name: str, *, until: datetime | None = None
) -> dict[str, Plain]:
    """Settings of a broker that shows a certificate for ``name``. The files are written anew."""
    issued = authority.issue_cert(name, not_after=until)
    issued.private_key_pem.write_to_path(str(folder / "key.pem"))
    for number, blob in enumerate(issued.cert_chain_pems):
        blob.write_to_path(str(folder / "cert.pem"), append=number > 0)
    return {
        "security.tls_cert": str(folder / "cert.pem"),
        "security.tls_key": str(folder / "key.pem"),
    }
