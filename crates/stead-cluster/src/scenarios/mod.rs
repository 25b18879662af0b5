//! Stories of a cluster: sequences of files and failures, and the resulting plans, in `golden/`.
//!
//! Plans are made, checked and executed by the same code as on a host; the cluster is in memory ([`town`]).

mod random;
mod town;

use crate::{
    fixtures::DATA,
    plan::{self},
};
use stead_model::EngineKind;
use town::Town;

/// A story: what happens, and the results.
struct Story {
    town: Town,
    text: String,
}

impl Story {
    fn new(engine: EngineKind) -> Self {
        Self { town: Town::new(engine), text: String::new() }
    }
    fn tell(&mut self, heading: &str) {
        if !self.text.is_empty() {
            self.text.push('\n');
        }
        self.text.push_str(&format!("## {heading}\n"));
    }
    /// `up` with this file and an image whose root layer has this number.
    fn up(&mut self, yaml: &str, layer: u8) {
        self.tell(&format!("up: {}, image {layer}", yaml.replace('\n', "; ")));
        self.text.push_str(&self.town.up(yaml, layer));
    }
    fn happens(&mut self, what: &str, change: impl FnOnce(&mut Town)) {
        self.tell(what);
        change(&mut self.town);
        self.text.push_str(&self.town.state());
    }
    fn end(self, name: &str) {
        insta::with_settings!({ snapshot_path => "golden", prepend_module_to_snapshot => false, omit_expression => true }, {
            insta::assert_snapshot!(name, self.text);
        });
    }
}

fn data(nodes: u32) -> String {
    format!("nodes: {nodes}\n{DATA}")
}

#[test]
fn first_up_and_no_change() {
    let mut s = Story::new(EngineKind::Incus);
    s.up("nodes: 3", 1);
    s.up("nodes: 3", 1);
    s.end("first-up-and-no-change");
}

#[test]
fn without_an_engine() {
    let mut s = Story::new(EngineKind::None);
    s.up("nodes: 2", 1);
    s.up("nodes: 3", 2);
    s.up(&data(1), 2);
    s.end("without-an-engine");
}

#[test]
fn scale_out_and_in() {
    let mut s = Story::new(EngineKind::Incus);
    s.up("nodes: 1", 1);
    s.up("nodes: 3", 1);
    s.up("nodes: 1", 1);
    s.end("scale-out-and-in");
}

#[test]
fn a_rolling_change_of_the_image_with_data_disks() {
    let mut s = Story::new(EngineKind::Incus);
    s.up(&data(3), 1);
    s.up(&data(3), 2);
    s.end("rolling-change-with-data");
}

#[test]
fn a_rolling_change_of_the_image_without_data_disks() {
    let mut s = Story::new(EngineKind::Incus);
    s.up("nodes: 2", 1);
    s.up("nodes: 2", 2);
    s.up("nodes: 3", 3);
    s.end("rolling-change-without-data");
}

#[test]
fn the_only_node_is_changed() {
    let mut s = Story::new(EngineKind::Incus);
    s.up("nodes: 1", 1);
    s.up("nodes: 1", 2);
    s.up("nodes: 2", 3);
    s.end("the-only-node-is-changed");
}

#[test]
fn one_node_dies() {
    let mut s = Story::new(EngineKind::Incus);
    s.up("nodes: 3", 1);
    s.happens("node1 crashes", |t| t.crash("node1"));
    s.up("nodes: 3", 1);
    s.end("one-node-dies");
}

#[test]
fn one_node_with_a_data_disk_dies_during_a_change() {
    let mut s = Story::new(EngineKind::Incus);
    s.up(&data(3), 1);
    s.happens("node2 crashes", |t| t.crash("node2"));
    s.up(&data(3), 2);
    s.end("one-node-with-data-dies-and-image-changes");
}

#[test]
fn all_die_with_data_disks() {
    let mut s = Story::new(EngineKind::Incus);
    s.up(&data(3), 1);
    s.happens("the host reboots", Town::reboot);
    s.up(&data(4), 1);
    s.end("all-die-with-data");
}

#[test]
fn all_die_without_data_disks() {
    let mut s = Story::new(EngineKind::Incus);
    s.up("nodes: 2", 1);
    s.happens("the host reboots", Town::reboot);
    s.up("nodes: 2", 1);
    s.end("all-die-without-data");
}

#[test]
fn a_removal_is_cut_short() {
    let mut s = Story::new(EngineKind::Incus);
    s.up("nodes: 3", 1);
    s.happens("`scale 2` is killed while node3 is evacuated", |t| {
        t.cut_removal_short("node3", "node1", false)
    });
    s.up("nodes: 3", 1);
    s.happens("`scale 2` is killed, and the engine goes on", |t| t.cut_removal_short("node3", "node1", true));
    s.up("nodes: 3", 1);
    s.happens("`scale 2` is killed, the engine goes on, node1 crashes", |t| {
        t.cut_removal_short("node3", "node1", true);
        t.crash("node1");
    });
    s.up("nodes: 3", 1);
    s.happens("`scale 2` is killed while node3 is evacuated", |t| {
        t.cut_removal_short("node3", "node1", false)
    });
    s.up("nodes: 2", 1);
    s.end("a-removal-is-cut-short");
}

