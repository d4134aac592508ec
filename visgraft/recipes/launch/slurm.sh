#!/bin/bash
# A Slurm job on several nodes: one launcher a node, saved before the time is up, requeued, gone on with.
#
#   visgraft recipes launch/slurm -o slurm.sh       # set the #SBATCH lines, and what your cluster needs (modules, a venv)
#   sbatch slurm.sh recipe.yaml runs/mine           # the run folder must lie where all nodes see it
#   CONFIG=fsdp2_hybrid.yaml sbatch slurm.sh recipe.yaml runs/mine     # weights shared out (visgraft recipes launch/...)
#
#SBATCH --job-name=visgraft
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=04:00:00
#SBATCH --signal=B:USR1@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
# --ntasks-per-node: the launcher, which starts a process for each GPU. --signal: to this script, 180 seconds before the
# time is up; let it be longer than a checkpoint takes. --requeue: a lost node begins the job again too.

set -euo pipefail
recipe=${1:?usage: sbatch slurm.sh RECIPE RUN_FOLDER}
run=${2:?usage: sbatch slurm.sh RECIPE RUN_FOLDER}
gpus=${SLURM_GPUS_ON_NODE:-${GPUS:-1}}
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 30000))
train=(-m visgraft train "$recipe" -o "$run" --resume-or-start)

# Both launchers die of a SIGUSR1 that they were not told of; told of it, they pass it on.
if [ -n "${CONFIG:-}" ]; then
  export PET_SIGNALS_TO_HANDLE=SIGTERM,SIGINT,SIGHUP,SIGUSR1
  machines=(--num_machines "$SLURM_JOB_NUM_NODES" --num_processes $((SLURM_JOB_NUM_NODES * gpus)))
  if grep -q dp_replicate_size "$CONFIG"; then # launch/fsdp2_hybrid
    machines+=(--parallelism_config_dp_replicate_size "$SLURM_JOB_NUM_NODES" --parallelism_config_dp_shard_size "$gpus")
  fi
  # shellcheck disable=SC2016  # the number of the node is known on the node alone
  srun --kill-on-bad-exit=1 bash -c 'exec accelerate launch --machine_rank "$SLURM_NODEID" "$@"' launch \
    --config_file "$CONFIG" "${machines[@]}" --main_process_ip "$first" --main_process_port "$port" "${train[@]}" &
else
  srun --kill-on-bad-exit=1 torchrun --signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGUSR1 \
    --nnodes "$SLURM_JOB_NUM_NODES" --nproc-per-node "$gpus" --rdzv-id "$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}" \
    --rdzv-backend c10d --rdzv-endpoint "$first:$port" "${train[@]}" &
fi
job=$!

is_time_up=no
trap 'is_time_up=yes; kill -USR1 "$job" || true' USR1 # srun hands it to every launcher
status=0
while :; do # a signal ends a `wait`, and not what is waited for
  wait "$job" && status=0 || status=$?
  kill -0 "$job" 2>/dev/null || break
done

if [ "$is_time_up" = yes ] && [ "$status" -ne 0 ]; then
  scontrol requeue "$SLURM_JOB_ID"
  exit 0
fi
exit "$status"
