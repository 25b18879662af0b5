//! The OpenNebula driver on real engines: its scripts called as `one_vmm_exec` calls them, on nodes of our own clusters.

mod console;
mod disks;
mod host;
mod lifecycle;
mod members;
mod moves;

use crate::common::World;
use host::*;
use std::{
    fmt::Write as _,
    fs,
    process::Command,
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};
use stead_testkit::{
    host::{lacks_programs, skipped},
    parts::Parts,
};

/// One test at a time: loop devices are the kernel's, and the paths behind them are the same on all hosts, so a test
/// could not tell its own from those of others.
fn alone() -> MutexGuard<'static, ()> {
    static LOOPS: Mutex<()> = Mutex::new(());
    LOOPS.lock().unwrap_or_else(PoisonError::into_inner)
}

fn every_script(host: &Host<'_>) {
    let mut parts = Parts::new();
    parts.run("devices", || lifecycle::devices(host));
    parts.run("lifecycle", || lifecycle::lifecycle(host));
    parts.run("lifecycle on the frontend itself", || lifecycle::lifecycle(&Host { local: true, ..*host }));
    parts.end();
}

#[test]
fn every_script_on_incus() {
    let _alone = alone();
    with_host("every_script_on_incus", "one-incus", "incus", "6.6.0", every_script);
}

#[test]
fn every_script_on_lxd() {
    let _alone = alone();
    with_host("every_script_on_lxd", "one-lxd", "lxd", "6.6.0", every_script);
}

#[test]
fn twenty_vms_at_once_and_broken_ones_among_them() {
    let _alone = alone();
    with_host("twenty_vms_at_once_and_broken_ones_among_them", "one-many", "incus", "6.6.0", |host| {
        const COUNT: u32 = 20;
        for id in 100..100 + COUNT {
            host.prepare(id);
            if id % 7 == 0 {
                // Nothing to mount in it: the deploy fails after the instance was made.
                host.ok(&["truncate", "-s", "24M", "/tmp/blank"]);
                host.ok(&["cp", "/tmp/blank", &format!("/var/lib/one/datastores/0/{id}/disk.0")]);
            }
        }
        let began = Instant::now();
        let answers: Vec<(u32, Answer)> = thread::scope(|scope| {
            let started: Vec<_> = (100..100 + COUNT)
                .map(|id| {
                    let call = move || {
                        let number = id.to_string();
                        let arguments = ["/var/lib/one//datastores/0/x", "host", number.as_str(), "host"];
                        host.call("deploy", &arguments, Some(&vm(id, "", "", "")))
                    };
                    (id, scope.spawn(call))
                })
                .collect();
            started.into_iter().map(|(id, t)| (id, t.join().unwrap())).collect()
        });
        let together = began.elapsed();
        for (id, answer) in &answers {
            let name = format!("one-{id}");
            if id % 7 == 0 {
                assert_eq!(answer.code, 1, "{name}: {}", answer.stderr);
                assert!(answer.stderr.contains("disk 0 is blank"), "{}", answer.stderr);
                assert_eq!(host.status(&name), "absent");
            } else {
                assert_eq!((answer.code, answer.stdout.trim()), (0, name.as_str()), "{}", answer.stderr);
                assert_eq!(host.status(&name), "RUNNING");
                host.inside(&name, &format!("echo {id} >/mine"));
            }
        }
        // Of all of them at once; the first call has no earlier reading and looks twice.
        let probe = ["sh", "-c", "time -p /var/tmp/one/im/incus-probes.d/vm/monitor/stead-vm-monitor.sh"];
        host.run(&["bash", "-c", probe[2]], "");
        let told = host.run(&["bash", "-c", probe[2]], "");
        assert_eq!(told.stdout.lines().count(), 17, "{}", told.stdout);
        println!("17 running instances are monitored, the program's start included: {}", told.stderr);
        let mut all = String::new();
        for id in (100..100 + COUNT).filter(|id| id % 7 != 0) {
            let _ = write!(all, "{}", host.inside(&format!("one-{id}"), "cat /mine"));
            let number = id.to_string();
            host.done("cancel", &[&format!("one-{id}"), "host", &number, "host"], None);
        }
        assert_eq!(all.lines().count(), 17, "{all}");
        host.clean();

        // One after the other takes longer: they do not wait for each other.
        let began = Instant::now();
        let deploy = |id: u32| {
            let number = id.to_string();
            host.done("deploy", &["/x", "host", &number, "host"], Some(&vm(id, "", "", "")))
        };
        let cancel = |id: u32| {
            let number = id.to_string();
            host.done("cancel", &[&format!("one-{id}"), "host", &number, "host"], None)
        };
        for id in [100, 101, 102, 103] {
            deploy(id);
        }
        let alone = began.elapsed() / 4;
        println!(
            "{COUNT} VMs deployed at once in {:.1} s, one alone in {:.2} s: {:.1} times as fast as one after the other",
            together.as_secs_f64(),
            alone.as_secs_f64(),
            alone.as_secs_f64() * f64::from(COUNT) / together.as_secs_f64(),
        );
        for id in [100, 101, 102, 103] {
            cancel(id);
        }
        // The lock of another VM holds up nobody who does not need it.
        let hold = "touch $0; exec flock --no-fork $0 sleep 300 & echo $!"
            .replace("$0", "/run/stead-one/locks/one-100");
        let holder = host.ok(&["sh", "-c", &format!("({hold}) 2>&1 </dev/null | head -1")]);
        thread::scope(|scope| {
            let waits = scope.spawn(|| {
                deploy(100);
                Instant::now()
            });
            thread::sleep(Duration::from_millis(300));
            let began = Instant::now();
            deploy(101);
            let took = began.elapsed();
            println!("with the lock of another held, one is deployed in {:.2} s", took.as_secs_f64());
            assert!(!waits.is_finished(), "the lock of a VM keeps nobody from it");
            let released = Instant::now();
            host.ok(&["sh", "-c", &format!("kill {}", holder.trim())]);
            assert!(waits.join().unwrap() > released, "the VM's lock held up nobody");
        });
        for id in [100, 101] {
            cancel(id);
        }
        host.clean();
    });
}

