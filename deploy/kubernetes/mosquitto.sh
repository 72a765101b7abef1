#!/bin/sh
# Mosquitto, told to read the list of revoked certificates anew whenever a replica has written it.
set -eu
list=${MOORING_BROKER_FILES:-/var/lib/mooring-broker}/crl.pem
mosquitto -c "${MOSQUITTO_CONF:-/etc/mooring/mosquitto.conf}" &
broker=$!
trap 'kill -TERM "$broker"' TERM INT
known=$(cksum < "$list")
while kill -0 "$broker" 2>/dev/null; do
  sleep 5 &
  wait $! || true
  now=$(cksum < "$list")
  if [ "$now" != "$known" ]; then
    known=$now
    kill -HUP "$broker" 2>/dev/null || true
  fi
done
wait "$broker"
