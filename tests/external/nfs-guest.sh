#!/bin/bash
# The only program of a virtual machine whose kernel has an NFS server: exports a volume to itself, and checks
# what comes back. Says "CHECK name ok" or "CHECK name FAILED" for each check, and DONE at the end.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs run /run
mount -o remount,rw /
ip link set lo up
for module in fuse nfsd nfs; do modprobe $module; done
mount -t nfsd nfsd /proc/fs/nfsd
mkdir -p /run/rpc_pipefs /var/lib/nfs/v4recovery /vol /nfs
echo '/vol 127.0.0.1(rw,no_root_squash,no_subtree_check,fsid=1,insecure)' >/etc/exports

# A name, and lines of shell that must succeed.
check() {
    if said=$(bash -ec "$2" 2>&1); then
        echo "CHECK $1 ok"
    else
        echo "CHECK $1 FAILED"
        echo "$said"
    fi
}

serve() { exportfs -ra && rpc.nfsd 4; }
stop() { rpc.nfsd 0; exportfs -ua; }
export -f serve stop

check "a volume is mounted" 'dbfs mkfs -q --size 512M /root/v.img && dbfs mount /root/v.img /vol &&
    mkdir -p /vol/d/e/f && echo deep >/vol/d/e/f/file'
check "the server exports it" 'rpcbind -w; sleep 1; rpc.statd --no-notify; rpc.mountd; serve'

for version in 4.2 3; do
    check "NFS $version: mount" "mount -t nfs -o vers=$version,nolock 127.0.0.1:/vol /nfs && grep deep /nfs/d/e/f/file"
    check "NFS $version: names" 'mkdir /nfs/n && cd /nfs/n && for i in $(seq 300); do echo "file $i" >f$i; done
        test $(ls | wc -l) = 300; mkdir -p x/y; mv f1 x/y/g; grep -x "file 1" x/y/g; rm f2; ! test -e /vol/n/f2
        ln f3 x/link; test $(stat -c %h f3) = 2; ln -s f3 sym; grep -x "file 3" sym; test $(readlink /vol/n/sym) = f3'
    check "NFS $version: attributes" 'cd /nfs/n && chmod 600 f4 && chown 5:6 f4 && touch -d 2001-02-03 f4
        test "$(stat -c "%a %u %g %Y" /vol/n/f4)" = "600 5 6 $(date -d 2001-02-03 +%s)"; truncate -s 3 f5; test "$(cat /vol/n/f5)" = fil'
    check "NFS $version: data" 'cd /nfs/n && dd if=/dev/urandom of=big bs=64k count=200 conv=fsync 2>/dev/null
        cmp big /vol/n/big; dd if=/dev/urandom of=big bs=4k count=30 seek=100 conv=notrunc,fsync 2>/dev/null; cmp big /vol/n/big'
    check "NFS $version: a tree" 'cp -a /usr/share/doc/libc6 /nfs/n/doc; diff -r /usr/share/doc/libc6 /nfs/n/doc; diff -r /usr/share/doc/libc6 /vol/n/doc'
    check "NFS $version: handles of what nobody holds" 'exec 7</nfs/d/e/f/file; echo 3 >/proc/sys/vm/drop_caches; grep -x deep <&7'
    check "NFS $version: handles outlive the daemon" 'exec 7</nfs/d/e/f/file 8</nfs/n/x/y/g
        stop; dbfs umount /vol; dbfs mount /root/v.img /vol; serve; sleep 1; echo 3 >/proc/sys/vm/drop_caches
        grep -x deep <&7; grep -x "file 1" <&8; cmp /nfs/n/big /vol/n/big'
    check "NFS $version: a handle of a file that is gone" 'exec 7</nfs/n/f6; rm /vol/n/f6; for i in $(seq 50); do echo new >/vol/n/new$i; done
        echo 3 >/proc/sys/vm/drop_caches; ! grep new <&7'
    check "NFS $version: rm -r" 'rm -r /nfs/n; ! test -e /vol/n; umount /nfs'
done
check "the volume is clean" 'stop; dbfs umount /vol; dbfs fsck -n --data /root/v.img'
echo DONE
sync
echo o >/proc/sysrq-trigger
sleep 60
