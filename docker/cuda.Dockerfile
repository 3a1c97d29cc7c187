# swift on NVIDIA GPUs, from the lock file, with DeepSpeed, bitsandbytes and Liger kernels. In the root of the repository:
#   docker build --file docker/cuda.Dockerfile --tag swift:cuda .
#   docker run --rm --gpus all --shm-size 8g swift:cuda doctor
# An engine in an image of its own, since it pins another torch: --build-arg PACKAGES="--package swift-infer --extra vllm --extra serve"
ARG CUDA=12.8.1

FROM nvidia/cuda:${CUDA}-cudnn-runtime-ubuntu24.04 AS build
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-venv python3-pip \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/uv \
    && /opt/uv/bin/pip install --no-cache-dir uv==0.13.9
ENV UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1 UV_PROJECT_ENVIRONMENT=/opt/swift UV_PYTHON=/usr/bin/python3
WORKDIR /build
COPY pyproject.toml uv.lock README.md LICENSE CHANGELOG.md ./
COPY packages packages
ARG PACKAGES="--extra bnb --extra liger --extra kernels"
RUN /opt/uv/bin/uv sync --frozen --no-dev --no-editable ${PACKAGES}

FROM nvidia/cuda:${CUDA}-cudnn-runtime-ubuntu24.04
# python3-dev and a compiler: Triton builds its launchers when a kernel first runs.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-dev gcc libc6-dev ffmpeg tini \
    && rm -rf /var/lib/apt/lists/* \
    && (userdel --remove ubuntu || true) \
    && useradd --create-home --uid 1000 swift
COPY --from=build /opt/swift /opt/swift
ENV PATH=/opt/swift/bin:$PATH PYTHONUNBUFFERED=1
USER swift
WORKDIR /home/swift
ENTRYPOINT ["tini", "--", "swift"]
CMD ["doctor"]
