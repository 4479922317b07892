# shellcheck shell=bash disable=SC2034
# What a site sets once, for all scripts in this folder. On a plain cluster nothing needs to be changed.
# Another file in its place: HEADWATER_SITE=/path/to/site.sh in the environment of sbatch.

# --- account, partition, quality of service ------------------------------------------------------------------------
# sbatch reads these itself. pipeline.sh and prepare.sh read this file before they call sbatch; for an sbatch that you
# type yourself put `source slurm/site.sh` into your shell's start-up file, or give --account=… and so on each time.
# export SBATCH_ACCOUNT=my-project
# export SBATCH_PARTITION=gpu
# export SBATCH_QOS=normal
# export SBATCH_TIMELIMIT=24:00:00       # a training that is not done by then saves, and its job goes on by itself

# --- jobs that need no GPU: shard, tokenizer, tokenize, export, evaluate, report -----------------------------------
one_node=(--cpus-per-task=2)             # options of sbatch, such as (--cpus-per-task=32 --partition=cpu --mem=64G)
array_tasks=4                            # pieces that shard and tokenize are cut into; each is a job of `one_node`

# --- in the job, before anything else ------------------------------------------------------------------------------
set_up() {
    :
    # module load cuda/12.8 nccl
    # export NCCL_SOCKET_IFNAME=ib0       # and whatever else your network wants
    # export MLFLOW_TRACKING_URI=https://mlflow.example.org
}

# --- Python and containers -----------------------------------------------------------------------------------------
# By default .venv/ beside this folder, as tools/quickstart makes it; HEADWATER_PYTHON in the environment wins.
# site_python=/shared/headwater/.venv/bin/python
container=()                             # put before the command: (apptainer exec --nv --bind /shared /shared/hw.sif)
# enroot with pyxis: (--container-image=/shared/hw.sqsh --container-mounts=/shared); only the stages run in it, so
# site_python must also be the path of a Python with this package outside of it, on the nodes and where you submit.
srun_options=()

# --- care ----------------------------------------------------------------------------------------------------------
preflight=yes                            # look at all nodes before ranks on several begin (seconds); no: do not
most_starts=5                            # starts in a row without a new checkpoint, after which a job gives up
