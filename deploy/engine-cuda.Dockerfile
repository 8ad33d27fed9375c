# vLLM 0.32.0 on NVIDIA GPUs: the vllm project's own image, as an unprivileged user on a read-only root.
#   docker build -f deploy/engine-cuda.Dockerfile -t loragate-engine-cuda .
FROM vllm/vllm-openai:v0.32.0
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp \
    VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 VLLM_CACHE_ROOT=/tmp/vllm TRITON_CACHE_DIR=/tmp/triton \
    TORCHINDUCTOR_CACHE_DIR=/tmp/inductor VLLM_NO_USAGE_STATS=1 VLLM_PLUGINS= HF_HUB_OFFLINE=1
WORKDIR /tmp
USER 65534:65534
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=600s --retries=3 \
  CMD ["python3", "-c", "import http.client as h; c = h.HTTPConnection('127.0.0.1', 8000, timeout=4); c.request('GET', '/health'); raise SystemExit(c.getresponse().status != 200)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["python3", "-m", "vllm.entrypoints.openai.api_server", "--host", "0.0.0.0", "--port", "8000", "--enable-lora"]
CMD ["--model", "/models/base", "--served-model-name", "base", "--max-loras", "8", "--max-lora-rank", "64"]
