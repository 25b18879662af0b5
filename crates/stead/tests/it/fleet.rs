//! `stead fleet` on real clusters: a pile on one member is spread as the rules say, new instances follow, and what is
//! killed or restarted in the middle is gone on with.

use crate::{
    common::{
        Said, World, eventually,
        faults::{Random, killed, often},
        said,
    },
    engine,
};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::fs::PermissionsExt,
    process::{Command, Stdio},
    time::{Duration, Instant},
};
use stead_incus::{
    Client, Endpoint, Scope, TrustToken,
    requests::instances::{NewInstance, StateAction},
    types::{Config, Devices, Instance},
};
use stead_testkit::{image, parts::Parts, wait::SOON};

pub const PROJECT: &str = "default";
/// What the cluster is called here.
const REMOTE: &str = "lab";
/// Stopped, and to be so afterwards; all others run.
const STOPPED: &str = "c9";

/// A cluster and a client of it.
pub struct Fleet {
    pub w: World,
    pub name: &'static str,
    pub runtime: tokio::runtime::Runtime,
    pub client: Client,
}

impl Fleet {
    /// Three members, and the tiny image.
    pub fn up(test: &str, name: &'static str, image: &str, network: u8) -> Option<Self> {
        let w = World::new(test, &[image])?;
        let yaml = format!(
            "name: {name}\nimage: {image}\nnodes: 3\nmachine:\n  backend: namespace\n  disks: [{{name: pool, size: 4GiB, role: storage}}]\n\
             networks:\n  - {{ name: lan, ipv4: 10.{network}.0.0/24, ipv6: \"fd{network}::/64\" }}\n"
        );
        w.ok(&["up", &w.file(name, &yaml)]);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let client = engine::client(&w, name);
        let files = image::tiny(&w.state, "fleet").unwrap();
        runtime.block_on(async {
            let image = client.upload_image(PROJECT, &files.metadata, Some(&files.rootfs)).await.unwrap();
            client.set_image_alias(PROJECT, "stead-tiny", &image).await.unwrap();
        });
        Some(Self { w, name, runtime, client })
    }

    /// An instance on a member, running unless it is the one that is not to run.
    pub fn create(&self, name: &str, member: &str, config: &[(&str, &str)]) {
        let mut new = NewInstance::of_image(name, "stead-tiny");
        new.config = config.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect::<Config>();
        self.runtime.block_on(async {
            self.client.create_instance(PROJECT, Some(member), &new).await.unwrap();
            if name != STOPPED {
                self.client.set_instance_state(PROJECT, name, StateAction::Start, SOON).await.unwrap();
            }
        });
    }

    pub fn delete(&self, name: &str) {
        self.runtime.block_on(async {
            let _ = self.client.set_instance_state(PROJECT, name, StateAction::Kill, SOON).await;
            self.client.delete_instance(PROJECT, name).await.unwrap();
        });
    }

    /// Ten on the first member: three that must be apart, two that must be together, five without wishes.
    fn pile(&self) {
        for n in 0..10 {
            let group: &[(&str, &str)] = match n {
                0..3 => &[("user.stead.group", "web"), ("user.stead.group.strength", "strict")],
                3..5 => &[
                    ("user.stead.group", "db"),
                    ("user.stead.group.mode", "compact"),
                    ("user.stead.group.strength", "strict"),
                ],
                _ => &[],
            };
            let config = [&[("limits.memory", "1GiB")], group].concat();
            self.create(&format!("c{n}"), "node1", &config);
        }
    }

    pub fn instances(&self) -> Vec<Instance> {
        self.runtime.block_on(self.client.instances()).unwrap()
    }

    /// Which of these instances is where.
    pub fn places(&self, names: &[&str]) -> Vec<String> {
        let all = self.instances();
        let place = |name: &&str| all.iter().find(|i| i.name == **name).expect("is there").location.clone();
        names.iter().map(place).collect()
    }