/// The script is killed at every moment of a deploy. The next one works, and nothing is left of either.
#[test]
fn a_deploy_killed_at_any_moment_is_done_over() {
    let _alone = alone();
    with_host("a_deploy_killed_at_any_moment_is_done_over", "one-kill", "incus", "6.6.0", |host| {
        host.prepare(7);
        host.ok(&["truncate", "-s", "24M", "/var/lib/one/datastores/0/7/disk.2"]);
        context_disk(host, 7, "A=1\n");
        let graphics = "<GRAPHICS><TYPE>vnc</TYPE><PORT>5907</PORT><PASSWD>secret</PASSWD></GRAPHICS>";
        let document = vm(7, "", &format!("{VOLATILE}{NIC}{CONTEXT}{graphics}"), "");
        host.run(&["sh", "-c", "cat >/run/document"], &document);
        let deploy = ["/x", "host", "7", "host"];
        let of_one7 = ["one-7", "host", "7", "host"];
        let mut killed = 0;
        for tenths in 0.. {
            // Finer where the disks are mapped.
            let seconds = format!("{:.2}", f64::from(tenths) * 0.04);
            let script = format!(
                "/var/tmp/one/vmm/incus/deploy /x host 7 host </run/document >/dev/null 2>&1 & p=$!; sleep {seconds}; \
                 kill -9 $p 2>/dev/null; wait $p; echo $?"
            );
            let code = host.ok(&["sh", "-c", &script]);
            if code.trim() == "0" {
                break;
            }
            assert!(tenths < 200, "the deploy never ends");
            killed += 1;
            let again = host.call("deploy", &deploy, Some(&document));
            assert!(again.code == 0, "killed after {seconds} s: {}", again.stderr);
            assert_eq!(host.status("one-7"), "RUNNING");
            assert_eq!(host.setting("one-7", "user.one_status"), "1");
            host.inside("one-7", "touch /data/written && cat /context/context.sh");
            host.done("cancel", &of_one7, None);
            host.clean();
        }
        println!("killed at {killed} moments");
        assert!(killed > 3);
        host.done("cancel", &of_one7, None);
        // Killed, and given up.
        let kill = "/var/tmp/one/vmm/incus/deploy /x host 7 host </run/document >/dev/null 2>&1 & p=$!; sleep 0.5; kill -9 $p; wait $p";
        host.run(&["sh", "-c", kill], "");
        host.done("cancel", &of_one7, None);
        assert_eq!(host.status("one-7"), "absent");
        host.clean();
    });
}

