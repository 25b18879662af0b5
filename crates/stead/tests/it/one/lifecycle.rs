//! Every script in the order a VM could live through them.

use super::host::*;
use crate::common::eventually;
use std::{thread, time::Duration};

/// Every action in the order a VM could live through them.
pub fn lifecycle(host: &Host<'_>) {
    host.prepare(7);
    context_disk(host, 7, "ETH0_IP=10.0.0.7\n");
    host.ok(&["truncate", "-s", "24M", "/var/lib/one/datastores/0/7/disk.2"]);
    let more = format!(
        "{VOLATILE}{SWAP}{NIC}{CONTEXT}<RAW><TYPE>lxd</TYPE><DATA><![CDATA[\"user.mine\": \"kept\"]]></DATA></RAW>"
    );
    let new = vm(7, "", &more, "");
    let running = action("one-7", &vm(7, "one-7", &more, ""));
    let deploy = ["/var/lib/one//datastores/0/7/deployment.0", "host", "7", "host"];
    let of_one7 = ["one-7", "host", "7", "host"];

    assert_eq!(host.done("deploy", &deploy, Some(&new)), "one-7\n");
    assert_eq!(host.status("one-7"), "RUNNING");
    assert_eq!(host.setting("one-7", "user.one_status"), "1");
    assert_eq!(host.setting("one-7", "user.mine"), "kept");
    assert_eq!(host.setting("one-7", "limits.memory"), "64MiB");
    assert_eq!(host.inside("one-7", "cat /context/context.sh"), "ETH0_IP=10.0.0.7\n");
    // Root of the instance, shifted on the host, is root on all of its disks.
    host.inside("one-7", "touch /written /data/written && ls -ln /data/written | grep -q ' 0  *0 '");
    assert!(host.inside("one-7", "cat /sys/class/net/eth0/address").contains("02:00:c0:a8:00:01"));
    let port = host.ok(&["ip", "-o", "link", "show", "one-7-0"]);
    assert!(port.contains("master onebr0"), "{port}");
    // 1000 kB a second.
    let class = host.ok(&["tc", "class", "show", "dev", "one-7-0"]);
    assert!(class.contains("rate 8Mbit"), "{class}");

    // Asked again it is as it should be; another VM in its place is refused.
    host.inside("one-7", "echo >/tmp/since-when");
    let same = host.call("deploy", &deploy, Some(&new));
    assert_eq!((same.code, same.stdout.as_str()), (0, "one-7\n"), "{}", same.stderr);
    assert!(same.stderr.contains("runs already, as this document wants it"), "{}", same.stderr);
    host.inside("one-7", "ls /tmp/since-when");
    let other = vm(
        7,
        "",
        &format!("{more}<NIC><NIC_ID>1</NIC_ID><BRIDGE>onebr0</BRIDGE><MAC>02:00:c0:a8:00:09</MAC></NIC>"),
        "",
    );
    let again = host.call("deploy", &deploy, Some(&other));
    assert_eq!(again.code, 1, "{}", again.stderr);
    assert!(again.stderr.contains("ERROR: deploy: instance one-7 is running already"), "{}", again.stderr);
    assert!(
        again.stderr.contains(
            "ERROR MESSAGE --8<------\ninstance one-7 is running already\nERROR MESSAGE ------>8--"
        )
    );
    assert_eq!(host.status("one-7"), "RUNNING");

    monitoring(host);

    // Interfaces and disks come and go.
    let nic = "<NIC><NIC_ID>1</NIC_ID><BRIDGE>onebr0</BRIDGE><MAC>02:00:c0:a8:00:02</MAC><TARGET>one-7-1</TARGET><VN_MAD>ovswitch</VN_MAD><ATTACH>YES</ATTACH></NIC>";
    let with_nic = action("one-7", &vm(7, "one-7", &format!("{more}{nic}"), ""));
    let attach_nic = ["one-7", "02:00:c0:a8:00:02", "onebr0", "-", "ovswitch", "one-7-1", "7", "host"];
    host.done("attach_nic", &attach_nic, Some(&with_nic));
    assert!(host.inside("one-7", "cat /sys/class/net/eth1/address").contains("02:00:c0:a8:00:02"));
    let detach_nic = ["one-7", "02:00:c0:a8:00:02", "7", "host"];
    ports_dropped(host);
    host.done("detach_nic", &detach_nic, Some(&with_nic));
    assert!(!host.inside("one-7", "ls /sys/class/net").contains("eth1"));
    assert_eq!(ports_dropped(host), "--if-exists del-port onebr0 one-7-1\n");

    host.ok(&["truncate", "-s", "320M", "/var/lib/one/datastores/0/7/disk.4"]);
    let disk = "<DISK><DISK_ID>4</DISK_ID><TYPE>fs</TYPE><FS>xfs</FS><DRIVER>raw</DRIVER><SIZE>320</SIZE><TARGET>vdd</TARGET><ATTACH>YES</ATTACH></DISK>";
    let with_disk = action("one-7", &vm(7, "one-7", &format!("{more}{disk}"), ""));
    let path = "/var/lib/one//datastores/0/7/disk.4";
    host.done("attach_disk", &["one-7", path, "vdd", "3", "PFZNLz4=", "7", "host"], Some(&with_disk));
    host.inside("one-7", "echo x >/media/4/file");
    host.ok(&["truncate", "-s", "420M", "/var/lib/one/datastores/0/7/disk.4"]);
    host.done("resize_disk", &["one-7", "4", "420", "PFZNLz4=", "host", "7", "host"], Some(&with_disk));
    let size: u64 = host
        .inside("one-7", "df -k /media/4 | grep media")
        .split_whitespace()
        .nth(1)
        .unwrap()
        .parse()
        .unwrap();
    assert!(size > 330 << 10, "the disk has not grown: {size} KiB");
    host.done("detach_disk", &["one-7", path, "vdd", "3", "7", "host"], Some(&with_disk));
    assert!(!host.inside("one-7", "cat /proc/mounts").contains("/media/4"));

    // New context.
    host.done("prereconfigure", &["one-7", "hda", "7", "host"], Some(&running));
    context_disk(host, 7, "ETH0_IP=10.0.0.77\n");
    let reconfigure = ["one-7", "hda", "/var/lib/one//datastores/0/7/disk.1", "7", "host"];
    host.done("reconfigure", &reconfigure, Some(&running));
    assert_eq!(host.inside("one-7", "cat /context/context.sh"), "ETH0_IP=10.0.0.77\n");

    // CPU and memory.
    let larger =
        running.replace("<MEMORY><![CDATA[64]]>", "<MEMORY><![CDATA[96]]>").replace("[0.5]", "[0.75]");
    host.done("resize", &["one-7", "7", "host"], Some(&larger));
    assert_eq!(host.setting("one-7", "limits.memory"), "96MiB");
    assert_eq!(host.setting("one-7", "limits.cpu.allowance"), "75%");

    // Snapshots, also across a reboot. What came since then stays.
    host.inside("one-7", "echo before >/state");
    assert_eq!(host.done("snapshot_create", &["one-7", "0", "7", "host"], None), "snap-0\n");
    host.inside("one-7", "echo after >/state");
    restart(host, "reboot");
    assert_eq!(host.inside("one-7", "cat /state"), "after\n");
    host.done("attach_nic", &attach_nic, Some(&with_nic));
    let larger = larger.replace("[96]", "[128]");
    host.done("resize", &["one-7", "7", "host"], Some(&larger));
    let unknown = host.call("snapshot_revert", &["one-7", "snap-9", "7", "host"], None);
    assert!(unknown.code == 1 && unknown.stderr.contains("has no snapshot snap-9"), "{}", unknown.stderr);
    assert_eq!(host.inside("one-7", "cat /state"), "after\n");
    host.done("snapshot_revert", &["one-7", "snap-0", "7", "host"], None);
    assert_eq!(host.status("one-7"), "RUNNING");
    assert_eq!(host.setting("one-7", "user.one_status"), "1");
    assert_eq!(host.inside("one-7", "cat /state"), "before\n");
    assert_eq!(host.setting("one-7", "limits.memory"), "128MiB");
    assert!(host.inside("one-7", "cat /sys/class/net/eth1/address").contains("02:00:c0:a8:00:02"));
    host.inside("one-7", "touch /root/again && ls -ln /root/again /data/written | grep -q ' 0  *0 '");
    // An Open vSwitch port of an interface that came later goes, too, when the instance stops.
    ports_dropped(host);
    restart(host, "reset");
    assert_eq!(ports_dropped(host), "--if-exists del-port onebr0 one-7-1\n");
    assert!(host.inside("one-7", "ls /sys/class/net").contains("eth1"));
    host.done("detach_nic", &detach_nic, Some(&with_nic));

    // One that went down by itself runs after a reboot, however often the script is called for it.
    host.ok(&[host.client(), "stop", "-f", "one-7"]);
    for _ in 0..if host.driver == "lxd" { 2 } else { 1 } {
        host.done("reboot", &of_one7, None);
    }
    assert_eq!(host.status("one-7"), "RUNNING");
    assert_eq!(host.setting("one-7", "user.one_status"), "1");

    // A VM with snapshots is saved with them, on this host; monitoring neither tells of it nor misses others for it.
    let checkpoint = "/var/lib/one//datastores/0/7/checkpoint";
    host.done("save", &["one-7", checkpoint, "host", "7", "host"], None);
    assert_eq!(host.status("one-7"), "STOPPED");
    let status = probe(host, "vm/status/stead-vm-status.sh");
    assert!(status.contains("SYNC_STATE=yes") && !status.contains("one-7"), "{status}");
    host.clean();
    host.done("restore", &[checkpoint, "host", "one-7", "7", "host"], Some(&running));
    host.inside("one-7", "echo later >/state");
    host.done("snapshot_revert", &["one-7", "snap-0", "7", "host"], None);
    assert_eq!(host.inside("one-7", "cat /state"), "before\n");
    host.done("snapshot_delete", &["one-7", "snap-0", "7", "host"], None);
    host.done("snapshot_delete", &["one-7", "snap-0", "7", "host"], None);

    // What cannot be saved goes on.
    host.ok(&["mkdir", "-p", "/var/lib/one/datastores/0/7/taken/x"]);
    let taken = "/var/lib/one//datastores/0/7/taken";
    let failed = host.call("save", &["one-7", taken, "host", "7", "host"], None);
    assert!(failed.code == 1 && failed.stderr.contains("ERROR: save: cannot write"), "{}", failed.stderr);
    assert_eq!(host.status("one-7"), "RUNNING");
    assert_eq!(host.setting("one-7", "user.one_status"), "1");
    host.ok(&["rm", "-r", taken]);

    // Saved and restored; the file is the disk's.
    let saved = host.call("save", &["one-7", checkpoint, "host", "7", "host"], None);
    assert_eq!(saved.code, 0, "{}", saved.stderr);
    assert!(saved.stderr.contains("the processes' state cannot be kept"), "{}", saved.stderr);
    assert_eq!(host.status("one-7"), "absent");
    host.clean();
    host.done("restore", &[checkpoint, "host", "one-7", "7", "host"], Some(&running));
    assert_eq!(host.inside("one-7", "cat /state"), "before\n");
    assert_eq!(host.inside("one-7", "ls /data"), "lost+found\nwritten\n");

    hanging_guests(host);

    let elsewhere = host.call("save", &["one-7", "/etc/checkpoint", "host", "7", "host"], None);
    assert!(elsewhere.code == 1 && elsewhere.stderr.contains("is not in"), "{}", elsewhere.stderr);

    host.done("shutdown", &of_one7, None);
    assert_eq!(host.status("one-7"), "absent");
    host.clean();
    host.ok(&["test", "-s", "/var/lib/one/datastores/0/7/idmaps.lxd"]);

    // Forced, and for one that is gone already.
    host.done("deploy", &deploy, Some(&new));
    // Deployed anew, root is root still: the owners were not shifted twice.
    host.inside("one-7", "touch /again && ls -ln /written | grep -q ' 0  *0 '");
    host.done("cancel", &of_one7, None);
    host.done("cancel", &of_one7, None);
    assert_eq!(host.status("one-7"), "absent");
    host.clean();
    host.ok(&["rm", "-r", "/var/lib/one/datastores/0/7"]);
}