    /// The ten are there, once, in the database and on disk, and each runs that ran.
    #[track_caller]
    fn assert_whole(&self) {
        let all = self.instances();
        let names: BTreeSet<&str> = all.iter().map(|i| i.name.as_str()).collect();
        let expected: Vec<String> = (0..10).map(|n| format!("c{n}")).collect();
        assert_eq!(names, expected.iter().map(String::as_str).collect(), "lost or added");
        assert_eq!(all.len(), 10, "an instance is there twice");
        for i in &all {
            let want = if i.name == STOPPED { "Stopped" } else { "Running" };
            assert_eq!(i.status, want, "{} on {}", i.name, i.location);
        }
        let volumes = self.runtime.block_on(self.client.volumes("default", Scope::Project(PROJECT))).unwrap();
        let mut copies: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for v in volumes.iter().filter(|v| v.kind == "container") {
            copies.entry(&v.name).or_default().push(&v.location);
        }
        for i in &all {
            assert_eq!(
                copies.remove(i.name.as_str()),
                Some(vec![i.location.as_str()]),
                "volumes of {}",
                i.name
            );
        }
        assert!(copies.is_empty(), "volumes of no instance: {copies:?}");
    }

    /// `stead fleet` on this cluster, which is reached as any foreign one is.
    fn arguments<'a>(&self, args: &[&'a str]) -> Vec<&'a str> {
        [&["fleet"], args, &["--remote", REMOTE]].concat()
    }
    fn fleet(&self, args: &[&str]) -> Said {
        self.w.stead(&self.arguments(args))
    }
    #[track_caller]
    fn fleet_ok(&self, args: &[&str]) -> String {
        let said = self.fleet(args);
        assert!(said.code == 0, "fleet {args:?}: exit {}\n{}\n{}", said.code, said.stdout, said.stderr);
        said.stdout
    }
    #[track_caller]
    fn planned(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.fleet_ok(&[&["plan", "--json"], args].concat())).unwrap()
    }
    /// The stock client on this cluster.
    fn stock(&self, args: &[&str]) -> Option<Said> {
        self.w.client(self.name, args)
    }
}

fn moves(plan: &Value) -> &Vec<Value> {
    plan["moves"].as_array().unwrap()
}

#[test]
fn a_fleet_of_incus_6() {
    let Some(f) = Fleet::up("a_fleet_of_incus_6", "fl-incus", "incus-node", 97) else { return };
    trusted(&f, &["incus", "config", "trust", "add"]);
    f.pile();
    let mut parts = Parts::new();
    parts.run("spread", || spread(&f));
    parts.run("too small", || too_small(&f));
    let with_stock_client = |parts: &mut Parts, name: &str, part: fn(&Fleet)| match f.stock(&["version"]) {
        Some(_) => drop(parts.run(name, || part(&f))),
        None => parts.skip(name, "the stock client is not installed"),
    };
    with_stock_client(&mut parts, "newcomers", newcomers);
    parts.run("windows", || windows(&f));
    parts.run("preferred", || preferred(&f));
    parts.run("killed runs", || killed_runs(&f));
    with_stock_client(&mut parts, "restarted daemons", restarted_daemons);
    parts.end();
    f.w.down(f.name);
}

#[test]
fn a_fleet_of_lxd_5() {
    let Some(f) = Fleet::up("a_fleet_of_lxd_5", "fl-lxd", "lxd-node", 98) else { return };
    trusted(&f, &["lxc", "config", "trust", "add", "--name"]);
    f.pile();
    let mut parts = Parts::new();
    parts.run("spread", || spread(&f));
    parts.run("too small", || too_small(&f));
    parts.run("newcomers", || newcomers_without_a_scriptlet(&f));
    parts.end();
    f.w.down(f.name);
}

fn newcomers_without_a_scriptlet(f: &Fleet) {
    let said = f.fleet(&["place", "n1", "n2", "-c", "limits.memory=1GiB"]);
    assert!(said.code == 0 && said.stdout.contains("n2 "), "{}{}", said.stdout, said.stderr);
    for way in [&["scriptlet"][..], &["scriptlet", "--install"], &["scriptlet", "--remove"]] {
        let said = f.fleet(way);
        assert_eq!(said.code, 1);
        assert!(
            said.stderr.contains("the server cannot place instances by a scriptlet")
                && said.stderr.contains("instances_placement_scriptlet"),
            "{}",
            said.stderr
        );
    }
}

