# Images with grr-coca; see docs/deploy.md.
#   docker build --target cpu -t grr-coca .
#   docker build --target cuda -t grr-coca:cuda .

# Captions, searches and serves with the models that ship and with ONNX graphs; without PyTorch.
FROM python:3.12-slim AS cpu

ENV PYTHONUNBUFFERED=1 XDG_CACHE_HOME=/cache
RUN useradd --create-home --uid 1000 coca && install -d -o coca /cache /work
WORKDIR /build
COPY pyproject.toml constraints.txt README.md LICENSE NOTICE ./
COPY src src
RUN pip install --no-cache-dir -c constraints.txt '.[serve,icons]'
USER 1000
WORKDIR /work
ENTRYPOINT ["grr-coca"]

# Trains, too. PyTorch's own packages bring CUDA, so the host needs only a driver and NVIDIA's container toolkit. The image
# is not the slim one, because `compile: true` needs a C compiler and Python's headers.
FROM python:3.12 AS cuda

ENV PYTHONUNBUFFERED=1 XDG_CACHE_HOME=/cache NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
RUN useradd --create-home --uid 1000 coca && install -d -o coca /cache /work
WORKDIR /build
COPY pyproject.toml constraints.txt README.md LICENSE NOTICE ./
COPY src src
RUN pip install --no-cache-dir -c constraints.txt '.[train,s3,parquet,serve,icons,export,hub]' nvidia-ml-py
USER 1000
WORKDIR /work
ENTRYPOINT ["grr-coca"]
