#!/usr/bin/env bash
# Two Ray nodes on one machine: a head and a worker node, each a raylet of its own.
#
#   cluster/local/two_nodes.sh start|status|stop
#
# `start` beside a head whose worker is gone starts the worker again. To lose it as by a power cut:
#
#   pkill -KILL --session "$(cat /tmp/encsearch-nodes-6390/worker.pid)"
#
# Ports, CPUs and the folder can be set: PORT DASHBOARD_PORT HEAD_CPUS WORKER_CPUS NODES_DIR.
# `stop` ends only what `start` started; `ray stop` would end every Ray of this machine.
# Exit code 2: the usage or a setting is wrong; 1: a node does not start, or the head does not run.
set -euo pipefail

PORT=${PORT:-6390}
DASHBOARD_PORT=${DASHBOARD_PORT:-8270}
HEAD_CPUS=${HEAD_CPUS:-2}
WORKER_CPUS=${WORKER_CPUS:-2}
# Short on purpose: Ray puts Unix sockets below it, whose paths may have 107 bytes.
NODES_DIR=${NODES_DIR:-/tmp/encsearch-nodes-$PORT}
MAX_DIR_BYTES=34
START_TIMEOUT_S=120
STOP_TIMEOUT_S=10

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# A job's `python` is the first on the PATH of the node that runs it: it must be the one Ray runs in.
[[ -x $repository/.venv/bin/ray ]] && export PATH="$repository/.venv/bin:$PATH"
export RAY_AUTH_MODE=${RAY_AUTH_MODE:-disabled}
export RAY_USAGE_STATS_ENABLED=0
# Without bytecode each Ray process compiles its imports again.
unset PYTHONDONTWRITEBYTECODE RAY_ADDRESS RAY_API_SERVER_ADDRESS
started=()

main() {
  (($# == 1)) || refuse "usage: $0 start|status|stop"
  case $1 in
    start) check_settings; start ;;
    status) status ;;
    stop) stop ;;
    *) refuse "usage: $0 start|status|stop" ;;
  esac
}

refuse() {
  echo "$1" >&2
  exit 2
}

