//! Whatever the facts, a plan uses nothing before it is made.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeSet;

fn facts(mode: Mode, layers: usize, disk: bool, v1: bool, serials: &[String]) -> Facts {
    let device = |n: usize| Device {
        name: format!("vd{}", (b'a' + n as u8) as char),
        block: true,
        major: 254,
        minor: 16 * n as u32,
        mode: 0o660,
    };
    Facts {
        mode,
        layers: (0..layers).map(|n| PathBuf::from(format!("/source/{n}"))).collect(),
        staging: "/stage".into(),
        upper: if disk { Upper::Disk("/dev/vdz".into()) } else { Upper::Tmpfs(Some(1 << 20)) },
        cgroups: if v1 {
            Layout { v1: vec![vec!["cpu".into(), "cpuacct".into()], vec!["name=systemd".into()]], v2: true }
        } else {
            Layout::unified()
        },
        disks: serials.iter().enumerate().map(|(n, s)| (s.clone(), device(n))).collect(),
        devices: vec![Device { name: "kvm".into(), block: false, major: 10, minor: 232, mode: 0o660 }],
        console: None,
    }
}

/// Follows a plan with a model of what exists, as strictly as the kernel would.
fn check(facts: &Facts, plan: &BootPlan) -> Result<(), String> {
    let mut there: BTreeSet<PathBuf> = [facts.staging.clone(), "/dev".into(), "/".into()].into();
    let mut cwd = PathBuf::from("/");
    let mut left = false;
    let has = |there: &BTreeSet<PathBuf>, p: &Path| {
        there.contains(p).then_some(()).ok_or(format!("{p:?} is used before it is made"))
    };
    for Planned { step, .. } in &plan.0 {
        if left {
            return Err(format!("{step:?} comes after the root was changed"));
        }
        match step {
            Step::Directory { path } | Step::Private { path } => {
                there.extend(path.ancestors().map(Path::to_owned))
            }
            Step::Enter { path } => {
                has(&there, path)?;
                cwd.clone_from(path);
            }
            Step::Mount { target, data, filesystem, .. } => {
                has(&there, target)?;
                // The mount covers what was below.
                there.retain(|p| p == target || !p.starts_with(target));
                if filesystem == "overlay" {
                    for option in data.split(',') {
                        let (_, dirs) = option.split_once('=').ok_or("overlay option without value")?;
                        for dir in dirs.split(':') {
                            has(&there, &cwd.join(dir))?;
                        }
                    }
                    // Every layer has these.
                    there.extend(["dev", "proc", "sys"].map(|d| target.join(d)));
                }
            }
            Step::DataDisk { target, tools, .. } => {
                has(&there, target)?;
                has(&there, tools)?;
            }
            // What the kernel's own filesystems have in them is there, or is passed over.
            Step::Bind { target: path, .. }
            | Step::Expose { target: path, .. }
            | Step::ReadOnly { path }
            | Step::Shadow { path, .. }
                if ["proc", "sys"].iter().any(|d| path.starts_with(facts.staging.join("root").join(d))) => {}
            Step::Bind { target: path, .. }
            | Step::Expose { target: path, .. }
            | Step::ReadOnly { path }
            | Step::Shadow { path, .. } => {
                has(&there, path)?;
            }
            Step::Unmount { path } => {
                has(&there, path)?;
                there.retain(|p| p == path || !p.starts_with(path));
            }
            Step::File { path } | Step::InstallSelf { path } | Step::Symlink { path, .. } => {
                has(&there, path.parent().ok_or("no parent")?)?;
                there.insert(path.clone());
            }
            Step::Node { folder, device } => {
                has(&there, folder.join(&device.name).parent().ok_or("no parent")?)?;
            }
            Step::PivotRoot { root } | Step::MoveRoot { root } => {
                for needed in ["proc", "sys", "dev", "run/stead", "tmp"] {
                    has(&there, &root.join(needed))?;
                }
                if facts.mode == Mode::Namespace {
                    has(&there, &root.join("run/stead/stead-node"))?;
                }
                left = true;
            }
            Step::MakePrivate | Step::FreeInitrd => {}
        }
    }
    if left { Ok(()) } else { Err("the root is never changed".into()) }
}

