//! Hostile documents and arguments through the scripts themselves: each field of a VM in turn is something that a
//! shell, a path or a log could be led astray with. The engine is a fake; disks, loop devices and mounts are real.

use std::{
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
    time::Instant,
};
use stead_incus::{Dialect, Endpoint};
use stead_one::{
    Context,
    say::Ending,
    scripts::{self, SCRIPTS, Stdin},
};
use stead_testkit::{
    fake::Fake,
    host::{Scratch, lacks_root_or_programs, run, skipped},
};

/// A VM with a device of every kind; `{}` of its texts are what is replaced in turn.
const VM: &str = "<VM><ID>7</ID><NAME>web</NAME><DEPLOY_ID>one-7</DEPLOY_ID><TEMPLATE><CPU>0.5</CPU><VCPU>1</VCPU>\
<MEMORY>64</MEMORY><VMID>7</VMID><OS><BOOT>disk0</BOOT></OS>\
<DISK><DISK_ID>0</DISK_ID><DISK_TYPE>FILE</DISK_TYPE><TYPE>FILE</TYPE><DRIVER>raw</DRIVER><FORMAT>raw</FORMAT>\
<TARGET>vda</TARGET><CLONE>YES</CLONE><SIZE>4</SIZE><ORIGINAL_SIZE>4</ORIGINAL_SIZE><SOURCE>/x/datastores/1/image</SOURCE>\
<DATASTORE_ID>1</DATASTORE_ID><CACHE>none</CACHE><READONLY>NO</READONLY><TOTAL_IOPS_SEC>100</TOTAL_IOPS_SEC></DISK>\
<DISK><DISK_ID>2</DISK_ID><TYPE>fs</TYPE><FS>ext4</FS><SIZE>4</SIZE><TARGET>/data</TARGET></DISK>\
<NIC><NIC_ID>0</NIC_ID><BRIDGE>br0</BRIDGE><MAC>02:00:c0:a8:00:01</MAC><TARGET>one-7-0</TARGET><VN_MAD>bridge</VN_MAD>\
<IP>10.0.0.7</IP><INBOUND_AVG_BW>1000</INBOUND_AVG_BW></NIC>\
<CONTEXT><DISK_ID>1</DISK_ID><TARGET>hda</TARGET><START_SCRIPT>true</START_SCRIPT></CONTEXT>\
<GRAPHICS><TYPE>vnc</TYPE><LISTEN>127.0.0.1</LISTEN><PASSWD>secret</PASSWD><COMMAND>/bin/sh</COMMAND></GRAPHICS>\
<NUMA_NODE><CPUS>0</CPUS></NUMA_NODE><RAW><TYPE>lxd</TYPE><DATA>\"user.mine\": \"1\"</DATA></RAW></TEMPLATE>\
<USER_TEMPLATE><LXD_PROFILE>default</LXD_PROFILE><LXD_SECURITY_PRIVILEGED>false</LXD_SECURITY_PRIVILEGED>\
<LXD_SECURITY_NESTING>false</LXD_SECURITY_NESTING></USER_TEMPLATE><HISTORY_RECORDS><HISTORY><OID>7</OID><SEQ>0</SEQ>\
<HOSTNAME>host1</HOSTNAME><DS_ID>0</DS_ID><VM_MAD>lxd</VM_MAD></HISTORY></HISTORY_RECORDS></VM>";

struct Host {
    dir: Scratch,
    context: Context,
    _fake: Fake,
    neighbour: Vec<u8>,
}

struct Answer {
    ending: Ending,
    stdout: String,
    stderr: String,
}