/// From a token to a remote; `add` is how the engine's own client makes one, the name comes last.
fn trusted(f: &Fleet, add: &[&str]) {
    let token = |name: &str| f.w.exec(f.name, "node1", &[add, &[name]].concat());
    // `stead` itself, or by way of another program.
    let run = |by: &[&str], args: &[&str], input: &str| {
        let stead = f.w.command(&[&["fleet"], args].concat());
        let mut words: Vec<&OsStr> = by.iter().map(OsStr::new).collect();
        words.push(stead.get_program());
        words.extend(stead.get_args());
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // It may have ended without reading.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        said(child.wait_with_output().unwrap())
    };
    let trust = |by: &[&str], args: &[&str], input: &str| run(by, &[&["trust"], args].concat(), input);
    // Where the token's own addresses are reached.
    let inside = ["nsenter", &format!("--net=/run/netns/stead-{}", f.name)];
    let said = trust(&inside, &["inside"], &token("stead-inside"));
    assert_eq!(said.code, 0, "{}", said.stderr);
    let known =
        |name: &str| f.runtime.block_on(f.client.certificates()).unwrap().iter().any(|c| c.name == name);
    assert!(known("stead-inside"));

    let Endpoint::Https { address, .. } = f.client.endpoint() else { panic!("not over the network") };
    let outside = [REMOTE, "--address", address.as_str()];
    let printed = token("stead");
    let mut wrong = TrustToken::decode(printed.lines().last().unwrap()).unwrap();
    wrong.fingerprint = "0".repeat(64);
    let said = trust(&[], &outside, &wrong.encode());
    assert!(said.code == 1 && said.stderr.contains("shows the certificate"), "{}", said.stderr);
    assert_eq!(trust(&[], &outside, "nonsense").code, 2);
    let said = trust(&[], &outside, &printed);
    assert_eq!(said.code, 0, "{}", said.stderr);
    let file = f.w.state.join(format!("fleet/remotes/{REMOTE}.json"));
    assert_eq!(fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600);
    let said = trust(&[], &outside, &printed);
    assert!(said.code == 2 && said.stderr.contains("already"), "{}", said.stderr);
    let said = trust(&[], &["other", "--address", address], &printed);
    assert_eq!(said.code, 1, "a token was taken twice");
    let listed = f.w.ok(&["fleet", "remotes"]);
    assert!(listed.contains("inside") && listed.contains(address.as_str()), "{listed}");

    let said = run(&inside, &["forget", "inside"], "");
    assert_eq!(said.code, 0, "{}", said.stderr);
    assert!(!known("stead-inside") && known("stead"));
    let said = f.w.stead(&["fleet", "plan", "--remote", "inside"]);
    assert!(said.code == 2 && said.stderr.contains("no remote inside"), "{}", said.stderr);
    assert!(f.fleet_ok(&["plan"]).contains("nothing to move"));
}

/// The pile is taken apart as planned, and then there is nothing more to do.
fn spread(f: &Fleet) {
    let plan = f.planned(&[]);
    let shown = f.fleet_ok(&["plan"]);
    for m in moves(&plan) {
        assert_eq!(m["from"], "node1");
        let line = shown.lines().find(|l| l.starts_with(m["instance"]["name"].as_str().unwrap())).unwrap();
        assert!(line.contains("node1") && line.contains(m["to"].as_str().unwrap()), "{line}");
        assert!(line.contains("balance") || line.contains("group"), "no reason given: {line}");
    }
    assert!(shown.contains("group web") && shown.contains("balance"), "{shown}");
    assert!((5..=8).contains(&moves(&plan).len()), "{shown}");
    // Looking changes nothing.
    assert_eq!(f.fleet_ok(&["rebalance", "--dry-run"]), shown);
    assert!(f.instances().iter().all(|i| i.location == "node1"));

    let said = f.fleet(&["rebalance", "--at-once", "2"]);
    println!("{}{}", said.stderr, said.stdout);
    assert_eq!(said.code, 0, "{}", said.stderr);
    assert!(
        said.stdout.contains(&format!("{} moved, 0 failed, 0 left", moves(&plan).len())),
        "{}",
        said.stdout
    );
    f.assert_whole();
    let to: BTreeMap<&str, &str> = moves(&plan)
        .iter()
        .map(|m| (m["instance"]["name"].as_str().unwrap(), m["to"].as_str().unwrap()))
        .collect();
    for i in f.instances() {
        assert_eq!(i.location, *to.get(i.name.as_str()).unwrap_or(&"node1"), "{}", i.name);
    }
    let web: BTreeSet<String> = f.places(&["c0", "c1", "c2"]).into_iter().collect();
    assert_eq!(web.len(), 3, "the strictly spread group is together on {web:?}");
    let db = f.places(&["c3", "c4"]);
    assert_eq!(db[0], db[1], "the strictly compact group is apart");
    let again = f.fleet_ok(&["plan"]);
    assert!(again.contains("nothing to move"), "{again}");
    assert!(f.fleet_ok(&["rebalance"]).contains("nothing to move"));
}

