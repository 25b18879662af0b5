//! Two members of one engine cluster that share the datastores: what another member holds is neither harmed nor left behind.

use super::{host::*, moves::NAMES};
use crate::common::eventually;

const ROOT: &str = "/var/lib/incus/storage-pools/default/containers/one-8/rootfs";

/// A VM that runs on one host, and everything that could be asked of the other one for it. Then the guest powers itself off,
/// for which OpenNebula calls no driver, and the other host is to run, cancel or forget it.
pub fn another_members_instance(hosts: &[Host<'_>; 2]) {
    let [one, two] = hosts;
    let [a, b] = NAMES;
    one.prepare(8);
    let document = vm(8, "", NIC, "");
    let running = action("one-8", &vm(8, "one-8", NIC, ""));
    let down = "/var/lib/one/datastores/ssh/down";
    one.done("deploy", &["/x", a, "8", a], Some(&document));
    assert_eq!(one.setting("one-8", "boot.autostart"), "false");
    one.inside("one-8", "echo precious >/precious");

    every_script_is_refused(one, two, &document, &running);

    // Twice in a row, each way.
    for (from, to, name) in [(one, two, b), (two, one, a), (one, two, b), (two, one, a)] {
        power_off(from);
        // Its host cannot be reached: nothing is deleted, and the error says what to do.
        from.ok(&["touch", down]);
        let refused = to.call("deploy", &["/x", name, "8", name], Some(&document));
        let says = format!("instance one-8 is stopped on member {}", from.node);
        assert!(refused.code == 1 && refused.stderr.contains(&says), "{}", refused.stderr);
        assert!(refused.stderr.contains("/vmm/incus/release one-8 "), "{}", refused.stderr);
        assert_eq!(from.ok(&["cat", &format!("{ROOT}/precious")]), "precious\n");
        from.ok(&["rm", down]);
        to.done("deploy", &["/x", name, "8", name], Some(&document));
        assert_eq!(
            to.inside("one-8", "cat /precious; touch /again && ls -ln /again | grep -c ' 0  *0 '"),
            "precious\n1\n"
        );
        from.clean();
    }
    // A member that runs it is not asked to release it.
    let held = one.call("release", &["one-8", a, "8", a], None);
    assert!(held.code == 1 && held.stderr.contains("instance one-8 is running already"), "{}", held.stderr);

    // Saved with a snapshot it stays where it is; restored on the other host, it is there without.
    one.done("snapshot_create", &["one-8", "0", "8", a], None);
    let checkpoint = "/var/lib/one//datastores/0/8/checkpoint";
    one.done("save", &["one-8", checkpoint, a, "8", a], None);
    two.done("restore", &[checkpoint, b, "one-8", "8", b], Some(&running));
    assert_eq!(two.inside("one-8", "cat /precious"), "precious\n");

    // Stopped, it is cancelled through its member.
    power_off(two);
    one.done("cancel", &["one-8", a, "8", a], None);
    assert_eq!(one.status("one-8"), "absent");
    two.clean();

    // Terminated after the guest powered itself off: OpenNebula deletes the directory, and no script is called.
    two.done("deploy", &["/x", b, "8", b], Some(&document));
    power_off(two);
    let status = "echo '<x/>' | /var/tmp/one/im/incus.d/../incus-probes.d/vm/status/stead-vm-status.sh";
    assert!(two.ok(&["sh", "-c", status]).contains("DEPLOY_ID=\"one-8\", STATE=\"POWEROFF\""));
    two.ok(&["rm", "-r", "/var/lib/one/datastores/0/8"]);
    assert!(!one.ok(&["sh", "-c", status]).contains("one-8"));
    two.ok(&["sh", "-c", status]);
    assert_eq!(two.status("one-8"), "absent");
    two.clean();
}

/// As a guest does it. A signal is lost while init has no handler yet, and the command may end with the guest.
fn power_off(host: &Host<'_>) {
    // While the engine puts it down it is stopped, running again, and stopped: only after this setting is it the last.
    let is_off = || {
        host.run(&[host.client(), "exec", "one-8", "--", "/bin/sh", "-c", "kill -PWR 1"], "");
        host.setting("one-8", "volatile.last_state.power") == "STOPPED" && host.status("one-8") == "STOPPED"
    };
    eventually("the guest has powered itself off", is_off);
    host.ok(&["mountpoint", "-q", ROOT]);
}

fn every_script_is_refused(one: &Host<'_>, two: &Host<'_>, document: &str, running: &str) {
    let [_, b] = NAMES;
    let state = || one.ok(&["incus", "query", "/1.0/instances/one-8"]);
    let before = state();
    one.inside("one-8", "touch /tmp/since-when");
    let disk = "<DISK><DISK_ID>4</DISK_ID><TYPE>fs</TYPE><SIZE>24</SIZE><TARGET>vdd</TARGET><ATTACH>YES</ATTACH></DISK>";
    let hotplug = action("one-8", &vm(8, "one-8", &format!("{NIC}{disk}"), ""));
    let checkpoint = "/var/lib/one//datastores/0/8/checkpoint";
    let path = "/var/lib/one//datastores/0/8/disk.4";
    let calls: &[(&str, &[&str], Option<&str>)] = &[
        ("deploy", &["/x", b], Some(document)),
        ("shutdown", &["one-8", b], None),
        ("cancel", &["one-8", b], None),
        ("reboot", &["one-8", b], None),
        ("reset", &["one-8", b], None),
        ("save", &["one-8", checkpoint, b], None),
        ("migrate", &["one-8", "host-a", b], Some(running)),
        ("release", &["one-8", b], None),
        ("attach_disk", &["one-8", path, "vdd", "3", "x"], Some(&hotplug)),
        ("detach_disk", &["one-8", path, "vdd", "3"], Some(&hotplug)),
        ("attach_nic", &["one-8", "02:00:c0:a8:00:01", "onebr0", "-", "bridge", "one-8-0"], Some(running)),
        ("detach_nic", &["one-8", "02:00:c0:a8:00:01"], Some(running)),
        ("prereconfigure", &["one-8", "hda"], Some(running)),
        ("reconfigure", &["one-8", "hda", "/var/lib/one//datastores/0/8/disk.1"], Some(running)),
        ("snapshot_create", &["one-8", "0"], None),
        ("snapshot_revert", &["one-8", "snap-0"], None),
        ("snapshot_delete", &["one-8", "snap-0"], None),
        ("resize_disk", &["one-8", "0", "48", "x", b], Some(running)),
        ("resize", &["one-8"], Some(running)),
    ];
    for (script, own, stdin) in calls {
        let arguments = [own, &["8", b][..]].concat();
        let refused = two.call(script, &arguments, *stdin);
        let says = ["instance one-8 is on member node1", "instance one-8 is running on member node1"];
        assert!(refused.code == 1, "{script}: {}{}", refused.stdout, refused.stderr);
        assert!(says.iter().any(|s| refused.stderr.contains(s)), "{script}: {}", refused.stderr);
        assert_eq!(state(), before, "{script} changed it");
    }
    // Looking tells nothing of it either.
    assert_eq!(two.done("poll", &["one-8", b, "8", b], None), "STATE=-\n");
    assert!(!two.done("poll", &["-t"], None).contains("one-8"));
    assert_eq!(one.inside("one-8", "cat /precious; ls /tmp"), "precious\nsince-when\n");
}
