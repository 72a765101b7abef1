#!/bin/sh
# The directories of both replicas, and the database's tables; does nothing where they are there already.
# The settings that init asks for and others come from /etc/mooring/hub.toml. The offline keys (root, targets, publisher)
# go to a volume of their own: take them away from this machine (docs/operate/trust-ceremony.md).
set -eu
: "${MOORING_HOST:?}"
hubs=${MOORING_HUBS:-/var/lib/mooring-hub}
files=${MOORING_BROKER_FILES:-/var/lib/mooring-broker}
offline=${MOORING_OFFLINE:-/var/lib/mooring-offline}
settings=${MOORING_SETTINGS:-/etc/mooring/hub.toml}
database=${MOORING_DATABASE:-postgresql://mooring@postgres:5432/mooring}
password=${MOORING_DATABASE_PASSWORD_FILE:-/run/secrets/database-password}
broker=${MOORING_BROKER:-mqtts://$MOORING_HOST:8883}

if [ ! -e "$hubs/a/hub.toml" ]; then
  mooring-hub init "$hubs/a" --host "$MOORING_HOST" --bind "${MOORING_BIND:-0.0.0.0}" --broker "$broker" \
    --database "$database" --database-password-file "$password" --offline-keys "$offline" --settings "$settings"
fi
if [ ! -e "$hubs/b/hub.toml" ]; then
  mooring-hub replica "$hubs/a" "$hubs/b" --name b
fi
# What the broker needs of the hub, in a folder that it may read: each replica writes the list of revoked certificates
# there, through the link that stands in its own folder.
umask 077
for file in server.crt server.key device-ca.crt; do
  [ -e "$files/$file" ] || cp "$hubs/a/ca/$file" "$files/$file"
done
[ -e "$files/crl.pem" ] || cp "$hubs/a/broker/crl.pem" "$files/crl.pem"
for one in a b; do
  rm -rf "$hubs/$one/broker"
  ln -s "$files" "$hubs/$one/broker"
done
[ -e "$files/acl" ] || cat > "$files/acl" <<'END'
user _hub-a
topic readwrite mooring/1/#
user _hub-b
topic readwrite mooring/1/#
pattern write mooring/1/%u/up/#
pattern read mooring/1/%u/down/#
END
chmod 0700 "$files"
