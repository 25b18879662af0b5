//! A host of OpenNebula: a node with the driver installed, its scripts called as `one_vmm_exec` calls them, and what VMs
//! leave on it.

use crate::common::{World, eventually, said};
use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
};

/// A host: a node with the driver installed as on a host of OpenNebula.
#[derive(Clone, Copy)]
pub struct Host<'w> {
    pub world: &'w World,
    pub cluster: &'static str,
    pub node: &'static str,
    /// `lxd` or `incus`: the driver's directory, and the stock client's name with it.
    pub driver: &'static str,
    /// Scripts are called as on the frontend itself (`one_vmm_exec -l`), which packs documents in base64.
    pub local: bool,
}

const INIT: &str = "#!/bin/busybox sh
# Runs until it is asked to stop. Each start leaves a line.
/bin/busybox mount -t proc proc /proc 2>/dev/null
trap 'exit 0' PWR TERM
echo started >>/var/boots
while :; do /bin/busybox sleep 1 & wait $!; done
";
/// The names of what `install.sh` of OpenNebula 5.12 and later puts into the remotes, as far as the driver's are linked to it.
const REMOTES: &str = "
cd /var/tmp/one && mkdir -p im && cd im
p=kvm-probes.d
for f in run_monitord_client kvm.d/monitord-client.rb kvm.d/monitord-client_control.sh $p/host/beacon/date.sh \
    $p/host/system/monitor_ds.rb $p/host/system/numa_host.rb $p/host/system/pci.rb $p/host/system/version.sh \
    $p/host/monitor/numa_usage.rb $p/vm/monitor/monitor_ds_vm.rb; do
    mkdir -p $(dirname $f) && printf '#!/bin/sh\\nexit 0\\n' >$f && chmod +x $f || exit 1
done";
/// What oned's ssh gives a script: little.
const ENVIRONMENT: [&str; 3] = ["PATH=/usr/local/bin:/usr/bin:/bin", "HOME=/var/lib/one", "LANG=C"];

pub struct Answer {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Host<'_> {
    /// Lists the remotes; /var/lib/one/remotes has what it said before the driver was installed.
    pub const REMOTES: &'static str = "find /var/tmp/one -mindepth 1 ! -name VERSION | sort";

