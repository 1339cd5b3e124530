#!/bin/sh
# The container's entry point: runs the command as the user `ember` where the platform allows it.
#
# Platforms start containers as root, and mount volumes that often only root may write to. Then the worker stays root, so
# that a model it downloads is kept for the next one; everywhere else it gives the rights up before it starts.
set -eu

if [ "$(id -u)" = 0 ] && [ "${EMBER_USER:-ember}" != root ]; then
    place="${DOWNLOAD_DIR:-${HF_HUB_CACHE:-${HF_HOME:-${BASE_PATH:-/runpod-volume}/huggingface-cache/hub}}}"
    while [ ! -d "$place" ] && [ "$place" != / ]; do place=$(dirname "$place"); done
    as_ember="setpriv --reuid=ember --regid=ember --init-groups --"
    if [ "$place" = / ] || $as_ember test -w "$place" || [ ! -w "$place" ]; then
        export HOME=/home/ember USER=ember
        exec $as_ember "$@"
    fi
    echo "ember: $place can be written by root alone, so the worker runs as root" >&2
fi
exec "$@"
