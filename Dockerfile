FROM python:3.13-slim AS build

# The tags are not in the context. On the commit of a tag:
# docker build --build-arg VERSION="$(git describe --tags --exact-match | sed s/^v//)" .
ARG VERSION=0.1.dev0
# The bundled models need no more. `serve,openvino` is faster for models of the Hub and your own.
ARG EXTRAS=serve
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore

WORKDIR /build
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN SETUPTOOLS_SCM_PRETEND_VERSION="${VERSION:-0.1.dev0}" python -m pip wheel --no-deps --wheel-dir dist . \
    && python -m venv --without-pip /app \
    && python -m pip --python /app/bin/python install "$(echo dist/marcorank-*.whl)[$EXTRAS]"


FROM python:3.13-slim

RUN useradd --system --uid 10001 --home-dir /nonexistent --shell /usr/sbin/nologin marcorank
COPY --from=build /app /app

# The bundled models are in /app; nothing is downloaded when it runs.
ENV PATH=/app/bin:$PATH HF_HUB_OFFLINE=1 PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 10001
EXPOSE 8080

# Ready means that the model is loaded and requests are accepted. Change the port with MARCORANK_PORT, not with `--port`,
# which this does not see.
HEALTHCHECK --start-period=60s --interval=10s --timeout=5s --retries=3 \
    CMD ["python", "-c", "from os import getenv; from urllib.request import urlopen; urlopen('http://127.0.0.1:' + getenv('MARCORANK_PORT', '8080') + '/ready', timeout=4)"]

# It finishes accepted requests within 25 seconds: give it 30 before it is killed, as in `docker stop --time 30`.
STOPSIGNAL SIGTERM
CMD ["marcorank", "serve", "--host", "0.0.0.0"]
