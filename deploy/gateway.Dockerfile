# The gateway alone: no torch, no vLLM. Build from the repository's root:
#   docker build -f deploy/gateway.Dockerfile -t loragate-gateway .
# Runs as uid 65534 on a read-only root: only /data is written (database, keys, adapter store).
FROM python:3.12-slim AS build
# The compiler stays in this stage: deploy/install.sh compiles the hot path with it.
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
RUN python -m venv /opt/loragate
# The pins first: this layer is kept until they change.
COPY configs/environments/gateway.txt gateway.txt
RUN /opt/loragate/bin/pip install --require-hashes -r gateway.txt
COPY pyproject.toml README.md LICENSE ./
COPY configs/environments/build.txt configs/environments/build.txt
COPY deploy/install.sh deploy/install.sh
COPY adapters adapters
COPY configs configs
COPY gateway gateway
COPY training training
RUN deploy/install.sh /opt/loragate/bin/python

FROM python:3.12-slim
ENV PATH=/opt/loragate/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp LORAGATE_HOME=/data
COPY --from=build /opt/loragate /opt/loragate
COPY deploy/gateway.yaml /etc/loragate/gateway.yaml
# A named volume takes over owner and mode of what it is mounted on. /data holds keys; the store in it is read by engines.
RUN install -d -o 65534 -g 65534 -m 0755 /data /data/adapters
# The data directory is also the working directory: child processes must not import from this project by accident.
WORKDIR /data
USER 65534:65534
VOLUME ["/data"]
EXPOSE 8000 8001 9100
HEALTHCHECK --interval=10s --timeout=5s --start-period=15s --retries=3 \
  CMD ["python", "-c", "import http.client as h; c = h.HTTPConnection('127.0.0.1', 8000, timeout=4); c.request('GET', '/livez'); raise SystemExit(c.getresponse().status != 200)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["loragate"]
CMD ["serve", "--config", "/etc/loragate/gateway.yaml", "--host", "0.0.0.0", "--admin-host", "0.0.0.0", "--admin-allow-remote", "--data-dir", "/data"]
