"""TLS for listeners, to other brokers and to etcd, and the secrets that stand in files.

TLS is 1.2 or newer; listeners have no compression and no renegotiation. Who dials
verifies the chain of the certificate and the name in it.

Which addresses may be bound without TLS (T085) is decided in ``config_check``.
"""

import ssl

from tailrace.broker.config import ClusterConfig, Config, SecurityConfig
from tailrace.protocol import texts_config as texts
from tailrace.protocol.errors import ConfigError


class Credentials:
    """What TLS takes: what this broker shows, and whom it believes when it dials another one.

    Both are read again while it runs. What is open keeps what it has.
    """

    def __init__(self, config: Config) -> None:
        """Reads nothing."""
        self._config = config
        self.certificate: Certificate | None = None  # where a listener has TLS
        self.trust: ssl.SSLContext | None = None  # once it is wanted

    @property
    def wanted(self) -> bool:
        """Whether there are files to be read at the start."""
        return shows_certificate(self._config) or trusts_peers(self._config)

    def load(self) -> None:
        """Read the files; ConfigError T082 if one is of no use."""
        if shows_certificate(self._config):
            self.certificate = Certificate(self._config.security)
        if trusts_peers(self._config):
            self.load_trust()

    def load_trust(self) -> ssl.SSLContext:
        """For a peer that has TLS although nothing here says so: its CA is one of the system's."""
        self.trust = peer_context(self._config.cluster)
        return self.trust

    def renew(self, config: Config) -> None:
        """Read the files again. ConfigError T082 if one is of no use: then all stay as they are."""
        trust = peer_context(config.cluster) if self.trust or trusts_peers(config) else None
        if self.certificate is not None:
            self.certificate.renew(config.security)
        self._config, self.trust = config, trust


def shows_certificate(config: Config) -> bool:
    """Whether a listener has TLS."""
    return any(one.tls for one in config.listeners)


def trusts_peers(config: Config) -> bool:
    """Whether other brokers are expected to have TLS: as this one has, or is told."""
    cluster = config.cluster
    own = any(one.tls for one in config.listeners if one.name == cluster.peer_listener)
    return bool(cluster.peer_ca) or (own and cluster.metadata != "embedded")


class Certificate:
    """What TLS listeners show, and how it is renewed while they are open.

    Listeners are bound with ``context``. Each handshake then takes what was loaded last, so that
    nobody sees half of a change; connections that are open keep what they have.
    """

    def __init__(self, security: SecurityConfig) -> None:
        self.context = self._newest = server_context(security)
        self.context.sni_callback = self._choose

    def renew(self, security: SecurityConfig) -> None:
        """Read the files again. ConfigError T082 if they are of no use: the old ones stay."""
        self._newest = server_context(security)

    def _choose(
        self, handshake: ssl.SSLSocket | ssl.SSLObject, name: str | None, _: ssl.SSLContext
    ) -> None:
        """Called at each handshake, also of clients that name no server."""
        handshake.context = self._newest


def server_context(security: SecurityConfig) -> ssl.SSLContext:
    """The context of every TLS listener; ConfigError T082 if its files are of no use.

    Reads the two files.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    try:
        context.load_cert_chain(security.tls_cert, security.tls_key, password=_no_password)
    except ssl.SSLError as error:
        raise texts.settings_contradict(
            "security.tls_cert",
            origin=security.tls_cert,
            problem=f"no certificate chain that goes with {security.tls_key}: {error.reason}",
            hint="Give the chain and its unencrypted private key, both PEM.",
        ) from error
    except OSError as error:
        # The ssl module does not say which of the two it was.
        path = security.tls_key if _readable(security.tls_cert) else security.tls_cert
        reason = error.strerror or str(error)
        raise texts.file_unreadable(path, reason=reason) from error
    return context


def _no_password() -> str:
    """Without it an encrypted key would ask on the terminal, and a daemon would hang."""
    return ""


def _readable(path: str) -> bool:
    try:
        with open(path, "rb"):
            return True
    except OSError:
        return False


def etcd_context(cluster: ClusterConfig) -> ssl.SSLContext:
    """The context of connections to etcd; ConfigError T082 if its files are of no use.

    Reads up to three files.
    """
    context = _trusting("cluster.etcd_ca", cluster.etcd_ca)
    if cluster.etcd_cert:
        cert, key = cluster.etcd_cert, cluster.etcd_key
        try:
            context.load_cert_chain(cert, key, password=_no_password)
        except (ssl.SSLError, OSError) as error:
            path = key if _readable(cert) and not _readable(key) else cert
            what = f"no certificate that goes with {key}"
            raise _unusable("cluster.etcd_cert", path, what, error) from error
    return context


def peer_context(cluster: ClusterConfig) -> ssl.SSLContext:
    """The context of connections to other brokers; ConfigError T082 if its file is of no use.

    Reads the file, or the system's.
    """
    context = _trusting("cluster.peer_ca", cluster.peer_ca)
    if cluster.peer_ca:  # who signed the certificate is enough, without who signed that one
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


def _trusting(key: str, path: str) -> ssl.SSLContext:
    """One that wants a certificate of the name dialled, signed by those in the file of ``key``."""
    try:
        context = ssl.create_default_context(cafile=path or None)
    except (ssl.SSLError, OSError) as error:
        raise _unusable(key, path, "no certificates", error) from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _unusable(key: str, path: str, what: str, error: OSError) -> ConfigError:
    if not isinstance(error, ssl.SSLError):
        return texts.file_unreadable(path, reason=error.strerror or str(error))
    problem = f"{what}: {error.reason or 'not PEM'}"
    return texts.settings_contradict(key, origin=path, problem=problem, hint="Give it as PEM.")


def read_password(cluster: ClusterConfig) -> str:
    """The password of ``cluster.etcd_user``; ConfigError T082 if there is none in the file."""
    path = cluster.etcd_password_file
    try:
        with open(path, encoding="utf-8") as file:
            password = file.read(4_097).rstrip("\r\n")
    except OSError as error:
        raise texts.file_unreadable(path, reason=error.strerror or str(error)) from error
    except UnicodeDecodeError:
        password = ""
    if not password or len(password) > 4_096 or "\n" in password:
        raise texts.settings_contradict(
            "cluster.etcd_password_file",
            origin=path,
            problem="holds no password: one line of 1-4,096 characters",
            hint="Write the password of cluster.etcd_user into it, and nothing else.",
        )
    return password


def read_token(path: str) -> str:
    """The token of HTTP; ConfigError T082 if there is none in the file."""
    try:
        with open(path, encoding="ascii") as file:
            token = file.read(4_097).strip()
    except OSError as error:
        raise texts.file_unreadable(path, reason=error.strerror or str(error)) from error
    except UnicodeDecodeError:
        token = ""
    if not token or len(token) > 4_096 or any(not 33 <= ord(c) <= 126 for c in token):
        raise texts.settings_contradict(
            "http.token_file",
            origin=path,
            problem="holds no token of 1-4,096 printable ASCII characters",
            hint="Make one: openssl rand -hex 32",
        )
    return token
