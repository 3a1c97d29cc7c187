# A recipe for Ascend NPUs; it has not been built or run here. The base image brings CANN, and torch_npu must fit its version of PyTorch.
#   docker build --file docker/npu.Dockerfile --build-arg BASE=IMAGE_WITH_CANN --build-arg TORCH=2.9.0 --tag swift:npu .
ARG BASE
FROM ${BASE}
ARG TORCH
USER root
WORKDIR /build
COPY packages packages
# Not from the lock: it holds the torch of CPUs and NVIDIA GPUs.
RUN python3 -m venv /opt/swift \
    && /opt/swift/bin/pip install --no-cache-dir "torch==${TORCH}" "torch_npu==${TORCH}" \
    && /opt/swift/bin/pip install --no-cache-dir './packages/swift-core[torch]' ./packages/swift-tuners ./packages/swift-rlhf \
    && rm -rf /build \
    && useradd --create-home swift
ENV PATH=/opt/swift/bin:$PATH PYTHONUNBUFFERED=1
USER swift
WORKDIR /home/swift
ENTRYPOINT ["swift"]
CMD ["doctor"]