impl Host {
    fn new() -> Self {
        // Scripts are synchronous: the fake answers from a thread of its own, as long as the test runs.
        let (give, take) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                give.send(Fake::server(Dialect::Incus).pool_driver("dir").start()).unwrap();
                std::future::pending::<()>().await;
            });
        });
        let fake = take.recv().unwrap();
        let Endpoint::Unix(socket) = fake.endpoint() else {
            unreachable!("the fake listens on a unix socket")
        };
        let dir = Scratch::new("stead-one-hostile");
        for directory in ["remotes/etc/vmm/incus", "ds/0/7", "ds/0/8", "ds/1"] {
            fs::create_dir_all(dir.join(directory)).unwrap();
        }
        let rc =
            format!(":socket: {}\n:datastore_location: {}\n", socket.display(), dir.join("ds").display());
        fs::write(dir.join("remotes/etc/vmm/incus/lxdrc"), rc).unwrap();
        for disk in ["ds/0/7/disk.0", "ds/0/7/disk.1", "ds/0/8/disk.0", "ds/1/image", "ds/1/others"] {
            let path = dir.join(disk);
            fs::File::create(&path).unwrap().set_len(4 << 20).unwrap();
            run("mkfs.ext4", &["-qF", path.to_str().unwrap()]);
        }
        fs::File::create(dir.join("ds/0/7/disk.2")).unwrap().set_len(4 << 20).unwrap();
        let context = Context {
            script_path: Some(dir.join("remotes/vmm/incus/deploy")),
            program: "/bin/false".into(),
            run: dir.join("run"),
            sys: "/sys".into(),
            user: None,
            ssh_agent: None,
        };
        let neighbour = fs::read(dir.join("ds/0/8/disk.0")).unwrap();
        Self { dir, context, _fake: fake, neighbour }
    }
    fn canary(&self) -> PathBuf {
        self.dir.join("canary")
    }
    /// Texts that could mislead a shell, a path or the log.
    fn payloads(&self) -> Vec<String> {
        let canary = self.canary().display().to_string();
        vec![
            format!("$(touch {canary}) `touch {canary}`; touch {canary} #"),
            format!("'\" | touch {canary} \" '"),
            "../8/disk.0".to_owned(),
            "/../../../ds/0/8/disk.0".to_owned(),
            format!("x\nERROR: forged: line\n{}\r\u{85}\u{202e}\u{1b}[2J", "y".repeat(10_000)),
            "-oProxyCommand=touch".to_owned(),
        ]
    }
    /// Runs a script, and looks at everything that may not have happened.
    #[track_caller]
    fn run(&self, script: &str, arguments: &[&str], stdin: impl Read) -> Answer {
        let arguments: Vec<String> = arguments.iter().map(|a| (*a).to_owned()).collect();
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let ending = scripts::run_named(script, &arguments, &self.context, stdin, &mut stdout, &mut stderr);
        let (stdout, stderr) = (String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap());
        let shown: Vec<String> = arguments.iter().map(|a| a.chars().take(80).collect()).collect();
        let case = format!("{script} {shown:?}:\n{stdout}\n{stderr}");
        assert!(!self.canary().exists(), "a shell was reached: {case}");
        let mut lines = stderr.split('\n').peekable();
        let mut failed = false;
        while let Some(line) = lines.next() {
            if line == "ERROR MESSAGE --8<------" {
                lines.next();
                assert_eq!(lines.next(), Some("ERROR MESSAGE ------>8--"), "{case}");
                continue;
            }
            let ours =
                ["INFO", "ERROR", "DEBUG"].iter().any(|l| line.starts_with(&format!("{l}: {script}: ")));
            failed |= line.starts_with(&format!("ERROR: {script}: "));
            assert!(ours || (line.is_empty() && lines.peek().is_none()), "a forged line: {line:?} in {case}");
            assert!(!line.chars().any(char::is_control), "{case}");
            assert!(line.len() < 20_000, "{case}");
        }
        match ending {
            Ending::Failure => {
                assert!(failed && stderr.contains("ERROR MESSAGE --8<------\n"), "no clear error: {case}");
                assert_eq!(stdout, "", "{case}");
            }
            Ending::Success => {}
        }
        self.only_its_own(&case);
        Answer { ending, stdout, stderr }
    }
    /// No file but the VM's own is behind a loop device, and the neighbour's is as it was.
    #[track_caller]
    fn only_its_own(&self, case: &str) {
        for entry in fs::read_dir("/sys/block").unwrap().flatten() {
            if let Ok(file) = fs::read_to_string(entry.path().join("loop/backing_file"))
                && Path::new(file.trim()).starts_with(&*self.dir)
            {
                assert!(
                    Path::new(file.trim()).starts_with(self.dir.join("ds/0/7")),
                    "{file} is in use: {case}"
                );
            }
        }
        assert!(fs::read(self.dir.join("ds/0/8/disk.0")).unwrap() == self.neighbour, "written to: {case}");
    }
    fn put_away(&self) {
        let cancelled = self.run("cancel", &["one-7", "host", "7", "host"], io::empty());
        assert_eq!(cancelled.ending, Ending::Success, "{}", cancelled.stderr);
    }
}
impl Drop for Host {
    fn drop(&mut self) {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let cancel = ["one-7", "host", "7", "host"].map(str::to_owned);
        scripts::run_named("cancel", &cancel, &self.context, io::empty(), &mut out, &mut err);
    }
}

fn can_run(test: &str) -> bool {
    if !Path::new("/dev/loop-control").exists() {
        skipped(test, "no loop devices here");
        return false;
    }
    !lacks_root_or_programs(test, &["mkfs.ext4"])
}

/// The document's texts as ranges of it.
fn texts(document: &str) -> Vec<std::ops::Range<usize>> {
    let tree = roxmltree::Document::parse(document).unwrap();
    tree.descendants().filter(|n| n.is_text()).map(|n| n.range()).collect()
}