proptest! {
    #[test]
    fn everything_is_made_before_it_is_used(
        vm: bool, layers in 0usize..30, disk: bool, v1: bool,
        serials in proptest::collection::vec("[a-z0-9./]{0,12}", 0..4),
    ) {
        let mode = if vm { Mode::Vm } else { Mode::Namespace };
        let facts = facts(mode, layers, disk, v1, &serials);
        let plan = plan(&facts).unwrap();
        prop_assert_eq!(check(&facts, &plan), Ok(()));
        // The plan survives serialisation.
        let text = serde_json::to_string(&plan).unwrap();
        prop_assert_eq!(serde_json::from_str::<BootPlan>(&text).unwrap(), plan);
    }

    #[test]
    fn the_last_layer_lies_on_top(vm: bool, layers in 1usize..60) {
        let facts = facts(if vm { Mode::Vm } else { Mode::Namespace }, layers, false, false, &[]);
        let plan = plan(&facts).unwrap();
        // Which source each `layer/N` shows.
        let shown: Vec<(PathBuf, PathBuf)> = plan.0.iter().filter_map(|p| match &p.step {
            Step::Mount { source, target, filesystem, .. } if filesystem == "squashfs" => Some((target.clone(), source.into())),
            Step::Bind { source, target } if source.starts_with("/source") => Some((target.clone(), source.clone())),
            _ => None,
        }).collect();
        let lower = plan.0.iter().find_map(|p| match &p.step {
            Step::Mount { source, data, .. } if source == "stead-root" => Some(data.clone()),
            _ => None,
        }).unwrap();
        let lower = lower.strip_prefix("lowerdir=").unwrap().split(',').next().unwrap().to_owned();
        let from_top: Vec<PathBuf> = lower.split(':').map(|d| {
            shown.iter().find(|(t, _)| *t == facts.staging.join(d)).unwrap().1.clone()
        }).collect();
        let mut expected = facts.layers.clone();
        expected.reverse();
        prop_assert_eq!(from_top, expected);
    }

    #[test]
    fn nothing_of_the_host_is_touched(layers in 0usize..5, disk: bool, v1: bool) {
        let facts = facts(Mode::Namespace, layers, disk, v1, &["data".to_owned()]);
        let plan = plan(&facts).unwrap();
        prop_assert_eq!(&plan.0[0].step, &Step::MakePrivate);
        for p in &plan.0 {
            let written = match &p.step {
                Step::Mount { target, .. } | Step::Bind { target, .. } | Step::Expose { target, .. } => target,
                Step::Directory { path } | Step::Private { path } | Step::File { path } | Step::Symlink { path, .. }
                | Step::InstallSelf { path } | Step::ReadOnly { path } | Step::Shadow { path, .. } => path,
                Step::Node { folder, .. } => folder,
                _ => continue,
            };
            prop_assert!(written.starts_with(&facts.staging), "{:?}", p);
        }
    }
}

#[test]
fn overlay_options_fit_a_page_with_a_hundred_layers() {
    let plan = plan(&facts(Mode::Vm, 100, true, false, &[])).unwrap();
    for p in &plan.0 {
        if let Step::Mount { data, .. } = &p.step {
            assert!(data.len() < 4095, "{} bytes", data.len());
        }
    }
    assert_eq!(super::plan(&facts(Mode::Vm, 501, false, false, &[])), Err(PlanError::TooManyLayers(501)));
}

#[test]
fn the_disk_is_prepared_between_layers_and_overlay() {
    let plan = plan(&facts(Mode::Vm, 2, true, false, &[])).unwrap();
    let at = |wanted: fn(&Step) -> bool| plan.0.iter().position(|p| wanted(&p.step)).unwrap();
    let disk = at(|s| matches!(s, Step::DataDisk { .. }));
    assert!(at(|s| matches!(s, Step::Mount { source, .. } if source == "stead-tools")) < disk);
    assert!(disk < at(|s| matches!(s, Step::Mount { source, .. } if source == "stead-root")));
}

#[test]
fn a_hostile_serial_makes_no_path() {
    let plan = plan(&facts(Mode::Vm, 1, false, false, &["../../etc/x".to_owned(), "..".to_owned()])).unwrap();
    assert!(
        !plan.0.iter().any(
            |p| matches!(&p.step, Step::Symlink { path, .. } if path.starts_with("/stage/root/dev/disk"))
        )
    );
}