#[test]
fn instances_of_others_are_imported_and_never_deleted() {
    let _alone = alone();
    with_host("instances_of_others_are_imported_and_never_deleted", "one-wild", "incus", "6.6.0", |host| {
        // An instance somebody made, with a name that looks like ours.
        host.ok(&[
            "incus",
            "init",
            "--empty",
            "one-9-copy",
            "-c",
            "limits.memory=128MiB",
            "-c",
            "limits.cpu=1",
        ]);
        let root = "/var/lib/incus/storage-pools/default/containers/one-9-copy/rootfs";
        host.ok(&["sh", "-c", &format!("mkdir -p {root} /mnt && mount -o loop /var/lib/one/image /mnt && cp -a /mnt/. {root}/ && umount /mnt")]);
        host.ok(&["incus", "start", "one-9-copy"]);
        let system =
            host.ok(&["sh", "-c", "/var/tmp/one/im/incus-probes.d/host/system/stead-host-system.sh"]);
        assert!(
            system.contains("VM = [ ID=-1, DEPLOY_ID=one-9-copy, VM_NAME=one-9-copy, IMPORT_TEMPLATE=\""),
            "{system}"
        );
        // Imported as VM 42: stopped, started, given an interface, stopped for good.
        let imported = vm(42, "one-9-copy", NIC, "");
        let document = action("one-9-copy", &imported);
        let of_it = ["one-9-copy", "host", "42", "host"];
        host.done("shutdown", &of_it, None);
        assert_eq!(host.status("one-9-copy"), "STOPPED");
        let deployed = host.done("deploy", &["/x", "host", "42", "host"], Some(&imported));
        assert_eq!((deployed.as_str(), host.status("one-9-copy").as_str()), ("one-9-copy\n", "RUNNING"));
        let nic = ["one-9-copy", "02:00:c0:a8:00:01", "onebr0", "-", "bridge", "one-7-0", "42", "host"];
        host.done("attach_nic", &nic, Some(&document));
        host.done("detach_nic", &["one-9-copy", "02:00:c0:a8:00:01", "42", "host"], Some(&document));
        host.done("reboot", &of_it, None);
        assert_eq!(host.status("one-9-copy"), "RUNNING");
        for (script, arguments) in [
            ("save", &["one-9-copy", "/var/lib/one/datastores/0/x", "host", "42", "host"][..]),
            ("attach_disk", &["one-9-copy", "/x", "vdb", "1", "x", "42", "host"][..]),
            ("resize_disk", &["one-9-copy", "0", "99", "x", "host", "42", "host"][..]),
        ] {
            let answer = host.call(script, arguments, Some(&document));
            assert!(answer.code == 1 && answer.stderr.contains("imported"), "{script}: {}", answer.stderr);
        }
        host.done("cancel", &of_it, None);
        assert_eq!(host.status("one-9-copy"), "STOPPED");
        // Nor is one deleted that has a VM's exact name but no document of it.
        host.ok(&["incus", "init", "--empty", "one-50"]);
        let answer = host.call("deploy", &["/x", "host", "50", "host"], Some(&vm(50, "", "", "")));
        assert!(
            answer.code == 1 && answer.stderr.contains("that OpenNebula did not make"),
            "{}",
            answer.stderr
        );
        host.done("cancel", &["one-50", "host", "50", "host"], None);
        assert_eq!(host.status("one-50"), "STOPPED");
        host.ok(&["incus", "delete", "one-50", "one-9-copy"]);
        host.clean();

        // Installed again nothing changes; uninstalled nothing stays.
        let one = ["/usr/local/bin/stead", "one"];
        let remotes = ["--remotes", "/var/tmp/one"];
        let again = host.ok(&[&one[..], &["install"], &remotes].concat());
        assert_eq!(again, "everything is installed already\n");
        let check = host.run(&[&one[..], &["check", "--driver", "incus"], &remotes].concat(), "").stdout;
        for line in
            ["engine", "storage pool", "datastores", "loop devices", "qcow2", "ceph", "context disk", "sudo"]
        {
            assert!(check.lines().any(|l| l.starts_with(line)), "{line} is missing:\n{check}");
        }
        assert!(check.contains("oneadmin ALL=(root) NOPASSWD: /usr/local/bin/stead one run *"), "{check}");
        host.ok(&[&one[..], &["uninstall"], &remotes].concat());
        let twice = host.ok(&[&one[..], &["uninstall"], &remotes].concat());
        assert_eq!(twice, "nothing of the driver is installed\n");
        assert_eq!(host.ok(&["sh", "-c", Host::REMOTES]), host.ok(&["cat", "/var/lib/one/remotes"]));
    });
}

