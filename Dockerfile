# Segment all images of a folder, on a CPU and without a network:
#   docker build -t droseg .
#   docker run --rm --network none -u "$(id -u):$(id -g)" -v "$PWD/in":/input:ro -v "$PWD/out":/output droseg
# With your own training run in place of the shipped model:
#   docker run ... -v "$PWD/run":/bundle:ro droseg            or, built in: cp -r run bundles/mine, and
#   docker build --build-arg BUNDLE=bundles/mine -t droseg:mine .
# With a GPU (the index of the CUDA version that the driver knows), then docker run --gpus all ...:
#   docker build --build-arg PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cu126 -t droseg:cuda .
# Other jobs follow the image's name: docker run ... droseg evaluate --help
ARG BASE_IMAGE=python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS build
# Where pip also looks, for CPU builds of torch; empty: only where pip is configured to look.
ARG PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
ENV PIP_CONSTRAINT=/src/constraints.txt \
    PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
RUN python -m venv /opt/droseg
ENV PATH=/opt/droseg/bin:$PATH
COPY constraints.txt ./
# The large packages first: their layer is kept while the project's files change. constraints.txt has all versions.
# hadolint ignore=DL3013
RUN pip install --no-cache-dir torch monai itk-core itk-io
COPY pyproject.toml README.md LICENSE ./
COPY app app
COPY bundles bundles
# hadolint ignore=DL3013
RUN pip install --no-cache-dir ".[dicom-seg]" \
 && pip uninstall --yes pip
# A bundle with weights is baked in only as it was released.
ARG BUNDLE=bundles/hippocampus_mri
RUN cp -r "${BUNDLE}" /bundle
WORKDIR /bundle/models
RUN if [ -f SHA256SUMS ]; then sha256sum --check SHA256SUMS; fi

FROM ${BASE_IMAGE}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="droseg" \
      org.opencontainers.image.description="3D MRI segmentation; research software, not a medical device" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# Any user id works, also one without a name or a home: every cache goes to /tmp, and getpass finds a user.
ENV PATH=/opt/droseg/bin:$PATH \
    DROSEG_BUNDLE=/bundle \
    HOME=/tmp \
    USER=droseg \
    MPLCONFIGDIR=/tmp/matplotlib \
    XDG_CACHE_HOME=/tmp/cache \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
COPY --from=build /opt/droseg /opt/droseg
COPY --from=build /bundle /bundle
RUN useradd --uid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin droseg
USER 10001:10001
WORKDIR /tmp
ENTRYPOINT ["droseg"]
CMD ["predict", "/input", "--out", "/output"]
