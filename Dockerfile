# The server as an image:  docker build --build-arg EXTRAS=serve,cuda13 -t qwen-serve .
# Models are mounted, read-only:  docker run -p 8000:8000 -v $PWD/qwen-14b-chat:/model:ro qwen-serve
FROM python:3.12-slim AS build
ARG EXTRAS=serve
COPY . /source
RUN python -m venv /opt/qwen && /opt/qwen/bin/pip install --no-cache-dir "/source[$EXTRAS]"

FROM python:3.12-slim
RUN useradd --uid 10001 --create-home qwen
COPY --from=build /opt/qwen /opt/qwen
ENV PATH=/opt/qwen/bin:$PATH PYTHONUNBUFFERED=1 XDG_CACHE_HOME=/cache
RUN install -d -o qwen /cache
VOLUME /cache
USER 10001
EXPOSE 8000
# no HEALTHCHECK here: /health and /ready are for the orchestrator
ENTRYPOINT ["python", "-m", "serve", "--host", "0.0.0.0"]
CMD ["--model", "/model"]