/// A guest that hears nothing: a shutdown ends with an error and leaves everything as it was for monitoring; a cancel wins,
/// after it and while it lasts.
fn hanging_guests(host: &Host<'_>) {
    let of_one7 = ["one-7", "host", "7", "host"];
    let deaf = |host: &Host<'_>| {
        let script = format!("kill -STOP $({} info one-7 | sed -n 's/^P[Ii][Dd]: //p')", host.client());
        host.ok(&["sh", "-c", &script]);
    };
    let rc = format!("/var/tmp/one/etc/vmm/{}/lxdrc", host.driver);
    let set = |seconds: u32| {
        host.ok(&["sed", "-i", &format!("s/^:shutdown_timeout:.*/:shutdown_timeout: {seconds}/"), &rc]);
    };
    let status = |host: &Host<'_>| probe(host, "vm/status/stead-vm-status.sh");
    let shown =
        "SYNC_STATE=yes\nMISSING_STATE=POWEROFF\nVM = [ ID=\"7\", DEPLOY_ID=\"one-7\", STATE=\"RUNNING\" ]\n";
    set(2);
    for _ in 0..2 {
        deaf(host);
        let late = host.call("shutdown", &of_one7, None);
        assert_eq!(late.code, 1, "{}", late.stderr);
        assert_eq!(status(host), shown, "{}", late.stderr);
        host.done("cancel", &of_one7, None);
        assert_eq!(host.status("one-7"), "absent");
        host.clean();
        redeploy(host);
    }
    set(120);
    deaf(host);
    let asked = format!("/var/tmp/one/vmm/{}/shutdown one-7 host 7 host", host.driver);
    let begin = format!(
        "{asked} >/dev/null 2>&1 & while flock -n /run/stead-one/locks/one-7 true; do sleep 0.05; done"
    );
    host.ok(&["sh", "-c", &begin]);
    assert_eq!(status(host), shown, "one that is being shut down runs");
    host.done("cancel", &of_one7, None);
    assert_eq!(host.status("one-7"), "absent");
    host.clean();
    redeploy(host);
}