    /// Runs a command on the node, with this input.
    pub fn run(&self, command: &[&str], input: &str) -> Answer {
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
    pub fn ok(&self, command: &[&str]) -> String {
        let answer = self.run(command, "");
        assert!(answer.code == 0, "{command:?}: {}\n{}\n{}", answer.code, answer.stdout, answer.stderr);
        answer.stdout
    }
    /// As one_vmm_exec over ssh: a shell gets `cat << EOT | script arguments` on its stdin; what comes after the document
    /// is the shell's next command, which a script that reads too much would swallow.
    pub fn call(&self, script: &str, arguments: &[&str], document: Option<&str>) -> Answer {
        let quoted: Vec<String> = arguments.iter().map(|a| format!("'{a}'")).collect();
        let path = format!("/var/tmp/one/vmm/{}/{script}", self.driver);
        let line = format!("{path} {}", quoted.join(" "));
        let mut command = vec!["env", "-i"];
        command.extend(ENVIRONMENT);
        if self.local {
            // Ruby's base64 has lines of 60 characters.
            let packed = document.map(stead_one::instance::encode).unwrap_or_default();
            let lines = packed.as_bytes().chunks(60).map(|l| format!("{}\n", String::from_utf8_lossy(l)));
            let line = format!("cd /var/lib/one && exec {line}");
            command.extend(["sh", "-c", &line]);
            return self.run(&command, &lines.collect::<String>());
        }
        let text = match document {
            Some(document) => format!("cat << 'EOT' | {line}\n{document}\nEOT\n"),
            // 5.8 sends nothing: stdin is the shell's own.
            None => format!("{line}\n"),
        };
        let text = format!("cd /var/lib/one\n{text}echo \"ExitCode: $?\" >&2\nexit 0\n");
        command.extend(["sh", "-s"]);
        let answer = self.run(&command, &text);
        let (stderr, code) = answer.stderr.rsplit_once("ExitCode: ").unwrap_or_else(|| {
            panic!("{script} swallowed the shell's next command:\n{}\n{}", answer.stdout, answer.stderr)
        });
        Answer { code: code.trim().parse().unwrap(), stdout: answer.stdout, stderr: stderr.to_owned() }
    }
    #[track_caller]
    pub fn done(&self, script: &str, arguments: &[&str], document: Option<&str>) -> String {
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
    pub fn client(&self) -> &'static str {
        if self.driver == "lxd" { "lxc" } else { "incus" }
    }
    #[track_caller]
    pub fn inside(&self, instance: &str, command: &str) -> String {
        self.ok(&[self.client(), "exec", instance, "--", "/bin/sh", "-c", command])
    }
    pub fn status(&self, instance: &str) -> String {
        let list = self.run(&[self.client(), "list", "--format", "csv", "-c", "ns"], "").stdout;
        let line = list.lines().find_map(|l| l.strip_prefix(&format!("{instance},")).map(str::to_owned));
        line.unwrap_or_else(|| "absent".to_owned())
    }
    pub fn setting(&self, instance: &str, key: &str) -> String {
        self.ok(&[self.client(), "config", "get", instance, key]).trim().to_owned()
    }
    /// What VMs have on the host: mounts below the driver's directory and into instances, loop devices, processes.
    pub fn leftovers(&self) -> String {
        // Loop devices are the kernel's: those of a node with the same datastores are seen here too.
        let loops = if self.cluster.starts_with("one-move") { "" } else { "/var/lib/one/datastores" };
        let script = &format!(
            "cat /proc/self/mountinfo | cut -d' ' -f5 | grep -E '^/run/stead-one|/rootfs' ; \
                      for f in /sys/block/loop*/loop/backing_file; do [ -n '{loops}' ] && grep -H '{loops}' $f; done 2>/dev/null; \
                      for d in /run/stead-one/one-*; do [ -e \"$d\" ] && find $d; done; true"
        );
        self.ok(&["sh", "-c", script])
    }
    #[track_caller]
    pub fn clean(&self) {
        eventually("the host is clean", || {
            let left = self.leftovers();
            if !left.is_empty() {
                println!("left: {left}");
            }
            left.is_empty()
        });
    }
    /// Puts a file of the test's machine on the node.
    pub fn put(&self, from: &Path, to: &str) {
        let to = format!("{}/{}:{to}", self.cluster, self.node);
        self.world.ok(&["cp", from.to_str().unwrap(), &to]);
    }
    /// The directory of a VM, with its root disk.
    pub fn prepare(&self, vm: u32) {
        let directory = format!("/var/lib/one/datastores/0/{vm}");
        self.ok(&["mkdir", "-p", &directory]);
        self.ok(&["cp", "/var/lib/one/image", &format!("{directory}/disk.0")]);
    }
    pub fn install(&self, image: &Path, version: &str) {
        self.ok(&[
            "sh",
            "-c",
            "mkdir -p /var/lib/one/datastores/0 /var/lib/one/datastores/1 /var/tmp/one /usr/local/bin",
        ]);
        // Nodes in namespaces have no devtmpfs, those in QEMU the modules.
        self.run(&["modprobe", "--all", "loop", "squashfs", "dm_mod", "isofs"], "");
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
        self.ok(&["sh", "-c", REMOTES]);
        self.ok(&["sh", "-c", &format!("{} >/var/lib/one/remotes", Self::REMOTES)]);
        self.ok(&["/usr/local/bin/stead", "one", "install", "--remotes", "/var/tmp/one"]);
        self.run(&["sh", "-c", "cat >/var/tmp/one/VERSION"], version);
        // Open vSwitch is not on the nodes: what it would be told is written down.
        self.run(
            &["sh", "-c", "cat >/usr/local/sbin/ovs-vsctl && chmod +x /usr/local/sbin/ovs-vsctl"],
            "#!/bin/sh\necho \"$@\" >>/run/ovs-vsctl.log\n",
        );
        self.ok(&["ip", "link", "add", "onebr0", "type", "bridge"]);
        self.ok(&["ip", "link", "set", "onebr0", "up"]);
    }
}

/// An image with a root filesystem that starts in no time: busybox and an init of a few lines.
pub fn image(w: &World) -> Option<PathBuf> {
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
pub fn vm(id: u32, deploy_id: &str, more: &str, user: &str) -> String {
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
pub fn action(deploy_id: &str, vm: &str) -> String {
    format!(
        "<VMM_DRIVER_ACTION_DATA><HOST>host</HOST><MIGR_HOST></MIGR_HOST><DEPLOY_ID>{deploy_id}</DEPLOY_ID>\
         <LOCAL_DEPLOYMENT_FILE></LOCAL_DEPLOYMENT_FILE><TM_COMMAND></TM_COMMAND>{vm}</VMM_DRIVER_ACTION_DATA>"
    )
}

pub const VOLATILE: &str = "<DISK><DISK_ID>2</DISK_ID><TYPE>fs</TYPE><DRIVER>raw</DRIVER><SIZE>24</SIZE><TARGET>/data</TARGET></DISK>";
pub const SWAP: &str = "<DISK><DISK_ID>3</DISK_ID><TYPE>swap</TYPE><SIZE>24</SIZE></DISK>";
pub const NIC: &str = "<NIC><NIC_ID>0</NIC_ID><BRIDGE>onebr0</BRIDGE><MAC>02:00:c0:a8:00:01</MAC><TARGET>one-7-0</TARGET><VN_MAD>bridge</VN_MAD>\
                   <INBOUND_AVG_BW>1000</INBOUND_AVG_BW></NIC>";
pub const CONTEXT: &str = "<CONTEXT><DISK_ID>1</DISK_ID><TARGET>hda</TARGET></CONTEXT>";

/// A cluster of one node in a namespace with the driver on it.
pub fn with_host(
    test: &str,
    cluster: &'static str,
    driver: &'static str,
    version: &str,
    work: impl Fn(&Host<'_>),
) {
    with_machine(test, cluster, driver, version, "backend: namespace", work);
}

/// A cluster of one node on this machine with the driver on it.
pub fn with_machine(
    test: &str,
    cluster: &'static str,
    driver: &'static str,
    version: &str,
    machine: &str,
    work: impl Fn(&Host<'_>),
) {
    let base = format!("{driver}-node");
    let Some(w) = World::new(test, &[&base]) else { return };
    let nodes = format!("nodes: 1\nmachine: {{{machine}}}");
    with_node(&w, cluster, driver, version, &base, &nodes, work);
}

/// A cluster of these nodes, which run this image; the driver is on node1.
pub fn with_node(
    w: &World,
    cluster: &'static str,
    driver: &'static str,
    version: &str,
    base: &str,
    nodes: &str,
    work: impl Fn(&Host<'_>),
) {
    let Some(image) = image(w) else { return };
    let file = w.file(cluster, &format!("name: {cluster}\nimage: {base}\nengine: {driver}\n{nodes}\n"));
    w.ok(&["up", &file]);
    let host = Host { world: w, cluster, node: "node1", driver, local: false };
    host.install(&image, version);
    work(&host);
    host.ok(&["ip", "link", "del", "onebr0"]);
    w.down(cluster);
}

/// Context disks are ISO 9660, which not every kernel reads; what is on it is mounted all the same.
pub fn context_disk(host: &Host<'_>, vm: u32, contents: &str) {
    let script = format!(
        "mkdir -p /tmp/context && cat >/tmp/context/context.sh && rm -f /var/lib/one/datastores/0/{vm}/disk.1 && \
         mksquashfs /tmp/context /var/lib/one/datastores/0/{vm}/disk.1 -quiet -no-progress >/dev/null"
    );
    let answer = host.run(&["sh", "-c", &script], contents);
    assert!(answer.code == 0, "{}", answer.stderr);
}
