#!/bin/sh
# What the broker needs of the hub: certificates once, and the list of revoked ones every five minutes. With `once` it
# ends after the first.
set -eu
umask 077
mkdir -p /hub/root
[ -e /hub/root/hub.toml ] || tar -x -f /secret/hub.tar -C /hub/root
for file in server.crt server.key device-ca.crt; do
  cp "/hub/root/ca/$file" "/var/lib/mooring-broker/$file"
done
while :; do
  if mooring-hub crl /hub/root --days 7; then
    cp /hub/root/broker/crl.pem /var/lib/mooring-broker/.crl.pem
    mv /var/lib/mooring-broker/.crl.pem /var/lib/mooring-broker/crl.pem
  elif [ "${1:-}" = once ]; then
    exit 1
  fi
  [ "${1:-}" != once ] || exit 0
  sleep 300
done
