//! Disks of every kind of datastore, on the real thing: qcow2 by qemu-nbd, logical volumes, a context CD, Ceph images.

use super::host::*;
use crate::common::{World, eventually};
use std::{collections::BTreeMap, fs, path::Path};
use stead_testkit::{host::skipped, parts::Parts};

/// What the node needs besides its engine: what disks are made with and mapped by, and a small Ceph cluster.
const PACKAGES: [&str; 8] =
    ["gdisk", "lvm2", "qemu-utils", "rbd-nbd", "xorriso", "ceph-common", "ceph-mon", "ceph-osd"];
/// Starts a Ceph cluster on a node; its argument is the node's address.
const CEPH: &str = include_str!("ceph.sh");

/// Builds the node's image from the shipped recipe, with the programs for disks; `None`, after printing the reason,
/// when the packages are not available.
pub fn build(w: &World, test: &str, driver: &str) -> Option<String> {
    let base = format!("{driver}-node");
    let shown: serde_json::Value = serde_json::from_str(&w.ok(&["image", "show", &base, "--json"])).unwrap();
    let program = shown["paths"]["stead-node"].as_str().unwrap();
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../../images/{base}.yaml"));
    let image = format!("one-disks-{driver}-node");
    let packages: String = PACKAGES.iter().map(|p| format!("      - {p}\n")).collect();
    let recipe = fs::read_to_string(shipped).unwrap();
    let recipe = recipe.replacen(&format!("name: {base}\n"), &format!("name: {image}\n"), 1);
    let recipe = recipe.replacen("    packages:\n", &format!("    packages:\n{packages}"), 1);
    let built = w.stead(&["image", "build", &w.file(&image, &recipe), "--stead-node", program]);
    if built.code == 1 && built.stderr.contains("mirror cannot be reached") {
        skipped(test, &format!("image {image} cannot be built: {}", built.stderr.trim()));
        return None;
    }
    assert!(built.code == 0, "{}\n{}", built.stdout, built.stderr);
    Some(image)
}

/// The nodes: the host in a VM, for network block devices are its kernel's, and one in namespaces that has the Ceph
/// cluster: in the VM an OSD stalls by emulation.
pub const NODES: &str = "nodes: [{name: node1, machine: {backend: qemu, memory: 2GiB}}, {name: ceph, machine: {backend: namespace}}]";

pub fn every_kind(host: &Host<'_>) {
    host.ok(&["modprobe", "nbd"]);
    let mut parts = Parts::new();
    parts.run("images, volumes and context", || images_volumes_and_context(host));
    parts.run("partitions", || partitions(host));
    parts.run("ceph", || ceph(host));
    parts.end();
}

