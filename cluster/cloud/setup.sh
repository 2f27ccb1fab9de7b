#!/usr/bin/env bash
# Set up one node of aws.yaml or gcp.yaml: the shared folder, and this checkout with its locked packages on a
# Python that is the same everywhere. A second call changes nothing.
#
#   cluster/cloud/setup.sh [PACKAGE...]     # packages that the launcher needs on the head
set -euo pipefail

UV_VERSION=0.13.9 # which decides the patch version of Python too
PYTHON=3.11

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
# shellcheck source=cluster/cloud/variables.env
. cluster/cloud/variables.env

# A new machine may be updating itself.
sudo apt-get -o DPkg::Lock::Timeout=600 update
sudo apt-get -o DPkg::Lock::Timeout=600 install --yes nfs-common python3-venv

if [[ -n $NFS_EXPORT ]] && ! mountpoint --quiet /shared; then
  sudo mkdir -p /shared
  sudo mount -t nfs -o hard,noresvport "$NFS_EXPORT" /shared
  sudo install --directory --owner="$(id -u)" /shared/data /shared/runs
fi

[[ -x $HOME/.uv/bin/uv ]] || { python3 -m venv "$HOME/.uv" && "$HOME/.uv/bin/pip" install "uv==$UV_VERSION"; }
uv=$HOME/.uv/bin/uv
[[ -x .venv/bin/python ]] || "$uv" venv --managed-python --python "$PYTHON"
"$uv" pip install --compile-bytecode --constraint requirements.lock --editable '.[train,s3,timm]' "$@"

line=". $PWD/cluster/cloud/variables.env"
grep --quiet --no-messages --line-regexp --fixed-strings "$line" "$HOME/.bashrc" || echo "$line" >>"$HOME/.bashrc"
