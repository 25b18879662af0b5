# A Ceph cluster of one monitor and one OSD on this host, at the address $1, with the pool `one` and the user client.one, who may use
# RBD in it and nothing else. The OSD keeps everything in memory.
set -eu
fsid=6a3f1c9e-4c58-4a0e-9a39-6b2f3d0c7e11
osd=0f0e7e5a-56a4-4d30-8f3b-f2d0a5a0b9a1
mkdir -p /etc/ceph /run/ceph /var/lib/ceph/mon/ceph-a /var/lib/ceph/osd/ceph-0
# Debian's OSD looks for its classes below the directory it was started in.
cat >/etc/ceph/ceph.conf <<END
[global]
fsid = $fsid
mon host = $1
public addr = $1
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
auth allow insecure global id reclaim = false
osd pool default size = 1
osd pool default min size = 1
osd pool default pg autoscale mode = off
mon allow pool size one = true
osd crush chooseleaf type = 0
osd objectstore = memstore
memstore device bytes = 536870912
osd class dir = $(dirname "$(find /usr/lib -name libcls_rbd.so)")
END

umask 077
entity() { printf '[%s]\n\tkey = %s\n' "$1" "$2"; }
admin=$(ceph-authtool --gen-print-key)
one=$(ceph-authtool --gen-print-key)
entity client.admin "$admin" >/etc/ceph/ceph.client.admin.keyring
entity client.one "$one" >/etc/ceph/ceph.client.one.keyring
entity osd.0 "$admin" >/var/lib/ceph/osd/ceph-0/keyring
cat >/etc/ceph/keyring.of-all <<END
$(entity mon. "$admin")
	caps mon = "allow *"
$(entity client.admin "$admin")
	caps mon = "allow *"
	caps osd = "allow *"
$(entity osd.0 "$admin")
	caps mon = "allow profile osd"
	caps osd = "allow *"
$(entity client.one "$one")
	caps mon = "profile rbd"
	caps osd = "profile rbd pool=one"
END
ceph-mon --mkfs -i a --keyring /etc/ceph/keyring.of-all
ceph-mon -i a
printf '%s\n' "osd new $osd" 'osd pool create one 4 4' 'osd pool application enable one rbd' | ceph
ceph-osd -i 0 --mkfs --osd-uuid $osd
ceph-osd -i 0
