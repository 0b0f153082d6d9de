# A broker in a container: docker build -t tailrace . && docker run -p 7400:7400 tailrace
# Plaintext off loopback is refused by default (T085); the command below says so out loud for the
# container's own network. Mount a tailrace.toml with TLS for anything else.
FROM python:3.11-slim-bookworm AS build
WORKDIR /src
# What it depends on first, as a layer of its own: it changes less often than the code.
COPY pyproject.toml .
RUN python -m venv /opt/tailrace \
 && python -c "import tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
print(*project['dependencies'], *project['optional-dependencies']['server'], sep='\n')" >required.txt \
 && /opt/tailrace/bin/pip install --quiet --no-cache-dir --disable-pip-version-check -r required.txt
COPY . .
RUN /opt/tailrace/bin/pip install --quiet --no-cache-dir --disable-pip-version-check '.[server]'

FROM python:3.11-slim-bookworm
RUN groupadd --gid 10001 tailrace \
 && useradd --uid 10001 --gid 10001 --no-create-home --shell /usr/sbin/nologin tailrace \
 && install -d -o tailrace -g tailrace -m 0700 /var/lib/tailrace
COPY --from=build /opt/tailrace /opt/tailrace
ENV PATH=/opt/tailrace/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    TAILRACE_LOG__FORMAT=json \
    TAILRACE_LISTENERS__CLIENT__BIND=0.0.0.0:7400 \
    TAILRACE_LISTENERS__CLIENT__ADVERTISE=127.0.0.1:7400 \
    TAILRACE_SECURITY__ALLOW_INSECURE=true
USER 10001:10001
VOLUME /var/lib/tailrace
EXPOSE 7400 7480
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --start-period=30s CMD ["tailrace", "cluster", "health", "--local", "-q"]
ENTRYPOINT ["tailrace"]
CMD ["serve"]