/// Scripts come as oneadmin, by a real sudo with the rule that `stead one check` prints and no other.
#[test]
fn oneadmin_runs_scripts_by_sudo() {
    let _alone = alone();
    with_host("oneadmin_runs_scripts_by_sudo", "one-sudo", "incus", "6.6.0", |host| {
        // Not in the image: Debian's package, if it can be had.
        let packages = host.world.state.join("packages");
        fs::create_dir(&packages).unwrap();
        let got = Command::new("timeout")
            .args(["60", "apt-get", "download", "sudo"])
            .current_dir(&packages)
            .output();
        let package = fs::read_dir(&packages).unwrap().flatten().next();
        let Some(package) = package.filter(|_| got.is_ok_and(|o| o.status.success())) else {
            skipped("oneadmin_runs_scripts_by_sudo", "Debian's package sudo cannot be had");
            return;
        };
        host.put(&package.path(), "/run/sudo.deb");
        host.ok(&["dpkg", "--install", "/run/sudo.deb"]);
        host.ok(&["useradd", "--system", "--home-dir", "/var/lib/one", "oneadmin"]);
        host.prepare(7);
        host.ok(&["chown", "-R", "oneadmin:", "/var/lib/one/datastores"]);
        let admin = |command: &str, input: &str| {
            let path = "PATH=/usr/local/bin:/usr/bin:/bin";
            host.run(&["runuser", "-u", "oneadmin", "--", "env", "-i", path, "sh", "-c", command], input)
        };
        let deploy = "/var/tmp/one/vmm/incus/deploy /x host 7 host";
        // Without the rule nothing happens, and OpenNebula is not told to copy its scripts again (42).
        let refused = admin(deploy, &vm(7, "", NIC, ""));
        assert!(refused.code == 1 && refused.stdout.is_empty(), "{}: {}", refused.code, refused.stderr);
        assert!(refused.stderr.contains("sudo: "), "{}", refused.stderr);
        let check = "/usr/local/bin/stead one check --driver incus";
        let told = admin(check, "").stdout;
        let (_, rule) = told.split_once("put into /etc/sudoers.d/stead-one: ").unwrap();
        let rule = format!("{}\n", rule.lines().next().unwrap().trim());
        host.run(&["sh", "-c", "umask 227; cat >/etc/sudoers.d/stead-one"], &rule);
        host.ok(&["visudo", "--check", "--strict"]);

        let deployed = admin(deploy, &vm(7, "", NIC, ""));
        assert_eq!((deployed.code, deployed.stdout.as_str()), (0, "one-7\n"), "{}", deployed.stderr);
        assert_eq!(host.status("one-7"), "RUNNING");
        assert!(admin("/var/tmp/one/vmm/incus/poll one-7 host 7 host", "").stdout.starts_with("STATE=a "));
        let probe = admin("/var/tmp/one/im/incus-probes.d/vm/status/stead-vm-status.sh", "");
        assert!(probe.stdout.contains("STATE=\"RUNNING\""), "{}\n{}", probe.stdout, probe.stderr);
        let sudo = admin(check, "").stdout;
        assert!(sudo.lines().any(|l| l.starts_with("sudo") && l.contains("good")), "{sudo}");
        for other in ["stead --version", "stead one install --remotes /tmp/x", "id"] {
            let other = admin(&format!("sudo -n {other}"), "");
            assert!(other.code == 1 && other.stdout.is_empty(), "{}", other.stdout);
        }
        let cancelled = admin("/var/tmp/one/vmm/incus/cancel one-7 host 7 host", "");
        assert_eq!(cancelled.code, 0, "{}", cancelled.stderr);
        host.clean();
    });
}