/// A VM whose root is a qcow2 image over one of the image datastore, with a logical volume, a qcow2 image with
/// partitions, and a context CD.
fn images_volumes_and_context(host: &Host<'_>) {
    // Each as OpenNebula's transfer drivers make them: qcow2's `clone` and `resize`, fs_lvm's `mkimage`, `context`.
    let make = "
        set -e
        export DM_DISABLE_UDEV=1
        one=/var/lib/one/datastores; mkdir -p $one/0/7; cd $one/0/7
        qemu-img convert -O qcow2 /var/lib/one/image $one/1/image
        qemu-img create -q -f qcow2 -F qcow2 -b $one/1/image disk.0
        qemu-img resize -q disk.0 40M

        mkdir /tmp/cd; echo ETH0_IP=10.0.0.7 >/tmp/cd/context.sh
        xorriso -as mkisofs -quiet -V CONTEXT -J -R -o disk.1 /tmp/cd

        truncate -s 160M /var/lib/one/volume
        pv=$(losetup --find --show /var/lib/one/volume)
        vgcreate -q vg-one-0 $pv >&2
        lvcreate -q -y -W n -Z n -n lv-one-7-2 -L 32M vg-one-0 >&2
        ln -s /dev/vg-one-0/lv-one-7-2 disk.2

        mkdir -p /tmp/first /tmp/second
        mount -o loop /var/lib/one/image /mnt; cp -a /mnt/. /tmp/second/; umount /mnt
        echo first >/tmp/first/which; echo second >/tmp/second/which
        mkdir /tmp/second/store; echo 'LABEL=store /store ext4 defaults 0 2' >/tmp/second/etc/fstab
        truncate -s 36M /tmp/whole
        sgdisk --new=1:2048:+8M --new=2:20480:+24M /tmp/whole >&2
        mkfs.ext4 -q -L store -d /tmp/first /tmp/first.part 8M
        mkfs.ext4 -q -L root -d /tmp/second /tmp/second.part 24M
        dd if=/tmp/first.part of=/tmp/whole bs=1M seek=1 conv=notrunc status=none
        dd if=/tmp/second.part of=/tmp/whole bs=1M seek=10 conv=notrunc status=none
        qemu-img convert -O qcow2 /tmp/whole disk.3
        mkdir ../9; cp /tmp/whole ../9/disk.0; cp disk.3 ../9/disk.2
        echo $pv";
    let volume = host.ok(&["sh", "-c", make]).lines().last().unwrap().to_owned();

    let qcow2 =
        "<DRIVER>qcow2</DRIVER><CACHE>writethrough</CACHE><SOURCE>/var/lib/one//datastores/1/image</SOURCE>";
    let more = format!(
        "<DISK><DISK_ID>2</DISK_ID><TYPE>fs</TYPE><DISK_TYPE>BLOCK</DISK_TYPE><SIZE>32</SIZE><TARGET>/data</TARGET></DISK>\
         <DISK><DISK_ID>3</DISK_ID><DISK_TYPE>FILE</DISK_TYPE><SIZE>36</SIZE><TARGET>/parts</TARGET></DISK>{CONTEXT}"
    );
    let document = |deploy_id: &str| {
        vm(7, deploy_id, &more, "").replacen("<DRIVER>raw</DRIVER>", qcow2, 1).replacen(
            "<SIZE>24</SIZE>",
            "<SIZE>40</SIZE>",
            1,
        )
    };
    host.done("deploy", &["/x", "host", "7", "host"], Some(&document("")));

    // Both images are on network block devices of their own, with the CACHE asked for; the root is what it is mounted
    // from.
    let nbds = connected(host);
    assert_eq!(nbds.len(), 2, "{nbds:?}");
    let of = |disk: &str| {
        let arguments = |l: &&str| l.starts_with("qemu-nbd ") && l.ends_with(disk);
        let found = nbds.iter().find(|(_, line)| arguments(&line.as_str()));
        found.unwrap_or_else(|| panic!("no qemu-nbd of {disk}: {nbds:?}"))
    };
    let (root, line) = of("/datastores/0/7/disk.0");
    assert!(line.contains(" --cache=writethrough "), "{line}");
    let (_, line) = of("/datastores/0/7/disk.3");
    assert!(!line.contains("--cache"), "{line}");
    let mounts = host.ok(&["cat", "/proc/mounts"]);
    let mounted = |device: &str, at: &str| {
        let is = |l: &str| l.starts_with(&format!("{device} ")) && l.contains(at);
        assert!(mounts.lines().any(is), "{device} is not mounted at {at}:\n{mounts}");
    };
    mounted(&format!("/dev/{root}"), "/one-7/rootfs ext4 rw");
    mounted("/dev/mapper/vg--one--0-lv--one--7--2", " /run/stead-one/one-7/disk.2 ext4 rw");

    // In the instance: root grown to its disk, partitions as their fstab says, the CD as it is.
    assert!(kib(host, "one-7", "/") > 30 << 10, "the root has not grown: {} KiB", kib(host, "one-7", "/"));
    assert_eq!(host.inside("one-7", "cat /parts/which /parts/store/which"), "second\nfirst\n");
    let owners = "ls -ln /parts/which /parts/store/which | grep -c ' 0  *0 '";
    assert_eq!(host.inside("one-7", owners), "2\n");
    assert_eq!(host.inside("one-7", "cat /context/context.sh"), "ETH0_IP=10.0.0.7\n");
    let cd = host.inside("one-7", "grep ' /context ' /proc/mounts; touch /context/x 2>&1 || echo refused");
    assert!(cd.contains(" /context iso9660 ro,") && cd.ends_with("refused\n"), "{cd}");
    host.inside(
        "one-7",
        "echo kept >/kept && touch /data/written && ls -ln /data/written | grep -q ' 0  *0 '",
    );

    // The volume grows in use, after the transfer driver's lvextend; an image behind qemu-nbd does not.
    let before = kib(host, "one-7", "/data");
    host.ok(&["sh", "-c", "DM_DISABLE_UDEV=1 lvextend -q -L 64M vg-one-0/lv-one-7-2"]);
    let running = action("one-7", &document("one-7"));
    host.done("resize_disk", &["one-7", "2", "64", "x", "host", "7", "host"], Some(&running));
    let after = kib(host, "one-7", "/data");
    assert!(before < 32 << 10 && after > 48 << 10, "the volume's filesystem: {before} KiB, then {after} KiB");
    let refused = host.call("resize_disk", &["one-7", "0", "80", "x", "host", "7", "host"], Some(&running));
    assert!(refused.code == 1 && refused.stderr.contains("is qcow2 behind qemu-nbd"), "{}", refused.stderr);

    // Stopped, it has let go of everything before the script ends: the transfer driver may have the image at once.
    let of_one7 = ["one-7", "host", "7", "host"];
    host.done("shutdown", &of_one7, None);
    let checked = "pidof qemu-nbd; qemu-img check /var/lib/one/datastores/0/7/disk.0";
    let checked = host.ok(&["sh", "-c", checked]);
    assert!(checked.starts_with("No errors were found on the image"), "{checked}");
    free(host);
    // What was written is in the image.
    host.done("deploy", &["/x", "host", "7", "host"], Some(&document("")));
    assert_eq!(host.inside("one-7", "cat /kept; ls /data"), "kept\nlost+found\nwritten\n");
    host.done("cancel", &of_one7, None);
    free(host);
    let remove = format!(
        "export DM_DISABLE_UDEV=1; lvremove -q -y vg-one-0/lv-one-7-2 && vgremove -q vg-one-0 && losetup --detach {volume}"
    );
    host.ok(&["sh", "-c", &remove]);
}

