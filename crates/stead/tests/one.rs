//! The OpenNebula driver on real engines: its scripts called as `one_vmm_exec` calls them, on nodes of our own clusters.

mod common;
use common::{World, eventually, said};
use std::{
    fmt::Write as _,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

/// One test at a time: loop devices are the kernel's, and the paths behind them are the same on all hosts, so a test
/// could not tell its own from those of others.
static LOOPS: Mutex<()> = Mutex::new(());

/// A host: a node with the driver installed as on a host of OpenNebula.
struct Host<'w> {
    world: &'w World,
    cluster: &'static str,
    node: &'static str,
    /// `lxd` or `incus`: the driver's directory, and the stock client's name with it.
    driver: &'static str,
}

const INIT: &str = "#!/bin/busybox sh
# Runs until it is asked to stop. Each start leaves a line.
/bin/busybox mount -t proc proc /proc 2>/dev/null
trap 'exit 0' PWR TERM
echo started >>/var/boots
while :; do /bin/busybox sleep 1 & wait $!; done
";
/// What oned's ssh gives a script: little.
const ENVIRONMENT: [&str; 3] = ["PATH=/usr/local/bin:/usr/bin:/bin", "HOME=/var/lib/one", "LANG=C"];

struct Answer {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Host<'_> {
    /// Runs a command on the node, with this input.
    fn run(&self, command: &[&str], input: &str) -> Answer {
        let mut args = vec!["exec", "-T", self.cluster, self.node, "--"];
        args.extend(command);
        let mut child = self
            .world
            .command(&args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_owned();
        // A script that reads nothing closes it.
        let writer = thread::spawn(move || drop(stdin.write_all(input.as_bytes())));
        let said = said(child.wait_with_output().unwrap());
        writer.join().unwrap();
        Answer { code: said.code, stdout: said.stdout, stderr: said.stderr }
    }
    #[track_caller]
    fn ok(&self, command: &[&str]) -> String {
        let answer = self.run(command, "");
        assert!(answer.code == 0, "{command:?}: {}\n{}\n{}", answer.code, answer.stdout, answer.stderr);
        answer.stdout
    }
    /// As one_vmm_exec over ssh: a shell gets `cat << EOT | script arguments` on its stdin; what comes after the document
    /// is the shell's next command, which a script that reads too much would swallow.
    fn call(&self, script: &str, arguments: &[&str], document: Option<&str>) -> Answer {
        let quoted: Vec<String> = arguments.iter().map(|a| format!("'{a}'")).collect();
        let path = format!("/var/tmp/one/vmm/{}/{script}", self.driver);
        let line = format!("{path} {}", quoted.join(" "));
        let text = match document {
            Some(document) => format!("cat << 'EOT' | {line}\n{document}\nEOT\n"),
            // 5.8 sends nothing: stdin is the shell's own.
            None => format!("{line}\n"),
        };
        let text = format!("cd /var/lib/one\n{text}echo \"ExitCode: $?\" >&2\nexit 0\n");
        let mut command = vec!["env", "-i"];
        command.extend(ENVIRONMENT);
        command.extend(["sh", "-s"]);
        let answer = self.run(&command, &text);
        let (stderr, code) = answer.stderr.rsplit_once("ExitCode: ").unwrap_or_else(|| {
            panic!("{script} swallowed the shell's next command:\n{}\n{}", answer.stdout, answer.stderr)
        });
        Answer { code: code.trim().parse().unwrap(), stdout: answer.stdout, stderr: stderr.to_owned() }
    }
    #[track_caller]
    fn done(&self, script: &str, arguments: &[&str], document: Option<&str>) -> String {
        let answer = self.call(script, arguments, document);
        assert!(
            answer.code == 0,
            "{script} {arguments:?}: exit {}\n{}\n{}",
            answer.code,
            answer.stdout,
            answer.stderr
        );
        answer.stdout
    }
    /// The stock client, on the node.
    fn client(&self) -> &'static str {
        if self.driver == "lxd" { "lxc" } else { "incus" }
    }
    #[track_caller]
    fn inside(&self, instance: &str, command: &str) -> String {
        self.ok(&[self.client(), "exec", instance, "--", "/bin/sh", "-c", command])
    }
    fn status(&self, instance: &str) -> String {
        let list = self.run(&[self.client(), "list", "--format", "csv", "-c", "ns"], "").stdout;
        let line = list.lines().find_map(|l| l.strip_prefix(&format!("{instance},")).map(str::to_owned));
        line.unwrap_or_else(|| "absent".to_owned())
    }
    fn setting(&self, instance: &str, key: &str) -> String {
        self.ok(&[self.client(), "config", "get", instance, key]).trim().to_owned()
    }
    /// What VMs have on the host: mounts below the driver's directory and into instances, loop devices, processes.
    fn leftovers(&self) -> String {
        // Loop devices are the kernel's: those of a node with the same datastores are seen here too.
        let loops = if self.cluster == "one-move" { "" } else { "/var/lib/one/datastores" };
        let script = &format!(
            "cat /proc/self/mountinfo | cut -d' ' -f5 | grep -E '^/run/stead-one|/rootfs' ; \
                      for f in /sys/block/loop*/loop/backing_file; do [ -n '{loops}' ] && grep -H '{loops}' $f; done 2>/dev/null; \
                      for d in /run/stead-one/one-*; do [ -e \"$d\" ] && find $d; done; true"
        );
        self.ok(&["sh", "-c", script])
    }
    #[track_caller]
    fn clean(&self) {
        eventually("the host is clean", Duration::from_secs(5), || {
            let left = self.leftovers();
            if !left.is_empty() {
                println!("left: {left}");
            }
            left.is_empty()
        });
    }
    /// Puts a file of the test's machine on the node.
    fn put(&self, from: &Path, to: &str) {
        let to = format!("{}/{}:{to}", self.cluster, self.node);
        self.world.ok(&["cp", from.to_str().unwrap(), &to]);
    }
    /// The directory of a VM, with its root disk.
    fn prepare(&self, vm: u32) {
        let directory = format!("/var/lib/one/datastores/0/{vm}");
        self.ok(&["mkdir", "-p", &directory]);
        self.ok(&["cp", "/var/lib/one/image", &format!("{directory}/disk.0")]);
    }
    fn install(&self, image: &Path, version: &str) {
        self.ok(&[
            "sh",
            "-c",
            "mkdir -p /var/lib/one/datastores/0 /var/lib/one/datastores/1 /var/tmp/one /usr/local/bin",
        ]);
        // Nodes in namespaces have no devtmpfs.
        self.ok(&[
            "sh",
            "-c",
            "for i in $(seq 0 255); do [ -e /dev/loop$i ] || mknod /dev/loop$i b 7 $i; done",
        ]);
        let program = self.world.state.join("stead");
        if !program.exists() {
            fs::copy(env!("CARGO_BIN_EXE_stead"), &program).unwrap();
            // Debug information is not needed there.
            let _ = Command::new("strip").arg(&program).status();
        }
        self.put(&program, "/usr/local/bin/stead");
        self.put(image, "/var/lib/one/image");
        self.ok(&["/usr/local/bin/stead", "one", "install", "--remotes", "/var/tmp/one"]);
        self.run(&["sh", "-c", "cat >/var/tmp/one/VERSION"], version);
        self.ok(&["ip", "link", "add", "onebr0", "type", "bridge"]);
        self.ok(&["ip", "link", "set", "onebr0", "up"]);
    }
}

