#!/bin/sh
# Makes the secrets that compose.yaml reads, once. Nothing is overwritten.
set -eu
cd "$(dirname "$0")"
umask 077
mkdir -p secrets
word() { od -An -N 24 -tx1 /dev/urandom | tr -d ' \n'; }
[ -e secrets/database-password ] || word > secrets/database-password
[ -e secrets/minio-user ] || printf mooring > secrets/minio-user
[ -e secrets/minio-password ] || word > secrets/minio-password
[ -e secrets/bucket.toml ] || cat > secrets/bucket.toml <<END
access_key_id = "$(cat secrets/minio-user)"
secret_access_key = "$(cat secrets/minio-password)"
END
# Compose mounts the files as they are; the hub and PostgreSQL run as users of their own.
if [ "$(id -u)" -eq 0 ]; then chown 10001 secrets/bucket.toml; fi
chmod 0644 secrets/database-password secrets/minio-user secrets/minio-password
echo "secrets are in $PWD/secrets: keep others out of that folder"
