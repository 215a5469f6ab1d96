# CPU:   docker build -t vllm .
# CUDA:  docker build -t vllm --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu128 \
#                             --build-arg TORCH=torch==2.11.0 .
# Run:   docker run -p 8000:8000 vllm                    (the demo model)
#        docker run -p 8000:8000 -v /models:/models vllm /models/my-model
FROM python:3.11-slim
ARG TORCH=torch==2.13.0
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN apt-get update && apt-get install -y --no-install-recommends g++ make libgomp1 \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/vllm
COPY . .
RUN make setup VENV=/opt/venv TORCH="$TORCH" TORCH_INDEX="$TORCH_INDEX" \
    && useradd --create-home vllm
USER vllm
EXPOSE 8000
# Inside a container the port is closed to others until it is published, so all addresses are right.
ENTRYPOINT ["/opt/venv/bin/vllm", "serve", "--host", "0.0.0.0"]