/// The strict groups become preferring ones, so that any member can be emptied.
fn preferred(f: &Fleet) {
    let config = Config::from([("user.stead.group.strength".into(), "preferred".into())]);
    f.runtime.block_on(async {
        for name in ["c0", "c1", "c2", "c3", "c4"] {
            f.client.patch_instance(PROJECT, name, &config, &Devices::new()).await.unwrap();
        }
    });
}

/// No member has room for it: what is said has both numbers in it.
fn too_small(f: &Fleet) {
    let has = f.runtime.block_on(f.client.resources(Some("node2"))).unwrap().memory.total >> 20;
    f.create("big", "node2", &[("limits.memory", &format!("{}MiB", has + 1024))]);
    let plan = f.planned(&[]);
    let refusals = plan["report"]["refusals"].as_array().unwrap();
    let big = refusals.iter().find(|r| r["violation"]["overload"]["member"] == "node2").expect("a refusal");
    assert_eq!(big["verdict"], "impossible", "{big}");
    assert_eq!(big["violation"]["overload"]["usable"], has);
    let shown = f.fleet_ok(&["plan"]);
    println!("{shown}");
    assert!(
        shown.contains("big cannot be moved away: no member has") && shown.contains("the most is"),
        "{shown}"
    );
    f.delete("big");
}

