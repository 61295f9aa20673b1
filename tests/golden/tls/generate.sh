#!/bin/sh
# Makes the certificates and keys of tests/server/test_tls.py; needs the openssl command.
set -eu
cd "$(dirname "$0")"
new() {
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -noenc -subj /CN=localhost \
        -addext subjectAltName=DNS:localhost,IP:127.0.0.1 "$@"
}
new -keyout key.pem -out certificate.pem -days 36500
new -keyout other_key.pem -out /dev/null -days 1
openssl ec -in key.pem -aes256 -passout pass:secret -out locked_key.pem

work=$(mktemp -d)
trap 'rm -r "$work"' EXIT
touch "$work/index"
cat > "$work/ca.conf" <<CONF
[ca]
default_ca = it
[it]
database = $work/index
new_certs_dir = $work
rand_serial = yes
default_md = sha256
policy = any
[any]
commonName = supplied
CONF
openssl req -new -key key.pem -subj /CN=localhost -out "$work/request.pem"
openssl ca -batch -config "$work/ca.conf" -selfsign -keyfile key.pem -in "$work/request.pem" \
    -startdate 20200101000000Z -enddate 20200201000000Z -notext -out expired.pem
