#!/bin/sh
# systemd learns of a unit that has come, or gone.
set -e
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload || true
fi