/// `place` and the server's scriptlet choose alike, for instances of the stock client too.
fn newcomers(f: &Fleet) {
    let has = f.runtime.block_on(f.client.resources(Some("node1"))).unwrap().memory.total >> 20;
    // The member with the fewest instances gets the most memory promised: what the server's own rule chooses is wrong.
    let mut count: BTreeMap<String, u32> = BTreeMap::new();
    f.instances().into_iter().for_each(|i| *count.entry(i.location).or_default() += 1);
    let (crowded, _) = count.iter().min_by_key(|(_, n)| **n).unwrap();
    f.create("heavy", crowded, &[("limits.memory", &format!("{}MiB", has / 3))]);
    for (n, other) in ["node1", "node2", "node3"].iter().filter(|m| *m != crowded).enumerate() {
        for k in 0..2 {
            f.create(&format!("light{n}{k}"), other, &[("limits.memory", "16MiB")]);
        }
    }
    let too_much = format!("limits.memory={}MiB", has + 1);
    let said = f.fleet(&["place", "n1", "-c", &too_much]);
    assert_eq!(said.code, 1);
    assert!(
        said.stdout.contains("no member for n1: impossible: no member has")
            && said.stdout.contains("the most is"),
        "no numbers: {}",
        said.stdout
    );
    let place = |names: &[&str], config: &[&str]| -> Value {
        let said = f.fleet(&[&["place", "--json"], names, config].concat());
        serde_json::from_str(&said.stdout).unwrap_or_else(|e| panic!("{e}: {}{}", said.stdout, said.stderr))
    };
    let one = ["-c", "limits.memory=1GiB"];
    let apart =
        [&one[..], &["-c", "user.stead.group=new", "-c", "user.stead.group.strength=strict"]].concat();
    let batch = place(&["n1", "n2", "n3", "n4"], &apart);
    let members: BTreeSet<&str> =
        batch["placed"].as_array().unwrap().iter().map(|p| p["member"].as_str().unwrap()).collect();
    assert_eq!((members.len(), batch["refused"].as_array().unwrap().len()), (3, 1), "{batch}");
    let chosen = place(&["n1"], &one)["placed"][0]["member"].as_str().unwrap().to_owned();
    assert_ne!(chosen, *crowded);

    let text = f.fleet_ok(&["scriptlet"]);
    assert!(text.contains("def instance_placement("), "{text}");
    let foreign =
        "instances.placement.scriptlet=def instance_placement(request, candidate_members):\n    return\n";
    let said = f.stock(&["config", "set", foreign]).unwrap();
    assert_eq!(said.code, 0, "{}", said.stderr);
    for way in ["--install", "--remove"] {
        let said = f.fleet(&["scriptlet", way]);
        assert!(said.code == 1 && said.stderr.contains("--force"), "{}", said.stderr);
    }
    assert!(f.fleet_ok(&["scriptlet", "--install", "--force"]).starts_with("installed"));
    assert!(f.fleet_ok(&["scriptlet", "--install"]).contains("already"));
    let init = |name: &str, config: &[&str]| {
        let began = Instant::now();
        let said = f.stock(&[&["init", "stead-tiny", name], config].concat()).unwrap();
        println!("{name}: {:?} {}", began.elapsed(), said.stderr.trim());
        said
    };
    assert_eq!(init("n1", &one).code, 0);
    assert_eq!(f.places(&["n1"]), [chosen]);
    for name in ["n2", "n3", "n4"] {
        assert_eq!(init(name, &apart).code, 0);
    }
    let members: BTreeSet<String> = f.places(&["n2", "n3", "n4"]).into_iter().collect();
    assert_eq!(members.len(), 3, "the strictly spread group is together on {members:?}");
    let fourth = init("n5", &apart);
    assert!(fourth.code != 0 && fourth.stderr.contains("stead: no member for n5"), "{}", fourth.stderr);

    assert!(f.fleet_ok(&["scriptlet", "--remove"]).starts_with("removed"));
    let said = f.stock(&["config", "get", "instances.placement.scriptlet"]).unwrap();
    assert_eq!(said.stdout.trim(), "");
    for name in ["n1", "n2", "n3", "n4", "heavy", "light00", "light01", "light10", "light11"] {
        f.delete(name);
    }
}

/// A window that is not now: nothing begins; one that is: all of it.
fn windows(f: &Fleet) {
    let drain = f.w.file("drain", "drain: [node1]\n");
    let now = jiff::Zoned::now();
    let hour = |ahead: i64| (&now + jiff::Span::new().hours(ahead)).strftime("%H:%M").to_string();
    let later = format!("{}-{}", hour(2), hour(3));
    let rebalance = ["rebalance", "--policy", &drain, "--window", &later];
    let said = f.fleet(&[&rebalance[..], &["--no-wait"]].concat());
    assert_eq!(said.code, 1, "{}", said.stderr);
    assert!(
        said.stderr.contains("the next one opens on") && said.stdout.contains("0 moved, 0 failed"),
        "{}",
        said.stdout
    );
    // Waiting, it can be stopped, and has begun nothing.
    let mut child =
        f.w.command(&f.arguments(&rebalance)).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    stderr.read_line(&mut line).unwrap();
    assert!(line.contains("waiting until") && line.contains(&hour(2)), "{line}");
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let out = child.wait_with_output().unwrap();
    assert!(String::from_utf8_lossy(&out.stdout).contains("0 moved, 0 failed"), "{out:?}");
    f.assert_whole();
}

/// Policies that empty one member each: there is always something to move.
fn drains(f: &Fleet) -> [String; 3] {
    [1, 2, 3].map(|n| f.w.file(&format!("drain{n}"), &format!("drain: [node{n}]\n")))
}

