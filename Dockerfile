# The command line with the extras of its commands: docs/howto/cluster.md, Containers
ARG PYTHON=3.13
FROM python:${PYTHON}-slim
# Triton compiles its kernels' launchers, torch.compile its C++, when they are first used.
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
# PyTorch from another index, such as https://download.pytorch.org/whl/cpu, which brings no CUDA
ARG TORCH_INDEX=https://pypi.org/simple
RUN pip install --no-cache-dir --index-url "$TORCH_INDEX" torch torchvision
COPY . /opt/plif_lightning
RUN pip install --no-cache-dir '/opt/plif_lightning[wandb,events,digits,report,search,export,hub,neurobench]'
# Caches of compiled kernels and of fonts, for users without a home
ENV NUMBA_CACHE_DIR=/tmp/numba MPLCONFIGDIR=/tmp/matplotlib
WORKDIR /work
ENTRYPOINT ["plif-lightning"]
