# The hub with the operator's commands, for `deploy/compose` and `deploy/kubernetes`. From the top of the repository:
#   docker build --file deploy/images/hub.Dockerfile --tag mooring-hub:0.2.0 .
# It runs as user 10001 and needs nothing that is not below its directory: run it with a read-only root, a directory for
# /var/lib/mooring-hub, and a /tmp in memory. Versions are those of requirements/dev.lock, with their hashes.
ARG PYTHON=3.12-slim-bookworm

FROM python:${PYTHON} AS build
WORKDIR /source
COPY requirements/dev.lock requirements/
# Only uv itself comes by its version alone; it checks the hashes of everything else.
RUN pip install --no-cache-dir "$(sed -n 's/^\(uv==[^ ;\\]*\).*/\1/p' requirements/dev.lock)" \
 && uv venv /opt/mooring
COPY pyproject.toml README.md LICENSE ./
COPY agent agent
COPY cloud_hub cloud_hub
COPY firmware_profiles firmware_profiles
COPY modules modules
COPY mooring_client mooring_client
RUN uv pip install --no-cache --python /opt/mooring/bin/python --constraint requirements/dev.lock \
      ".[hub,postgres,s3]" \
 && find /opt/mooring -type d \( -name tests -o -name __pycache__ \) -prune -exec rm -rf {} + \
 && /opt/mooring/bin/python -m compileall -q /opt/mooring

FROM python:${PYTHON}
# The broker: for a hub that runs its own (`broker` empty in hub.toml), and for deploy/compose.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends mosquitto \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 10001 --user-group --home-dir /var/lib/mooring-hub --create-home --shell /usr/sbin/nologin mooring \
 && install -d -m 0700 -o mooring -g mooring /var/lib/mooring-hub /var/lib/mooring-broker /var/lib/mooring-offline \
      /var/lib/mosquitto
COPY --from=build /opt/mooring /opt/mooring
ENV PATH=/opt/mooring/bin:/usr/sbin:/usr/bin:/bin \
    PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /var/lib/mooring-hub
VOLUME /var/lib/mooring-hub
EXPOSE 8443 8883
# SIGTERM: it commits what it has taken in, then ends.
STOPSIGNAL SIGTERM
ENTRYPOINT ["mooring-hub"]
CMD ["serve", "/var/lib/mooring-hub"]
