# Shared by the scripts of this folder; source it. Nothing here is needed in production.
# Functions print what they found on stdout and problems on stderr.

say() { printf '%s\n' "$*"; }
die() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

# Runs a command as root: directly, or through sudo when there is one.
as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        die "needs root or sudo for: $*"
    fi
}

random_hex() { od -An -N "$1" -tx1 /dev/urandom | tr -d ' \n'; }

# A TCP port of 127.0.0.1 nobody listens on, below the range the kernel hands out by itself.
free_port() {
    local port
    for _ in $(seq 200); do
        port=$((20000 + RANDOM % 12000))
        (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || {
            echo "$port"
            return 0
        }
    done
    die "no free port found"
}

# wait_for SECONDS COMMAND...: until it succeeds; fails when the time is over.
wait_for() {
    local end=$((SECONDS + $1))
    shift
    until "$@"; do
        [ "$SECONDS" -lt "$end" ] || return 1
        sleep 0.1
    done
}

# Is the process of this pid file alive, and still that program (pids are used again)?
pid_alive() {
    local pid
    [ -s "$1" ] && pid=$(cat "$1") && kill -0 "$pid" 2>/dev/null &&
        tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null | grep -qF -- "$2"
}

# stop_pid FILE PROGRAM SECONDS: SIGTERM, after the time SIGKILL. Does nothing when it is not alive.
stop_pid() {
    local pid
    if pid_alive "$1" "$2"; then
        pid=$(cat "$1")
        kill "$pid" 2>/dev/null
        wait_for "$3" gone "$pid" || kill -KILL "$pid" 2>/dev/null
    fi
    rm -f "$1"
}

gone() { ! kill -0 "$1" 2>/dev/null || [ "$(awk '/^State:/{print $2}' "/proc/$1/status" 2>/dev/null)" = Z ]; }