/// An image with a root filesystem that starts in no time: busybox and an init of a few lines.
fn image(w: &World) -> Option<PathBuf> {
    let root = w.state.join("root");
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].iter().find(|p| Path::new(p).exists());
    let Some(busybox) = busybox else {
        println!("SKIP one: busybox is not installed");
        return None;
    };
    for directory in ["bin", "sbin", "etc", "proc", "sys", "dev", "run", "tmp", "root", "var"] {
        fs::create_dir_all(root.join(directory)).unwrap();
    }
    fs::copy(busybox, root.join("bin/busybox")).unwrap();
    for applet in ["sh", "ls", "cat", "echo", "id", "touch", "df", "stty", "grep", "ip", "hostname", "wc"] {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    fs::write(root.join("sbin/init"), INIT).unwrap();
    let mode = |path: &Path| {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    };
    mode(&root.join("sbin/init"));
    let image = w.state.join("image");
    fs::File::create(&image).unwrap().set_len(24 << 20).unwrap();
    let made = Command::new("mkfs.ext4").args(["-qF", "-d"]).arg(&root).arg(&image).status();
    if !made.is_ok_and(|s| s.success()) {
        println!("SKIP one: mkfs.ext4 is not installed");
        return None;
    }
    Some(image)
}

/// A VM as oned writes it. `more` goes into TEMPLATE.
fn vm(id: u32, deploy_id: &str, more: &str, user: &str) -> String {
    format!(
        "<VM><ID>{id}</ID><NAME>vm{id}</NAME><DEPLOY_ID>{deploy_id}</DEPLOY_ID><TEMPLATE><CPU><![CDATA[0.5]]></CPU>\
         <VCPU><![CDATA[1]]></VCPU><MEMORY><![CDATA[64]]></MEMORY><VMID><![CDATA[{id}]]></VMID>\
         <DISK><DISK_ID><![CDATA[0]]></DISK_ID><DISK_TYPE>FILE</DISK_TYPE><DRIVER>raw</DRIVER><TARGET>vda</TARGET>\
         <CLONE>YES</CLONE><SIZE>24</SIZE><ORIGINAL_SIZE>24</ORIGINAL_SIZE><DATASTORE_ID>1</DATASTORE_ID></DISK>{more}</TEMPLATE>\
         <USER_TEMPLATE>{user}</USER_TEMPLATE><HISTORY_RECORDS><HISTORY><SEQ>0</SEQ><DS_ID>0</DS_ID>\
         <VM_MAD><![CDATA[lxd]]></VM_MAD></HISTORY></HISTORY_RECORDS></VM>"
    )
}

