# The training worker: the gateway's package with its data tools, and LLaMA-Factory in an environment of its own.
# Build from the repository's root:
#   docker build -f deploy/worker.Dockerfile -t loragate-worker .
# Runs as uid 65534 on a read-only root: only /data is written, the volume that it shares with the gateway. About 8 GB:
# the pins have the ordinary torch builds, which run with and without a GPU.
FROM python:3.12-slim AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 LORAGATE_COMPILE=0
WORKDIR /src
# The pins first: these layers are kept until they change.
COPY configs/environments/training.txt training.txt
RUN python -m venv /opt/training && /opt/training/bin/pip install -r training.txt
COPY configs/environments/gateway.txt configs/environments/train.txt ./
RUN python -m venv /opt/loragate && /opt/loragate/bin/pip install --require-hashes -r gateway.txt \
 && /opt/loragate/bin/pip install --require-hashes -r train.txt
COPY pyproject.toml README.md LICENSE ./
COPY configs/environments/build.txt configs/environments/build.txt
COPY deploy/install.sh deploy/install.sh
COPY adapters adapters
COPY configs configs
COPY gateway gateway
COPY training training
RUN deploy/install.sh /opt/loragate/bin/python

FROM python:3.12-slim
# torch's OpenMP needs libgomp.
RUN apt-get update && apt-get install --yes --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/*
ENV PATH=/opt/loragate/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp LORAGATE_HOME=/data \
    LORAGATE_TRAINING_PYTHON=/opt/training/bin/python HF_HUB_OFFLINE=1
COPY --from=build /opt/loragate /opt/loragate
COPY --from=build /opt/training /opt/training
COPY deploy/gateway.yaml /etc/loragate/gateway.yaml
WORKDIR /data
USER 65534:65534
VOLUME ["/data"]
# It listens nowhere: a worker that ends is started again, and `loragate jobs list` says what it does.
HEALTHCHECK NONE
STOPSIGNAL SIGTERM
ENTRYPOINT ["loragate"]
CMD ["worker", "--config", "/etc/loragate/gateway.yaml", "--data-dir", "/data", "--stop-runs"]
