#!/bin/sh
# systemd learns of a unit that has gone; the directory of the control sockets goes unless a daemon still
# has one in it.
set -e
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload || true
fi
if [ "$1" = remove ] || [ "$1" = purge ]; then
    rmdir /run/dbfs 2>/dev/null || true
fi
