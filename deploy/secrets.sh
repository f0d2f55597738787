#!/bin/sh
# Write deploy/.env from .env.example with random secrets. What is there already is left alone.
set -eu
umask 077
cd "$(dirname "$0")"
if [ -e .env ]; then
  echo "deploy/.env is there already" >&2
  exit 1
fi
while IFS= read -r line; do
  case $line in
    *_PASSWORD= | *_KEY=) echo "$line$(od -An -N24 -tx1 /dev/urandom | tr -d ' \n')" ;;
    *) echo "$line" ;;
  esac
done <.env.example >.env.partial
mv .env.partial .env
echo "deploy/.env"
