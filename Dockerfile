# lvlm with its demo: `docker build -t lvlm . && docker run --rm -v "$PWD/runs:/lvlm/runs" lvlm` trains the zoo on a CPU and
# writes runs/demo/report.html. For a GPU, name an index of CUDA wheels:
#   docker build --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 -t lvlm-cuda .
FROM python:3.11-slim-bookworm

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1
WORKDIR /lvlm

# torch alone first: a change of lvlm's code doesn't fetch it again.
COPY .ci/constraints.txt .ci/constraints.txt
RUN python -m pip install --constraint .ci/constraints.txt --extra-index-url "$TORCH_INDEX" torch

COPY pyproject.toml README.md LICENSE ./
COPY docs/plugin-template docs/plugin-template
COPY lvlm lvlm
COPY plugins plugins
COPY recipes recipes
RUN python -m pip install --constraint .ci/constraints.txt --editable '.[tokenizers,datasets,codebooks]'

# The same as `make demo`.
CMD ["lvlm", "study", "demo", "--out", "runs/demo"]