/// The VM as [`lifecycle`] has it.
fn redeploy(host: &Host<'_>) {
    let more = format!("{VOLATILE}{SWAP}{NIC}{CONTEXT}");
    host.done("deploy", &["/x", "host", "7", "host"], Some(&vm(7, "", &more, "")));
}

/// Pinning and I/O limits as the kernel has them; PCI devices that cannot be given.
pub fn devices(host: &Host<'_>) {
    host.prepare(8);
    host.ok(&["truncate", "-s", "24M", "/var/lib/one/datastores/0/8/disk.2"]);
    let limited = VOLATILE.replace("<TARGET>", "<TOTAL_IOPS_SEC>500</TOTAL_IOPS_SEC><TARGET>");
    let more = format!("{limited}<NUMA_NODE><CPUS>1</CPUS></NUMA_NODE>");
    let deploy = ["/x", "host", "8", "host"];
    host.done("deploy", &deploy, Some(&vm(8, "", &more, "")));
    // One CPU alone would be a number of CPUs. LXD 5.0 leaves instances on all CPUs on these nodes: of it only what it was
    // told is looked at.
    assert_eq!(host.setting("one-8", "limits.cpu"), "1-1");
    if host.driver == "incus" {
        eventually("it runs on the CPU that it is pinned to", || {
            let allowed = host.inside("one-8", "grep Cpus_allowed_list /proc/self/status");
            allowed.trim() == "Cpus_allowed_list:\t1"
        });
    }
    let find = ["find", "/sys/fs/cgroup", "-path", "*payload*one-8/*", "-name"];
    let limits: String = ["blkio.throttle.read_iops_device", "io.max"]
        .iter()
        .flat_map(|file| {
            host.ok(&[&find[..], &[*file]].concat()).lines().map(str::to_owned).collect::<Vec<_>>()
        })
        .map(|path| host.ok(&["cat", &path]))
        .collect();
    assert!(limits.contains("500"), "no I/O limit: {limits:?}");
    // All nodes' CPUs.
    host.done("cancel", &["one-8", "host", "8", "host"], None);
    let two = format!("{more}<NUMA_NODE><CPUS>0</CPUS></NUMA_NODE>");
    host.done("deploy", &deploy, Some(&vm(8, "", &two, "")));
    assert_eq!(host.setting("one-8", "limits.cpu"), "0,1");
    host.done("cancel", &["one-8", "host", "8", "host"], None);

    let present = host.ok(&["sh", "-c", "ls /sys/bus/pci/devices 2>/dev/null | head -1"]);
    let present = (!present.is_empty()).then(|| present.trim().to_owned());
    let cases =
        [(present, "cannot be given to a container"), (Some("0000:ff:1f.7".to_owned()), "has no PCI device")];
    for (address, why) in cases {
        let Some(address) = address else { continue };
        let pci = format!("<PCI><ADDRESS>{address}</ADDRESS></PCI>");
        let refused = host.call("deploy", &deploy, Some(&vm(8, "", &pci, "")));
        assert!(refused.code == 1 && refused.stderr.contains(why), "{address}: {}", refused.stderr);
        assert_eq!(host.status("one-8"), "absent");
    }
    host.clean();
    host.ok(&["rm", "-r", "/var/lib/one/datastores/0/8"]);
}

