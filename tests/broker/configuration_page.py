"""docs/configuration.md, made from the table of settings.

python -m tests.broker.configuration_page > docs/configuration.md
"""

from tailrace.broker.cli_config import toml_value
from tailrace.broker.settings import LATER_SECTIONS, SETTINGS, Setting

INTRODUCTION = """\
# Configuration

Every setting of a broker. This page is made from the table the broker itself reads
(`broker/settings.py`); a test holds the two equal.

- **Precedence**: a command line option or `--set SECTION.KEY=VALUE`, then the environment, then the
  file, then the default. The file is the one named by `-c`, else `$TAILRACE_CONFIG`, else
  `./tailrace.toml`, else `/etc/tailrace/tailrace.toml`, else none.
- **Environment**: `TAILRACE_STORAGE__DATA_DIR=/x` sets `storage.data_dir`,
  `TAILRACE_LISTENERS__PEER__BIND` sets `listeners.peer.bind`. Names without `__` are not settings.
- **Durations** are a number with `ms`, `s`, `m`, `h`, `d` or `w`, such as `"1.5h"`; **sizes** a
  number with `B`, `kB`, `KiB`, `MB`, `MiB`, `GB`, `GiB`, `TB` or `TiB`. Both are text in TOML.
- **Nothing is ignored**: an unknown key stops the start with T080 and exit code 2, a bad value with
  T082, and the message names the file and line, the variable or the option.
- `tailrace config show` lists what is in force and where it comes from, `explain KEY` says what a
  setting means, `check FILE` finds every error, `init` prints a commented file of defaults.

Marks: **SIGHUP** is reread while the broker runs, **topic** may also be set per topic with
`tailrace topic alter NAME --set KEY=VALUE`, at any time. Everything else is read at the start.
"""
TOGETHER = """\
## Checked together

| rule | else |
|---|---|
| `topic.min_isr` <= replicas | T081 |
| `topic.max_record` + 64KiB <= `limits.request_size` | T082 |
| `topic.replicas` <= brokers that take partitions: one with `metadata = "embedded"` | T082 |
| `cluster.peer_listener` is a listener | T082 |
| a listener on `0.0.0.0` or `[::]` has `advertise`; every listener but `client` has `bind` | T082 |
| no address is bound twice | T082 |
| `tls = true` has `security.tls_cert` and `security.tls_key` | T082 |
| `topic.durability = "replicated"` has two or more replicas | T083 |
| `topic.on_full = "drop_oldest"` is not with `topic.cleanup = "compact"` | T083 |
| `metadata = "etcd"` has `broker.id` and `cluster.etcd`; `embedded` nothing of etcd's | T082 |
| `cluster.etcd` is all https://, or all http:// and then without `etcd_ca` and `etcd_cert` | T082 |
| `etcd_cert` is with `etcd_key`, `etcd_user` with `etcd_password_file` | T082 |
| off loopback a password for etcd has TLS, or `security.allow_insecure = true` | T082 |
| off loopback a listener has TLS and HTTP has a token, or `security.allow_insecure = true` | T085 |
"""


def page() -> str:
    """The whole page."""
    sections: dict[str, list[Setting]] = {}
    for setting in SETTINGS.values():
        sections.setdefault(setting.key.rpartition(".")[0], []).append(setting)
    parts = [INTRODUCTION]
    for section, settings in sections.items():
        if shown := [one for one in settings if one.exists]:
            title = section.replace("*", "NAME")
            head = [f"## [{title}]", "", "| key | default | kind | meaning |", "|---|---|---|---|"]
            parts.append("\n".join([*head, *map(row, shown)]) + "\n")
    return "\n".join([*parts, TOGETHER, later()])


def row(setting: Setting) -> str:
    """One line of a section's table."""
    marks = [" **SIGHUP**"] if setting.dynamic else []
    marks += [" **topic**"] if setting.per_topic else []
    later_values = ", ".join(f"`{value}`" for value in setting.later_values)
    note = f" Comes with {setting.later}: {later_values}." if later_values else ""
    kind = setting.kind.name.replace("|", "or")
    default = toml_value(setting, setting.default)
    return f"| `{setting.name}` | `{default}` | {kind} | {setting.doc}{note}{''.join(marks)} |"


def later() -> str:
    """What is reserved, and refused."""
    keys: dict[str, list[str]] = {}
    for setting in SETTINGS.values():
        if not setting.exists:
            keys.setdefault(setting.later, []).append(f"`{setting.key}`")
    lines = [f"- with {what}: {', '.join(names)}" for what, names in keys.items()]
    sections = ", ".join(f"`[{name}]`" for name in LATER_SECTIONS)
    return "\n".join(
        ["## Reserved", "", "Refused with T080 until they come:", "", *lines, f"- {sections}", ""]
    )


if __name__ == "__main__":
    print(page(), end="")