/// What every script but deploy gets.
fn action(deploy_id: &str, vm: &str) -> String {
    format!(
        "<VMM_DRIVER_ACTION_DATA><HOST>host</HOST><MIGR_HOST></MIGR_HOST><DEPLOY_ID>{deploy_id}</DEPLOY_ID>\
         <LOCAL_DEPLOYMENT_FILE></LOCAL_DEPLOYMENT_FILE><TM_COMMAND></TM_COMMAND>{vm}</VMM_DRIVER_ACTION_DATA>"
    )
}

const VOLATILE: &str = "<DISK><DISK_ID>2</DISK_ID><TYPE>fs</TYPE><DRIVER>raw</DRIVER><SIZE>24</SIZE><TARGET>/data</TARGET></DISK>";
const SWAP: &str = "<DISK><DISK_ID>3</DISK_ID><TYPE>swap</TYPE><SIZE>24</SIZE></DISK>";
const NIC: &str = "<NIC><NIC_ID>0</NIC_ID><BRIDGE>onebr0</BRIDGE><MAC>02:00:c0:a8:00:01</MAC><TARGET>one-7-0</TARGET><VN_MAD>bridge</VN_MAD>\
                   <INBOUND_AVG_BW>1000</INBOUND_AVG_BW></NIC>";
const CONTEXT: &str = "<CONTEXT><DISK_ID>1</DISK_ID><TARGET>hda</TARGET></CONTEXT>";