/// What is killed is gone on with by the next run: no instance is lost, there twice, or left stopped.
fn killed_runs(f: &Fleet) {
    let drains = drains(f);
    let mut random = Random::new();
    let began = Instant::now();
    f.fleet_ok(&["rebalance", "--policy", &drains[0], "--at-once", "3"]);
    let mut takes = began.elapsed();
    let kills = often(6, 50);
    let (mut landed, mut tries, mut unfinished) = (0, 0, 0);
    while landed < kills {
        tries += 1;
        assert!(
            tries < kills * 3,
            "only {landed} of {tries} runs were still going when they were to be killed"
        );
        let drain = &drains[tries as usize % 3];
        let at_once = ["1", "2", "3"][random.below(3) as usize];
        let run = f.arguments(&["rebalance", "--policy", drain, "--at-once", at_once]);
        let after = Duration::from_micros(random.below(takes.as_micros() as u64));
        if !killed(&f.w, &run, after) {
            continue;
        }
        landed += 1;
        let began = Instant::now();
        let said = f.fleet(&["rebalance", "--policy", drain, "--at-once", "3"]);
        assert_eq!(said.code, 0, "killed after {after:?}\n{}{}", said.stderr, said.stdout);
        takes = takes.max(began.elapsed());
        unfinished += u32::from(said.stderr.contains("continuing to move"));
        f.assert_whole();
        assert_eq!(moves(&f.planned(&["--policy", drain])).len(), 0, "killed after {after:?}");
    }
    println!("{landed} kills in {tries} runs, {unfinished} in the middle of a move; a run takes {takes:?}");
    assert!(unfinished > 0, "no kill hit a move");
}

/// A move of so much takes a second or more, the copy being in its middle.
const INTO_THE_MOVE: Duration = Duration::from_millis(600);

/// The daemon of each member that has to do with a move, and of the one that is asked, ends while it runs and is started
/// again: that is told, waited for, and gone on with.
fn restarted_daemons(f: &Fleet) {
    // Large enough for the middle to be hit.
    let fill = ["exec", "c5", "--", "sh", "-c", "head -c 200000000 /dev/urandom > /root/large"];
    let filled = f.stock(&fill).unwrap();
    assert_eq!(filled.code, 0, "{}", filled.stderr);
    let drains = drains(f);
    let mut told = 0;
    // Only stopped, not killed, where an instance may be coming in: Incus keeps the record of a volume that never came, and
    // takes no other of that name (docs/fleet.md).
    for (role, how) in [("to", "TERM"), ("from", "KILL"), ("asked", "TERM")] {
        let at = f.places(&["c5"]).remove(0);
        let n: usize = at.trim_start_matches("node").parse().unwrap();
        let drain = &drains[n - 1];
        let plan = f.planned(&["--policy", drain]);
        let planned = moves(&plan).iter().find(|m| m["instance"]["name"] == "c5").expect("it leaves");
        let victim = if role == "asked" { "node1" } else { planned[role].as_str().unwrap() };
        let args = f.arguments(&["rebalance", "--policy", drain]);
        let daemon =
            f.runtime.block_on(f.client.server_of(victim)).unwrap().environment.server_pid.to_string();
        let began = Instant::now();
        let mut child = f.w.command(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
        let mut stderr: Vec<String> = Vec::new();
        let begun = |line: &String| line.starts_with("moving c5 from");
        while !stderr.last().is_some_and(begun) {
            stderr.push(lines.next().expect("c5 is moved"));
        }
        std::thread::sleep(INTO_THE_MOVE);
        f.w.exec(f.name, victim, &["sh", "-c", &format!("kill -{how} {daemon}")]);
        stderr.extend(lines);
        let (out, stderr) = (said(child.wait_with_output().unwrap()), stderr.join("\n"));
        println!("{role} ({victim}), {how}, {:?}:\n{stderr}\n{}", began.elapsed(), out.stdout);
        // The one that is asked (node1) is asked again without a word.
        told += u32::from(stderr.contains("waiting for the server"));
        assert_eq!(out.code, 0, "the daemon of {victim} was ended by {how}");
        // A run that needed nothing more of that member does not wait for its heartbeat.
        eventually("every member is online again", || {
            f.runtime.block_on(f.client.members()).is_ok_and(|m| m.iter().all(|m| m.status == "Online"))
        });
        assert_eq!(f.places(&["c5"]), [planned["to"].as_str().unwrap()]);
        f.assert_whole();
    }
    assert!(told > 0, "no daemon was ended in the middle of a move");
}
