#!/usr/bin/env bash
# Tells horovodrun, about once a second, which hosts there are now: prints one "host:slots" a line.
#
# Edit: what prints the list. Here it is a file that you, or your cluster's hooks, keep up to date; a cloud's
# command line or `sinfo` serves as well. It must end quickly and print nothing else.
#   DQAT_HOSTS   the file (default: hosts.txt beside this script)
set -euo pipefail
grep -v -e '^ *#' -e '^ *$' "${DQAT_HOSTS:-$(dirname "$0")/hosts.txt}"