/// A cluster of one node with the driver on it.
fn with_host(
    test: &str,
    cluster: &'static str,
    driver: &'static str,
    version: &str,
    work: impl Fn(&Host<'_>),
) {
    let base = format!("{driver}-node");
    let Some(w) = World::new(test, &[&base]) else { return };
    let Some(image) = image(&w) else { return };
    let file = w.file(
        cluster,
        &format!(
            "name: {cluster}\nimage: {base}\nnodes: 1\nengine: {driver}\nmachine: {{backend: namespace}}\n"
        ),
    );
    w.ok(&["up", &file]);
    let host = Host { world: &w, cluster, node: "node1", driver };
    host.install(&image, version);
    work(&host);
    host.ok(&["ip", "link", "del", "onebr0"]);
    w.down(cluster);
}

/// Context disks are ISO 9660, which not every kernel reads; what is on it is mounted all the same.
fn context_disk(host: &Host<'_>, vm: u32, contents: &str) {
    let script = format!(
        "mkdir -p /tmp/context && cat >/tmp/context/context.sh && rm -f /var/lib/one/datastores/0/{vm}/disk.1 && \
         mksquashfs /tmp/context /var/lib/one/datastores/0/{vm}/disk.1 -quiet -no-progress >/dev/null"
    );
    let answer = host.run(&["sh", "-c", &script], contents);
    assert!(answer.code == 0, "{}", answer.stderr);
}

/// Every action in the order a VM could live through them.
fn lifecycle(host: &Host<'_>) {
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

    let again = host.call("deploy", &deploy, Some(&new));
    assert_eq!(again.code, 1, "{}", again.stderr);
    assert!(again.stderr.contains("ERROR: deploy: instance one-7 runs already"), "{}", again.stderr);
    assert!(
        again
            .stderr
            .contains("ERROR MESSAGE --8<------\ninstance one-7 runs already\nERROR MESSAGE ------>8--")
    );
    assert_eq!(host.status("one-7"), "RUNNING");

    monitoring(host);

    // Interfaces and disks come and go.
    let nic = "<NIC><NIC_ID>1</NIC_ID><BRIDGE>onebr0</BRIDGE><MAC>02:00:c0:a8:00:02</MAC><TARGET>one-7-1</TARGET><VN_MAD>bridge</VN_MAD><ATTACH>YES</ATTACH></NIC>";
    let with_nic = action("one-7", &vm(7, "one-7", &format!("{more}{nic}"), ""));
    let attach_nic = ["one-7", "02:00:c0:a8:00:02", "onebr0", "-", "bridge", "one-7-1", "7", "host"];
    host.done("attach_nic", &attach_nic, Some(&with_nic));
    assert!(host.inside("one-7", "cat /sys/class/net/eth1/address").contains("02:00:c0:a8:00:02"));
    host.done("detach_nic", &["one-7", "02:00:c0:a8:00:02", "7", "host"], Some(&with_nic));
    assert!(!host.inside("one-7", "ls /sys/class/net").contains("eth1"));

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

    // Snapshots, also across a reboot.
    host.inside("one-7", "echo before >/state");
    assert_eq!(host.done("snapshot_create", &["one-7", "0", "7", "host"], None), "snap-0\n");
    host.inside("one-7", "echo after >/state");
    restart(host, "reboot");
    assert_eq!(host.inside("one-7", "cat /state"), "after\n");
    host.done("snapshot_revert", &["one-7", "snap-0", "7", "host"], None);
    assert_eq!(host.status("one-7"), "RUNNING");
    assert_eq!(host.inside("one-7", "cat /state"), "before\n");
    host.done("snapshot_delete", &["one-7", "snap-0", "7", "host"], None);
    host.done("snapshot_delete", &["one-7", "snap-0", "7", "host"], None);
    restart(host, "reset");

    // Saved and restored; the file is the disk's.
    let checkpoint = "/var/lib/one//datastores/0/7/checkpoint";
    let saved = host.call("save", &["one-7", checkpoint, "host", "7", "host"], None);
    assert_eq!(saved.code, 0, "{}", saved.stderr);
    assert!(saved.stderr.contains("the processes' state cannot be kept"), "{}", saved.stderr);
    assert_eq!(host.status("one-7"), "absent");
    host.clean();
    host.done("restore", &[checkpoint, "host", "one-7", "7", "host"], Some(&running));
    assert_eq!(host.inside("one-7", "cat /state"), "before\n");
    assert_eq!(host.inside("one-7", "ls /data"), "lost+found\nwritten\n");

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

/// Twice, as 5.10 to 6.8 do for drivers of the name lxd; once otherwise.
fn restart(host: &Host<'_>, script: &str) {
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
    eventually("it has started once more", Duration::from_secs(10), || count(host) == before + 1);
    assert_eq!(host.setting("one-7", "user.one_status"), "1");
}

/// poll and the probes, with an instance of somebody else beside.
fn monitoring(host: &Host<'_>) {
    let line = host.done("poll", &["one-7", "host", "7", "host"], None);
    assert!(line.starts_with("STATE=a MEMORY="), "{line}");
    let memory: u64 = line.split("MEMORY=").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
    assert!((100..64 << 10).contains(&memory), "{memory} KiB");
    let probe = |path: &str| {
        host.ok(&["sh", "-c", &format!("echo '<x/>' | /var/tmp/one/im/{}-probes.d/{path}", host.driver)])
    };
    let status = probe("vm/status/stead-vm-status.sh");
    assert!(
        status.contains("SYNC_STATE=yes")
            && status.contains("VM = [ ID=\"7\", DEPLOY_ID=\"one-7\", STATE=\"RUNNING\" ]"),
        "{status}"
    );
    assert!(probe("vm/monitor/stead-vm-monitor.sh").contains("VM = [ ID=7, DEPLOY_ID=one-7, MONITOR=\""));
    let system = probe("host/system/stead-host-system.sh");
    for key in ["ARCH=", "TOTALCPU=", "TOTALMEMORY=", "DS_LOCATION_FREE_MB=", "LXD_PROFILES="] {
        assert!(system.contains(key), "{key} is missing:\n{system}");
    }
    assert!(!system.contains("ID=-1"), "{system}");
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
    thread::sleep(Duration::from_secs(2));
    let line = host.done("poll", &["one-7", "host", "7", "host"], None);
    let cpu: f64 = line.trim().split("CPU=").nth(1).unwrap().parse().unwrap();
    assert!((5.0..=250.0).contains(&cpu), "{line}");
}

#[test]
fn every_script_on_incus() {
    let _alone = LOOPS.lock().unwrap_or_else(PoisonError::into_inner);
    with_host("every_script_on_incus", "one-incus", "incus", "6.6.0", |host| {
        for _ in 0..2 {
            lifecycle(host);
        }
    });
}

#[test]
fn every_script_on_lxd() {
    let _alone = LOOPS.lock().unwrap_or_else(PoisonError::into_inner);
    with_host("every_script_on_lxd", "one-lxd", "lxd", "6.6.0", |host| {
        for _ in 0..2 {
            lifecycle(host);
        }
    });
}

#[test]
fn twenty_vms_at_once_and_broken_ones_among_them() {
    let _alone = LOOPS.lock().unwrap_or_else(PoisonError::into_inner);
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
        println!("{COUNT} VMs deployed at once in {:.1} s", began.elapsed().as_secs_f64());
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
        let mut all = String::new();
        for id in (100..100 + COUNT).filter(|id| id % 7 != 0) {
            let _ = write!(all, "{}", host.inside(&format!("one-{id}"), "cat /mine"));
            let number = id.to_string();
            host.done("cancel", &[&format!("one-{id}"), "host", &number, "host"], None);
        }
        assert_eq!(all.lines().count(), 17, "{all}");
        host.clean();
    });
}