/// On a kernel of Debian, with network block devices and ISO 9660, and nodes with the datastores' programs.
fn disks_of_every_kind(test: &str, cluster: &'static str, driver: &'static str) {
    if lacks_programs(test, &["qemu-system-x86_64"]) {
        return;
    }
    let Some(w) = World::new(test, &[&format!("{driver}-node")]) else { return };
    let Some(image) = disks::build(&w, test, driver) else { return };
    let _alone = alone();
    with_node(&w, cluster, driver, "6.6.0", &image, disks::NODES, disks::every_kind);
}

#[test]
fn disks_of_every_kind_of_datastore_on_incus() {
    disks_of_every_kind("disks_of_every_kind_of_datastore_on_incus", "one-disks", "incus");
}

#[test]
fn disks_of_every_kind_of_datastore_on_lxd() {
    disks_of_every_kind("disks_of_every_kind_of_datastore_on_lxd", "one-disks-lxd", "lxd");
}

/// On a kernel of Debian, with cgroup v2 alone and device mapper, which nodes in namespaces do not have here.
#[test]
fn values_of_cgroup_v2_and_logical_volumes_on_a_kernel_of_its_own() {
    let test = "values_of_cgroup_v2_and_logical_volumes_on_a_kernel_of_its_own";
    if lacks_programs(test, &["qemu-system-x86_64"]) {
        return;
    }
    let _alone = alone();
    with_machine(test, "one-qemu", "incus", "6.6.0", "backend: qemu, memory: 1GiB", |host| {
        host.ok(&["test", "-e", "/sys/fs/cgroup/cgroup.controllers"]);
        host.prepare(7);
        // As the LVM transfer driver leaves a volume: a link to a link to the device.
        let volume = "set -e; truncate -s 64M /var/lib/one/volume; l=$(losetup -f --show /var/lib/one/volume); \
                      dmsetup create vg--one--0-lv--one--7--2 --table \"0 65536 linear $l 0\" && dmsetup mknodes; \
                      mkdir /dev/vg-one-0; ln -s ../mapper/vg--one--0-lv--one--7--2 /dev/vg-one-0/lv-one-7-2; \
                      ln -s /dev/vg-one-0/lv-one-7-2 /var/lib/one/datastores/0/7/disk.2; echo $l";
        let device = host.ok(&["sh", "-c", volume]).trim().to_owned();
        let disk = "<DISK><DISK_ID>2</DISK_ID><TYPE>fs</TYPE><DISK_TYPE>BLOCK</DISK_TYPE><TARGET>/data</TARGET>\
                    <TOTAL_IOPS_SEC>500</TOTAL_IOPS_SEC></DISK>";
        host.done("deploy", &["/x", "host", "7", "host"], Some(&vm(7, "", disk, "")));
        host.inside("one-7", "touch /data/written && ls -ln /data/written | grep -q ' 0  *0 '");
        lifecycle::monitoring(host);
        let limits = host.ok(&["sh", "-c", "cat /sys/fs/cgroup/lxc.payload.one-7/io.max"]);
        assert!(limits.contains("riops=500 wiops=500"), "{limits}");
        let grow = format!(
            "v=vg--one--0-lv--one--7--2; dmsetup reload $v --table '0 131072 linear {device} 0' && dmsetup suspend $v && dmsetup resume $v"
        );
        host.ok(&["sh", "-c", &grow]);
        let document = action("one-7", &vm(7, "one-7", disk, ""));
        host.done("resize_disk", &["one-7", "2", "64", "x", "host", "7", "host"], Some(&document));
        let size = host.inside("one-7", "df -k /data | grep data");
        let size: u64 = size.split_whitespace().rev().nth(4).unwrap().parse().unwrap();
        assert!(size > 48 << 10, "the volume's filesystem has not grown: {size} KiB");
        host.done("cancel", &["one-7", "host", "7", "host"], None);
        // The volume is the transfer driver's to remove, and nothing uses it.
        host.ok(&["dmsetup", "remove", "vg--one--0-lv--one--7--2"]);
        host.ok(&["losetup", "--detach", &device]);
        host.clean();
    });
}