/// A VM whose root is a partition of a raw image; a qcow2 image with partitions comes and goes while it runs.
fn partitions(host: &Host<'_>) {
    host.done("deploy", &["/x", "host", "9", "host"], Some(&vm(9, "", "", "")));
    assert_eq!(host.inside("one-9", "cat /which /store/which"), "second\nfirst\n");
    host.inside("one-9", "touch /new /store/new && ls -ln /new /store/new");
    let disk = "<DISK><DISK_ID>2</DISK_ID><SIZE>36</SIZE><READONLY>YES</READONLY><TARGET>/parts</TARGET><ATTACH>YES</ATTACH></DISK>";
    let document = action("one-9", &vm(9, "one-9", disk, ""));
    let path = "/var/lib/one//datastores/0/9/disk.2";
    let attach = ["one-9", path, "vdb", "1", "x", "9", "host"];
    let attached = host.call("attach_disk", &attach, Some(&document));
    assert_eq!(attached.code, 0, "{}", attached.stderr);
    assert!(attached.stderr.contains("disk 2: its other partitions are visible"), "{}", attached.stderr);
    assert_eq!(host.inside("one-9", "cat /parts/which"), "second\n");
    let of_one9 = ["one-9", "host", "9", "host"];
    if attached.stderr.contains("from its next start on") {
        host.done("reboot", &of_one9, None);
    } else {
        // LXD 5.0 shifts the owners of one filesystem only while the instance runs.
        assert!(host.driver == "lxd" && attached.stderr.contains("next deploy on"), "{}", attached.stderr);
        host.done("shutdown", &of_one9, None);
        host.done("deploy", &["/x", "host", "9", "host"], Some(&vm(9, "", disk, "")));
    }
    assert_eq!(host.inside("one-9", "cat /parts/which /parts/store/which"), "second\nfirst\n");
    let write = "for at in /parts /parts/store; do touch $at/x 2>/dev/null || echo refused; done";
    assert_eq!(host.inside("one-9", write), "refused\nrefused\n");
    assert!(connected(host).values().all(|l| l.contains(" --read-only ")), "{:?}", connected(host));
    host.done("detach_disk", &["one-9", path, "vdb", "1", "9", "host"], Some(&document));
    assert_eq!(connected(host), BTreeMap::new());
    host.done("cancel", &of_one9, None);
    free(host);
}