#[test]
fn instances_of_others_are_imported_and_never_deleted() {
    let _alone = LOOPS.lock().unwrap_or_else(PoisonError::into_inner);
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
        assert!(answer.code == 1 && answer.stderr.contains("not made by OpenNebula"), "{}", answer.stderr);
        host.done("cancel", &["one-50", "host", "50", "host"], None);
        assert_eq!(host.status("one-50"), "STOPPED");
        host.ok(&["incus", "delete", "one-50", "one-9-copy"]);
        host.clean();
    });
}

/// Text on the screen of a VNC server, as the stock client Net::VNC sees it: each cell's pixels are looked up in the
/// font. `keys` are typed first, `\r` is Enter.
fn screenshot(cluster: &str, port: u16, password: &str, keys: &str, wait_s: u32) -> Result<String, String> {
    // Two colours a cell: what is not like the cell's upper left pixel is set. A letter never reaches that corner.
    let script = r#"
        my ($port, $password, $keys, $wait) = @ARGV;
        my $vnc = Net::VNC->new({hostname => "10.88.0.2", port => $port, password => $password});
        $vnc->depth(24);
        $vnc->login;
        for my $c (split //, $keys) { $vnc->send_key_event($c eq "\r" ? 0xff0d : ord $c) }
        sleep $wait;
        my $image = $vnc->capture;
        my ($w, $h) = ($image->width, $image->height);
        print "$w $h\n";
        for my $row (0 .. $h / 16 - 1) { for my $column (0 .. $w / 8 - 1) {
            my @corner = $image->query_pixel($column * 8, $row * 16);
            my $bits = "";
            for my $y (0 .. 15) { for my $x (0 .. 7) {
                my @pixel = $image->query_pixel($column * 8 + $x, $row * 16 + $y);
                $bits .= "@pixel[0..2]" eq "@corner[0..2]" ? "0" : "1";
            } }
            print "$bits\n";
        } }"#;
    let output = Command::new("ip")
        .args([
            "netns",
            "exec",
            &format!("stead-{cluster}"),
            "timeout",
            "60",
            "perl",
            "-MNet::VNC",
            "-e",
            script,
        ])
        .args([&port.to_string(), password, keys, &wait_s.to_string()])
        .output()
        .unwrap();
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    let text = String::from_utf8(output.stdout).unwrap();
    let mut lines = text.lines();
    let size: Vec<usize> = lines.next().unwrap().split(' ').map(|n| n.parse().unwrap()).collect();
    let font = stead_one::console::screen::Font::default();
    let pattern = |c: char| -> String {
        let look =
            stead_one::console::screen::Look { character: c, foreground: 1, background: 0, underline: false };
        font.draw(&[look]).iter().map(|p| if *p == 1 { '1' } else { '0' }).collect()
    };
    let known: std::collections::HashMap<String, char> = (' '..='~').map(|c| (pattern(c), c)).collect();
    let cells: Vec<char> = lines.map(|l| known.get(l).copied().unwrap_or('\u{fffd}')).collect();
    let rows = cells.chunks(size[0] / 8).map(|r| r.iter().collect::<String>().trim_end().to_owned());
    Ok(format!("{}x{}\n{}", size[0], size[1], rows.collect::<Vec<_>>().join("\n").trim_end()))
}

/// Speaks the protocol by hand, for what the stock client cannot: to pick a security type that was not offered, and to ask
/// for another size.
fn raw_vnc(cluster: &str, port: u16, says: &[u8]) -> Vec<u8> {
    let script = r#"use IO::Socket::INET; my ($port) = @ARGV; local $/; my $say = <STDIN>;
        my $s = IO::Socket::INET->new(PeerAddr => "10.88.0.2", PeerPort => $port, Timeout => 5) or exit 3;
        my $got = ""; my $piece;
        for my $part (unpack("(n/a)*", $say)) {
            my $r = ""; vec($r, fileno($s), 1) = 1;
            sysread($s, $piece, 65536) and $got .= $piece if select($r, undef, undef, 2);
            syswrite($s, $part);
        }
        while (1) { my $r = ""; vec($r, fileno($s), 1) = 1; last unless select($r, undef, undef, 2);
            last unless sysread($s, $piece, 65536); $got .= $piece; }
        binmode STDOUT; print $got;"#;
    let mut child = Command::new("ip")
        .args(["netns", "exec", &format!("stead-{cluster}"), "perl", "-e", script, &port.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(says).unwrap();
    child.wait_with_output().unwrap().stdout
}

/// Messages, each sent after something was heard.
fn messages(parts: &[&[u8]]) -> Vec<u8> {
    parts.iter().flat_map(|p| [&(p.len() as u16).to_be_bytes()[..], p].concat()).collect()
}

#[test]
fn a_console_for_a_stock_vnc_client() {
    let _alone = LOOPS.lock().unwrap_or_else(PoisonError::into_inner);
    let perl = Command::new("perl").args(["-MNet::VNC", "-e", "1"]).output();
    if !perl.is_ok_and(|o| o.status.success()) {
        println!("SKIP a_console_for_a_stock_vnc_client: perl's Net::VNC is not installed");
        return;
    }
    with_host("a_console_for_a_stock_vnc_client", "one-vnc", "incus", "6.6.0", |host| {
        host.run(
            &["sh", "-c", "cat >/var/tmp/one/etc/vmm/incus/lxdrc"],
            ":vnc:\n  :command: /bin/sh\n  :width: 640\n  :height: 400\n  :timeout: 6\n",
        );
        host.prepare(7);
        let graphics = "<GRAPHICS><TYPE>vnc</TYPE><PORT>5907</PORT><PASSWD>secret</PASSWD></GRAPHICS>";
        let open = "<GRAPHICS><TYPE>vnc</TYPE><PORT>5907</PORT></GRAPHICS>";
        let deploy = ["/x", "host", "7", "host"];
        let of_one7 = ["one-7", "host", "7", "host"];
        // Without a password the VM runs, but nobody can look.
        let answer = host.call("deploy", &deploy, Some(&vm(7, "", open, "")));
        assert!(answer.code == 0 && answer.stderr.contains("without a password"), "{}", answer.stderr);
        assert!(screenshot("one-vnc", 5907, "", "", 0).is_err());
        host.done("cancel", &of_one7, None);

        host.done("deploy", &deploy, Some(&vm(7, "", graphics, "")));
        let screen = screenshot("one-vnc", 5907, "secret", "", 1).unwrap();
        assert!(screen.starts_with("640x400\n") && screen.ends_with("/root #"), "no prompt:\n{screen}");
        let screen = screenshot("one-vnc", 5907, "secret", "echo typed $((40+2)); stty size\r", 1).unwrap();
        println!("{screen}");
        assert!(screen.contains("# echo typed $((40+2)); stty size\ntyped 42\n25 80"), "{screen}");
        // Another client sees the same, while both look.
        let (one, two) = thread::scope(|s| {
            let other = s.spawn(|| screenshot("one-vnc", 5907, "secret", "", 1).unwrap());
            (screenshot("one-vnc", 5907, "secret", "", 1).unwrap(), other.join().unwrap())
        });
        assert_eq!(one, two);
        // Who has not the password, or says that none was asked for, gets nothing.
        assert!(screenshot("one-vnc", 5907, "wrong", "", 0).is_err());
        let heard = raw_vnc("one-vnc", 5907, &messages(&[b"RFB 003.008\n", &[1], &[1]]));
        assert_eq!(heard, b"RFB 003.008\n\x01\x02", "it went on: {heard:?}");

        // Ends after a while without keys; who comes back begins anew.
        thread::sleep(Duration::from_secs(8));
        let screen = screenshot("one-vnc", 5907, "secret", "", 1).unwrap();
        assert!(!screen.contains("typed 42"), "{screen}");
        // The command ends: a key starts it again.
        let screen = screenshot("one-vnc", 5907, "secret", "exit\r", 1).unwrap();
        assert!(screen.contains("the command has ended"), "{screen}");
        let screen = screenshot("one-vnc", 5907, "secret", "x", 1).unwrap();
        assert!(screen.contains("/root #") && !screen.contains("ended"), "{screen}");

        // It goes on after a reboot, and ends with its instance.
        host.done("reboot", &of_one7, None);
        assert!(screenshot("one-vnc", 5907, "secret", "", 1).unwrap().contains("/root #"));
        host.done("shutdown", &of_one7, None);
        assert!(screenshot("one-vnc", 5907, "secret", "", 0).is_err());
        host.clean();
        // One whose instance ends without a script.
        host.done("deploy", &deploy, Some(&vm(7, "", graphics, "")));
        host.ok(&["incus", "stop", "-f", "one-7"]);
        eventually("the console is gone", Duration::from_secs(40), || {
            screenshot("one-vnc", 5907, "secret", "", 0).is_err()
        });
        host.done("cancel", &of_one7, None);
        host.clean();

        // A client may give the terminal another size: it is told that, and the others, and whoever comes later.
        host.run(
            &["sh", "-c", "cat >/var/tmp/one/etc/vmm/incus/lxdrc"],
            ":vnc:\n  :command: /bin/sh\n  :allow_no_password: true\n",
        );
        host.done("deploy", &deploy, Some(&vm(7, "", open, "")));
        let hello: [&[u8]; 3] = [b"RFB 003.008\n", &[1], &[1]];
        let encodings = [&[2, 0, 0, 2][..], &0_i32.to_be_bytes(), &(-308_i32).to_be_bytes()].concat();
        let update = |incremental| [&[3, incremental][..], &[0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]].concat();
        let size = |width: u16, height: u16| {
            let [w, h] = [width.to_be_bytes(), height.to_be_bytes()];
            let screen = [0, 0, 0, 0, 0, 0, 0, 0, w[0], w[1], h[0], h[1], 0, 0, 0, 0];
            [&[251, 0, w[0], w[1], h[0], h[1], 1, 0][..], &screen].concat()
        };
        let asks = |parts: &[&[u8]]| raw_vnc("one-vnc", 5907, &messages(&[&hello, parts].concat()));
        let told = |heard: &[u8], reason: u16, status: u16, (width, height): (u16, u16)| {
            let head = [reason, status, width, height].map(u16::to_be_bytes).concat();
            let rectangle = [&head[..], &(-308_i32).to_be_bytes()].concat();
            heard.windows(rectangle.len()).any(|w| w == rectangle)
        };
        let first = [encodings.clone(), update(0)].concat();
        let wish = [size(1000, 700), update(1)].concat();
        // The other one only looks, long enough.
        let (asker, looker) = thread::scope(|s| {
            let looker = s.spawn(|| asks(&[&first, &update(1), &update(1), &update(1)]));
            thread::sleep(Duration::from_millis(1500));
            let asker = asks(&[&first, &wish]);
            (asker, looker.join().unwrap())
        });
        // Whole cells of 8 by 16.
        assert!(told(&asker, 0, 0, (800, 592)), "the first size was not told");
        assert!(told(&asker, 1, 0, (1000, 688)), "the wish was not answered");
        assert!(told(&looker, 2, 0, (1000, 688)), "the other client was not told");
        let refused = asks(&[&first, &[size(9999, 9999), update(1)].concat()]);
        assert!(told(&refused, 1, 3, (1000, 688)), "an impossible wish was not answered");
        let screen = screenshot("one-vnc", 5907, "", "stty size\r", 1).unwrap();
        assert!(screen.starts_with("1000x688\n") && screen.contains("43 125"), "{screen}");
        host.done("cancel", &of_one7, None);
        host.clean();
    });
}

/// Two hosts with the same datastores; what ssh is between OpenNebula's hosts is here a program of that name that has the
/// test run the script on the other node.
#[test]
fn vms_move_between_hosts_with_the_same_datastores() {
    let _alone = LOOPS.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(w) = World::new("vms_move_between_hosts_with_the_same_datastores", &["incus-node"]) else {
        return;
    };
    let Some(image) = image(&w) else { return };
    let file = w.file(
        "one-move",
        "name: one-move\nimage: incus-node\nnodes: 2\nengine: incus\nmachine: {backend: namespace}\n",
    );
    w.ok(&["up", &file]);
    let hosts = ["node1", "node2"].map(|node| Host { world: &w, cluster: "one-move", node, driver: "incus" });
    for host in &hosts {
        host.install(&image, "6.6.0");
    }
    // One filesystem on both nodes: the same loop device, for they share a kernel.
    let datastores = w.state.join("datastores");
    fs::File::create(&datastores).unwrap().set_len(256 << 20).unwrap();
    assert!(Command::new("mkfs.ext4").arg("-qF").arg(&datastores).status().unwrap().success());
    let device = Command::new("losetup").args(["--find", "--show"]).arg(&datastores).output().unwrap();
    let device = String::from_utf8(device.stdout).unwrap().trim().to_owned();
    for host in &hosts {
        host.ok(&["mount", &device, "/var/lib/one/datastores"]);
    }
    // Its arguments are -o BatchMode=yes -- HOST SCRIPT ARGUMENT…; the answer comes back through the shared filesystem.
    let ssh = "#!/bin/sh\nd=/var/lib/one/datastores/ssh\nmkdir -p $d\nshift 3\ncat >$d/input\necho \"$@\" >$d/new\nmv $d/new $d/asked\n\
               while [ ! -e $d/code ]; do sleep 0.1; done\ncat $d/stderr >&2\ncode=$(cat $d/code)\nrm $d/code\nexit $code\n";
    for host in &hosts {
        host.run(&["sh", "-c", "cat >/usr/local/bin/ssh && chmod +x /usr/local/bin/ssh"], ssh);
    }
    let finished = std::sync::atomic::AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !finished.load(std::sync::atomic::Ordering::Relaxed) {
                thread::sleep(Duration::from_millis(100));
                let asked = hosts[0].run(&["cat", "/var/lib/one/datastores/ssh/asked"], "");
                if asked.code != 0 {
                    continue;
                }
                let words: Vec<&str> = asked.stdout.split_whitespace().collect();
                let (node, script) = (words[0], words[1].rsplit('/').next().unwrap());
                let other = hosts.iter().find(|h| h.node == node).unwrap();
                let input = other.ok(&["cat", "/var/lib/one/datastores/ssh/input"]);
                let answer = other.call(script, &words[2..], Some(&input));
                other.run(&["sh", "-c", "cat >/var/lib/one/datastores/ssh/stderr"], &answer.stderr);
                other.ok(&["rm", "/var/lib/one/datastores/ssh/asked"]);
                let done = format!("echo {} >/var/lib/one/datastores/ssh/new && mv /var/lib/one/datastores/ssh/new /var/lib/one/datastores/ssh/code", answer.code);
                other.ok(&["sh", "-c", &done]);
            }
        });
        let moved = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| moves(&hosts)));
        finished.store(true, std::sync::atomic::Ordering::Relaxed);
        if let Err(panic) = moved {
            std::panic::resume_unwind(panic);
        }
    });
    for host in &hosts {
        host.ok(&["umount", "/var/lib/one/datastores"]);
        host.ok(&["ip", "link", "del", "onebr0"]);
    }
    assert!(Command::new("losetup").args(["--detach", &device]).status().unwrap().success());
    w.down("one-move");
}

