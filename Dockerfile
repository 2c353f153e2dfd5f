# Two images of one wheel: docker build --target cpu . and docker build --target cuda .
# For a small CPU image give the address of PyTorch's index of CPU builds as TORCH_INDEX.

FROM python:3.12-slim-bookworm AS wheel
RUN pip install --no-cache-dir "hatchling>=1.26,<2" "build>=1.2,<2"
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY src ./src
RUN python -m build --wheel --no-isolation --outdir /dist

FROM python:3.12-slim-bookworm AS cpu
ARG TORCH_INDEX=""
COPY --from=wheel /dist /dist
RUN pip install --no-cache-dir ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "torch>=2.6,<3" \
    && pip install --no-cache-dir "$(echo /dist/*.whl)[data,gguf,serve]" \
    && useradd --create-home --uid 1000 tunewise \
    && mkdir /work \
    && chown tunewise /work
USER tunewise
WORKDIR /work
ENTRYPOINT ["tunewise"]
CMD ["--help"]

# The package index's own torch carries CUDA; the container needs the host's driver: docker run --gpus all
FROM python:3.12-slim-bookworm AS cuda
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=wheel /dist /dist
RUN pip install --no-cache-dir "torch>=2.6,<3" \
    && pip install --no-cache-dir "$(echo /dist/*.whl)[bitsandbytes,data,gguf,serve]" \
    && useradd --create-home --uid 1000 tunewise \
    && mkdir /work \
    && chown tunewise /work
USER tunewise
WORKDIR /work
ENTRYPOINT ["tunewise"]
CMD ["--help"]