check_settings() {
  local name
  for name in PORT DASHBOARD_PORT HEAD_CPUS WORKER_CPUS; do
    [[ ${!name} =~ ^(0|[1-9][0-9]{0,4})$ ]] || refuse "$name=${!name}: not a whole number of up to five digits"
  done
  # The ones after PORT are taken too.
  ((PORT > 0 && PORT + 3 < 65536)) || refuse "PORT=$PORT: not between 1 and 65532"
  ((DASHBOARD_PORT > 0 && DASHBOARD_PORT < 65536)) || refuse "DASHBOARD_PORT=$DASHBOARD_PORT: no port"
  [[ $NODES_DIR == /* ]] || refuse "NODES_DIR=$NODES_DIR: not an absolute path"
  ((${#NODES_DIR} <= MAX_DIR_BYTES)) ||
    refuse "NODES_DIR=$NODES_DIR: ${#NODES_DIR} characters, but Ray's sockets leave it $MAX_DIR_BYTES"
  case $RAY_AUTH_MODE in
    disabled) ;;
    token)
      [[ -n ${RAY_AUTH_TOKEN:-} || -s ${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token} ]] ||
        refuse "RAY_AUTH_MODE=token, but no token in RAY_AUTH_TOKEN or ${RAY_AUTH_TOKEN_PATH:-~/.ray/auth_token}"
      ;;
    *) refuse "RAY_AUTH_MODE=$RAY_AUTH_MODE: neither token nor disabled" ;;
  esac
}

start() {
  if alive head && alive worker; then
    echo "already running; to start afresh: $0 stop" >&2
    exit 1
  fi
  mkdir -p "$NODES_DIR"
  # Also what a lost one has left: its port may still be taken.
  end worker
  alive head || start_head
  start_worker
  print_addresses
}

start_head() {
  end head
  launch head --head --port="$PORT" --num-cpus="$HEAD_CPUS" --temp-dir="$NODES_DIR/ray" \
    --dashboard-host=127.0.0.1 --dashboard-port="$DASHBOARD_PORT" --include-dashboard=true \
    --ray-client-server-port=$((PORT + 1)) --dashboard-agent-listen-port=$((PORT + 2))
  wait_for_line head 'Ray runtime started'
}

start_worker() {
  # Of its own: two nodes in one folder delete the working directories of each other's jobs (Ray 2.60).
  launch worker --address="127.0.0.1:$PORT" --num-cpus="$WORKER_CPUS" --temp-dir="$NODES_DIR/worker" \
    --dashboard-agent-listen-port=$((PORT + 3))
  wait_for_line worker 'Ray runtime started'
}

status() {
  local role
  for role in head worker; do
    if alive $role; then
      echo "$role: running (pid $(cat "$NODES_DIR/$role.pid"))"
    else
      echo "$role: not running; to start it: $0 start"
    fi
  done
  alive head || exit 1
  print_addresses
  ray status --address="127.0.0.1:$PORT"
}

stop() {
  end worker
  end head
  echo "stopped; logs stay in $NODES_DIR"
}

print_addresses() {
  echo "export RAY_ADDRESS=127.0.0.1:$PORT RAY_AUTH_MODE=$RAY_AUTH_MODE"
  echo "# dashboard and job server: http://127.0.0.1:$DASHBOARD_PORT"
}

# launch ROLE FLAG...: `ray start --block` in a session of its own, so that its group holds every child.
launch() {
  local role=$1
  shift
  setsid ray start --block --node-ip-address=127.0.0.1 --disable-usage-stats "$@" \
    >"$NODES_DIR/$role.log" 2>&1 </dev/null &
  local pid=$!
  echo $pid >"$NODES_DIR/$role.pid"
  cp /proc/sys/kernel/random/boot_id "$NODES_DIR/boot"
  started=("$role" "${started[@]}")
  # For a moment the new process is still this script: `alive` would call it dead, and it has no log yet.
  while kill -0 $pid 2>/dev/null && ! alive "$role"; do sleep 0.1; done
}

wait_for_line() {
  local role=$1 line=$2 deadline=$((SECONDS + START_TIMEOUT_S))
  until grep -q "$line" "$NODES_DIR/$role.log"; do
    if ! alive "$role" || ((SECONDS > deadline)); then
      echo "the $role node did not start; the end of $NODES_DIR/$role.log:" >&2
      tail -n 15 "$NODES_DIR/$role.log" >&2
      # A head that ran before goes on.
      for role in "${started[@]}"; do end "$role"; done
      exit 1
    fi
    sleep 0.5
  done
}

# The command is looked at too: after a reboot the pid may be somebody else's.
alive() {
  [[ -f $NODES_DIR/$1.pid ]] && [[ $(ps -o args= -p "$(cat "$NODES_DIR/$1.pid")") == *"ray start --block"* ]]
}

# end ROLE: ask, wait (a node with running jobs does not end by itself), then kill what is left of the
# session that `launch` opened.
end() {
  local role=$1 pid deadline=$((SECONDS + STOP_TIMEOUT_S))
  [[ -f $NODES_DIR/$role.pid ]] || return 0
  pid=$(cat "$NODES_DIR/$role.pid")
  if alive "$role"; then
    kill -TERM "$pid"
    while alive "$role" && ((SECONDS < deadline)); do sleep 0.5; done
  fi
  # What a lost leader has left is in its session; after a reboot that number may be somebody else's.
  if cmp -s "$NODES_DIR/boot" <(cat /proc/sys/kernel/random/boot_id); then
    pkill -KILL --session "$pid" || true
  fi
  rm -f "$NODES_DIR/$role.pid"
}

main "$@"