fn moves(hosts: &[Host<'_>; 2]) {
    let [one, two] = hosts;
    one.ok(&["mkdir", "-p", "/var/lib/one/datastores/1"]);
    one.prepare(7);
    let document = action("one-7", &vm(7, "one-7", NIC, ""));
    one.done("deploy", &["/x", "node1", "7", "node1"], Some(&vm(7, "", NIC, "")));
    one.inside("one-7", "echo moved >/state");
    one.done("migrate", &["one-7", "node2", "node1", "7", "node1"], Some(&document));
    one.clean();
    let location = two.ok(&["incus", "list", "one-7", "--format", "csv", "-c", "nsL"]);
    assert_eq!(location.trim(), "one-7,RUNNING,node2");
    assert_eq!(two.inside("one-7", "cat /state"), "moved\n");
    // A cancel on the host that it left, as CLEANUP makes it, leaves it alone.
    one.done("cancel", &["one-7", "node1", "7", "node1"], None);
    assert_eq!(two.status("one-7"), "RUNNING");
    // Snapshots would be lost on the way.
    two.done("snapshot_create", &["one-7", "0", "7", "node2"], None);
    let answer = two.call("migrate", &["one-7", "node1", "node2", "7", "node2"], Some(&document));
    assert!(answer.code == 1 && answer.stderr.contains("snapshots"), "{}", answer.stderr);
    two.done("snapshot_delete", &["one-7", "snap-0", "7", "node2"], None);
    // The other host refuses: it goes on where it was.
    one.ok(&["ip", "link", "del", "onebr0"]);
    let answer = two.call("migrate", &["one-7", "node1", "node2", "7", "node2"], Some(&document));
    assert!(answer.code == 1 && answer.stderr.contains("could not take the VM over"), "{}", answer.stderr);
    assert_eq!(
        two.ok(&["incus", "list", "one-7", "--format", "csv", "-c", "nsL"]).trim(),
        "one-7,RUNNING,node2"
    );
    assert_eq!(two.inside("one-7", "cat /state"), "moved\n");
    one.clean();
    one.ok(&["ip", "link", "add", "onebr0", "type", "bridge"]);
    two.done("shutdown", &["one-7", "node2", "7", "node2"], None);
    two.clean();
}
