#!/bin/sh
# The bucket of the hub's files; safe to repeat.
set -eu
mc alias set store http://minio:9000 "$(cat /run/secrets/minio-user)" "$(cat /run/secrets/minio-password)"
mc mb --ignore-existing store/mooring
mc anonymous set none store/mooring
