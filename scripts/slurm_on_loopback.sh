#!/usr/bin/env bash
# A Slurm of one node, this machine, for trying hydra/launcher=submitit_slurm without a cluster:
#
#     eval "$(scripts/slurm_on_loopback.sh start)"    # or: start <folder>; sets SLURM_CONF
#     srun hostname
#     scripts/slurm_on_loopback.sh stop               # finds the folder by SLURM_CONF; or: stop <folder>
#
# Needs root and Debian's packages, but neither systemd nor cgroups, so a container will do.
# Everything it writes, munge's key and socket too, lies in the folder; nothing under /etc is read.
set -euo pipefail

fail() { echo "$0: $1" >&2; exit 1; }

usage="usage: $0 start [folder] | stop [folder]"
action=${1:-}
folder=${2:-}

check_requirements() {
    local program missing=()
    for program in munged slurmctld slurmd scontrol srun sbatch; do
        command -v "$program" >/dev/null || missing+=("$program")
    done
    ((${#missing[@]} == 0)) || fail "no ${missing[*]}; apt-get install slurm-wlm munge"
    ((EUID == 0)) || fail "needs root: slurmd starts each job as the user who sent it"
}

wait_until() {  # <seconds> <what> <command...>
    local deadline=$((SECONDS + $1)) what=$2
    shift 2
    until "$@" &>/dev/null; do
        ((SECONDS < deadline)) || { stop; fail "$what did not come up; the logs are in $folder"; }
        sleep 0.2
    done
}

write_conf() {
    local host cpus memory
    host=$(hostname -s)
    cpus=$(env -u OMP_NUM_THREADS nproc)  # which it would report instead
    memory=$(awk '/^MemTotal/ {print int($2 / 1024)}' /proc/meminfo)
    cat >"$folder/slurm.conf" <<CONF
ClusterName=loopback
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=${SLURM_LOOPBACK_PORT:-6817}
SlurmdPort=$((${SLURM_LOOPBACK_PORT:-6817} + 1))
SlurmUser=root
AuthType=auth/munge
# cred_expire is also how long a requeued job waits, 120 seconds if not set.
AuthInfo=socket=$folder/munge.socket,cred_expire=5
CredType=cred/munge

StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log

# Without cgroups, accounting database or a mail program.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MailProg=$(command -v true)
MpiDefault=none
ReturnToService=2

# CPUs are shared out, memory is not.
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
NodeName=$host NodeAddr=127.0.0.1 CPUs=$cpus RealMemory=$memory State=UNKNOWN

# A job that is preempted or requeued gets SIGTERM, KillWait seconds to save what it has, SIGKILL,
# and its place in the queue back. A job in "urgent" preempts those in "normal".
JobRequeue=1
KillWait=30
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=normal Nodes=$host Default=YES PriorityTier=1 MaxTime=INFINITE
PartitionName=urgent Nodes=$host PriorityTier=2 MaxTime=INFINITE PreemptMode=OFF
SchedulerParameters=sched_interval=2,bf_interval=2
CONF
}

start() {
    check_requirements
    mkdir -p "${folder:=$(mktemp -d "${TMPDIR:-/tmp}/slurm.XXXXXX")}"/{state,spool}
    folder=$(realpath "$folder")
    [[ ! -e $folder/slurmctld.pid ]] || fail "$folder already has a Slurm; stop it first"
    chmod 755 "$folder"  # the clients of other users read the conf and open munge's socket
    write_conf
    [[ -s $folder/munge.key ]] || (umask 077 && head -c 128 /dev/urandom >"$folder/munge.key")
    # --force: the folder may be under a /tmp that everyone can write to, which munged refuses.
    munged --force --num-threads=2 --key-file="$folder/munge.key" --socket="$folder/munge.socket" \
        --pid-file="$folder/munged.pid" --log-file="$folder/munged.log" \
        --seed-file="$folder/munged.seed" >&2
    export SLURM_CONF=$folder/slurm.conf
    wait_until 10 munged munge --no-input --socket="$folder/munge.socket"
    slurmctld >&2
    slurmd >&2
    wait_until 30 "the node" srun --immediate=2 true
    echo "export SLURM_CONF=$SLURM_CONF"
}

stop() {
    [[ -n $folder || -n ${SLURM_CONF:-} ]] || fail "stop which? give its folder, or set SLURM_CONF"
    folder=$(realpath "${folder:-$(dirname "$SLURM_CONF")}")
    export SLURM_CONF=$folder/slurm.conf
    local pid daemon
    # Jobs first, while slurmctld lives: their steps do not end before it has heard of it.
    scancel --state=PENDING &>/dev/null || true
    squeue --noheader --format=%A 2>/dev/null |
        xargs -r scancel --full --signal=KILL &>/dev/null || true
    for _ in {1..25}; do
        [[ $(squeue --noheader 2>/dev/null) ]] || break
        sleep 0.2
    done
    # Where nobody reaps zombies (a container's first process may not), a step waits for ever.
    for pid in $(pgrep -x slurmstepd); do
        grep -qsz "^SLURM_CONF=$SLURM_CONF\$" "/proc/$pid/environ" && kill -KILL "$pid"
    done
    for daemon in slurmctld slurmd munged; do
        pid=$(cat "$folder/$daemon.pid" 2>/dev/null) || continue
        rm -f "$folder/$daemon.pid"  # slurmctld leaves it when it could not start
        kill "$pid" 2>/dev/null || continue
        timeout 15 tail --pid="$pid" -f /dev/null || kill -KILL "$pid"  # until it has gone
    done
}

case $action in
    start | stop) "$action" ;;
    *) fail "$usage" ;;
esac
