#!/bin/sh
# Wetread on Debian without containers (docs/bare-metal.md). As root, in the repository:
#
#   sh deploy/bare-metal.sh install    everything, from packages to the started service; again is harmless
#   sh deploy/bare-metal.sh upgrade    install PACKAGE, stop, back up, start; go back when it does not become ready
#   sh deploy/bare-metal.sh restore BACKUP    the clinic as it was then; what it has now is kept beside it
#   sh deploy/bare-metal.sh remove     the service and its units; data, backups and database stay
#
# What can be said beforehand:
#   NAME       name of the server, for certificate and pages
#   PACKAGE    what pip installs, with its extras
#   TRAIN      yes: also what trains, into an environment of its own (5 GB)
#   ROOT       put everything below this folder instead, as whoever calls; start nothing
# shellcheck disable=SC2086 # lists are without quotes
set -eu
umask 027
here=$(cd "$(dirname "$0")" && pwd)
NAME=${NAME:-$(hostname -f)}
PACKAGE=${PACKAGE-"wetread[postgres,s3,oidc]"}
TRAIN=${TRAIN:-no}
ROOT=${ROOT:-}
PORT=${PORT:-8080} HTTP_PORT=${HTTP_PORT:-80} HTTPS_PORT=${HTTPS_PORT:-443}
# By the socket: PostgreSQL sees which user of the machine asks, and no password is stored anywhere.
DATABASE=${DATABASE:-postgresql+psycopg://wetread@/wetread?host=/run/postgresql}
etc=$ROOT/etc/wetread data=$ROOT/var/lib/wetread backups=$ROOT/var/backups/wetread home=$ROOT/opt/wetread
units=$ROOT/etc/systemd/system site=$ROOT/etc/nginx/conf.d/wetread.conf
timers="wetread-drift.timer wetread-verdict.timer wetread-experiment.timer wetread-backup.timer wetread-verify.timer"

step() { printf '== %s\n' "$*"; }
system() { [ -z "$ROOT" ]; } # or only a folder
as() { # a user of the machine, where there are users
  user=$1 && shift
  if system; then runuser -u "$user" -- "$@"; else "$@"; fi
}
owned() { # [MODE] FOLDER, of wetread
  if system; then install -d -o wetread -g wetread -m "$1" "$2"; else install -d -m "$1" "$2"; fi
}

packages() {
  system || return 0
  needed="postgresql nginx openssl python3 python3-venv curl"
  there=$(dpkg-query --show --showformat '${db:Status-Status}\n' $needed 2>/dev/null | grep -cx installed) || true
  [ "$there" -lt 6 ] || return 0 # also without internet
  step packages
  apt-get -qq update
  DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends $needed >/dev/null
}

accounts() {
  step "user and folders"
  if system && ! getent passwd wetread >/dev/null; then
    useradd --system --home-dir /var/lib/wetread --shell /usr/sbin/nologin wetread
  fi
  owned 750 "$etc"
  owned 700 "$data"
  owned 700 "$backups"
}

program() { # FOLDER PACKAGE
  [ -n "$2" ] || return 0
  step "$2"
  ( # everybody may run it
    umask 022
    [ -x "$1/bin/python" ] || python3 -m venv "$1"
    "$1/bin/pip" install --quiet --disable-pip-version-check --upgrade "$2"
  )
}

database() {
  step database
  if ! as postgres psql --no-psqlrc -tA -d postgres -c "SELECT 1 FROM pg_roles WHERE rolname = 'wetread'" | grep -q 1; then
    as postgres createuser wetread
  fi
  if ! as postgres psql --no-psqlrc -tA -d postgres -c "SELECT 1 FROM pg_database WHERE datname = 'wetread'" | grep -q 1; then
    as postgres createdb --owner wetread --encoding UTF8 --template template0 wetread
  fi
}

settings() {
  [ ! -e "$etc/wetread.toml" ] || return 0
  step settings
  cat >"$etc/wetread.toml" <<TOML
# docs/settings.md
database = "$DATABASE"
models = ["pneumonia"]
hosts = ["$NAME"]
tls_by_proxy = true
trusted_proxies = ["127.0.0.1", "::1"]
dicom_port = 0            # 11112 to receive DICOM,
dicom_peers = []          # from these: "PACS@10.0.0.7:11112"
TOML
}

certificate() {
  [ ! -e "$etc/tls.pem" ] || return 0
  step "certificate (its own, until you put another there)"
  openssl req -x509 -newkey rsa:2048 -nodes -days 90 -subj "/CN=$NAME" -addext "subjectAltName=DNS:$NAME" \
    -keyout "$etc/tls.key" -out "$etc/tls.pem" 2>/dev/null
  chmod 600 "$etc/tls.key"
}

proxy() {
  step nginx
  mkdir -p "$(dirname "$site")"
  sed -e "s/NAME/$NAME/; s/:8080/:$PORT/; s/\(listen.*\)80;/\1$HTTP_PORT;/; s/\(listen.*\)443 /\1$HTTPS_PORT /" \
    -e "s#/etc/wetread#$etc#" "$here/nginx/wetread.conf" >"$site"
}

service() {
  step units
  mkdir -p "$units"
  for unit in "$here"/systemd/*; do
    sed -e "s#/opt/wetread#$ROOT&#; s#/var/[a-z]*/wetread#$ROOT&#g; s#/etc/wetread#$ROOT&#; s/--port 8080/--port $PORT/" \
      "$unit" >"$units/$(basename "$unit")"
  done
  system || return 0
  chown -R root:wetread "$etc"
  nginx -t -q
  systemctl daemon-reload
  systemctl enable --quiet --now wetread.service $timers
  [ "$TRAIN" != yes ] || systemctl enable --quiet --now wetread-retrain.timer
  systemctl reload-or-restart nginx
}

restarts() { systemctl show --property NRestarts --value wetread; }

ready() { # wait until it answers, two minutes at most, or until it has ended five times
  most=$(($(restarts) + 5)) # systemd does not always count anew
  for _ in $(seq 120); do
    if curl --fail --silent --output /dev/null "http://127.0.0.1:$PORT/readyz"; then return 0; fi
    [ "$(restarts)" -lt "$most" ] || return 1
    sleep 1
  done
  return 1
}

job() { # run a command of wetread as its units do: as that user, with its secrets (S3's keys), behind its fence
  if ! system; then (cd "$etc" && "$home/bin/wetread" "$@"); return; fi
  sed "s#^ExecStart=.*#ExecStart=$home/bin/wetread $*#" "$units/wetread-backup.service" \
    >/run/systemd/system/wetread-upgrade.service
  systemctl daemon-reload
  systemctl start wetread-upgrade.service && code=0 || code=$?
  [ "$code" = 0 ] || journalctl --unit wetread-upgrade --lines 5 --output cat --no-pager >&2
  rm /run/systemd/system/wetread-upgrade.service
  return "$code"
}

halt() { # whatever runs holds the database and the program: processes that analyse, timers, jobs
  running=$(systemctl list-units --plain --no-legend --state=active,activating 'wetread*' | grep -oE '^wetread[^ ]+\.(service|timer)') || true
  systemctl stop wetread.service $running
}

resume() {
  systemctl reset-failed 'wetread*' # it may have been started more often than is allowed
  systemctl start --no-block wetread.service $running
}

restored() { # BACKUP: the clinic as it was then; what it has now is kept beside it
  now=before-$(date +%Y%m%dT%H%M%S)
  as postgres psql --no-psqlrc -q -d postgres -o /dev/null \
    -c "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'wetread'" \
    -c "ALTER DATABASE wetread RENAME TO \"wetread-$now\""
  database
  if mountpoint -q "$data"; then # the root of a volume cannot be renamed
    kept=$data/$now
    owned 700 "$kept"
    find "$data" -mindepth 1 -maxdepth 1 ! -name "$now" ! -name lost+found -exec mv -t "$kept" {} +
  else
    kept=$data.$now
    mv "$data" "$kept"
    owned 700 "$data"
  fi
  echo "what was there is kept in $kept and the database wetread-$now" >&2
  step restore
  job restore "$1" --data "$data"
}

upgrade() {
  step backup
  job backup "$backups/before-upgrade" --data "$data" # most of it, while the clinic works
  [ -n "$PACKAGE" ] || return 0
  rm -rf "$home.new"
  program "$home.new" "$PACKAGE" # meanwhile too
  grep -rlI "$home.new" "$home.new/bin" | xargs -r sed -i "s#$home\.new#$home#g" # its scripts name their own place
  ! system || halt # from here on senders wait
  step "backup of what came meanwhile"
  job backup "$backups/before-upgrade" --data "$data" || { ! system || resume; return 1; }
  rm -rf "$home.old"
  mv "$home" "$home.old"
  mv "$home.new" "$home"
  system || return 0
  step start
  resume
  ready && return 0
  # A newer schema is not read by an older program: the program goes back together with the data.
  echo "not ready; the program of before comes back, with what it had when it stopped" >&2
  systemctl stop wetread.service $running
  mv "$home" "$home.new"
  mv "$home.old" "$home"
  restored "$backups/before-upgrade"
  resume
  ready
  return 1
}

case ${1:-} in
install)
  packages
  accounts
  program "$home" "$PACKAGE"
  [ "$TRAIN" != yes ] || program "$ROOT/opt/wetread-train" "wetread[train,postgres,s3]"
  database
  settings
  certificate
  proxy
  service
  system || exit 0
  ready || { journalctl --unit wetread --lines 20 --no-pager >&2; exit 1; }
  step "https://$NAME answers; the first login link:"
  journalctl --unit wetread --output cat --no-pager | sed -n "s#^http.*\(/login?\)#https://$NAME\1#p" | tail -1
  ;;
upgrade) upgrade ;;
restore)
  [ -f "${2:?name the folder of the backup}/backup.json" ] || { echo "$2: is no backup" >&2; exit 2; }
  system || exit 0
  halt
  restored "$2"
  resume
  ready
  ;;
remove)
  system || exit 0
  systemctl stop 'wetread*'
  rm -f "$units"/wetread*.service "$units"/wetread*.timer "$units"/*.wants/wetread* "$site"
  systemctl daemon-reload
  systemctl reload nginx
  ;;
*)
  sed -n '2,13s/^# \{0,1\}//p' "$0" >&2
  exit 2
  ;;
esac
