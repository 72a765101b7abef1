# The agent in a container, for gateways that run nothing but containers. From the top of the repository:
#   docker build --file deploy/images/agent.Dockerfile --tag mooring-agent:0.2.0 .
# On an ordinary device the agent is a service (deploy/mooring-agent.service), which can isolate its workers better: in
# a container, which may not make namespaces, the level that is reached is lower, and device reports say so.
ARG PYTHON=3.12-slim-bookworm

FROM python:${PYTHON} AS build
WORKDIR /source
COPY requirements/dev.lock requirements/
RUN pip install --no-cache-dir "$(sed -n 's/^\(uv==[^ ;\\]*\).*/\1/p' requirements/dev.lock)" \
 && uv venv /opt/mooring
COPY pyproject.toml README.md LICENSE ./
COPY agent agent
COPY cloud_hub cloud_hub
COPY firmware_profiles firmware_profiles
COPY modules modules
COPY mooring_client mooring_client
RUN uv pip install --no-cache --python /opt/mooring/bin/python --constraint requirements/dev.lock ".[agent,onnx]" \
 && find /opt/mooring -type d \( -name tests -o -name __pycache__ \) -prune -exec rm -rf {} + \
 && rm -rf /opt/mooring/lib/python*/site-packages/cloud_hub /opt/mooring/bin/mooring /opt/mooring/bin/mooring-hub \
 && /opt/mooring/bin/python -m compileall -q /opt/mooring

FROM python:${PYTHON}
RUN apt-get update \
 && apt-get install --yes --no-install-recommends libseccomp2 bubblewrap \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 10001 --user-group --home-dir /var/lib/mooring --create-home --shell /usr/sbin/nologin mooring \
 && chmod 0700 /var/lib/mooring
COPY --from=build /opt/mooring /opt/mooring
ENV PATH=/opt/mooring/bin:/usr/bin:/bin \
    PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /var/lib/mooring
VOLUME /var/lib/mooring
STOPSIGNAL SIGTERM
ENTRYPOINT ["mooring-agent"]
CMD ["run", "--state", "/var/lib/mooring"]