#[test]
fn a_removal_goes_on_while_its_node_is_taken_back() {
    let mut s = Story::new(EngineKind::Incus);
    s.up("nodes: 2", 1);
    s.happens("`scale 1` is killed; node1 removes node2 as soon as it is asked about it", |t| {
        t.cut_removal_short("node2", "node1", false);
        t.when("node2: restore in incus through node1: its removal was interrupted", |t| t.expel("node2"));
    });
    s.up("nodes: 2", 1);
    s.end("a-removal-goes-on");
}

#[test]
fn the_quorum_is_lost() {
    let mut s = Story::new(EngineKind::Incus);
    s.up("nodes: 3", 1);
    s.happens("node1 and node2 crash", |t| {
        t.crash("node1");
        t.crash("node2");
    });
    s.up("nodes: 3", 1);
    s.end("the-quorum-is-lost");
}

#[test]
fn the_quorum_is_lost_and_kept_on_data_disks() {
    let mut s = Story::new(EngineKind::Incus);
    s.up(&data(3), 1);
    s.happens("node1 and node2 crash", |t| {
        t.crash("node1");
        t.crash("node2");
    });
    s.up(&data(3), 2);
    s.end("the-quorum-is-lost-and-kept");
}

#[test]
fn only_the_network_changes() {
    let mut s = Story::new(EngineKind::Incus);
    s.up("nodes: 2", 1);
    s.up("nodes: 2\npublish: ['127.0.0.1:0:node1:8484']", 1);
    s.end("only-the-network-changes");
}

#[test]
fn a_member_lost_its_state() {
    let mut s = Story::new(EngineKind::Incus);
    s.up(&data(3), 1);
    s.happens("node2 crashes and its disk is replaced", |t| {
        t.crash("node2");
        t.lose_disk("node2");
    });
    s.up(&data(3), 1);
    s.end("a-member-lost-its-state");
}

#[test]
fn the_member_that_others_join_through_dies() {
    let mut s = Story::new(EngineKind::Incus);
    s.up("nodes: 3", 1);
    s.happens("node1 crashes as soon as node4 joins through it", |t| {
        t.when("node4: join incus through node1", |t| t.crash("node1"));
    });
    s.up("nodes: 5", 1);
    s.end("the-seed-dies");
}

/// A command does not give up the remaining state if its plan did not say so.
#[test]
fn the_quorum_dies_with_the_member_that_others_join_through() {
    let mut s = Story::new(EngineKind::Incus);
    s.up("nodes: 2", 1);
    s.happens("node1 crashes as soon as node3 joins through it", |t| {
        t.when("node3: join incus through node1", |t| t.crash("node1"));
    });
    s.up("nodes: 3", 1);
    s.up("nodes: 3", 1);
    s.end("the-quorum-dies-with-the-seed");
}

#[test]
fn the_member_that_others_join_through_dies_each_time() {
    let mut s = Story::new(EngineKind::Incus);
    s.up(&data(3), 1);
    s.happens("whoever node4 joins through crashes", |t| {
        for through in ["node1", "node2", "node1", "node2"] {
            t.when(&format!("node4: join incus through {through}"), move |t| t.crash(through));
        }
    });
    s.up(&data(4), 1);
    s.up(&data(4), 1);
    s.end("each-seed-dies");
}

#[test]
fn the_first_node_does_not_start() {
    let mut s = Story::new(EngineKind::Incus);
    s.happens("node1 ends before its agent answers", |t| {
        t.when("node1: wait for its agent", |t| t.crash("node1"));
    });
    s.up("nodes: 2", 1);
    s.up("nodes: 2", 1);
    s.end("the-first-node-does-not-start");
}

#[test]
fn a_member_does_not_come_back_from_a_rolling_change() {
    let mut s = Story::new(EngineKind::Incus);
    s.up(&data(3), 1);
    s.happens("node1 ends before its agent answers", |t| {
        t.when("node1: wait for its agent", |t| t.crash("node1"));
    });
    s.up(&data(3), 2);
    s.up(&data(3), 2);
    s.end("a-rolling-change-breaks-off");
}

#[test]
fn nodes_are_replaced_by_others() {
    let mut s = Story::new(EngineKind::Incus);
    s.up("nodes: [{name: a}, {name: b}]", 1);
    s.up("nodes: [{name: b}, {name: c}]", 1);
    s.happens("b crashes", |t| t.crash("b"));
    s.up("nodes: [{name: c}]", 1);
    s.end("nodes-are-replaced");
}

/// The text of a step, as `up --dry-run` shows it.
fn text(action: &plan::Action) -> String {
    plan::text(action, EngineKind::Incus)
}