/// What Open vSwitch was told since the last time, but for what the engine told it.
fn ports_dropped(host: &Host<'_>) -> String {
    let told = host.ok(&["sh", "-c", "cat /run/ovs-vsctl.log 2>/dev/null; rm -f /run/ovs-vsctl.log"]);
    told.lines().filter(|l| l.contains("del-port")).map(|l| format!("{l}\n")).collect()
}

/// By the path and with the arguments of OpenNebula's client (seen with 6.6.3 and 7.4.0), which sends its configuration.
fn probe(host: &Host<'_>, path: &str) -> String {
    let driver = host.driver;
    let line = format!("/var/tmp/one/im/{driver}.d/../{driver}-probes.d/{path} {driver} 0 host");
    host.ok(&["sh", "-c", &format!("echo '<MONITOR_CONFIGURATION/>' | {line}")])
}

/// Twice, as 5.10 to 6.8 do for drivers of the name lxd; once otherwise.
pub fn restart(host: &Host<'_>, script: &str) {
    let count =
        |host: &Host<'_>| host.inside("one-7", "cat /var/boots | wc -l").trim().parse::<u32>().unwrap();
    let before = count(host);
    let of_one7 = ["one-7", "host", "7", "host"];
    host.done(script, &of_one7, None);
    if host.driver == "lxd" {
        assert_eq!(host.status("one-7"), "STOPPED");
        host.done(script, &of_one7, None);
    }
    assert_eq!(host.status("one-7"), "RUNNING");
    eventually("it has started once more", || count(host) == before + 1);
    assert_eq!(host.setting("one-7", "user.one_status"), "1");
}

