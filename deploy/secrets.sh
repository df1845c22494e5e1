#!/bin/sh
# Makes the secrets of compose.yaml that are not there yet: passwords, and a certificate for trying out.
#
# Compose mounts these files as they are, and the users of the containers have to read them: the folder keeps others of
# this machine out, not the permissions of the files.
set -eu
umask 022
cd "$(dirname "$0")"
mkdir -p secrets
chmod 700 secrets
cd secrets

for name in redis_password admin_secret grafana_password; do
  [ -s "$name" ] || openssl rand -hex 32 >"$name"
done
# What `rookery ctl` inside of the containers says to be let in: the key `admin`.
echo "rk_admin_$(cat admin_secret)" >api_key

if [ ! -s server.pem ]; then
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 365 -subj "/CN=localhost" \
    -addext "subjectAltName=DNS:localhost,IP:127.0.0.1" -keyout key.new -out certificate.new 2>/dev/null
  cat certificate.new key.new >server.pem
  rm certificate.new key.new
  echo "server.pem is signed by itself, for trying out: replace it by your certificate, its chain and its key" >&2
fi
chmod 644 redis_password admin_secret grafana_password api_key server.pem