/// A VM with a disk of each form of SOURCE: a clone, a volatile and a persistent one.
fn ceph(host: &Host<'_>) {
    let cluster = Host { node: "ceph", ..*host };
    let address = cluster.ok(&["ip", "-4", "-o", "address", "show", "scope", "global"]);
    let address = address.split_whitespace().find_map(|w| w.strip_suffix("/24")).unwrap();
    let made = cluster.run(&["sh", "-s", address], CEPH);
    assert!(made.code == 0, "no Ceph: {}\n{}", made.stdout, made.stderr);
    // As on a host of OpenNebula: only client.one has a key.
    for (from, to) in [("ceph.conf", "second.conf"), ("ceph.client.one.keyring", "second.client.one.keyring")]
    {
        let text = cluster.ok(&["cat", &format!("/etc/ceph/{from}")]);
        host.run(&["sh", "-c", &format!("umask 077; mkdir -p /etc/ceph; cat >/etc/ceph/{to}")], &text);
    }
    // As Ceph's transfer driver makes them. The first device was qemu-nbd's before.
    let make = "
        set -e
        qemu-nbd --connect=/dev/nbd0 --format=qcow2 /var/lib/one/datastores/0/7/disk.0
        qemu-nbd --disconnect /dev/nbd0
        mkdir -p /var/lib/one/datastores/0/8 /tmp/kept; echo persistent >/tmp/kept/which
        truncate -s 24M /tmp/kept.image; mkfs.ext4 -q -d /tmp/kept /tmp/kept.image
        rbd() { command timeout 60 rbd --conf /etc/ceph/second.conf --id one \"$@\"; }
        rbd import /var/lib/one/image one/image
        rbd snap create one/image@snap
        rbd snap protect one/image@snap
        rbd clone one/image@snap one/image-8-0
        rbd create --size 32M one/one-sys-8-2
        rbd import /tmp/kept.image one/kept";
    host.ok(&["sh", "-c", make]);
    let document = |deploy_id: &str, user: &str| {
        let access = format!("<CEPH_USER>{user}</CEPH_USER><CEPH_CONF>/etc/ceph/second.conf</CEPH_CONF>");
        let root = format!("<DISK_TYPE>RBD</DISK_TYPE><SOURCE>one/image</SOURCE>{access}");
        let more = format!(
            "<DISK><DISK_ID>2</DISK_ID><TYPE>fs</TYPE><DISK_TYPE>RBD</DISK_TYPE><POOL_NAME>one</POOL_NAME>\
             {access}<SIZE>32</SIZE><TARGET>/data</TARGET></DISK>\
             <DISK><DISK_ID>3</DISK_ID><DISK_TYPE>RBD</DISK_TYPE><SOURCE>one/kept</SOURCE><CLONE>NO</CLONE>\
             {access}<TARGET>/persistent</TARGET></DISK>"
        );
        vm(8, deploy_id, &more, "").replacen("<DISK_TYPE>FILE</DISK_TYPE>", &root, 1)
    };
    let deploy = ["/x", "host", "8", "host"];

    // A user without a key, and a host without the program: told, and nothing is left of it.
    let refused = host.call("deploy", &deploy, Some(&document("", "nobody")));
    assert!(refused.code == 1 && refused.stderr.contains(" --id nobody one/"), "{}", refused.stderr);
    assert!(!refused.stderr.contains("cannot undo"), "{}", refused.stderr);
    free(host);
    host.ok(&["mv", "/usr/bin/rbd-nbd", "/usr/bin/rbd-nbd.away"]);
    let refused = host.call("deploy", &deploy, Some(&document("", "one")));
    assert!(refused.code == 1 && refused.stderr.contains("rbd-nbd is not installed"), "{}", refused.stderr);
    assert!(!refused.stderr.contains("cannot undo"), "{}", refused.stderr);
    free(host);
    host.ok(&["mv", "/usr/bin/rbd-nbd.away", "/usr/bin/rbd-nbd"]);

    host.done("deploy", &deploy, Some(&document("", "one")));
    let nbds = connected(host);
    let mut images: Vec<&str> =
        nbds.values().filter_map(|l| l.trim_end().split(" --id one one/").nth(1)).collect();
    images.sort_unstable();
    assert_eq!(images, ["image-8-0", "kept", "one-sys-8-2"], "{nbds:?}");
    for device in nbds.keys() {
        let most = host.ok(&["cat", &format!("/sys/block/{device}/queue/write_zeroes_max_bytes")]);
        assert_eq!(most, "0\n", "rbd-nbd hangs on {device}, to which the kernel sends more than it knows");
    }
    assert_eq!(host.inside("one-8", "cat /persistent/which"), "persistent\n");
    host.inside("one-8", "touch /written /data/written && ls -ln /data/written | grep -q ' 0  *0 '");
    host.inside("one-8", "echo of-the-instance >/persistent/new");

    let before = kib(host, "one-8", "/data");
    host.ok(&["sh", "-c", "rbd --conf /etc/ceph/second.conf --id one resize --size 64M one/one-sys-8-2"]);
    let running = action("one-8", &document("one-8", "one"));
    host.done("resize_disk", &["one-8", "2", "64", "x", "host", "8", "host"], Some(&running));
    let after = kib(host, "one-8", "/data");
    assert!(
        before < 32 << 10 && after > 48 << 10,
        "the Ceph image's filesystem: {before} KiB, then {after} KiB"
    );

    host.done("shutdown", &["one-8", "host", "8", "host"], None);
    free(host);
    // What was written is in the cluster, and nobody watches the images: they can be removed.
    let remove = "
        set -e
        rbd() { command timeout 60 rbd --conf /etc/ceph/second.conf --id one \"$@\"; }
        rbd export one/kept /tmp/written.image
        grep -c of-the-instance /tmp/written.image
        for image in one-sys-8-2 image-8-0 kept; do rbd rm one/$image; done
        rbd ls one";
    assert_eq!(host.ok(&["sh", "-c", remove]), "1\nimage\n");
}

/// What is behind each network block device that is connected: the program and its arguments.
fn connected(host: &Host<'_>) -> BTreeMap<String, String> {
    let script = "cd /sys/block; for d in nbd*; do [ ! -e $d/pid ] || \
                  echo $d $(tr '\\0' ' ' </proc/$(cat $d/pid)/cmdline); done";
    let told = host.ok(&["sh", "-c", script]);
    told.lines().filter_map(|l| l.split_once(' ')).map(|(d, l)| (d.to_owned(), l.to_owned())).collect()
}

/// Nothing of a VM is left, no program that gave it a disk either.
#[track_caller]
fn free(host: &Host<'_>) {
    host.clean();
    assert_eq!(connected(host), BTreeMap::new());
    eventually("the programs behind devices have ended", || {
        host.run(&["pidof", "qemu-nbd", "rbd-nbd"], "").code == 1
    });
}

/// How large the filesystem at `at` is for an instance.
fn kib(host: &Host<'_>, instance: &str, at: &str) -> u64 {
    let told = host.inside(instance, &format!("df -k {at}"));
    // Filesystem, size, used, available, per cent, mountpoint; a long name has a line of its own.
    told.split_whitespace().rev().nth(4).unwrap().parse().unwrap()
}