/// poll and the probes, with an instance of somebody else beside.
pub fn monitoring(host: &Host<'_>) {
    let line = host.done("poll", &["one-7", "host", "7", "host"], None);
    assert!(line.starts_with("STATE=a MEMORY="), "{line}");
    let memory: u64 = line.split("MEMORY=").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
    let (version, of_kernel, _) = kernel_says(host, "one-7", ["memory.usage_in_bytes", "memory.current"]);
    println!("{}: memory {memory} KiB, cgroup v{version} says {} KiB", host.driver, of_kernel >> 10);
    assert!((of_kernel >> 10).abs_diff(memory) < 2048, "{memory} KiB, the kernel says {of_kernel} bytes");
    assert!((100..64 << 10).contains(&memory), "{memory} KiB");
    let probe = |path: &str| probe(host, path);
    let status = probe("vm/status/stead-vm-status.sh");
    assert!(
        status.contains("SYNC_STATE=yes")
            && status.contains("VM = [ ID=\"7\", DEPLOY_ID=\"one-7\", STATE=\"RUNNING\" ]"),
        "{status}"
    );
    assert!(probe("vm/monitor/stead-vm-monitor.sh").contains("VM = [ ID=7, DEPLOY_ID=one-7, MONITOR=\""));
    let system = probe("host/system/stead-host-system.sh");
    for key in ["ARCH=", "TOTALCPU=", "TOTALMEMORY=", "LXD_PROFILES="] {
        assert!(system.contains(key), "{key} is missing:\n{system}");
    }
    assert!(!system.contains("ID=-1"), "{system}");
    assert!(system.contains(&format!("HYPERVISOR={}\n", host.driver)), "{system}");
    assert!(probe("host/monitor/stead-host-usage.sh").contains("FREECPU="));
    // A busy loop uses a core; as much as there is to have.
    host.ok(&[
        "sh",
        "-c",
        &format!(
            "{} exec one-7 -- /bin/sh -c 'while :; do :; done' >/dev/null 2>&1 & sleep 1",
            host.client()
        ),
    ]);
    host.done("poll", &["one-7", "host", "7", "host"], None);
    let cpu_time = || kernel_says(host, "one-7", ["cpuacct.usage", "cpu.stat"]);
    let (_, before, began) = cpu_time();
    thread::sleep(Duration::from_secs(2));
    let line = host.done("poll", &["one-7", "host", "7", "host"], None);
    let (_, after, ended) = cpu_time();
    let of_kernel = (after - before) as f64 * 100.0 / (ended - began) as f64;
    let cpu: f64 = line.trim().split("CPU=").nth(1).unwrap().parse().unwrap();
    println!("{}: CPU {cpu} %, by the kernel's counter {of_kernel:.0} %", host.driver);
    assert!((5.0..=250.0).contains(&cpu) && (cpu - of_kernel).abs() < 15.0, "{line}, kernel: {of_kernel}");
}

/// What the kernel counts for an instance: whether on cgroup v1 or v2, the count in bytes or nanoseconds, and when that was,
/// in nanoseconds of the node's clock.
fn kernel_says(host: &Host<'_>, instance: &str, files: [&str; 2]) -> (u8, u64, u64) {
    for (version, file) in [1, 2].into_iter().zip(files) {
        let find = ["find", "/sys/fs/cgroup", "-path", &format!("*payload*{instance}/{file}")];
        if let Some(path) = host.run(&find, "").stdout.lines().next() {
            let text = host.ok(&["sh", "-c", &format!("cat '{path}'; date +%s%N")]);
            let at_ns = text.lines().last().unwrap().parse().unwrap();
            // cpu.stat has lines, and counts microseconds.
            let number = match text.lines().find_map(|l| l.strip_prefix("usage_usec ")) {
                Some(usec) => usec.trim().parse::<u64>().unwrap() * 1000,
                None => text.lines().next().unwrap().trim().parse().unwrap(),
            };
            return (version, number, at_ns);
        }
    }
    panic!("no {files:?} of {instance} in /sys/fs/cgroup");
}