#[test]
fn no_field_of_a_document_reaches_a_shell_or_another_vm() {
    if !can_run("no_field_of_a_document_reaches_a_shell_or_another_vm") {
        return;
    }
    let w = Host::new();
    let deploy = ["/ds/0/7/deployment.0", "host", "7", "host"];
    let answer = w.run("deploy", &deploy, VM.as_bytes());
    assert_eq!(answer.stdout, "one-7\n", "{}", answer.stderr);
    w.put_away();
    let (mut taken, mut refused) = (0, 0);
    for text in texts(VM) {
        for payload in w.payloads() {
            let escaped = payload.replace('&', "&amp;").replace('<', "&lt;").replace('\r', "&#13;");
            // XML has no place for an escape character.
            let escaped = escaped.replace('\u{1b}', "");
            let document = format!("{}{escaped}{}", &VM[..text.start], &VM[text.end..]);
            let answer = w.run("deploy", &deploy, document.as_bytes());
            match answer.ending {
                Ending::Success => {
                    assert_eq!(answer.stdout, "one-7\n", "{document}");
                    w.put_away();
                    taken += 1;
                }
                Ending::Failure => refused += 1,
            }
        }
    }
    println!("{taken} documents were taken, {refused} refused");
    assert!(taken > 50 && refused > 100, "{taken} taken, {refused} refused");
}

#[test]
fn no_argument_reaches_a_shell_or_another_vm() {
    if !can_run("no_argument_reaches_a_shell_or_another_vm") {
        return;
    }
    let w = Host::new();
    let action = format!("<VMM_DRIVER_ACTION_DATA><HOST>host</HOST>{VM}</VMM_DRIVER_ACTION_DATA>");
    let checkpoint = w.dir.join("ds/0/7/checkpoint").display().to_string();
    for script in SCRIPTS {
        // What is good enough for each; hosts that would be called are this one, where nobody answers.
        let good = |name: &&'static str| match *name {
            "deploy id" => "one-7",
            "deployment file" | "path" | "context path" => "/ds/0/7/x",
            "checkpoint file" => checkpoint.as_str(),
            "snapshot id" | "disk id" | "index" => "0",
            "snapshot name" => "snap-0",
            "MAC" => "02:00:c0:a8:00:01",
            "size in MB" => "5",
            _ => "127.0.0.1",
        };
        let mut arguments: Vec<&str> = script.arguments.iter().map(good).collect();
        arguments.extend(["7", "127.0.0.1"]);
        for at in 0..arguments.len() {
            for payload in w.payloads() {
                let mut hostile = arguments.clone();
                hostile[at] = &payload;
                let stdin: Box<dyn Read> = match (script.name, script.stdin) {
                    ("deploy", _) => Box::new(VM.as_bytes()),
                    (_, Stdin::Ignored) => Box::new(io::empty()),
                    _ => Box::new(action.as_bytes()),
                };
                let answer = w.run(script.name, &hostile, stdin);
                if answer.ending == Ending::Success && script.name == "deploy" {
                    w.put_away();
                }
            }
        }
    }
}

/// Input that is not a document ends in an error at once, however long it is.
#[test]
fn what_is_no_document_is_refused_in_time() {
    if !can_run("what_is_no_document_is_refused_in_time") {
        return;
    }
    let w = Host::new();
    let bomb = "<!DOCTYPE v [<!ENTITY a \"aaaaaaaaaa\"><!ENTITY b \"&a;&a;&a;&a;&a;&a;&a;&a;\"><!ENTITY c \"&b;&b;&b;&b;&b;&b;&b;&b;\">]><VM><ID>&c;</ID></VM>";
    let large = || (&b"<VM><ID>7</ID><NAME>"[..]).chain(io::repeat(b'x').take(100 << 20));
    let packed = || io::repeat(b'A').take(100 << 20);
    let deep = format!("{}{}", "<VM>".repeat(1 << 19), "</VM>".repeat(1 << 19));
    let wide = format!("<VM>{}</VM>", "<A/>".repeat(1 << 20));
    let cases: Vec<(&str, Box<dyn Read>)> = vec![
        ("nothing", Box::new(io::empty())),
        ("blanks", Box::new(&b" \n\t"[..])),
        ("100 MiB of XML", Box::new(large())),
        ("100 MiB of base64", Box::new(packed())),
        ("without end", Box::new(io::repeat(b'<'))),
        ("an entity bomb", Box::new(bomb.as_bytes())),
        (
            "an entity of a file",
            Box::new(&b"<!DOCTYPE v [<!ENTITY a SYSTEM \"file:///etc/shadow\">]><VM><ID>&a;</ID></VM>"[..]),
        ),
        ("half a million levels", Box::new(deep.as_bytes())),
        ("a million elements", Box::new(wide.as_bytes())),
        ("not UTF-8", Box::new(&b"<VM><ID>7</ID><NAME>\xff\xfe</NAME></VM>"[..])),
        ("base64 of what is not UTF-8", Box::new(&b"PFZNPv/+PC9WTT4="[..])),
        ("a zero byte", Box::new(&b"<VM><ID>7\0</ID></VM>"[..])),
        ("HTML", Box::new(&b"<html><p>502 Bad Gateway</html>"[..])),
        ("half a document", Box::new(&VM.as_bytes()[..VM.len() / 2])),
    ];
    for (what, stdin) in cases {
        let began = Instant::now();
        let answer = w.run("deploy", &["/x", "host", "7", "host"], stdin);
        println!(
            "{what}: {} ms: {}",
            began.elapsed().as_millis(),
            answer.stderr.lines().next().unwrap_or_default()
        );
        assert_eq!(answer.ending, Ending::Failure, "{what}");
    }
}
