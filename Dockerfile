# syntax=docker/dockerfile:1
# Three small images of one wheel: docker build --target service|converter|agent .
# Versions are those of requirements.lock.
FROM python:3.11.14-slim-trixie AS wheel
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY latency_contract latency_contract
COPY latency_service latency_service
COPY device_agents device_agents
COPY search_client search_client
COPY migrations migrations
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.11.14-slim-trixie AS base
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN useradd --uid 10001 --create-home padnas
COPY requirements.lock /requirements.lock
COPY --from=wheel /wheels /wheels
WORKDIR /home/padnas

# REST without TensorFlow, and every command of padnas-service.
FROM base AS service
RUN pip install --constraint /requirements.lock "$(echo /wheels/*.whl)[rest,postgresql]"
USER padnas
EXPOSE 8000
CMD ["padnas-service", "serve", "--host", "0.0.0.0", "--no-convert"]

# The same with TensorFlow.
FROM base AS converter
RUN pip install --constraint /requirements.lock "$(echo /wheels/*.whl)[service,postgresql]"
USER padnas
EXPOSE 8000
CMD ["padnas-service", "serve", "--host", "0.0.0.0"]

# Measures on the machine that it runs on, or on devices that it reaches over ADB.
FROM base AS agent
RUN pip install --constraint /requirements.lock "$(echo /wheels/*.whl)[agent]"
# The key by which phones know it is kept in a volume, which takes its owner from here.
RUN install --directory --owner padnas --mode 700 /home/padnas/.android
USER padnas
CMD ["padnas-agent", "run", "--device", "local"]
