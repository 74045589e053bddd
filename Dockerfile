# The page of tools/app.py and the other tools on a CPU; see docs/app.md.
#   docker build -t mmseg-ignite .
#   docker run --rm -p 127.0.0.1:7860:7860 -v "$PWD/model:/model:ro" -v "$PWD/slides:/slides:ro" mmseg-ignite
#   docker run --rm --no-healthcheck -v "$PWD:/data" --user "$(id -u):$(id -g)" mmseg-ignite predict CONFIG CHECKPOINT INPUT --out predictions
FROM python:3.11-slim-bookworm

# The address of PyTorch's wheels for the CPU. Without it, pip takes the CUDA build, which is several GB larger.
ARG TORCH_INDEX=""

# Any user id may run the tools, so what they cache goes to /tmp.
ENV HOME=/tmp \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1

WORKDIR /build
COPY constraints.txt ./
RUN pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "$(grep '^torch==' constraints.txt)"

COPY setup.py pyproject.toml MANIFEST.in README.md model-index.yml mmseg_ignite_command.py ./
COPY configs ./configs
COPY tools ./tools
COPY mmseg_ignite ./mmseg_ignite
# opencv-python needs libGL, which the image lacks.
RUN pip install -c constraints.txt '.[slides,export,app]' \
    && pip uninstall -y opencv-python \
    && pip install -c constraints.txt opencv-python-headless \
    && mkdir /data /model /slides \
    && useradd --no-create-home --uid 1000 ignite

WORKDIR /data
USER 1000
EXPOSE 7860
HEALTHCHECK --interval=30s --timeout=10s --start-period=120s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:7860/', timeout=5)"]
ENTRYPOINT ["mmseg-ignite"]
# Inside the container, the page must listen on all addresses; -p 127.0.0.1:7860:7860 keeps it on this computer.
CMD ["app", "/model/config.py", "/model", "--host", "0.0.0.0", "--slides", "/slides", "--device", "cpu"]
